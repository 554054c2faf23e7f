#include "runtime/data/dataset.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "runtime/data/default/default_job.h"
#include "runtime/data/formats.h"
#include "runtime/tokenizer/byte_level.h"
#include "runtime/tokenizer/tokenizer.h"
#include "tests/runtime/data/support.h"

namespace r1::data {
namespace {

namespace fs = std::filesystem;
using test::message_of;
using test::sft;
using test::slurp;
using test::TempDir;

/// The default model's directory: byte-level tokenizer, R1-distill template.
class DatasetTest : public testing::Test {
 protected:
  void SetUp() override { write_default_model_files(model()); }
  [[nodiscard]] fs::path model() const { return dir_.path() / "model"; }
  [[nodiscard]] text::Tokenizer tokenizer() const { return text::Tokenizer::load(model()); }
  [[nodiscard]] DataOptions options(const fs::path& file) const {
    DataOptions o;
    o.sources = {{file, 1.0}};
    return o;
  }
  TempDir dir_;
};

void expect_sound(const Row& row, int64_t seq_len) {
  ASSERT_EQ(row.ids.size(), static_cast<size_t>(seq_len));
  ASSERT_EQ(row.targets.size(), static_cast<size_t>(seq_len));
  EXPECT_EQ(std::accumulate(row.segments.begin(), row.segments.end(), int64_t{0}), seq_len);
  EXPECT_TRUE(
      std::all_of(row.segments.begin(), row.segments.end(), [](int32_t n) { return n > 0; }));
  EXPECT_TRUE(row.segments.size() == row.samples.size() ||
              row.segments.size() == row.samples.size() + 1);
  size_t at = 0;
  int64_t trained = 0;
  for (size_t s = 0; s < row.segments.size(); ++s) {
    const auto n = static_cast<size_t>(row.segments[s]);
    for (size_t i = 0; i < n; ++i) {
      const int32_t target = row.targets[at + i];
      if (target < 0) {
        EXPECT_EQ(target, -1);
        continue;
      }
      ++trained;
      ASSERT_LT(s, row.samples.size()) << "padding is not trained";
      ASSERT_LT(i + 1, n) << "the last token of a sample has no target";
      EXPECT_EQ(target, row.ids[at + i + 1]);
    }
    at += n;
  }
  EXPECT_EQ(trained, row.trained_tokens);
}

/// All rows of an epoch, checked one by one; returns how often each sample came.
std::map<int64_t, int> check_epoch(const Dataset& data, int64_t epoch) {
  std::map<int64_t, int> seen;
  for (int64_t r = 0; r < data.rows_per_epoch(); ++r) {
    const Row row = data.row(epoch * data.rows_per_epoch() + r);
    expect_sound(row, data.seq_len());
    size_t at = 0;
    for (size_t s = 0; s < row.samples.size(); ++s) {
      ++seen[row.samples[s]];
      const TokenSample sample = data.sample(row.samples[s]);
      const auto n = static_cast<size_t>(row.segments[s]);
      EXPECT_EQ(n, std::min(sample.ids.size(), static_cast<size_t>(data.seq_len())))
          << "a sample is split";
      for (size_t i = 0; i < n; ++i) {
        EXPECT_EQ(row.ids[at + i], sample.ids[i]);
        if (i + 1 < n) {
          EXPECT_EQ(row.targets[at + i], sample.labels[i + 1] < 0 ? -1 : sample.labels[i + 1]);
        }
      }
      at += n;
    }
    for (; at < row.ids.size(); ++at) EXPECT_EQ(row.ids[at], data.pad_id());
  }
  return seen;
}

TEST_F(DatasetTest, Gsm8kIsRenderedAsAnR1Answer) {
  const auto tok = tokenizer();
  const Dataset data = Dataset::open(options(sft("gsm8k_8.jsonl")), tok);
  ASSERT_EQ(data.samples(), 8);
  const TokenSample sample = data.sample(1);
  EXPECT_EQ(tok.decode(sample.ids),
            "<｜begin▁of▁sentence｜><｜User｜>Weng earns $12 an hour for babysitting. Yesterday, "
            "she just did 50 minutes of "
            "babysitting. How much did she earn?<｜Assistant｜><think>\nWeng earns 12/60 = $0.2 "
            "per minute.\nWorking 50 minutes, she "
            "earned 0.2 x 50 = $10.\n</think>\n\n\\boxed{10}<｜end▁of▁sentence｜>");
  // Trained: from behind "<think>\n" to the end token.
  std::vector<int32_t> trained;
  for (size_t i = 0; i < sample.ids.size(); ++i)
    if (sample.labels[i] >= 0) trained.push_back(sample.labels[i]);
  EXPECT_EQ(tok.decode(trained),
            "Weng earns 12/60 = $0.2 per minute.\nWorking 50 minutes, she earned 0.2 x 50 = "
            "$10.\n</think>\n\n\\boxed{10}<｜end▁of▁sentence｜>");
  EXPECT_EQ(data.sample_line(1), 2);
  EXPECT_EQ(data.stats().sources[0].format, "question-answer");
}

TEST_F(DatasetTest, EveryFormatOfRealRowsIsTrained) {
  const auto tok = tokenizer();
  for (const auto& [name, format, samples] :
       std::vector<std::tuple<std::string, std::string, int64_t>>{
           {"gsm8k_8.jsonl", "question-answer", 8},
           {"alpaca_6.json", "alpaca", 6},
           {"sharegpt_2.json", "sharegpt", 2},
           {"messages_2.jsonl", "messages", 2},
           {"think_3.jsonl", "question-response", 3}}) {
    DataOptions o = options(sft(name));
    const Dataset data = Dataset::open(o, tok);
    EXPECT_EQ(data.samples(), samples) << name;
    EXPECT_EQ(data.stats().sources[0].format, format);
    EXPECT_GT(data.stats().trained_tokens, 0);
    const auto seen = check_epoch(data, 0);
    EXPECT_EQ(static_cast<int64_t>(seen.size()), samples);
    // All turns, and everything with the prompt.
    o.think_history = "all";
    const int64_t all = Dataset::open(o, tok).stats().trained_tokens;
    EXPECT_GE(all, data.stats().trained_tokens);
    o.train_on_prompt = true;
    const auto everything = Dataset::open(o, tok).stats();
    EXPECT_GT(everything.trained_tokens, all);
  }
  const Dataset think = Dataset::open(options(sft("think_3.jsonl")), tok);
  EXPECT_EQ(think.stats().unclosed_think, 1);
}

TEST_F(DatasetTest, EveryAssistantTurnIsTrainedUnlessEarlierThoughtsAreLeftOut) {
  const auto tok = tokenizer();
  const auto trained_text = [&](std::string_view row, const char* history) {
    DataOptions o = options(dir_.write("a.jsonl", row));
    o.think_history = history;
    const TokenSample sample = Dataset::open(o, tok).sample(0);
    std::vector<int32_t> trained;
    for (size_t i = 0; i < sample.ids.size(); ++i)
      if (sample.labels[i] >= 0) trained.push_back(sample.labels[i]);
    return tok.decode(trained);
  };
  const std::string row =
      R"({"messages": [{"role": "user", "content": "q1"}, {"role": "assistant", "content": "one"}, )"
      R"({"role": "user", "content": "q2"}, {"role": "assistant", "content": "two"}]})";
  const std::string both = trained_text(row, "last");
  EXPECT_NE(both.find("one<｜end▁of▁sentence｜>"), std::string::npos) << both;
  EXPECT_NE(both.find("two<｜end▁of▁sentence｜>"), std::string::npos) << both;
  EXPECT_EQ(both.find("q2"), std::string::npos) << both;
  const std::string thoughts =
      R"({"messages": [{"role": "user", "content": "q1"}, {"role": "assistant", "content": "<think>t1</think>one"}, )"
      R"({"role": "user", "content": "q2"}, {"role": "assistant", "content": "<think>t2</think>two"}]})";
  const std::string last = trained_text(thoughts, "last"), all = trained_text(thoughts, "all");
  EXPECT_EQ(last.find("one"), std::string::npos) << last;
  EXPECT_NE(last.find("t2"), std::string::npos) << last;
  EXPECT_NE(all.find("t1"), std::string::npos) << all;
  EXPECT_NE(all.find("two"), std::string::npos) << all;
  // A turn's own word counts.
  std::string skipped = row;
  skipped.insert(skipped.find("\"content\": \"one\""), "\"weight\": 0, ");
  EXPECT_EQ(trained_text(skipped, "last").find("one"), std::string::npos);
}

TEST_F(DatasetTest, TextAndPromptCompletion) {
  const auto tok = tokenizer();
  const int32_t end = *tok.token_id("<｜end▁of▁sentence｜>");
  const Dataset lines = Dataset::open(options(dir_.write("a.txt", "abc\n\nde\r\n")), tok);
  ASSERT_EQ(lines.samples(), 2);
  EXPECT_EQ(lines.sample(1).ids, (std::vector<int32_t>{'d', 'e', end}));
  EXPECT_EQ(lines.sample(1).labels, lines.sample(1).ids);
  EXPECT_EQ(lines.sample_line(1), 3);
  const Dataset pairs = Dataset::open(
      options(dir_.write("a.jsonl", "{\"prompt\": \"ab\", \"completion\": \"c\"}\n")), tok);
  EXPECT_EQ(pairs.sample(0).ids, (std::vector<int32_t>{'a', 'b', 'c', end}));
  EXPECT_EQ(pairs.sample(0).labels, (std::vector<int32_t>{-100, -100, 'c', end}));
  // Control tokens in the text are text, unless asked for.
  DataOptions o = options(dir_.write("b.jsonl", "{\"text\": \"<｜User｜>\"}\n"));
  EXPECT_EQ(Dataset::open(o, tok).sample(0).ids.size(), std::string("<｜User｜>").size() + 1);
  o.parse_special = true;
  EXPECT_EQ(Dataset::open(o, tok).sample(0).ids,
            (std::vector<int32_t>{*tok.token_id("<｜User｜>"), end}));
}

TEST_F(DatasetTest, IdsAreTakenAsTheyAreWithoutATokenizer) {
  DataOptions o =
      options(dir_.write("a.jsonl",
                         "{\"input_ids\": [11, 12, 13, 14], \"labels\": [-100, -100, 13, "
                         "14]}\n{\"input_ids\": [21, 22], \"labels\": [21, 22]}\n"));
  o.seq_len = 5;
  o.pack = o.shuffle = false;
  o.pad_id = 0;
  const Dataset data = Dataset::open(o, nullptr);
  ASSERT_EQ(data.rows_per_epoch(), 2);
  const Row row = data.row(0);
  EXPECT_EQ(row.ids, (std::vector<int32_t>{11, 12, 13, 14, 0}));
  EXPECT_EQ(row.targets, (std::vector<int32_t>{-1, 13, 14, -1, -1}));
  EXPECT_EQ(row.segments, (std::vector<int32_t>{4, 1}));
  EXPECT_EQ(row.trained_tokens, 2);
  EXPECT_EQ(data.row(1).targets, (std::vector<int32_t>{22, -1, -1, -1, -1}));
  EXPECT_EQ(data.row(2).ids, row.ids) << "the next epoch";
  o.sources = {{sft("gsm8k_8.jsonl"), 1.0}};
  EXPECT_NE(
      message_of(ExitCode::kUsage, [&] { (void)Dataset::open(o, nullptr); }).find("tokenizer.json"),
      std::string::npos);
}

TEST_F(DatasetTest, LabelsThatAreNotTheIdsAreTheTargets) {
  DataOptions o;
  o.seq_len = 8;
  const Dataset data = Dataset::from_tokens({{{1, 2, 3}, {-100, 9, -100}}}, o, 7);
  EXPECT_EQ(data.row(0).ids, (std::vector<int32_t>{1, 2, 3, 7, 7, 7, 7, 7}));
  EXPECT_EQ(data.row(0).targets, (std::vector<int32_t>{9, -1, -1, -1, -1, -1, -1, -1}));
}

TEST_F(DatasetTest, PackingPropertiesHold) {
  const auto tok = tokenizer();
  DataOptions o = options(dir_.path() / "slice.jsonl");
  write_default_data(o.sources[0].path);
  for (const int64_t seq_len : {kDefaultSeqLen, int64_t{2048}})
    for (const bool shuffle : {true, false}) {
      o.seq_len = seq_len;
      o.shuffle = shuffle;
      const Dataset data = Dataset::open(o, tok);
      for (const int64_t epoch : {0, 3}) {
        const auto seen = check_epoch(data, epoch);
        EXPECT_EQ(static_cast<int64_t>(seen.size()), data.samples());
        for (const auto& [sample, n] : seen) EXPECT_EQ(n, 1) << sample;
      }
      int64_t tokens = 0, trained = 0;
      for (int64_t r = 0; r < data.rows_per_epoch(); ++r) {
        const Row row = data.row(r);
        trained += row.trained_tokens;
        for (size_t s = 0; s < row.samples.size(); ++s) tokens += row.segments[s];
      }
      EXPECT_EQ(data.stats().tokens, tokens);
      EXPECT_EQ(data.stats().trained_tokens, trained);
      EXPECT_NEAR(
          data.stats().fill,
          static_cast<double>(tokens) / static_cast<double>(data.rows_per_epoch() * seq_len), 1e-9);
    }
}

TEST_F(DatasetTest, RowsDependOnNothingButContentAndSettings) {
  const auto tok = tokenizer();
  const fs::path file = dir_.path() / "slice.jsonl";
  write_default_data(file);
  DataOptions o = options(file);
  o.seq_len = 800;
  o.seed = 11;
  const Dataset one = Dataset::open(o, tok);
  o.threads = 4;
  o.cache_dir = dir_.path() / "cache";
  const Dataset four = Dataset::open(o, tok), cached = Dataset::open(o, tok);
  EXPECT_FALSE(four.stats().sources[0].cached);
  EXPECT_TRUE(cached.stats().sources[0].cached);
  const fs::path copy = dir_.path() / "other-name.jsonl";
  fs::copy_file(file, copy);
  o.sources = {{copy, 1.0}};
  const Dataset moved = Dataset::open(o, tok);
  EXPECT_TRUE(moved.stats().sources[0].cached) << "the cache goes by content";
  for (const Dataset* other : {&four, &cached, &moved}) {
    EXPECT_EQ(other->fingerprint(), one.fingerprint());
    ASSERT_EQ(other->rows_per_epoch(), one.rows_per_epoch());
    for (int64_t r = 0; r < 3 * one.rows_per_epoch(); r += 5) {
      EXPECT_EQ(other->row(r).ids, one.row(r).ids);
      EXPECT_EQ(other->row(r).targets, one.row(r).targets);
      EXPECT_EQ(other->row(r).segments, one.row(r).segments);
      EXPECT_EQ(other->row(r).samples, one.row(r).samples);
    }
  }
  // What changes the rows changes the fingerprint.
  std::set<uint64_t> prints = {one.fingerprint()};
  const auto add = [&](auto change) {
    DataOptions p = o;
    change(p);
    EXPECT_TRUE(prints.insert(Dataset::open(p, tok).fingerprint()).second);
  };
  add([](DataOptions& p) { p.seed = 12; });
  add([](DataOptions& p) { p.seq_len = 801; });
  add([](DataOptions& p) { p.pack = false; });
  add([](DataOptions& p) { p.shuffle = false; });
  add([](DataOptions& p) { p.train_on_prompt = true; });
  add([](DataOptions& p) { p.sources[0].weight = 2.0; });
  add([&](DataOptions& p) { p.sources[0].path = sft("gsm8k_8.jsonl"); });
}

TEST_F(DatasetTest, EpochsAreReshuffled) {
  const auto tok = tokenizer();
  const fs::path file = dir_.path() / "slice.jsonl";
  write_default_data(file);
  DataOptions o = options(file);
  o.seq_len = kDefaultSeqLen;
  const Dataset data = Dataset::open(o, tok);
  const int64_t rows = data.rows_per_epoch();
  int same = 0;
  for (int64_t r = 0; r < rows; ++r) same += data.row(r).samples == data.row(rows + r).samples;
  EXPECT_LT(same, rows / 20);
}

TEST_F(DatasetTest, SeveralSourcesKeepTheirIdsAndWeights) {
  const auto tok = tokenizer();
  DataOptions o;
  o.sources = {
      {sft("gsm8k_8.jsonl"), 2.0}, {sft("alpaca_6.json"), 1.0}, {sft("think_3.jsonl"), 1.0}};
  o.seq_len = 4096;
  const Dataset data = Dataset::open(o, tok);
  EXPECT_EQ(data.samples(), 17);
  EXPECT_EQ(data.stats().samples, 25);
  EXPECT_EQ(data.sample_source(7), 0);
  EXPECT_EQ(data.sample_source(8), 1);
  EXPECT_EQ(data.sample_source(16), 2);
  for (const auto& [sample, n] : check_epoch(data, 2)) EXPECT_EQ(n, sample < 8 ? 2 : 1) << sample;
}

TEST_F(DatasetTest, BadRowsAreNamedAndCounted) {
  const auto tok = tokenizer();
  std::string content = slurp(sft("gsm8k_8.jsonl"));
  content += "{\"question\": 1}\n\n{\"question\": \"q\", \"answer\": \"a\"}\n{broken\n";
  DataOptions o = options(dir_.write("mixed.jsonl", content));
  for (const bool cached : {false, true}) {
    o.cache_dir = cached ? dir_.path() / "cache" : fs::path();
    o.max_bad_rows = 1;
    const std::string message =
        message_of(ExitCode::kBadInput, [&] { (void)Dataset::open(o, tok); });
    EXPECT_NE(message.find("2 bad rows"), std::string::npos) << message;
    EXPECT_NE(message.find("mixed.jsonl:9: `question` is a number, expected a string"),
              std::string::npos)
        << message;
    EXPECT_NE(message.find("mixed.jsonl:12: not valid JSON"), std::string::npos) << message;
    o.max_bad_rows = 2;
    const Dataset data = Dataset::open(o, tok);
    EXPECT_EQ(data.samples(), 9);
    EXPECT_EQ(data.sample_line(8), 11);
    EXPECT_EQ(data.stats().bad_rows, 2);
    ASSERT_EQ(data.stats().bad_row_examples.size(), 2u);
    EXPECT_EQ(data.stats().bad_row_examples[0].line, 9);
  }
  // From the cache, the limit holds all the same.
  o.max_bad_rows = 0;
  EXPECT_NE(
      message_of(ExitCode::kBadInput, [&] { (void)Dataset::open(o, tok); }).find("mixed.jsonl:12"),
      std::string::npos);
}

TEST_F(DatasetTest, TooLongIsAnErrorOrCutOrDropped) {
  const auto tok = tokenizer();
  DataOptions o = options(dir_.write(
      "a.jsonl",
      "{\"text\": \"short\"}\n{\"text\": \"much longer than that\"}\n{\"text\": \"tiny\"}\n"));
  o.seq_len = 10;
  const std::string message = message_of(ExitCode::kBadInput, [&] { (void)Dataset::open(o, tok); });
  EXPECT_NE(message.find("a.jsonl:2: 22 tokens"), std::string::npos) << message;
  EXPECT_NE(message.find("--too-long"), std::string::npos) << message;
  o.too_long = "truncate";
  const Dataset cut = Dataset::open(o, tok);
  EXPECT_EQ(cut.stats().too_long, 1);
  EXPECT_EQ(check_epoch(cut, 0).size(), 3u);
  EXPECT_EQ(cut.stats().tokens, 6 + 10 + 5);
  EXPECT_EQ(cut.stats().trained_tokens, 5 + 9 + 4);
  o.too_long = "drop";
  const Dataset dropped = Dataset::open(o, tok);
  EXPECT_EQ(dropped.stats().too_long, 1);
  const auto seen = check_epoch(dropped, 0);
  EXPECT_EQ(seen.size(), 2u);
  EXPECT_FALSE(seen.contains(1));
  EXPECT_EQ(dropped.stats().trained_tokens, 5 + 4);
  o.seq_len = 3;
  EXPECT_NE(
      message_of(ExitCode::kBadInput, [&] { (void)Dataset::open(o, tok); }).find("all 3 samples"),
      std::string::npos);
  o.seq_len = 0;
  EXPECT_EQ(Dataset::open(o, tok).seq_len(), 22) << "0: the longest sample";
}

TEST_F(DatasetTest, RefusesWhatCannotBeTrained) {
  const auto tok = tokenizer();
  const auto refused = [&](const char* name, std::string_view content, ExitCode code, auto change) {
    DataOptions o = options(dir_.write(name, content));
    change(o);
    return message_of(code, [&] { (void)Dataset::open(o, tok); });
  };
  const auto nothing = [](DataOptions&) {};
  using E = ExitCode;
  const auto has = [](const std::string& message, const char* part) {
    EXPECT_NE(message.find(part), std::string::npos) << message;
  };
  has(refused("a.jsonl", "", E::kBadInput, nothing), "the file is empty");
  has(refused("a.json", "[]", E::kBadInput, nothing), "no rows");
  has(refused("a.jsonl", "{\"a\": 1}\n", E::kBadInput, nothing),
      "a.jsonl:1: cannot tell the format");
  has(refused("a.jsonl", "{\"text\": \"a\"}\n", E::kBadInput,
              [](DataOptions& o) { o.format = "alpaca"; }),
      "no `instruction`");
  has(refused("a.jsonl", "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}\n",
              E::kBadInput, nothing),
      "a.jsonl:1: ");
  has(refused("a.jsonl", "{\"input_ids\": [1, 2], \"labels\": [-100, -100]}\n", E::kBadInput,
              nothing),
      "no token is trained");
  has(refused("a.jsonl", "{\"input_ids\": [1]}\n{\"input_ids\": [1, 999]}\n", E::kBadInput,
              [](DataOptions& o) { o.vocab_size = 999; }),
      "a.jsonl:2: token id 999");
  has(refused("a.jsonl", "{\"text\": \"a\"}\n", E::kUsage,
              [](DataOptions& o) { o.format = "csv"; }),
      "--format csv: allowed are auto, messages");
  has(refused("a.jsonl", "{\"text\": \"a\"}\n", E::kUsage,
              [](DataOptions& o) { o.too_long = "cut"; }),
      "--too-long cut");
  has(refused("a.jsonl", "{\"text\": \"a\"}\n", E::kUsage,
              [](DataOptions& o) { o.think_history = "x"; }),
      "--think-history x");
  has(refused("a.jsonl", "{\"text\": \"a\"}\n", E::kUsage,
              [](DataOptions& o) { o.sources[0].weight = 0.0; }),
      "weight 0");
  has(refused("a.jsonl", "{\"text\": \"a\"}\n", E::kUsage,
              [](DataOptions& o) { o.sources.clear(); }),
      "--data");
  has(refused("a.jsonl", "{\"question\": \"a\", \"answer\": \"b\"}\n", E::kUsage,
              [](DataOptions& o) { o.model_dir = "/nonexistent"; }),
      "chat template");
}

TEST_F(DatasetTest, DamagedCacheIsMadeAnew) {
  const auto tok = tokenizer();
  DataOptions o = options(sft("gsm8k_8.jsonl"));
  o.cache_dir = dir_.path() / "cache";
  const Row row = Dataset::open(o, tok).row(3);
  fs::path file;
  for (const auto& entry : fs::directory_iterator(o.cache_dir))
    if (entry.path().extension() == ".r1data") file = entry.path();
  ASSERT_FALSE(file.empty());
  const std::string good = slurp(file);
  for (const size_t at : {size_t{20}, size_t{4100}, good.size() - 3}) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 4);
    {
      std::ofstream(file, std::ios::binary)
          .write(bad.data(), static_cast<std::streamsize>(bad.size()));
    }
    const Dataset data = Dataset::open(o, tok);
    EXPECT_FALSE(data.stats().sources[0].cached) << at;
    EXPECT_EQ(data.row(3).ids, row.ids);
    EXPECT_EQ(slurp(file), good) << "repaired, byte for byte";
  }
}

