// What hostile tokenizer.json files cost: each is read in a process of its own, which measures its time and its memory.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "runtime/core/error.h"
#include "runtime/tokenizer/tokenizer.h"
#include "runtime/tokenizer/tokenizer_file.h"
#include "tests/support/temp_dir.h"

namespace r1::text {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr bool kInstrumented = true;
#else
constexpr bool kInstrumented = false;
#endif
constexpr double kMostSeconds = kInstrumented ? 40 : 2;
constexpr double kMostMegabytes = kInstrumented ? 4096 : 1024;

struct Cost {
  double seconds = 0;    // processor time of reading it
  double megabytes = 0;  // highest resident memory, the file's text included
  char outcome[400] = "no answer";
};

/// Resident megabytes by name of /proc/self/status: now (VmRSS) or at most (VmHWM).
double resident(const char* name) {
  std::ifstream in("/proc/self/status");
  for (std::string line; std::getline(in, line);)
    if (line.rfind(name, 0) == 0) return std::stod(line.substr(std::strlen(name) + 1)) / 1024;
  return 0;
}

double processor_time() {
  timespec t{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

void read_hostile(const std::function<std::string()>& make, Cost& cost) {
  const double before = resident("VmRSS");
  const std::string text = make();
  const double start = processor_time();
  std::string outcome = "accepted";
  try {
    const Tokenizer t = Tokenizer::from_json(text, "test.json");
    (void)t.decode(t.encode("Hello, <think>42</think> \xc3\xa9\xff\n"));
  } catch (const DataError& e) {
    outcome = e.what();
  } catch (const std::exception& e) {
    outcome = std::string("not a DataError: ") + e.what();
  }
  cost.seconds = processor_time() - start;
  cost.megabytes = resident("VmHWM") - before;
  std::snprintf(cost.outcome, sizeof cost.outcome, "%s", outcome.c_str());
}

Cost cost_of(const std::function<std::string()>& make) {
  int ends[2] = {};
  Cost cost;
  if (pipe(ends) != 0) return cost;
  const pid_t child = fork();
  if (child == 0) {
    read_hostile(make, cost);
    const bool told = write(ends[1], &cost, sizeof cost) == static_cast<ssize_t>(sizeof cost);
    _exit(told ? 0 : 1);
  }
  close(ends[1]);
  if (read(ends[0], &cost, sizeof cost) != static_cast<ssize_t>(sizeof cost)) cost = {};
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  if (status != 0) std::snprintf(cost.outcome, sizeof cost.outcome, "died: status %d", status);
  return cost;
}

std::string repeated(const std::string& part, size_t count) {
  std::string out;
  out.reserve(part.size() * count);
  for (size_t i = 0; i < count; ++i) out += part;
  return out;
}

const std::string kSteps =
    R"("pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"use_regex":true},)";

/// A whole file with this vocabulary, these merges, and more members in front.
std::string file_of(const std::string& vocab, const std::string& merges, const std::string& front = "") {
  return fmt::format(R"({{{}{}"model":{{"type":"BPE","vocab":{{{}}},"merges":[{}]}}}})", front, kSteps, vocab, merges);
}

/// `count` distinct entries "name": i, as many as fit into the largest file.
std::string many_tokens(size_t count, size_t name_bytes) {
  std::string out;
  for (size_t i = 0; i < count && out.size() + name_bytes + 64 < kMaxTokenizerBytes - 4096; ++i) {
    std::string name = std::to_string(i);
    name.resize(std::max(name.size(), name_bytes), 'x');
    out += fmt::format("{}\"{}\":{}", i == 0 ? "" : ",", name, i);
  }
  return out;
}

std::string many_added(size_t count, size_t content_bytes, const std::string& flags) {
  std::string out = "\"added_tokens\":[";
  uint64_t random = 1;
  for (size_t i = 0; i < count && out.size() < kMaxTokenizerBytes - 4096; ++i) {
    std::string content = fmt::format("{}_", i);
    while (content.size() < content_bytes) {
      random = random * 6364136223846793005ULL + 1442695040888963407ULL;
      content += static_cast<char>('a' + (random >> 40) % 26);
    }
    out += fmt::format("{}{{\"id\":{}{},\"content\":\"{}\"}}", i == 0 ? "" : ",", i + 10, flags, content);
  }
  return out + "],";
}

TEST(HostileFiles, CostLittleTimeAndMemory) {
  const size_t most = kMaxTokenizerBytes;
  const std::string pair = R"("a":0,"b":1,"ab":2)";
  const auto steps = [](const char* kind, const char* list, const std::string& step, size_t count) {
    return fmt::format(R"({{"{}":{{"type":"Sequence","{}":[{}{}]}},"model":{{"vocab":{{"a":0}},"merges":[]}}}})", kind, list,
                       repeated(step + ",", count), step);
  };
  struct Case {
    const char* name;
    std::function<std::string()> make;
    const char* outcome;  // part of the message, or "accepted"
  };
  const std::vector<Case> table = {
      {"brackets", [&] { return std::string(most, '['); }, "nested deeper"},
      {"objects in objects", [&] { return repeated("{\"a\":", most / 5); }, "nested deeper"},
      {"larger than any tokenizer", [&] { return std::string(most + 1, ' '); }, "refused"},
      {"white space", [&] { return std::string(most, ' '); }, "not valid JSON"},
      {"one long string", [&] { return "{\"version\":\"" + std::string(most - 100, 'x') + "\"}"; }, "model.vocab"},
      {"a long string that does not end", [&] { return "{\"version\":\"" + std::string(most - 100, '\\'); }, "not valid JSON"},
      {"ill-formed UTF-8", [&] { return "{\"version\":\"" + std::string(most - 100, '\xff') + "\"}"; }, "not valid JSON"},
      {"a number without end", [&] { return "{\"version\":" + std::string(most - 100, '9') + "}"; }, ""},
      {"numbers", [&] { return "{\"x\":[0" + repeated(",0", most / 2 - 100) + "]}"; }, "values"},
      {"empty lists", [&] { return "{\"x\":[0" + repeated(",[]", most / 3 - 100) + "]}"; }, "values"},
      {"a million added tokens", [&] { return file_of(pair, "", many_added(1'000'000, 1, "")); }, "values"},
      {"as many added tokens as may be", [&] { return file_of(pair, "", many_added(100'000, 30, ",\"lstrip\":true")); }, "accepted"},
      {"long added tokens", [&] { return file_of(pair, "", many_added(10'000, 500, "")); }, "bytes of contents"},
      {"one added token, always", [&] { return file_of(pair, "", "\"added_tokens\":[{\"id\":9,\"content\":\"y\"}" + repeated(",{\"id\":9,\"content\":\"y\"}", 90'000) + "],"); }, "id 9"},
      {"as many tokens as may be", [&] { return file_of(many_tokens(kMaxTokenId, 1), ""); }, "accepted"},
      {"four million tokens", [&] { return file_of(many_tokens(size_t{1} << 22, 1), ""); }, "ids are 0 to"},
      {"long tokens", [&] { return file_of(many_tokens(2000, 60'000), ""); }, ""},
      {"a token of 60 MB", [&] { return file_of("\"" + std::string(most - 4096, 'x') + "\":0", ""); }, "a token of"},
      {"an id of 2^31", [&] { return file_of(pair + ",\"c\":2147483648", ""); }, "2147483648"},
      {"the highest id", [&] { return file_of(pair + ",\"c\":" + std::to_string(kMaxTokenId), ""); }, "accepted"},
      {"one id for all", [&] { return file_of("\"a\":0" + repeated(",\"a\":0", 2'000'000), ""); }, "both"},
      {"one merge, always", [&] { return file_of(pair, "\"a b\"" + repeated(",\"a b\"", kMaxMerges - 1), ""); }, "accepted"},
      {"merges as pairs", [&] { return file_of(pair, "[\"a\",\"b\"]" + repeated(",[\"a\",\"b\"]", kMaxMerges - 1), ""); }, "accepted"},
      {"more merges than may be", [&] { return file_of(pair, "\"a b\"" + repeated(",\"a b\"", kMaxMerges), ""); }, "merges"},
      {"a merge of 60 MB", [&] { return file_of(pair, "\"a " + std::string(most - 4096, 'b') + "\""); }, "not in the vocabulary"},
      {"nested quantifiers", [&] { return R"({"pre_tokenizer":{"type":"Split","behavior":"Isolated","pattern":{"Regex":")" + repeated("(", 30'000'000) + "a+)+" + R"("}},"model":{"vocab":{"a":0},"merges":[]}})"; }, "unknown split pattern"},
      {"a pre-tokenizer of many steps", [&] { return steps("pre_tokenizer", "pretokenizers", R"({"type":"Digits"})", 300'000); }, "splitting steps"},
      {"a normalizer of many steps", [&] { return steps("normalizer", "normalizers", R"({"type":"NFC"})", 300'000); }, "ByteLevel"},
      {"a template of many tokens", [&] { return file_of(pair, "", R"("post_processor":{"type":"TemplateProcessing","single":[{"Sequence":{}})" + repeated(R"(,{"SpecialToken":{"id":"a"}})", 200'000) + R"(],"special_tokens":{"a":{"ids":[0]}}},)"); }, "64 tokens"},
  };
  double worst_seconds = 0, worst_megabytes = 0;
  for (const Case& c : table) {
    SCOPED_TRACE(c.name);
    const Cost cost = cost_of(c.make);
    EXPECT_NE(std::string(cost.outcome).find(c.outcome), std::string::npos) << cost.outcome;
    EXPECT_EQ(std::string(cost.outcome).find("not a DataError"), std::string::npos) << cost.outcome;
    EXPECT_EQ(std::string(cost.outcome).find("died"), std::string::npos) << cost.outcome;
    EXPECT_LT(cost.seconds, kMostSeconds);
    EXPECT_LT(cost.megabytes, kMostMegabytes);
    std::printf("%-34s %5.2f s %6.0f MB  %.60s\n", c.name, cost.seconds, cost.megabytes, cost.outcome);
    worst_seconds = std::max(worst_seconds, cost.seconds);
    worst_megabytes = std::max(worst_megabytes, cost.megabytes);
  }
  std::printf("at most %.2f s, %.0f MB\n", worst_seconds, worst_megabytes);
}

TEST(HostileFiles, AFileOfAGigabyteIsNotRead) {
  const test::TempDir dir;
  std::ofstream(dir / "tokenizer.json").put('{');
  std::filesystem::resize_file(dir / "tokenizer.json", std::uintmax_t{1} << 30);
  const double start = processor_time();
  EXPECT_THROW((void)Tokenizer::load(dir.path()), DataError);
  EXPECT_LT(processor_time() - start, 0.5);
}

}  // namespace
}  // namespace r1::text
