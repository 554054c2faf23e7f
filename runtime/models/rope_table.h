// Small things that the models of training and generation share.
#pragma once

#include <vector>

#include "parallel/spec/model_spec.h"
#include "runtime/device/device.h"

namespace r1::models {

/// What an arena takes for planned tensors.
[[nodiscard]] std::vector<TensorSpec> arena_specs(const std::vector<parallel::PlannedTensor>& planned);

/// cos | sin of every position into `table`, fp32 [positions, D]. Waits for the stream.
void fill_rope_table(const parallel::ModelConfig& config, const Tensor& table, const Stream& s);

}  // namespace r1::models
