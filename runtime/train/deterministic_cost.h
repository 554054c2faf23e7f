// What --deterministic costs a job, measured before it starts.
#pragma once

#include <string>

#include "runtime/train/batches.h"
#include "runtime/train/engine.h"

namespace r1::train {

struct DeterministicCost {
  int64_t more_gradient_bytes = 0;  ///< partial sums of this rank
  double tree_seconds = 0;          ///< a step, to clear and add partial sums
  double tile_slowdown = 0;         ///< of products on one row, against `micro_batch` rows at once: 0.03 is 3 %
  [[nodiscard]] std::string str(int64_t seq_len, int64_t micro_batch) const;
};
/// Runs the additions of one step on the engine's own (zero) gradients, and a product of the layer's shape in both tile sizes.
/// micro_batch: rows that would run at once otherwise. Before the first step only.
[[nodiscard]] DeterministicCost measure_deterministic_cost(Engine& engine, int64_t seq_len, int64_t micro_batch);

}  // namespace r1::train
