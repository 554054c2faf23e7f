// Where a job's model comes from: a Hugging Face directory, a config.json with random weights, or the built-in model.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "parallel/spec/model_config.h"
#include "runtime/checkpoint/hf_model.h"
#include "runtime/tokenizer/tokenizer.h"
#include "runtime/train/context.h"

namespace r1::train {

struct ModelSource {
  checkpoint::HfModelDir dir;
  parallel::ModelConfig config;
  std::optional<uint64_t> init_seed;  ///< weights from this seed instead of the directory's
  bool built_in = false;

  /// Of what decides the parameters' names and shapes and what they compute.
  [[nodiscard]] std::string fingerprint() const;
};

/// Opens --model (or the built-in model, written to `output`/default-model by rank 0). Collective. Throws DataError, UsageError.
[[nodiscard]] ModelSource open_model_source(const RankContext& ctx, const std::filesystem::path& output);

/// Throws DataError when the tokenizer of the model's directory makes ids that its embedding has no rows for.
void check_tokenizer(const text::Tokenizer& tokenizer, const ModelSource& source);

}  // namespace r1::train
