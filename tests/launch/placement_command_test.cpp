// A placement becomes part of the launcher's command: hosts in rank order, or a rankfile where cores are known.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "launch/catalogue.h"
#include "launch/command.h"
#include "launch/placed_here.h"
#include "launch/topology/cluster_topology.h"
#include "launch/topology/json.h"
#include "runtime/core/error.h"
#include "run_program.h"

namespace r1::launch {
namespace {

std::string value_after(const std::vector<std::string>& argv, const std::string& flag) {
  const auto at = std::ranges::find(argv, flag);
  return at == argv.end() || at + 1 == argv.end() ? "" : *(at + 1);
}

Cluster racks() {
  Cluster c{.hosts = {}, .source = "test.hosts"};
  for (int h = 0; h < 4; ++h) {
    c.hosts.push_back({.name = fmt::format("n{}", h), .slots = 1, .slots_given = true});
    c.hosts.back().annotations["rack"] = std::string(1, h % 2 == 0 ? 'a' : 'b');
  }
  return c;
}
Command command_of(const Cluster& c, const parallel::MeshShape& mesh) {
  return cluster_mpirun("mpirun", {.path = "/opt/r1run", .arguments = {"train"}, .ranks = mesh.world()}, c, mesh, {}, false, {});
}
const parallel::StepTraffic kTraffic{.pp_bytes = 1e9, .pp_operations = 10};

TEST(PlacementCommand, OrderAlone) {
  const Cluster c = racks();
  const parallel::MeshShape mesh{.pp = 4, .dp = 1, .tp = 1};
  const Placement p = place(c, {}, mesh, kTraffic);
  Command command = command_of(c, mesh);
  use_placement(&command, p, c, {});
  EXPECT_EQ(value_after(command.argv, "--map-by"), "seq");
  EXPECT_EQ(value_after(command.argv, "--hostfile"), kFileInArguments);
  EXPECT_EQ(value_after(command.argv, "--host"), "");
  EXPECT_EQ(value_after(command.argv, "--bind-to"), "none");
  EXPECT_TRUE(command.file == "n0\nn2\nn1\nn3\n" || command.file == "n2\nn0\nn1\nn3\n" || command.file == "n0\nn2\nn3\nn1\n" ||
              command.file == "n2\nn0\nn3\nn1\n" || command.file == "n1\nn3\nn0\nn2\n" || command.file == "n1\nn3\nn2\nn0\n" ||
              command.file == "n3\nn1\nn0\nn2\n" || command.file == "n3\nn1\nn2\nn0\n")
      << command.file;
}

TEST(PlacementCommand, TheLaunchersOrderNeedsNothing) {
  Cluster c = racks();
  for (Host& h : c.hosts) h.annotations.clear();
  const parallel::MeshShape mesh{.pp = 4, .dp = 1, .tp = 1};
  const Command before = command_of(c, mesh);
  Command after = before;
  use_placement(&after, place(c, {}, mesh, kTraffic), c, {});
  EXPECT_EQ(after.argv, before.argv);
  EXPECT_TRUE(after.file.empty());
}

TEST(PlacementCommand, KnownCoresBecomeARankfile) {
  auto t = std::make_shared<HostTopology>();
  t->packages = {{.os_index = 0, .cpus = CpuSet::range(0, 7), .model = ""}};
  for (int n = 0; n < 2; ++n) t->numa_nodes.push_back({.os_index = n, .package = 0, .cpus = CpuSet::range(4 * n, 4 * n + 3)});
  // Hardware threads: core c has CPUs c and c + 4 of the kernel's numbering within its node.
  for (int core = 0; core < 8; ++core) t->cores.push_back({.package = 0, .numa = core / 4, .cpus = CpuSet::range(core, core)});
  Cluster c{.hosts = {{.name = "n0", .slots = 2, .slots_given = true}, {.name = "n1", .slots = 2, .slots_given = true}}, .source = "test.hosts"};
  Topology topology;
  for (const Host& h : c.hosts) topology.hosts.push_back({h.name, t});
  const parallel::MeshShape mesh{.pp = 2, .dp = 1, .tp = 2};
  const Placement p = place(c, topology, mesh, {.tp_bytes = 1e9, .tp_operations = 10, .pp_bytes = 1e8, .pp_operations = 10});
  Command command = command_of(c, mesh);
  use_placement(&command, p, c, topology);
  EXPECT_EQ(value_after(command.argv, "--rankfile"), kFileInArguments);
  EXPECT_EQ(value_after(command.argv, "--map-by"), "");
  EXPECT_EQ(value_after(command.argv, "--bind-to"), "");
  const auto entries = parse_rankfile(command.file, "rankfile");
  ASSERT_EQ(entries.size(), 4U);
  for (const RankfileEntry& e : entries) {
    EXPECT_EQ(e.host, e.rank < 2 ? "n0" : "n1");
    ASSERT_EQ(e.parts.size(), 1U);
    ASSERT_EQ(e.parts[0].cores.size(), 1U);
    EXPECT_EQ(e.parts[0].cores[0].second - e.parts[0].cores[0].first, 3);
  }
  // The ranks' parents hear of it by name only.
  const auto x = std::ranges::find(command.argv, std::string(kPlacementVariable));
  ASSERT_NE(x, command.argv.end());
  EXPECT_EQ(*(x - 1), "-x");
  ASSERT_EQ(command.environment.size(), 1U);
  EXPECT_EQ(placement_environment(command.environment[0].second, "n1", 0), p.ranks[2].environment);
}

/// Two hosts of the map, two slots each.
struct Pair {
  Cluster cluster{.hosts = {{.name = "n0", .slots = 2, .slots_given = true}, {.name = "n1", .slots = 2, .slots_given = true}},
                  .source = "test.hosts"};
  Topology topology;
  explicit Pair(const std::shared_ptr<HostTopology>& t) {
    for (const Host& h : cluster.hosts) topology.hosts.push_back({h.name, t});
  }
};
/// Two NUMA nodes of two CPUs; the source knows no cores, as NCCL's XML does not.
std::shared_ptr<HostTopology> nodes_alone() {
  auto t = std::make_shared<HostTopology>();
  t->packages = {{.os_index = 0, .cpus = CpuSet::range(0, 3), .model = ""}};
  for (int n = 0; n < 2; ++n) t->numa_nodes.push_back({.os_index = n, .package = 0, .cpus = CpuSet::range(2 * n, 2 * n + 1)});
  return t;
}
const parallel::MeshShape kFour{.pp = 2, .dp = 1, .tp = 2};
const parallel::StepTraffic kTensor{.tp_bytes = 1e9, .tp_operations = 10, .pp_bytes = 1e8, .pp_operations = 10};

std::string cpus_of(const Command& c, const std::string& host, int local_rank) {
  for (const auto& [variable, table] : c.environment)
    if (variable == kPlacementVariable)
      for (const auto& [name, value] : placement_environment(table, host, local_rank))
        if (name == kCpusVariable) return value;
  return "";
}

TEST(PlacementCommand, AMapWithoutCoresBindsThroughTheParents) {
  const Pair p(nodes_alone());
  Command c = command_of(p.cluster, kFour);
  const Command before = c;
  use_placement(&c, place(p.cluster, p.topology, kFour, kTensor), p.cluster, p.topology);
  EXPECT_EQ(value_after(c.argv, "--rankfile"), "");
  EXPECT_EQ(value_after(c.argv, "--bind-to"), "none");
  EXPECT_TRUE(c.file.empty());
  EXPECT_EQ(cpus_of(c, "n0", 0), "0-1");
  EXPECT_EQ(cpus_of(c, "n1", 1), "2-3");
  EXPECT_NE(c.placement.find("# rank 3 (pp 1 dp 0 tp 1): n1, NUMA node 1, CPUs 2-3"), std::string::npos) << c.placement;
}

TEST(PlacementCommand, ATierIsNoMapOfThisHost) {
  Pair p(nodes_alone());
  for (Topology::Member& m : p.topology.hosts) m.kind_only = true;
  Command c = command_of(p.cluster, kFour);
  const Command before = c;
  use_placement(&c, place(p.cluster, p.topology, kFour, kTensor), p.cluster, p.topology);
  EXPECT_EQ(c.argv, before.argv);
  EXPECT_TRUE(c.environment.empty());
}

// Ranges of one length are the hardware threads of one node: a core is never split between ranks.
TEST(PlacementCommand, HardwareThreadsStayTogether) {
  auto t = std::make_shared<HostTopology>();
  t->packages = {{.os_index = 0, .cpus = {}, .model = ""}};
  t->numa_nodes.push_back({.os_index = 0, .package = 0, .cpus = CpuSet::from_list("0-3,8-11", "test")});
  const Pair p(t);
  Command c = command_of(p.cluster, kFour);
  use_placement(&c, place(p.cluster, p.topology, kFour, kTensor), p.cluster, p.topology);
  EXPECT_EQ(cpus_of(c, "n0", 0), "0-1,8-9");
  EXPECT_EQ(cpus_of(c, "n0", 1), "2-3,10-11");
}

TEST(PlacementCommand, SrunFollowsIt) {
  const Pair p(nodes_alone());
  const auto srun = [&](bool whole) {
    Command c = slurm_srun("srun", {.path = "/opt/r1run", .arguments = {"train"}, .ranks = 4}, p.cluster, kFour, {});
    use_srun_placement(&c, place(p.cluster, p.topology, kFour, kTensor), p.cluster, whole);
    return c;
  };
  const Command c = srun(true);
  EXPECT_EQ(std::ranges::count(c.argv, "--cpu-bind=mask_cpu:0x3,0xc"), 1) << shell_line(c.argv);
  EXPECT_EQ(std::ranges::count(c.argv, "--distribution=block:block"), 1) << shell_line(c.argv);
  EXPECT_NE(shell_line(c.argv).find(std::string(",") + kPlacementVariable + " "), std::string::npos) << shell_line(c.argv);
  EXPECT_EQ(cpus_of(c, "n1", 1), "2-3");
  // Part of a node: Slurm would refuse the mask, the parents bind within what there is.
  EXPECT_EQ(std::ranges::count(srun(false).argv, "--cpu-bind=none"), 1);

  // Stages in another order than Slurm's: one host name a task.
  const Cluster r = racks();
  const parallel::MeshShape stages{.pp = 4, .dp = 1, .tp = 1};
  Command ordered = slurm_srun("srun", {.path = "/opt/r1run", .arguments = {"train"}, .ranks = 4}, r, stages, {});
  const Placement placement = place(r, {}, stages, kTraffic);
  use_srun_placement(&ordered, placement, r, false);
  EXPECT_EQ(std::ranges::count(ordered.argv, "--distribution=arbitrary"), 1) << shell_line(ordered.argv);
  EXPECT_EQ(ordered.file, slurm_hostfile(placement, r));
  EXPECT_EQ(ordered.environment, (std::vector<std::pair<std::string, std::string>>{{"SLURM_HOSTFILE", kFileInArguments}}));
}

// mpirun is silent about cores that do not exist, so r1run is not.
TEST(PlacementCommand, ARankfileOfTheUsersIsChecked) {
  auto t = std::make_shared<HostTopology>();
  for (int s = 0; s < 2; ++s) t->packages.push_back({.os_index = s, .cpus = CpuSet::range(2 * s, 2 * s + 1), .model = ""});
  for (int core = 0; core < 4; ++core) t->cores.push_back({.package = core / 2, .numa = {}, .cpus = CpuSet::range(core, core)});
  const Pair p(t);
  const auto use = [&](const std::string& text, const Topology& topology) {
    Command c = command_of(p.cluster, kFour);
    use_rankfile(&c, parse_rankfile(text, "ranks"), "ranks", p.cluster, topology, 4);
    return c;
  };
  const std::string good = "rank 0=n0 slot=0-1\nrank 1=n0 slot=1:0-1\nrank 2=n1 slot=0:*\nrank 3=n1 slot=3\n";
  const Command c = use(good, p.topology);
  EXPECT_EQ(value_after(c.argv, "--rankfile"), kFileInArguments);
  EXPECT_EQ(c.file, good);
  EXPECT_TRUE(c.warnings.empty());
  ASSERT_EQ(use(good, {}).warnings.size(), 1U);
  EXPECT_NE(use(good, {}).warnings[0].find("the cores of n0 and 1 more are not known"), std::string::npos);
  const auto fails = [&](const std::string& text, const std::string& says) {
    try {
      (void)use(text, p.topology);
      ADD_FAILURE() << text;
    } catch (const UsageError& e) {
      EXPECT_NE(std::string(e.what()).find(says), std::string::npos) << e.what();
    }
  };
  fails("rank 0=n0 slot=0-4\nrank 1=n0 slot=1\nrank 2=n1 slot=0\nrank 3=n1 slot=1\n", "ranks:1: rank 0 is given core 4 of n0, which has 4 (0-3)");
  fails("rank 0=n0 slot=0\nrank 1=n0 slot=1:2\nrank 2=n1 slot=0\nrank 3=n1 slot=1\n", "ranks:2: rank 1 is given core 2 of socket 1 of n0");
  fails("rank 0=n0 slot=0\nrank 1=n0 slot=2:*\nrank 2=n1 slot=0\nrank 3=n1 slot=1\n", "socket 2 of n0, which has 2");
  fails("rank 0=n0 slot=0\nrank 1=n0 slot=1\nrank 2=n0 slot=2\nrank 3=n1 slot=1\n", "ranks:3: rank 2: test.hosts gives n0 2 slots");
  fails("rank 0=n0 slot=0\nrank 1=n0 slot=1\nrank 2=n2 slot=2\nrank 3=n1 slot=1\n", "has no host n2");
  fails("rank 0=n0 slot=0\n", "places 1 ranks, the job has 4");
}

// Users and ports reach mpirun in a clean hostfile; the ranks' parents bind.
TEST(PlacementCommand, UsersAndPortsKeepTheirHostfile) {
  Pair p(nodes_alone());
  p.cluster.hosts[1].user = "ann";
  p.cluster.hosts[1].port = 2222;
  Command c = command_of(p.cluster, kFour);
  use_placement(&c, place(p.cluster, p.topology, kFour, kTensor), p.cluster, p.topology);
  EXPECT_EQ(value_after(c.argv, "--hostfile"), kFileInArguments);
  EXPECT_EQ(value_after(c.argv, "--host"), "");
  EXPECT_EQ(c.file, "n0 slots=2\nann@n1 slots=2 port=2222\n");
  EXPECT_EQ(cpus_of(c, "n1", 1), "2-3");
}

// One host's map stands for others of its kind, but not with its GPUs' and adapters' identities.
TEST(ClusterTopology, AKindHasNoIdentity) {
  const test::TemporaryDirectory dir;
  auto t = std::make_shared<HostTopology>();
  t->hostname = "n0";
  t->gpus.push_back({.index = 0, .uuid = "GPU-11"});
  t->nics.push_back({.name = "mlx5_0", .rdma = true, .guid = "0c42a10300654c8e"});
  t->gpu_gpu = {{Path{.path_class = PathClass::kLoc}}};
  t->gpu_nic = {{Path{}}};
  t->nic_nic = {{Path{.path_class = PathClass::kLoc}}};
  t->near_nics = {{0}};
  t->nccl_nic = {0};
  Topology one;
  one.hosts.push_back({"n0", t});
  const std::string file = (dir.path() / "n0.json").string();
  std::ofstream(file) << to_json(one);
  const Cluster hosts = parse_host_list("n0:1,n1:1,n2.site:1", "--host");
  const Topology map = cluster_topology(hosts, file);
  ASSERT_EQ(map.hosts.size(), 3U);
  EXPECT_EQ(map.hosts[0].host->gpus.at(0).uuid, "GPU-11");
  EXPECT_EQ(map.hosts[1].host->gpus.at(0).uuid, "");
  EXPECT_EQ(map.hosts[1].host->nics.at(0).guid, "");
  EXPECT_EQ(map.hosts[1].host, map.hosts[2].host) << "equal hosts share one";
}

TEST(ClusterTopology, ABadTierIsNamedWithItsLine) {
  try {
    (void)annotated_topology(parse_hostfile("a slots=4\nb slots=4 # r1run: tier=nosuch\n", "f"), Catalogue::built_in());
    ADD_FAILURE();
  } catch (const UsageError& e) {
    EXPECT_NE(std::string(e.what()).find("f:2: tier of b: "), std::string::npos) << e.what();
  }
}

// What a map names and the host does not have is not set, and said.
TEST(PlacedHere, WhatIsNotHereIsNotSet) {
  const test::TemporaryDirectory dir;
  const std::string root = dir.path().string();
  std::filesystem::create_directories(root + "/sys/class/infiniband/mlx5_0");
  std::filesystem::create_directories(root + "/sys/devices/system/cpu");
  std::filesystem::create_directories(root + "/proc/driver/nvidia/gpus/0000:01:00.0");
  std::ofstream(root + "/sys/devices/system/cpu/online") << "0-1\n";
  std::ofstream(root + "/proc/driver/nvidia/gpus/0000:01:00.0/information") << "Model: \t X\nGPU UUID: \t GPU-11\n";
  const auto at = [&](const std::string& entries) { return take_place("*|0;" + entries, "n0", 0, root); };
  EXPECT_EQ(at("NCCL_IB_HCA==mlx5_0:1;UCX_NET_DEVICES=mlx5_0:1;CUDA_VISIBLE_DEVICES=GPU-11").environment.size(), 3U);
  for (const char* bad : {"NCCL_IB_HCA==mlx5_0:1,mlx5_9:1", "UCX_NET_DEVICES=mlx5_9:1", "CUDA_VISIBLE_DEVICES=GPU-11,GPU-22"}) {
    const PlacedHere here = at(bad);
    EXPECT_TRUE(here.environment.empty()) << bad;
    ASSERT_EQ(here.warnings.size(), 1U) << bad;
    EXPECT_NE(here.warnings[0].find("is not here"), std::string::npos) << here.warnings[0];
  }
  const PlacedHere cores = at("R1RUN_CPUS=0-15");
  ASSERT_EQ(cores.warnings.size(), 1U);
  EXPECT_NE(cores.warnings[0].find("gives it CPUs 0-15, the host has 0-1"), std::string::npos) << cores.warnings[0];
  EXPECT_TRUE(take_place("*|0;A=1", "n0", 1, root).environment.empty());
}

}  // namespace
}  // namespace r1::launch
