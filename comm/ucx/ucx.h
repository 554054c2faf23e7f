// Messages over UCX between hosts and processes (tag matching), with the collectives of
// comm/composed.h on top.
#pragma once

#include "comm/memory.h"

namespace r1::comm {

struct UcxOptions {
  /// UCX transports, as in UCX_TLS ("tcp", "shm", "rc,shm", "all"); empty: the environment's
  /// choice.
  std::string transports;
  std::string name = "ucx";
  /// UCX (1.13) tells that a peer died only over transports that see it, which shared memory does
  /// not: asked for that, it leaves shared memory out. It is asked between hosts, and within a host
  /// where `transports` name no shared memory, or with this option. Elsewhere the StopCheck ends a
  /// wait.
  bool watch_local_peers = false;
  /// Where tensors live; null: host memory. A GPU's only where ucx_moves_cuda() says that UCX can.
  Memory* memory = nullptr;
};

/// Whether this UCX reads and writes CUDA memory itself (built with CUDA, its module there and a GPU visible). Where it
/// does not, device tensors go through pinned host memory (comm/staged).
[[nodiscard]] bool ucx_moves_cuda();

/// A communicator over the ranks of `bootstrap`, which carries the workers' addresses and is not
/// needed afterwards. Collective over bootstrap. Waiting loops poll and call `stop`
/// every few milliseconds. Close all groups split from it before it, and it last: without close(),
/// nothing is freed (a peer may be gone, and UCX would wait). Throws CommError with UCX's own text.
[[nodiscard]] std::unique_ptr<Communicator> make_ucx(Communicator& bootstrap, StopCheck stop,
                                                     const UcxOptions& options = {});

}  // namespace r1::comm
