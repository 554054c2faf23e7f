// Device memory of the communicators of a rank, beside what the plan of its tensors counts.
#pragma once

#include <cstdint>

namespace r1::parallel {

/// NCCL's buffers of one communicator: an estimate (4 MiB a channel and direction, some ten of them), not measured.
inline constexpr int64_t kNcclCommunicatorBytes = int64_t{256} << 20;
/// NCCL's buffers for messages in one direction between two ranks. Two H200, NCCL 2.28.9: a job with four of them took 55,515 MiB
/// where ipc's slots took 52,767, some 230 of which were slots.
inline constexpr int64_t kNcclMessageBytes = int64_t{745} << 20;
/// Directions in which a rank of a pipeline has messages: to and from each neighbour.
[[nodiscard]] constexpr int message_directions(int pp) { return pp == 1 ? 0 : pp == 2 ? 2 : 4; }
/// What arrives of a bucket of gradients on its way between replicas (optim::ShardExchange::bucket_bytes on a GPU).
inline constexpr int64_t kExchangeBytes = int64_t{64} << 20;

}  // namespace r1::parallel
