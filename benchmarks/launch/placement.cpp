// Time and memory of placing a job of 8 GPUs a host over 2 … 4,096 hosts: leaf switches of 32
// hosts, over-subscribed 2:1, hosts in an order that alternates between leaves. Prints one line a
// size; the bar is 1 s and 200 MB at 1,024 hosts.
//   bench_placement [MOST_HOSTS]
#include "launch/placement.h"

#include <fmt/format.h>
#include <sys/resource.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>

namespace {

using namespace r1::launch;

std::shared_ptr<HostTopology> h100_host() {
  auto t = std::make_shared<HostTopology>();
  for (int s = 0; s < 2; ++s) {
    const CpuSet cpus = CpuSet::range(s * 56, s * 56 + 55);
    t->packages.push_back({.os_index = s, .cpus = cpus, .model = ""});
    t->numa_nodes.push_back({.os_index = s, .package = s, .cpus = cpus});
  }
  for (int c = 0; c < 112; ++c)
    t->cores.push_back({.package = c / 56, .numa = c / 56, .cpus = CpuSet::range(c, c)});
  t->nvlink_known = t->nics_known = true;
  for (int g = 0; g < 8; ++g) {
    t->gpus.push_back(
        {.index = g, .name = "H100", .uuid = fmt::format("GPU-{}", g), .numa = g / 4});
    t->gpu_gpu.emplace_back();
    for (int o = 0; o < 8; ++o)
      t->gpu_gpu.back().push_back(
          g == o ? Path{.path_class = PathClass::kLoc}
                 : Path{.path_class = PathClass::kNvl, .nvlinks = 18, .gbytes_per_s = 370.8});
    t->nics.push_back({.name = fmt::format("mlx5_{}", g),
                       .rate_mbit_per_s = 400000,
                       .link_layer = LinkLayer::kInfiniBand,
                       .rdma = true});
    t->near_nics.push_back({g});
    t->nccl_nic.emplace_back(g);
  }
  return t;
}

double peak_mb() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / 1000;
}

}  // namespace

int main(int argc, char** argv) {
  const int most = argc > 1 ? std::atoi(argv[1]) : 4096;
  const auto host = h100_host();
  const r1::parallel::StepTraffic traffic{.tp_bytes = 40e9,
                                          .tp_operations = 500,
                                          .pp_bytes = 2e9,
                                          .pp_operations = 64,
                                          .dp_bytes = 20e9};
  std::printf("%6s %7s %-24s %9s %9s %11s %11s\n", "hosts", "ranks", "mesh", "seconds", "peak MB",
              "cost s", "default s");
  for (int hosts = 2; hosts <= most; hosts *= 2) {
    Cluster c{.hosts = {}, .source = "benchmark"};
    Topology t;
    const int leaves = (hosts + 31) / 32;
    for (int l = 0; l < leaves; ++l)
      t.fabric.switches.push_back({.name = fmt::format("leaf{}", l), .oversubscription = 2.0});
    for (int h = 0; h < hosts; ++h) {
      c.hosts.push_back({.name = fmt::format("n{}", h), .slots = 8, .slots_given = true});
      t.hosts.push_back({c.hosts.back().name, host});
      t.fabric.ports.push_back({.host = c.hosts.back().name, .leaf = h % leaves});
    }
    const int pp = hosts >= 8 ? 8 : 2;
    const r1::parallel::MeshShape mesh{.pp = pp, .dp = hosts / pp, .tp = 8};
    const auto start = std::chrono::steady_clock::now();
    const Placement p = place(c, t, mesh, traffic);
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    std::printf("%6d %7d %-24s %9.3f %9.1f %11.4f %11.4f\n", hosts, mesh.world(),
                mesh.str().c_str(), seconds, peak_mb(), p.cost.seconds(), p.default_cost.seconds());
  }
  return 0;
}
