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

namespace r1::comm {
namespace {

// kMessageSlots expected messages are under way at once: they arrive although the sender's host does not come by again, which is
// what they are expected for. Their room is what was asked for and no more.
void whole_messages(Communicator& world, Communicator& ipc, size_t most) {
  std::vector<ExpectedMessage> from;
  const int last = world.size() - 1;
  if (world.rank() == last) from = {{0, most - 1000}};
  const auto room = static_cast<int64_t>(kMessageSlots * (most - 1000 + 255) / 256 * 256);
  const int64_t took = ipc.expect_messages(from);
  R1_CHECK(took == (world.rank() == last ? room : 0), "{} bytes of room", took);
  R1_CHECK(ipc.expect_messages(from) == 0, "room for the same messages again");
  std::vector<char> bytes(most - 1000, static_cast<char>(world.rank() == 0 ? 7 : 0));
  const Tensor x{.data = bytes.data(), .dtype = DType::kU8, .shape = {static_cast<int64_t>(bytes.size())}, .device = {}};
  std::vector<std::unique_ptr<Pending>> sends;
  const Transfer one[] = {{Transfer::Kind::kSend, x, last}};
  if (world.rank() == 0)
    for (size_t i = 0; i < kMessageSlots; ++i) sends.push_back(ipc.start(one, {}));
  world.barrier();
  if (world.rank() == last)
    for (size_t i = 0; i < kMessageSlots; ++i) {
      std::fill(bytes.begin(), bytes.end(), '\0');
      ipc.recv(x, 0, {});
      R1_CHECK(bytes.front() == 7 && bytes.back() == 7, "message {} differs", i);
    }
  world.barrier();
  for (auto& p : sends) p->wait();
  world.barrier();
  // More than the most: in pieces, in the room for the most.
  if (world.rank() == last) from = {{0, 2 * most}};
  const int64_t more = ipc.expect_messages(from);
  R1_CHECK(more == (world.rank() == last ? static_cast<int64_t>(kMessageSlots * most) : 0), "{} bytes of room", more);
}

}  // namespace
}  // namespace r1::comm

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
    if (where == "cpu" && world.size() > 1 && args.empty()) {
      const auto group = make_ipc(world.split(0, world.rank(), "whole"), make_ipc_hub(memory, stop), options);
      whole_messages(world, *group, options.most_message_slot_bytes);
      group->close();
    }
    return passed;
  });
}
