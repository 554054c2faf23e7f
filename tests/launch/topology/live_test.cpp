// The live map: this machine's CPUs, a sysfs tree as InfiniBand hosts have it, and a library that
// answers as NVML does.
#include "launch/topology/live.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>

#include "launch/process.h"
#include "launch/topology/paths.h"
#include "tests/launch/topology/support.h"

namespace r1::launch {
namespace {

using namespace testing;
namespace fs = std::filesystem;

TEST(Live, ThisMachine) {
  const HostTopology host = live_topology();
  EXPECT_EQ(host.hostname, host_name());
  ASSERT_FALSE(host.cores.empty());
  ASSERT_FALSE(host.numa_nodes.empty());
  EXPECT_GT(host.memory_bytes.value_or(0), uint64_t{1} << 28);
  CpuSet all;
  for (const Core& core : host.cores) all.insert(core.cpus);
  cpu_set_t mine;
  CPU_ZERO(&mine);
  ASSERT_EQ(sched_getaffinity(0, sizeof(mine), &mine), 0);
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
    EXPECT_TRUE(!CPU_ISSET(cpu, &mine) || all.contains(cpu)) << cpu;
  EXPECT_TRUE(host.nics_known);
  EXPECT_EQ(host.gpu_gpu.size(), host.gpus.size());
}

/// The fsroot of a POWER9 whose GPUs show their memory as NUMA nodes, read by hwloc itself.
TEST(Live, GpuMemoryNodesOfPower9) {
  const fs::path root = fs::temp_directory_path() / fmt::format("r1run-fsroot-{}", getpid());
  fs::create_directories(root);
  const std::string archive = R1RUN_TEST_DATA "/topology/hwloc/nvidiagpunumanodes.tar.bz2";
  const std::string unpack = fmt::format("tar -xjf {} -C {} 2>/dev/null", archive, root.string());
  if (std::system(unpack.c_str()) != 0) {
    fs::remove_all(root);
    GTEST_SKIP() << "tar cannot unpack bzip2 here";
  }
  fs::path inner = root;
  for (const auto& entry : fs::directory_iterator(root))
    if (entry.is_directory() && fs::exists(entry.path() / "sys")) inner = entry.path();
  setenv("HWLOC_FSROOT", inner.c_str(), 1);
  setenv("HWLOC_COMPONENTS", "linux,stop", 1);
  setenv("HWLOC_THISSYSTEM", "0", 1);
  const HostTopology host = live_topology({.sysfs = "/nonexistent", .nvml = ""});
  for (const char* name : {"HWLOC_FSROOT", "HWLOC_COMPONENTS", "HWLOC_THISSYSTEM"}) unsetenv(name);
  fs::remove_all(root);
  std::vector<int> cpu_nodes;
  for (const NumaNode& node : host.numa_nodes)
    if (!node.device_memory) cpu_nodes.push_back(node.os_index);
  EXPECT_EQ(cpu_nodes, (std::vector<int>{0, 8}));
  EXPECT_EQ(host.cores.size(), 8u);
  int threads = 0;
  for (const Core& core : host.cores) threads += core.cpus.count();
  EXPECT_EQ(threads, 32);
  EXPECT_EQ(host.gpus.size(), 6u);
}

class Sysfs : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::temp_directory_path() / fmt::format("r1run-sysfs-{}", getpid());
    fs::remove_all(root_);
    fs::create_directories(root_ / "class" / "infiniband");
    fs::create_directories(root_ / "class" / "net");
  }
  void TearDown() override { fs::remove_all(root_); }
  void write(const fs::path& file, const std::string& text) {
    fs::create_directories((root_ / file).parent_path());
    std::ofstream(root_ / file) << text << '\n';
  }
  /// A device of a class, with its PCI device behind it.
  void device(const std::string& kind, const std::string& name, const std::string& busid) {
    fs::create_directories(root_ / "devices" / "pci0000:40" / busid / "net");
    fs::create_directories(root_ / "class" / kind / name);
    fs::create_directory_symlink(root_ / "devices" / "pci0000:40" / busid,
                                 root_ / "class" / kind / name / "device");
  }
  fs::path root_;
};

