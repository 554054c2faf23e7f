// Time and bandwidth of the collectives on GPU tensors, as nccl-tests measures them
// (doc/PERFORMANCE.md there).
//
//   mpirun -np 2 bench_gpu_collectives [--comm nccl,nccl-threads,ipc,ipc-copies,mpi] [--op
//   all_reduce,...] [--min BYTES] [--max BYTES]
//                                      [--dtype fp32|bf16] [--seconds S] [--graphs]
//
// Rank r works on GPU r modulo their number. Sizes are those of nccl-tests: all_reduce and
// send_recv of the tensor, all_gather of the output, reduce_scatter of the input. Calls are
// enqueued back to back on one stream and the stream is awaited once; time is that of the slowest
// rank for one call, the median of five such runs. With --graphs the kernels of "ipc" are captured
// and launched together: what the host takes to enqueue them is not measured. algbw = size / time; busbw = algbw times 2
// (n-1)/n for all_reduce, (n-1)/n for all_gather and reduce_scatter, 1 for send_recv (each rank to
// the next). "ipc" uses one-kernel collectives where every rank has a GPU of its own, "ipc-copies"
// never; with several ranks on one GPU the time is that of the GPU's time slices.
#include <algorithm>
#include <boost/program_options.hpp>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <sstream>

#include "benchmarks/support/mpi_main.h"
#include "comm/ipc/ipc.h"
#include "comm/nccl/nccl.h"
#include "comm/staged/staged.h"
#include "runtime/device/cuda/cuda_api.h"
#include "runtime/device/cuda_library.h"
#include "runtime/device/device.h"

