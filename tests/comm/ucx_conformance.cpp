// The conformance suite over UCX, started over MPI.
//   ucx_conformance TRANSPORTS    as in UCX_TLS: "shm", "tcp"
#include "comm/ucx/ucx.h"
#include "rank_main.h"

int main(int argc, char** argv) {
  using namespace r1::comm;
  return test::rank_main(argc, argv, [&](Communicator& world, const StopCheck& stop) {
    R1_CHECK(argc == 2, "usage: ucx_conformance TRANSPORTS");
    const auto ucx = make_ucx(world, stop, {.transports = argv[1]});
    const size_t passed = test::run_conformance(*ucx);
    ucx->close();
    return passed;
  });
}
