// Sums and maxima over ranks on the CPU, formed in rank order so that a result never depends on
// timing.
#pragma once

#include <cstdint>
#include <span>

#include "comm/communicator.h"

namespace r1::comm {

/// out[i] = sources[0][i] op sources[1][i] op ..., strictly in the order of `sources`. bf16 and
/// fp16 accumulate in fp32 and are rounded once; integers wrap; a NaN in any source makes the
/// maximum NaN. `out` may be one of the sources.
void reduce_in_order(DType dtype, ReduceOp op, std::span<const void* const> sources, void* out,
                     int64_t numel);

/// out[i] = the sum of sources[r][i], formed pairwise over halves of the sources (SumOrder::kTree). Types as above, each partial
/// sum kept in the accumulator's type. `out` may be one of the sources.
void sum_in_tree(DType dtype, std::span<const void* const> sources, void* out, int64_t numel);

}  // namespace r1::comm
