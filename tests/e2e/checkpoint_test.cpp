// Checkpoints as a user meets them: resume on other layouts, refusals, two jobs in one output, full and broken disks.
#include <signal.h>
#include <sys/mount.h>

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "tests/e2e/support.h"

namespace r1::test {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

std::vector<std::string> small_job(const fs::path& output, int pp, int dp, int tp, std::vector<std::string> more) {
  std::vector<std::string> args{"--pp", std::to_string(pp), "--dp", std::to_string(dp), "--tp", std::to_string(tp), "--steps", "8",
                                "--batch", "4", "--seq-len", "320", "--micro-batch", "1", "--output", output};
  args.insert(args.end(), more.begin(), more.end());
  return args;
}

std::vector<std::string> names_in(const fs::path& dir) {
  std::vector<std::string> names;
  for (const auto& e : fs::directory_iterator(dir)) names.push_back(e.path().filename().string());
  return names;
}

int checkpoints_in(const fs::path& dir) {
  const auto names = names_in(dir);
  return static_cast<int>(std::count_if(names.begin(), names.end(), [](const auto& n) { return n.starts_with("step-"); }));
}

int staging_in(const fs::path& dir) {
  const auto names = names_in(dir);
  return static_cast<int>(std::count_if(names.begin(), names.end(), [](const auto& n) { return n.starts_with(".step-"); }));
}

TEST(Resume, OnEveryOtherLayoutTheNextStepsAreTheSame) {
  const TempDir dir;
  const Result whole = run(job(4, small_job(dir / "whole", 2, 1, 2, {"--steps", "6", "--save-every", "3"})), 120);
  ASSERT_EQ(whole.code, 0) << whole.output;
  const auto expected = steps_of(dir / "whole");
  ASSERT_EQ(expected.size(), 6u);
  struct Layout {
    int pp, dp, tp;
    std::vector<std::string> more;
  };
  const Layout layouts[] = {{1, 1, 1, {}},
                            {1, 1, 2, {"--micro-batch", "2"}},
                            {4, 1, 1, {"--schedule", "zb-h1"}},
                            {1, 2, 2, {}},
                            {2, 2, 1, {"--schedule", "gpipe", "--recompute", "full"}},
                            {1, 4, 1, {}},
                            {1, 1, 3, {}}};
  for (const Layout& l : layouts) {
    SCOPED_TRACE(fmt::format("pp {} dp {} tp {}", l.pp, l.dp, l.tp));
    const fs::path out = dir / fmt::format("{}x{}x{}", l.pp, l.dp, l.tp);
    fs::create_directories(out);
    fs::copy(dir / "whole" / "step-000003", out / "step-000003", fs::copy_options::recursive);
    std::vector<std::string> more{"--resume", "auto", "--steps", "6"};
    more.insert(more.end(), l.more.begin(), l.more.end());
    const Result r = run(job(l.pp * l.dp * l.tp, small_job(out, l.pp, l.dp, l.tp, more)), 120);
    ASSERT_EQ(r.code, 0) << r.output;
    const auto steps = steps_of(out);
    ASSERT_EQ(steps.size(), 3u);
    for (size_t s = 0; s < 3; ++s) {
      const double a = expected[s + 3]["loss"].get<double>(), b = steps[s]["loss"].get<double>();
      // The first is computed from the same weights; later ones from weights that differ in rounding.
      EXPECT_LE(std::abs(a - b), (s == 0 ? 1e-6 : 1e-5) * a) << "step " << s + 4;
      // The same rows in the same order.
      EXPECT_EQ(expected[s + 3]["rows_seen"], steps[s]["rows_seen"]);
      EXPECT_EQ(expected[s + 3]["trained_tokens"], steps[s]["trained_tokens"]);
    }
  }
}

TEST(Resume, AnotherJobIsRefusedAndNamed) {
  const TempDir dir;
  const Result first = run(job(1, small_job(dir / "out", 1, 1, 1, {"--steps", "2", "--save-every", "1"})), 60);
  ASSERT_EQ(first.code, 0) << first.output;
  const std::string from = (dir / "out" / "step-000001").string();
  int n = 0;
  const auto resume = [&](std::vector<std::string> more) {
    more.insert(more.end(), {"--resume", from, "--steps", "2"});
    return run(job(1, small_job(dir / std::to_string(n++), 1, 1, 1, more)), 60);
  };
  struct Case {
    std::string name;
    std::vector<std::string> args;
  };
  const Case cases[] = {{"lr", {"--lr", "0.5"}}, {"seed", {"--seed", "9"}}, {"batch", {"--batch", "8"}}, {"seq-len", {"--seq-len", "384"}}};
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    const Result r = resume(c.args);
    EXPECT_EQ(r.code, 64) << r.output;
    EXPECT_NE(r.output.find("--resume-allow " + c.name + ";"), std::string::npos) << r.output;
    EXPECT_LE(r.seconds, 20.0);
    std::vector<std::string> allowed = c.args;
    allowed.insert(allowed.end(), {"--resume-allow", c.name});
    const Result ok = resume(allowed);
    EXPECT_EQ(ok.code, 0) << ok.output;
    EXPECT_NE(ok.output.find("(--resume-allow)"), std::string::npos) << ok.output;
  }
  const std::string ids = dir / "ids.jsonl";
  std::ofstream(ids) << R"({"input_ids": [1, 2, 3, 4], "labels": [1, 2, 3, 4]})" << "\n";
  const Result other = run(job(1, {"train", "--model", data("hf/qwen2-untied"), "--init", "random:1", "--data",
                                   ids, "--seq-len", "48", "--batch", "4",
                                   "--steps", "2", "--output", dir / "other", "--resume", from}), 60);
  EXPECT_EQ(other.code, 64) << other.output;
  EXPECT_NE(other.output.find("the model (config.json"), std::string::npos) << other.output;
}

