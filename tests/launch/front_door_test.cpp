// The front door with real mpirun and real MPI ranks that meet faults: one line, the right rank,
// the right code, and nothing left behind.
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "launch/process.h"
#include "run_program.h"

namespace r1::launch::test {
namespace {

namespace fs = std::filesystem;

/// A bin/ with r1run and, in the place of r1run-rank, the misbehaving program.
class FrontDoor : public ::testing::Test {
 protected:
  void SetUp() override {
    fs::create_directory(dir_.path() / "pids");
    fs::copy_file(fs::path(R1RUN_BIN_DIR) / "r1run", r1run());
    fs::copy_file(fs::path(R1RUN_BIN_DIR) / "launch_test_rank", dir_.path() / "r1run-rank");
  }
  [[nodiscard]] fs::path r1run() const { return dir_.path() / "r1run"; }
  [[nodiscard]] std::vector<std::string> under_mpirun(
      const std::vector<std::string>& arguments) const {
    std::vector<std::string> argv{"mpirun", "-np", "4", r1run().string()};
    argv.insert(argv.end(), arguments.begin(), arguments.end());
    return argv;
  }
  using Env = std::vector<std::pair<std::string, std::string>>;
  /// Environment for the stand-in rank program; `mpi`: the bare mpirun needs Open MPI's own
  /// variables too.
  [[nodiscard]] Env asking(bool mpi, const std::string& fault = "", int on = -2,
                           int steps = 5) const {
    Env env = mpi ? mpi_environment() : Env{};
    env.insert(env.end(), {{"R1TEST_FAULT", fault},
                           {"R1TEST_ON", std::to_string(on)},
                           {"R1TEST_STEPS", std::to_string(steps)},
                           {"R1TEST_PIDS", (dir_.path() / "pids").string()}});
    return env;
  }
  [[nodiscard]] std::vector<std::string> alone(const std::vector<std::string>& arguments) const {
    std::vector<std::string> argv{r1run().string()};
    argv.insert(argv.end(), arguments.begin(), arguments.end());
    return argv;
  }
  /// Rank processes that still run; waits up to `patience_s` for them to go.
  [[nodiscard]] int left_behind(double patience_s = 0.5) const {
    int alive = 0;
    for (int i = 0; i < 1 + static_cast<int>(patience_s / 0.05); ++i) {
      alive = 0;
      for (const auto& entry : fs::directory_iterator(dir_.path() / "pids")) {
        pid_t pid = 0;
        std::ifstream(entry.path()) >> pid;
        const char state = pid > 0 ? process_state(pid) : '\0';
        alive += state != '\0' && state != 'Z';  // reaping orphans is init's affair
      }
      if (alive == 0) return 0;
      usleep(50'000);
    }
    return alive;
  }
  /// A hook that sends a signal once all four ranks have been up for half a second.
  [[nodiscard]] std::function<void(pid_t, const std::string&)> send_once(int signal) const {
    auto seen = std::make_shared<int>(0);
    return [this, seen, signal](pid_t pid, const std::string&) {
      if (*seen < 0) return;
      int up = 0;
      for (const auto& e : fs::directory_iterator(dir_.path() / "pids")) up += e.file_size() > 0;
      if (up == 4 && ++*seen > 25) {
        *seen = -1;
        kill(pid, signal);
      }
    };
  }
  TemporaryDirectory dir_;
};

struct Fault {
  const char* name;
  int on;
  int code;
  const char* says;
};
void PrintTo(const Fault& f, std::ostream* out) { *out << f.name; }

class UnderMpirun : public FrontDoor, public ::testing::WithParamInterface<Fault> {};

TEST_P(UnderMpirun, OneLineTheRightRankTheRightCode) {
  const Fault f = GetParam();
  const Result r =
      run(under_mpirun({"train", "--peer-timeout", "1s"}), 30, asking(true, f.name, f.on));
  ASSERT_FALSE(r.timed_out) << r.output;
  EXPECT_EQ(r.code, f.code) << r.output;
  EXPECT_EQ(count(r.output, "r1run: FATAL"), 1) << r.output;
  EXPECT_EQ(count(r.output, "r1run: FATAL rank=" + std::to_string(f.on < 0 ? 0 : f.on) + " "), 1)
      << r.output;
  EXPECT_EQ(count(r.output, f.says), 1) << r.output;
  EXPECT_EQ(count(r.output, "step=3 phase=\"forward\""), 1) << r.output;
  EXPECT_EQ(count(r.output, "ckpt=2"), 1) << r.output;
  EXPECT_EQ(left_behind(), 0);
}

INSTANTIATE_TEST_SUITE_P(Faults, UnderMpirun,
                         ::testing::Values(Fault{"kill", 3, 75, "signal 9 (killed)"},
                                           Fault{"segv", 1, 70, "signal 11 (segmentation fault)"},
                                           Fault{"stop", 2, 75, "alive but silent"},
                                           Fault{"silent-exit", 2, 7, "without a word"},
                                           Fault{"silent-success", 0, 70,
                                                 "exited 0 without finishing"},
                                           Fault{"exit-137", 1, 70, "exit code 137"},
                                           Fault{"bad-shard", 2, 65, "CRC32C mismatch"},
                                           Fault{"bad-shard", -1, 65, "CRC32C mismatch"},
                                           Fault{"kill-then-echo", 1, 75, "signal 9"}),
                         [](const ::testing::TestParamInfo<Fault>& p) {
                           std::string name =
                               p.param.name + std::string(p.param.on < 0 ? "-all" : "");
                           for (char& c : name) c = c == '-' ? '_' : c;
                           return name;
                         });

TEST_F(FrontDoor, UsageErrorOfAllRanksIsSaidOnce) {
  const Result r = run(under_mpirun({"train"}), 30, asking(true, "usage"));
  EXPECT_EQ(r.code, 64);
  EXPECT_EQ(count(r.output, "r1run: error: --tp 3: not a size"), 1) << r.output;
  EXPECT_EQ(count(r.output, "FATAL"), 0) << r.output;
}

TEST_F(FrontDoor, SingletonsAreStopped) {
  const Result r = run(under_mpirun({"train"}), 30, asking(true, "wrong-world", -2, 100000));
  EXPECT_EQ(r.code, 64) << r.output;
  EXPECT_EQ(count(r.output, "4 tasks but MPI sees a world of 1"), 1) << r.output;
  EXPECT_EQ(left_behind(), 0);
}

TEST_F(FrontDoor, FinishesWithZero) {
  const Result r = run(under_mpirun({"train"}), 30, asking(true));
  EXPECT_EQ(r.code, 0) << r.output;
  EXPECT_EQ(count(r.output, "done after 5 steps with 4 ranks"), 1) << r.output;
}

TEST_F(FrontDoor, Usr1ToMpirunReachesEveryRankOnce) {
  const Result r =
      run(under_mpirun({"train"}), 30, asking(true, "", -2, 100000), send_once(SIGUSR1));
  EXPECT_EQ(r.code, 75) << r.output;
  EXPECT_EQ(count(r.output, " saved step "), 4) << r.output;
  EXPECT_EQ(count(r.output, "FATAL"), 0) << r.output;
}

TEST_F(FrontDoor, TermToMpirunLeavesNobody) {
  const Result r =
      run(under_mpirun({"train"}), 30, asking(true, "", -2, 100000), send_once(SIGTERM));
  EXPECT_FALSE(r.timed_out);
  EXPECT_EQ(count(r.output, "FATAL"), 0) << r.output;
  EXPECT_EQ(left_behind(2), 0);
}

TEST_F(FrontDoor, KillingMpirunLeavesNobody) {
  const Result r =
      run(under_mpirun({"train"}), 30, asking(true, "", -2, 100000), send_once(SIGKILL));
  EXPECT_EQ(r.code, 128 + SIGKILL);
  EXPECT_EQ(left_behind(5), 0);
}

TEST_F(FrontDoor, StartsTheRanksItself) {
  const Result r = run(alone({"train", "--dp", "2", "--tp=2"}), 30, asking(false));
  EXPECT_EQ(r.code, 0) << r.output;
  EXPECT_EQ(count(r.output, "done after 5 steps with 4 ranks"), 1) << r.output;
}

TEST_F(FrontDoor, LauncherPrintsOneCauseAndCountsEchoes) {
  const Result r = run(alone({"train", "--tp", "4"}), 30, asking(false, "kill-then-echo", 2));
  EXPECT_EQ(r.code, 75) << r.output;
  EXPECT_EQ(count(r.output, "r1run: FATAL rank=2 "), 1) << r.output;
  EXPECT_EQ(count(r.output, "FATAL"), 1) << r.output;
  EXPECT_EQ(count(r.output, "3 more ranks"), 1) << r.output;
  EXPECT_EQ(count(r.output, "mpirun"), 0) << r.output;  // its own paragraphs are off
  EXPECT_EQ(left_behind(), 0);
}

TEST_F(FrontDoor, KilledRankIsNamedWithinASecondAndAllAreGoneWithinThree) {
  double at = 0, cause = 0;
  int seen = 0;
  const Result r = run(alone({"train", "--tp", "4"}), 30, asking(false, "", -2, 1000000), [&](pid_t, const std::string& output) {
    int up = 0;
    for (const auto& e : fs::directory_iterator(dir_.path() / "pids")) up += e.file_size() > 0;
    if (at == 0 && up == 4 && ++seen > 25) {
      pid_t rank = 0;
      std::ifstream(dir_.path() / "pids" / "2") >> rank;
      kill(rank, SIGKILL);
      at = monotonic_s();
    }
    if (cause == 0 && output.find("r1run: FATAL rank=2 ") != std::string::npos) cause = monotonic_s();
  });
  ASSERT_GT(at, 0) << r.output;
  EXPECT_EQ(r.code, 75) << r.output;
  EXPECT_EQ(left_behind(3), 0);
  const double gone = monotonic_s() - at;
  EXPECT_GT(cause, 0) << r.output;
  EXPECT_LT(cause - at, 1);
  EXPECT_LT(gone, 3);
  std::printf("seconds after the fault: cause %.2f, nobody left %.2f\n", cause - at, gone);
}

TEST_F(FrontDoor, TermToTheLauncherSavesFirst) {
  const Result r =
      run(alone({"train", "--tp", "4"}), 30, asking(false, "", -2, 100000), send_once(SIGTERM));
  EXPECT_EQ(r.code, 75) << r.output;
  EXPECT_EQ(count(r.output, " saved step "), 4) << r.output;
  EXPECT_EQ(left_behind(), 0);
}

TEST_F(FrontDoor, KillingTheLauncherLeavesNobody) {
  const Result r =
      run(alone({"train", "--tp", "4"}), 30, asking(false, "", -2, 100000), send_once(SIGKILL));
  EXPECT_EQ(r.code, 128 + SIGKILL);
  EXPECT_EQ(left_behind(5), 0);
}

TEST_F(FrontDoor, OneRankNeedsNoMpirun) {
  Env env = asking(false, "kill", 0);
  env.emplace_back("PATH", "/nowhere");
  const Result r = run(alone({"train"}), 30, env);
  EXPECT_EQ(r.code, 75) << r.output;
  EXPECT_EQ(count(r.output, "r1run: FATAL rank=0 "), 1) << r.output;
}

TEST_F(FrontDoor, RestartsAfterAFault) {
  const std::string out = "--output=" + (dir_.path() / "out").string();
  for (const char* tp : {"1", "4"}) {  // without and with mpirun
    fs::remove(dir_.path() / "pids" / "killed");
    const Result r = run(alone({"train", "--tp", tp, "--max-restarts=2", out}), 60,
                         asking(false, "kill-once", 0));
    EXPECT_EQ(r.code, 0) << r.output;
    EXPECT_EQ(count(r.output, "r1run: FATAL rank=0 "), 1) << r.output;
    EXPECT_EQ(count(r.output, "r1run: restart 1 of at most 2 "), 1) << r.output;
    EXPECT_EQ(count(r.output, "restart 2"), 0) << r.output;
    EXPECT_EQ(count(r.output, std::string("done after 5 steps with ") + tp), 1) << r.output;
    EXPECT_EQ(left_behind(), 0);
  }
}

TEST_F(FrontDoor, GivesUpWhenRestartsBringNothing) {
  const std::string out = "--output=" + (dir_.path() / "out").string();
  // The rank tells of a checkpoint of step 2 each time: that is progress once.
  const Result r = run(alone({"train", "--max-restarts=9", out}), 60, asking(false, "kill", 0));
  EXPECT_EQ(r.code, 75) << r.output;
  EXPECT_EQ(count(r.output, "FATAL"), 4) << r.output;
  EXPECT_EQ(count(r.output, "giving up: 3 restarts without a new checkpoint (newest: step 2)"), 1)
      << r.output;
}

TEST_F(FrontDoor, ARequestToEndIsNotAFault) {
  const std::string out = "--output=" + (dir_.path() / "out").string();
  const Result r = run(alone({"train", "--tp", "4", "--max-restarts=9", out}), 30,
                       asking(false, "", -2, 100000), send_once(SIGTERM));
  EXPECT_EQ(r.code, 75) << r.output;
  EXPECT_EQ(count(r.output, "restart"), 0) << r.output;
}

TEST_F(FrontDoor, MaxRestartsUnderMpirunIsSaidToDoNothing) {
  const Result r = run(under_mpirun({"train", "--max-restarts=2"}), 30, asking(true));
  EXPECT_EQ(r.code, 0) << r.output;
  EXPECT_EQ(count(r.output, "warning: --max-restarts does nothing under mpirun"), 1) << r.output;
}

TEST_F(FrontDoor, DryRunPrintsTheCommandAndStartsNothing) {
  const Result r = run(alone({"train", "--tp", "4", "--data", "it's", "--dry-run"}), 30, {});
  EXPECT_EQ(r.code, 0);
  EXPECT_EQ(count(r.output, "mpirun -q -np 4"), 1) << r.output;
  EXPECT_EQ(count(r.output, "oob_tcp_keepalive_time"), 1) << r.output;
  EXPECT_EQ(count(r.output, "'it'\\''s'"), 1) << r.output;
  EXPECT_EQ(count(r.output, "--dry-run"), 0) << r.output;
  EXPECT_TRUE(fs::is_empty(dir_.path() / "pids"));
}

// The samples' own topologies: ranks on the GPUs' NUMA nodes, adapters named, racks in order; all of it a script.
TEST_F(FrontDoor, DryRunShowsThePlacement) {
  const std::string samples = std::string(R1RUN_SOURCE_DIR) + "/hostfiles/samples/";
  const Result r = run(alone({"train", "--hostfile", samples + "production-2-nodes.hosts", "--pp", "2", "--tp", "4", "--dry-run"}), 30, {});
  EXPECT_EQ(r.code, 0) << r.output;
  EXPECT_EQ(count(r.output, "# rank 1 (pp 0 dp 0 tp 1): gpu-node-01, GPU 1, NUMA node 1, CPUs 16-31,144-159, adapters mlx5_0:1\n"), 1) << r.output;
  EXPECT_EQ(count(r.output, "# rank 7 (pp 1 dp 0 tp 3): gpu-node-02, GPU 3, NUMA node 5, CPUs 80-95,208-223"), 1) << r.output;
  EXPECT_EQ(count(r.output, "R1RUN_CPUS=16-31,144-159"), 1) << r.output;  // in the table that both hosts share
  EXPECT_EQ(count(r.output, "-x R1RUN_PLACEMENT"), 1) << r.output;
  EXPECT_EQ(count(r.output, "GPUs 0, 3 have no adapter near them"), 1) << r.output;
  EXPECT_EQ(count(r.output, "UCX_NET_DEVICES=;"), 0) << r.output;

  const std::string racks = (dir_.path() / "racks").string();
  std::ofstream(racks) << "a slots=1 # r1run: rack=1\nb slots=1 # r1run: rack=2\nc slots=1 # r1run: rack=1\nd slots=1 # r1run: rack=2\n";
  const Result order = run(alone({"train", "--hostfile", racks, "--pp", "4", "--dry-run"}), 30, {});
  EXPECT_EQ(order.code, 0) << order.output;
  EXPECT_EQ(count(order.output, "--map-by seq"), 1) << order.output;
  // Names without values are explained, as a comment of the script.
  EXPECT_EQ(count(order.output, "\n# a variable named without a value is passed on; r1run makes those of R1RUN_CONTROL_PORT, R1RUN_CONTROL_TOKEN when"), 1)
      << order.output;
  EXPECT_EQ(count(run(alone({"train", "--dry-run"}), 30, {}).output, "# a variable"), 0);

  // --topology says the same for hosts that a file does not describe.
  const Result option = run(alone({"train", "--host", "x:4,y:4", "--topology", samples + "../topologies/a100x4.xml", "--pp", "2", "--tp", "4",
                                   "--dry-run"}), 30, {});
  EXPECT_EQ(option.code, 0) << option.output;
  EXPECT_EQ(count(option.output, "# rank 5 (pp 1 dp 0 tp 1): y, GPU 1, NUMA node 1, CPUs 16-31,144-159, adapters mlx5_0:1\n"), 1) << option.output;
  const Result missing = run(alone({"train", "--host", "x:4", "--topology", "nowhere.xml", "--dry-run"}), 30, {});
  EXPECT_EQ(missing.code, 64) << missing.output;
  EXPECT_EQ(count(missing.output, "--topology nowhere.xml: cannot be opened"), 1) << missing.output;
}

// GPUs of one machine are found without being described; those that the user has chosen stay as they are.
TEST_F(FrontDoor, GpusOfThisMachineAreChosenByItsLiveMap) {
  fs::create_symlink(std::string(R1RUN_BIN_DIR) + "/libfake_nvml.so", dir_.path() / "libnvidia-ml.so.1");
  Env env{{"LD_LIBRARY_PATH", dir_.path().string()}, {"R1RUN_FAKE_NVML", ""}};
  const Result r = run(alone({"train", "--tp", "4", "--dry-run"}), 30, env);
  EXPECT_EQ(r.code, 0) << r.output;
  for (const std::string rank : {"0", "1", "2", "3"})
    EXPECT_EQ(count(r.output, "# rank " + rank + " (pp 0 dp 0 tp " + rank + "): " + host_name() + ", GPU " + rank), 1) << r.output;
  const Result cpu = run(alone({"train", "--tp", "4", "--device", "cpu", "--dry-run"}), 30, env);
  EXPECT_EQ(count(cpu.output, ", GPU "), 0) << cpu.output;
  env.emplace_back("CUDA_VISIBLE_DEVICES", "3");
  const Result chosen = run(alone({"train", "--tp", "4", "--dry-run"}), 30, env);
  EXPECT_EQ(count(chosen.output, ", GPU "), 0) << chosen.output;
}

// One machine and its map: each rank on CPUs of its own.
TEST_F(FrontDoor, TopologyOfThisMachineBindsItsRanks) {
  if (sysconf(_SC_NPROCESSORS_ONLN) < 2) GTEST_SKIP() << "one CPU: nothing to choose";
  const std::string map = (dir_.path() / "here.json").string();
  ASSERT_EQ(run(alone({"topo", "--json", map}), 30, {}).code, 0);
  const Result r = run(alone({"train", "--tp", "2", "--topology", map}), 30, asking(false));
  ASSERT_EQ(r.code, 0) << r.output;
  EXPECT_EQ(count(r.output, "not bound"), 0) << r.output;
  std::vector<std::string> cpus;
  for (const char* rank : {"0", "1"}) {
    std::ifstream in(dir_.path() / "pids" / rank);
    std::string pid;
    in >> pid;
    std::getline(in, cpus.emplace_back());
  }
  EXPECT_NE(cpus[0], cpus[1]);
}

TEST_F(FrontDoor, SaysWhenTheRankProgramIsMissing) {
  fs::remove(dir_.path() / "r1run-rank");
  const Result r = run(alone({"train"}), 30, {});
  EXPECT_EQ(r.code, 64);
  EXPECT_EQ(count(r.output, "r1run-rank"), 1) << r.output;
}

TEST_F(FrontDoor, SrunWithoutPmixIsRefused) {
  const Result r = run(alone({"train"}), 30,
                       {{"SLURM_STEP_ID", "0"}, {"SLURM_PROCID", "1"}, {"SLURM_JOB_ID", "7"}});
  EXPECT_EQ(r.code, 64);
  EXPECT_EQ(count(r.output, "--mpi=pmix"), 1) << r.output;
}

}  // namespace
}  // namespace r1::launch::test