TEST_F(DatasetTest, ManyProcessesShareOneCache) {
  const fs::path file = dir_.path() / "slice.jsonl";
  write_default_data(file);
  DataOptions o = options(file);
  o.cache_dir = dir_.path() / "cache";
  o.seq_len = 512;
  constexpr int kProcesses = 6;
  std::vector<pid_t> children;
  for (int i = 0; i < kProcesses; ++i) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      int code = 9;
      try {
        const auto tok = tokenizer();
        const Dataset data = Dataset::open(o, tok);
        code = data.samples() == 400 && data.row(5).trained_tokens > 0
                   ? (data.stats().sources[0].cached ? 1 : 0)
                   : 8;
      } catch (const std::exception& e) {
        fprintf(stderr, "child %d: %s\n", i, e.what());
      }
      ::_exit(code);
    }
    children.push_back(child);
  }
  int made = 0, shared = 0;
  for (const pid_t child : children) {
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFEXITED(status));
    made += WEXITSTATUS(status) == 0;
    shared += WEXITSTATUS(status) == 1;
  }
  EXPECT_EQ(made, 1) << "one process tokenises";
  EXPECT_EQ(shared, kProcesses - 1) << "the others take what it made";
  size_t caches = 0;
  for (const auto& entry : fs::directory_iterator(o.cache_dir)) {
    EXPECT_TRUE(entry.path().extension() == ".r1data" || entry.path().extension() == ".hash")
        << entry.path();
    caches += entry.path().extension() == ".r1data";
  }
  EXPECT_EQ(caches, 1u);
}

