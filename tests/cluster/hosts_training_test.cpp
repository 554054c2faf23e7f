// Training with the pipeline over three hosts: a cut link ends the job, and it goes on on two.
#include <gtest/gtest.h>

#include "runtime/core/host.h"
#include "tests/cluster/cluster_job.h"

namespace r1::test {
namespace {

constexpr int kSteps = 400, kSaveEvery = 20;

class HostsTraining : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = rig_.start(); !why.empty()) GTEST_SKIP() << why;
    write_rows(rig_.path() / "rows.jsonl");
  }
  [[nodiscard]] Result train(
      const std::string& output, int pp, const std::vector<std::string>& more,
      const std::function<void(pid_t, const std::string&)>& hook = {}) const {
    return run(rig_.on(1, std::vector<std::string>{std::string(R1RUN_BIN_DIR) + "/r1run", "train"} +
                              training(rig_.path() / "rows.jsonl", rig_.path() / output, pp, kSteps,
                                       more)),
               180, rig_.environment(), hook);
  }
  /// Cuts the host's link once the job has reached the step; `at` gets the time.
  [[nodiscard]] std::function<void(pid_t, const std::string&)> cut_at_step(
      int host, const std::string& output, int step, double* at) const {
    return [this, host, output, step, at](pid_t, const std::string&) {
      if (*at > 0 || last_step(rig_.path() / output) < step) return;
      EXPECT_EQ(rig_.cut(host).code, 0);
      *at = monotonic_s();
    };
  }
  /// No process of the job is left on any host.
  void expect_nobody(const std::string& output) const {
    const std::string mark = (rig_.path() / output).string();
    for (int i = 0; i < 100 && !processes_with(mark).empty(); ++i) usleep(100'000);
    EXPECT_TRUE(processes_with(mark).empty());
  }
  void expect_same_training(const std::string& output) const {
    const auto whole = losses(rig_.path() / "whole"), parts = losses(rig_.path() / output);
    ASSERT_EQ(whole.size(), static_cast<size_t>(kSteps));
    ASSERT_EQ(parts.size(), static_cast<size_t>(kSteps));
    // Another layout sums in another order; another row in a batch would show in the second digit.
    for (const auto& [step, loss] : whole)
      ASSERT_NEAR(parts.at(step), loss, 1e-3 * loss) << "step " << step;
  }
  HostsRig rig_;
};

TEST_F(HostsTraining, CutLinkEndsCleanlyAndTwoHostsGoOn) {
  const Result whole = train("whole", 1, {"--save-every=0"});
  ASSERT_EQ(whole.code, 0) << whole.output;

  double cut = 0;
  const std::vector<std::string> save{"--save-every=" + std::to_string(kSaveEvery), "--keep-last=2",
                                      "--peer-timeout=2s"};
  const Result r = train("out", 3, save + std::vector<std::string>{"--host=rig1:1,rig2:1,rig3:1"},
                         cut_at_step(3, "out", 50, &cut));
  const double ended = monotonic_s() - cut;
  ASSERT_GT(cut, 0) << r.output;
  EXPECT_EQ(r.code, 75) << r.output;
  EXPECT_LT(ended, 5) << r.output;
  EXPECT_EQ(count(r.output, "FATAL"), 1) << r.output;
  EXPECT_EQ(count(r.output, "r1run: FATAL host=rig3 "), 1) << r.output;
  expect_nobody("out");
  const int reached = last_step(rig_.path() / "out");
  EXPECT_GE(reached, 50);

  const Result rest =
      train("out", 2, save + std::vector<std::string>{"--host=rig1:1,rig2:1", "--resume=auto"});
  EXPECT_EQ(rest.code, 0) << rest.output;
  EXPECT_EQ(count(rest.output, "written by pp 3 x dp 1 x tp 1"), 1) << rest.output;
  expect_same_training("out");

  // The same in one command: with room on the other hosts the job restarts without the lost one.
  ASSERT_EQ(rig_.join(3).code, 0);
  cut = 0;
  const Result again =
      train("again", 3,
            save + std::vector<std::string>{"--host=rig1:2,rig2:1,rig3:1", "--max-restarts=2"},
            cut_at_step(2, "again", 50, &cut));
  ASSERT_GT(cut, 0) << again.output;
  EXPECT_EQ(again.code, 0) << again.output;
  EXPECT_EQ(count(again.output, "r1run: FATAL host=rig2 "), 1) << again.output;
  EXPECT_EQ(count(again.output, "going on without rig2"), 1) << again.output;
  EXPECT_EQ(count(again.output, "restart 1 of at most 2"), 1) << again.output;
  expect_same_training("again");
  expect_nobody("again");
}

}  // namespace
}  // namespace r1::test
