// The conformance suite over NCCL: rank r on GPU r. More than two ranks: sums of 32- and 64-bit
// types come in NCCL's order.
//   nccl_conformance [--non-blocking-calls] [CASE...]
#include <string>
#include <vector>

#include "comm/nccl/nccl.h"
#include "conformance.h"
#include "gpu.h"
#include "on_device.h"
#include "rank_main.h"

int main(int argc, char** argv) {
  using namespace r1;
  using namespace r1::comm;
  return test::rank_main(argc, argv, [&](Communicator& world, const StopCheck& stop) -> size_t {
    std::vector<std::string> names(argv + 1, argv + argc);
    const bool threads = std::erase(names, "--non-blocking-calls") != 0;
    const Device device = test::gpu_of_rank(world.rank(), world.size());
    const auto hub = make_nccl_hub(make_cuda_memory(device), stop);
    const auto nccl =
        make_nccl(world.split(0, world.rank(), "nccl"), hub, {.non_blocking_calls = threads});
    const auto view = test::on_device(*nccl, device);
    test::set_ordered_sums(world.size() <= 2);
    const size_t passed = test::run_conformance(*view, names);
    nccl->close();
    if (world.rank() == 0) std::printf("NCCL %s\n", nccl_version(*hub).c_str());
    return passed;
  });
}
