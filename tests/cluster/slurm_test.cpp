// A real Slurm (slurmctld, two slurmd, munge, fake GPUs) runs r1run with srun and sbatch.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/cluster/cluster_job.h"

namespace r1::test {
namespace {

class Slurm : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = rig_.start(); !why.empty()) GTEST_SKIP() << why;
    if (const std::string why = rig_.start_slurm(); !why.empty()) GTEST_SKIP() << why;
    write_rows(rig_.path() / "rows.jsonl");
  }
  [[nodiscard]] Result slurm(const std::vector<std::string>& command, double limit_s = 60) const {
    return run(rig_.on(1, command), limit_s, rig_.environment());
  }
  [[nodiscard]] static std::string r1run() { return std::string(R1RUN_BIN_DIR) + "/r1run"; }
  [[nodiscard]] std::vector<std::string> job(const std::string& output, int steps,
                                             const std::vector<std::string>& more = {}) const {
    return training(rig_.path() / "rows.jsonl", rig_.path() / output, 2, steps, more);
  }
  [[nodiscard]] std::string log(const std::string& id) const {
    std::ifstream in(rig_.path() / ("r1run-" + id + ".log"));
    return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  }
  /// A value of `scontrol show job`.
  [[nodiscard]] std::string field(const std::string& id, const std::string& name) const {
    const Result r = slurm({"scontrol", "show", "job", id});
    const size_t at = r.output.find(name + "=");
    if (at == std::string::npos) return "";
    const size_t from = at + name.size() + 1;
    return r.output.substr(from, r.output.find_first_of(" \n", from) - from);
  }
  [[nodiscard]] std::string submit(const std::vector<std::string>& args) const {
    const Result r = slurm(std::vector<std::string>{r1run(), "sbatch"} + args +
                           std::vector<std::string>{"--nodes=2", "--submit"});
    EXPECT_EQ(r.code, 0) << r.output;
    const std::string mark = "Submitted batch job ";
    const size_t at = r.output.find(mark);
    if (at == std::string::npos) return "";
    return r.output.substr(at + mark.size(), r.output.find('\n', at) - at - mark.size());
  }
  [[nodiscard]] bool over(const std::string& id) const {
    const std::string state = field(id, "JobState");
    return state == "COMPLETED" || state == "FAILED" || state == "TIMEOUT" ||
           state == "CANCELLED" || state == "NODE_FAIL";
  }
  /// Slurm holds a requeued job for two minutes, which the ends of the last start's steps need some
  /// seconds of. True when this one was held, and now is not.
  [[nodiscard]] bool hurry(const std::string& id, const std::string& more = "") const {
    if (field(id, "JobState") != "PENDING" || field(id, "Restarts") == "0" || steps_left(id))
      return false;
    std::vector<std::string> command{"scontrol", "update", "JobId=" + id, "StartTime=now"};
    if (!more.empty()) command.push_back(more);
    return slurm(command).code == 0;
  }
  /// Whether parents of the job's steps still run: those of this rig, told by their environment.
  [[nodiscard]] bool steps_left(const std::string& id) const {
    for (const pid_t pid : processes_with(fmt::format("slurmstepd: [{}.", id))) {
      std::ifstream in(fmt::format("/proc/{}/environ", pid), std::ios::binary);
      const std::string env{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
      if (env.find(rig_.path().string()) != std::string::npos) return true;
    }
    return false;
  }
  HostsRig rig_;
};

TEST_F(Slurm, SrunAndAllocationRunToCompletion) {
  // Under srun itself: r1run is the parent of each task's rank.
  const Result direct = slurm(std::vector<std::string>{"srun", "-N2", "-n2", "--ntasks-per-node=1",
                                                       "--mpi=pmix", r1run(), "train"} +
                              job("direct", 20));
  EXPECT_EQ(direct.code, 0) << direct.output;
  EXPECT_EQ(losses(rig_.path() / "direct").size(), 20u);
  // Without PMIx each task would train alone.
  const Result without =
      slurm(std::vector<std::string>{"srun", "-N2", "-n2", "--mpi=none", r1run(), "train"} +
            job("none", 20));
  EXPECT_NE(without.code, 0);
  EXPECT_GE(count(without.output, "srun --mpi=pmix"), 1) << without.output;
  EXPECT_FALSE(fs::exists(rig_.path() / "none" / "metrics.jsonl"));
  // Inside an allocation, with nothing: r1run starts srun itself.
  const Result inside = slurm(std::vector<std::string>{"salloc", "-N2", "--ntasks-per-node=1",
                                                       "--gres=gpu:1", r1run(), "train"} +
                              job("inside", 20));
  EXPECT_EQ(inside.code, 0) << inside.output;
  EXPECT_EQ(losses(rig_.path() / "inside"), losses(rig_.path() / "direct"));
}