TEST(Output, ASecondJobIsRefusedAndToldWhoHoldsIt) {
  const TempDir dir;
  bool asked = false;
  Result second;
  const Result first = run(job(2, small_job(dir / "out", 1, 1, 2, {"--steps", "100000"})), 60, mpi_environment(),
                           [&](pid_t mpirun, const std::string& output) {
                             if (asked || output.find("step 2/") == std::string::npos) return;
                             asked = true;
                             second = run(job(1, small_job(dir / "out", 1, 1, 1, {"--resume", "auto"})), 30);
                             kill(mpirun, SIGUSR1);
                           });
  ASSERT_TRUE(asked) << first.output;
  EXPECT_EQ(second.code, 73) << second.output;
  EXPECT_NE(second.output.find("another job writes into it: host "), std::string::npos) << second.output;
  EXPECT_NE(second.output.find("pid "), std::string::npos) << second.output;
  EXPECT_NE(second.output.find("since 2"), std::string::npos) << second.output;
  EXPECT_EQ(first.code, 75) << first.output;
  EXPECT_EQ(checkpoints_in(dir / "out"), 1);
}

/// A file system of its own, so small that it fills up.
class SmallDisk {
 public:
  SmallDisk(const fs::path& at, int mib) : at_(at) {
    fs::create_directories(at);
    mounted_ = mount("tmpfs", at.c_str(), "tmpfs", 0, fmt::format("size={}m", mib).c_str()) == 0;
  }
  ~SmallDisk() {
    if (mounted_) umount2(at_.c_str(), MNT_DETACH);
  }
  SmallDisk(const SmallDisk&) = delete;
  SmallDisk& operator=(const SmallDisk&) = delete;
  [[nodiscard]] bool mounted() const { return mounted_; }

 private:
  fs::path at_;
  bool mounted_ = false;
};

// The built-in job writes checkpoints of 28 MiB.
TEST(FullDisk, IsWarnedOfAndTriedAgain) {
  const TempDir dir;
  const SmallDisk disk(dir / "disk", 100);
  if (!disk.mounted()) GTEST_SKIP() << "mounting a tmpfs needs root";
  const fs::path hog = dir / "disk" / "hog";
  bool filled = false, freed = false;
  const Result r = run(job(2, small_job(dir / "disk" / "out", 1, 1, 2, {"--steps", "8", "--save-every", "2", "--keep-last", "1"})), 120, mpi_environment(),
                       [&](pid_t, const std::string& output) {
                         if (!filled && output.find("checkpoint ") != std::string::npos) {
                           filled = true;
                           std::ofstream(hog) << std::string(static_cast<size_t>(fs::space(dir / "disk").available) - (4u << 20), 'x');
                         }
                         if (!freed && output.find("failure 1 of 3") != std::string::npos) {
                           freed = true;
                           fs::remove(hog);
                         }
                       });
  ASSERT_TRUE(filled && freed) << r.output;
  EXPECT_EQ(r.code, 0) << r.output;
  EXPECT_EQ(staging_in(dir / "disk" / "out"), 0);
  const Result verified = run(front_door({"verify", "--checkpoint", dir / "disk" / "out" / "step-000008"}), 30);
  EXPECT_EQ(verified.code, 0) << verified.output;
}

TEST(FullDisk, ThreeFailuresEndTheJobAndTheLastGoodStays) {
  const TempDir dir;
  const SmallDisk disk(dir / "disk", 100);
  if (!disk.mounted()) GTEST_SKIP() << "mounting a tmpfs needs root";
  bool filled = false;
  const Result r = run(job(2, small_job(dir / "disk" / "out", 1, 1, 2, {"--steps", "100000", "--save-every", "2"})), 120, mpi_environment(),
                       [&](pid_t, const std::string& output) {
                         if (filled || output.find("checkpoint ") == std::string::npos) return;
                         filled = true;
                         std::ofstream(dir / "disk" / "hog") << std::string(static_cast<size_t>(fs::space(dir / "disk").available) - (4u << 20), 'x');
                       });
  ASSERT_TRUE(filled) << r.output;
  EXPECT_EQ(r.code, 73) << r.output;
  EXPECT_EQ(count(r.output, "failure 1 of 3"), 1) << r.output;
  EXPECT_EQ(count(r.output, "failure 2 of 3"), 1) << r.output;
  EXPECT_NE(r.output.find("bytes are needed"), std::string::npos) << r.output;
  EXPECT_EQ(staging_in(dir / "disk" / "out"), 0);
  ASSERT_GE(checkpoints_in(dir / "disk" / "out"), 1);
  for (const std::string& name : names_in(dir / "disk" / "out"))
    if (name.starts_with("step-")) {
      EXPECT_EQ(run(front_door({"verify", "--checkpoint", dir / "disk" / "out" / name}), 30).code, 0) << name;
    }
}

}  // namespace
}  // namespace r1::test
