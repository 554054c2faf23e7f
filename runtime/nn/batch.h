// How the tokens of a micro-batch form sequences: what layers read beside the activations.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/device/tensor.h"

namespace r1::nn {

/// A micro-batch as layers see it. Legend: T tokens = rows * seq_len.
struct Batch {
  Tensor ids;         ///< [T] int32, on the device
  Tensor targets;     ///< [T] int32, -1 where not trained
  Tensor positions;   ///< [T] int32, restarting in each packed sample
  Tensor cu_seqlens;  ///< [segments + 1] int32
  std::vector<int32_t> host_cu;       ///< cu_seqlens on the host
  std::vector<int32_t> host_targets;  ///< targets on the host: chunks without a trained token are skipped
  int64_t max_segment = 0;
  int64_t tokens = 0;
};

}  // namespace r1::nn
