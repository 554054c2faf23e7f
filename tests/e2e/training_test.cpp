// Training as a user starts it: transformers' curve, resume, stop on a signal, a killed rank, bad input.
#include <signal.h>

#include "runtime/checkpoint/safetensors.h"
#include "tests/e2e/support.h"

namespace r1::test {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

/// The fixture's 12 batches as JSON lines of input_ids and labels; returns rows a batch.
int write_curve_data(const std::string& fixture, const fs::path& file) {
  const auto f = checkpoint::SafetensorsFile::open(data("hf/" + fixture + "/reference.safetensors"));
  std::ofstream out(file);
  int rows = 0;
  for (int step = 0; step < 12; ++step) {
    const auto read = [&](const std::string& name) {
      const auto& e = f.at("train." + std::to_string(step) + "." + name);
      std::vector<int64_t> v(e.elems());
      f.read_bytes(e, 0, v.data(), e.bytes());
      rows = static_cast<int>(e.shape[0]);
      return v;
    };
    const std::vector<int64_t> ids = read("input_ids"), labels = read("labels");
    const size_t n = ids.size() / static_cast<size_t>(rows);
    for (size_t r = 0; r < static_cast<size_t>(rows); ++r)
      out << json{{"input_ids", std::vector<int64_t>(ids.begin() + static_cast<long>(r * n), ids.begin() + static_cast<long>((r + 1) * n))},
                  {"labels", std::vector<int64_t>(labels.begin() + static_cast<long>(r * n), labels.begin() + static_cast<long>((r + 1) * n))}}
                 .dump()
          << "\n";
  }
  return rows;
}

std::vector<std::string> curve_arguments(const std::string& fixture, const fs::path& file, int rows, const fs::path& output) {
  return {"train", "--model", data("hf/" + fixture), "--data", file, "--output", output, "--steps", "12", "--batch",
          std::to_string(rows), "--seq-len", "48", "--no-shuffle", "--no-pack", "--lr", "0.002", "--warmup-steps", "3", "--beta2",
          "0.95", "--eps", "1e-8", "--weight-decay", "0.1", "--no-decay", "none", "--clip", "1"};
}

void check_curve(const std::string& fixture, int pp, int dp, int tp, std::vector<std::string> more = {}) {
  SCOPED_TRACE(fixture + " pp " + std::to_string(pp) + " dp " + std::to_string(dp) + " tp " + std::to_string(tp));
  const TempDir dir;
  const int rows = write_curve_data(fixture, dir / "data.jsonl");
  std::vector<std::string> args = curve_arguments(fixture, dir / "data.jsonl", rows, dir / "out");
  for (const auto& [name, n] : {std::pair{"--pp", pp}, {"--dp", dp}, {"--tp", tp}}) {
    args.push_back(name);
    args.push_back(std::to_string(n));
  }
  args.insert(args.end(), more.begin(), more.end());
  const Result r = run(job(pp * dp * tp, args), 120);
  ASSERT_EQ(r.code, 0) << r.output;
  std::ifstream in(data("hf/" + fixture + "/reference.json"));
  const json reference = json::parse(in)["train"];
  const std::vector<json> steps = steps_of(dir / "out");
  ASSERT_EQ(steps.size(), 12u);
  for (size_t s = 0; s < 12; ++s) {
    EXPECT_NEAR(steps[s]["loss"].get<double>(), reference["loss"][s].get<double>(), 2e-4) << "step " << s;
    const double norm = reference["grad_norm_before_clip"][s].get<double>();
    EXPECT_NEAR(steps[s]["grad_norm"].get<double>(), norm, 2e-3 * norm) << "step " << s;
  }
}

TEST(Training, FollowsTheCurveOfTransformers) {
  check_curve("qwen2-untied", 1, 1, 1);
  check_curve("qwen2-tied-bf16-sharded", 2, 1, 2);
  check_curve("llama3-ropescaled", 1, 1, 3, {"--recompute", "full"});
  check_curve("qwen3", 2, 2, 2, {"--schedule", "gpipe"});
  check_curve("qwen2-8layers", 4, 1, 1, {"--schedule", "zb-h1", "--recompute", "selective"});
}

TEST(Evaluation, EqualsTheFirstLossOfTransformersInEveryLayout) {
  const std::string fixture = "qwen2-untied";
  const TempDir dir;
  const int rows = write_curve_data(fixture, dir / "all.jsonl");
  std::ifstream all(dir / "all.jsonl");
  std::ofstream first(dir / "data.jsonl");  // the rows of the first step
  std::string line;
  for (int i = 0; i < rows && std::getline(all, line); ++i) first << line << "\n";
  first.close();
  fs::create_directories(dir / "tmp");
  std::ifstream in(data("hf/" + fixture + "/reference.json"));
  const double expected = json::parse(in)["train"]["loss"][0].get<double>();
  for (const auto& [ranks, layout] : std::vector<std::pair<int, std::vector<std::string>>>{
           {1, {}}, {2, {"--tp", "2"}}, {4, {"--pp", "2", "--dp", "2"}}}) {
    std::vector<std::string> args{"eval",   "--model",          data("hf/" + fixture), "--data", dir / "data.jsonl",
                                  "--data", dir / "data.jsonl", "--seq-len",           "48",     "--no-pack",
                                  "--json", dir / "out.json"};
    args.insert(args.end(), layout.begin(), layout.end());
    std::vector<std::string> argv = job(ranks, args);
    argv.insert(argv.begin(), {"env", "TMPDIR=" + (dir / "tmp").string()});
    const Result r = run(argv, 60);
    ASSERT_EQ(r.code, 0) << r.output;
    const json out = json::parse(bytes_of(dir / "out.json"));
    ASSERT_EQ(out["sources"].size(), 2u);
    EXPECT_NEAR(out["sources"][0]["loss"].get<double>(), expected, 2e-4);
    EXPECT_NEAR(out["loss"].get<double>(), expected, 2e-4);
    for (const auto& entry : fs::directory_iterator(dir / "tmp"))
      EXPECT_EQ(entry.path().filename().string().find("r1run-"), std::string::npos) << "left behind: " << entry.path();
  }
}

/// A job on the built-in model with `steps` steps of the same 8-step job.
std::vector<std::string> small_job(const fs::path& output, std::vector<std::string> more) {
  std::vector<std::string> args{"--pp", "2", "--tp", "2", "--steps", "8", "--batch", "4", "--seq-len", "512", "--micro-batch", "1",
                                "--output", output};
  args.insert(args.end(), more.begin(), more.end());
  return args;
}

TEST(Training, ResumeIsBitEqualToTheUninterruptedRun) {
  const TempDir dir;
  const Result whole = run(job(4, small_job(dir / "whole", {"--save-every", "4"})), 120);
  ASSERT_EQ(whole.code, 0) << whole.output;
  // A second output with the checkpoint of step 4 only: as after a stop.
  fs::create_directories(dir / "half");
  fs::copy(dir / "whole" / "step-000004", dir / "half" / "step-000004", fs::copy_options::recursive);
  const Result rest = run(job(4, small_job(dir / "half", {"--resume", "auto"})), 120);
  ASSERT_EQ(rest.code, 0) << rest.output;
  int compared = 0;
  for (const auto& entry : fs::recursive_directory_iterator(dir / "whole" / "step-000008"))
    if (entry.path().extension() == ".safetensors") {
      const fs::path other = dir / "half" / "step-000008" / fs::relative(entry.path(), dir / "whole" / "step-000008");
      EXPECT_TRUE(bytes_of(entry.path()) == bytes_of(other)) << entry.path();
      ++compared;
    }
  EXPECT_EQ(compared, 6) << "weights of two stages, state of four ranks";
  // And the losses of the steps after the restart are the same numbers.
  const auto a = steps_of(dir / "whole"), b = steps_of(dir / "half");
  ASSERT_EQ(a.size(), 8u);
  ASSERT_EQ(b.size(), 4u);
  for (size_t s = 0; s < 4; ++s) EXPECT_EQ(a[s + 4]["loss"], b[s]["loss"]);
}

TEST(Training, AFlippedBitInACheckpointIsNoticed) {
  const TempDir dir;
  const Result first = run(job(4, small_job(dir / "out", {"--steps", "1"})), 120);
  ASSERT_EQ(first.code, 0) << first.output;
  const fs::path file = dir / "out" / "step-000001" / "r1run" / "state-00001-of-00004.safetensors";
  std::string bytes = bytes_of(file);
  ASSERT_GT(bytes.size(), 100000u);
  bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 1);
  std::ofstream(file, std::ios::binary) << bytes;
  const Result r = run(job(4, small_job(dir / "out", {"--resume", (dir / "out" / "step-000001").string()})), 60);
  EXPECT_EQ(r.code, 65) << r.output;
  EXPECT_NE(r.output.find("state-00001-of-00004.safetensors"), std::string::npos) << r.output;
}

