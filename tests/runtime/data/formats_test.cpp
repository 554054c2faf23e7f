#include "runtime/data/formats.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "runtime/core/rng.h"
#include "tests/runtime/data/support.h"

namespace r1::data {
namespace {

using test::sft;
using test::slurp;
using text::Role;

std::vector<std::string> lines(const std::string& text) {
  std::vector<std::string> out;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) out.push_back(line);
  return out;
}

std::vector<std::string> elements(const std::string& array) {
  std::vector<std::string> out;
  for (const auto& j : nlohmann::ordered_json::parse(array)) out.push_back(j.dump());
  return out;
}

std::string reason(Format format, const std::string& row) {
  try {
    (void)parse_row(format, row);
  } catch (const RowError& e) {
    return e.what();
  }
  ADD_FAILURE() << "accepted: " << row.substr(0, 200);
  return {};
}

TEST(Formats, NamesAreInvertible) {
  for (const char* name : {"messages", "sharegpt", "alpaca", "prompt-completion", "question-answer",
                           "question-response", "text", "input-ids"}) {
    const auto format = format_by_name(name);
    ASSERT_TRUE(format) << name;
    EXPECT_EQ(format_name(*format), name);
  }
  EXPECT_FALSE(format_by_name("auto"));
  EXPECT_FALSE(format_by_name("csv"));
}

TEST(Formats, FoundByKeysOfRealRows) {
  const std::vector<std::pair<std::string, Format>> table = {
      {lines(slurp(sft("gsm8k_8.jsonl")))[0], Format::kQuestionAnswer},
      {elements(slurp(sft("alpaca_6.json")))[0], Format::kAlpaca},
      {elements(slurp(sft("sharegpt_2.json")))[0], Format::kShareGpt},
      {lines(slurp(sft("messages_2.jsonl")))[0], Format::kMessages},
      {lines(slurp(sft("think_3.jsonl")))[0], Format::kQuestionResponse},
      {R"({"prompt": "a", "completion": "b"})", Format::kPromptCompletion},
      {R"({"text": "a", "meta": {}})", Format::kText},
      {R"({"input_ids": [1], "text": "a"})", Format::kInputIds},
      {R"([{"role": "user", "content": "a"}])", Format::kMessages},
      {R"({"instruction": "a", "context": "", "response": "b"})", Format::kAlpaca},
  };
  for (const auto& [row, format] : table) {
    std::string why;
    EXPECT_EQ(detect_format(row, &why), format) << row.substr(0, 100) << why;
  }
  for (const auto& [row, expected] : std::vector<std::pair<std::string, std::string>>{
           {R"({"foo": 1, "bar": 2})", "its keys are 'foo', 'bar'"},
           {"{", "not valid JSON"},
           {"3", "a number"},
           {"[]", "a list"}}) {
    std::string why;
    EXPECT_FALSE(detect_format(row, &why)) << row;
    EXPECT_NE(why.find(expected), std::string::npos) << why;
  }
}

TEST(Formats, Gsm8kBecomesThoughtAndBoxedAnswer) {
  const ParsedRow row = parse_row(Format::kQuestionAnswer, lines(slurp(sft("gsm8k_8.jsonl")))[1]);
  ASSERT_EQ(row.messages.size(), 2u);
  EXPECT_EQ(row.messages[0].role, Role::kUser);
  EXPECT_EQ(*row.messages[0].content,
            "Weng earns $12 an hour for babysitting. Yesterday, she just did 50 minutes of "
            "babysitting. How much did she earn?");
  EXPECT_EQ(row.messages[1].role, Role::kAssistant);
  EXPECT_EQ(*row.messages[1].reasoning,
            "Weng earns 12/60 = $0.2 per minute.\nWorking 50 minutes, she earned 0.2 x 50 = $10.");
  EXPECT_EQ(*row.messages[1].content, "\\boxed{10}");
}

TEST(Formats, WorkedAnswers) {
  const auto split = [](const char* s) {
    const auto w = split_worked_answer(s);
    return w ? w->solution + "|" + w->answer : "none";
  };
  EXPECT_EQ(split("a <<1+1=2>>2\nb\n#### 2"), "a 2\nb|2");
  EXPECT_EQ(split("a\n#### 1,234  \n"), "a|1,234");
  EXPECT_EQ(split("#### 5"), "|5");
  EXPECT_EQ(split("a #### 5"), "none");
  EXPECT_EQ(split("a\n####"), "none");
  EXPECT_EQ(split("a\n#### 5\nand more"), "none");
  EXPECT_EQ(split("no mark"), "none");
  EXPECT_EQ(split("1 << 2 is 4\n#### 4"), "1 << 2 is 4|4");
  EXPECT_EQ(split("1 <<\n>> 2\n#### 4"), "1 <<\n>> 2|4");
  // Without the mark the answer is what it is.
  const ParsedRow row =
      parse_row(Format::kQuestionAnswer, R"({"question": "q", "answer": "just this"})");
  EXPECT_EQ(*row.messages[1].content, "just this");
  EXPECT_FALSE(row.messages[1].reasoning);
}

TEST(Formats, AlpacaWithAndWithoutInput) {
  const auto rows = elements(slurp(sft("alpaca_6.json")));
  const ParsedRow with = parse_row(Format::kAlpaca, rows[0]);
  EXPECT_EQ(*with.messages[0].content,
            "Evaluate the following phrase by transforming it into the spelling given.\nfreind --> "
            "friend");
  const ParsedRow without = parse_row(Format::kAlpaca, rows[2]);
  EXPECT_EQ(*without.messages[0].content, "Convert 45 kilometers to meters.");
  EXPECT_EQ(*without.messages[1].content, "45 kilometers is 45000 meters.");
  const ParsedRow rest = parse_row(
      Format::kAlpaca,
      R"({"instruction": "i", "output": "", "system": "s", "history": [["a", "b"]], "input": null})");
  ASSERT_EQ(rest.messages.size(), 5u);
  EXPECT_EQ(rest.messages[0].role, Role::kSystem);
  EXPECT_EQ(*rest.messages[2].content, "b");
  EXPECT_TRUE(rest.empty_answer);
}

TEST(Formats, ShareGptWithToolCalls) {
  const ParsedRow row = parse_row(Format::kShareGpt, elements(slurp(sft("sharegpt_2.json")))[0]);
  bool called = false, observed = false;
  for (const auto& m : row.messages) {
    if (!m.tool_calls.empty()) {
      called = true;
      EXPECT_EQ(m.role, Role::kAssistant);
      EXPECT_FALSE(m.content);
      EXPECT_FALSE(m.tool_calls[0].name.empty());
      EXPECT_EQ(m.tool_calls[0].arguments.front(), '{');
      EXPECT_FALSE(m.tool_calls[0].arguments_is_string);
    }
    observed |= m.role == Role::kTool;
  }
  EXPECT_TRUE(called);
  EXPECT_TRUE(observed);
  ASSERT_FALSE(row.tools.empty());
  const auto tool = nlohmann::json::parse(row.tools[0]);
  EXPECT_EQ(tool.at("type"), "function");
  EXPECT_TRUE(tool.at("function").contains("name"));
}

TEST(Formats, MessagesInParts) {
  const auto rows = lines(slurp(sft("messages_2.jsonl")));
  const ParsedRow calls = parse_row(Format::kMessages, rows[0]);
  size_t tool_calls = 0, thoughts = 0;
  for (const auto& m : calls.messages) {
    tool_calls += m.tool_calls.size();
    thoughts += m.reasoning.has_value();
  }
  EXPECT_GE(tool_calls, 1u);
  EXPECT_GE(thoughts, 1u);
  EXPECT_FALSE(calls.tools.empty());
  const ParsedRow plain = parse_row(Format::kMessages, rows[1]);
  EXPECT_EQ(plain.messages[0].role, Role::kSystem);
  EXPECT_TRUE(plain.messages[2].reasoning);
  EXPECT_TRUE(plain.messages[2].content);
}

TEST(Formats, MessagesInOpenAiSpelling) {
  const ParsedRow row = parse_row(Format::kMessages, R"({"messages": [
    {"role": "developer", "content": "be brief"},
    {"role": "user", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]},
    {"role": "assistant", "content": null, "weight": 0,
     "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}}]},
    {"role": "tool", "tool_call_id": "c1", "content": "4"},
    {"role": "assistant", "content": "done", "reasoning_content": "hm", "weight": 1}],
    "tools": [{"type": "function", "function": {"name": "f", "zeta": 1, "alpha": 2}}]})");
  ASSERT_EQ(row.messages.size(), 5u);
  EXPECT_EQ(row.messages[0].role, Role::kSystem);
  EXPECT_EQ(*row.messages[1].content, "hello");
  EXPECT_EQ(row.messages[2].tool_calls[0].arguments, "{\"x\": 1}");
  EXPECT_TRUE(row.messages[2].tool_calls[0].arguments_is_string);
  EXPECT_EQ(row.messages[2].trained, false);
  EXPECT_EQ(row.messages[3].role, Role::kTool);
  EXPECT_EQ(*row.messages[4].reasoning, "hm");
  EXPECT_EQ(row.messages[4].trained, true);
  EXPECT_LT(row.tools[0].find("zeta"), row.tools[0].find("alpha")) << "keys keep their order";
}

