// Time and bandwidth of the collectives on CPU tensors, beside the MPI library's own of the same
// name.
//
//   mpirun -np 8 bench_collectives [--op all_reduce,...] [--min BYTES] [--max BYTES] [--group N]
//                                  [--idle] [--repeat N] [--ucx TRANSPORTS]
//
// --group N measures in groups of N ranks, all at once (the tp groups of a mesh); --idle lets only
// the first group work while the other ranks wait in a barrier. Sizes are those of nccl-tests
// (doc/PERFORMANCE.md there): all_reduce, broadcast and send_recv of the tensor, all_gather of the
// output, reduce_scatter of the input. algbw = size / time; busbw = algbw times 2 (n-1)/n for
// all_reduce, (n-1)/n for all_gather, reduce_scatter and all_to_all, 1 for the others. Time is of
// the slowest rank, the median of --repeat runs. "mpi" is MPI_Allreduce, MPI_Allgather,
// MPI_Reduce_scatter_block, MPI_Bcast, MPI_Alltoall, MPI_Sendrecv: whose sums have no fixed order.
#include <mpi.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <boost/program_options.hpp>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <numeric>
#include <sstream>

#include "benchmarks/support/mpi_main.h"
#include "comm/communicator.h"
#include "comm/ucx/ucx.h"

namespace {

using namespace r1;
using namespace r1::comm;
using Clock = std::chrono::steady_clock;

struct Bench {
  Communicator& group;
  MPI_Comm native;
  std::vector<float> a, b;
  std::vector<int64_t> counts;
};

Tensor view(std::vector<float>& v, int64_t n) {
  return {.data = v.data(), .dtype = DType::kF32, .shape = {n}, .device = {}};
}

// One operation over `n` floats (the size that is named).
void ours(Bench& x, const std::string& op, int64_t n) {
  Communicator& g = x.group;
  const int64_t part = n / g.size();
  x.counts.assign(static_cast<size_t>(g.size()), part);
  if (op == "all_reduce") {
    g.all_reduce(view(x.a, n), ReduceOp::kSum, {});
  } else if (op == "all_gather") {
    g.all_gather(view(x.a, part), view(x.b, part * g.size()), x.counts, {});
  } else if (op == "reduce_scatter") {
    g.reduce_scatter(view(x.a, part * g.size()), view(x.b, part), x.counts, {});
  } else if (op == "all_to_all") {
    g.all_to_all(view(x.a, part * g.size()), x.counts, view(x.b, part * g.size()), x.counts, {});
  } else if (op == "broadcast") {
    g.broadcast(view(x.a, n), 0, {});
  } else {  // send_recv: each rank to the next one, as nccl-tests does
    const int next = (g.rank() + 1) % g.size(), previous = (g.rank() - 1 + g.size()) % g.size();
    const Transfer both[] = {{Transfer::Kind::kSend, view(x.a, n), next},
                             {Transfer::Kind::kRecv, view(x.b, n), previous}};
    g.start(both, {})->wait();
  }
}

void native(Bench& x, const std::string& op, int64_t elems) {
  const int size = x.group.size(), rank = x.group.rank(), n = static_cast<int>(elems),
            part = n / size;
  if (op == "all_reduce") {
    MPI_Allreduce(MPI_IN_PLACE, x.a.data(), n, MPI_FLOAT, MPI_SUM, x.native);
  } else if (op == "all_gather") {
    MPI_Allgather(x.a.data(), part, MPI_FLOAT, x.b.data(), part, MPI_FLOAT, x.native);
  } else if (op == "reduce_scatter") {
    MPI_Reduce_scatter_block(x.a.data(), x.b.data(), part, MPI_FLOAT, MPI_SUM, x.native);
  } else if (op == "all_to_all") {
    MPI_Alltoall(x.a.data(), part, MPI_FLOAT, x.b.data(), part, MPI_FLOAT, x.native);
  } else if (op == "broadcast") {
    MPI_Bcast(x.a.data(), n, MPI_FLOAT, 0, x.native);
  } else {
    MPI_Sendrecv(x.a.data(), n, MPI_FLOAT, (rank + 1) % size, 0, x.b.data(), n, MPI_FLOAT,
                 (rank - 1 + size) % size, 0, x.native, MPI_STATUS_IGNORE);
  }
}

double slowest(Communicator& g, double seconds) {
  Tensor t{.data = &seconds, .dtype = DType::kF64, .shape = {1}, .device = {}};
  g.all_reduce(t, ReduceOp::kMax, {});
  return seconds;
}

struct Timing {
  double median = 0, least = 0, most = 0;  // seconds of one operation
};

template <class Op>
Timing measure(Communicator& g, int repeat, Op op) {
  const auto run = [&](int64_t iterations) {
    g.barrier();
    const auto begin = Clock::now();
    for (int64_t i = 0; i < iterations; ++i) op();
    const double s = std::chrono::duration<double>(Clock::now() - begin).count();
    return slowest(g, s / static_cast<double>(iterations));
  };
  run(2);
  const double guess = run(5);
  const auto iterations =
      std::clamp(static_cast<int64_t>(0.02 / guess), int64_t{5}, int64_t{2000});
  std::vector<double> times;
  for (int i = 0; i < repeat; ++i) times.push_back(run(iterations));
  std::sort(times.begin(), times.end());
  return {times[times.size() / 2], times.front(), times.back()};
}

std::string cpu_model() {
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);)
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  return "unknown CPU";
}

