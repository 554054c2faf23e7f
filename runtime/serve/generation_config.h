// generation_config.json of a model directory: how its makers want it sampled. Pure.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/serve/request.h"

namespace r1::serve {

/// What the file says; what it does not say is empty.
struct GenerationConfig {
  std::optional<bool> do_sample;
  std::optional<double> temperature, top_p, min_p, repetition_penalty;
  std::optional<int64_t> top_k;
  std::vector<int64_t> eos_ids;
};

/// Parses the file; `source` names it in messages. Throws DataError naming a key whose value cannot be meant.
[[nodiscard]] GenerationConfig parse_generation_config(std::string_view json, const std::string& source);

/// What the user asked for on top of the file.
struct SamplingWishes {
  std::optional<double> temperature, top_p, min_p, repetition_penalty;
  std::optional<int64_t> top_k;
  uint64_t seed = 0;
};

/// Wishes beat the file. Without `do_sample: true` in the file and without a wish for temperature, top-k, top-p or
/// min-p the choice is greedy, as in transformers; a wish for one of the last three alone samples at temperature 1.
/// `shown`: one line a person reads, with where each value comes from.
[[nodiscard]] SamplingParams resolve_sampling(const GenerationConfig& file, const SamplingWishes& wishes,
                                              std::string* shown);

}  // namespace r1::serve
