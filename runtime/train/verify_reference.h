// What `r1run verify` compares with: rows of tokens and, recorded or made by another layout, their logits and gradients.
#pragma once

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "parallel/spec/model_spec.h"
#include "runtime/data/dataset.h"

namespace r1::train {

struct Reference {
  int64_t rows = 0, seq_len = 0;
  std::vector<int64_t> ids, labels, mask;  ///< [rows, seq_len]
  double loss = std::nan("");
  std::vector<float> logits;               ///< [rows, seq_len, vocab], may be empty
  std::map<std::string, std::vector<float>> gradients;
};

/// Reads a reference (the form is told in verify.h). Throws DataError when the file lacks the rows, has neither logits nor
/// gradients, or does not fit the model.
[[nodiscard]] Reference read_reference(const std::filesystem::path& path, const parallel::ModelConfig& config);
/// Writes rows, logits and all gradients in the same form.
void write_reference(const std::filesystem::path& path, const parallel::ModelConfig& config, const Reference& r);
/// Rows for comparing layouts with each other: four rows of up to 64 tokens, uneven lengths.
[[nodiscard]] Reference made_rows(const parallel::ModelConfig& config, uint64_t seed);
/// Row i of the reference as a data row: real tokens (a mask that is 1 at the front) in one segment, padding in another. Throws
/// DataError, naming `where`, for a mask of another form.
[[nodiscard]] data::Row reference_row(const Reference& r, int64_t i, const std::filesystem::path& where);

}  // namespace r1::train
