// hwloc XML of real machines.
#include <gtest/gtest.h>

#include <set>

#include "launch/topology/json.h"
#include "runtime/core/error.h"
#include "tests/launch/topology/support.h"

namespace r1::launch {
namespace {

using namespace testing;

/// In file order: POWER9 numbers its packages 0 and 8.
int package_id(const HostTopology& host, size_t gpu) {
  const auto numa = host.gpus.at(gpu).numa;
  return numa ? host.numa_nodes.at(static_cast<size_t>(*numa)).package.value_or(-1) : -1;
}
int threads(const HostTopology& host) {
  int n = 0;
  for (const Core& core : host.cores) n += core.cpus.count();
  return n;
}

TEST(HwlocXml, Dgx2TrunksAreNotInTheMatrix) {
  const HostTopology host = host_of("hwloc/nvidiaDGX2.xml");
  ASSERT_EQ(host.gpus.size(), 16u);
  EXPECT_EQ(host.packages.size(), 2u);
  EXPECT_EQ(host.numa_nodes.size(), 2u);
  EXPECT_EQ(threads(host), 4);
  EXPECT_EQ(host.nvswitches.size(), 12u);
  EXPECT_TRUE(host.nics.empty());
  EXPECT_TRUE(host.nvlink_known);
  const std::set<std::string> first = {"0000:61:00.0", "0000:62:00.0", "0000:63:00.0",
                                       "0000:65:00.0", "0000:66:00.0", "0000:67:00.0"};
  const std::set<std::string> second = {"0000:c1:00.0", "0000:c2:00.0", "0000:c3:00.0",
                                        "0000:c5:00.0", "0000:c6:00.0", "0000:c7:00.0"};
  std::vector<std::set<std::string>> switches(16);
  for (const NvLink& link : host.nvlinks) {
    ASSERT_EQ(link.target, NvLink::Target::kSwitch);
    EXPECT_EQ(link.count, 1);
    switches[static_cast<size_t>(link.gpu)].insert(
        host.nvswitches[static_cast<size_t>(link.target_index)].busid);
  }
  for (size_t g = 0; g < 16; ++g) {
    EXPECT_EQ(host.gpus[g].pci_id, "10de:1db8");
    EXPECT_EQ(switches[g], g < 8 ? first : second) << g;
    EXPECT_EQ(package_id(host, g), g < 8 ? 0 : 1);
    EXPECT_EQ(host.gpus[g].nvswitch_board, g < 8 ? 0 : 1);
    for (size_t o = 0; o < 16; ++o) {
      if (g == o) continue;
      // On one board six links; across, NVLink too, of unknown width.
      EXPECT_EQ(cell(host.gpu_gpu[g][o]), g / 8 == o / 8 ? "NV6" : "NVL") << g << " " << o;
      EXPECT_EQ(host.gpu_gpu[g][o].gbytes_per_s.has_value(), g / 8 == o / 8);
    }
  }
  EXPECT_EQ(host.gpu_gpu[0][1].gbytes_per_s, 120) << "six NVLink 2 as NCCL counts them";
}

TEST(HwlocXml, Version3IsRefused) {
  try {
    (void)read_topology(data_file("hwloc/nvidiaDGX2-xmlv3.xml"), "v3.xml");
    FAIL();
  } catch (const DataError& e) {
    EXPECT_NE(std::string(e.what()).find("hwloc XML format 3.0"), std::string::npos) << e.what();
  }
}

TEST(HwlocXml, LassenPower9) {
  const HostTopology host = host_of("hwloc/coral-lassen.xml");
  EXPECT_EQ(host.packages.size(), 2u);
  EXPECT_EQ(host.cores.size(), 40u);
  EXPECT_EQ(threads(host), 160);
  ASSERT_EQ(host.numa_nodes.size(), 2u);
  EXPECT_EQ(host.numa_nodes[1].os_index, 8) << "operating-system numbers have gaps";
  ASSERT_EQ(host.gpus.size(), 4u);
  EXPECT_FALSE(host.nvlink_known);
  for (size_t g = 0; g < 4; ++g) {
    EXPECT_EQ(package_id(host, g), g < 2 ? 0 : 1);
    EXPECT_EQ(near(host, g), g < 2 ? "mlx5_0 mlx5_1" : "mlx5_2 mlx5_3");
    EXPECT_EQ(host.gpu_nic[g][static_cast<size_t>(host.near_nics[g][0])].path_class,
              PathClass::kPhb);
  }
  EXPECT_EQ(cell(host.gpu_gpu[0][2]), "SYS");
}

TEST(HwlocXml, Cts1PascalOneSwitch) {
  const HostTopology host = host_of("hwloc/cts1-pascal.xml");
  EXPECT_EQ(host.packages.size(), 2u);
  EXPECT_EQ(host.cores.size(), 36u);
  EXPECT_EQ(threads(host), 72);
  ASSERT_EQ(host.gpus.size(), 2u);
  EXPECT_EQ(host.gpus[0].busid, "0000:04:00.0");
  EXPECT_EQ(host.gpus[1].busid, "0000:07:00.0");
  EXPECT_EQ(host.gpus[0].uuid, "GPU-affad486-897e-9778-18e8-26a7127927a8");
  EXPECT_EQ(host.gpus[0].memory_bytes, uint64_t{16671616} * 1024);
  for (size_t g = 0; g < 2; ++g) {
    EXPECT_EQ(near(host, g), "mlx5_0");
    EXPECT_EQ(host.gpu_nic[g][static_cast<size_t>(host.near_nics[g][0])].path_class,
              PathClass::kPix);
    EXPECT_EQ(package_id(host, g), 0);
  }
  EXPECT_EQ(cell(host.gpu_gpu[0][1]), "PIX");
  EXPECT_NEAR(host.gpu_gpu[0][1].gbytes_per_s.value_or(0), 12, 1e-4)
      << "PCI 3.0 x16 as NCCL counts it";
}

TEST(HwlocXml, G4dnMetal) {
  const HostTopology host = host_of("hwloc/g4dnmetal.xml");
  ASSERT_EQ(host.gpus.size(), 8u);
  EXPECT_EQ(host.cores.size(), 48u);
  EXPECT_EQ(threads(host), 96);
  for (size_t g = 0; g < 8; ++g) {
    EXPECT_EQ(package_id(host, g), g < 4 ? 0 : 1);
    EXPECT_EQ(near(host, g), g < 4 ? "" : "rdmap197s0");
    EXPECT_EQ(host.gpus[g].sm, 75);
  }
  std::set<std::string> names;
  for (const Nic& nic : host.nics) {
    names.insert(nic.name);
    EXPECT_EQ(nic.rdma, nic.name == "rdmap197s0");
  }
  EXPECT_EQ(names, (std::set<std::string>{"rdmap197s0", "eth0"}));
}

TEST(HwlocXml, GpusWithoutDriverAndAVgaThatIsNone) {
  const HostTopology host = host_of("hwloc/24em64t-2n6c2t-pci.xml");
  ASSERT_EQ(host.gpus.size(), 3u) << "the VGA 1002:515e is no compute GPU";
  EXPECT_EQ(host.gpus[0].busid, "0000:06:00.0");
  EXPECT_EQ(host.gpus[1].busid, "0000:11:00.0");
  EXPECT_EQ(host.gpus[2].busid, "0000:14:00.0");
  EXPECT_EQ(package_id(host, 0), 0);
  EXPECT_EQ(package_id(host, 1), 1);
  EXPECT_EQ(package_id(host, 2), 1);
  ASSERT_FALSE(host.nics.empty());
  EXPECT_EQ(host.nics[0].name, "mlx4_0") << "class 0c06 is InfiniBand too";
  EXPECT_EQ(host.nics[0].busid, "0000:05:00.0");
  EXPECT_EQ(host.nics[0].netdev, "ib0");
  EXPECT_EQ(near(host, 0), "mlx4_0");
  EXPECT_EQ(near(host, 1), "");
}

TEST(HwlocXml, TwoEpyc7763) {
  const HostTopology host = host_of("hwloc/AMD-19h-Zen3-2xEpyc-7763.xml");
  EXPECT_EQ(host.packages.size(), 2u);
  EXPECT_EQ(host.numa_nodes.size(), 2u);
  EXPECT_EQ(host.cores.size(), 128u);
  EXPECT_EQ(threads(host), 128);
  EXPECT_TRUE(host.gpus.empty());
  EXPECT_FALSE(host.nics_known) << "no I/O in the file is not: no NIC";
}

TEST(HwlocXml, GpuMemoryIsNoPlaceForRanks) {
  const HostTopology host = read_hwloc_xml(
      R"(<topology version="2.0"><object type="Machine" nodeset="0x5" cpuset="0xf"><object type="Package" os_index="0" cpuset="0xf" nodeset="0x5">
      <object type="NUMANode" os_index="0" cpuset="0xf" nodeset="0x1" local_memory="100"/>
      <object type="NUMANode" os_index="2" subtype="GPUMemory" cpuset="0xf" nodeset="0x4" local_memory="1000"/>
      <object type="Core" os_index="0" cpuset="0xf" nodeset="0x5"><object type="PU" os_index="0" cpuset="0x1"/></object>
      </object></object></topology>)",
      "t");
  ASSERT_EQ(host.numa_nodes.size(), 2u);
  EXPECT_FALSE(host.numa_nodes[0].device_memory);
  EXPECT_TRUE(host.numa_nodes[1].device_memory);
  EXPECT_EQ(host.memory_bytes, 100u);
  EXPECT_EQ(host.cores.at(0).numa, 0);
}

TEST(Json, EveryMapComesBack) {
  for (const char* file :
       {"nccl/oci-h100-topology.xml", "nccl/azure-ndv4-topo.xml", "nccl/azure-ncv4-topo.xml",
        "hwloc/nvidiaDGX2.xml", "hwloc/coral-lassen.xml", "hwloc/g4dnmetal.xml",
        "nvidia-smi/dgx-a100-8gpu-10nic.txt", "one-h200-vm/h200-vm-hwloc.xml",
        "ib/ibnetdiscover-ndr-leafspine.out", "slurm/topology-block-32.conf"}) {
    const Topology topology = read_topology(data_file(file), file);
    const std::string text = to_json(topology);
    EXPECT_EQ(detect_format(text), SourceFormat::kJson);
    EXPECT_EQ(to_json(topology_from_json(text, "again")), text) << file;
  }
}

TEST(Json, HostsThatLookAlikeShareOneEntry) {
  Topology topology = read_topology(data_file("nccl/azure-ndv4-topo.xml"), "ndv4");
  for (int i = 0; i < 1000; ++i)
    topology.hosts.push_back({fmt::format("n{}", i), topology.hosts[0].host});
  const Topology again = topology_from_json(to_json(topology), "again");
  ASSERT_EQ(again.hosts.size(), 1001u);
  EXPECT_EQ(again.hosts[0].host, again.hosts[1000].host);
  EXPECT_EQ(again.find("n7"), again.hosts[0].host.get());
}

TEST(Json, IndicesThatLeadNowhereAreRefused) {
  const auto message = [](const std::string& text) -> std::string {
    try {
      (void)topology_from_json(text, "t");
    } catch (const DataError& e) {
      return e.what();
    }
    return "";
  };
  EXPECT_NE(message("{}").find("not the output of r1run"), std::string::npos);
  EXPECT_NE(message("[").find("not JSON"), std::string::npos);
  EXPECT_NE(
      message(
          R"({"r1run_topology":1,"kinds":[{"gpus":[{"index":0,"numa":0}],"gpu_gpu":[[{}]],"gpu_nic":[[]]}]})")
          .find("\"numa\" is 0"),
      std::string::npos);
  EXPECT_NE(message(R"({"r1run_topology":1,"hosts":[{"name":"a","kind":0}]})").find("kind"),
            std::string::npos);
  EXPECT_NE(message(R"({"r1run_topology":7})").find("version 7"), std::string::npos);
}

}  // namespace
}  // namespace r1::launch