TEST_F(DatasetTest, ProgressIsReportedAndMayStopTheWork) {
  const auto tok = tokenizer();
  std::string content;
  for (int i = 0; i < 2000; ++i) content += "{\"text\": \"some text, over and over again\"}\n";
  DataOptions o = options(dir_.write("big.jsonl", content));
  o.progress_every = {};
  o.cache_dir = dir_.path() / "cache";
  int calls = 0;
  o.progress = [&](const DataProgress& p) {
    ++calls;
    EXPECT_EQ(p.bytes_total, static_cast<int64_t>(content.size()));
    EXPECT_LE(p.bytes_done, p.bytes_total);
    throw StoppedError("stopped by the test");
  };
  EXPECT_NE(message_of(ExitCode::kTemporary, [&] { (void)Dataset::open(o, tok); }), "");
  EXPECT_EQ(calls, 1);
  for (const auto& entry : fs::directory_iterator(o.cache_dir))
    EXPECT_EQ(entry.path().extension(), ".hash") << entry.path();
}

TEST(DataSources, NameAndWeight) {
  const TempDir dir;
  const auto parsed = [](const std::string& text) {
    const DataSource s = parse_data_source(text);
    return std::make_pair(s.path.string(), s.weight);
  };
  EXPECT_EQ(parsed("a.jsonl"), std::make_pair(std::string("a.jsonl"), 1.0));
  EXPECT_EQ(parsed("a.jsonl:0.5"), std::make_pair(std::string("a.jsonl"), 0.5));
  EXPECT_EQ(parsed("dir:x/a:3"), std::make_pair(std::string("dir:x/a"), 3.0));
  const fs::path odd = dir.write("a:2", "x");
  EXPECT_EQ(parsed(odd.string()), std::make_pair(odd.string(), 1.0));
  EXPECT_EQ(parsed(odd.string() + ":2"), std::make_pair(odd.string(), 2.0));
  for (const char* bad : {"", "a:", "a:x", "a:0", "a:-1", "a:nan", "a:inf", ":2", "a:1x"})
    EXPECT_NE(message_of(ExitCode::kUsage, [&] { (void)parse_data_source(bad); }).find("--data"),
              std::string::npos)
        << bad;
}

TEST(DefaultJob, SliceFitsItsRows) {
  const TempDir dir;
  write_default_model_files(dir.path() / "model");
  const auto tok = text::Tokenizer::load(dir.path() / "model");
  EXPECT_LE(tok.vocab_size(), 272);
  DataOptions o;
  o.sources = {{dir.path() / "d" / "slice.jsonl", 1.0}};
  write_default_data(o.sources[0].path);
  o.seq_len = kDefaultSeqLen;
  o.vocab_size = 272;
  const Dataset data = Dataset::open(o, tok);
  EXPECT_EQ(data.samples(), 400);
  EXPECT_EQ(data.stats().too_long, 0);
  EXPECT_EQ(data.stats().bad_rows, 0);
  EXPECT_GT(data.stats().fill, 0.9);
  EXPECT_EQ(data.pad_id(), *tok.token_id("<｜▁pad▁｜>"));
}

}  // namespace
}  // namespace r1::data
