// Generation and task evaluation as a user starts them.
#include <fmt/format.h>

#include "tests/e2e/support.h"

namespace r1::test {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

std::vector<json> lines_of(const fs::path& file) {
  std::ifstream in(file);
  std::vector<json> out;
  for (std::string line; std::getline(in, line);) out.push_back(json::parse(line));
  return out;
}

json reference_of(const std::string& fixture) {
  std::ifstream in(data("hf/" + fixture + "/reference.json"));
  return json::parse(in)["generate"];
}

TEST(Generate, GreedyCompletionsAreTransformersOverMpi) {
  struct Case {
    const char* fixture;
    int pp, dp, tp;
  };
  for (const Case& c : {Case{"qwen3", 1, 1, 3},
                        {"llama3-ropescaled", 2, 1, 4},
                        {"qwen2-8layers", 4, 2, 1},
                        {"qwen2-tied-bf16-sharded", 2, 2, 2}}) {
    SCOPED_TRACE(fmt::format("{} pp {} dp {} tp {}", c.fixture, c.pp, c.dp, c.tp));
    const TempDir dir;
    const json reference = reference_of(c.fixture);
    std::string rows;
    for (const json& g : reference)
      rows += json{{"prompt_ids", g["prompt"]}}.dump() + "\n\n";  // blank lines are skipped
    write_file(dir / "prompts.jsonl", rows);
    const Result r = run(job(c.pp * c.dp * c.tp, {"generate", "--model", data(std::string("hf/") + c.fixture), "--chat",
                                                  dir / "prompts.jsonl", "--max-new-tokens", "24", "--ignore-eos",
                                                  "--pp", std::to_string(c.pp), "--dp", std::to_string(c.dp), "--tp",
                                                  std::to_string(c.tp), "--json", dir / "out.jsonl"}),
                         120);
    ASSERT_EQ(r.code, 0) << r.output;
    const std::vector<json> out = lines_of(dir / "out.jsonl");
    ASSERT_EQ(out.size(), reference.size());
    for (size_t i = 0; i < out.size(); ++i) {
      EXPECT_EQ(out[i]["ids"], reference[i]["greedy_completion"]);
      EXPECT_EQ(out[i]["prompt_ids"], reference[i]["prompt"]);
      EXPECT_EQ(out[i]["finish_reason"], "length");
      EXPECT_EQ(out[i]["logprobs"].size(), 24u);
      EXPECT_TRUE(out[i]["text"].is_null()) << "the directory has no tokenizer";
      for (const json& l : out[i]["logprobs"]) EXPECT_LE(l.get<double>(), 0.0);
    }
  }
}

/// A checkpoint of the built-in model that has learnt two questions by heart.
class Learnt : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    dir_ = std::make_unique<TempDir>();
    write_file(*dir_ / "two.jsonl",
               "{\"question\": \"What is 2+3?\", \"answer\": \"2+3=5\\n#### 5\"}\n"
               "{\"question\": \"Name a large number.\", \"answer\": \"Think big.\\n#### 1,234\"}\n");
    const Result base = run(front_door({"train", "--output", *dir_ / "base", "--steps", "1", "--batch", "1"}), 120);
    ASSERT_EQ(base.code, 0) << base.output;
    EXPECT_NE(base.output.find("A greedy answer from the weights in memory"), std::string::npos);
    const Result r = run(front_door({"train",
                                     "--model",
                                     *dir_ / "base/step-000001",
                                     "--data",
                                     *dir_ / "two.jsonl",
                                     "--output",
                                     *dir_ / "out",
                                     "--steps",
                                     "60",
                                     "--batch",
                                     "2",
                                     "--no-pack",
                                     "--seq-len",
                                     "96",
                                     "--lr",
                                     "3e-3",
                                     "--lr-schedule",
                                     "linear",
                                     "--warmup-steps",
                                     "5"}),
                         200);
    ASSERT_EQ(r.code, 0) << r.output;
  }
  static void TearDownTestSuite() { dir_.reset(); }
  static fs::path model() { return *dir_ / "out/step-000060"; }
  static fs::path file(const std::string& name) { return *dir_ / name; }
  static std::unique_ptr<TempDir> dir_;
};
std::unique_ptr<TempDir> Learnt::dir_;

