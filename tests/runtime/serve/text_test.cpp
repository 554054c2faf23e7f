// generation_config.json, stop strings, and completions as text.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "runtime/core/error.h"
#include "runtime/core/rng.h"
#include "runtime/serve/completion_text.h"
#include "runtime/serve/generation_config.h"

namespace r1::serve {
namespace {

using testing::HasSubstr;

TEST(GenerationConfig, ReadsWhatTheFileSays) {
  const GenerationConfig c = parse_generation_config(
      R"({"do_sample": true, "temperature": 0.6, "top_p": 0.95, "top_k": -1, "eos_token_id": [7, 9], "min_p": null, "x": []})",
      "g.json");
  EXPECT_EQ(c.do_sample, true);
  EXPECT_EQ(c.temperature, 0.6);
  EXPECT_EQ(c.top_p, 0.95);
  EXPECT_EQ(c.top_k, 0) << "-1 stands for all";
  EXPECT_FALSE(c.min_p);
  EXPECT_EQ(c.eos_ids, (std::vector<int64_t>{7, 9}));
  EXPECT_EQ(parse_generation_config(R"({"eos_token_id": 5})", "g.json").eos_ids, (std::vector<int64_t>{5}));
}

TEST(GenerationConfig, NamesWhatCannotBeMeant) {
  for (const char* json : {"", "[]", "{", R"({"do_sample": 1})", R"({"temperature": "hot"})", R"({"temperature": -1})",
                           R"({"top_p": 1.5})", R"({"top_k": 1.5})", R"({"eos_token_id": -1})",
                           R"({"eos_token_id": ["a"]})", R"({"eos_token_id": 99999999999})"}) {
    try {
      static_cast<void>(parse_generation_config(json, "g.json"));
      ADD_FAILURE() << json;
    } catch (const DataError& e) {
      EXPECT_THAT(e.what(), HasSubstr("g.json")) << json;
    }
  }
}

TEST(GenerationConfig, WishesBeatTheFile) {
  const GenerationConfig file = parse_generation_config(
      R"({"do_sample": true, "temperature": 0.6, "top_p": 0.95, "repetition_penalty": 1.1})", "g");
  std::string shown;
  SamplingParams p = resolve_sampling(file, {.seed = 3}, &shown);
  EXPECT_EQ(p.temperature, 0.6);
  EXPECT_EQ(p.top_p, 0.95);
  EXPECT_EQ(p.repetition_penalty, 1.1);
  EXPECT_EQ(p.seed, 3u);
  EXPECT_THAT(shown, HasSubstr("temperature 0.6 (generation_config.json)"));
  p = resolve_sampling(file, {.temperature = 0, .top_p = 0.5}, &shown);
  EXPECT_TRUE(p.greedy());
  EXPECT_THAT(shown, HasSubstr("greedy (given)"));
  p = resolve_sampling(file, {.top_k = 4}, &shown);
  EXPECT_EQ(p.top_k, 4);
  EXPECT_EQ(p.temperature, 0.6);
  EXPECT_THAT(shown, HasSubstr("top-k 4 (given)"));
}

TEST(GenerationConfig, IsGreedyUnlessSamplingIsAskedFor) {
  EXPECT_TRUE(resolve_sampling({}, {}, nullptr).greedy());
  const GenerationConfig file = parse_generation_config(R"({"do_sample": false, "temperature": 0.6})", "g");
  EXPECT_TRUE(resolve_sampling(file, {}, nullptr).greedy())
      << "without do_sample the file's temperature has no effect, as in transformers";
  EXPECT_EQ(resolve_sampling(file, {.top_p = 0.9}, nullptr).temperature, 1.0);
  EXPECT_EQ(resolve_sampling(file, {.temperature = 0.3}, nullptr).temperature, 0.3);
}

std::string streamed(const std::vector<std::string>& stops, const std::string& text, uint64_t seed, bool* found) {
  StopFinder f(stops);
  std::string out;
  const Rng rng(seed, "cuts");
  for (size_t at = 0, i = 0; at < text.size(); ++i) {
    const size_t n = std::min<size_t>(1 + rng.below(i, 4), text.size() - at);
    out += f.push(text.substr(at, n));
    at += n;
  }
  *found = f.found();
  return out + f.finish();
}

TEST(StopFinder, CutsAtTheFirstStopHoweverTheTextArrives) {
  const std::vector<std::string> stops{"\n\nQ:", "abab", "END"};
  for (const std::string text : {"", "a", "one abaabab two", "x\n\nQ: more", "\n\nQ", "EN", "ENDEND", "ab END abab",
                                 "plain text that has none"}) {
    size_t first = std::string::npos;
    for (const std::string& s : stops) first = std::min(first, text.find(s));
    for (uint64_t seed = 0; seed < 20; ++seed) {
      bool found = false;
      EXPECT_EQ(streamed(stops, text, seed, &found), text.substr(0, first)) << text;
      EXPECT_EQ(found, first != std::string::npos) << text;
    }
  }
}

TEST(CompletionText, TellsReasoningFromAnswer) {
  const text::Tokenizer t = text::Tokenizer::load(std::string(R1RUN_TEST_DATA) + "/tokenizers/tiny-mock-deepseek-r1");
  const auto run = [&](const std::string& text, bool open, std::vector<std::string> stops) {
    CompletionText c(t, text::TemplateKind::kR1Distill, open, std::move(stops));
    std::string reasoning, answer;
    for (const int32_t id : t.encode(text, {.parse_special = true})) {
      const CompletionText::Delta d = c.push(id);
      reasoning += d.reasoning;
      answer += d.answer;
      if (c.stopped()) break;
    }
    const CompletionText::Delta d = c.finish();
    EXPECT_EQ(reasoning + d.reasoning, c.reasoning().value_or("")) << "what is streamed is what is kept";
    EXPECT_EQ(answer + d.answer, c.answer());
    return std::pair(c.reasoning(), c.answer());
  };
  using P = std::pair<std::optional<std::string>, std::string>;
  EXPECT_EQ(run("so it is\n</think>\n\nThe answer", true, {}), P("so it is", "The answer"));
  EXPECT_EQ(run("cut off while thinking", true, {}), P("cut off while thinking", ""));
  EXPECT_EQ(run("<think>\nhm\n</think>\n\n42", false, {}), P("hm", "42"));
  EXPECT_EQ(run("  plain, kept as it is\n", false, {}), P(std::nullopt, "  plain, kept as it is\n"));
  EXPECT_EQ(run("hm\n</think>\n\none two three", true, {" two"}), P("hm", "one"));
}

}  // namespace
}  // namespace r1::serve
