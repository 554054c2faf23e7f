// The conformance suite over UCX, started over MPI.
//   ucx_conformance TRANSPORTS         CPU tensors; transports as in UCX_TLS: "shm", "tcp"
//   ucx_conformance TRANSPORTS cuda    GPU tensors: UCX's own CUDA support, else pinned host memory
#include <cstdio>

#include "comm/ipc/ipc_memory.h"
#include "comm/staged/staged.h"
#include "comm/ucx/ucx.h"
#include "gpu.h"
#include "on_device.h"
#include "rank_main.h"

int main(int argc, char** argv) {
  using namespace r1;
  using namespace r1::comm;
  return test::rank_main(argc, argv, [&](Communicator& world, const StopCheck& stop) {
    R1_CHECK(argc == 2 || argc == 3, "usage: ucx_conformance TRANSPORTS [cuda]");
    if (argc == 2) {
      const auto ucx = make_ucx(world, stop, {.transports = argv[1]});
      const size_t passed = test::run_conformance(*ucx);
      ucx->close();
      return passed;
    }
    const Device device = test::gpu_of_rank(world.rank());
    const bool direct = ucx_moves_cuda();
    const auto memory = make_cuda_memory(device);
    auto ucx =
        make_ucx(world, stop, {.transports = argv[1], .memory = direct ? memory.get() : nullptr});
    if (!direct) ucx = make_staged(std::move(ucx));
    const auto view = test::on_device(*ucx, device);
    const size_t passed = test::run_conformance(*view);
    ucx->close();
    if (world.rank() == 0)
      std::printf("GPU tensors %s\n",
                  direct ? "over UCX's CUDA support" : "through pinned host memory");
    return passed;
  });
}