TEST(Training, AStepWithoutFullBatchIsFilledNotDropped) {
  // Three rows over two replicas in micro-batches of two: the loss is that of one rank with all three rows.
  const TempDir dir;
  std::vector<double> losses;
  for (const auto& [ranks, more] : {std::pair<int, std::vector<std::string>>{1, {}}, {2, {"--dp", "2", "--micro-batch", "2"}}}) {
    std::vector<std::string> args{"--steps", "3", "--batch", "3", "--output", dir / std::to_string(ranks)};
    if (ranks == 1) args.insert(args.end(), {"--micro-batch", "1"});
    args.insert(args.end(), more.begin(), more.end());
    const Result r = run(job(ranks, args), 120);
    ASSERT_EQ(r.code, 0) << r.output;
    for (const json& s : steps_of(dir / std::to_string(ranks))) losses.push_back(s["loss"].get<double>());
  }
  ASSERT_EQ(losses.size(), 6u);
  for (size_t s = 0; s < 3; ++s) EXPECT_NEAR(losses[s], losses[s + 3], 2e-6 * losses[s]);
}

TEST(Faults, AKilledRankEndsTheJobAndIsNamed) {
  const TempDir dir;
  bool killed = false;
  double at = 0;
  const auto start = std::chrono::steady_clock::now();
  const auto elapsed = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); };
  const Result r = run(job(4, small_job(dir / "out", {"--steps", "100000"})), 60, mpi_environment(), [&](pid_t, const std::string& output) {
    if (killed || output.find("step 3/") == std::string::npos) return;
    // The rank program whose environment says rank 2.
    for (const auto& p : fs::directory_iterator("/proc")) {
      const std::string environment = bytes_of(p.path() / "environ"), name = bytes_of(p.path() / "comm");
      if (name.starts_with("r1run-rank") && environment.find(std::string("OMPI_COMM_WORLD_RANK=2") + '\0') != std::string::npos &&
          bytes_of(p.path() / "cmdline").find(dir.path().string()) != std::string::npos) {
        kill(std::stoi(p.path().filename()), SIGKILL);
        killed = true;
        at = elapsed();
      }
    }
  });
  ASSERT_TRUE(killed) << r.output;
  EXPECT_EQ(r.code, 75) << r.output;
  EXPECT_LE(r.seconds - at, 5.0);
  EXPECT_EQ(count(r.output, "FATAL"), 1) << r.output;
  EXPECT_NE(r.output.find("rank=2"), std::string::npos) << r.output;
}

