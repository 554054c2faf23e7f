// Several hosts on one machine (network namespaces, real mpirun daemons on each): the launcher over
// a hostfile, faults on another host, a cut link. And the control channel that notices it, on its
// own.
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <fstream>
#include <map>

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
  /// Times of a fault's course, in seconds after it; -1: not seen.
  struct Course {
    Result result;
    double cause = -1, ended = -1, gone = -1;
  };
  /// Runs six ranks that would go on for ever; half a second after all are up `fault` happens.
  [[nodiscard]] Course course(const std::vector<std::string>& more, const std::function<void()>& fault) const {
    Course c;
    double up = 0, at = 0, cause = 0;
    std::vector<std::string> args{"--host", "rig1:2,rig2:2,rig3:2"};
    args.insert(args.end(), more.begin(), more.end());
    c.result = on_first_host(job(args), "", -2, 1000000, [&](pid_t, const std::string& output) {
      const double now = monotonic_s();
      if (up == 0 && alive() == 6) up = now;
      if (at == 0 && up > 0 && now - up > 0.5) {
        fault();
        at = monotonic_s();
      }
      if (cause == 0 && at > 0 && output.find("r1run: FATAL") != std::string::npos) cause = now;
    });
    if (at == 0) return c;
    c.ended = monotonic_s() - at;
    if (cause > 0) c.cause = cause - at;
    for (const double limit = at + 40; monotonic_s() < limit && !rig_.processes().empty();) usleep(20'000);
    if (rig_.processes().empty()) c.gone = monotonic_s() - at;
    std::printf("seconds after the fault: cause %.2f, launcher ended %.2f, nobody left %.2f\n", c.cause, c.ended, c.gone);
    return c;
  }
  [[nodiscard]] pid_t pid_of(int rank) const {
    pid_t pid = 0;
    std::ifstream(rig_.path() / "pids" / std::to_string(rank)) >> pid;
    return pid;
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

// A hostfile's topology reaches the ranks: each is bound to the cores of its place, on every host.
TEST_F(ThreeHosts, RanksAreBoundWhereTheTopologySays) {
  if (sysconf(_SC_NPROCESSORS_ONLN) < 2) GTEST_SKIP() << "one CPU: nothing to choose";
  const std::string r1run = (rig_.path() / "r1run").string();
  ASSERT_EQ(run({r1run, "topo", "--json", (rig_.path() / "here.json").string()}).code, 0);
  const std::string file = (rig_.path() / "hostfile").string();
  std::ofstream(file) << "# r1run: topology=here.json\nrig1 slots=2\nrig2 slots=2\nrig3 slots=2\n";
  const Result r = on_first_host(job({"--hostfile", file}), "", -2, 5);
  ASSERT_EQ(r.code, 0) << r.output;
  EXPECT_EQ(count(r.output, "not bound"), 0) << r.output;
  std::map<std::string, int> users;
  for (int rank = 0; rank < 6; ++rank) {
    std::ifstream in(rig_.path() / "pids" / std::to_string(rank));
    std::string pid, cpus;
    in >> pid;
    std::getline(in, cpus);
    ++users[cpus];
  }
  EXPECT_EQ(users.size(), 2U) << "two ranks a host, each with cores of its own";
  for (const auto& [cpus, n] : users) EXPECT_EQ(n, 3) << cpus;

  // A map of another machine: said, and the job runs unbound.
  std::ofstream(file) << "# r1run: topology=" << R1RUN_SOURCE_DIR
                      << "/hostfiles/topologies/a100x4.xml\nrig1 slots=2\nrig2 slots=2\nrig3 slots=2\n";
  const Result wrong = on_first_host(job({"--hostfile", file}), "", -2, 5);
  EXPECT_EQ(wrong.code, 0) << wrong.output;
  EXPECT_GE(count(wrong.output, "not bound: its topology gives it CPUs"), 1) << wrong.output;
  EXPECT_GE(count(wrong.output, "NCCL_IB_HCA is not set"), 1) << wrong.output;
}

// Users and ports of a hostfile reach the agent, and with them the job starts as without.
TEST_F(ThreeHosts, UsersAndPortsReachTheAgent) {
  const std::string file = (rig_.path() / "hostfile").string();
  std::ofstream(file) << "rig1 slots=2\nann@rig2 slots=2\nrig3 slots=2 port=2222\n";
  const Result r = on_first_host(job({"--hostfile", file}), "", -2, 5);
  EXPECT_EQ(r.code, 0) << r.output;
  EXPECT_EQ(count(r.output, "done after 5 steps with 6 ranks"), 1) << r.output;
  std::ifstream in(rig_.path() / "ssh-words");
  const std::string words{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  EXPECT_EQ(count(words, "ann@rig2\n"), 1) << words;
  EXPECT_EQ(count(words, "-p 2222\n"), 1) << words;
}

TEST_F(ThreeHosts, KilledRankIsNamedWithinASecondAndAllAreGoneWithinFive) {
  const Course c = course({}, [&] { kill(pid_of(4), SIGKILL); });
  const Result& r = c.result;
  EXPECT_EQ(r.code, 75) << r.output;
  EXPECT_EQ(count(r.output, "FATAL"), 1) << r.output;
  EXPECT_EQ(count(r.output, "r1run: FATAL rank=4 host=rig3 "), 1) << r.output;
  EXPECT_TRUE(c.cause >= 0 && c.cause < 1) << c.cause;
  EXPECT_TRUE(c.gone >= 0 && c.gone < 5) << c.gone;
}

TEST_F(ThreeHosts, StoppedRankIsNamedByItsParent) {
  const Course c = course({"--peer-timeout", "2s"}, [&] { kill(pid_of(3), SIGSTOP); });
  const Result& r = c.result;
  EXPECT_EQ(r.code, 75) << r.output;
  EXPECT_EQ(count(r.output, "FATAL"), 1) << r.output;
  EXPECT_EQ(count(r.output, "r1run: FATAL rank=3 host=rig2 "), 1) << r.output;
  EXPECT_EQ(count(r.output, "alive but silent"), 1) << r.output;
  EXPECT_TRUE(c.gone >= 0 && c.gone < 2 + 5) << c.gone;
}

TEST_F(ThreeHosts, RankThatLeavesEarlyIsNamed) {
  const Result r = on_first_host(job({"--host", "rig1:2,rig2:2,rig3:2"}), "silent-success", 5, 1000000);
  EXPECT_EQ(r.code, 70) << r.output;
  EXPECT_EQ(count(r.output, "FATAL"), 1) << r.output;
  EXPECT_EQ(count(r.output, "r1run: FATAL rank=5 host=rig3 "), 1) << r.output;
  EXPECT_EQ(count(r.output, "exited 0 without finishing"), 1) << r.output;
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
  const Course c = course({"--peer-timeout", "2s"}, [&] { ASSERT_EQ(rig_.cut(3).code, 0); });
  const Result& r = c.result;
  EXPECT_EQ(r.code, 75) << r.output;
  EXPECT_EQ(count(r.output, "r1run: FATAL host=rig3 "), 1) << r.output;
  EXPECT_EQ(count(r.output, "FATAL"), 1) << r.output;
  EXPECT_TRUE(c.ended >= 0 && c.ended < 5) << c.ended;
  EXPECT_GE(c.gone, 0) << "processes are left";
}

TEST_F(ThreeHosts, CutHostIsNamedWithinFifteenSecondsAtTheDefaults) {
  const Course c = course({}, [&] { ASSERT_EQ(rig_.cut(2).code, 0); });
  EXPECT_EQ(c.result.code, 75) << c.result.output;
  EXPECT_EQ(count(c.result.output, "r1run: FATAL host=rig2 "), 1) << c.result.output;
  EXPECT_TRUE(c.ended >= 0 && c.ended < 15) << c.ended;
  EXPECT_GE(c.gone, 0) << "processes are left";
}

}  // namespace
}  // namespace r1::launch::test
