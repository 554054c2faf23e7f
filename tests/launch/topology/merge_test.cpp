// Several sources of one host: one map, contradictions said.
#include "launch/topology/merge.h"

#include <gtest/gtest.h>

#include "tests/launch/topology/support.h"

namespace r1::launch {
namespace {

using namespace testing;

TEST(Merge, ThreeReadingsOfOneVirtualMachine) {
  const HostTopology hwloc = host_of("one-h200-vm/h200-vm-hwloc.xml"),
                     nccl = host_of("one-h200-vm/h200-vm-nccl.xml"),
                     smi = host_of("one-h200-vm/h200-vm-topo-m.txt");
  // In every order the same facts, and no contradiction: NCCL's -1 is "unknown", not a number.
  for (const auto& sources : {std::vector{hwloc, nccl, smi}, std::vector{nccl, smi, hwloc},
                              std::vector{smi, hwloc, nccl}}) {
    std::vector<std::string> conflicts;
    const HostTopology host = merge(sources, conflicts);
    EXPECT_TRUE(conflicts.empty()) << conflicts.front();
    ASSERT_EQ(host.gpus.size(), 1u);
    EXPECT_EQ(host.gpus[0].pci_id, "10de:2335");
    EXPECT_EQ(host.gpus[0].busid, "0000:00:06.0");
    EXPECT_EQ(host.gpus[0].sm, 90);
    EXPECT_EQ(numa_id(host, 0), 0);
    EXPECT_EQ(host.cpus_near(0).list(), "0-15");
  }
  std::vector<std::string> conflicts;
  const HostTopology host = merge({hwloc, nccl, smi}, conflicts);
  EXPECT_EQ(host.packages.size(), 1u);
  ASSERT_EQ(host.nics.size(), 1u);
  EXPECT_EQ(host.nics[0].name, "eth0");
  EXPECT_EQ(host.nics[0].rate_mbit_per_s, 10000) << "from NCCL";
  EXPECT_EQ(host.nics[0].busid, "0000:00:03.0") << "from hwloc";
  EXPECT_EQ(host.sources.size(), 3u);
}

HostTopology two_gpus(const std::string& between, const std::string& legend) {
  return read_nvidia_smi(
      fmt::format(
          "\tGPU0\tGPU1\tNIC0\tCPU Affinity\tNUMA Affinity\nGPU0\t X \t{0}\tPHB\t0-7\t0\n"
          "GPU1\t{0}\t X \tSYS\t8-15\t1\nNIC0\tPHB\tSYS\t X \n{1}NIC Legend:\n\n  NIC0: mlx5_0\n",
          between, legend),
      between);
}
const std::string kWithNvlink =
    "Legend:\n  NV#  = Connection traversing a bonded set of # NVLinks\n";

TEST(Disagreements, NodeAgainstPhbIsNone) {
  EXPECT_TRUE(disagreements(two_gpus("PHB", kWithNvlink), two_gpus("NODE", kWithNvlink)).empty());
}

TEST(Disagreements, RealOnesAreNamed) {
  const auto found = disagreements(two_gpus("NV4", kWithNvlink), two_gpus("NV2", kWithNvlink));
  ASSERT_EQ(found.size(), 1u);
  EXPECT_NE(found[0].find("GPU1 to GPU0: NV4 against NV2"), std::string::npos) << found[0];
  EXPECT_EQ(disagreements(two_gpus("PIX", kWithNvlink), two_gpus("SYS", kWithNvlink)).size(), 1u);
}

TEST(Disagreements, ASourceSilentAboutNvlinkContradictsNone) {
  const HostTopology with = two_gpus("NV4", kWithNvlink), silent = two_gpus("SYS", "Legend:\n");
  EXPECT_TRUE(disagreements(with, silent).empty());
  EXPECT_TRUE(disagreements(silent, with).empty());
  std::vector<std::string> conflicts;
  EXPECT_EQ(cell(merge({silent, with}, conflicts).gpu_gpu[0][1]), "NV4")
      << "the one that knows fills the gap";
  EXPECT_TRUE(conflicts.empty());
  // But a source that knows of no NVLink does.
  EXPECT_EQ(disagreements(with, two_gpus("SYS", kWithNvlink)).size(), 1u);
}

TEST(Disagreements, NumaNodesAndRates) {
  HostTopology a = two_gpus("NV4", kWithNvlink), b = a;
  b.numa_nodes[1].os_index = 3;
  a.nics[0].rate_mbit_per_s = 200000;
  b.nics[0].rate_mbit_per_s = 100000;
  const auto found = disagreements(a, b);
  ASSERT_EQ(found.size(), 2u);
  EXPECT_NE(found[0].find("GPU1 on NUMA node 1 against 3"), std::string::npos) << found[0];
  EXPECT_NE(found[1].find("mlx5_0 at 200000 against 100000 Mbit/s"), std::string::npos) << found[1];
}

/// A published trap: the two levels of a Broadcom switch are PIX to NCCL, and the driver says PXB.
TEST(Disagreements, NcclAndTheDriverAboutOneSwitch) {
  HostTopology nccl = host_of("nccl/oci-h100-topology.xml");
  HostTopology other = nccl;
  other.gpu_nic[0][0].path_class = PathClass::kPxb;
  const auto found = disagreements(nccl, other);
  ASSERT_EQ(found.size(), 1u);
  EXPECT_NE(found[0].find("GPU0 to mlx5_0: PIX against PXB"), std::string::npos) << found[0];
}

TEST(Differences, TheOddHostIsDescribed) {
  const HostTopology usual = host_of("nccl/oci-h100-topology.xml");
  EXPECT_TRUE(differences(usual, usual).empty());
  HostTopology slow_nic = usual;
  slow_nic.nics[3].rate_mbit_per_s = 100000;
  EXPECT_EQ(differences(usual, slow_nic).size(), 1u);
  HostTopology lost_link = usual;
  lost_link.gpu_gpu[2][5].nvlinks = 16;
  EXPECT_EQ(differences(usual, lost_link), std::vector<std::string>{"paths between GPUs differ"});
  HostTopology ecc_off = usual;
  ecc_off.gpus[0].ecc = false;
  EXPECT_EQ(differences(usual, ecc_off).size(), 1u);
}

}  // namespace
}  // namespace r1::launch