TEST_F(Sysfs, InfiniBandRoceAndEthernet) {
  device("infiniband", "mlx5_0", "0000:41:00.0");
  write("class/infiniband/mlx5_0/node_guid", "0c42:a103:0065:4c8e");
  write("class/infiniband/mlx5_0/ports/1/rate", "200 Gb/sec (4X HDR)");
  write("class/infiniband/mlx5_0/ports/1/state", "4: ACTIVE");
  write("class/infiniband/mlx5_0/ports/1/link_layer", "InfiniBand");
  write("class/infiniband/mlx5_0/ports/1/gids/0", "fe80:0000:0000:0000:0c42:a103:0065:4c8f");
  write("devices/pci0000:40/0000:41:00.0/net/ib0/type", "32");
  device("net", "ib0", "0000:41:00.0");
  device("infiniband", "mlx5_1", "0000:42:00.0");
  write("class/infiniband/mlx5_1/ports/1/rate", "100 Gb/sec (4X EDR)");
  write("class/infiniband/mlx5_1/ports/1/state", "1: DOWN");
  write("class/infiniband/mlx5_1/ports/1/link_layer", "Ethernet");
  device("net", "eno1", "0000:01:00.0");
  write("class/net/eno1/speed", "25000");
  write("class/net/eno1/operstate", "up");
  write("class/net/eno1/type", "1");
  device("net", "eno2", "0000:01:00.1");
  write("class/net/eno2/speed", "-1");
  write("class/net/lo/operstate", "unknown");
  write("class/net/docker0/operstate", "up");
  HostTopology host;
  add_sysfs_nics(host, root_.string());
  ASSERT_EQ(host.nics.size(), 4u);
  const Nic& ib = host.nics[0];
  EXPECT_EQ(ib.name, "mlx5_0");
  EXPECT_EQ(ib.netdev, "ib0");
  EXPECT_EQ(ib.rate_mbit_per_s, 200000);
  EXPECT_EQ(ib.active, true);
  EXPECT_EQ(ib.link_layer, LinkLayer::kInfiniBand);
  EXPECT_EQ(ib.guid, "0c42a10300654c8e");
  EXPECT_EQ(ib.port_guid, "0c42a10300654c8f");
  EXPECT_EQ(ib.busid, "0000:41:00.0");
  EXPECT_EQ(host.nics[1].active, false);
  EXPECT_EQ(host.nics[1].link_layer, LinkLayer::kEthernet) << "RoCE";
  EXPECT_EQ(host.nics[2].name, "eno1");
  EXPECT_EQ(host.nics[2].rate_mbit_per_s, 25000);
  EXPECT_FALSE(host.nics[2].rdma);
  EXPECT_EQ(host.nics[3].rate_mbit_per_s, std::nullopt) << "-1 is unknown";
}

TEST(Sysfs_, NothingThereIsUnknown) {
  HostTopology host;
  add_sysfs_nics(host, "/nonexistent");
  EXPECT_FALSE(host.nics_known);
  EXPECT_EQ(host.warnings.size(), 1u);
}

HostTopology with_nvml(const char* mode) {
  setenv("R1RUN_FAKE_NVML", mode, 1);
  HostTopology host;
  host.numa_nodes.push_back({.os_index = 0});
  // hwloc saw the GPUs already, in another order.
  for (const char* busid : {"0000:03:00.0", "0000:01:00.0"})
    host.gpus.push_back({.index = -1, .busid = busid, .numa = 0});
  add_nvml(host, R1RUN_BIN_DIR "/libfake_nvml.so");
  resolve_paths(host);
  unsetenv("R1RUN_FAKE_NVML");
  return host;
}

TEST(Nvml, FourA100) {
  const HostTopology host = with_nvml("");
  ASSERT_EQ(host.gpus.size(), 4u);
  EXPECT_TRUE(host.nvlink_known);
  for (size_t g = 0; g < 4; ++g) {
    EXPECT_EQ(host.gpus[g].index, static_cast<int>(g));
    EXPECT_EQ(host.gpus[g].name, "NVIDIA A100-SXM4-80GB");
    EXPECT_EQ(host.gpus[g].busid, fmt::format("0000:0{}:00.0", g + 1));
    EXPECT_EQ(host.gpus[g].pci_id, "10de:20b2");
    EXPECT_EQ(host.gpus[g].sm, 80);
    EXPECT_EQ(host.gpus[g].mig_enabled, false);
    for (size_t o = 0; o < 4; ++o) EXPECT_EQ(cell(host.gpu_gpu[g][o]), g == o ? "X" : "NV4");
  }
  EXPECT_EQ(host.gpu_gpu[0][3].gbytes_per_s, 80);
  EXPECT_EQ(host.gpus[0].ecc, true);
  EXPECT_EQ(host.gpus[3].ecc, std::nullopt);
  EXPECT_TRUE(host.gpus[0].throttle_reasons.empty()) << "idle slows nothing down";
  EXPECT_EQ(host.gpus[2].throttle_reasons, std::vector<std::string>{"hardware thermal slowdown"});
}

TEST(Nvml, LinksThatLeadToThemselvesAreUnknown) {
  const HostTopology host = with_nvml("hidden");
  EXPECT_FALSE(host.nvlink_known);
  EXPECT_TRUE(host.nvlinks.empty());
  ASSERT_FALSE(host.warnings.empty());
  EXPECT_NE(host.warnings.back().find("48 active NVLinks"), std::string::npos)
      << host.warnings.back();
}

TEST(Nvml, MigInstancesByUuid) {
  const HostTopology host = with_nvml("mig");
  EXPECT_EQ(host.gpus[0].mig_enabled, true);
  ASSERT_EQ(host.gpus[0].mig.size(), 2u);
  EXPECT_EQ(host.gpus[0].mig[1].uuid, "MIG-5");
  EXPECT_EQ(host.gpus[0].mig[0].profile, "3g.40gb");
  EXPECT_EQ(host.gpus[0].mig[0].memory_bytes, 42949672960u);
}

TEST(Nvml, AbsentOrBrokenIsSaid) {
  HostTopology host;
  host.gpus.resize(1);
  EXPECT_FALSE(add_nvml(host, "libno-such-library.so.1"));
  EXPECT_EQ(host.warnings.size(), 1u);
  setenv("R1RUN_FAKE_NVML", "broken", 1);
  EXPECT_FALSE(add_nvml(host, R1RUN_BIN_DIR "/libfake_nvml.so"));
  unsetenv("R1RUN_FAKE_NVML");
  EXPECT_NE(host.warnings.back().find("Driver Not Loaded"), std::string::npos);
  EXPECT_FALSE(host.nvlink_known);
}

}  // namespace
}  // namespace r1::launch