TEST(Faults, Usr1SavesAtTheNextStepAndEndsWith75) {
  const TempDir dir;
  bool sent = false;
  const Result r = run(job(4, small_job(dir / "out", {"--steps", "100000"})), 60, mpi_environment(), [&](pid_t mpirun, const std::string& output) {
    if (sent || output.find("step 3/") == std::string::npos) return;
    kill(mpirun, SIGUSR1);
    sent = true;
  });
  EXPECT_EQ(r.code, 75) << r.output;
  ASSERT_TRUE(fs::exists(dir / "out")) << r.output;
  int checkpoints = 0;
  for (const auto& e : fs::directory_iterator(dir / "out")) checkpoints += e.path().filename().string().starts_with("step-") ? 1 : 0;
  EXPECT_EQ(checkpoints, 1) << r.output;
  const Result again = run(front_door({"verify", "--checkpoint", [&] {
                             for (const auto& e : fs::directory_iterator(dir / "out"))
                               if (e.path().filename().string().starts_with("step-")) return e.path().string();
                             return std::string();
                           }()}), 30);
  EXPECT_EQ(again.code, 0) << again.output;
}

TEST(Faults, TermToASingleRankSavesFirst) {
  for (const int signal : {SIGTERM, SIGINT}) {
    const TempDir dir;
    bool sent = false;
    const Result r = run(front_door(small_job(dir / "out", {"--steps", "100000"})), 60, {}, [&](pid_t r1run, const std::string& output) {
      if (sent || output.find("step 3/") == std::string::npos) return;
      kill(r1run, signal);
      sent = true;
    });
    EXPECT_EQ(r.code, 75) << r.output;
    EXPECT_EQ(count(r.output, "saving at the next step boundary"), 1) << r.output;
    EXPECT_EQ(count(r.output, "is saved: run the same command with --resume auto"), 1) << r.output;
    int checkpoints = 0;
    for (const auto& e : fs::directory_iterator(dir / "out")) checkpoints += e.path().filename().string().starts_with("step-") ? 1 : 0;
    EXPECT_EQ(checkpoints, 1) << r.output;
  }
}

