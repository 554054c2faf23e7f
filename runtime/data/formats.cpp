#include "runtime/data/formats.h"

#include <algorithm>
#include <array>
#include <limits>
#include <utility>

#include "runtime/core/error.h"
#include "runtime/data/dataset.h"
#include "runtime/data/row_json.h"
#include "runtime/data/turns.h"

namespace r1::data {
namespace {

constexpr std::array<std::pair<Format, std::string_view>, 8> kNames = {{
    {Format::kMessages, "messages"},
    {Format::kShareGpt, "sharegpt"},
    {Format::kAlpaca, "alpaca"},
    {Format::kPromptCompletion, "prompt-completion"},
    {Format::kQuestionAnswer, "question-answer"},
    {Format::kQuestionResponse, "question-response"},
    {Format::kText, "text"},
    {Format::kInputIds, "input-ids"},
}};

constexpr auto kNamesWithAuto = [] {
  std::array<std::string_view, kNames.size() + 1> names{"auto"};
  for (size_t i = 0; i < kNames.size(); ++i) names[i + 1] = kNames[i].second;
  return names;
}();

void add_system(const Json& row, ParsedRow& out) {
  std::string system = optional_text_at(row, "system");
  if (system.empty()) system = optional_text_at(row, "system_prompt");
  if (!system.empty())
    out.messages.insert(out.messages.begin(), turn(text::Role::kSystem, std::move(system)));
}

/// Names under which published sets keep a question and its answer.
constexpr std::array<std::string_view, 6> kQuestionKeys = {"question", "query", "problem",
                                                           "prompt",   "input", "user"};
constexpr std::array<std::string_view, 4> kResponseKeys = {"response", "solution", "output",
                                                           "assistant"};
/// And the answer to an Alpaca instruction.
constexpr std::array<std::string_view, 4> kOutputKeys = {"output", "response", "answer",
                                                         "completion"};

/// The first of the keys that the row has, else the first.
[[nodiscard]] std::string_view present(const Json& row, std::span<const std::string_view> keys) {
  const auto at = std::find_if(keys.begin(), keys.end(),
                               [&](std::string_view key) { return row.contains(key); });
  return at == keys.end() ? keys.front() : *at;
}

/// The thought beside an answer, where the row keeps it apart.
constexpr std::array<std::string_view, 4> kReasoningKeys = {"reasoning_content", "reasoning",
                                                            "thinking", "complex_cot"};

[[nodiscard]] bool has_reasoning(const Json& row) {
  return std::any_of(kReasoningKeys.begin(), kReasoningKeys.end(),
                     [&](std::string_view key) { return !optional_text_at(row, key).empty(); });
}

void add_answer(const Json& row, const std::string& answer, ParsedRow& out) {
  for (const std::string_view key : kReasoningKeys) {
    std::string reasoning = optional_text_at(row, key);
    if (reasoning.empty()) continue;
    out.messages.push_back(turn(text::Role::kAssistant, answer));
    out.messages.back().reasoning = std::move(reasoning);
    return;
  }
  out.messages.push_back(answer_turn(answer));
}

void parse_alpaca(const Json& row, ParsedRow& out) {
  add_system(row, out);
  if (const Json* history = find(row, "history")) {
    if (!history->is_array())
      bad("`history` is {}, expected a list of [question, answer]", kind_of(*history));
    for (size_t i = 0; i < history->size(); ++i) {
      const Json& pair = (*history)[i];
      if (!pair.is_array() || pair.size() != 2 || !pair[0].is_string() || !pair[1].is_string())
        bad("`history[{}]` is not a pair of strings", i);
      out.messages.push_back(turn(text::Role::kUser, pair[0].get<std::string>()));
      out.messages.push_back(answer_turn(pair[1].get<std::string>()));
    }
  }
  std::string prompt = text_at(row, "instruction");
  std::string input = optional_text_at(row, "input");
  if (input.empty()) input = optional_text_at(row, "context");
  if (prompt.empty() && input.empty()) bad("`instruction` and `input` are both empty");
  if (!input.empty()) prompt += (prompt.empty() ? "" : "\n") + input;
  out.messages.push_back(turn(text::Role::kUser, std::move(prompt)));
  add_answer(row, text_at(row, present(row, kOutputKeys)), out);
}

void parse_prompt_completion(const Json& row, ParsedRow& out) {
  const Json* prompt = find(row, "prompt");
  const Json* completion = find(row, "completion");
  if (prompt != nullptr && prompt->is_array()) {
    parse_turns(*prompt, "prompt", out);
    const size_t prompt_turns = out.messages.size();
    if (completion == nullptr) bad("no `completion`; the row's keys are {}", keys_of(row));
    if (completion->is_string())
      out.messages.push_back(answer_turn(completion->get<std::string>()));
    else
      parse_turns(*completion, "completion", out);
    out.tools = parse_tools(row);
    // Only what the completion says is a target.
    for (size_t i = 0; i < prompt_turns; ++i)
      if (out.messages[i].role == text::Role::kAssistant && !out.messages[i].trained)
        out.messages[i].trained = false;
    return;
  }
  out.kind = ParsedRow::Kind::kText;
  out.prompt = text_at(row, "prompt");
  out.completion = text_at(row, "completion");
  out.empty_answer = out.completion.empty();
}

void parse_question(const Json& row, std::string_view answer_key, ParsedRow& out) {
  add_system(row, out);
  const std::string_view question_key = present(row, kQuestionKeys);
  const std::string& question = text_at(row, question_key);
  if (question.empty()) bad("`{}` is empty", question_key);
  out.messages.push_back(turn(text::Role::kUser, question));
  const std::string& answer = text_at(row, answer_key);
  if (answer_key == "answer") {
    if (auto worked = split_worked_answer(answer); worked && !has_reasoning(row)) {
      text::Message m = turn(text::Role::kAssistant, "\\boxed{" + worked->answer + "}");
      m.reasoning = std::move(worked->solution);
      out.messages.push_back(std::move(m));
      return;
    }
  }
  add_answer(row, answer, out);
}

[[nodiscard]] int32_t token_at(const Json& list, size_t i, std::string_view key, bool label) {
  const Json& j = list[i];
  if (!j.is_number_integer()) bad("`{}[{}]` is {}, expected an integer", key, i, kind_of(j));
  const bool large =
      j.is_number_unsigned() && j.get<uint64_t>() > uint64_t{std::numeric_limits<int32_t>::max()};
  const int64_t v = large ? std::numeric_limits<int64_t>::max() : j.get<int64_t>();
  if (large || v > std::numeric_limits<int32_t>::max() || (v < 0 && !(label && v == -100)))
    bad("`{}[{}]` is {}, not a token id{}", key, i, dump(j),
        label ? " (or -100: not trained)" : "");
  return static_cast<int32_t>(v);
}

void parse_ids(const Json& row, ParsedRow& out) {
  out.kind = ParsedRow::Kind::kIds;
  const Json* ids = find(row, "input_ids");
  if (ids == nullptr) bad("no `input_ids`; the row's keys are {}", keys_of(row));
  if (!ids->is_array()) bad("`input_ids` is {}, expected a list of integers", kind_of(*ids));
  const auto same_length = [&](const Json* list, std::string_view key) {
    if (list == nullptr) return;
    if (!list->is_array()) bad("`{}` is {}, expected a list of integers", key, kind_of(*list));
    if (list->size() != ids->size())
      bad("`{}` has {} entries, `input_ids` {}", key, list->size(), ids->size());
  };
  const Json* labels = find(row, "labels");
  const Json* mask = find(row, "attention_mask");
  same_length(labels, "labels");
  same_length(mask, "attention_mask");
  // Positions the mask leaves out are padding, in front or behind.
  size_t begin = 0, end = ids->size();
  if (mask != nullptr) {
    const auto on = [&](size_t i) {
      const Json& m = (*mask)[i];
      if (!m.is_number_integer() || (m != 0 && m != 1))
        bad("`attention_mask[{}]` is {}, allowed are 0 and 1", i, shown(dump(m)));
      return m == 1;
    };
    while (begin < end && !on(begin)) ++begin;
    while (end > begin && !on(end - 1)) --end;
    for (size_t i = begin; i < end; ++i)
      if (!on(i))
        bad("`attention_mask[{}]` is 0 between ones; only padding at the ends can be left out", i);
  }
  if (begin == end) bad("`input_ids` is empty");
  for (size_t i = begin; i < end; ++i) {
    out.ids.push_back(token_at(*ids, i, "input_ids", false));
    if (labels != nullptr) out.labels.push_back(token_at(*labels, i, "labels", true));
  }
}

/// A thought in an assistant turn before the last one.
[[nodiscard]] bool has_earlier_thoughts(const std::vector<text::Message>& messages) {
  bool any = false, latest = false;
  for (const text::Message& m : messages) {
    if (m.role != text::Role::kAssistant) continue;
    any = any || latest;
    latest =
        m.reasoning.has_value() || (m.content && m.content->find("<think>") != std::string::npos);
  }
  return any;
}

[[nodiscard]] EncodedSample encode_parts(std::string_view prompt, std::string_view completion,
                                         const EncodeSettings& settings) {
  if (settings.tokenizer == nullptr)
    throw UsageError("text cannot be tokenised: the model directory has no tokenizer.json");
  EncodedSample out;
  out.ids = settings.tokenizer->encode(
      prompt, {.add_special = true, .parse_special = settings.parse_special});
  if (!prompt.empty() && settings.train_on_prompt)
    out.trained.assign(out.ids.size(), 1);
  else
    out.trained.assign(out.ids.size(), 0);
  // The seam between prompt and completion is a seam between tokens: what is generated starts
  // there, too.
  const auto rest = settings.tokenizer->encode(
      completion, {.add_special = false, .parse_special = settings.parse_special});
  out.ids.insert(out.ids.end(), rest.begin(), rest.end());
  if (settings.end_id) out.ids.push_back(*settings.end_id);
  out.trained.resize(out.ids.size(), 1);
  return out;
}

/// What a row of preferences is, for the message; empty for other rows.
[[nodiscard]] std::string preference_data(const Json& row) {
  if (row.contains("chosen") && row.contains("rejected"))
    return "it is a pair of preferences (`chosen`, `rejected`, as for DPO), and training takes one "
           "answer a row: keep the chosen one, for example as {\"prompt\", \"response\"}";
  const Json* label = find(row, "label");
  if (row.contains("kto_tag") || (row.contains("prompt") && row.contains("completion") &&
                                  label != nullptr && label->is_boolean()))
    return "it is an answer with a verdict (as for KTO), and training takes every row for a good "
           "answer: keep the rows whose verdict is true, without it";
  return {};
}

}  // namespace

std::span<const std::string_view> format_names() { return kNamesWithAuto; }

std::string_view format_name(Format format) {
  for (const auto& [f, name] : kNames)
    if (f == format) return name;
  return "?";
}

std::optional<Format> format_by_name(std::string_view name) {
  for (const auto& [f, n] : kNames)
    if (n == name) return f;
  return std::nullopt;
}

std::optional<Format> detect_format(std::string_view row, std::string* why) {
  Json j;
  try {
    j = parse_row_json(row);
  } catch (const RowError& e) {
    if (why != nullptr) *why = e.what();
    return std::nullopt;
  }
  if (j.is_array() && !j.empty() && j[0].is_object()) return Format::kMessages;
  if (!j.is_object()) {
    if (why != nullptr) *why = fmt::format("the row is {}, expected an object", kind_of(j));
    return std::nullopt;
  }
  const auto has = [&](std::string_view key) { return j.contains(key); };
  const auto has_any = [&](std::span<const std::string_view> keys) {
    return std::any_of(keys.begin(), keys.end(), has);
  };
  if (std::string other = preference_data(j); !other.empty()) {
    if (why != nullptr) *why = std::move(other);
    return std::nullopt;
  }
  if (has("input_ids")) return Format::kInputIds;
  if (has("messages")) return Format::kMessages;
  if (has("conversations") || has("conversation")) return Format::kShareGpt;
  if (has("instruction") && has_any(kOutputKeys)) return Format::kAlpaca;
  if (has("prompt") && has("completion")) return Format::kPromptCompletion;
  if (has_any(kQuestionKeys) && has_any(kResponseKeys)) return Format::kQuestionResponse;
  if (has_any(kQuestionKeys) && has("answer")) return Format::kQuestionAnswer;
  if (has("text")) return Format::kText;
  if (why != nullptr)
    *why = fmt::format(
        "its keys are {}; known are messages | conversations | instruction, input, output | "
        "prompt, completion | "
        "question, answer | question, response | text | input_ids, labels",
        keys_of(j));
  return std::nullopt;
}

bool needs_template(Format format) {
  switch (format) {
    case Format::kMessages:
    case Format::kShareGpt:
    case Format::kAlpaca:
    case Format::kQuestionAnswer:
    case Format::kQuestionResponse:
      return true;
    case Format::kPromptCompletion:
    case Format::kText:
    case Format::kInputIds:
      return false;
  }
  return false;
}

ParsedRow parse_row(Format format, std::string_view text) {
  const Json row = parse_row_json(text);
  ParsedRow out;
  if (format == Format::kMessages && row.is_array()) {
    parse_turns(row, "messages", out);
  } else if (!row.is_object()) {
    bad("the row is {}, expected an object", kind_of(row));
  } else {
    switch (format) {
      case Format::kMessages: {
        const Json* list = find(row, "messages");
        if (list == nullptr) bad("no `messages`; the row's keys are {}", keys_of(row));
        parse_turns(*list, "messages", out);
        out.tools = parse_tools(row);
        break;
      }
      case Format::kShareGpt: {
        const std::string_view key =
            row.contains("conversations") ? "conversations" : "conversation";
        const Json* list = find(row, key);
        if (list == nullptr) bad("no `conversations`; the row's keys are {}", keys_of(row));
        parse_turns(*list, key, out);
        add_system(row, out);
        out.tools = parse_tools(row);
        break;
      }
      case Format::kAlpaca:
        parse_alpaca(row, out);
        break;
      case Format::kPromptCompletion:
        parse_prompt_completion(row, out);
        break;
      case Format::kQuestionAnswer:
        parse_question(row, "answer", out);
        break;
      case Format::kQuestionResponse:
        parse_question(row, present(row, kResponseKeys), out);
        break;
      case Format::kText:
        out.kind = ParsedRow::Kind::kText;
        out.completion = text_at(row, "text");
        if (out.completion.empty()) bad("`text` is empty");
        break;
      case Format::kInputIds:
        parse_ids(row, out);
        break;
    }
  }
  const auto last =
      std::find_if(out.messages.rbegin(), out.messages.rend(),
                   [](const text::Message& m) { return m.role == text::Role::kAssistant; });
  if (last != out.messages.rend())
    out.empty_answer = last->tool_calls.empty() && last->content.value_or("").empty();
  return out;
}

EncodedSample encode_row(const ParsedRow& row, const EncodeSettings& settings) {
  EncodedSample out;
  switch (row.kind) {
    case ParsedRow::Kind::kText:
      out = encode_parts(row.prompt, row.completion, settings);
      break;
    case ParsedRow::Kind::kIds:
      out.ids = row.ids;
      out.trained.assign(row.ids.size(), 1);
      if (!row.labels.empty()) {
        for (size_t i = 0; i < row.ids.size(); ++i) {
          out.trained[i] = row.labels[i] >= 0;
          // The first label is nobody's target.
          if (i > 0 && row.labels[i] >= 0 && row.labels[i] != row.ids[i] && out.labels.empty())
            out.labels = row.labels;
        }
      }
      break;
    case ParsedRow::Kind::kConversation: {
      if (settings.tokenizer == nullptr)
        throw UsageError(
            "conversations cannot be tokenised: the model directory has no tokenizer.json");
      if (!settings.chat_template)
        throw UsageError(
            "conversations need a chat template, and none is known here; name one with --template");
      text::TrainingRenderOptions options;
      // Earlier turns lose their thoughts, and with them their place among the targets, only where
      // there are thoughts to lose: otherwise every assistant turn is trained.
      options.think_history =
          has_earlier_thoughts(row.messages) ? settings.think_history : text::ThinkHistory::kAll;
      options.train_on_prompt = settings.train_on_prompt;
      options.tools = row.tools;
      try {
        auto sample = text::render_training(*settings.tokenizer, *settings.chat_template,
                                            row.messages, options);
        out.ids = std::move(sample.ids);
        out.trained = std::move(sample.trained);
        out.unclosed_thought = sample.unclosed_thoughts > 0;
      } catch (const DataError& e) {
        throw RowError(e.what());
      }
      break;
    }
  }
  out.empty_answer = row.empty_answer;
  return out;
}

EncodedSample encode_text(std::string_view text, const EncodeSettings& settings) {
  return encode_parts({}, text, settings);
}

std::optional<WorkedAnswer> split_worked_answer(std::string_view answer) {
  const size_t mark = answer.rfind("####");
  if (mark == std::string_view::npos || (mark != 0 && answer[mark - 1] != '\n'))
    return std::nullopt;
  const auto trim = [](std::string_view s) {
    const size_t b = s.find_first_not_of(" \t\r\n");
    if (b == std::string_view::npos) return std::string_view();
    return s.substr(b, s.find_last_not_of(" \t\r\n") - b + 1);
  };
  const std::string_view final_answer = trim(answer.substr(mark + 4));
  if (final_answer.empty() || final_answer.find('\n') != std::string_view::npos)
    return std::nullopt;
  // "48/2 = <<48/2=24>>24": the annotation drives a calculator that is not there when the model
  // answers.
  WorkedAnswer out;
  out.answer = final_answer;
  std::string_view rest = trim(answer.substr(0, mark));
  while (true) {
    const size_t open = rest.find("<<");
    const size_t close = open == std::string_view::npos ? open : rest.find(">>", open);
    if (close == std::string_view::npos ||
        rest.substr(open, close - open).find('\n') != std::string_view::npos)
      break;
    out.solution += rest.substr(0, open);
    rest.remove_prefix(close + 2);
  }
  out.solution += rest;
  return out;
}

}  // namespace r1::data
