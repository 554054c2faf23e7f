// `r1run probe` over three hosts (network namespaces, real mpirun daemons): the odd host is named, and so is a slow cable.
#include <fmt/format.h>
#include <unistd.h>

#include "launch/process.h"
#include "tests/e2e/support.h"

namespace r1::test {
namespace {

namespace fs = std::filesystem;

class ProbeOverHosts : public ::testing::Test {
 protected:
  void SetUp() override {
    if (geteuid() != 0) GTEST_SKIP() << "network namespaces need root";
    fs::copy_file(fs::path(R1RUN_BIN_DIR) / "r1run", dir_.path() / "r1run");
    fs::copy_file(fs::path(R1RUN_BIN_DIR) / "r1run-rank", dir_.path() / "r1run-rank");
    const Result r = rig("up");
    if (r.code != 0) GTEST_SKIP() << "no network namespaces here: " << r.output;
    for (int n = 1; n <= 3; ++n) show_interface(n, 200);
    std::ofstream(dir_.path() / "hostfile") << "rig1 slots=2\nrig2 slots=2\nrig3 slots=2\n";
  }
  void TearDown() override {
    if (!dir_.path().empty()) (void)rig("down");
  }
  [[nodiscard]] Result rig(const std::string& action) const {
    return run({"sh", R1RUN_SOURCE_DIR "/tests/launch/hosts_rig.sh", action, dir_.path().string()});
  }
  [[nodiscard]] std::string pid_of(int host) const {
    std::string pid;
    std::ifstream(dir_.path() / fmt::format("pid.{}", host)) >> pid;
    return pid;
  }
  /// What a host's kernel says of its network interface; namespaces share /sys with the machine otherwise.
  void show_interface(int host, int mbit_per_s) const {
    const fs::path eth0 = dir_.path() / fmt::format("net.{}", host) / "eth0";
    fs::create_directories(eth0);
    std::ofstream(eth0 / "speed") << mbit_per_s << '\n';
    std::ofstream(eth0 / "operstate") << "up\n";
    std::ofstream(eth0 / "type") << "1\n";
    const Result r = run({"nsenter", "-t", pid_of(host), "-m", "mount", "--bind", eth0.parent_path().string(), "/sys/class/net"});
    ASSERT_EQ(r.code, 0) << r.output;
  }
  [[nodiscard]] Result probe(const std::vector<std::string>& more) const {
    std::vector<std::string> argv{"nsenter", "-t", pid_of(1), "-n", "-u", "-i", "-m", (dir_.path() / "r1run").string(), "probe", "--hostfile",
                                  (dir_.path() / "hostfile").string()};
    argv.insert(argv.end(), more.begin(), more.end());
    auto env = mpi_environment();
    env.insert(env.end(), {{"OMPI_MCA_plm_rsh_agent", (dir_.path() / "agent.sh").string()},
                           {"OMPI_MCA_btl_tcp_if_include", "eth0"},
                           {"OMPI_MCA_oob_tcp_if_include", "eth0"}});
    return run(argv, 120, env);
  }
  TempDir dir_;
};

TEST_F(ProbeOverHosts, TheOddHostIsNamed) {
  Result r = probe({});
  EXPECT_EQ(r.code, 0) << r.output;
  EXPECT_NE(r.output.find("all 3 hosts are alike"), std::string::npos) << r.output;
  std::ofstream(dir_.path() / "net.3" / "eth0" / "speed") << "100\n";
  r = probe({"--json", (dir_.path() / "probe.json").string()});
  EXPECT_EQ(r.code, 0) << r.output;
  EXPECT_NE(r.output.find("rig3 is unlike rig1: NICs: 1 x Ethernet 0.1 Gbit/s"), std::string::npos) << r.output;
  const auto out = nlohmann::json::parse(bytes_of(dir_.path() / "probe.json"));
  EXPECT_EQ(out["hosts"].size(), 3u);
  EXPECT_EQ(out["warnings"].size(), 1u) << out["warnings"];
  // The file is a topology that a hostfile can name.
  std::ofstream(dir_.path() / "annotated") << "# r1run: topology=probe.json\nrig1 slots=2\nrig3 slots=2\n";
  const Result topo = run({(dir_.path() / "r1run").string(), "topo", "--hostfile", (dir_.path() / "annotated").string()});
  EXPECT_EQ(topo.code, 0) << topo.output;
  EXPECT_NE(topo.output.find("rig3"), std::string::npos) << topo.output;
}

TEST_F(ProbeOverHosts, ASlowCableIsNamed) {
  Result r = probe({"--measure"});
  EXPECT_EQ(r.code, 0) << r.output;
  EXPECT_EQ(r.output.find("warning: network"), std::string::npos) << "200 Mbit/s is less than these cables carry: " << r.output;
  for (const char* pair : {"rig1 - rig2", "rig1 - rig3", "rig2 - rig3"}) EXPECT_NE(r.output.find(pair), std::string::npos) << r.output;
  const Result slow = run({"nsenter", "-t", pid_of(3), "-n", "tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "40mbit", "burst", "64kb", "latency", "50ms"});
  if (slow.code != 0) GTEST_SKIP() << "this kernel cannot slow a cable down: " << slow.output;
  r = probe({"--measure"});
  EXPECT_EQ(r.code, 0) << r.output;
  EXPECT_NE(r.output.find("warning: network rig1 to rig3"), std::string::npos) << r.output;
  EXPECT_NE(r.output.find("warning: network rig2 to rig3"), std::string::npos) << r.output;
  EXPECT_EQ(r.output.find("warning: network rig1 to rig2"), std::string::npos) << r.output;
}

}  // namespace
}  // namespace r1::test