TEST(Formats, TracesKeepTheirText) {
  const auto rows = lines(slurp(sft("think_3.jsonl")));
  const ParsedRow row = parse_row(Format::kQuestionResponse, rows[0]);
  ASSERT_EQ(row.messages.size(), 2u);
  EXPECT_EQ(row.messages[1].content->substr(0, 7), "<think>");
  const ParsedRow spaced = parse_row(Format::kQuestionResponse,
                                     R"({"question": "q", "response": "\n <think>a</think>b"})");
  EXPECT_EQ(*spaced.messages[1].content, "<think>a</think>b");
}

TEST(Formats, TracesInTheirOtherSpellings) {
  std::string why;
  for (const std::string row :
       {R"({"problem": "q", "solution": "<think>t</think>a", "answer": "1"})",
        R"({"prompt": "q", "response": "<think>t</think>a"})",
        R"({"query": "q", "response": "<think>t</think>a"})"}) {
    const auto format = detect_format(row, &why);
    ASSERT_EQ(format, Format::kQuestionResponse) << row;
    const auto parsed = parse_row(*format, row);
    ASSERT_EQ(parsed.messages.size(), 2u);
    EXPECT_EQ(parsed.messages[0].content, "q");
    EXPECT_EQ(parsed.messages[1].content, "<think>t</think>a");
  }
  const auto apart =
      parse_row(Format::kQuestionAnswer, R"({"question": "q", "reasoning": "t", "answer": "a"})");
  EXPECT_EQ(apart.messages[1].reasoning, "t");
  EXPECT_EQ(apart.messages[1].content, "a");
  const auto packed = parse_row(
      Format::kMessages,
      R"({"messages": "[{\"role\": \"user\", \"content\": \"q\"}, {\"role\": \"assistant\", \"content\": \"a\"}]"})");
  EXPECT_EQ(packed.messages.size(), 2u);
}

TEST(Formats, QuestionAndAnswerUnderManyNames) {
  using F = Format;
  // The format, and then every one of these rows is the question q with the answer a (thought t).
  const std::vector<std::tuple<Format, std::string, bool>> table = {
      {F::kAlpaca, R"({"instruction": "q", "output": "a"})", false},
      {F::kAlpaca, R"({"instruction": "q", "response": "a"})", false},
      {F::kAlpaca, R"({"instruction": "q", "answer": "a"})", false},
      {F::kAlpaca, R"({"instruction": "q", "input": "", "completion": "a"})", false},
      {F::kAlpaca, R"({"instruction": "q", "output": "a", "reasoning": "t"})", true},
      {F::kAlpaca, R"({"Instruction": "q", "Output": "a"})", false},
      {F::kQuestionAnswer, R"({"problem": "q", "answer": "a"})", false},
      {F::kQuestionAnswer, R"({"query": "q", "answer": "a"})", false},
      {F::kQuestionAnswer, R"({"prompt": "q", "answer": "a", "thinking": "t"})", true},
      {F::kQuestionResponse, R"({"query": "q", "response": "a"})", false},
      {F::kQuestionResponse, R"({"problem": "q", "solution": "a"})", false},
      {F::kQuestionResponse, R"({"input": "q", "output": "a"})", false},
      {F::kQuestionResponse, R"({"user": "q", "assistant": "a"})", false},
      {F::kQuestionResponse, R"({"Question": "q", "Complex_CoT": "t", "Response": "a"})", true},
      {F::kQuestionResponse, R"({"question": "q", "reasoning_content": "t", "response": "a"})",
       true},
      {F::kShareGpt, R"({"conversation": [{"input": "q", "output": "a"}]})", false},
      {F::kShareGpt,
       R"({"conversations": [{"from": "Human", "value": "q"}, {"from": "GPT", "value": "a"}]})",
       false},
      {F::kShareGpt,
       R"({"conversations": [{"from": "user", "content": "q"}, {"role": "assistant", "value": "a"}]})",
       false},
      {F::kMessages,
       R"({"messages": [{"role": "User", "content": "q"}, {"role": "Assistant", "content": "a"}]})",
       false},
      {F::kMessages,
       R"({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "reasoning_content": "t", "content": "a"}]})",
       true},
  };
  for (const auto& [format, row, thought] : table) {
    EXPECT_EQ(detect_format(row, nullptr), format) << row;
    const ParsedRow parsed = parse_row(format, row);
    ASSERT_EQ(parsed.messages.size(), 2u) << row;
    EXPECT_EQ(parsed.messages[0].role, Role::kUser) << row;
    EXPECT_EQ(parsed.messages[0].content, "q") << row;
    EXPECT_EQ(parsed.messages[1].role, Role::kAssistant) << row;
    EXPECT_EQ(parsed.messages[1].content, "a") << row;
    EXPECT_EQ(parsed.messages[1].reasoning.value_or(""), thought ? "t" : "") << row;
  }
  const auto orca = parse_row(Format::kQuestionResponse,
                              R"({"system_prompt": "s", "question": "q", "response": "a"})");
  ASSERT_EQ(orca.messages.size(), 3u);
  EXPECT_EQ(orca.messages[0].content, "s");
}

TEST(Formats, ExchangesOfXTuner) {
  const auto row = parse_row(Format::kShareGpt, R"({"conversation": [
    {"system": "s", "input": "q", "output": "\n<think>t</think>a", "output_with_loss": false},
    {"input": "r", "output": "b"}]})");
  ASSERT_EQ(row.messages.size(), 5u);
  EXPECT_EQ(row.messages[0].role, Role::kSystem);
  EXPECT_EQ(row.messages[2].content, "<think>t</think>a");
  EXPECT_EQ(row.messages[2].trained, false);
  EXPECT_EQ(row.messages[3].content, "r");
  EXPECT_FALSE(row.messages[4].trained);
}

