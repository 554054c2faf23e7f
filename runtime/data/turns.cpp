#include "runtime/data/turns.h"

#include <utility>

#include "runtime/core/text.h"

namespace r1::data {
namespace {

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

/// The keys of a turn: role/content, or ShareGPT's from/value.
struct TurnKeys {
  bool sharegpt;
  std::string_view role, content;
};

[[nodiscard]] TurnKeys turn_keys(const Json& turn) {
  const bool sharegpt = !turn.contains("role") && turn.contains("from");
  TurnKeys keys{sharegpt, sharegpt ? "from" : "role", sharegpt ? "value" : "content"};
  // Some sets mix the two spellings.
  if (const std::string_view other = sharegpt ? "content" : "value";
      !turn.contains(keys.content) && turn.contains(other))
    keys.content = other;
  return keys;
}

/// Sets the role. True: the content is the assistant's tool calls.
[[nodiscard]] bool parse_role(const Json& turn, const TurnKeys& keys, const std::string& where,
                              text::Message& message) {
  const Json* role_json = find(turn, keys.role);
  if (role_json == nullptr) bad("{} has no `{}`", where, keys.role);
  if (!role_json->is_string())
    bad("{}.{} is {}, expected a string", where, keys.role, kind_of(*role_json));
  const std::string& spelled = role_json->get_ref<const std::string&>();
  const std::string role = lower(spelled);
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
    return true;
  } else {
    bad("{}: unknown {} {} (allowed: system, user, assistant, tool{})", where, keys.role,
        shown(spelled), keys.sharegpt ? ", human, gpt, function_call, observation" : "");
  }
  return false;
}

void parse_content(const Json& turn, const TurnKeys& keys, bool calls, const std::string& where,
                   text::Message& message) {
  const Json* content = find(turn, keys.content);
  const std::string at = fmt::format("{}.{}", where, keys.content);
  if (calls) {
    if (content == nullptr) bad("{} has no `{}`", where, keys.content);
    parse_tool_calls(*content, at, message.tool_calls);
  } else if (content == nullptr) {
    if (!turn.contains(keys.content) && !turn.contains("tool_calls") &&
        !turn.contains("function_call"))
      bad("{} has no `{}`", where, keys.content);
  } else if (content->is_string()) {
    message.content = content->get<std::string>();
  } else if (content->is_array()) {
    parse_parts(*content, at, message);
  } else if (content->is_object() && message.role == text::Role::kTool) {
    message.content = dump(*content);
  } else {
    bad("{} is {}, expected a string or a list of parts", at, kind_of(*content));
  }
}

/// Reasoning and tool calls that stand beside the content.
void parse_beside_content(const Json& turn, const std::string& where, text::Message& message) {
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
}

/// What a turn of its role may and must hold.
void check_turn(const text::Message& message, const TurnKeys& keys, const std::string& where) {
  if (message.role != text::Role::kAssistant) {
    if (!message.tool_calls.empty()) bad("{}: only an assistant turn may hold tool calls", where);
    if (message.reasoning) bad("{}: only an assistant turn may hold reasoning", where);
    if (!message.content) bad("{} has no `{}`", where, keys.content);
  } else if (!message.content && !message.reasoning && message.tool_calls.empty()) {
    bad("{}: an assistant turn with neither content nor tool calls", where);
  }
}

/// The turn's own word on its loss: "train": bool, or OpenAI's "weight": 0 | 1.
void parse_trained(const Json& turn, const std::string& where, text::Message& message) {
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
}

/// One turn in either spelling.
[[nodiscard]] text::Message parse_turn(const Json& turn, const std::string& where) {
  if (!turn.is_object())
    bad("{} is {}, expected an object with `role` and `content`", where, kind_of(turn));
  const TurnKeys keys = turn_keys(turn);
  text::Message message;
  const bool calls = parse_role(turn, keys, where, message);
  parse_content(turn, keys, calls, where, message);
  parse_beside_content(turn, where, message);
  check_turn(message, keys, where);
  parse_trained(turn, where, message);
  return message;
}

/// XTuner's turns: a question and its answer in one object, the first with the system prompt.
void parse_exchange(const Json& pair, const std::string& where, ParsedRow& out) {
  const auto text = [&](std::string_view key) -> std::string {
    const Json* j = find(pair, key);
    if (j == nullptr) return {};
    if (!j->is_string()) bad("{}.{} is {}, expected a string", where, key, kind_of(*j));
    return j->get<std::string>();
  };
  if (std::string system = text("system"); !system.empty())
    out.messages.push_back(turn(text::Role::kSystem, std::move(system)));
  std::string question = text("input");
  if (question.empty())
    bad("{}.input is empty; text without a question goes into rows of {{\"text\"}}", where);
  out.messages.push_back(turn(text::Role::kUser, std::move(question)));
  out.messages.push_back(answer_turn(text("output")));
  if (const Json* loss = find(pair, "output_with_loss")) {
    if (!loss->is_boolean())
      bad("{}.output_with_loss is {}, expected true or false", where, kind_of(*loss));
    if (!loss->get<bool>()) out.messages.back().trained = false;
  }
}

}  // namespace

std::vector<std::string> parse_tools(const Json& row) {
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

text::Message turn(text::Role role, std::string content) {
  text::Message m;
  m.role = role;
  m.content = std::move(content);
  return m;
}

text::Message answer_turn(std::string answer) {
  const size_t first = answer.find_first_not_of(" \t\r\n");
  if (first != std::string::npos && first != 0 && answer.compare(first, 7, "<think>") == 0)
    answer.erase(0, first);
  return turn(text::Role::kAssistant, std::move(answer));
}

void parse_turns(const Json& source, std::string_view key, ParsedRow& out) {
  const bool packed = source.is_string() && source.get_ref<const std::string&>().starts_with('[');
  const Json list = packed ? unwrapped(source, fmt::format("`{}`", key)) : source;
  if (!list.is_array()) bad("`{}` is {}, expected a list of turns", key, kind_of(list));
  if (list.empty()) bad("`{}` is empty", key);
  for (size_t i = 0; i < list.size(); ++i) {
    const Json& item = list[i];
    const std::string where = fmt::format("{}[{}]", key, i);
    if (item.is_object() && item.contains("input") && item.contains("output") &&
        !item.contains("role") && !item.contains("from"))
      parse_exchange(item, where, out);
    else
      out.messages.push_back(parse_turn(item, where));
  }
}

}  // namespace r1::data
