// Faults under UCX.
//   ucx_faults killed|stuck|left|size OPERATION TRANSPORTS [--watch]
#include "comm/ucx/ucx.h"
#include "faults.h"

int main(int argc, char** argv) {
  using namespace r1::comm;
  const std::string fault = argc > 1 ? argv[1] : "", operation = argc > 2 ? argv[2] : "";
  const std::string transports = argc > 3 ? argv[3] : "";
  return test::fault_main(
      argc, argv, fault, operation, [&](Communicator& world, const StopCheck& stop) {
        return make_ucx(world, stop, {.transports = transports, .watch_local_peers = argc > 4});
      });
}
