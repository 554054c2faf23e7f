// Ranks of one host that exchange tensors through memory they share: CUDA IPC between GPUs, or on
// one GPU that several ranks use (which NCCL refuses); POSIX shared memory on CPUs.
#pragma once

#include <memory>
#include <string>

#include "comm/communicator.h"
#include "comm/ipc/ipc_memory.h"
#include "runtime/core/comm_route.h"

namespace r1::comm {

struct IpcOptions {
  std::string name = "ipc";
  /// Bytes of one slot of a collective, two a pair of ranks and direction; larger parts travel in
  /// pieces.
  size_t slot_bytes = size_t{1} << 20;
  /// The same of send, recv and start, kMessageSlots a pair and direction.
  size_t message_slot_bytes = size_t{2} << 20;
  /// Up to this size the slots of a pair grow to what expect_messages names; 0: they never do. A message that takes
  /// several pieces waits for the sender's host to come by again, which may be a whole forward later.
  size_t most_message_slot_bytes = 0;
  /// Collectives in one kernel a rank, where every rank has a GPU of its own.
  bool kernels = true;
};

/// What all ipc groups of a process share: memory, streams, and the messages under way. Must
/// outlive them.
class IpcHub;
[[nodiscard]] std::shared_ptr<IpcHub> make_ipc_hub(std::shared_ptr<IpcMemory> memory,
                                                   StopCheck stop);

/// Whether a group's collectives are one kernel a rank (comm/ipc/ipc_memory.h, PeerKernels).
[[nodiscard]] bool has_peer_kernels(const Communicator& group);

/// Enqueues what messages under way allow: for waiting loops outside the hub's groups.
void progress(IpcHub& hub);

/// A communicator over the ranks of `host`, which must be on one host; it carries handles and
/// barriers, and is closed with the group. Tensors live in the hub's memory. Collective over
/// `host`.
///
/// Messages: the sender copies a piece into a slot in the receiver's region and records an event,
/// the receiver waits for the event on its stream and copies out; that both were enqueued is agreed
/// through counters in host memory, so that no kernel spins and ranks may share a GPU. Waiting
/// loops advance all messages of the process and call the hub's StopCheck.
///
/// expect_messages gives the pairs it names kMessageSlots slots of whole messages, in regions of their own.
[[nodiscard]] std::unique_ptr<Communicator> make_ipc(std::unique_ptr<Communicator> host,
                                                     std::shared_ptr<IpcHub> hub,
                                                     const IpcOptions& options = {});

}  // namespace r1::comm
