// A placement becomes part of the launcher's command: hosts in rank order, or a rankfile where cores are known.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "launch/command.h"

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

}  // namespace
}  // namespace r1::launch