TEST(Tokenize, EndsWithItsReaderAndAtTerm) {
  const TempDir dir;
  const Result made = run(front_door(small_job(dir / "out", {"--steps", "1"})), 60);
  ASSERT_EQ(made.code, 0) << made.output;
  const std::string program = std::string(R1RUN_BIN_DIR) + "/r1run tokenize --model " + (dir / "out/default-model").string();
  const Result head = run({"/bin/sh", "-c", "yes '{\"text\": \"abc\"}' | " + program + " | head -n 1"}, 20);
  EXPECT_FALSE(head.timed_out);
  EXPECT_EQ(count(head.output, "\"ids\""), 1) << head.output;
  const Result full = run({"/bin/sh", "-c", "echo '{\"text\": \"abc\"}' | " + program + " >/dev/full"}, 20);
  EXPECT_EQ(full.code, 73) << full.output;
  EXPECT_NE(full.output.find("the output cannot be written: No space left on device"), std::string::npos) << full.output;
  const Result counts = run({"/bin/sh", "-c", "echo plain words | " + program + " >/dev/full"}, 20);
  EXPECT_EQ(counts.code, 73) << counts.output;
  // Waiting for its standard input.
  const Result term = run({"/bin/sh", "-c", "sleep 5 | { timeout --kill-after=2 1 " + program + "; echo ended with $?; }"}, 20);
  EXPECT_EQ(count(term.output, "ended with 124"), 1) << term.output;
  EXPECT_EQ(count(term.output, "FATAL"), 0) << term.output;
}

TEST(Faults, TermEndsWith75) {
  const TempDir dir;
  bool sent = false;
  const Result r = run(job(2, {"--tp", "2", "--steps", "100000", "--output", dir / "out"}), 60, mpi_environment(), [&](pid_t mpirun, const std::string& output) {
    if (sent || output.find("step 2/") == std::string::npos) return;
    kill(mpirun, SIGTERM);
    sent = true;
  });
  ASSERT_TRUE(sent) << r.output;
  EXPECT_FALSE(r.timed_out);
  EXPECT_LE(r.seconds, 60);
}

/// One wrong job: arguments, the documented code, and what the message must name.
struct Bad {
  std::string why;
  int ranks;
  std::vector<std::string> args;
  int code;
  std::string names;
};

