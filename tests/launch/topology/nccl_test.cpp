// NCCL topology XML: what NCCL itself would conclude from files that others published.
#include <gtest/gtest.h>

#include "launch/topology/paths.h"
#include "runtime/core/error.h"
#include "tests/launch/topology/support.h"

namespace r1::launch {
namespace {

using namespace testing;

TEST(NcclXml, AzureNdv4) {
  const HostTopology host = host_of("nccl/azure-ndv4-topo.xml");
  ASSERT_EQ(host.gpus.size(), 8u);
  ASSERT_EQ(host.nics.size(), 8u);
  ASSERT_EQ(host.numa_nodes.size(), 4u);
  for (const NumaNode& node : host.numa_nodes) EXPECT_EQ(node.cpus.count(), 24);
  EXPECT_EQ(host.cpu_vendor, "AuthenticAMD");
  EXPECT_EQ(host.cpu_family, 23);
  EXPECT_FALSE(host.nvlink_known) << "a template is silent about NVLink";
  // In bus order the GPUs lie on these nodes: a trap for whoever takes index order for node order.
  const std::vector<int> nodes = {1, 1, 0, 0, 3, 3, 2, 2};
  const std::vector<std::string> nics = {"0101:00:00.0 0102:00:00.0", "0103:00:00.0 0104:00:00.0",
                                         "0105:00:00.0 0106:00:00.0", "0107:00:00.0 0108:00:00.0"};
  for (size_t g = 0; g < 8; ++g) {
    EXPECT_EQ(numa_id(host, g), nodes[g]) << g;
    EXPECT_EQ(near(host, g), nics[g / 2]) << g;
    for (size_t other = 0; other < 8; ++other)
      EXPECT_EQ(cell(host.gpu_gpu[g][other]), g == other           ? "X"
                                              : g / 2 == other / 2 ? "PIX"
                                                                   : "SYS");
    for (const int n : host.near_nics[g])
      EXPECT_EQ(host.gpu_nic[g][static_cast<size_t>(n)].path_class, PathClass::kPix);
  }
  EXPECT_EQ(host.gpus[0].busid, "0001:00:00.0");
  EXPECT_EQ(host.gpu_gpu[0][1].gbytes_per_s, 24);
  // Two GPUs and two NICs at a switch: each GPU gets one of its own.
  for (size_t g = 0; g < 8; g += 2) {
    EXPECT_EQ(host.nccl_nic[g], host.near_nics[g][0]);
    EXPECT_EQ(host.nccl_nic[g + 1], host.near_nics[g][1]);
  }
}

TEST(NcclXml, AzureNdv2) {
  const HostTopology host = host_of("nccl/azure-ndv2-topo.xml");
  ASSERT_EQ(host.gpus.size(), 8u);
  ASSERT_EQ(host.nics.size(), 1u);
  EXPECT_EQ(host.nics[0].busid, "0101:00:00.0");
  EXPECT_TRUE(host.nics[0].rdma);
  for (const NumaNode& node : host.numa_nodes) EXPECT_EQ(node.cpus.count(), 20);
  for (size_t g = 0; g < 8; ++g) {
    EXPECT_EQ(row(host.gpu_nic[g]), g < 4 ? "PHB" : "SYS");
    for (size_t other = 0; other < 8; ++other)
      EXPECT_EQ(cell(host.gpu_gpu[g][other]), g == other           ? "X"
                                              : g / 4 == other / 4 ? "PHB"
                                                                   : "SYS");
  }
}

TEST(NcclXml, AzureNcv4LinksToItselfAreNoLinks) {
  const HostTopology host = host_of("nccl/azure-ncv4-topo.xml");
  ASSERT_EQ(host.gpus.size(), 4u);
  EXPECT_TRUE(host.nvlinks.empty());
  EXPECT_FALSE(host.nvlink_known) << "hidden by the virtual machine, not absent";
  ASSERT_EQ(host.nics.size(), 1u);
  EXPECT_EQ(host.nics[0].name, "eth0");
  EXPECT_EQ(host.nics[0].rate_mbit_per_s, 100000);
  EXPECT_FALSE(host.nics[0].rdma);
  EXPECT_EQ(host.nics[0].numa, 0);
  for (size_t g = 0; g < 4; ++g) {
    EXPECT_EQ(numa_id(host, g), static_cast<int>(g));
    EXPECT_EQ(host.gpus[g].sm, 80);
    EXPECT_EQ(host.gpus[g].pci_id, "10de:20b5");
    EXPECT_FALSE(host.gpus[g].pci_gbytes_per_s) << "an empty speed is unknown";
    for (size_t other = 0; other < 4; ++other) {
      EXPECT_EQ(cell(host.gpu_gpu[g][other]), g == other ? "X" : "SYS");
      EXPECT_TRUE(g == other || !host.gpu_gpu[g][other].gbytes_per_s);
    }
  }
  EXPECT_EQ(host.nvlink_domains().size(), 4u);
  EXPECT_FALSE(host.warnings.empty());
}

TEST(NcclXml, GraphFilesAreRefusedByName) {
  try {
    (void)read_topology(data_file("nccl/azure-ncv4-graph.xml"), "graph.xml");
    FAIL();
  } catch (const DataError& e) {
    EXPECT_NE(std::string(e.what()).find("graph.xml:1: an NCCL graph file"), std::string::npos)
        << e.what();
  }
}

TEST(NcclXml, AwsP4d) {
  const HostTopology host = host_of("nccl/aws-p4d-24xl-topo.xml");
  ASSERT_EQ(host.gpus.size(), 8u);
  ASSERT_EQ(host.nics.size(), 4u);
  ASSERT_EQ(host.numa_nodes.size(), 2u);
  EXPECT_EQ(host.numa_nodes[0].cpus.count(), 48);
  EXPECT_EQ(host.pci.size(), 4u);
  const std::vector<std::string> nics = {"0000:10:1b.0", "0000:20:1b.0", "0000:90:1b.0",
                                         "0000:a0:1b.0"};
  for (size_t g = 0; g < 8; ++g) {
    EXPECT_EQ(near(host, g), nics[g / 2]);
    EXPECT_EQ(host.gpus[g].sm, 80) << "from 10de:20b0";
    for (size_t other = 0; other < 8; ++other)
      EXPECT_EQ(cell(host.gpu_gpu[g][other]), g == other           ? "X"
                                              : g / 2 == other / 2 ? "PIX"
                                              : g / 4 == other / 4 ? "PHB"
                                                                   : "SYS");
  }
  EXPECT_EQ(host.gpu_gpu[0][1].gbytes_per_s, 12);
  EXPECT_EQ(host.gpu_gpu[0][4].gbytes_per_s, 10) << "Skylake between sockets";
  EXPECT_TRUE(host.nics[0].rdma) << "EFA";
  EXPECT_FALSE(host.nvlink_known);
}

TEST(NcclXml, OciH100) {
  const HostTopology host = host_of("nccl/oci-h100-topology.xml");
  ASSERT_EQ(host.gpus.size(), 8u);
  ASSERT_EQ(host.nics.size(), 16u);
  ASSERT_EQ(host.numa_nodes.size(), 2u);
  EXPECT_EQ(host.numa_nodes[0].cpus.count(), 112);
  EXPECT_EQ(host.nvswitches.size(), 4u);
  EXPECT_TRUE(host.nvlink_known);
  const std::vector<std::string> nics = {"mlx5_0 mlx5_1",   "mlx5_3 mlx5_4",  "mlx5_5 mlx5_6",
                                         "mlx5_7 mlx5_8",   "mlx5_9 mlx5_10", "mlx5_12 mlx5_13",
                                         "mlx5_14 mlx5_15", "mlx5_16 mlx5_17"};
  for (size_t g = 0; g < 8; ++g) {
    EXPECT_EQ(host.gpus[g].sm, 90);
    EXPECT_EQ(near(host, g), nics[g]) << g;
    // The two levels of a Broadcom switch are one to NCCL.
    for (const int n : host.near_nics[g])
      EXPECT_EQ(host.gpu_nic[g][static_cast<size_t>(n)].path_class, PathClass::kPix);
    for (size_t other = 0; other < 8; ++other) {
      if (g == other) continue;
      EXPECT_EQ(cell(host.gpu_gpu[g][other]), "NV18");
      EXPECT_NEAR(host.gpu_gpu[g][other].gbytes_per_s.value_or(0), 18 * 20.6, 1e-9);
    }
    const auto far = static_cast<size_t>(host.near_nics[(g + 4) % 8][0]);
    EXPECT_EQ(host.gpu_nic[g][far].path_class, PathClass::kSys);
    const auto beside = static_cast<size_t>(host.near_nics[g ^ 1u][0]);
    EXPECT_EQ(host.gpu_nic[g][beside].path_class, PathClass::kPhb);
  }
  EXPECT_EQ(host.nics[0].rate_mbit_per_s, 180000);
  EXPECT_EQ(host.nics[1].port, 2);
  EXPECT_EQ(host.nics[0].guid, "9a70500003ae6d94");
  EXPECT_EQ(host.nvlink_domains().size(), 1u);
}

TEST(NcclXml, PcieBelowNvlinkIsPhbInTheSocket) {
  // The same machine without its NVLinks.
  std::string text = data_file("nccl/oci-h100-topology.xml");
  for (auto at = text.find("<nvlink"); at != std::string::npos; at = text.find("<nvlink"))
    text.erase(at, text.find("/>", at) + 2 - at);
  const HostTopology host = read_nccl_xml(text, "oci");
  for (size_t g = 0; g < 8; ++g)
    for (size_t other = 0; other < 8; ++other)
      EXPECT_EQ(cell(host.gpu_gpu[g][other]), g == other           ? "X"
                                              : g / 4 == other / 4 ? "PHB"
                                                                   : "SYS");
  EXPECT_TRUE(host.nvlink_known) << "a dump without nvlink elements has none";
}

/// NVB: a V100 pair without a direct link goes through one GPU between, which beats PCI.
TEST(NcclXml, NvlinkThroughAnotherGpu) {
  const std::string text =
      R"(<system version="1"><cpu numaid="0" affinity="ff" arch="x86_64" vendor="GenuineIntel" familyid="6" modelid="85">
    <pci busid="0000:01:00.0" class="0x030200" link_speed="8.0 GT/s PCIe" link_width="16"><gpu dev="0" sm="70" rank="0" gdr="1">
      <nvlink target="0000:02:00.0" count="2" tclass="0x030200"/></gpu></pci>
    <pci busid="0000:02:00.0" class="0x030200" link_speed="8.0 GT/s PCIe" link_width="16"><gpu dev="1" sm="70" rank="1" gdr="1">
      <nvlink target="0000:01:00.0" count="2" tclass="0x030200"/><nvlink target="0000:03:00.0" count="1" tclass="0x030200"/></gpu></pci>
    <pci busid="0000:03:00.0" class="0x030200" link_speed="8.0 GT/s PCIe" link_width="16"><gpu dev="2" sm="70" rank="2" gdr="1">
      <nvlink target="0000:02:00.0" count="1" tclass="0x030200"/></gpu></pci></cpu></system>)";
  const HostTopology host = read_nccl_xml(text, "chain");
  EXPECT_EQ(row(host.gpu_gpu[0]), "X NV2 NVB");
  EXPECT_EQ(row(host.gpu_gpu[2]), "NVB NV1 X");
  EXPECT_EQ(host.gpu_gpu[0][1].gbytes_per_s, 40);
  EXPECT_EQ(host.gpu_gpu[0][2].gbytes_per_s, 20);
}

/// As NCCL 2.27 dumps a rented B200 container: an NVSwitch that is not shown, and the socket NIC
/// under each CPU.
TEST(NcclXml, HiddenNvswitchAndAnInterfaceUnderEachCpu) {
  std::string text = R"(<system version="1">)";
  for (int cpu = 0; cpu < 2; ++cpu) {
    text += fmt::format(
        R"(<cpu host_hash="0x7" numaid="{}" affinity="ff" arch="x86_64" vendor="GenuineIntel" familyid="6" modelid="207">)",
        cpu);
    for (int gpu = 2 * cpu; gpu < 2 * cpu + 2; ++gpu)
      text += fmt::format(
          R"(<pci busid="0000:{}5:00.0" class="0x030200" vendor="0x10de" device="0x2901" link_speed="64.0 GT/s PCIe" link_width="16">
        <gpu dev="{}" sm="100" rank="{}" gdr="1"><nvlink target="fffffff:ff:ff.0" count="18" tclass="0x068000"/></gpu></pci>)",
          gpu + 1, gpu, gpu);
    text +=
        R"(<nic><net name="eth0" dev="0" speed="10000" port="0" guid="0x0" gdr="0"/></nic></cpu>)";
  }
  const HostTopology host = read_nccl_xml(text + "</system>", "b200");
  ASSERT_EQ(host.gpus.size(), 4u);
  EXPECT_EQ(row(host.gpu_gpu[0]), "X NV18 NV18 NV18");
  EXPECT_NEAR(host.gpu_gpu[0][3].gbytes_per_s.value_or(0), 18 * 40.1, 1e-9);
  EXPECT_EQ(near(host, 0), "eth0");
  EXPECT_EQ(near(host, 3), "eth0") << "near to every CPU";
}

