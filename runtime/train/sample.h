// A sampled answer from the weights in memory, on the layout they are trained in.
#pragma once

#include <functional>
#include <vector>

#include "runtime/train/setup.h"

namespace r1::train {

/// Greedy continuation of `prompt` by whole forwards (no cache): for a look at the model after training. Stops at an id of
/// `eos` or after `max_new` tokens. The same ids on every rank. Collective over the world.
[[nodiscard]] std::vector<int32_t> greedy(Engine& engine, const BatchLayout& rows, const std::vector<int32_t>& prompt,
                                          int64_t max_new, const std::vector<int64_t>& eos, int32_t pad_id,
                                          const std::function<void(int32_t)>& each);

/// Asks the model the first question of the data set and prints prompt, answer and the expected answer. Collective.
void print_sample(const RankContext& ctx, Engine& engine, const data::Dataset& dataset, const text::Tokenizer& tokenizer,
                  const BatchLayout& rows);

}  // namespace r1::train