// r1run in an allocation: its srun binds the ranks, a notice of Slurm's saves, a cut host is named.
TEST_F(Slurm, RanksAreBoundANoticeSavesAndACutHostIsNamed) {
  ASSERT_EQ(run({r1run(), "topo", "--json", (rig_.path() / "here.json").string()}).code, 0);
  auto environment = rig_.environment();
  environment.emplace_back("R1TEST_UNLISTED", "1");
  const auto allocation = [&](const std::string& output, const std::vector<std::string>& more,
                              const std::function<void(pid_t, const std::string&)>& hook) {
    return run(rig_.on(1, std::vector<std::string>{"salloc", "-N2", "--ntasks-per-node=1", r1run(), "train"} +
                              job(output, 100000, more)),
               90, environment, hook);
  };
  const auto is_rank = [&](pid_t pid, const std::string& output) {
    std::ifstream name(fmt::format("/proc/{}/comm", pid)), line(fmt::format("/proc/{}/cmdline", pid));
    std::string comm, words;
    std::getline(name, comm);
    std::getline(line, words);
    return comm == "r1run-rank" && words.find((rig_.path() / output).string()) != std::string::npos;
  };

  // What a rank runs with: the CPUs of its place, and of the environment only what is listed.
  std::vector<std::string> cpus, environments;
  double at = 0;
  const Result saved = allocation("saved", {"--save-every=0", "--topology=" + (rig_.path() / "here.json").string()},
                                  [&](pid_t, const std::string& text) {
    if (at > 0 || last_step(rig_.path() / "saved") < 20) return;
    for (const pid_t pid : rig_.processes()) {
      if (!is_rank(pid, "saved")) continue;
      std::ifstream status(fmt::format("/proc/{}/status", pid)), env(fmt::format("/proc/{}/environ", pid));
      for (std::string line; std::getline(status, line);)
        if (line.starts_with("Cpus_allowed_list:")) cpus.push_back(line.substr(line.find('\t') + 1));
      environments.emplace_back(std::istreambuf_iterator<char>(env), std::istreambuf_iterator<char>());
    }
    const std::string mark = "Granted job allocation ";
    const size_t id = text.find(mark);
    ASSERT_NE(id, std::string::npos) << text;
    const std::string number = text.substr(id + mark.size(), text.find('\n', id) - id - mark.size());
    at = monotonic_s();
    EXPECT_EQ(slurm({"scancel", "--signal=TERM", number + ".0"}).code, 0);
  });
  const double saving = monotonic_s() - at;
  EXPECT_EQ(saved.code, 75) << saved.output;
  ASSERT_GT(at, 0) << saved.output;
  EXPECT_EQ(count(saved.output, "FATAL"), 0) << saved.output;
  EXPECT_LT(saving, 10) << saved.output;
  bool checkpoint = false;
  for (const auto& e : fs::directory_iterator(rig_.path() / "saved"))
    checkpoint = checkpoint || e.path().filename().string().starts_with("step-");
  EXPECT_TRUE(checkpoint) << saved.output;
  ASSERT_EQ(cpus.size(), 2u);
  EXPECT_EQ(cpus[0], cpus[1]);  // one rank a host: each has the whole of its (same) machine
  EXPECT_EQ(count(saved.output, "not bound"), 0) << saved.output;
  for (const std::string& e : environments) {
    EXPECT_NE(e.find("R1RUN_CPUS="), std::string::npos);
    EXPECT_EQ(e.find("R1TEST_UNLISTED="), std::string::npos);
  }

  // A fault of one rank ends the others at once, though SIGTERM alone would let them save.
  at = 0;
  double cause = 0, killed_at = 0;
  const Result killed = allocation("killed", {"--save-every=0"}, [&](pid_t, const std::string& text) {
    if (cause == 0 && text.find("FATAL") != std::string::npos) cause = monotonic_s();
    if (at > 0 || last_step(rig_.path() / "killed") < 20) return;
    for (const pid_t pid : rig_.processes())
      if (at == 0 && is_rank(pid, "killed")) {
        kill(pid, SIGKILL);
        at = killed_at = monotonic_s();
      }
  });
  const double ended = monotonic_s() - at;
  ASSERT_GT(at, 0) << killed.output;
  EXPECT_EQ(killed.code, 75) << killed.output;
  EXPECT_EQ(count(killed.output, "FATAL"), 1) << killed.output;
  EXPECT_GT(cause, 0) << killed.output;
  EXPECT_LT(cause - at, 1) << killed.output;
  EXPECT_LT(ended, 5) << killed.output;

  // Slurm itself would notice after SlurmdTimeout.
  at = 0;
  const Result cut = allocation("cut", {"--save-every=0", "--peer-timeout=2s"}, [&](pid_t, const std::string&) {
    if (at > 0 || last_step(rig_.path() / "cut") < 20) return;
    EXPECT_EQ(rig_.cut(2).code, 0);
    at = monotonic_s();
  });
  const double noticed = monotonic_s() - at;
  ASSERT_GT(at, 0) << cut.output;
  EXPECT_EQ(cut.code, 75) << cut.output;
  EXPECT_EQ(count(cut.output, "r1run: FATAL host=rig2 "), 1) << cut.output;
  EXPECT_LT(noticed, 8) << cut.output;
  std::printf("seconds: saved after a notice %.2f; killed rank: cause %.2f, ended %.2f; cut host: ended %.2f\n", saving,
              cause - killed_at, ended, noticed);
  for (int i = 0; i < 100; ++i, usleep(100'000)) {
    bool left = false;
    for (const pid_t pid : rig_.processes()) left = left || is_rank(pid, "cut");
    if (!left) break;
    ASSERT_LT(i, 99) << "ranks are left";
  }
}

TEST_F(Slurm, TheTimeLimitSavesRequeuesAndLosesNoStep) {
  // How fast this machine is just now, so that the job outlives its first time limit: USR1 comes 0
  // to 30 s after the start (Slurm looks twice a minute).
  const Result trial = slurm(std::vector<std::string>{"srun", "-N2", "-n2", "--ntasks-per-node=1",
                                                      "--mpi=pmix", r1run(), "train"} +
                             job("trial", 200));
  ASSERT_EQ(trial.code, 0) << trial.output;
  double seconds = 0;
  std::ifstream in(rig_.path() / "trial" / "metrics.jsonl");
  for (std::string line; std::getline(in, line);)
    if (const json j = json::parse(line); j["type"] == "step")
      seconds += j["seconds"].get<double>();
  ASSERT_GT(seconds, 0);
  const int steps = static_cast<int>(std::lround(60 / (seconds / 200)));

  const std::string id = submit(job("out", steps, {"--time=1", "--save-before=50s"}));
  ASSERT_NE(id, "");
  bool requeued = false;
  for (int i = 0; i < 400 && !over(id); ++i, usleep(500'000))
    if (hurry(id, "TimeLimit=10")) requeued = true;  // the rest may run without another limit
  const std::string state = field(id, "JobState");
  const std::string text = log(id);
  EXPECT_EQ(state, "COMPLETED") << text;
  EXPECT_TRUE(requeued) << text;
  EXPECT_GE(count(text, "r1run sbatch: back into the queue, newest checkpoint: step "), 1) << text;
  EXPECT_GE(count(text, "r1run: resumed "), 1) << text;
  EXPECT_EQ(count(text, "FATAL"), 0) << text;
  EXPECT_EQ(losses(rig_.path() / "out").size(), static_cast<size_t>(steps)) << text;
  // Each step once: none lost, none computed again.
  std::ifstream metrics(rig_.path() / "out" / "metrics.jsonl");
  int next = 1;
  for (std::string line; std::getline(metrics, line);)
    if (const json j = json::parse(line); j["type"] == "step") {
      ASSERT_EQ(j["step"].get<int>(), next);
      ++next;
    }
  EXPECT_EQ(next, steps + 1);
}

TEST_F(Slurm, AKilledRankIsNamedAndTheJobGoesBackIntoTheQueue) {
  const std::string id = submit(job("out", 100000, {"--save-every=20", "--keep-last=2"}));
  ASSERT_NE(id, "");
  for (int i = 0; i < 300 && last_step(rig_.path() / "out") < 30; ++i) usleep(100'000);
  pid_t rank = -1;
  for (const pid_t pid : processes_with((rig_.path() / "out").string())) {
    std::ifstream name(fmt::format("/proc/{}/comm", pid));
    std::string comm;
    if (std::getline(name, comm) && comm == "r1run-rank") rank = pid;
  }
  ASSERT_GT(rank, 0) << log(id);
  kill(rank, SIGKILL);
  for (int i = 0; i < 200 && field(id, "Restarts") != "1"; ++i) usleep(100'000);
  EXPECT_EQ(field(id, "Restarts"), "1") << log(id);
  EXPECT_EQ(count(log(id), "FATAL"), 1) << log(id);
  EXPECT_EQ(count(log(id), fmt::format("pid={} why=\"signal 9 (killed)\" mesh=\"pp ", rank)), 1)
      << log(id);
  for (int i = 0; i < 60 && count(log(id), "r1run: resumed ") == 0; ++i) {
    (void)hurry(id);
    usleep(500'000);
  }
  EXPECT_EQ(count(log(id), "r1run: resumed "), 1) << log(id);
  // scancel ends it for good.
  (void)slurm({"scancel", id});
  for (int i = 0; i < 150 && !processes_with((rig_.path() / "out").string()).empty(); ++i)
    usleep(100'000);
  EXPECT_TRUE(processes_with((rig_.path() / "out").string()).empty());
  for (int i = 0; i < 300 && !over(id); ++i) usleep(100'000);  // it is "COMPLETING" until both nodes have told Slurm
  EXPECT_EQ(field(id, "JobState"), "CANCELLED") << log(id);
}

}  // namespace
}  // namespace r1::test
