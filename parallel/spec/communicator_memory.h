// Device memory of the communicators of a rank, beside what the plan of its tensors counts.
#pragma once

#include <cstdint>

namespace r1::parallel {

/// NCCL's buffers of one communicator: an estimate (4 MiB a channel and direction, some ten of them), not measured.
inline constexpr int64_t kNcclCommunicatorBytes = int64_t{256} << 20;
/// What arrives of a bucket of gradients on its way between replicas (optim::ShardExchange::bucket_bytes on a GPU).
inline constexpr int64_t kExchangeBytes = int64_t{64} << 20;

}  // namespace r1::parallel
