// r1run sbatch and r1run mpijob: the texts, read back by bash, by Slurm's sbatch and by the
// MPIJob's own schema.
#include "launch/batch.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "launch/process.h"
#include "run_program.h"
#include "tests/support/expect_error.h"

namespace r1::launch::test {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

JobConfig options(const std::string& command, const std::vector<std::string>& args) {
  return parse_options(command, args);
}

std::string script(const std::vector<std::string>& args) {
  const JobConfig c = options("sbatch", args);
  return slurm_script(c, node_request(c), "/opt/r1run/bin/r1run");
}

std::string text_of(const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

/// The #SBATCH options, comments cut off.
std::vector<std::string> directives(const std::string& text) {
  std::vector<std::string> out;
  std::istringstream in(text);
  for (std::string line, tag, option; std::getline(in, line);)
    if (std::istringstream words(line); words >> tag >> option && tag == "#SBATCH")
      out.push_back(option);
  return out;
}

TEST(NodeRequest, SpreadsRanksOverNodes) {
  struct Case {
    std::vector<std::string> args;
    int nodes, per_node;
    size_t warnings;
  };
  const Case cases[] = {
      {{"--pp=2", "--tp=4"}, 1, 8, 0},
      {{"--pp=2", "--tp=4", "--gpus-per-node=4"}, 2, 4, 0},
      {{"--pp=2", "--tp=4", "--nodes=2"}, 2, 4, 0},
      {{"--pp=2", "--dp=4", "--tp=4"}, 4, 8, 1},     // eight a node is a guess
      {{"--pp=3", "--tp=2", "--nodes=2"}, 2, 3, 1},  // tp across nodes
      {{"--pp=5", "--nodes=2"}, 2, 3, 1},            // uneven
      {{"--pp=2", "--tp=4", "--host=a:4,b:4,c:4"}, 2, 4, 0},
      {{}, 1, 1, 0},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(::testing::PrintToString(c.args));
    const NodeRequest r = node_request(options("sbatch", c.args));
    EXPECT_EQ(r.nodes, c.nodes);
    EXPECT_EQ(r.per_node, c.per_node);
    EXPECT_EQ(r.warnings.size(), c.warnings);
  }
}

TEST(NodeRequest, ContradictionsAreRefused) {
  const auto refused = [](const std::vector<std::string>& args) {
    try {
      (void)node_request(options("sbatch", args));
    } catch (const UsageError& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  EXPECT_NE(refused({"--pp=8", "--nodes=2", "--gpus-per-node=2"}).find("8 ranks"),
            std::string::npos);
  EXPECT_NE(refused({"--pp=2", "--nodes=3"}).find("2 ranks only"), std::string::npos);
  EXPECT_NE(refused({"--pp=2", "--host=a:1,b:2"}).find("equal size"), std::string::npos);
  EXPECT_NE(refused({"--pp=4", "--host=a:1,b:1"}).find("2 slots"), std::string::npos);
  EXPECT_NE(refused({"--pp=2", "--host=a:1,b:1", "--nodes=2"}).find("--nodes"), std::string::npos);
}

// Every word the job gets is the user's, whatever it holds: bash says what it makes of the script.
TEST(Sbatch, BashReadsTheArgumentsBack) {
  const TemporaryDirectory dir;
  const std::vector<std::string> words{
      "a b", "it's",        "$(touch canary)", "`touch canary`", "\"quoted\"",
      "-x",  "back\\slash", "#no comment",     "tab\there",      "ünï",
      "*",   "two\nlines"};
  std::vector<std::string> args{"--output=" + words[2]};
  for (const auto& w : words) args.push_back("--data=" + w);
  const fs::path file = dir.path() / "job.sh";
  std::string text = script(args);
  // Everything after the arguments needs Slurm; printing them does not.
  const size_t end = text.find("resume=(");
  ASSERT_NE(end, std::string::npos);
  std::ofstream(file) << text.substr(0, end) << "printf '%s\\0' \"$output\" \"${arguments[@]}\"\n";
  const Result r =
      run({"bash", "-c", "cd " + dir.path().string() + " && bash job.sh | tr '\\0' '\\1'"});
  ASSERT_EQ(r.code, 0) << r.output;
  std::string expected = words[2] + '\1';
  for (const auto& w : words) expected += "--data=" + w + '\1';
  EXPECT_EQ(r.output, expected);
  EXPECT_FALSE(fs::exists(dir.path() / "canary"));
}

TEST(Sbatch, TopologiesOfTheHostfileGoWithTheJob) {
  const TemporaryDirectory dir;
  const std::string hosts = (dir.path() / "hosts").string();
  std::ofstream(hosts) << "a slots=4 # r1run: topology=maps/a100.xml fabric=/etc/topology.conf\nb slots=4 # r1run: topology=maps/a100.xml\n";
  const std::string text = script({"--pp=2", "--tp=4", "--hostfile=" + hosts});
  EXPECT_NE(text.find("--topology=/etc/topology.conf," + (dir.path() / "maps/a100.xml").string()), std::string::npos) << text;
  // The user's own is the only one.
  const std::string own = script({"--pp=2", "--tp=4", "--hostfile=" + hosts, "--topology=mine.json"});
  EXPECT_NE(own.find("--topology=mine.json"), std::string::npos) << own;
  EXPECT_EQ(own.find("maps/a100.xml"), std::string::npos) << own;
  std::ofstream(hosts) << "a slots=4 # r1run: topology=one.xml\nb slots=4 # r1run: topology=two.xml\n";
  const NodeRequest r = node_request(options("sbatch", {"--pp=2", "--tp=4", "--hostfile=" + hosts}));
  EXPECT_TRUE(r.topology.empty());
  ASSERT_EQ(r.warnings.size(), 1u);
  EXPECT_NE(r.warnings[0].find("2 different topologies"), std::string::npos);
}

TEST(Sbatch, AsksForWhatTheJobNeeds) {
  const std::string text =
      script({"--pp=2", "--tp=4", "--gpus-per-node=4", "--time=1-12:00:00", "--partition=gpu",
              "--account=a1", "--qos=high", "--save-before=90s", "--job-name=tune", "--threads=8",
              "--sbatch-option=--constraint=a100", "--sbatch-option=exclusive",
              "--setup=module load openmpi"});
  const std::vector<std::string> want{
      "--job-name=tune",    "--nodes=2",          "--ntasks=8",         "--ntasks-per-node=4",
      "--gpus-per-node=4",  "--cpus-per-task=8",  "--time=1-12:00:00",  "--partition=gpu",
      "--account=a1",       "--qos=high",         "--signal=B:USR1@90", "--requeue",
      "--open-mode=append", "--output=%x-%j.log", "--constraint=a100",  "--exclusive"};
  EXPECT_EQ(directives(text), want);
  EXPECT_EQ(count(text, "\nmodule load openmpi\n"), 1);
  EXPECT_EQ(count(script({"--device=cpu"}), "gpus-per-node"), 0);
  EXPECT_EQ(count(script({"--host=n1:1,n2:1", "--pp=2"}), "#SBATCH --nodelist=n1,n2\n"), 1);
}

TEST(Sbatch, OptionsOfTheScriptAreNotTheJobs) {
  const std::string text =
      script({"--nodes=1", "--time=5", "--lr=1e-3", "--resume=/old/step-000007"});
  EXPECT_EQ(count(text, "  --lr=0.001\n"), 1) << text;
  EXPECT_EQ(count(text, "\n  --nodes"), 0);
  EXPECT_EQ(count(text, "\n  --time"), 0);
  EXPECT_EQ(count(text, "\n  --resume"), 0);
  // Where the user wants to start from holds until there is a checkpoint of the job's own.
  EXPECT_EQ(count(text, "resume=(--resume=/old/step-000007)"), 1);
  EXPECT_EQ(count(text, "resume=(--resume=auto)"), 1);
}

TEST(Sbatch, ValuesThatCouldBecomeOtherOptionsAreRefused) {
  for (const char* bad : {"--partition=a b", "--partition=a\n#SBATCH --x", "--account=$(x)",
                          "--qos=a#b", "--time=soon", "--time=1:2:3:4", "--time=-5", "--time=1-",
                          "--job-name=A_b", "--setup=a\nb", "--sbatch-option=a b"})
    EXPECT_THROW((void)options("sbatch", {bad}), UsageError) << bad;
  for (const char* good : {"--time=90", "--time=90:30", "--time=1:30:00", "--time=2-0",
                           "--time=2-12:30", "--time=0-12:30:15"})
    EXPECT_NO_THROW((void)options("sbatch", {good})) << good;
}

TEST(Sbatch, ScriptIsGoodShell) {
  const TemporaryDirectory dir;
  for (const auto& args : std::vector<std::vector<std::string>>{
           {}, {"--resume=/x y"}, {"--output=o", "--setup=true"}}) {
    std::ofstream(dir.path() / "job.sh") << script(args);
    const Result r = run({"bash", "-n", (dir.path() / "job.sh").string()});
    EXPECT_EQ(r.code, 0) << r.output;
  }
}

/// Runs the script with stand-ins for r1run and scontrol in a job that Slurm would have started.
class ScriptRun : public ::testing::Test {
 protected:
  void SetUp() override {
    put("scontrol", "#!/bin/sh\necho \"$@\" >>" + at("requeued") +
                        "\nexit 1\n");  // 1: no minute of sleep after it
  }
  [[nodiscard]] std::string at(const std::string& name) const {
    return (dir_.path() / name).string();
  }
  void put(const std::string& name, const std::string& text) const {
    std::ofstream(at(name)) << text;
    fs::permissions(at(name), fs::perms::owner_all);
  }
  /// `r1run` is the body of the stand-in.
  [[nodiscard]] Result start(
      const std::string& r1run,
      const std::function<void(pid_t, const std::string&)>& hook = {}) const {
    put("r1run", "#!/bin/bash\n" + r1run + "\n");
    const JobConfig c = options("sbatch", {"--output=" + at("out")});
    std::ofstream(at("job.sh")) << slurm_script(c, node_request(c), at("r1run"));
    return run({"bash", at("job.sh")}, 20,
               {{"SLURM_JOB_ID", "7"},
                {"SLURM_JOB_NODELIST", "n1"},
                {"PATH", dir_.path().string() + ":/usr/bin:/bin"}},
               hook);
  }
  [[nodiscard]] std::string requeued() const { return text_of(at("requeued")); }
  void commit(int64_t step) const {
    const fs::path dir = dir_.path() / "out" / fmt::format("step-{:06}", step) / "r1run";
    fs::create_directories(dir);
    std::ofstream(dir / "manifest.json") << "{}";
  }
  TemporaryDirectory dir_;
};

TEST(Submit, WithoutSlurmSaysWhereToGo) {
  const Result r = run({R1RUN_BIN_DIR "/r1run", "sbatch", "--tp=2", "--submit"}, 20, {{"PATH", "/nowhere"}});
  EXPECT_EQ(r.code, 69) << r.output;
  EXPECT_EQ(count(r.output, "--submit: there is no sbatch in $PATH"), 1) << r.output;
  EXPECT_EQ(count(r.output, "--write FILE"), 1) << r.output;
}

TEST_F(ScriptRun, CodesPassThroughAndOnly75ComesBack) {
  for (const int code : {0, 64, 65, 69, 70, 73, 76}) {
    const Result r = start("exit " + std::to_string(code));
    EXPECT_EQ(r.code, code) << r.output;
    EXPECT_EQ(requeued(), "") << code;
  }
  EXPECT_EQ(start("exit 75").code, 75);
  EXPECT_EQ(requeued(), "requeue 7\n");
}

TEST_F(ScriptRun, GivesUpAfterThreeFruitlessStarts) {
  commit(8);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(start("exit 75").code, 75);
  EXPECT_EQ(count(requeued(), "requeue 7\n"), 3);
  commit(9);  // progress: the count begins anew
  for (int i = 0; i < 3; ++i) EXPECT_EQ(start("exit 75").code, 75);
  EXPECT_EQ(count(requeued(), "requeue 7\n"), 6);
  const Result last = start("exit 75");
  EXPECT_EQ(last.code, 75);
  EXPECT_EQ(count(requeued(), "requeue 7\n"), 6);
  EXPECT_EQ(count(last.output, "giving up: 3 starts without a new checkpoint (newest: step 9)"), 1)
      << last.output;
}

TEST_F(ScriptRun, TheNoticeIsHandedOnAndWaitedFor) {
  bool sent = false;
  const auto hook = [&](pid_t pid, const std::string& output) {
    if (sent || count(output, "ready") == 0) return;
    sent = true;
    kill(pid, SIGUSR1);
  };
  const Result r = start(
      "trap 'sleep 0.5; echo saved; exit 75' USR1; echo ready; while :; do sleep 0.05; done", hook);
  EXPECT_EQ(r.code, 75) << r.output;
  EXPECT_EQ(count(r.output, "saved"), 1) << r.output;
  EXPECT_EQ(requeued(), "requeue 7\n");
}

TEST_F(ScriptRun, EndedBySlurmIsNotRequeuedByTheScript) {
  bool sent = false;
  const auto hook = [&](pid_t pid, const std::string& output) {
    if (sent || count(output, "ready") == 0) return;
    sent = true;
    kill(pid, SIGTERM);
  };
  const Result r =
      start("trap 'echo saved; exit 75' TERM; echo ready; while :; do sleep 0.05; done", hook);
  EXPECT_EQ(r.code, 75) << r.output;
  EXPECT_EQ(count(r.output, "saved"), 1) << r.output;
  EXPECT_EQ(requeued(), "");
}

TEST_F(ScriptRun, AKilledLauncherIsAFault) {
  EXPECT_EQ(start("kill -KILL $$").code, 75);
  EXPECT_EQ(requeued(), "requeue 7\n");
}

// -- MPIJob

/// YAML as JSON, read by PyYAML.
json read_yaml(const std::string& text) {
  const TemporaryDirectory dir;
  std::ofstream(dir.path() / "in.yaml") << text;
  const Result r =
      run({"python3", "-c",
           "import json,sys,yaml; json.dump(yaml.safe_load(open(sys.argv[1])), sys.stdout)",
           (dir.path() / "in.yaml").string()});
  EXPECT_EQ(r.code, 0) << r.output;
  return json::parse(r.output, nullptr, false);
}

bool has_pyyaml() { return run({"python3", "-c", "import yaml"}).code == 0; }

/// What an API server would refuse or drop: unknown fields, wrong types, missing fields.
void check_schema(const json& value, const json& schema, const std::string& path,
                  std::vector<std::string>* bad) {
  if (schema.value("x-kubernetes-int-or-string", false)) {
    if (!value.is_number_integer() && !value.is_string())
      bad->push_back(path + ": no number or text");
    return;
  }
  const std::string type = schema.value("type", "");
  const bool fits = type == "object"    ? value.is_object()
                    : type == "array"   ? value.is_array()
                    : type == "string"  ? value.is_string()
                    : type == "integer" ? value.is_number_integer()
                    : type == "boolean" ? value.is_boolean()
                                        : true;
  if (!fits) {
    bad->push_back(path + ": not of type " + type);
    return;
  }
  if (schema.contains("enum") &&
      std::find(schema["enum"].begin(), schema["enum"].end(), value) == schema["enum"].end())
    bad->push_back(path + ": not among the allowed values");
  if (value.is_array())
    for (size_t i = 0; i < value.size(); ++i)
      check_schema(value[i], schema.value("items", json::object()),
                   path + "[" + std::to_string(i) + "]", bad);
  if (!value.is_object()) return;
  for (const auto& name : schema.value("required", json::array()))
    if (!value.contains(name.get<std::string>()))
      bad->push_back(path + "." + name.get<std::string>() + ": missing");
  const json properties = schema.value("properties", json::object());
  for (const auto& [name, inner] : value.items()) {
    if (properties.contains(name)) {
      check_schema(inner, properties[name], path + "." + name, bad);
    } else if (schema.contains("additionalProperties")) {
      check_schema(inner, schema["additionalProperties"], path + "." + name, bad);
    } else if (!properties.empty() && name != "apiVersion" && name != "kind") {
      bad->push_back(path + "." + name + ": unknown field");
    }
  }
}

std::vector<std::string> schema_errors(const json& manifest) {
  const json schema =
      json::parse(text_of(fs::path(R1RUN_TEST_DATA) / "topology/k8s/mpijob-v2beta1-schema.json"));
  std::vector<std::string> bad;
  check_schema(manifest, schema, "", &bad);
  return bad;
}

TEST(Mpijob, TheCheckerAcceptsThePublishedExampleAndSeesMistakes) {
  if (!has_pyyaml()) GTEST_SKIP() << "no PyYAML (Debian: python3-yaml)";
  json example =
      read_yaml(text_of(fs::path(R1RUN_TEST_DATA) / "topology/k8s/mpijob-pi-v2beta1.yaml"));
  EXPECT_EQ(schema_errors(example), std::vector<std::string>{});
  example["spec"]["slotPerWorker"] = 2;
  example["spec"]["runPolicy"]["backoffLimit"] = "3";
  example["spec"]["launcherCreationPolicy"] = 1;
  EXPECT_EQ(schema_errors(example).size(), 3u);
}

TEST(Mpijob, FitsTheSchemaAndTheOptions) {
  if (!has_pyyaml()) GTEST_SKIP() << "no PyYAML (Debian: python3-yaml)";
  for (const auto& more : std::vector<std::vector<std::string>>{
           {},
           {"--device=cpu"},
           {"--threads=4", "--namespace=ml", "--volume=claim-a:/data", "--volume=b:/out"}}) {
    std::vector<std::string> args{"--pp=2",
                                  "--tp=4",
                                  "--gpus-per-node=4",
                                  "--image=reg:5000/x/r1run:1",
                                  "--data=it's \"x\": #y\\",
                                  "--output=/out/run"};
    args.insert(args.end(), more.begin(), more.end());
    const JobConfig c = options("mpijob", args);
    const std::string text = mpijob_manifest(c, node_request(c));
    const json m = read_yaml(text);
    ASSERT_TRUE(m.is_object()) << text;
    EXPECT_EQ(schema_errors(m), std::vector<std::string>{}) << text;
    EXPECT_EQ(m["apiVersion"], "kubeflow.org/v2beta1");
    EXPECT_EQ(m["kind"], "MPIJob");
    EXPECT_EQ(m["spec"]["slotsPerWorker"], 4);
    const json &launcher = m["spec"]["mpiReplicaSpecs"]["Launcher"],
               &worker = m["spec"]["mpiReplicaSpecs"]["Worker"];
    EXPECT_EQ(worker["replicas"], 2);
    EXPECT_EQ(launcher["replicas"], 1);
    const json& container = launcher["template"]["spec"]["containers"][0];
    EXPECT_EQ(container["command"], (json{"r1run", "train"}));
    std::vector<std::string> words = container["args"].get<std::vector<std::string>>();
    const JobConfig back = options("train", words);  // the options survive two formats
    EXPECT_EQ(back.data, c.data);
    EXPECT_EQ(back.output, "/out/run");
    EXPECT_EQ(back.resume, "auto");
    EXPECT_EQ(back.pp * back.tp, 8);
    const json limits = worker["template"]["spec"]["containers"][0]
                            .value("resources", json::object())
                            .value("limits", json::object());
    EXPECT_EQ(limits.value("nvidia.com/gpu", 0), c.device == "cpu" ? 0 : 4);
    EXPECT_EQ(worker["template"]["spec"]["containers"][0]["volumeMounts"].size(),
              1 + c.volume.size());
  }
}

TEST(Mpijob, NeedsAnImageAndGoodNames) {
  const JobConfig c = options("mpijob", {});
  EXPECT_THROW((void)mpijob_manifest(c, node_request(c)), UsageError);
  for (const char* bad : {"--volume=a", "--volume=a:b", "--volume=A:/b", "--namespace=x_y",
                          "--image=a b", "--job-name=-a"})
    EXPECT_THROW((void)options("mpijob", {bad}), UsageError) << bad;
}

// A job is described once: what train understands about itself, sbatch and mpijob hand on.
TEST(Batch, EveryOptionOfTrainIsUnderstood) {
  const std::string train = options_markdown("train");
  for (const char* command : {"sbatch", "mpijob"}) {
    const std::string other = options_markdown(command);
    std::istringstream lines(train);
    for (std::string line; std::getline(lines, line);) {
      const size_t from = line.find("`--");
      if (from == std::string::npos) continue;
      const std::string name = line.substr(from + 1, line.find_first_of(" `", from + 1) - from - 1);
      if (name == "--dry-run" || name == "--schedule-print" || name == "--rankfile")
        continue;  // of the person at the terminal; of hosts that a batch job does not choose
      EXPECT_NE(other.find("`" + name), std::string::npos)
          << name << " is missing from r1run " << command
          << ": give it kJob, or kTrain | kSbatch | kMpijob";
    }
  }
}

}  // namespace
}  // namespace r1::launch::test
