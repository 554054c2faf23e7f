// A sampled answer from the weights in memory, on the layout they are trained in.
#pragma once

#include "runtime/train/setup.h"

namespace r1::train {

/// Asks the model the first question of the data set and prints prompt and greedy answer, by the generation engine on
/// the weights being trained. Collective over the world.
void print_sample(const RankContext& ctx, Engine& engine, const data::Dataset& dataset,
                  const text::Tokenizer& tokenizer);

}  // namespace r1::train
