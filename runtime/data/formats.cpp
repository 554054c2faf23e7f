#include "runtime/data/formats.h"

#include <algorithm>
#include <array>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "runtime/core/error.h"

namespace r1::data {
namespace {

// Keys keep their order: tools are rendered as they were written.
using Json = nlohmann::ordered_json;

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

constexpr int kMaxDepth = 128;  // of brackets in a row; real rows stay below 20

template <class... Args>
[[noreturn]] void bad(fmt::format_string<Args...> text, Args&&... args) {
  throw RowError(fmt::format(text, std::forward<Args>(args)...));
}

/// Text of a row in a message: one line, printable, short.
[[nodiscard]] std::string shown(std::string_view text, size_t most = 60) {
  std::string out = "'";
  for (const char c : text.substr(0, most))
    out += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '.' : c;
  out = text::replace_invalid_utf8(out);
  return out + (text.size() > most ? "...'" : "'");
}

[[nodiscard]] std::string kind_of(const Json& j) {
  switch (j.type()) {
    case Json::value_t::null:
      return "null";
    case Json::value_t::boolean:
      return "a boolean";
    case Json::value_t::number_integer:
    case Json::value_t::number_unsigned:
    case Json::value_t::number_float:
      return "a number";
    case Json::value_t::string:
      return "a string";
    case Json::value_t::array:
      return "a list";
    case Json::value_t::object:
      return "an object";
    default:
      return "something else";
  }
}

/// Depth is bounded before the parser builds anything: a row of a million '[' costs one scan.
void check_depth(std::string_view text) {
  int depth = 0;
  bool in_string = false, escaped = false;
  for (const char c : text) {
    if (in_string) {
      if (escaped)
        escaped = false;
      else if (c == '\\')
        escaped = true;
      else if (c == '"')
        in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      if (++depth > kMaxDepth) bad("nested more than {} deep", kMaxDepth);
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
}

[[nodiscard]] Json parse_json(std::string_view text) {
  check_depth(text);
  try {
    return Json::parse(text.begin(), text.end());
  } catch (const Json::parse_error& e) {
    // "[json.exception.parse_error.101] parse error at line 1, column 5: syntax error while ...;
    // last read: '...'"
    std::string_view what = e.what();
    if (const size_t p = what.find("syntax error"); p != std::string_view::npos)
      what.remove_prefix(p);
    else if (const size_t q = what.find("] "); q != std::string_view::npos)
      what.remove_prefix(q + 2);
    if (const size_t p = what.find("; last read"); p != std::string_view::npos)
      what = what.substr(0, p);
    bad("not valid JSON: {} (byte {} of the row)", text::replace_invalid_utf8(what.substr(0, 160)),
        e.byte);
  } catch (const Json::exception& e) {  // a number out of range
    bad("not valid JSON: {}",
        text::replace_invalid_utf8(std::string_view(e.what()).substr(0, 160)));
  }
}

[[nodiscard]] std::string keys_of(const Json& row) {
  std::string out;
  int n = 0;
  for (const auto& [key, value] : row.items()) {
    if (++n > 12) return out + ", ...";
    out += (out.empty() ? "" : ", ") + shown(key, 32);
  }
  return out.empty() ? "none" : out;
}

/// The value of a key, or null when it is missing or null.
[[nodiscard]] const Json* find(const Json& object, std::string_view key) {
  const auto it = object.find(key);
  return it == object.end() || it->is_null() ? nullptr : &*it;
}

[[nodiscard]] const std::string& text_at(const Json& row, std::string_view key) {
  const Json* j = find(row, key);
  if (j == nullptr) bad("no `{}`; the row's keys are {}", key, keys_of(row));
  if (!j->is_string()) bad("`{}` is {}, expected a string", key, kind_of(*j));
  return j->get_ref<const std::string&>();
}

[[nodiscard]] std::string optional_text_at(const Json& row, std::string_view key) {
  const Json* j = find(row, key);
  if (j == nullptr) return {};
  if (!j->is_string()) bad("`{}` is {}, expected a string", key, kind_of(*j));
  return j->get<std::string>();
}

[[nodiscard]] std::string dump(const Json& j) {
  return j.dump(-1, ' ', false, Json::error_handler_t::replace);
}

/// A JSON value that may have been written as a string of JSON.
[[nodiscard]] Json unwrapped(const Json& j, const std::string& where) {
  if (!j.is_string()) return j;
  try {
    return parse_json(j.get_ref<const std::string&>());
  } catch (const RowError& e) {
    bad("{}: a string that is {}", where, e.what());
  }
}

[[nodiscard]] std::vector<std::string> parse_tools(const Json& row) {
  std::vector<std::string> tools;
  const Json* j = find(row, "tools");
  if (j == nullptr || (j->is_string() && j->get_ref<const std::string&>().find_first_not_of(
                                             " \t\r\n") == std::string::npos))
    return tools;
  const Json list = unwrapped(*j, "`tools`");
  if (list.is_null()) return tools;
  if (!list.is_array()) bad("`tools` is {}, expected a list of tools", kind_of(list));
  for (size_t i = 0; i < list.size(); ++i) {
    if (!list[i].is_object()) bad("`tools[{}]` is {}, expected an object", i, kind_of(list[i]));
    // ShareGPT sets list the bare functions; templates expect OpenAI's form.
    if (list[i].contains("function") || !list[i].contains("name")) {
      tools.push_back(dump(list[i]));
    } else {
      tools.push_back(dump(Json{{"type", "function"}, {"function", list[i]}}));
    }
  }
  return tools;
}

[[nodiscard]] text::ToolCall parse_tool_call(const Json& source, const std::string& where) {
  const Json unwrapped_call = unwrapped(source, where);
  if (!unwrapped_call.is_object())
    bad("{} is {}, expected an object", where, kind_of(unwrapped_call));
  const Json* call = &unwrapped_call;
  text::ToolCall out;
  if (const Json* type = find(*call, "type"); type != nullptr && type->is_string())
    out.type = type->get<std::string>();
  if (const Json* id = find(*call, "id"); id != nullptr && id->is_string())
    out.id = id->get<std::string>();
  if (const Json* function = find(*call, "function"); function != nullptr) {
    if (!function->is_object())
      bad("{}.function is {}, expected an object", where, kind_of(*function));
    call = function;
  }
  const Json* name = find(*call, "name");
  if (name == nullptr || !name->is_string()) bad("{} has no `name`", where);
  out.name = name->get<std::string>();
  const Json* arguments = find(*call, "arguments");
  if (arguments == nullptr) arguments = find(*call, "parameters");
  if (arguments == nullptr) {
    out.arguments = "{}";
  } else if (arguments->is_string()) {
    out.arguments = arguments->get<std::string>();
    out.arguments_is_string = true;
  } else if (arguments->is_object()) {
    out.arguments = dump(*arguments);
  } else {
    bad("{}.arguments is {}, expected an object or a string", where, kind_of(*arguments));
  }
  return out;
}

void parse_tool_calls(const Json& source, const std::string& where,
                      std::vector<text::ToolCall>& out) {
  const Json value = unwrapped(source, where);
  if (value.is_array()) {
    for (size_t i = 0; i < value.size(); ++i)
      out.push_back(parse_tool_call(value[i], fmt::format("{}[{}]", where, i)));
  } else {
    out.push_back(parse_tool_call(value, where));
  }
}

/// The text of one content part, whichever key holds it.
[[nodiscard]] const Json* part_value(const Json& part, std::string_view type) {
  for (const std::string_view key :
       {std::string_view("text"), std::string_view("value"), std::string_view("content"), type})
    if (const Json* j = find(part, key)) return j;
  return nullptr;
}

void parse_parts(const Json& parts, const std::string& where, text::Message& message) {
  std::string content, reasoning;
  bool any_text = false, any_reasoning = false;
  for (size_t i = 0; i < parts.size(); ++i) {
    const Json& part = parts[i];
    const std::string at = fmt::format("{}[{}]", where, i);
    if (part.is_string()) {
      content += part.get_ref<const std::string&>();
      any_text = true;
      continue;
    }
    if (!part.is_object())
      bad("{} is {}, expected a part {{\"type\", ...}} or a string", at, kind_of(part));
    const Json* type_json = find(part, "type");
    if (type_json != nullptr && !type_json->is_string())
      bad("{}.type is {}, expected a string", at, kind_of(*type_json));
    const std::string type = type_json == nullptr ? "text" : type_json->get<std::string>();
    const Json* value = part_value(part, type);
    if (type == "text" || type == "output_text" || type == "input_text") {
      if (value == nullptr || !value->is_string()) bad("{} has no text", at);
      content += value->get_ref<const std::string&>();
      any_text = true;
    } else if (type == "reasoning" || type == "thinking" || type == "think") {
      if (value == nullptr || !value->is_string()) bad("{} has no text", at);
      reasoning += value->get_ref<const std::string&>();
      any_reasoning = true;
    } else if (type == "tool_call" || type == "tool_calls" || type == "function_call") {
      parse_tool_calls(value != nullptr ? *value : part, at, message.tool_calls);
    } else {
      bad("{}: parts of type {} are not supported (allowed: text, reasoning, tool_call)", at,
          shown(type));
    }
  }
  if (any_text) message.content = std::move(content);
  if (any_reasoning) message.reasoning = std::move(reasoning);
}

/// One turn in either spelling: role/content or from/value.
[[nodiscard]] text::Message parse_turn(const Json& turn, const std::string& where) {
  if (!turn.is_object())
    bad("{} is {}, expected an object with `role` and `content`", where, kind_of(turn));
  const bool sharegpt = !turn.contains("role") && turn.contains("from");
  const std::string_view role_key = sharegpt ? "from" : "role",
                         content_key = sharegpt ? "value" : "content";
  const Json* role_json = find(turn, role_key);
  if (role_json == nullptr) bad("{} has no `{}`", where, role_key);
  if (!role_json->is_string())
    bad("{}.{} is {}, expected a string", where, role_key, kind_of(*role_json));
  const std::string& role = role_json->get_ref<const std::string&>();

  text::Message message;
  bool calls_in_content = false;
  if (role == "user" || role == "human") {
    message.role = text::Role::kUser;
  } else if (role == "assistant" || role == "gpt" || role == "model" || role == "chatgpt" ||
             role == "bot") {
    message.role = text::Role::kAssistant;
  } else if (role == "system" || role == "developer") {
    message.role = text::Role::kSystem;
  } else if (role == "tool" || role == "function" || role == "observation" || role == "ipython" ||
             role == "function_response" || role == "tool_response") {
    message.role = text::Role::kTool;
  } else if (role == "function_call" || role == "tool_call") {
    message.role = text::Role::kAssistant;
    calls_in_content = true;
  } else {
    bad("{}: unknown {} {} (allowed: system, user, assistant, tool{})", where, role_key,
        shown(role), sharegpt ? ", human, gpt, function_call, observation" : "");
  }

  const Json* content = find(turn, content_key);
  const std::string content_at = fmt::format("{}.{}", where, content_key);
  if (calls_in_content) {
    if (content == nullptr) bad("{} has no `{}`", where, content_key);
    parse_tool_calls(*content, content_at, message.tool_calls);
  } else if (content == nullptr) {
    if (!turn.contains(content_key) && !turn.contains("tool_calls") &&
        !turn.contains("function_call"))
      bad("{} has no `{}`", where, content_key);
  } else if (content->is_string()) {
    message.content = content->get<std::string>();
  } else if (content->is_array()) {
    parse_parts(*content, content_at, message);
  } else if (content->is_object() && message.role == text::Role::kTool) {
    message.content = dump(*content);
  } else {
    bad("{} is {}, expected a string or a list of parts", content_at, kind_of(*content));
  }
  for (const std::string_view key : {"reasoning_content", "reasoning", "thinking"}) {
    const Json* reasoning = find(turn, key);
    if (reasoning == nullptr || message.reasoning) continue;
    if (!reasoning->is_string())
      bad("{}.{} is {}, expected a string", where, key, kind_of(*reasoning));
    message.reasoning = reasoning->get<std::string>();
  }
  if (const Json* calls = find(turn, "tool_calls"))
    parse_tool_calls(*calls, where + ".tool_calls", message.tool_calls);
  if (const Json* call = find(turn, "function_call"))
    parse_tool_calls(*call, where + ".function_call", message.tool_calls);
  if (message.role != text::Role::kAssistant) {
    if (!message.tool_calls.empty()) bad("{}: only an assistant turn may hold tool calls", where);
    if (message.reasoning) bad("{}: only an assistant turn may hold reasoning", where);
    if (!message.content) bad("{} has no `{}`", where, content_key);
  } else if (!message.content && !message.reasoning && message.tool_calls.empty()) {
    bad("{}: an assistant turn with neither content nor tool calls", where);
  }

  // The turn's own word on its loss: "train": bool, or OpenAI's "weight": 0 | 1.
  if (const Json* train = find(turn, "train")) {
    if (!train->is_boolean()) bad("{}.train is {}, expected true or false", where, kind_of(*train));
    message.trained = train->get<bool>();
  }
  if (const Json* weight = find(turn, "weight")) {
    if (!weight->is_number() || (weight->get<double>() != 0.0 && weight->get<double>() != 1.0))
      bad("{}.weight is {}, allowed are 0 and 1", where, shown(dump(*weight)));
    message.trained = weight->get<double>() == 1.0;
  }
  if (message.trained && message.role != text::Role::kAssistant) {
    if (*message.trained)
      bad("{}: only assistant turns can be trained; use --train-on-prompt for the others", where);
    message.trained.reset();
  }
  return message;
}

void parse_turns(const Json& source, std::string_view key, ParsedRow& out) {
  const bool packed = source.is_string() && source.get_ref<const std::string&>().starts_with('[');
  const Json list = packed ? unwrapped(source, fmt::format("`{}`", key)) : source;
  if (!list.is_array()) bad("`{}` is {}, expected a list of turns", key, kind_of(list));
  if (list.empty()) bad("`{}` is empty", key);
  for (size_t i = 0; i < list.size(); ++i)
    out.messages.push_back(parse_turn(list[i], fmt::format("{}[{}]", key, i)));
}

[[nodiscard]] text::Message turn(text::Role role, std::string content) {
  text::Message m;
  m.role = role;
  m.content = std::move(content);
  return m;
}

void add_system(const Json& row, ParsedRow& out) {
  std::string system = optional_text_at(row, "system");
  if (!system.empty())
    out.messages.insert(out.messages.begin(), turn(text::Role::kSystem, std::move(system)));
}

/// An answer in one string. White space before a leading <think> is not part of what the model
/// says.
[[nodiscard]] text::Message answer_turn(std::string answer) {
  const size_t first = answer.find_first_not_of(" \t\r\n");
  if (first != std::string::npos && first != 0 && answer.compare(first, 7, "<think>") == 0)
    answer.erase(0, first);
  return turn(text::Role::kAssistant, std::move(answer));
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
  out.messages.push_back(answer_turn(text_at(row, row.contains("output")     ? "output"
                                                  : row.contains("response") ? "response"
                                                                             : "output")));
}

void parse_prompt_completion(const Json& row, ParsedRow& out) {
  const Json* prompt = find(row, "prompt");
  const Json* completion = find(row, "completion");
  if (prompt != nullptr && prompt->is_array()) {
    parse_turns(*prompt, "prompt", out);
    if (completion == nullptr) bad("no `completion`; the row's keys are {}", keys_of(row));
    if (completion->is_string())
      out.messages.push_back(answer_turn(completion->get<std::string>()));
    else
      parse_turns(*completion, "completion", out);
    out.tools = parse_tools(row);
    // Only what the completion says is a target.
    for (size_t i = 0; i < prompt->size(); ++i)
      if (out.messages[i].role == text::Role::kAssistant && !out.messages[i].trained)
        out.messages[i].trained = false;
    return;
  }
  out.kind = ParsedRow::Kind::kText;
  out.prompt = text_at(row, "prompt");
  out.completion = text_at(row, "completion");
  out.empty_answer = out.completion.empty();
}

/// Names under which published traces keep a question and its answer.
constexpr std::array<std::string_view, 4> kQuestionKeys = {"question", "query", "problem",
                                                           "prompt"};
constexpr std::array<std::string_view, 2> kResponseKeys = {"response", "solution"};

/// The first of the keys that the row has, else the first.
[[nodiscard]] std::string_view present(const Json& row, std::span<const std::string_view> keys) {
  const auto at = std::find_if(keys.begin(), keys.end(),
                               [&](std::string_view key) { return row.contains(key); });
  return at == keys.end() ? keys.front() : *at;
}

void parse_question(const Json& row, std::string_view answer_key, ParsedRow& out) {
  add_system(row, out);
  const std::string_view question_key = present(row, kQuestionKeys);
  const std::string& question = text_at(row, question_key);
  if (question.empty()) bad("`{}` is empty", question_key);
  out.messages.push_back(turn(text::Role::kUser, question));
  const std::string& answer = text_at(row, answer_key);
  for (const std::string_view key : {"reasoning_content", "reasoning", "thinking"}) {
    std::string reasoning = optional_text_at(row, key);
    if (reasoning.empty()) continue;
    out.messages.push_back(turn(text::Role::kAssistant, answer));
    out.messages.back().reasoning = std::move(reasoning);
    return;
  }
  if (answer_key == "answer") {
    if (auto worked = split_worked_answer(answer)) {
      text::Message m = turn(text::Role::kAssistant, "\\boxed{" + worked->answer + "}");
      m.reasoning = std::move(worked->solution);
      out.messages.push_back(std::move(m));
      return;
    }
  }
  out.messages.push_back(answer_turn(answer));
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

}  // namespace

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
    j = parse_json(row);
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
  if (has("input_ids")) return Format::kInputIds;
  if (has("messages")) return Format::kMessages;
  if (has("conversations") || has("conversation")) return Format::kShareGpt;
  if (has("instruction") && (has("output") || has("response"))) return Format::kAlpaca;
  if (has("prompt") && has("completion")) return Format::kPromptCompletion;
  const auto has_any = [&](std::span<const std::string_view> keys) {
    return std::any_of(keys.begin(), keys.end(), has);
  };
  if (has_any(kQuestionKeys) && has_any(kResponseKeys)) return Format::kQuestionResponse;
  if (has("question") && has("answer")) return Format::kQuestionAnswer;
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
  const Json row = parse_json(text);
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