TEST_F(Learnt, AChatIsAnsweredWithReasoningApart) {
  write_file(file("chat.jsonl"), R"({"messages": [{"role": "user", "content": "What is 2+3?"}]})"
                                 "\n");
  const Result r = run(front_door({"generate", "--model", model(), "--chat", file("chat.jsonl"), "--temperature", "0",
                                   "--max-new-tokens", "64", "--json", file("chat.out")}));
  ASSERT_EQ(r.code, 0) << r.output;
  const json out = lines_of(file("chat.out")).at(0);
  EXPECT_EQ(out["reasoning"], "2+3=5");
  EXPECT_EQ(out["text"], "\\boxed{5}");
  EXPECT_EQ(out["finish_reason"], "stop");
  EXPECT_NE(r.output.find("<think>\n2+3=5\n</think>\n\n\\boxed{5}"), std::string::npos) << r.output;
  EXPECT_NE(r.output.find("sampling: greedy (given)"), std::string::npos) << r.output;
  EXPECT_NE(r.output.find("tok/s"), std::string::npos);
}

TEST_F(Learnt, ReasoningIsDimmedOnATerminal) {
  auto env = mpi_environment();
  env.emplace_back("R1RUN_TERMINAL", "1");  // what the front door says when a person watches
  write_file(file("chat.jsonl"), R"({"messages": [{"role": "user", "content": "What is 2+3?"}]})" "\n");
  const Result r = run(front_door({"generate", "--model", model(), "--chat", file("chat.jsonl"), "--temperature", "0",
                                   "--max-new-tokens", "64"}),
                       30, env);
  ASSERT_EQ(r.code, 0) << r.output;
  EXPECT_NE(r.output.find("\x1b[2m2+3=5\x1b[0m\n\n\\boxed{5}"), std::string::npos) << r.output;
}

TEST_F(Learnt, AStopStringEndsTheTextBeforeIt) {
  const Result r = run(job(2, {"generate",
                               "--model",
                               model(),
                               "--prompt",
                               "What is 2+3?",
                               "--parse-special",
                               "--ignore-eos",
                               "--max-new-tokens",
                               "200",
                               "--stop",
                               "b",
                               "--stop",
                               "e",
                               "--stop",
                               "5",
                               "--stop",
                               "i",
                               "--temperature",
                               "0",
                               "--pp",
                               "2",
                               "--json",
                               file("stop.out")}));
  ASSERT_EQ(r.code, 0) << r.output;
  const json out = lines_of(file("stop.out")).at(0);
  EXPECT_EQ(out["text"].get<std::string>().find_first_of("be5i"), std::string::npos) << out["text"];
  EXPECT_EQ(out["finish_reason"] == "stop", out["ids"].size() < 200u);
}

TEST_F(Learnt, SamplesAreTheSameInEveryLayoutAndBatch) {
  std::string rows;
  for (int i = 0; i < 6; ++i) rows += json{{"prompt", fmt::format("Question {}?", i % 2)}}.dump() + "\n";
  write_file(file("sampled.jsonl"), rows);
  std::vector<json> first;
  for (const auto& [ranks, more] :
       std::vector<std::pair<int, std::vector<std::string>>>{{1, {"--max-batch", "1"}},
                                                             {1, {"--kv-blocks", "14"}},
                                                             {3, {"--tp", "3"}},
                                                             {4, {"--pp", "2", "--dp", "2"}}}) {
    std::vector<std::string> args{"generate",
                                  "--model",
                                  model(),
                                  "--chat",
                                  file("sampled.jsonl"),
                                  "--temperature",
                                  "1.2",
                                  "--top-p",
                                  "0.98",
                                  "--seed",
                                  "7",
                                  "--max-new-tokens",
                                  "40",
                                  "--ignore-eos",
                                  "--json",
                                  file("sampled.out")};
    args.insert(args.end(), more.begin(), more.end());
    const Result r = run(job(ranks, args), 60);
    ASSERT_EQ(r.code, 0) << r.output;
    std::vector<json> out = lines_of(file("sampled.out"));
    for (json& j : out) j.erase("logprobs");  // they differ in their last digits
    if (first.empty()) first = out;
    EXPECT_EQ(out, first) << more[0];
  }
  EXPECT_NE(first[0]["ids"], first[2]["ids"]) << "the same prompt is another request";
}