void print_hardware(int ranks, int group, const std::string& wires) {
  char version[MPI_MAX_LIBRARY_VERSION_STRING] = "";
  int length = 0;
  MPI_Get_library_version(version, &length);
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  sched_getaffinity(0, sizeof cpus, &cpus);
  std::printf(
      "# %s, %ld cores online, %d in the cpuset of rank 0; %.*s; %d ranks in groups of %d over "
      "%s\n",
      cpu_model().c_str(), sysconf(_SC_NPROCESSORS_ONLN), CPU_COUNT(&cpus),
      static_cast<int>(std::string(version).find(',')), version, ranks, group, wires.c_str());
}

int run(MpiWorld& mpi, int argc, char** argv) {
  namespace po = boost::program_options;
  std::string ops;
  int64_t least = 0, most = 0;
  int group_size = 0, repeat = 0;
  po::options_description options("bench_collectives");
  options.add_options()("help", "this text")(
      "op",
      po::value(&ops)->default_value(
          "all_reduce,all_gather,reduce_scatter,all_to_all,broadcast,send_recv"),
      "operations, separated by commas")("min", po::value(&least)->default_value(8),
                                         "smallest size in bytes")(
      "max", po::value(&most)->default_value(int64_t{16} << 20), "largest size in bytes")(
      "group", po::value(&group_size)->default_value(0), "ranks in a group (0: all)")(
      "idle", "only the first group works")(
      "ucx", po::value<std::string>(),
      "over UCX with these transports (as UCX_TLS: shm, tcp) instead of MPI")(
      "repeat", po::value(&repeat)->default_value(5), "measurements of each size");
  po::variables_map given;
  po::store(po::parse_command_line(argc, argv, options), given);
  po::notify(given);

  const auto mpi_world = mpi.world({});
  std::unique_ptr<Communicator> ucx;
  if (given.contains("ucx"))
    ucx = make_ucx(*mpi_world, {}, {.transports = given["ucx"].as<std::string>()});
  Communicator* world = ucx ? ucx.get() : mpi_world.get();
  if (given.contains("help")) {
    if (world->rank() == 0) std::cout << options << '\n';
    if (ucx) ucx->close();
    mpi_world->close();
    return 0;
  }
  if (group_size == 0) group_size = world->size();
  const int color = world->rank() / group_size;
  const auto group = world->split(color, 0, "group");
  Bench bench{.group = *group, .native = MPI_COMM_NULL, .a = {}, .b = {}, .counts = {}};
  MPI_Comm_split(MPI_COMM_WORLD, color, 0, &bench.native);
  bench.a.assign(static_cast<size_t>(most / 4 + 1), 1e-3f);
  bench.b.assign(bench.a.size(), 0);
  if (world->rank() == 0) {
    print_hardware(world->size(), group_size,
                   ucx ? "UCX " + given["ucx"].as<std::string>() : "MPI");
    std::printf("# %-14s %10s %12s %22s %10s %10s %12s\n", "operation", "bytes", "time_us",
                "least..most_us", "algbw_GB/s", "busbw_GB/s", "mpi_time_us");
  }
  std::stringstream list(ops);
  for (std::string op; std::getline(list, op, ',');) {
    const double n = group->size();
    const double factor = op == "all_reduce"                       ? 2 * (n - 1) / n
                          : op == "broadcast" || op == "send_recv" ? 1
                                                                   : (n - 1) / n;
    const bool parts = op == "all_gather" || op == "reduce_scatter" || op == "all_to_all";
    for (int64_t bytes = least; bytes <= most; bytes *= 4) {
      const int64_t elems = bytes / 4;
      if (parts && elems < group->size()) continue;
      if (color == 0 || !given.contains("idle")) {
        const Timing t = measure(*group, repeat, [&] { ours(bench, op, elems); });
        const Timing m = measure(*group, repeat, [&] { native(bench, op, elems); });
        if (world->rank() == 0) {
          const double algbw = static_cast<double>(bytes) / t.median / 1e9;
          std::printf("  %-14s %10ld %12.1f %22s %10.3f %10.3f %12.1f\n", op.c_str(), bytes,
                      t.median * 1e6,
                      fmt::format("{:.1f}..{:.1f}", t.least * 1e6, t.most * 1e6).c_str(), algbw,
                      algbw * factor, m.median * 1e6);
          std::fflush(stdout);
        }
      }
      world->barrier();
    }
  }
  MPI_Comm_free(&bench.native);
  group->close();
  if (ucx) ucx->close();
  mpi_world->close();
  return 0;
}

}  // namespace

int main(int argc, char** argv) { return r1::bench::mpi_main("bench_collectives", argc, argv, run); }