TEST(Formats, PreferencesAreRefusedByName) {
  std::string why;
  for (const std::string row : {R"({"prompt": "q", "chosen": "a", "rejected": "b"})",
                                R"({"conversations": [], "chosen": {}, "rejected": {}})",
                                R"({"messages": [], "Chosen": "a", "Rejected": "b"})"}) {
    EXPECT_FALSE(detect_format(row, &why)) << row;
    EXPECT_NE(why.find("keep the chosen one"), std::string::npos) << why;
  }
  EXPECT_FALSE(detect_format(R"({"prompt": "q", "completion": "a", "label": false})", &why));
  EXPECT_NE(why.find("verdict"), std::string::npos) << why;
  EXPECT_EQ(detect_format(R"({"prompt": "q", "completion": "a", "label": "math"})", &why),
            Format::kPromptCompletion);
}

TEST(Formats, PromptAndCompletion) {
  const ParsedRow raw =
      parse_row(Format::kPromptCompletion, R"({"prompt": "2+2=", "completion": " 4"})");
  EXPECT_EQ(raw.kind, ParsedRow::Kind::kText);
  EXPECT_EQ(raw.prompt, "2+2=");
  EXPECT_EQ(raw.completion, " 4");
  const ParsedRow turns =
      parse_row(Format::kPromptCompletion, R"({"prompt": [{"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}], "completion": [{"role": "assistant", "content": "d"}]})");
  ASSERT_EQ(turns.messages.size(), 4u);
  EXPECT_EQ(turns.messages[1].trained, false);
  EXPECT_FALSE(turns.messages[3].trained);
}