TEST(BadInput, EachIsAClearMessageAndTheDocumentedCode) {
  const TempDir dir;
  const std::string out = dir / "out";
  const auto write = [&](const std::string& name, const std::string& text) {
    fs::create_directories((dir / name).parent_path());
    std::ofstream(dir / name) << text;
    return (dir / name).string();
  };
  const std::string model = data("hf/qwen2-untied");
  const auto copy_model = [&](const std::string& name) {
    fs::copy(model, dir / name);
    return (dir / name).string();
  };
  const auto edit_config = [&](const std::string& to, const std::string& key, const json& value) {
    std::ifstream in(to + "/config.json");
    json c = json::parse(in);
    in.close();
    c[key] = value;
    std::ofstream(to + "/config.json") << c.dump();
    return to;
  };
  const std::string good = write("good.jsonl", R"({"input_ids": [1, 2, 3, 4], "labels": [1, 2, 3, 4]})" "\n");
  const std::string half = copy_model("half");
  fs::resize_file(half + "/model.safetensors", fs::file_size(half + "/model.safetensors") / 2);
  const auto train = [&](const std::string& m, const std::string& d, std::vector<std::string> more = {}) {
    std::vector<std::string> a{"train", "--model", m, "--data", d, "--output", out, "--steps", "1", "--seq-len", "48", "--no-pack"};
    a.insert(a.end(), more.begin(), more.end());
    return a;
  };
  const std::vector<Bad> table{
      {"world size against mesh", 3, {"--pp", "2", "--tp", "2", "--output", out}, 64, "--pp"},
      {"unknown option", 1, {"train", "--stepz", "3"}, 64, "--steps"},
      {"wrong type", 1, {"train", "--steps", "many"}, 64, "--steps"},
      {"impossible value", 1, {"train", "--lr", "-1"}, 64, "--lr"},
      {"model directory missing", 1, train(dir / "nowhere", good), 64, "nowhere"},
      {"not a model", 1, train(dir.path().string(), good), 65, "config.json"},
      {"half a download", 1, train(half, good), 65, "model.safetensors"},
      {"wrong shape", 1, train(edit_config(copy_model("shape"), "intermediate_size", 161), good), 65, "mlp"},
      {"unknown architecture", 1, train(edit_config(copy_model("arch"), "architectures", json::array({"MambaForCausalLM"})), good), 65, "MambaForCausalLM"},
      {"unknown dtype", 1, train(edit_config(copy_model("dtype"), "dtype", "float8"), good), 65, "float8"},
      {"changes the result", 1, train(edit_config(copy_model("act"), "hidden_act", "gelu"), good), 65, "hidden_act"},
      {"data missing", 1, train(model, dir / "no.jsonl"), 64, "no.jsonl"},
      {"data empty", 1, train(model, write("empty.jsonl", "")), 65, "empty.jsonl"},
      {"data malformed", 1, train(model, write("bad.jsonl", "{\"input_ids\": [1, 2\n")), 65, "bad.jsonl:1"},
      {"token beyond the vocabulary", 1, train(model, write("ids.jsonl", R"({"input_ids": [1, 99999], "labels": [1, 2]})" "\n")), 65, "99999"},
      {"sequence beyond the model", 1, train(model, good, {"--seq-len", "100000000"}), 64, "max_position_embeddings"},
      {"output not writable", 1, {"train", "--model", model, "--data", good, "--output", "/proc/r1run-out", "--steps", "1", "--seq-len", "48"}, 73, "/proc/r1run-out"},
      {"resume from nothing", 1, train(model, good, {"--resume", dir / "nothing"}), 64, "--resume"},
      {"more stages than layers", 5, train(model, good, {"--pp", "5"}), 64, "layers"},
  };
  for (const Bad& bad : table) {
    SCOPED_TRACE(bad.why);
    const Result r = run(job(bad.ranks, bad.args), 60);
    EXPECT_EQ(r.code, bad.code) << r.output;
    EXPECT_NE(r.output.find(bad.names), std::string::npos) << r.output;
    EXPECT_FALSE(r.timed_out);
  }
}

}  // namespace
}  // namespace r1::test
