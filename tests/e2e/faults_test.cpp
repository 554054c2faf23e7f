// Faults of a rank, each really injected: one line that names the rank and what it was doing, the documented code, and nothing
// left behind in time. The bounds are those of a machine whose cores are shared by more ranks than there are cores.
#include <fmt/format.h>
#include <signal.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <regex>
#include <set>

#include "tests/e2e/support.h"

namespace r1::test {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using Clock = std::chrono::steady_clock;

std::vector<std::string> endless_job(const fs::path& output, int pp, int dp, int tp, std::vector<std::string> more = {}) {
  std::vector<std::string> args{"--pp", std::to_string(pp), "--dp", std::to_string(dp), "--tp", std::to_string(tp), "--steps", "100000",
                                "--batch", "4", "--seq-len", "320", "--micro-batch", "1", "--output", output,
                                "--peer-timeout", "2s", "--stall-timeout", "3s"};
  args.insert(args.end(), more.begin(), more.end());
  return args;
}

/// Programs of this job that are still there: their command lines name its directory.
std::set<int> processes_of(const fs::path& dir) {
  std::set<int> pids;
  for (const auto& p : fs::directory_iterator("/proc")) {
    const std::string name = p.path().filename().string();
    if (name.find_first_not_of("0123456789") != std::string::npos || std::stoi(name) == getpid()) continue;
    if (bytes_of(p.path() / "cmdline").find(dir.string()) != std::string::npos) pids.insert(std::stoi(name));
  }
  return pids;
}

struct Injected {
  std::string fault, at;
  int rank = 0;
  int slow_us = 0;
};

struct Ending {
  Result result;
  double seconds = -1;  ///< from the fault to the launcher's end
  std::string line;     ///< the FATAL line
};

/// Starts the job, injects at step 3 (once there is a checkpoint, when it has --save-every), waits for the end.
Ending run_faulty(const TempDir& dir, const std::vector<std::string>& args, int ranks, const Injected& inject) {
  const fs::path trigger = dir / "trigger";
  auto environment = mpi_environment();
  environment.insert(environment.end(), {{"LD_PRELOAD", R1RUN_FAULT_LIBRARY},
                                         {"R1TEST_FAULT", inject.fault},
                                         {"R1TEST_AT", inject.at},
                                         {"R1TEST_RANK", std::to_string(inject.rank)},
                                         {"R1TEST_SLOW_US", std::to_string(inject.slow_us)},
                                         {"R1TEST_TRIGGER", trigger}});
  const bool saves = std::find(args.begin(), args.end(), "--save-every") != args.end();
  Ending e;
  bool injected = false;
  std::optional<Clock::time_point> at;
  e.result = run(job(ranks, args), 120, environment, [&](pid_t, const std::string& output) {
    if (!injected && output.find(saves ? "checkpoint " : "step 3/") != std::string::npos) {
      std::ofstream(trigger) << "now";
      injected = true;
    }
    if (injected && !at && !fs::exists(trigger)) at = Clock::now();
  });
  EXPECT_TRUE(injected && at) << e.result.output;
  if (at) e.seconds = std::chrono::duration<double>(Clock::now() - *at).count();
  const size_t begin = e.result.output.find("r1run: FATAL");
  if (begin != std::string::npos) e.line = e.result.output.substr(begin, e.result.output.find('\n', begin) - begin);
  return e;
}

void expect_ending(const TempDir& dir, const Ending& e, int code, const std::string& rank, double within_s) {
  EXPECT_FALSE(e.result.timed_out);
  EXPECT_EQ(e.result.code, code) << e.result.output;
  EXPECT_EQ(count(e.result.output, "FATAL"), 1) << e.result.output;
  EXPECT_NE(e.line.find(rank), std::string::npos) << e.line;
  EXPECT_NE(e.line.find(" step="), std::string::npos) << e.line;
  EXPECT_NE(e.line.find(" phase="), std::string::npos) << e.line;
  // The bound is that of a machine of one's own; two cores may be shared with a build.
  EXPECT_LE(e.seconds, 2 * within_s) << e.line;
  // Everything is gone, or goes within a moment.
  for (int i = 0; i < 20 && !processes_of(dir.path()).empty(); ++i) usleep(50'000);
  EXPECT_TRUE(processes_of(dir.path()).empty());
}

TEST(RankFaults, KilledInForward) {
  const TempDir dir;
  const Ending e = run_faulty(dir, endless_job(dir / "out", 2, 1, 2), 4, {"kill", "gemm", 2});
  expect_ending(dir, e, 75, "rank=2", 3.0);
  EXPECT_NE(e.line.find("signal 9"), std::string::npos) << e.line;
  EXPECT_TRUE(std::regex_search(e.line, std::regex("phase=\"(forward|backward) stage 1 micro-batch [0-3]\""))) << e.line;
  EXPECT_NE(e.line.find("mesh=\"pp 1 dp 0 tp 0\""), std::string::npos) << e.line;
}

TEST(RankFaults, KilledInACollective) {
  const TempDir dir;
  const Ending e = run_faulty(dir, endless_job(dir / "out", 1, 1, 3), 3, {"kill", "message", 1});
  expect_ending(dir, e, 75, "rank=1", 3.0);
  EXPECT_TRUE(std::regex_search(e.line, std::regex("op=\"(all-reduce|all-gather|reduce-scatter) #[0-9]+ of "))) << e.line;
  // What it did last outlives it.
  const std::string flight = bytes_of(dir / "out/flight-rank-1.txt");
  EXPECT_NE(e.line.find("flight=\"" + (dir / "out/flight-rank-1.txt").string()), std::string::npos) << e.line;
  EXPECT_TRUE(std::regex_search(flight, std::regex("step [0-9]+ +not over +(all-reduce|all-gather|reduce-scatter) #[0-9]+ of "))) << flight;
  EXPECT_GT(count(flight, "\n"), 50) << flight;
}

TEST(RankFaults, SegmentationFaultIsOurBug) {
  const TempDir dir;
  const Ending e = run_faulty(dir, endless_job(dir / "out", 1, 2, 1), 2, {"segv", "gemm", 1});
  expect_ending(dir, e, 70, "rank=1", 3.0);
  EXPECT_NE(e.line.find("signal 11"), std::string::npos) << e.line;
}

TEST(RankFaults, EarlyExit) {
  const TempDir dir;
  const Ending e = run_faulty(dir, endless_job(dir / "out", 2, 1, 1), 2, {"exit", "gemm", 1});
  expect_ending(dir, e, 70, "rank=1", 3.5);
  EXPECT_NE(e.line.find("without finishing"), std::string::npos) << e.line;
}

TEST(RankFaults, EarlyFinalize) {
  const TempDir dir;
  const Ending e = run_faulty(dir, endless_job(dir / "out", 2, 1, 1), 2, {"finalize", "gemm", 1});
  expect_ending(dir, e, 70, "rank=1", 3.5);
  EXPECT_NE(e.line.find("MPI_Finalize was called before the job was over"), std::string::npos) << e.line;
}

/// mpirun's MPMD form gives each rank a command line of its own.
TEST(RankFaults, RanksWithDifferentJobsAreRefusedAtTheStart) {
  const TempDir dir;
  auto command = job(1, endless_job(dir / "out", 1, 1, 2));
  const auto other = job(1, endless_job(dir / "out", 1, 1, 2, {"--lr", "0.5"}));
  command.emplace_back(":");
  command.insert(command.end(), other.begin() + 1, other.end());
  const Result r = run(command, 60, mpi_environment());
  EXPECT_EQ(r.code, 64) << r.output;
  EXPECT_EQ(count(r.output, "the ranks were not given the same job: rank 1"), 1) << r.output;
  EXPECT_TRUE(std::regex_search(r.output, std::regex("--lr: [0-9.e-]+ \\(default\\) on rank 0, 0\\.5 \\(command line\\) on rank 1"))) << r.output;
  EXPECT_EQ(count(r.output, "--steps:"), 0) << r.output;
}

TEST(RankFaults, Stopped) {
  const TempDir dir;
  const Ending e = run_faulty(dir, endless_job(dir / "out", 1, 1, 2), 2, {"stop", "gemm", 1});
  expect_ending(dir, e, 75, "rank=1", 2.0 + 3.0);
  EXPECT_NE(e.line.find("silent"), std::string::npos) << e.line;
}

TEST(RankFaults, DeadlockWithHeartbeatsAlive) {
  const TempDir dir;
  const Ending e = run_faulty(dir, endless_job(dir / "out", 2, 1, 2), 4, {"deadlock", "gemm", 3});
  expect_ending(dir, e, 75, "rank=3", 3.0 + 4.0);
  EXPECT_NE(e.line.find("no progress for"), std::string::npos) << e.line;
  EXPECT_TRUE(std::regex_search(e.line, std::regex("step [0-9]+, in (forward|backward) stage 1"))) << e.line;
  // What each rank is in: the operation of which group with which number.
  EXPECT_NE(e.result.output.find("what each rank is in:"), std::string::npos) << e.result.output;
  EXPECT_TRUE(std::regex_search(e.result.output, std::regex("rank 2: step [0-9]+, in [a-z-]+ #[0-9]+ of tp \\(pp 1 dp 0\\)"))) << e.result.output;
}

TEST(RankFaults, ASlowRankIsNamedAndTheJobGoesOn) {
  const TempDir dir;
  const fs::path trigger = dir / "trigger";
  auto environment = mpi_environment();
  environment.insert(environment.end(), {{"LD_PRELOAD", R1RUN_FAULT_LIBRARY}, {"R1TEST_FAULT", "slow"}, {"R1TEST_AT", "gemm"},
                                         {"R1TEST_RANK", "1"}, {"R1TEST_SLOW_US", "4000"}, {"R1TEST_TRIGGER", trigger}});
  std::optional<Clock::time_point> slowed, named;
  const Result r = run(job(2, endless_job(dir / "out", 1, 2, 1, {"--stall-timeout", "60s"})), 120, environment,
                       [&](pid_t mpirun, const std::string& output) {
                         if (!slowed && output.find("step 5/") != std::string::npos) {
                           std::ofstream(trigger) << "now";
                           slowed = Clock::now();
                         }
                         if (slowed && !named && output.find("is slow") != std::string::npos) {
                           named = Clock::now();
                           kill(mpirun, SIGUSR1);
                         }
                         if (slowed && !named && Clock::now() - *slowed > std::chrono::seconds(60)) kill(mpirun, SIGUSR1);
                       });
  ASSERT_TRUE(slowed && named) << r.output;
  EXPECT_EQ(r.code, 75) << r.output;
  EXPECT_EQ(count(r.output, "FATAL"), 0) << r.output;
  EXPECT_NE(r.output.find("rank 1 on "), std::string::npos) << r.output;
  EXPECT_EQ(count(r.output, "rank 0 on "), 0) << r.output;
  EXPECT_LE(std::chrono::duration<double>(*named - *slowed).count(), 30.0);
}

TEST(RankFaults, KilledInACheckpointWriteTheOneBeforeIsResumed) {
  for (const std::string at : {"pwrite", "fsync", "rename"}) {
    SCOPED_TRACE(at);
    const TempDir dir;
    const Ending e = run_faulty(dir, endless_job(dir / "out", 1, 1, 2, {"--save-every", "2"}), 2, {"kill", at, 0});
    expect_ending(dir, e, 75, "rank=0", 3.0);
    const auto start = Clock::now();
    std::smatch m;
    ASSERT_TRUE(std::regex_search(e.line, m, std::regex("ckpt=([0-9]+)"))) << e.line;
    const int last = std::stoi(m[1]);
    bool stopped = false;
    const Result again = run(job(2, endless_job(dir / "out", 1, 1, 2, {"--resume", "auto"})), 60, mpi_environment(),
                             [&](pid_t mpirun, const std::string& output) {
                               if (stopped || output.find("loss") == std::string::npos) return;
                               stopped = true;
                               kill(mpirun, SIGUSR1);
                             });
    EXPECT_EQ(again.code, 75) << again.output;
    // The rename makes the checkpoint: it may or may not have been told.
    const std::string resumed = "resumed " + (dir / "out").string() + fmt::format("/step-{:06}", last);
    EXPECT_NE(again.output.find(resumed), std::string::npos) << again.output;
    for (const auto& f : fs::directory_iterator(dir / "out"))
      EXPECT_FALSE(f.path().filename().string().starts_with(".step-")) << f.path() << " was left behind";
    EXPECT_LE(std::chrono::duration<double>(Clock::now() - start).count(), 60.0);
  }
}

}  // namespace
}  // namespace r1::test