TEST(Formats, IdsAndLabels) {
  const ParsedRow row = parse_row(
      Format::kInputIds,
      R"({"input_ids": [0, 5, 6, 7, 0], "labels": [-100, 5, -100, 9, -100], "attention_mask": [0, 1, 1, 1, 0]})");
  EXPECT_EQ(row.ids, (std::vector<int32_t>{5, 6, 7}));
  EXPECT_EQ(row.labels, (std::vector<int32_t>{5, -100, 9}));
  const EncodedSample sample = encode_row(row, {});
  EXPECT_EQ(sample.trained, (std::vector<uint8_t>{1, 0, 1}));
  EXPECT_EQ(sample.labels, row.labels) << "a label that is not the id itself is kept";
  const EncodedSample plain =
      encode_row(parse_row(Format::kInputIds, R"({"input_ids": [1, 2], "labels": [-100, 2]})"), {});
  EXPECT_TRUE(plain.labels.empty());
  EXPECT_EQ(plain.trained, (std::vector<uint8_t>{0, 1}));
}

TEST(Formats, BadRowsSayWhereAndWhy) {
  using F = Format;
  const std::vector<std::tuple<Format, std::string, std::string>> table = {
      {F::kMessages, "{\"messages\": [", "not valid JSON"},
      {F::kMessages, "{\"messages\": [{\"role\": \"user\", \"content\": \"\xff\"}]}",
       "not valid JSON"},
      {F::kMessages, R"({"messages": "x"})", "`messages` is a string"},
      {F::kMessages, R"({"messages": []})", "`messages` is empty"},
      {F::kMessages, R"({"messages": null, "x": 1})",
       "no `messages`; the row's keys are 'messages', 'x'"},
      {F::kMessages, R"({"messages": [1]})", "messages[0] is a number"},
      {F::kMessages, R"({"messages": [{"content": "x"}]})", "messages[0] has no `role`"},
      {F::kMessages, R"({"messages": [{"role": "user"}]})", "messages[0] has no `content`"},
      {F::kMessages, R"({"messages": [{"role": "wizard", "content": "x"}]})",
       "messages[0]: unknown role 'wizard'"},
      {F::kMessages, R"({"messages": [{"role": "user", "content": 5}]})",
       "messages[0].content is a number"},
      {F::kMessages, R"({"messages": [{"role": "user", "content": null}]})",
       "messages[0] has no `content`"},
      {F::kMessages,
       R"({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]})",
       "parts of type 'image_url'"},
      {F::kMessages, R"({"messages": [{"role": "user", "content": [{"type": "text"}]}]})",
       "messages[0].content[0] has no text"},
      {F::kMessages, R"({"messages": [{"role": "assistant", "content": null}]})",
       "neither content nor tool calls"},
      {F::kMessages,
       R"({"messages": [{"role": "user", "content": "x", "tool_calls": [{"name": "f"}]}]})",
       "only an assistant turn"},
      {F::kMessages, R"({"messages": [{"role": "assistant", "content": "x", "weight": 2}]})",
       "weight is '2'"},
      {F::kMessages,
       R"({"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": {}}}]}]})",
       "has no `name`"},
      {F::kMessages,
       R"({"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": 3}]}]})",
       "arguments is a number"},
      {F::kMessages, R"({"messages": [{"role": "user", "content": "x"}], "tools": "[{"})",
       "`tools`: a string that is not valid JSON"},
      {F::kShareGpt, R"({"conversations": [{"from": "human"}]})",
       "conversations[0] has no `value`"},
      {F::kShareGpt, R"({"conversations": [{"from": "function_call", "value": "call me"}]})",
       "not valid JSON"},
      {F::kShareGpt, R"({"conversations": [{"from": "alien", "value": "x"}]})",
       "human, gpt, function_call, observation"},
      {F::kShareGpt, R"({"chat": []})", "no `conversations`"},
      {F::kShareGpt, R"({"conversation": [{"input": "", "output": "x"}]})",
       "conversation[0].input is empty"},
      {F::kShareGpt, R"({"conversation": [{"input": "q", "output": 1}]})",
       "conversation[0].output is a number"},
      {F::kAlpaca, R"({"instruction": "x"})", "no `output`"},
      {F::kAlpaca, R"({"instruction": "x", "output": 3})", "`output` is a number"},
      {F::kAlpaca, R"({"instruction": "", "input": "", "output": "x"})", "both empty"},
      {F::kAlpaca, R"({"instruction": "x", "output": "y", "history": [["a"]]})", "`history[0]`"},
      {F::kQuestionAnswer, R"({"question": "x"})", "no `answer`"},
      {F::kQuestionAnswer, R"({"question": "", "answer": "x"})", "`question` is empty"},
      {F::kQuestionResponse, R"({"question": "x", "response": ["y"]})", "`response` is a list"},
      {F::kPromptCompletion, R"({"prompt": "x"})", "no `completion`"},
      {F::kText, R"({"text": ""})", "`text` is empty"},
      {F::kText, R"("just a string")", "the row is a string"},
      {F::kInputIds, R"({"input_ids": []})", "`input_ids` is empty"},
      {F::kInputIds, R"({"input_ids": [1, -1]})", "`input_ids[1]` is -1"},
      {F::kInputIds, R"({"input_ids": [1, 2.5]})", "`input_ids[1]` is a number"},
      {F::kInputIds, R"({"input_ids": [1, 4294967296]})", "not a token id"},
      {F::kInputIds, R"({"input_ids": [18446744073709551615]})", "not a token id"},
      {F::kInputIds, R"({"input_ids": [1, 2], "labels": [1]})",
       "`labels` has 1 entries, `input_ids` 2"},
      {F::kInputIds, R"({"input_ids": [1, 2], "labels": [1, -1]})", "`labels[1]` is -1"},
      {F::kInputIds, R"({"input_ids": [1, 2, 3], "attention_mask": [1, 0, 1]})", "between ones"},
      {F::kInputIds, R"({"input_ids": [1, 2], "attention_mask": [0, 0]})", "`input_ids` is empty"},
      {F::kText, std::string(100000, '['), "nested more than"},
      {F::kText, "{\"text\": 1e999}", "not valid JSON"},
  };
  for (const auto& [format, row, expected] : table) {
    const std::string why = reason(format, row);
    EXPECT_NE(why.find(expected), std::string::npos) << row.substr(0, 120) << "\n  " << why;
    EXPECT_EQ(why.find('\n'), std::string::npos) << "one line: " << why;
    EXPECT_LT(why.size(), 500u);
  }
}

TEST(Formats, MutatedRowsAreReadOrRefused) {
  std::vector<std::pair<Format, std::string>> rows;
  for (const auto& line : lines(slurp(sft("gsm8k_8.jsonl"))))
    rows.emplace_back(Format::kQuestionAnswer, line);
  for (const auto& line : lines(slurp(sft("messages_2.jsonl"))))
    rows.emplace_back(Format::kMessages, line);
  for (const auto& row : elements(slurp(sft("sharegpt_2.json"))))
    rows.emplace_back(Format::kShareGpt, row);
  rows.emplace_back(Format::kInputIds, R"({"input_ids": [1, 2, 3], "labels": [-100, 2, 3]})");
  const Rng rng(1, "test:mutations");
  constexpr std::string_view kBytes = "{}[]\",:\\0-9ntu\x01\xff";
  int read = 0, refused = 0;
  for (uint64_t i = 0; i < 20000; ++i) {
    auto [format, row] = rows[i % rows.size()];
    for (uint64_t edits = 1 + rng.below(4 * i, 3); edits > 0; --edits) {
      const size_t at = rng.below(4 * i + edits, row.size());
      const char byte = kBytes[rng.below(i + edits * 977, kBytes.size())];
      if ((i + edits) % 3 == 0)
        row.erase(at, 1 + i % 5);
      else if ((i + edits) % 3 == 1)
        row.insert(at, 1, byte);
      else
        row[at] = byte;
      if (row.empty()) row.assign(1, '{');
    }
    try {
      (void)parse_row(format, row);
      ++read;
    } catch (const RowError&) {
      ++refused;
    }
  }
  EXPECT_GT(read, 1000);
  EXPECT_GT(refused, 1000);
}

}  // namespace
}  // namespace r1::data
