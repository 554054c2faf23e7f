// nvidia-smi topo tables that users posted.
#include <gtest/gtest.h>

#include "runtime/core/error.h"
#include "tests/launch/topology/support.h"

namespace r1::launch {
namespace {

using namespace testing;

TEST(NvidiaSmi, LevanteTheReferenceNode) {
  const HostTopology host = host_of("nvidia-smi/levante-4xA100-80GB-2xEPYC7763-topo-mp.txt");
  ASSERT_EQ(host.gpus.size(), 4u);
  EXPECT_FALSE(host.nvlink_known) << "-mp leaves NVLink out";
  EXPECT_EQ(row(host.gpu_gpu[0]), "X SYS SYS SYS");
  EXPECT_EQ(near(host, 0), "");
  EXPECT_EQ(near(host, 1), "mlx5_0");
  EXPECT_EQ(near(host, 2), "mlx5_1");
  EXPECT_EQ(near(host, 3), "");
  EXPECT_EQ(row(host.gpu_nic[1]), "PIX SYS");
  const std::vector<int> numa = {3, 1, 7, 5};
  for (size_t g = 0; g < 4; ++g) EXPECT_EQ(numa_id(host, g), numa[g]);
  EXPECT_EQ(host.cpus_near(0).list(), "48-63,176-191");
}

TEST(NvidiaSmi, Pleiades) {
  const HostTopology host = host_of("nvidia-smi/pleiades-8xA100-2xEPYC7763-1nic.txt");
  ASSERT_EQ(host.gpus.size(), 8u);
  EXPECT_TRUE(host.nvlink_known);
  for (size_t g = 0; g < 8; ++g) {
    for (size_t o = 0; o < 8; ++o) EXPECT_EQ(cell(host.gpu_gpu[g][o]), g == o ? "X" : "NV12");
    EXPECT_EQ(row(host.gpu_nic[g]), g == 2 || g == 3 ? "PXB" : "SYS");
    EXPECT_EQ(near(host, g), g == 2 || g == 3 ? "mlx5_0" : "");
    EXPECT_EQ(numa_id(host, g), (std::vector<int>{3, 1, 7, 5})[g / 2]);
  }
}

TEST(NvidiaSmi, LeonardoAffinityOfAConfinedJobIsNotUsed) {
  const HostTopology host = host_of("nvidia-smi/leonardo-4xA100-nv4-4nic.txt");
  ASSERT_EQ(host.gpus.size(), 4u);
  for (size_t g = 0; g < 4; ++g) {
    EXPECT_EQ(near(host, g), fmt::format("mlx5_{}", g));
    EXPECT_EQ(host.gpu_nic[g][g].path_class, PathClass::kPxb);
    EXPECT_TRUE(host.cpus_near(static_cast<int>(g)).empty());
    EXPECT_FALSE(host.gpus[g].numa);
    for (size_t o = 0; o < 4; ++o) EXPECT_EQ(cell(host.gpu_gpu[g][o]), g == o ? "X" : "NV4");
  }
  EXPECT_FALSE(host.warnings.empty());
}

TEST(NvidiaSmi, SnelliusAllNicsOnOneSocket) {
  const HostTopology host = host_of("nvidia-smi/snellius-4xA100-nv4-nics-one-socket.txt");
  for (size_t g = 0; g < 4; ++g) {
    EXPECT_EQ(row(host.gpu_nic[g]), g < 2 ? "NODE NODE NODE NODE" : "SYS SYS SYS SYS");
    EXPECT_EQ(near(host, g), g < 2 ? "mlx5_0 mlx5_1 mlx5_2 mlx5_3" : "");
  }
  EXPECT_EQ(host.nic_nic[2][3].path_class, PathClass::kPix);
  EXPECT_EQ(host.nic_nic[0][1].path_class, PathClass::kNode);
  EXPECT_EQ(host.nvlink_domains().size(), 1u);
}

TEST(NvidiaSmi, DgxA100StorageNicsAreNotChosen) {
  const HostTopology host = host_of("nvidia-smi/dgx-a100-8gpu-10nic.txt");
  ASSERT_EQ(host.gpus.size(), 8u);
  ASSERT_EQ(host.nics.size(), 10u);
  for (size_t g = 0; g < 8; ++g) {
    const size_t first = g / 2 * 2;
    EXPECT_EQ(near(host, g), fmt::format("mlx5_{} mlx5_{}", first, first + 1));
    EXPECT_EQ(host.nccl_nic[g], static_cast<int>(g)) << "two GPUs share two NICs: one each";
    EXPECT_EQ(numa_id(host, g), (std::vector<int>{3, 1, 7, 5})[g / 2]);
    EXPECT_EQ(host.gpu_nic[g][8].path_class, PathClass::kSys);
  }
}

TEST(NvidiaSmi, HopperOddGpusTie) {
  const HostTopology host = host_of("nvidia-smi/hopper-8gpu-nv18-8nic.txt");
  EXPECT_EQ(near(host, 0), "mlx5_0 mlx5_1");
  EXPECT_EQ(near(host, 1), "mlx5_0 mlx5_1 mlx5_2 mlx5_3");
  EXPECT_EQ(near(host, 6), "mlx5_6 mlx5_7");
  EXPECT_EQ(near(host, 7), "mlx5_4 mlx5_5 mlx5_6 mlx5_7");
  EXPECT_EQ(cell(host.gpu_gpu[0][7]), "NV18");
  EXPECT_EQ(cell(host.gpu_nic[1][0]), "NODE") << "nvidia-smi's own word is kept";
}

TEST(NvidiaSmi, Rtx4090HasNoNvlinkAndNoNic) {
  const HostTopology host = host_of("nvidia-smi/rtx4090-8gpu-pcie-only.txt");
  EXPECT_TRUE(host.nvlink_known) << "the legend of -m speaks of NVLink";
  EXPECT_TRUE(host.nics.empty());
  for (size_t g = 0; g < 8; ++g)
    for (size_t o = 0; o < 8; ++o)
      EXPECT_EQ(cell(host.gpu_gpu[g][o]), g == o ? "X" : g / 4 == o / 4 ? "NODE" : "SYS");
  EXPECT_EQ(host.nvlink_domains().size(), 8u);
}

TEST(NvidiaSmi, Rtx5090WithTabs) {
  const HostTopology host = host_of("nvidia-smi/rtx5090-2gpu-phb-tabs.txt");
  EXPECT_EQ(row(host.gpu_gpu[0]), "X PHB");
  EXPECT_EQ(host.cpus_near(1).list(), "0-63");
  EXPECT_EQ(numa_id(host, 1), 0);
  EXPECT_FALSE(host.gpus[0].numa_id_of_memory);
}

TEST(NvidiaSmi, UnderlinedHeaderOfOneGpu) {
  const HostTopology host = host_of("one-h200-vm/h200-vm-topo-m.txt");
  ASSERT_EQ(host.gpus.size(), 1u);
  EXPECT_EQ(host.cpus_near(0).list(), "0-15");
  EXPECT_EQ(numa_id(host, 0), 0);
}

TEST(NvidiaSmi, SaysWhatIsWrong) {
  const auto message = [](const std::string& text) -> std::string {
    try {
      (void)read_nvidia_smi(text, "t.txt");
    } catch (const DataError& e) {
      return e.what();
    }
    return "";
  };
  EXPECT_NE(message("\tGPU0\tGPU1\nGPU0\t X \tNV4\n").find("GPU1, but it has no row"),
            std::string::npos);
  EXPECT_NE(message("\tGPU0\tGPU1\nGPU0\t X \n").find("t.txt:2: the row of GPU0 has 1 cells"),
            std::string::npos);
  EXPECT_NE(message("hello\n").find("no header line"), std::string::npos);
  EXPECT_NE(message("\tGPU0\tGPU0\n").find("comes twice"), std::string::npos);
  const HostTopology odd =
      read_nvidia_smi("\tGPU0\tGPU1\r\nGPU0\t X \tWAT\r\nGPU1\tSYS\t X \r\n", "t.txt");
  EXPECT_EQ(cell(odd.gpu_gpu[0][1]), "?");
  EXPECT_EQ(odd.warnings.size(), 2u) << "the unknown word, and the asymmetry";
}

TEST(NvidiaSmi, MissingColumnsAreSaid) {
  const HostTopology host = read_nvidia_smi(
      "WARNING: 76 NICs found in the topology, only displaying 56\n\tGPU0\tNIC0\nGPU0\t X "
      "\tPIX\nNIC0\tPIX\t X \n",
      "t.txt");
  ASSERT_EQ(host.warnings.size(), 1u);
  EXPECT_EQ(near(host, 0), "NIC0") << "no legend: its own name";
}

}  // namespace
}  // namespace r1::launch
