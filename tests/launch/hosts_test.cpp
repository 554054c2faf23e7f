// Several hosts on one machine (network namespaces, real mpirun daemons on each): the launcher over
// a hostfile, faults on another host, a cut link. And the control channel that notices it, on its
// own.
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <fstream>

#include "hosts_rig.h"
#include "launch/control.h"
#include "launch/process.h"
#include "run_program.h"

namespace r1::launch::test {
namespace {

namespace fs = std::filesystem;

TEST(Control, AddressesOfAContactString) {
  EXPECT_EQ(addresses_of("77.0;tcp://10.0.0.1,192.168.0.7:41000;tcp6://[fd00::2]:58477"),
            (std::vector<std::string>{"10.0.0.1", "192.168.0.7"}));
  for (const char* bad : {"", "tcp://", "77.0;tcp6://[fd00::2]:5", "tcp://a.b:3", "tcp://:"})
    EXPECT_TRUE(addresses_of(bad).empty()) << bad;
}

/// Lets both ends work for a while.
void serve(ControlServer* server, std::vector<ControlClient*> clients, double seconds) {
  for (const double until = monotonic_s() + seconds; monotonic_s() < until; usleep(2000)) {
    server->service();
    for (auto* c : clients) c->service();
  }
}

TEST(Control, HeartbeatsBothWaysAndSilence) {
  ControlServer server;
  // The first address swallows or refuses the attempt; the second answers.
  ControlClient client({"127.0.0.1"}, server.port(), server.token(), "nodea", 0.2);
  serve(&server, {&client}, 0.3);
  ASSERT_EQ(server.last_heard().count("nodea"), 1u);
  EXPECT_LT(monotonic_s() - server.last_heard().at("nodea"), 0.15);
  EXPECT_GT(client.silence_s(), 0);
  EXPECT_LT(client.silence_s(), 0.15);
  usleep(250'000);  // neither end works: both fall silent
  EXPECT_GT(client.silence_s(), 0.2);
  EXPECT_GT(monotonic_s() - server.last_heard().at("nodea"), 0.2);
}

TEST(Control, StrangersAreDropped) {
  ControlServer server;
  ControlClient stranger({"127.0.0.1"}, server.port(), std::string(64, '0'), "mallory", 0.2);
  serve(&server, {&stranger}, 0.3);
  EXPECT_TRUE(server.last_heard().empty());
  EXPECT_EQ(stranger.silence_s(), 0);  // never heard: nothing is concluded

  const Fd raw(socket(AF_INET, SOCK_STREAM, 0));
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<uint16_t>(server.port()));
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ASSERT_EQ(connect(raw.get(), reinterpret_cast<sockaddr*>(&to), sizeof(to)), 0);
  const std::string garbage(100000, 'x');
  [[maybe_unused]] const ssize_t n =
      send(raw.get(), garbage.data(), garbage.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  ControlClient good({"127.0.0.1"}, server.port(), server.token(), "nodea", 0.2);
  serve(&server, {&good}, 0.3);
  EXPECT_EQ(server.last_heard().size(), 1u);
}

/// Three hosts with a bin/ whose rank program misbehaves on request; two ranks a host.
class ThreeHosts : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = rig_.start(); !why.empty()) GTEST_SKIP() << why;
    fs::create_directory(rig_.path() / "pids");
    fs::copy_file(fs::path(R1RUN_BIN_DIR) / "r1run", rig_.path() / "r1run");
    fs::copy_file(fs::path(R1RUN_BIN_DIR) / "launch_test_rank", rig_.path() / "r1run-rank");
  }
  /// Runs a command on the first host.
  [[nodiscard]] Result on_first_host(
      const std::vector<std::string>& command, const std::string& fault, int on, int steps,
      const std::function<void(pid_t, const std::string&)>& hook = {}) const {
    auto env = rig_.environment();
    env.insert(env.end(), {{"R1TEST_FAULT", fault},
                           {"R1TEST_ON", std::to_string(on)},
                           {"R1TEST_STEPS", std::to_string(steps)},
                           {"R1TEST_PIDS", (rig_.path() / "pids").string()}});
    return run(rig_.on(1, command), 60, env, hook);
  }
  [[nodiscard]] std::vector<std::string> job(const std::vector<std::string>& more = {}) const {
    std::vector<std::string> argv{
        (rig_.path() / "r1run").string(), "train", "--pp", "3", "--tp", "2"};
    argv.insert(argv.end(), more.begin(), more.end());
    return argv;
  }
  [[nodiscard]] int alive() const {
    int n = 0;
    for (const auto& e : fs::directory_iterator(rig_.path() / "pids")) {
      pid_t pid = 0;
      std::ifstream(e.path()) >> pid;
      const char state = pid > 0 ? process_state(pid) : '\0';
      n += state != '\0' && state != 'Z';
    }
    return n;
  }
  HostsRig rig_;
};

