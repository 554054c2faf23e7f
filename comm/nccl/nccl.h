// Collectives between GPUs over NCCL, one GPU a rank.
#pragma once

#include <memory>
#include <string>

#include "comm/communicator.h"
#include "comm/ipc/ipc_memory.h"

namespace r1::comm {

struct NcclOptions {
  std::string name = "nccl";
  /// Prepare messages between any two ranks, as expect_messages does for those it names: a communicator
  /// and a stream for each direction of a pair, so that messages to one rank never wait for those from
  /// another. Other messages go through the group's own communicator in the order of the calls, and a
  /// batch (start) is one group call. A direction takes some 0.7 GiB.
  bool messages = true;
  /// Calls that return before NCCL has enqueued their work, in a thread each. Communicators are
  /// made without blocking either way.
  bool non_blocking_calls = false;
};

/// What all NCCL groups of a process share. Must outlive them.
class NcclHub;
/// `memory` gives streams, events and temporary memory of this rank's GPU. Loads NCCL; throws
/// DeviceError when that is missing.
[[nodiscard]] std::shared_ptr<NcclHub> make_nccl_hub(std::shared_ptr<IpcMemory> memory,
                                                     StopCheck stop);
/// For the waiting loop of a device: throws when NCCL reports an error (asynchronous ones included)
/// or the hub's StopCheck says so; all communicators of the process are aborted before, so that
/// their kernels end.
void check_nccl(NcclHub& hub, const Communicator& group, const char* operation,
                std::chrono::nanoseconds waited);
/// "2.28.9"
[[nodiscard]] std::string nccl_version(NcclHub& hub);

/// A communicator over the ranks of `host`, each with a GPU of its own; it carries identifiers and
/// barriers, and is closed with the group. Collective over `host`. Calls are non-blocking in NCCL's
/// sense and polled. Sums over two ranks, and of 16-bit types over any number, are formed in rank
/// order in fp32 (16-bit types over more ranks travel as they are and are summed where they
/// arrive); other sums over more than two ranks are in NCCL's order, the same in every run on the
/// same machine. Maxima and reductions with uneven counts are composed too (NCCL's maximum drops
/// NaN).
[[nodiscard]] std::unique_ptr<Communicator> make_nccl(std::unique_ptr<Communicator> host,
                                                      std::shared_ptr<NcclHub> hub,
                                                      const NcclOptions& options = {});

}  // namespace r1::comm
