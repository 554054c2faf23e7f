// --max-restarts: when a job is started again, from where, on which hosts, and when it is given up.
#include "launch/restart.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "run_program.h"

namespace r1::launch::test {
namespace {

namespace fs = std::filesystem;

JobOutcome fault(int code = 75) {
  JobOutcome o;
  o.code = code;
  o.fault = true;
  return o;
}

void commit(const fs::path& output, int64_t step) {
  const fs::path dir = output / fmt::format("step-{:06}", step) / "r1run";
  fs::create_directories(dir);
  std::ofstream(dir / "manifest.json") << "{}";
}

/// Value of the option `name` ("--resume"); "" when it is not among the words.
std::string flag(const std::vector<std::string>& words, const std::string& name) {
  for (const auto& w : words)
    if (w.starts_with(name + "=")) return w.substr(name.size() + 1);
  return "";
}

TEST(RestartPolicy, OnlyFaultsThatANewStartMayCure) {
  RestartPolicy p(5, -1);
  EXPECT_FALSE(p.after(JobOutcome{}, -1).restart);
  JobOutcome asked = fault();
  asked.stop_requested = true;
  EXPECT_FALSE(p.after(asked, -1).restart);
  JobOutcome saved;  // USR1 straight to the ranks: 75 and no fault
  saved.code = 75;
  EXPECT_FALSE(p.after(saved, -1).restart);
  for (const int code : {64, 65, 69, 70, 73, 76}) {
    const auto d = p.after(fault(code), -1);
    EXPECT_FALSE(d.restart) << code;
    EXPECT_NE(d.reason.find(std::to_string(code)), std::string::npos);
  }
  EXPECT_TRUE(p.after(fault(), -1).restart);
}

TEST(RestartPolicy, AHostThatIsAwayAtARestartIsNoMistakeInTheCommand) {
  JobOutcome refused = fault(64);
  refused.launcher_failed = true;
  RestartPolicy p(5, -1);
  EXPECT_FALSE(p.after(refused, -1).restart);
  EXPECT_TRUE(p.after(fault(), -1).restart);
  EXPECT_TRUE(p.after(refused, -1).restart);
}

TEST(RestartPolicy, GivesUpAfterThreeRestartsWithoutACheckpoint) {
  RestartPolicy p(100, 10);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(p.after(fault(), 10).restart) << i;
  const auto d = p.after(fault(), 10);
  EXPECT_FALSE(d.restart);
  EXPECT_EQ(d.reason, "giving up: 3 restarts without a new checkpoint (newest: step 10)");
}

TEST(RestartPolicy, ACheckpointBetweenFaultsCountsAsProgress) {
  RestartPolicy p(100, -1);
  int64_t newest = -1;
  double longest = 0;
  for (int i = 0; i < 40; ++i) {
    if (i % 3 == 2) ++newest;
    const auto d = p.after(fault(), newest);
    EXPECT_TRUE(d.restart) << i;
    longest = std::max(longest, d.pause_s);
  }
  EXPECT_EQ(p.restarts(), 40);
  EXPECT_LE(longest, 8);
}

TEST(RestartPolicy, NoMoreThanAllowed) {
  RestartPolicy p(2, -1);
  EXPECT_TRUE(p.after(fault(), 1).restart);
  EXPECT_TRUE(p.after(fault(), 2).restart);
  const auto d = p.after(fault(), 3);
  EXPECT_FALSE(d.restart);
  EXPECT_EQ(d.reason, "giving up: --max-restarts 2 are used up");
}

TEST(Restart, CheckpointsAreDirectoriesWithAManifest) {
  const TemporaryDirectory dir;
  EXPECT_TRUE(checkpoint_steps((dir.path() / "none").string()).empty());
  commit(dir.path(), 2);
  commit(dir.path(), 1000000);
  fs::create_directories(dir.path() / "step-000005");  // not committed
  fs::create_directories(dir.path() / ".step-000009.abc" / "r1run");
  fs::create_directories(dir.path() / "step-7x" / "r1run");
  std::ofstream(dir.path() / "step-7x" / "r1run" / "manifest.json") << "{}";
  EXPECT_EQ(checkpoint_steps(dir.path().string()), (std::set<int64_t>{2, 1000000}));
}

TEST(Restart, HostsAreLeftOutOnlyWhenTheOthersHoldTheJob) {
  const Cluster all = parse_host_list("a.cluster:2,b:2,c:2", "--host");
  const Cluster left_a = without_hosts(all, {"a"}, 4);
  EXPECT_EQ(without_hosts(all, {"b"}, 4).hosts.size(), 2u);
  EXPECT_EQ(left_a.hosts.front().name, "b");
  EXPECT_EQ(without_hosts(all, {"b"}, 5).hosts.size(), 3u);  // too few slots: it may come back
  EXPECT_EQ(without_hosts(all, {"b"}, 6).hosts.size(), 3u);
}

class Restarts : public ::testing::Test {
 protected:
  struct Run {
    std::vector<std::string> words;
    size_t hosts;
  };
  /// Runs with a job that ends as `outcomes` say, one after the other, writing a checkpoint before
  /// each end where `steps` names one.
  int run(const std::vector<std::string>& options, const std::vector<JobOutcome>& outcomes,
          const std::vector<int64_t>& steps, const std::string& hosts = "") {
    runs_.clear();
    const Request request{.config = parse_options("train", options), .for_ranks = {"train"}};
    Destination where;
    if (!hosts.empty()) where = {Destination::Kind::kMpirun, parse_host_list(hosts, "--host")};
    return run_with_restarts(
        request, where,
        [&](const Request& r, const Destination& d) {
          runs_.push_back({r.for_ranks, d.cluster.hosts.size()});
          const size_t i = runs_.size() - 1;
          if (i < steps.size() && steps[i] >= 0) commit(flag(r.for_ranks, "--output"), steps[i]);
          return outcomes.at(i);
        },
        [](double) { return true; });
  }
  [[nodiscard]] std::string output() const { return "--output=" + (dir_.path() / "out").string(); }
  TemporaryDirectory dir_;
  std::vector<Run> runs_;
};

TEST_F(Restarts, GoesOnFromTheNewestCheckpointAndKeepsTheOptions) {
  EXPECT_EQ(
      run({output(), "--max-restarts=4", "--lr=1e-3"}, {fault(), fault(), JobOutcome{}}, {4, 8}),
      0);
  ASSERT_EQ(runs_.size(), 3u);
  EXPECT_EQ(flag(runs_[0].words, "--resume"), "");
  EXPECT_EQ(flag(runs_[1].words, "--resume"), "auto");
  EXPECT_EQ(flag(runs_[2].words, "--resume"), "auto");
  for (const Run& r : runs_) {
    EXPECT_EQ(flag(r.words, "--output"), (dir_.path() / "out").string());
    EXPECT_EQ(flag(r.words, "--lr"), "0.001");
    EXPECT_EQ(flag(r.words, "--max-restarts"), "");
  }
}

TEST_F(Restarts, OtherJobsCheckpointsInTheSameOutputAreNotTaken) {
  commit(dir_.path() / "out", 50);
  const std::string from = (dir_.path() / "out" / "step-000020").string();
  EXPECT_EQ(run({output(), "--max-restarts=4", "--resume=" + from},
                {fault(), fault(), JobOutcome{}}, {-1, 24}),
            0);
  EXPECT_EQ(flag(runs_[0].words, "--resume"), from);
  EXPECT_EQ(flag(runs_[1].words, "--resume"), from);  // nothing of its own yet
  EXPECT_EQ(flag(runs_[2].words, "--resume"), (dir_.path() / "out" / "step-000024").string());
}

TEST_F(Restarts, ALostHostIsLeftOut) {
  JobOutcome lost = fault();
  lost.lost_hosts = {"c"};
  EXPECT_EQ(run({output(), "--max-restarts=1", "--pp=2", "--tp=2"}, {lost, JobOutcome{}}, {4},
                "a:2,b:2,c:2"),
            0);
  ASSERT_EQ(runs_.size(), 2u);
  EXPECT_EQ(runs_[0].hosts, 3u);
  EXPECT_EQ(runs_[1].hosts, 2u);
}

TEST_F(Restarts, TheCodeIsThatOfTheLastRun) {
  EXPECT_EQ(run({output(), "--max-restarts=1"}, {fault(), fault()}, {}), 75);
  EXPECT_EQ(run({output(), "--max-restarts=9"}, {fault(), fault(65)}, {}), 65);
  EXPECT_EQ(runs_.size(), 2u);
}

TEST(Restart, OutputOfItsOwnIsChosenOnce) {
  const TemporaryDirectory dir;
  const std::string name = (dir.path() / "r1run-out").string();
  EXPECT_EQ(free_output(name), name);
  fs::create_directory(name);
  fs::create_directory(name + "-2");
  EXPECT_EQ(free_output(name), name + "-3");
}

}  // namespace
}  // namespace r1::launch::test
