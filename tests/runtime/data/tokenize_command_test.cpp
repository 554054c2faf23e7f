#include "runtime/data/tokenize_command.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "runtime/data/default/default_job.h"
#include "runtime/tokenizer/tokenizer.h"
#include "tests/runtime/data/support.h"

namespace r1::data {
namespace {

using nlohmann::json;
using test::message_of;
using test::sft;
using test::slurp;

class TokenizeCommand : public testing::Test {
 protected:
  void SetUp() override {
    write_default_model_files(dir_.path());
    args_.model = dir_.path();
  }
  [[nodiscard]] std::string run(const std::string& input) const {
    std::istringstream in(input);
    std::ostringstream out;
    run_tokenize(args_, in, out);
    return out.str();
  }
  [[nodiscard]] std::vector<json> run_json(const std::string& input) const {
    std::vector<json> lines;
    std::istringstream out(run(input));
    for (std::string line; std::getline(out, line);) lines.push_back(json::parse(line));
    return lines;
  }
  test::TempDir dir_;
  TokenizeArgs args_;
};

TEST_F(TokenizeCommand, TextAndIdsRoundTrip) {
  const auto out =
      run_json("{\"text\": \"h\u00e9\"}\n\n{\"ids\": [104, 195, 169, 257]}\n{\"text\": \"\"}\n");
  ASSERT_EQ(out.size(), 3u);
  EXPECT_EQ(out[0], (json{{"ids", {104, 195, 169}}, {"text", "h\u00e9"}}));
  EXPECT_EQ(out[1].at("text"), "h\u00e9<｜end▁of▁sentence｜>");
  EXPECT_EQ(out[2].at("ids"), json::array());
  args_.skip_special = true;
  EXPECT_EQ(run_json("{\"ids\": [104, 257]}")[0].at("text"), "h");
}

TEST_F(TokenizeCommand, ControlTokensOnlyWhenAskedFor) {
  const std::string row = "{\"text\": \"<｜User｜>\"}\n";
  EXPECT_EQ(run_json(row)[0].at("ids").size(), std::string("<｜User｜>").size());
  args_.parse_special = true;
  EXPECT_EQ(run_json(row)[0].at("ids"), json::array({258}));
}

TEST_F(TokenizeCommand, MessagesAreRendered) {
  const std::string row = "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}]}\n";
  auto out = run_json(row)[0];
  EXPECT_EQ(out.at("text"), "<｜begin▁of▁sentence｜><｜User｜>hi");
  EXPECT_EQ(out.at("ids"), (json{256, 258, 'h', 'i'}));
  args_.generation_prompt = true;
  out = run_json(row)[0];
  EXPECT_EQ(out.at("text"), "<｜begin▁of▁sentence｜><｜User｜>hi<｜Assistant｜><think>\n");
  EXPECT_EQ(out.at("ids"), (json{256, 258, 'h', 'i', 259, 260, '\n'}));
}

TEST_F(TokenizeCommand, PlainTextIsCounted) {
  EXPECT_EQ(run("h\u00e9llo\nworld\n"),
            "13 bytes, 12 characters, 2 lines, 13 tokens (1.00 bytes a token)\n");
  EXPECT_EQ(run("no end"), "6 bytes, 6 characters, 1 lines, 6 tokens (1.00 bytes a token)\n");
  EXPECT_EQ(run(""), "0 bytes, 0 characters, 0 lines, 0 tokens (0.00 bytes a token)\n");
  args_.input = "text";
  EXPECT_EQ(run("{\"text\": 1}"),
            "11 bytes, 11 characters, 1 lines, 11 tokens (1.00 bytes a token)\n");
}

TEST_F(TokenizeCommand, TrainShowsTheLossMask) {
  args_.train = true;
  const std::string row =
      slurp(sft("gsm8k_8.jsonl")).substr(0, slurp(sft("gsm8k_8.jsonl")).find('\n') + 1);
  const auto out = run_json(row)[0];
  const auto ids = out.at("ids").get<std::vector<int32_t>>(),
             labels = out.at("labels").get<std::vector<int32_t>>();
  ASSERT_EQ(ids.size(), labels.size());
  int64_t trained = 0;
  for (size_t i = 0; i < ids.size(); ++i) {
    EXPECT_TRUE(labels[i] == -100 || labels[i] == ids[i]);
    trained += labels[i] != -100;
  }
  EXPECT_EQ(out.at("trained_tokens"), trained);
  EXPECT_EQ(labels.front(), -100);
  EXPECT_EQ(labels.back(), 257);
  const auto prompt = out.at("text").get<std::string>().find("<think>\n");
  ASSERT_NE(prompt, std::string::npos);
  // The same in colour: every character is there, and both colours are.
  args_.color = true;
  const std::string shown = run(row);
  std::string plain;
  for (size_t i = 0; i < shown.size(); ++i) {
    if (shown[i] == '\x1b')
      i = shown.find('m', i);
    else
      plain += shown[i];
  }
  EXPECT_NE(plain.find("<｜Assistant｜><think>\u23ce\n"), std::string::npos) << plain;
  EXPECT_NE(plain.find("\\boxed{72}<｜end▁of▁sentence｜>"), std::string::npos) << plain;
  EXPECT_NE(shown.find("\x1b[32m"), std::string::npos);
  EXPECT_NE(shown.find("\x1b[90m"), std::string::npos);
}

TEST_F(TokenizeCommand, TrainShowsTheRowsOfFiles) {
  args_.train = true;
  args_.data.sources = {{sft("gsm8k_8.jsonl")}, {sft("alpaca_6.json")}};
  const auto out = run_json("this input is not read");
  ASSERT_EQ(out.size(), 14u);
  args_.data.sources.clear();
  EXPECT_EQ(run_json(slurp(sft("gsm8k_8.jsonl"))), std::vector<json>(out.begin(), out.begin() + 8));
  std::ofstream(dir_.path() / "bad.jsonl") << "{\"text\": \"a\"}\n\n{\"text\": 1}\n";
  args_.data.sources = {{dir_.path() / "bad.jsonl"}};
  EXPECT_NE(message_of(ExitCode::kBadInput, [&] { (void)run(""); }).find("bad.jsonl:3: `text`"),
            std::string::npos);
}

TEST_F(TokenizeCommand, StatsDescribeTheData) {
  args_.stats = true;
  args_.data.sources = {{dir_.path() / "slice.jsonl", 1.0}, {sft("alpaca_6.json"), 2.0}};
  write_default_data(args_.data.sources[0].path);
  args_.data.seq_len = 256;
  const std::string text = run("");
  for (const char* part : {"400 samples", "question-answer", "alpaca, weight 2", "cumulative",
                           "*     256", "rows", "too long"})
    EXPECT_NE(text.find(part), std::string::npos) << part << "\n" << text;
  args_.json = true;
  const json j = json::parse(run(""));
  EXPECT_EQ(j.at("seq_len"), 256);
  EXPECT_EQ(j.at("sources").size(), 2u);
  EXPECT_EQ(j.at("samples"), 412);
  int64_t counted = 0;
  for (const auto& bin : j.at("histogram")) counted += bin.at("samples").get<int64_t>();
  EXPECT_EQ(counted, 406);
  for (const auto& fit : j.at("seq_lens")) {
    EXPECT_GT(fit.at("fill").get<double>(), 0.5);
    EXPECT_LE(fit.at("fill").get<double>(), 1.0);
    if (fit.at("seq_len") == 256) {
      EXPECT_EQ(fit.at("rows"), j.at("rows"));
      EXPECT_EQ(406 - fit.at("samples_that_fit").get<int64_t>(), j.at("too_long").get<int64_t>());
    }
  }
}

TEST_F(TokenizeCommand, BadInputNamesTheLine) {
  const auto message = [&](const std::string& input) {
    return message_of(ExitCode::kBadInput, [&] { (void)run(input); });
  };
  EXPECT_NE(message("{\"text\": \"a\"}\n{\"text\": 1}\n")
                .find("standard input:2: `text` is not a string"),
            std::string::npos);
  EXPECT_NE(message("{\"ids\": [-1]}\n").find("standard input:1"), std::string::npos);
  EXPECT_NE(message("{\"ids\": [1e3]}\n").find("no token id"), std::string::npos);
  EXPECT_NE(message("{\"other\": 1}\n").find("none of"), std::string::npos);
  EXPECT_NE(
      message("{\"messages\": [{\"role\": \"x\", \"content\": \"\"}]}\n").find("unknown role"),
      std::string::npos);
  // What is wrong with broken JSON, and at which byte.
  const std::string broken = message("{\"text\": \"a\"}\n{\"text\": \"b\",,}\n");
  EXPECT_NE(broken.find("standard input:2: not valid JSON: syntax error"), std::string::npos) << broken;
  EXPECT_NE(broken.find("(byte 14 of the row)"), std::string::npos) << broken;
  args_.train = true;
  EXPECT_NE(message("{\"foo\": 1}\n").find("its keys are 'foo'"), std::string::npos);
  args_.model = dir_.path() / "none";
  EXPECT_NE(message("{}"), "");
}

}  // namespace
}  // namespace r1::data
