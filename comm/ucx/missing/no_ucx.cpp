// Stands in for the UCX backend in builds without UCX.
#include "comm/ucx/ucx.h"
#include "runtime/core/error.h"

namespace r1::comm {

bool ucx_moves_cuda() { return false; }

std::unique_ptr<Communicator> make_ucx(Communicator&, StopCheck, const UcxOptions&) {
  throw UsageError(
      "this build has no UCX: install its headers (Debian: libucx-dev) and build again, or choose "
      "the mpi backend");
}

}  // namespace r1::comm