TEST_F(Learnt, TheTaskCountsRightAnswers) {
  // What was learnt, and a question with another answer than was learnt.
  write_file(file("task.jsonl"),
             bytes_of(file("two.jsonl")) + "{\"question\": \"What is 2+3?\", \"answer\": \"#### 6\"}\n");
  const auto eval = [&](int ranks, std::vector<std::string> more) {
    std::vector<std::string> args{"eval",   "--model",          model(),          "--task", "gsm8k",
                                  "--data", file("task.jsonl"), "--prompt",       "none",   "--max-new-tokens",
                                  "64",     "--json",           file("task.json")};
    args.insert(args.end(), more.begin(), more.end());
    const Result r = run(job(ranks, args), 60);
    EXPECT_EQ(r.code, 0) << r.output;
    return json::parse(bytes_of(file("task.json")));
  };
  const json greedy = eval(2, {"--tp", "2", "--temperature", "0"});
  EXPECT_NEAR(greedy["pass@1"].get<double>(), 2.0 / 3, 1e-9);
  EXPECT_EQ(greedy["rows"][1]["answers"][0], "1,234");
  EXPECT_EQ(greedy["rows"][2]["right"], 0);
  const json sampled = eval(1, {"--samples", "4", "--temperature", "1"});
  EXPECT_GE(sampled["pass@4"].get<double>(), sampled["pass@2"].get<double>());
  EXPECT_GE(sampled["pass@2"].get<double>(), sampled["pass@1"].get<double>());
  EXPECT_GT(sampled["pass@1"].get<double>(), 0.3);
  EXPECT_EQ(sampled["rows"][0]["answers"].size(), 4u);
}

TEST_F(Learnt, WrongInputIsNamedWithItsPlace) {
  write_file(file("bad.jsonl"), "{\"prompt\": \"fine\"}\n{\"prompt\": 7}\n");
  write_file(file("broken.jsonl"), "{\"messages\": [\n");
  write_file(file("empty.jsonl"), "\n");
  write_file(file("noanswer.jsonl"), "{\"question\": \"x\"}\n");
  const std::string m = model();
  struct Case {
    std::vector<std::string> args;
    int code;
    std::vector<std::string> says;
  };
  const Case cases[] = {
      {{"generate"}, 64, {"--model"}},
      {{"generate", "--model", file("nowhere")}, 64, {"nowhere"}},
      {{"generate", "--model", "R1-Distill-Qwen-7B"}, 64, {"r1run plan", "directory"}},
      {{"verify"}, 64, {"--reference FILE", "--layouts", "--checkpoint DIR"}},
      {{"generate", "--model", m}, 64, {"standard input holds no prompt"}},
      {{"generate", "--model", m, "--prompt-ids", "5", "--prompt", "x"}, 64, {"give one of them"}},
      {{"generate", "--model", m, "--prompt-ids", "5,400"}, 64, {"400", "0 to 271"}},
      {{"generate", "--model", m, "--chat", file("nowhere.jsonl")}, 64, {"nowhere.jsonl"}},
      {{"generate", "--model", m, "--chat", file("bad.jsonl")}, 65, {"bad.jsonl:2", "prompt"}},
      {{"generate", "--model", m, "--chat", file("broken.jsonl")}, 65, {"broken.jsonl:1"}},
      {{"generate", "--model", m, "--chat", file("empty.jsonl")}, 64, {"holds no prompt"}},
      {{"generate", "--model", m, "--prompt", "a prompt of some length", "--context", "10"}, 64, {"--context", "10"}},
      {{"generate", "--model", m, "--prompt", "x", "--context", "5000"}, 64, {"4096"}},
      {{"generate", "--model", m, "--prompt", "x", "--kv-blocks", "2", "--max-new-tokens", "100"}, 64, {"--kv-blocks"}},
      {{"generate", "--model", m, "--prompt", "x", "--kv-blocks", "1000000000"}, 69, {"--kv-blocks", "GiB"}},
      {{"generate", "--model", m, "--prompt", "x", "--json", file("no/such/dir.json")}, 73, {"dir.json"}},
      {{"generate", "--model", data("hf/qwen3"), "--prompt", "x"}, 64, {"tokenizer.json", "--prompt-ids"}},
      {{"eval", "--model", m, "--task", "gsm8k", "--data", file("noanswer.jsonl")}, 65, {"noanswer.jsonl:1", "answer"}},
      {{"eval", "--model", m, "--task", "gsm8k", "--data", file("two.jsonl"), "--samples", "2", "--temperature", "0"},
       64,
       {"--samples"}},
      {{"eval", "--model", m, "--data", file("two.jsonl"), "--temperature", "1"}, 64, {"--temperature", "--task"}},
  };
  for (const Case& c : cases) {
    const Result r = run(front_door(c.args));
    EXPECT_EQ(r.code, c.code) << r.output;
    for (const std::string& part : c.says)
      EXPECT_NE(r.output.find(part), std::string::npos) << part << " in\n" << r.output;
  }
}

}  // namespace
}  // namespace r1::test
