// Placement: never worse than the launcher's order, equal to brute force on small cases, inside NVLink domains, sockets and
// leaf switches; every core given once; what is bad is said.
#include "launch/placement.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <numeric>
#include <random>
#include <set>

#include "runtime/core/error.h"
#include "tests/support/expect_error.h"

namespace r1::launch {
namespace {

using parallel::MeshShape;
using parallel::StepTraffic;

const StepTraffic kTraffic{.tp_bytes = 40e9, .tp_operations = 500, .pp_bytes = 2e9, .pp_operations = 64, .dp_bytes = 20e9};

/// A host of two sockets with `gpus` GPUs, cores evenly split, and the GPU x GPU paths given by `path`.
template <class F>
std::shared_ptr<HostTopology> host(int gpus, int cores, F path, bool nvlink_known = true) {
  auto t = std::make_shared<HostTopology>();
  t->packages = {{.os_index = 0, .cpus = {}, .model = ""}, {.os_index = 1, .cpus = {}, .model = ""}};
  for (int s = 0; s < 2; ++s) {
    const CpuSet cpus = CpuSet::range(s * cores / 2, (s + 1) * cores / 2 - 1);
    t->packages[static_cast<size_t>(s)].cpus = cpus;
    t->numa_nodes.push_back({.os_index = s, .package = s, .cpus = cpus});
  }
  for (int c = 0; c < cores; ++c) t->cores.push_back({.package = c * 2 / cores, .numa = c * 2 / cores, .cpus = CpuSet::range(c, c)});
  t->nvlink_known = nvlink_known;
  for (int g = 0; g < gpus; ++g) {
    t->gpus.push_back({.index = g, .name = "GPU", .uuid = "GPU-" + std::to_string(g), .numa = g * 2 / gpus});
    t->gpu_gpu.emplace_back();
    for (int o = 0; o < gpus; ++o) t->gpu_gpu.back().push_back(g == o ? Path{.path_class = PathClass::kLoc} : path(g, o));
  }
  return t;
}
Path nvlink(int links) { return {.path_class = PathClass::kNvl, .nvlinks = links, .gbytes_per_s = 20.0 * links}; }
Path pcie(PathClass c) { return {.path_class = c}; }

/// Adapters, one for each of the GPUs in `near` (-1: near none).
void add_nics(HostTopology& t, const std::vector<int>& near, double mbit) {
  t.nics_known = true;
  t.near_nics.assign(t.gpus.size(), {});
  t.nccl_nic.assign(t.gpus.size(), std::nullopt);
  for (size_t n = 0; n < near.size(); ++n) {
    t.nics.push_back({.name = "mlx5_" + std::to_string(n), .rate_mbit_per_s = mbit, .link_layer = LinkLayer::kInfiniBand, .rdma = true});
    if (near[n] < 0) continue;
    t.near_nics[static_cast<size_t>(near[n])] = {static_cast<int>(n)};
    t.nccl_nic[static_cast<size_t>(near[n])] = static_cast<int>(n);
  }
}

Cluster cluster(int hosts, int slots) {
  Cluster c{.hosts = {}, .source = "test.hosts"};
  for (int h = 0; h < hosts; ++h) c.hosts.push_back({.name = "n" + std::to_string(h), .slots = slots, .slots_given = true});
  return c;
}
Topology all_hosts(const Cluster& c, const std::shared_ptr<const HostTopology>& t) {
  Topology out;
  for (const Host& h : c.hosts) out.hosts.push_back({h.name, t});
  return out;
}
/// Host i hangs on leaf `leaf[i]`.
void add_leaves(Topology& t, const Cluster& c, const std::vector<int>& leaf, double oversubscription) {
  t.fabric.source = "test";
  const int leaves = *std::ranges::max_element(leaf) + 1;
  for (int l = 0; l < leaves; ++l)
    t.fabric.switches.push_back({.name = "leaf" + std::to_string(l), .oversubscription = oversubscription});
  for (size_t h = 0; h < c.hosts.size(); ++h) t.fabric.ports.push_back({.host = c.hosts[h].name, .leaf = leaf[h]});
}

/// What must hold of every placement.
void check(const Placement& p, const Cluster& c, const Topology& t) {
  EXPECT_EQ(static_cast<int>(p.ranks.size()), p.mesh.world());
  EXPECT_LE(p.cost.seconds(), p.default_cost.seconds() * (1 + 1e-12));
  std::vector<int> used(c.hosts.size(), 0);
  std::map<std::pair<int, int>, int> on_gpu;
  std::vector<CpuSet> taken(c.hosts.size());
  for (const RankPlace& r : p.ranks) {
    const auto h = static_cast<size_t>(r.host);
    EXPECT_EQ(r.local_rank, used[h]++);
    const HostTopology* host = t.find(c.hosts[h].name);
    if (host != nullptr && !host->gpus.empty()) {
      const int most = (c.hosts[h].slots + static_cast<int>(host->gpus.size()) - 1) / static_cast<int>(host->gpus.size());
      EXPECT_LE((++on_gpu[{r.host, r.gpu}]), most);
    }
    EXPECT_FALSE(taken[h].intersects(r.cpus)) << "a core given twice";
    taken[h].insert(r.cpus);
    for (const int cpu : r.cpus.members()) {
      bool exists = false;
      for (const Core& core : host->cores) exists = exists || core.cpus.contains(cpu);
      EXPECT_TRUE(exists) << cpu;
    }
  }
  for (size_t h = 0; h < used.size(); ++h) EXPECT_LE(used[h], c.hosts[h].slots);
  // The rankfile reads back to the same hosts.
  const auto entries = parse_rankfile(openmpi_rankfile(p, c, t), "rankfile");
  ASSERT_EQ(entries.size(), p.ranks.size());
  for (const RankfileEntry& e : entries)
    EXPECT_EQ(e.host, c.hosts[static_cast<size_t>(p.ranks[static_cast<size_t>(e.rank)].host)].name);
  // So does the table of the ranks' parents.
  const std::string table = placement_table(p, c);
  for (const RankPlace& r : p.ranks)
    EXPECT_EQ(placement_environment(table, c.hosts[static_cast<size_t>(r.host)].name, r.local_rank), r.environment);
}

bool warns(const Placement& p, const char* what) {
  return std::ranges::any_of(p.warnings, [&](const std::string& w) { return w.find(what) != std::string::npos; });
}

TEST(Placement, ProductionTierIsTheLaunchersOrder) {
  const auto a100 = host(4, 128, [](int, int) { return nvlink(4); });
  add_nics(*a100, {-1, 1, 2, -1}, 200000);
  const Cluster c = cluster(2, 4);
  const Topology t = all_hosts(c, a100);
  const Placement p = place(c, t, {.pp = 2, .dp = 1, .tp = 4}, kTraffic);
  check(p, c, t);
  for (int r = 0; r < 8; ++r) EXPECT_EQ(p.ranks[static_cast<size_t>(r)].host, r / 4);
  EXPECT_EQ(p.ranks[1].cpus.count(), 32);
  // As on the real node: GPUs 0 and 3 have no adapter near them.
  EXPECT_TRUE(warns(p, "GPUs 0, 3 have no adapter near them"));
  EXPECT_FALSE(warns(p, "NVLink"));
  // Three links in the mesh work at once for tp 4, one for tp 2.
  const Placement two = place(c, t, {.pp = 4, .dp = 1, .tp = 2}, kTraffic);
  EXPECT_NEAR(two.cost.tp - 500 * 10e-6, 40e9 / 80e9, 1e-6);
  EXPECT_NEAR(p.cost.tp - 500 * 10e-6, 40e9 / 240e9, 1e-6);
}

TEST(Placement, TensorGroupsStayInsideNvlinkDomains) {
  // Two NVLink islands whose GPUs alternate in number.
  const auto islands = host(8, 64, [](int a, int b) { return a % 2 == b % 2 ? nvlink(4) : pcie(PathClass::kSys); });
  const Cluster c = cluster(1, 8);
  const Topology t = all_hosts(c, islands);
  const Placement p = place(c, t, {.pp = 2, .dp = 1, .tp = 4}, kTraffic, {.exhaustive = 0});
  check(p, c, t);
  for (int g = 0; g < 8; g += 4) {
    std::set<int> parity;
    for (int r = g; r < g + 4; ++r) parity.insert(p.ranks[static_cast<size_t>(r)].gpu % 2);
    EXPECT_EQ(parity.size(), 1U);
  }
  EXPECT_FALSE(p.default_order);
  EXPECT_LT(p.cost.seconds(), 0.5 * p.default_cost.seconds());
  EXPECT_FALSE(warns(p, "NVLink"));
  // The device of a local rank follows: all GPUs stay visible, in the order of the ranks.
  std::string visible;
  for (const auto& [name, value] : p.ranks[0].environment)
    if (name == "CUDA_VISIBLE_DEVICES") visible = value;
  EXPECT_EQ(std::ranges::count(visible, ','), 7);
  EXPECT_TRUE(visible.starts_with("GPU-" + std::to_string(p.ranks[0].gpu)));
}

TEST(Placement, WithoutNvlinkGroupsKeepToASocket) {
  const auto rtx = host(8, 64, [](int a, int b) { return pcie(a / 4 == b / 4 ? PathClass::kNode : PathClass::kSys); });
  const Cluster c = cluster(1, 8);
  const Topology t = all_hosts(c, rtx);
  const Placement p = place(c, t, {.pp = 1, .dp = 2, .tp = 4}, kTraffic, {.exhaustive = 0});
  check(p, c, t);
  for (int r = 0; r < 8; ++r) EXPECT_EQ(p.ranks[static_cast<size_t>(r)].numa, p.ranks[static_cast<size_t>(r / 4 * 4)].numa);
  EXPECT_TRUE(warns(p, "no NVLink: its sums go over PCIe"));
  const Placement across = place(c, t, {.pp = 1, .dp = 1, .tp = 8}, kTraffic);
  EXPECT_TRUE(warns(across, "two sockets"));
}

TEST(Placement, ATemplateSaysUnknownNotNone) {
  const auto vm = host(4, 96, [](int, int) { return pcie(PathClass::kSys); }, false);
  const Cluster c = cluster(1, 4);
  const Placement p = place(c, all_hosts(c, vm), {.pp = 1, .dp = 1, .tp = 4}, kTraffic);
  EXPECT_TRUE(warns(p, "unknown, not none"));
  EXPECT_FALSE(warns(p, "no NVLink"));
}

TEST(Placement, StagesFollowTheLeafSwitches) {
  // Hosts alternate between two leaves: neighbouring stages belong on one leaf, so only one edge crosses.
  const auto a100 = host(4, 64, [](int, int) { return nvlink(4); });
  add_nics(*a100, {0, 1, 2, 3}, 200000);
  const Cluster c = cluster(8, 4);
  Topology t = all_hosts(c, a100);
  add_leaves(t, c, {0, 1, 0, 1, 0, 1, 0, 1}, 4);
  const MeshShape mesh{.pp = 8, .dp = 1, .tp = 4};
  const Placement p = place(c, t, mesh, kTraffic);
  check(p, c, t);
  int crossing = 0;
  for (int pp = 0; pp + 1 < 8; ++pp)
    crossing += p.ranks[static_cast<size_t>(pp) * 4].host % 2 != p.ranks[static_cast<size_t>(pp + 1) * 4].host % 2 ? 1 : 0;
  EXPECT_EQ(crossing, 1);
  EXPECT_LT(p.cost.mean, p.default_cost.mean);
  // Four stages fit on one leaf: then none crosses, and the slowest edge is faster than the launcher's.
  const Placement four = place(c, t, {.pp = 4, .dp = 1, .tp = 4}, kTraffic);
  for (const RankPlace& r : four.ranks) EXPECT_EQ(r.host % 2, four.ranks[0].host % 2);
  EXPECT_LT(four.cost.pp, 0.5 * four.default_cost.pp);
}

TEST(Placement, RacksOfTheHostfileStandForLeaves) {
  Cluster c = cluster(4, 1);
  for (size_t h = 0; h < 4; ++h) c.hosts[h].annotations["rack"] = h % 2 == 0 ? "a" : "b";
  const Placement p = place(c, {}, {.pp = 4, .dp = 1, .tp = 1}, kTraffic, {.exhaustive = 0});
  EXPECT_EQ(p.ranks[0].host % 2, p.ranks[1].host % 2);
  EXPECT_EQ(p.ranks[2].host % 2, p.ranks[3].host % 2);
}

TEST(Placement, UnevenSlots) {
  Cluster c = cluster(4, 1);
  const int slots[] = {8, 2, 4, 1};
  for (size_t h = 0; h < 4; ++h) c.hosts[h].slots = slots[h];
  // Three groups of four fit whole hosts (two on the first, one on the third): the launcher's order would cut one.
  const Placement p = place(c, {}, {.pp = 3, .dp = 1, .tp = 4}, kTraffic);
  EXPECT_FALSE(warns(p, "crosses"));
  EXPECT_LT(p.cost.tp, p.default_cost.tp);
  EXPECT_TRUE(warns(p, "unevenly"));
  const Placement all = place(c, {}, {.pp = 1, .dp = 15, .tp = 1}, kTraffic);
  EXPECT_EQ(all.ranks.size(), 15U);
  EXPECT_ERROR(UsageError, place(c, {}, {.pp = 4, .dp = 1, .tp = 4}, kTraffic), "16 ranks", "15 slots", "test.hosts");
}

/// A random small cluster: GPUs with random links, hosts on random leaves.
struct Random {
  Cluster c;
  Topology t;
  MeshShape mesh;
};
Random random_case(std::mt19937& rng, int most_slots) {
  const auto pick = [&](int n) { return static_cast<int>(rng() % static_cast<unsigned>(n)); };
  Random r;
  const int hosts = 1 + pick(4), slots = 1 + pick(std::max(1, most_slots / hosts));
  r.c = cluster(hosts, slots);
  for (int h = 0; h < hosts; ++h) {
    if (pick(5) == 0) continue;
    const auto seed = static_cast<unsigned>(rng());
    const auto t = host(slots, 4 + pick(12), [&](int a, int b) {
      const unsigned x = (seed >> ((a + b) * std::max(a, b) % 29)) % 4;
      return x == 0 ? nvlink(4) : x == 1 ? nvlink(2) : pcie(x == 2 ? PathClass::kPhb : PathClass::kSys);
    });
    std::vector<int> near;
    for (int n = 0; n < 1 + pick(3); ++n) near.push_back(pick(slots + 1) - 1);
    add_nics(*t, near, pick(2) == 0 ? 100000 : 200000);
    r.t.hosts.push_back({r.c.hosts[static_cast<size_t>(h)].name, t});
  }
  std::vector<int> leaf;
  for (int h = 0; h < hosts; ++h) leaf.push_back(pick(2));
  if (pick(2) == 0) add_leaves(r.t, r.c, leaf, 1 + pick(4));
  const int world = 1 + pick(hosts * slots);
  std::vector<MeshShape> meshes = parallel::factorisations(world, slots);
  r.mesh = meshes[static_cast<size_t>(pick(static_cast<int>(meshes.size())))];
  return r;
}

TEST(Placement, EqualsBruteForceOnSmallCases) {
  int searched = 0;
  for (unsigned seed = 0; seed < 120; ++seed) {
    std::mt19937 rng(seed);
    const Random r = random_case(rng, 6);
    if (r.c.total_slots() > 6) continue;
    SCOPED_TRACE(testing::Message() << "seed " << seed << " " << r.mesh.str());
    // Every assignment of slots to ranks, independently of the search.
    std::vector<int> slots(static_cast<size_t>(r.c.total_slots()));
    std::iota(slots.begin(), slots.end(), 0);
    double best = std::numeric_limits<double>::infinity();
    do {
      const std::vector<int> some(slots.begin(), slots.begin() + r.mesh.world());
      best = std::min(best, placement_cost(r.c, r.t, r.mesh, kTraffic, some).seconds());
    } while (std::next_permutation(slots.begin(), slots.end()));
    const Placement exhaustive = place(r.c, r.t, r.mesh, kTraffic), constructed = place(r.c, r.t, r.mesh, kTraffic, {.exhaustive = 0});
    check(constructed, r.c, r.t);
    EXPECT_NEAR(exhaustive.cost.seconds(), best, 1e-9 * best);
    EXPECT_NEAR(constructed.cost.seconds(), best, 1e-9 * best) << "construction and exchange alone";
    ++searched;
  }
  EXPECT_GE(searched, 60);
}

TEST(Placement, IsNeverWorseThanTheLaunchersOrder) {
  for (unsigned seed = 1000; seed < 1060; ++seed) {
    std::mt19937 rng(seed);
    const Random r = random_case(rng, 24);
    SCOPED_TRACE(testing::Message() << "seed " << seed << " " << r.mesh.str());
    check(place(r.c, r.t, r.mesh, kTraffic), r.c, r.t);
  }
}

TEST(Placement, AThousandHostsAreQuick) {
  const auto h100 = host(8, 112, [](int, int) { return nvlink(18); });
  add_nics(*h100, {0, 1, 2, 3, 4, 5, 6, 7}, 400000);
  const Cluster c = cluster(1024, 8);
  Topology t = all_hosts(c, h100);
  std::vector<int> leaf;
  for (int h = 0; h < 1024; ++h) leaf.push_back(h * 7 % 32);
  add_leaves(t, c, leaf, 2);
  const auto start = std::chrono::steady_clock::now();
  const Placement p = place(c, t, {.pp = 8, .dp = 128, .tp = 8}, kTraffic);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  EXPECT_LT(seconds, 5.0) << "the bar is 1 s (benchmarks/launch); this machine may be busy";
  EXPECT_LE(p.cost.seconds(), p.default_cost.seconds());
  EXPECT_LT(placement_table(p, c).size(), 4096U) << "equal hosts share one table";
}

TEST(PlacementTable, RefusesWhatIsNone) {
  EXPECT_ERROR(UsageError, placement_environment("*|0;nonsense", "n0", 0), "R1RUN_PLACEMENT", "nonsense");
  EXPECT_TRUE(placement_environment("", "n0", 0).empty());
  EXPECT_TRUE(placement_environment("n1|0;A=b", "n0", 0).empty());
  EXPECT_EQ(placement_environment("n1|0;A=b\n*|0;A=c|1;A=d", "n0.cluster", 1).at(0).second, "d");
  EXPECT_EQ(placement_environment("n1+n0|0;A=b\n*|0;A=c", "n0.cluster", 0).at(0).second, "b");
}

}  // namespace
}  // namespace r1::launch
