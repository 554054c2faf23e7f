// Fabrics: ibnetdiscover and Slurm's topology.conf.
#include "launch/topology/fabric.h"

#include <gtest/gtest.h>

#include <chrono>
#include <map>
#include <set>

#include "runtime/core/error.h"
#include "tests/launch/topology/support.h"

namespace r1::launch {
namespace {

using namespace testing;

Fabric fabric_of(const std::string& name) { return read_topology(data_file(name), name).fabric; }

std::string message_of(const std::string& text,
                       Fabric (*read)(std::string_view, const std::string&)) {
  try {
    (void)read(text, "t");
  } catch (const DataError& e) {
    return e.what();
  }
  return "";
}

TEST(Ibnetdiscover, NdrLeafSpine) {
  const Fabric fabric = fabric_of("ib/ibnetdiscover-ndr-leafspine.out");
  EXPECT_EQ(fabric.switches.size(), 40u);
  int leaves = 0, spines = 0;
  for (const FabricSwitch& s : fabric.switches) (s.level == 0 ? leaves : spines) += 1;
  EXPECT_EQ(leaves, 31);
  EXPECT_EQ(spines, 9);
  EXPECT_EQ(fabric.ports.size(), 582u - 40u)
      << "40 of the adapters are aggregation nodes inside switches";
  std::map<std::string, std::set<int>> leaves_of;
  std::map<std::string, int> adapters;
  for (const FabricPort& port : fabric.ports) {
    EXPECT_EQ(port.gbytes_per_s, 50);
    if (port.host.empty()) continue;
    ++adapters[port.host];
    leaves_of[port.host].insert(port.leaf);
  }
  std::map<int, int> by_count;
  for (const auto& [host, count] : adapters) {
    ++by_count[count];
    EXPECT_EQ(static_cast<int>(leaves_of[host].size()), count) << host << ": one leaf a rail";
  }
  EXPECT_EQ(by_count, (std::map<int, int>{{3, 11}, {4, 109}}));
  EXPECT_EQ(adapters["localhost"], 3) << "one host, apart from the 69 adapters with a factory name";
  EXPECT_FALSE(adapters.contains("ubuntu"));
  EXPECT_FALSE(adapters.contains("B11-P1-CUFM-02"));
  EXPECT_EQ(fabric.share_leaf("a08-p1-dgx-04-c01", "a08-p1-dgx-04-c02"), true);
  // Every link has two ends in the file, and every one is in the map.
  for (const auto& warning : fabric.warnings)
    EXPECT_EQ(warning.find("one end"), std::string::npos) << warning;
  // One connected fabric.
  std::vector<std::vector<int>> next(fabric.switches.size());
  for (size_t s = 0; s < fabric.switches.size(); ++s)
    for (const auto& link : fabric.switches[s].up) {
      next[s].push_back(link.to);
      next[static_cast<size_t>(link.to)].push_back(static_cast<int>(s));
    }
  std::set<int> reached{0};
  for (std::vector<int> todo{0}; !todo.empty();) {
    const int s = todo.back();
    todo.pop_back();
    for (const int n : next[static_cast<size_t>(s)])
      if (reached.insert(n).second) todo.push_back(n);
  }
  EXPECT_EQ(reached.size(), 40u);
}

TEST(Ibnetdiscover, RailsAreTheLeavesOfARackGroup) {
  const Fabric fabric = fabric_of("ib/ibnetdiscover-ndr-leafspine.out");
  // IBLEAF-RR-GG carries rail RR of rack group GG.
  for (const int leaf : fabric.leaves_of("a08-p1-dgx-04-c01")) {
    const std::string& leaf_name = fabric.switches[static_cast<size_t>(leaf)].name;
    EXPECT_TRUE(leaf_name.ends_with("-04")) << leaf_name;
    EXPECT_NE(leaf_name.find("IBLEAF-"), std::string::npos);
  }
}

TEST(Ibnetdiscover, OversubscriptionIsHostsOverUplinks) {
  const std::string text =
      "vendid=0x2c9\nSwitch\t4 \"S-1\"\t\t# \"MF0;leaf:MQM/U1\" enhanced port 0 lid 1 lmc 0\n"
      "[1]\t\"H-1\"[1](1) \t\t# \"n1 mlx5_0\" lid 3 4xHDR\n[2]\t\"H-2\"[1](2) \t\t# \"n2 mlx5_0\" "
      "lid 4 4xHDR\n"
      "[3]\t\"H-3\"[1](3) \t\t# \"n3 mlx5_0\" lid 5 4xHDR\n[4]\t\"S-2\"[1]\t\t# "
      "\"MF0;spine:MQM/U1\" lid 2 4xHDR\n\n"
      "Switch\t4 \"S-2\"\t\t# \"MF0;spine:MQM/U1\" enhanced port 0 lid 2 lmc "
      "0\n[1]\t\"S-1\"[4]\t\t# \"MF0;leaf:MQM/U1\" lid 1 4xHDR\n\n"
      "Ca\t1 \"H-1\"\t\t# \"n1 mlx5_0\"\n[1](1) \t\"S-1\"[1]\t\t# lid 3 lmc 0 \"MF0;leaf:MQM/U1\" "
      "lid 1 4xHDR\n\n"
      "Ca\t1 \"H-2\"\t\t# \"n2 mlx5_0\"\n[1](2) \t\"S-1\"[2]\t\t# lid 4 lmc 0 \"MF0;leaf:MQM/U1\" "
      "lid 1 4xHDR\n\n"
      "Ca\t1 \"H-3\"\t\t# \"n3 mlx5_0\"\n[1](3) \t\"S-1\"[3]\t\t# lid 5 lmc 0 \"MF0;leaf:MQM/U1\" "
      "lid 1 4xHDR\n";
  const Fabric fabric = read_ibnetdiscover(text, "t");
  ASSERT_EQ(fabric.switches.size(), 2u);
  EXPECT_EQ(fabric.switches[0].name, "leaf");
  EXPECT_EQ(fabric.switches[0].oversubscription, 3);
  EXPECT_EQ(fabric.switches[0].host_gbytes_per_s, 75);
  EXPECT_EQ(fabric.switches[1].oversubscription, std::nullopt) << "nothing above";
  EXPECT_TRUE(fabric.warnings.empty());
  // A cable that only one end reports is said.
  const auto cut = text.find("[1]\t\"S-1\"[4]");
  EXPECT_EQ(read_ibnetdiscover(text.substr(0, cut) + text.substr(text.find('\n', cut) + 1), "t")
                .warnings.size(),
            1u);
}

TEST(Ibnetdiscover, TruncatedIsNoFabric) {
  EXPECT_NE(
      message_of(data_file("ib/ibnetdiscover-truncated.out"), read_ibnetdiscover).find("no fabric"),
      std::string::npos);
}

TEST(SlurmTopology, Tree400) {
  const Fabric fabric = fabric_of("slurm/topology-tree-400.conf");
  EXPECT_EQ(fabric.switches.size(), 23u);
  EXPECT_EQ(fabric.ports.size(), 400u);
  std::map<int, int> levels;
  for (const FabricSwitch& s : fabric.switches) ++levels[s.level];
  EXPECT_EQ(levels, (std::map<int, int>{{0, 20}, {1, 2}, {2, 1}}));
  std::map<int, int> hosts;
  for (const FabricPort& port : fabric.ports) ++hosts[port.leaf];
  for (const auto& [leaf, count] : hosts) EXPECT_EQ(count, 20);
}

TEST(SlurmTopology, Tree10000IsRead) {
  const auto start = std::chrono::steady_clock::now();
  const Fabric fabric = fabric_of("slurm/topology-tree-10000.conf");
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  EXPECT_EQ(fabric.switches.size(), 529u);
  EXPECT_EQ(fabric.ports.size(), 10000u);
  std::map<int, int> levels;
  for (const FabricSwitch& s : fabric.switches) ++levels[s.level];
  EXPECT_EQ(levels[0], 500);
  EXPECT_EQ(levels.rbegin()->first, 3) << "depth 4";
  EXPECT_EQ(levels.rbegin()->second, 1) << "one root";
  EXPECT_LT(took.count(), 5) << "seconds";
}

TEST(SlurmTopology, Blocks) {
  const Fabric fabric = fabric_of("slurm/topology-block-32.conf");
  EXPECT_TRUE(fabric.switches.empty());
  ASSERT_EQ(fabric.blocks.size(), 8u);
  for (const auto& block : fabric.blocks) EXPECT_EQ(block.hosts.size(), 4u);
  EXPECT_EQ(fabric.block_sizes, (std::vector<int>{4, 8, 16, 32, 64}));
  EXPECT_EQ(fabric.share_leaf("node01", "node04"), true);
  EXPECT_EQ(fabric.share_leaf("node04", "node05"), false);
}

TEST(SlurmTopology, NamesWithDotsAndRanges) {
  const Fabric fabric = fabric_of("slurm/topology-oci-sim-tree.conf");
  std::map<int, int> levels;
  for (const FabricSwitch& s : fabric.switches) ++levels[s.level];
  EXPECT_EQ(levels, (std::map<int, int>{{0, 12}, {1, 6}, {2, 1}}));
  EXPECT_EQ(fabric.ports.size(), 96u);
}

TEST(SlurmTopology, ReadsWhatSlurmReads) {
  const Fabric fabric = read_slurm_topology(
      "# a comment\nswitchname=leaf1 NODES=n[1-2],\\\nn3 LinkSpeed=100 # "
      "more\r\n\n\tSwitchName=leaf2 Nodes=n[4-5]-ib\n"
      "SwitchName=mid Switches=leaf2\nSwitchName=top Switches=leaf1,mid\n",
      "t");
  EXPECT_EQ(fabric.ports.size(), 5u);
  EXPECT_EQ(fabric.ports[4].host, "n5-ib");
  EXPECT_EQ(fabric.switches[3].level, 2);
  EXPECT_EQ(fabric.switches[0].up.at(0).to, 3);
  EXPECT_FALSE(fabric.switches[0].oversubscription) << "LinkSpeed has no unit";
}

TEST(SlurmTopology, SaysWhatIsWrong) {
  const auto says = [](const std::string& text, const std::string& what) {
    const auto message = message_of(text, read_slurm_topology);
    EXPECT_NE(message.find(what), std::string::npos) << text << "\n" << message;
  };
  says("SwitchName=a Nodes=n1\nSwitchName=a Nodes=n2\n", "t:2: switch a is defined twice");
  says("SwitchName=a Nodes=n1 Switches=b\n", "both Nodes and Switches");
  says("SwitchName=a\n", "neither Nodes nor Switches");
  says("SwitchName=a Switches=b\n", "t:1: switch a has b below it, which no line defines");
  says("SwitchName=a Switches=b\nSwitchName=b Switches=a\n", "circle");
  says("SwitchName=a Nodes=n[1-\n", "t:1");
  says("SwitchName=a Nodez=n1\n", "key \"Nodez\"");
  says("SwitchName=a Nodes=n1\nBlockName=b Nodes=n2\n", "both SwitchName and BlockName");
  says("# nothing\n", "neither SwitchName nor BlockName");
}

TEST(SlurmAddress, HostsOfOneLeafShareIt) {
  const Fabric fabric = fabric_of_slurm_addresses({{"n1", "spine.leaf1.n1", "switch.switch.node"},
                                                   {"n2", "spine.leaf1.n2", "switch.switch.node"},
                                                   {"n3", "spine.leaf2.n3", "switch.switch.node"},
                                                   {"n4", "n4", "node"}});
  EXPECT_EQ(fabric.switches.size(), 3u);
  EXPECT_EQ(fabric.share_leaf("n1", "n2"), true);
  EXPECT_EQ(fabric.share_leaf("n1", "n3"), false);
  EXPECT_EQ(fabric.share_leaf("n1", "n4"), std::nullopt) << "topology/flat tells nothing";
  const Fabric dotted =
      fabric_of_slurm_addresses({{"n1", "sw.3.1.sw.1.1.n1", "switch.switch.node"},
                                 {"n2", "sw.3.1.sw.1.1.n2", "switch.switch.node"}});
  EXPECT_EQ(dotted.share_leaf("n1", "n2"), true);
}

}  // namespace
}  // namespace r1::launch
