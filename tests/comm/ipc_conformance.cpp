// The conformance suite over memory that the ranks of a host share.
//   ipc_conformance cpu|on-device [--slot BYTES] [CASE...]     POSIX shared memory; on-device:
//   through the adaptor ipc_conformance cuda [--no-kernels] [--slot BYTES] [CASE...]   CUDA IPC:
//   rank r on GPU r modulo their number
#include <algorithm>
#include <cstdlib>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "comm/ipc/ipc.h"
#include "conformance.h"
#include "gpu.h"
#include "on_device.h"
#include "rank_main.h"
#include "runtime/device/device.h"

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

// A call of the kernels: what it takes and gives lies `offset` elements into memory of its own.
struct KernelCall {
  enum Kind { kReduce, kGather, kScatter } kind;
  DType dtype;
  int64_t part, offset;
};
constexpr int64_t kCalls = 180;
KernelCall kernel_call(int64_t i) {  // the same on all ranks
  std::mt19937 random(static_cast<uint32_t>(i));
  const auto one_of = [&](auto... v) {
    const std::common_type_t<decltype(v)...> all[] = {v...};
    return all[random() % sizeof...(v)];
  };
  KernelCall c{};
  c.kind = one_of(KernelCall::kReduce, KernelCall::kGather, KernelCall::kScatter);
  c.dtype = one_of(DType::kF32, DType::kBF16, DType::kI32, DType::kI64, c.kind == KernelCall::kGather ? DType::kU8 : DType::kF64);
  const int64_t elem = dtype_bytes(c.dtype), shot = (int64_t{512} << 10) / elem;  // what two ranks give each other in one shot
  c.part = one_of(int64_t{1}, int64_t{7}, int64_t{1000}, int64_t{4099}, int64_t{9001}, shot / 2 + 3, shot - 1, shot, shot + 1, 3 * shot + 5);
  c.offset = one_of(int64_t{0}, int64_t{0}, int64_t{1}, int64_t{16 / elem - 1});
  return c;
}
// Small whole numbers: sums of eight are exact in any type.
int value_of(int64_t call, int rank, int64_t element) { return static_cast<int>((31 * call + 7 * rank + element) % 13); }

// Calls of all kinds and sizes one behind the other, of which only the last is awaited; then the same captured, and launched
// several times.
void kernels_back_to_back(Communicator& world, Communicator& ipc, Device device) {
  DeviceBackend& backend = backend_of(device.kind);
  const Stream s = backend.create_stream(device);
  const int n = ipc.size(), rank = ipc.rank();
  struct Memory {
    Buffer in, out;
    std::vector<char> given, wanted;
  };
  std::vector<Memory> memory(kCalls);
  const auto tensor = [&](const KernelCall& c, const Buffer& b, int64_t elems) {
    return Tensor{.data = static_cast<char*>(b.data()) + c.offset * dtype_bytes(c.dtype), .dtype = c.dtype, .shape = {elems}, .device = device};
  };
  for (int64_t i = 0; i < kCalls; ++i) {
    const KernelCall c = kernel_call(i);
    const int64_t elem = dtype_bytes(c.dtype);
    const bool scatter = c.kind == KernelCall::kScatter, gather = c.kind == KernelCall::kGather;
    const int64_t taken = scatter ? n * c.part : c.part, given = gather ? n * c.part : c.part;
    Memory& m = memory[static_cast<size_t>(i)];
    m.in = Buffer(device, static_cast<size_t>((c.offset + taken) * elem));
    m.out = Buffer(device, static_cast<size_t>((c.offset + given) * elem));
    m.given.resize(static_cast<size_t>(taken * elem));
    m.wanted.resize(static_cast<size_t>(given * elem));
    const auto on_host = [&](std::vector<char>& bytes, int64_t elems) {
      return Tensor{.data = bytes.data(), .dtype = c.dtype, .shape = {elems}, .device = {}};
    };
    for (int64_t e = 0; e < taken; ++e) test::set_element(on_host(m.given, taken), e, value_of(i, rank, e));
    for (int64_t e = 0; e < given; ++e) {
      int v = 0;
      if (gather) v = value_of(i, static_cast<int>(e / c.part), e % c.part);
      else
        for (int r = 0; r < n; ++r) v += value_of(i, r, scatter ? rank * c.part + e : e);
      test::set_element(on_host(m.wanted, given), e, v);
    }
  }
  const auto upload = [&] {
    for (int64_t i = 0; i < kCalls; ++i) {
      const KernelCall c = kernel_call(i);
      const Memory& m = memory[static_cast<size_t>(i)];
      const Tensor in = tensor(c, c.kind == KernelCall::kReduce ? m.out : m.in, static_cast<int64_t>(m.given.size()) / dtype_bytes(c.dtype));
      backend.copy(in.data, m.given.data(), m.given.size(), s);
    }
    backend.synchronize(s);
    world.barrier();
  };
  const auto call = [&] {
    for (int64_t i = 0; i < kCalls; ++i) {
      const KernelCall c = kernel_call(i);
      const Memory& m = memory[static_cast<size_t>(i)];
      const std::vector<int64_t> counts(static_cast<size_t>(n), c.part);
      if (c.kind == KernelCall::kReduce) ipc.all_reduce(tensor(c, m.out, c.part), ReduceOp::kSum, s);
      else if (c.kind == KernelCall::kGather) ipc.all_gather(tensor(c, m.in, c.part), tensor(c, m.out, n * c.part), counts, s);
      else ipc.reduce_scatter(tensor(c, m.in, n * c.part), tensor(c, m.out, c.part), counts, s);
    }
  };
  const auto check = [&](const std::string& what) {
    for (int64_t i = 0; i < kCalls; ++i) {
      const KernelCall c = kernel_call(i);
      const Memory& m = memory[static_cast<size_t>(i)];
      std::vector<char> got(m.wanted.size());
      backend.copy(got.data(), tensor(c, m.out, 1).data, got.size(), s);
      backend.synchronize(s);
      const auto at = std::mismatch(got.begin(), got.end(), m.wanted.begin()).first - got.begin();
      R1_CHECK(at == static_cast<int64_t>(got.size()), "{}: call {} ({}, {} of {}, offset {}): element {} differs", what, i,
               static_cast<int>(c.kind), c.part, dtype_name(c.dtype), c.offset, at / dtype_bytes(c.dtype));
    }
  };
  upload();
  call();
  check("one call behind the other");
  backend.begin_capture(s);
  call();
  const Graph graph = backend.end_capture(s);
  for (int replay = 0; replay < 3; ++replay) {
    upload();
    backend.launch(graph, s);
    check(fmt::format("launch {} of the graph", replay));
  }
  backend.destroy_graph(graph);
  backend.destroy_stream(s);
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
    size_t passed = test::run_conformance(device_view ? *device_view : *ipc, args);
    if (has_peer_kernels(*ipc) && args.empty()) {
      kernels_back_to_back(world, *ipc, device);
      ++passed;
    }
    ipc->close();
    if (where == "cpu" && world.size() > 1 && args.empty()) {
      const auto group = make_ipc(world.split(0, world.rank(), "whole"), make_ipc_hub(memory, stop), options);
      whole_messages(world, *group, options.most_message_slot_bytes);
      group->close();
    }
    return passed;
  });
}