/// Grace: C2C to the CPU, and the NIC of that CPU is reached over it.
TEST(NcclXml, GraceHopper) {
  const std::string text =
      R"(<system version="1"><cpu host_hash="0x1" numaid="0" affinity="ff" arch="arm64">
    <pci busid="0009:01:00.0" class="0x030200" link_speed="32.0 GT/s PCIe" link_width="1"><gpu dev="0" sm="90" rank="0" gdr="1">
      <c2c bw="44700" count="10"/></gpu></pci>
    <pci busid="0000:01:00.0" class="0x020700" link_speed="32.0 GT/s PCIe" link_width="16"><nic>
      <net name="mlx5_0" dev="0" speed="400000" port="1" guid="0x12" gdr="1"/></nic></pci></cpu></system>)";
  const HostTopology host = read_nccl_xml(text, "gh200");
  ASSERT_EQ(host.nvlinks.size(), 1u);
  EXPECT_TRUE(host.nvlinks[0].c2c);
  EXPECT_EQ(host.nvlinks[0].gbytes_per_s, 447);
  EXPECT_EQ(row(host.gpu_nic[0]), "P2C");
  EXPECT_EQ(near(host, 0), "mlx5_0");
}

TEST(NcclXml, AFarFastNicBeatsANearSlowOne) {
  const std::string nic = R"(link_speed="32.0 GT/s PCIe" link_width="16"><nic><net name=")";
  const std::string text =
      R"(<system version="1"><cpu numaid="0" arch="x86_64" vendor="GenuineIntel" familyid="6" modelid="207">
      <pci busid="0000:08:00.0" class="0x060400" link_speed="32.0 GT/s PCIe" link_width="16">
        <pci busid="0000:01:00.0" class="0x030200" link_speed="32.0 GT/s PCIe" link_width="16"><gpu dev="0" sm="90" rank="0" gdr="1"/></pci>
        <pci busid="0000:02:00.0" class="0x020700" )" +
      nic + R"(near" dev="0" speed="100000" port="1" guid="0x1" gdr="1"/></nic></pci></pci>
      <pci busid="0000:03:00.0" class="0x020700" )" +
      nic +
      R"(far" dev="1" speed="400000" port="1" guid="0x2" gdr="1"/></nic></pci></cpu></system>)";
  const HostTopology host = read_nccl_xml(text, "mixed");
  EXPECT_EQ(row(host.gpu_nic[0]), "PIX PHB");
  EXPECT_EQ(near(host, 0), "far");
}

