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
    if (names.empty() && world.size() > 1) {
      // As the stages of a pipeline: messages round the ring alone are prepared.
      const auto group = make_nccl(world.split(0, world.rank(), "ring"), hub, {.messages = false, .non_blocking_calls = threads});
      const auto ring = test::on_device(*group, device);
      const int next = (world.rank() + 1) % world.size(), previous = (world.rank() + world.size() - 1) % world.size();
      const ExpectedMessage expected[] = {{previous, 4000}};
      for (int round = 0; round < 2; ++round) {
        R1_CHECK(ring->expect_messages(expected) == 0, "NCCL allocates by itself");
        std::vector<int32_t> out(1000, world.rank() + 100 * round), in(1000, -1);
        const auto tensor = [](std::vector<int32_t>& v) {
          return Tensor{.data = v.data(), .dtype = DType::kI32, .shape = {1000}, .device = {}};
        };
        const Transfer send[] = {{Transfer::Kind::kSend, tensor(out), next}};
        const auto pending = ring->start(send, {});
        ring->recv(tensor(in), previous, {});
        pending->wait();
        for (const int32_t x : in) R1_CHECK(x == previous + 100 * round, "{} from rank {}", x, previous);
      }
      group->close();
    }
    if (world.rank() == 0) std::printf("NCCL %s\n", nccl_version(*hub).c_str());
    return passed;
  });
}
