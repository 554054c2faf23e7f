// Which backend carries a group's tensors: a pure choice from where the group's ranks are. The plan
// prints it on a login node, the ranks act on it.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace r1 {

enum class CommChoice { kAuto, kNccl, kIpc, kUcx, kMpi };
enum class CommBackend { kNone, kNccl, kIpc, kUcx, kMpi };

/// Of "auto", "nccl", "ipc", "ucx", "mpi". Throws UsageError with what is allowed.
[[nodiscard]] CommChoice parse_comm_choice(std::string_view text);
[[nodiscard]] std::string_view comm_backend_name(CommBackend b);

/// Where the ranks of one group are.
struct GroupPlace {
  int ranks = 1;
  int hosts = 1;             ///< hosts they are on
  int most_ranks_a_gpu = 0;  ///< ranks of the group on the GPU that has most of them; 0: on CPUs
  bool has_nccl = true;      ///< every rank can load NCCL
};

struct CommRoute {
  CommBackend collectives = CommBackend::kNone;
  CommBackend messages = CommBackend::kNone;  ///< point to point
  /// Collectives that are quicker so, where this differs: small ones in one kernel a rank through
  /// ipc; between two ranks all for which the stream waits.
  CommBackend small_collectives = CommBackend::kNone;
  bool any_size = false;  ///< small_collectives carries those of any size
  friend bool operator==(const CommRoute&, const CommRoute&) = default;
};

/// Whether messages within a host go through ipc on GPUs.
[[nodiscard]] constexpr bool messages_through_ipc(CommChoice choice) {
  return choice == CommChoice::kAuto || choice == CommChoice::kIpc;
}

/// Whole messages that may be under way through ipc from one rank to another: the sender's host goes on meanwhile.
inline constexpr size_t kMessageSlots = 4;
/// The largest message on GPUs that travels in one piece: 8,192 tokens of a hidden size of 8,192 in 16 bits.
inline constexpr size_t kMostMessageSlotBytes = size_t{128} << 20;

/// Pieces of a collective that may be under way from one rank to another: one slot is filled while the other is emptied.
inline constexpr size_t kCollectiveSlots = 2;
/// A slot for collectives of a group through ipc on GPUs; those for messages that nobody said to expect are twice as large. All
/// slots of all ranks: 80 MiB in groups of two, four and eight.
[[nodiscard]] constexpr size_t ipc_slot_bytes(int ranks) { return size_t{ranks <= 2 ? 4U : ranks <= 4 ? 2U : 1U} << 20; }
/// Groups of up to so many ranks with a GPU each have kernels that write to all peers.
inline constexpr int kMostKernelPeers = 8;
/// What those kernels write in, at each rank (comm/cuda/peer_kernels_cuda.cu).
[[nodiscard]] constexpr size_t ipc_kernel_bytes(int ranks) {
  return (size_t{64} << 20) + static_cast<size_t>(ranks) * (size_t{2} << 20) + 16384;
}
/// Device memory that a group through ipc takes at each rank.
[[nodiscard]] constexpr size_t ipc_group_bytes(int ranks, bool kernels) {
  return static_cast<size_t>(ranks) * (kCollectiveSlots + 2 * kMessageSlots) * ipc_slot_bytes(ranks) +
         (kernels && ranks <= kMostKernelPeers ? ipc_kernel_bytes(ranks) : 0);
}

/// kAuto on GPUs: one GPU a rank on one host: collectives over NCCL, small ones (between two ranks all that the stream
/// waits for) and messages over ipc (one kernel a rank; copies that take no multiprocessor); several ranks on a GPU of one host:
/// ipc; over hosts: NCCL with one GPU a rank, else UCX (through pinned host memory where UCX has no
/// CUDA). On CPUs: mpi. Throws UsageError where the choice cannot work: nccl with several ranks a
/// GPU, ipc over hosts, either on CPUs (ipc works there).
[[nodiscard]] CommRoute choose_comm(CommChoice choice, const GroupPlace& place,
                                    std::string_view group);

/// "nccl"; when they differ "nccl, small collectives and messages ipc", or "ipc, collectives beside computation nccl".
[[nodiscard]] std::string describe(const CommRoute& route);

}  // namespace r1
