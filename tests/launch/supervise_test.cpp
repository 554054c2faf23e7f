// Records: what they say, how they travel, which one is the cause; commands; the verdict over
// several layouts.
#include "launch/supervise.h"

#include <gtest/gtest.h>
#include <signal.h>

#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "launch/control.h"
#include "launch/shim.h"
#include "launch/verify_layouts.h"
#include "runtime/core/error.h"
#include "run_program.h"

namespace r1::launch {
namespace {

FaultRecord sample() {
  FaultRecord r;
  r.code = 75;
  r.rank = 3;
  r.host = "nodeb";
  r.pid = 812;
  r.why = "signal 9 (killed)";
  r.coordinates = "pp 0 dp 0 tp 3";
  r.step = 41;
  r.phase = "all-reduce #812";
  r.checkpoint_step = 40;
  return r;
}

TEST(Fault, EndingsOfEverySignal) {
  for (int sig = 1; sig < 32; ++sig) {
    const Ending e = ending_of(sig, false);  // the wait status of a death by signal is its number
    EXPECT_TRUE(e.by_signal);
    EXPECT_TRUE(e.code == 70 || e.code == 75) << sig;
  }
  EXPECT_EQ(ending_of(SIGKILL, false).code, 75);
  EXPECT_EQ(ending_of(SIGABRT, false).code, 70);
  EXPECT_NE(ending_of(SIGKILL, true).why.find("out of memory"), std::string::npos);
  for (int code = 0; code < 256; ++code) {
    const Ending e = ending_of(code << 8, false);
    EXPECT_EQ(e.code, code < 126 ? code : 70);
  }
}

TEST(Fault, OneLineWithEveryDetail) {
  EXPECT_EQ(
      describe(sample()),
      "r1run: FATAL rank=3 host=nodeb pid=812 why=\"signal 9 (killed)\" mesh=\"pp 0 dp 0 tp 3\" "
      "step=41 "
      "phase=\"all-reduce #812\" ckpt=40 code=75 next=\"run the same command with --resume auto\"");
  FaultRecord r = sample();
  r.why = "a \"quoted\"\nsecond line\x01";
  EXPECT_NE(describe(r).find("why=\"a 'quoted' | second line \""), std::string::npos)
      << describe(r);
}

TEST(Fault, RecordsTravel) {
  FaultRecord r = sample();
  r.why = "bytes \xff \x1e and\nlines \"x\"";
  const std::string line = to_json_line(r);
  EXPECT_EQ(line.find('\n'), std::string::npos);
  EXPECT_EQ(line.find(kRecordMark), std::string::npos);
  const auto back = from_json_line(line);
  ASSERT_TRUE(back.has_value());
  EXPECT_EQ(describe(*from_json_line(to_json_line(sample()))), describe(sample()));
  EXPECT_EQ(back->rank, 3);
  for (size_t cut = 0; cut < line.size(); ++cut)
    EXPECT_FALSE(from_json_line(line.substr(0, cut)).has_value());
  EXPECT_FALSE(from_json_line("{\"kind\":77}").has_value());
  EXPECT_FALSE(from_json_line("[1]").has_value());
}

// Whatever the pieces in which output arrives, text and records come apart the same.
TEST(RecordFilter, AnyCut) {
  const std::string record = std::string(1, kRecordMark) + to_json_line(sample()) + "\n";
  const std::string stream =
      "step 1\r" + record + "plain\n" + std::string(1, kRecordMark) + "not json\n" + record + "end";
  for (size_t a = 0; a <= stream.size(); ++a) {
    RecordFilter filter;
    std::vector<FaultRecord> records;
    std::string text = filter.feed(std::string_view(stream).substr(0, a), &records);
    text += filter.feed(std::string_view(stream).substr(a), &records);
    text += filter.finish();
    ASSERT_EQ(text, "step 1\rplain\nnot json\nend") << a;
    ASSERT_EQ(records.size(), 2u) << a;
  }
}

TEST(RootCause, PrimaryBeforeSecondaryThenFirst) {
  EXPECT_FALSE(root_cause({}).has_value());
  FaultRecord echo = sample(), first = sample(), second = sample();
  echo.kind = ReportKind::kSecondary;
  echo.rank = 0;
  first.rank = 5;
  second.rank = 4;
  second.why = "another";
  FaultRecord same = first;
  same.rank = 2;
  EXPECT_EQ(root_cause({echo, first, second})->rank, 5);
  EXPECT_EQ(root_cause({echo, first, second, same})->rank, 2);
  EXPECT_EQ(root_cause({echo})->rank, 0);
}

// mpirun notices a loss first (its own message was refused) and does not say of whom: the host whose connection stays open and
// silent is named, those that ended are not.
TEST(Supervise, AHostThatMpirunLostIsNamed) {
  const test::TemporaryDirectory dir;
  const std::string ready = (dir.path() / "ready").string(), go = (dir.path() / "go").string();
  Command command;
  command.argv = {"/bin/sh", "-c", "echo $R1RUN_CONTROL_PORT $R1RUN_CONTROL_TOKEN >" + ready + ".part; mv " + ready + ".part " + ready +
                                  "; while [ ! -e " + go + " ]; do sleep 0.02; done; exit 205"};
  std::jthread hosts([&] {
    while (!std::filesystem::exists(ready)) usleep(10'000);
    int port = 0;
    std::string token;
    std::ifstream(ready) >> port >> token;
    ControlClient lost({"127.0.0.1"}, port, token, "lost", 1);
    {
      ControlClient ended({"127.0.0.1"}, port, token, "ended", 1);
      for (int i = 0; i < 20; ++i) {
        lost.service();
        ended.service();
        usleep(20'000);
      }
      std::ofstream(go) << "now";
    }
    usleep(3'000'000);  // longer than the launcher takes to conclude; the connection stays open
  });
  const JobOutcome outcome = supervise(command, {.hosts = 2, .peer_timeout_s = 1});
  hosts.join();
  EXPECT_EQ(outcome.lost_hosts, std::vector<std::string>{"lost"});
  EXPECT_EQ(outcome.code, 75);
  ASSERT_TRUE(outcome.cause);
  EXPECT_NE(outcome.cause->why.find("unreachable"), std::string::npos) << outcome.cause->why;
}

TEST(CodeWithoutRecord, NeverAMultipleOf256NorAbove125) {
  for (int status = 0; status < 65536; status += 1) {
    if (!WIFEXITED(status) && !WIFSIGNALED(status)) continue;
    if (WIFEXITED(status) && (status & 0x80) != 0) continue;  // no such status exists
    for (const bool stop : {false, true}) {
      const int code = code_without_record(status, stop);
      ASSERT_GE(code, 0);
      ASSERT_LE(code, 125);
      ASSERT_EQ(code == 0, status == 0);
    }
  }
  EXPECT_EQ(code_without_record(205 << 8, false), 75);  // Open MPI lost a daemon
  EXPECT_EQ(code_without_record(1 << 8, false), 64);    // it could not start
  EXPECT_EQ(code_without_record(1 << 8, true), 75);     // asked to end: Open MPI returns 1
}

TEST(Keepalive, StaysWithinTheTimeOut) {
  for (double t = 2; t < 120; t += 0.5) {
    const Keepalive k = keepalive_for(t);
    EXPECT_GE(k.time_s, 1);
    EXPECT_GE(k.interval_s, 1);
    EXPECT_LE(k.time_s + k.interval_s * k.probes, t) << t;
    EXPECT_GE(k.time_s + k.interval_s * k.probes, t - 1) << t;
  }
}

TEST(Command, BindsOnlyWhenThereIsRoom) {
  const RankProgram p{.path = "/b/r1run", .arguments = {"train"}, .ranks = 4, .threads = 2};
  const auto line = [&](int cores, int threads) {
    RankProgram q = p;
    q.threads = threads;
    return shell_line(local_mpirun("mpirun", q, {.cores = cores, .root = false}, {}).argv);
  };
  EXPECT_NE(line(16, 0).find("slot:PE=4 --bind-to core"), std::string::npos);
  EXPECT_NE(line(16, 2).find("slot:PE=2 --bind-to core"), std::string::npos);
  EXPECT_NE(line(4, 2).find("--bind-to none"), std::string::npos);
  EXPECT_NE(line(2, 0).find("--bind-to none"), std::string::npos);
  EXPECT_NE(line(2, 0).find("rmaps_base_oversubscribe 1"), std::string::npos);
  EXPECT_EQ(line(16, 0).find("oversubscribe"), std::string::npos);
  EXPECT_EQ(line(16, 0).find("root"), std::string::npos);
}

TEST(Command, HostsInOrderAndNoSecretInArguments) {
  const Cluster c =
      parse_hostfile("mpi-worker.1.foo.net slots=2\nmpi-worker.2.foo.net slots=2\n", "f");
  const RankProgram p{.path = "/b/r1run", .arguments = {"train"}, .ranks = 4, .threads = 0};
  const auto names =
      exported_variables({"NCCL_DEBUG", "HOME", "NCCL_TOKEN", "AWS_SECRET_ACCESS_KEY",
                          "LD_LIBRARY_PATH", "R1RUN_STATUS_FD", "UCX_NET_DEVICES"});
  EXPECT_EQ(names, (std::vector<std::string>{"NCCL_DEBUG", "LD_LIBRARY_PATH", "UCX_NET_DEVICES"}));
  const Command command =
      cluster_mpirun("mpirun", p, c, {.pp = 2, .dp = 1, .tp = 2}, {}, false, names);
  const std::string line = shell_line(command.argv);
  EXPECT_NE(line.find("--host mpi-worker.1.foo.net:2,mpi-worker.2.foo.net:2"), std::string::npos)
      << line;
  EXPECT_NE(line.find("orte_keep_fqdn_hostnames 1"), std::string::npos);
  EXPECT_NE(line.find("-x NCCL_DEBUG "), std::string::npos);
  EXPECT_NE(line.find("-x R1RUN_CONTROL_TOKEN -x"), std::string::npos);
  EXPECT_EQ(line.find("R1RUN_CONTROL_TOKEN="), std::string::npos);
}

TEST(Command, RanksThatDoNotFitAreRefusedWithLayoutsThatDo) {
  const Cluster c = parse_hostfile("a slots=4\nb slots=4\n", "hosts.txt");
  const RankProgram p{.path = "/b/r1run", .arguments = {}, .ranks = 16, .threads = 0};
  try {
    (void)cluster_mpirun("mpirun", p, c, {.pp = 2, .dp = 2, .tp = 4}, {}, false, {});
    FAIL() << "accepted";
  } catch (const UsageError& e) {
    const std::string said = e.what();
    EXPECT_NE(said.find("needs 16 ranks but hosts.txt offers 8 slots on 2 hosts"),
              std::string::npos)
        << said;
    EXPECT_NE(said.find("--pp"), std::string::npos) << said;
  }
  const Cluster six = parse_hostfile("fe80::1 slots=16\n", "f");
  EXPECT_THROW((void)cluster_mpirun("mpirun", p, six, {.pp = 1, .dp = 4, .tp = 4}, {}, false, {}),
               UsageError);
}

TEST(Command, CrossingTensorGroupsAreNamedBeforeTheStart) {
  const Cluster uneven = parse_hostfile("a slots=3\nb slots=5\n", "f");
  const auto warnings = layout_warnings(uneven, {.pp = 2, .dp = 1, .tp = 4});
  ASSERT_EQ(warnings.size(), 1u);
  EXPECT_NE(warnings[0].find("1 of 2 tensor-parallel groups cross hosts (ranks 0-3: a to b)"),
            std::string::npos)
      << warnings[0];
  EXPECT_TRUE(
      layout_warnings(parse_hostfile("a slots=4\nb slots=4\n", "f"), {.pp = 2, .dp = 1, .tp = 4})
          .empty());
  EXPECT_EQ(block_fill(uneven, 5), (std::vector<int>{0, 0, 0, 1, 1}));
}

TEST(Command, SrunSaysHowManyTasksANodeGets) {
  const RankProgram p{.path = "/b/r1run", .arguments = {"train"}, .ranks = 8, .threads = 2};
  const auto line = [&](const char* nodes, const char* tasks) {
    return shell_line(
        slurm_srun("srun", p, slurm_cluster(nodes, tasks), {.pp = 2, .dp = 1, .tp = 4}, {}).argv);
  };
  EXPECT_NE(line("n[1-2]", "4(x2)")
                .find("--mpi=pmix --kill-on-bad-exit=1 --nodes=2 --ntasks=8 --ntasks-per-node=4"),
            std::string::npos);
  EXPECT_NE(line("n[1-2]", "").find("--nodes=2 --ntasks=8 --ntasks-per-node=4"), std::string::npos);
  EXPECT_NE(line("n[1-2]", "7,1").find("--ntasks-per-node=4"),
            std::string::npos);  // Slurm's own fill would be 7 + 1
  EXPECT_NE(line("n1", "8").find("--nodes=1"), std::string::npos);
  EXPECT_NE(line("n1", "8").find("--cpus-per-task=2"), std::string::npos);
}

// The tasks of srun get what is listed, never everything; and by name, so that no value is an argument.
TEST(Command, SrunExportsAList) {
  const std::vector<std::string> names{"PATH",          "HOME",        "NCCL_DEBUG",       "OMPI_MCA_pml",
                                       "HF_TOKEN",      "MY_VARIABLE", "AWS_SECRET_KEY",   "R1RUN_CONTROL_TOKEN",
                                       "UCX_TLS",       "EDITOR",      "LD_LIBRARY_PATH",  "NCCL_SOME_PASSWORD"};
  EXPECT_EQ(srun_variables(names),
            (std::vector<std::string>{"NCCL_DEBUG", "UCX_TLS", "LD_LIBRARY_PATH", "PATH", "HOME", "OMPI_MCA_pml"}));
  const RankProgram p{.path = "/b/r1run", .arguments = {"train"}, .ranks = 2};
  const Command c = slurm_srun("srun", p, slurm_cluster("n[1-2]", "1(x2)"), {.pp = 2, .dp = 1, .tp = 1}, {"PATH"});
  const std::string line = shell_line(c.argv);
  EXPECT_NE(line.find("--export=R1RUN_SUPERVISED=1,R1RUN_CONTROL_ADDRESS,R1RUN_CONTROL_PORT,"
                      "R1RUN_CONTROL_TOKEN,PATH "),
            std::string::npos)
      << line;
  EXPECT_EQ(line.find("ALL"), std::string::npos) << line;
}

TEST(Command, ShellLineSurvivesAShell) {
  const std::vector<std::string> argv{"printf", "%s\n", "a b", "$(id)", "it's",
                                      "",       "`x`",  "\\",  "*",     "!"};
  FILE* pipe = popen(shell_line(argv).c_str(), "r");
  ASSERT_NE(pipe, nullptr);
  std::string out;
  for (int c = 0; (c = fgetc(pipe)) != EOF;) out += static_cast<char>(c);
  EXPECT_EQ(pclose(pipe), 0);
  EXPECT_EQ(out, "a b\n$(id)\nit's\n\n`x`\n\\\n*\n!\n");
}

TEST(VerifyLayouts, OptionsAreTakenOut) {
  EXPECT_EQ(without_options({"verify", "--json", "x", "--json=y", "--jsonx", "z"}, {"--json"}),
            (std::vector<std::string>{"verify", "--jsonx", "z"}));
}

nlohmann::json verify_result(double loss_error, double logits, double a, double b, bool pass) {
  return {{"loss", 1.0 + loss_error},
          {"loss_ref", 1.0},
          {"loss_rel_err", loss_error},
          {"logits_max_abs_err", logits},
          {"grads", {{"a", a}, {"b", b}}},
          {"worst_grad", {{"name", a > b ? "a" : "b"}, {"rel_l2", std::max(a, b)}}},
          {"pass", pass}};
}

TEST(VerifyLayouts, WorstOverWhatItRan) {
  const auto merged =
      merge_verify_results({{"1x1x1", verify_result(1e-8, 3e-6, 1e-6, 2e-6, true)},
                            {"1x1x2", verify_result(2e-8, 2e-6, 5e-6, 1e-6, true)}});
  EXPECT_EQ(merged["loss_rel_err"], 2e-8);
  EXPECT_EQ(merged["loss"], 1.0 + 2e-8);
  EXPECT_EQ(merged["logits_max_abs_err"], 3e-6);
  EXPECT_EQ(merged["worst_grad"]["name"], "a");
  EXPECT_EQ(merged["worst_grad"]["rel_l2"], 5e-6);
  EXPECT_EQ(merged["grads"]["b"], 2e-6);
  EXPECT_EQ(merged["pass"], true);
}

TEST(VerifyLayouts, OneFailureFailsAndNotANumberIsTheWorst) {
  auto bad = verify_result(1e-8, 1e-6, 1e-6, 1e-6, false);
  bad["loss_rel_err"] = nullptr;
  const auto merged =
      merge_verify_results({{"1x1x1", verify_result(1e-8, 3e-6, 1e-6, 2e-6, true)},
                            {"2x1x1", bad},
                            {"4x1x1", verify_result(5e-8, 3e-6, 1e-6, 2e-6, true)}});
  EXPECT_EQ(merged["pass"], false);
  EXPECT_TRUE(merged["loss_rel_err"].is_null());
  EXPECT_EQ(merge_verify_results({})["pass"], false);
  EXPECT_THROW((void)merge_verify_results({{"1x1x1", nlohmann::json{{"pass", true}}}}), DataError);
}

}  // namespace
}  // namespace r1::launch
