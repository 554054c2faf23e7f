// The conformance suite over memory that the ranks of a host share.
//   ipc_conformance cpu|on-device [--slot BYTES] [CASE...]     POSIX shared memory; on-device:
//   through the adaptor ipc_conformance cuda [--no-kernels] [--slot BYTES] [CASE...]   CUDA IPC:
//   rank r on GPU r modulo their number
#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "comm/ipc/ipc.h"
#include "gpu.h"
#include "on_device.h"
#include "rank_main.h"

int main(int argc, char** argv) {
  using namespace r1;
  using namespace r1::comm;
  return test::rank_main(argc, argv, [&](Communicator& world, const StopCheck& stop) -> size_t {
    std::vector<std::string> args(argv + 1, argv + argc);
    R1_CHECK(!args.empty(),
             "usage: ipc_conformance cpu|on-device|cuda [--no-kernels] [--slot BYTES] [CASE...]");
    const std::string where = args.front();
    args.erase(args.begin());
    IpcOptions options{
        .slot_bytes = 4096,
        .message_slot_bytes = 4096,  // most of the suite's tensors then travel in several pieces
        .most_message_slot_bytes = size_t{1} << 17};
    if (const auto it = std::find(args.begin(), args.end(), "--no-kernels"); it != args.end()) {
      options.kernels = false;
      args.erase(it);
    }
    if (const auto it = std::find(args.begin(), args.end(), "--slot"); it != args.end()) {
      options.slot_bytes = options.message_slot_bytes = std::stoul(*(it + 1));
      args.erase(it, it + 2);
    }
    Device device;
    if (where == "cuda") device = test::gpu_of_rank(world.rank());
    std::shared_ptr<IpcMemory> memory =
        where == "cuda" ? make_cuda_memory(device) : make_shm_memory();
    const auto ipc =
        make_ipc(world.split(0, world.rank(), "ipc"), make_ipc_hub(memory, stop), options);
    const auto device_view = where == "cpu" ? nullptr : test::on_device(*ipc, device);
    const size_t passed = test::run_conformance(device_view ? *device_view : *ipc, args);
    ipc->close();
    return passed;
  });
}