namespace {

using namespace r1;
using namespace r1::comm;
using Clock = std::chrono::steady_clock;

struct Bench {
  Communicator& group;  // host tensors
  Device device;
  Stream stream;
  DType dtype;
  Buffer a, b;
  double seconds;
  bool graphs;
};

Tensor view(const Buffer& buffer, DType dtype, int64_t n) {
  return {.data = buffer.data(), .dtype = dtype, .shape = {n}, .device = buffer.device()};
}

void call(Bench& x, Communicator& g, const std::string& op, int64_t n) {
  const int64_t part = n / g.size();
  const std::vector<int64_t> counts(static_cast<size_t>(g.size()), part);
  if (op == "all_reduce") {
    g.all_reduce(view(x.a, x.dtype, n), ReduceOp::kSum, x.stream);
  } else if (op == "all_gather") {
    g.all_gather(view(x.a, x.dtype, part), view(x.b, x.dtype, part * g.size()), counts, x.stream);
  } else if (op == "reduce_scatter") {
    g.reduce_scatter(view(x.a, x.dtype, part * g.size()), view(x.b, x.dtype, part), counts,
                     x.stream);
  } else {
    const int next = (g.rank() + 1) % g.size(), previous = (g.rank() - 1 + g.size()) % g.size();
    const Transfer both[] = {{Transfer::Kind::kSend, view(x.a, x.dtype, n), next},
                             {Transfer::Kind::kRecv, view(x.b, x.dtype, n), previous}};
    g.start(both, x.stream)->wait();
  }
}

double slowest(Communicator& g, double seconds) {
  g.all_reduce({.data = &seconds, .dtype = DType::kF64, .shape = {1}, .device = {}}, ReduceOp::kMax,
               {});
  return seconds;
}

bool in_a_graph(const Bench& x, const Communicator& g, const std::string& op) {
  return x.graphs && has_peer_kernels(g) && op != "send_recv";
}

// Seconds of one call: median, least and most of five runs.
std::vector<double> measure(Bench& x, Communicator& g, const std::string& op, int64_t n) {
  DeviceBackend& backend = backend_of(x.device.kind);
  const bool graphs = in_a_graph(x, g, op);
  const auto run = [&](int iterations) {
    const auto calls = [&] {
      for (int i = 0; i < iterations; ++i) call(x, g, op, n);
    };
    Graph graph;
    if (graphs) {
      backend.begin_capture(x.stream);
      calls();
      graph = backend.end_capture(x.stream);
      backend.launch(graph, x.stream);  // the first launch uploads it
    }
    backend.synchronize(x.stream);
    x.group.barrier();
    const auto begin = Clock::now();
    if (graphs) backend.launch(graph, x.stream);
    else calls();
    backend.synchronize(x.stream);
    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count() / iterations;
    if (graphs) backend.destroy_graph(graph);
    return slowest(x.group, seconds);
  };
  run(3);
  const double guess = run(3);
  const int iterations = static_cast<int>(std::clamp(x.seconds / 5 / guess, 3.0, 500.0));
  std::vector<double> times;
  for (int i = 0; i < 5; ++i) times.push_back(run(iterations));
  std::sort(times.begin(), times.end());
  return times;
}

std::unique_ptr<Communicator> make(const std::string& kind, Communicator& world,
                                   const std::shared_ptr<IpcMemory>& memory) {
  auto host = world.split(0, world.rank(), kind);
  if (kind == "nccl" || kind == "nccl-threads")
    return make_nccl(std::move(host), make_nccl_hub(memory, {}),
                     {.non_blocking_calls = kind == "nccl-threads"});
  if (kind == "mpi") return make_staged(std::move(host));
  if (kind == "ipc" || kind == "ipc-copies")
    return make_ipc(std::move(host), make_ipc_hub(memory, {}),
                    {.slot_bytes = size_t{4} << 20,
                     .most_message_slot_bytes = kMostMessageSlotBytes,
                     .kernels = kind == "ipc"});
  throw UsageError("--comm {}: allowed are nccl, nccl-threads, ipc, ipc-copies, mpi", kind);
}

int run(MpiWorld& mpi, int argc, char** argv) {
  namespace po = boost::program_options;
  std::string kinds, ops, dtype;
  int64_t least = 0, most = 0;
  double seconds = 0;
  bool graphs = false;
  po::options_description options("bench_gpu_collectives");
  options.add_options()("help", "this text")("comm", po::value(&kinds)->default_value("nccl,ipc"),
                                             "backends")(
      "op", po::value(&ops)->default_value("all_reduce,all_gather,reduce_scatter,send_recv"),
      "operations")("min", po::value(&least)->default_value(8192), "smallest size in bytes")(
      "max", po::value(&most)->default_value(int64_t{1} << 30), "largest size in bytes")(
      "dtype", po::value(&dtype)->default_value("fp32"), "fp32 or bf16")(
      "seconds", po::value(&seconds)->default_value(0.25), "time a measurement may take")(
      "graphs", po::bool_switch(&graphs), "launch the kernels of ipc as one graph");
  po::variables_map given;
  po::store(po::parse_command_line(argc, argv, options), given);
  po::notify(given);
  const auto world = mpi.world({});
  if (given.contains("help")) {
    if (world->rank() == 0) std::cout << options << '\n';
    world->close();
    return 0;
  }
  cuda::Api& api = cuda::api();
  std::string why;
  const int gpus = api.device_count(&why);
  if (gpus == 0) throw DeviceError("no usable GPU: {}", why);
  const Device device{DeviceKind::kCuda, world->rank() % gpus};
  DeviceBackend& backend = backend_of(device.kind);
  Bench bench{.group = *world,
              .device = device,
              .stream = backend.create_stream(device),
              .dtype = dtype == "bf16" ? DType::kBF16 : DType::kF32,
              .a = {device, static_cast<size_t>(most)},
              .b = {device, static_cast<size_t>(most)},
              .seconds = seconds,
              .graphs = graphs};
  backend.fill_zero(bench.a.data(), bench.a.bytes(), bench.stream);
  const std::shared_ptr<IpcMemory> memory = make_cuda_memory(device);
  if (world->rank() == 0)
    std::printf("# %s, %d of them; %d ranks; %s\n# %-10s %-14s %11s %10s %18s %10s %10s\n",
                api.device_info(device).name.c_str(), gpus, world->size(), dtype.c_str(), "comm",
                "operation", "bytes", "time_us", "least..most_us", "algbw_GB/s", "busbw_GB/s");
  std::stringstream kind_list(kinds);
  for (std::string kind; std::getline(kind_list, kind, ',');) {
    const auto group = make(kind, *world, memory);
    // As the stages of a pipeline do before their first step.
    const ExpectedMessage expected[] = {{(world->rank() - 1 + world->size()) % world->size(), static_cast<size_t>(most)}};
    group->expect_messages(expected);
    std::stringstream op_list(ops);
    for (std::string op; std::getline(op_list, op, ',');)
      for (int64_t bytes = least; bytes <= most; bytes *= 2) {
        const std::vector<double> t = measure(bench, *group, op, bytes / dtype_bytes(bench.dtype));
        const double n = group->size(), algbw = static_cast<double>(bytes) / t[2] / 1e9;
        const double factor = op == "all_reduce"  ? 2 * (n - 1) / n
                              : op == "send_recv" ? 1
                                                  : (n - 1) / n;
        if (world->rank() != 0) continue;
        const std::string how = in_a_graph(bench, *group, op) ? "-graph" : "";
        std::printf("  %-10s %-14s %11ld %10.1f %18s %10.2f %10.2f\n", (kind + how).c_str(), op.c_str(), bytes,
                    t[2] * 1e6,
                    fmt::format("{:.1f}..{:.1f}", t.front() * 1e6, t.back() * 1e6).c_str(), algbw,
                    algbw * factor);
        std::fflush(stdout);
      }
    group->close();
  }
  world->close();
  return 0;
}

}  // namespace

int main(int argc, char** argv) { return r1::bench::mpi_main("bench_gpu_collectives", argc, argv, run); }