TEST_F(ThreeHosts, RunsOverAHostfile) {
  const std::string file = (rig_.path() / "hostfile").string();
  std::ofstream(file)
      << "# r1run: rack=one\r\nrig1 slots=2\r\nrig2 slots=2\r\nrig3 slots=2";  // CRLF, no final
                                                                               // newline
  const Result r = on_first_host(job({"--hostfile", file}), "", -2, 5);
  EXPECT_EQ(r.code, 0) << r.output;
  EXPECT_EQ(count(r.output, "done after 5 steps with 6 ranks"), 1) << r.output;
  EXPECT_EQ(count(r.output, "CRLF"), 1) << r.output;
}

TEST_F(ThreeHosts, KilledRankOnAnotherHostIsNamed) {
  double started = 0;
  const auto hook = [&](pid_t, const std::string&) {
    if (started == 0 && alive() == 6) started = monotonic_s();
  };
  const Result r = on_first_host(job({"--host", "rig1:2,rig2:2,rig3:2"}), "kill", 4, 5, hook);
  EXPECT_EQ(r.code, 75) << r.output;
  EXPECT_EQ(count(r.output, "FATAL"), 1) << r.output;
  EXPECT_EQ(count(r.output, "r1run: FATAL rank=4 host=rig3 "), 1) << r.output;
  EXPECT_EQ(alive(), 0);
}

// The same cause on all ranks of three hosts, with no launcher of ours to count them.
TEST_F(ThreeHosts, SharedCauseUnderBareMpirunIsSaidOnce) {
  const Result r =
      on_first_host({"mpirun", "-q", "-np", "6", "-x", "R1TEST_FAULT", "-x", "R1TEST_ON", "--host",
                     "rig1:2,rig2:2,rig3:2", (rig_.path() / "r1run").string(), "train"},
                    "bad-shard", -1, 5);
  EXPECT_EQ(r.code, 65) << r.output;
  EXPECT_EQ(count(r.output, "FATAL"), 1) << r.output;
}

TEST_F(ThreeHosts, DoctorLooksAtEveryHostThroughOneMpirun) {
  const Result r =
      on_first_host({(rig_.path() / "r1run").string(), "doctor", "--host", "rig1:2,rig2:2,rig3:2",
                     "--json=" + (rig_.path() / "d.json").string()},
                    "", -2, 0);
  EXPECT_LT(r.code, 4) << r.output;
  EXPECT_EQ(count(r.output, "3 hosts: "), 1) << r.output;
  EXPECT_EQ(count(r.output, "r1run-rank"), 1 + count(r.output, "/r1run-rank")) << r.output;
  EXPECT_EQ(count(r.output, "no report came"), 0) << r.output;
  std::ifstream in(rig_.path() / "d.json");
  const std::string json{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  for (const char* host : {"rig1", "rig2", "rig3"})
    EXPECT_EQ(count(json, std::string("\"host\": \"") + host + "\""), 1) << json;
}

TEST_F(ThreeHosts, CutHostIsNamedAndNobodyStays) {
  double cut_at = 0;
  const auto hook = [&](pid_t, const std::string&) {
    if (cut_at != 0 || alive() < 6) return;
    usleep(1'000'000);
    ASSERT_EQ(rig_.cut(3).code, 0);
    cut_at = monotonic_s();
  };
  const Result r = on_first_host(job({"--peer-timeout", "2s", "--host", "rig1:2,rig2:2,rig3:2"}),
                                 "", -2, 1000000, hook);
  ASSERT_GT(cut_at, 0) << r.output;
  EXPECT_EQ(r.code, 75) << r.output;
  EXPECT_EQ(count(r.output, "r1run: FATAL host=rig3 "), 1) << r.output;
  EXPECT_EQ(count(r.output, "FATAL"), 1) << r.output;
  EXPECT_LT(monotonic_s() - cut_at, 10);  // the figure is 2.1 s; a loaded machine gets room
  for (int i = 0; i < 100 && alive() > 0; ++i) usleep(100'000);
  EXPECT_EQ(alive(), 0);
}

}  // namespace
}  // namespace r1::launch::test