TEST(NcclXml, SaysWhatIsWrong) {
  const auto message = [](const std::string& text) -> std::string {
    try {
      (void)read_nccl_xml(text, "t.xml");
    } catch (const DataError& e) {
      return e.what();
    }
    return "";
  };
  EXPECT_NE(message("<system version=\"1\">\n<cpu").find("t.xml:2: not well-formed XML"),
            std::string::npos);
  EXPECT_NE(message("<system version=\"2\"/>").find("version \"2\""), std::string::npos);
  EXPECT_NE(message("<system version=\"1\"/>").find("no \"cpu\" element"), std::string::npos);
  EXPECT_NE(message("<html/>").find("root element \"html\""), std::string::npos);
  std::string deep = "<system version=\"1\"><cpu numaid=\"0\">";
  for (int i = 0; i < 100000; ++i) deep += "<pci busid=\"0000:01:00.0\" class=\"0x060400\">";
  for (int i = 0; i < 100000; ++i) deep += "</pci>";
  EXPECT_NE(message(deep + "</cpu></system>").find("nested deeper"), std::string::npos);
}

TEST(Bandwidths, AreNcclsConstants) {
  EXPECT_EQ(pci_gbytes_per_s("16.0 GT/s PCIe", 16), 24);
  EXPECT_EQ(pci_gbytes_per_s("8 GT/s", 16), 12);
  EXPECT_EQ(pci_gbytes_per_s("32.0 GT/s PCIe", 16), 48);
  EXPECT_EQ(pci_gbytes_per_s("64.0 GT/s PCIe", 16), 96);
  EXPECT_NEAR(pci_gbytes_per_s("2.5 GT/s PCIe", 1).value_or(0), 0.1875, 1e-12);
  EXPECT_EQ(pci_gbytes_per_s("", 16), std::nullopt);
  EXPECT_EQ(pci_gbytes_per_s("32.0 GT/s PCIe", 0), std::nullopt);
  EXPECT_EQ(4 * nvlink_gbytes_per_s(80), 80);
  EXPECT_EQ(12 * nvlink_gbytes_per_s(80), 240);
  EXPECT_EQ(infiniband_mbit_per_s("4xHDR"), 200000);
  EXPECT_EQ(infiniband_mbit_per_s("4xNDR"), 400000);
  EXPECT_EQ(infiniband_mbit_per_s("4xWHAT"), std::nullopt);
  EXPECT_EQ(sm_of_pci_id("10de:2335"), 90);
  EXPECT_EQ(sm_of_pci_id("10de:1eb8"), 75);
  EXPECT_EQ(sm_of_pci_id("1002:740f"), std::nullopt);
}

}  // namespace
}  // namespace r1::launch
