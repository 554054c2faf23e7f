// Kernels of the communicators. Host side; part of the CUDA library.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <span>
#include <vector>

#include "comm/ipc/ipc_memory.h"
#include "runtime/core/comm_route.h"

namespace r1::comm::cuda {

inline constexpr int kMaxPeers =
    kMostKernelPeers;  ///< ranks of a group whose kernels write to each other

/// out[i] = sources[0][i] op sources[1][i] op ... in this order, 16-bit types in fp32 and rounded
/// once; a NaN in any source makes the maximum NaN. `out` may be one of the sources. At most 64
/// sources.
void reduce_in_order(DType dtype, ReduceOp op, std::span<const void* const> sources, void* out,
                     int64_t numel, cudaStream_t stream);

/// areas[r]: ipc_kernel_bytes(ranks) at rank r, zeroed before the first use (peer_kernels_cuda.cu
/// describes them).
[[nodiscard]] std::unique_ptr<PeerKernels> make_peer_kernels(int device, int rank,
                                                             const std::vector<void*>& areas);

}  // namespace r1::comm::cuda
