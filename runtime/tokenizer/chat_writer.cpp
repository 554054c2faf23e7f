#include "runtime/tokenizer/chat_writer.h"

#include <fmt/format.h>

#include "runtime/core/error.h"
#include "runtime/tokenizer/python_json.h"

namespace r1::text {

bool is_r1(TemplateKind kind) {
  return kind == TemplateKind::kR1Distill || kind == TemplateKind::kR1DistillFirst ||
         kind == TemplateKind::kR1Tools;
}

void ChatWriter::add(std::string_view text, bool markup) {
  if (text.empty()) return;
  auto& pieces = blocks_.back().pieces;
  // Neighbouring text joins; neighbouring markup too, none of which ends inside a control token.
  if (!pieces.empty() && pieces.back().markup == markup) {
    pieces.back().text += text;
  } else {
    pieces.push_back({std::string(text), markup});
  }
}

void ChatWriter::answer(std::string_view text) {
  while (think_markers_ && !text.empty()) {
    const size_t begin = text.find(kThinkBegin);
    const size_t end = text.find(kThinkEnd);
    const size_t at = std::min(begin, end);
    if (at == std::string_view::npos) break;
    const size_t length = at == begin ? kThinkBegin.size() : kThinkEnd.size();
    add(text.substr(0, at), false);
    add(text.substr(at, length), true);
    text.remove_prefix(at + length);
  }
  add(text, false);
}

void ChatWriter::set_trained(bool trained) {
  if (blocks_.back().trained == trained) return;
  cut();
  blocks_.back().trained = trained;
}

void ChatWriter::cut() {
  if (!blocks_.back().pieces.empty()) blocks_.push_back({{}, blocks_.back().trained});
}

std::string ChatWriter::joined() const {
  std::string text;
  for (const Block& block : blocks_) {
    for (const Piece& piece : block.pieces) text += piece.text;
  }
  return text;
}

RenderedSample ChatWriter::encode(const Tokenizer& tokenizer) const {
  RenderedSample sample;
  for (const Block& block : blocks_) {
    std::vector<Segment> segments;
    segments.reserve(block.pieces.size());
    for (const Piece& piece : block.pieces) segments.push_back({piece.text, piece.markup});
    const auto ids = tokenizer.encode_segments(segments);
    sample.ids.insert(sample.ids.end(), ids.begin(), ids.end());
    sample.trained.resize(sample.ids.size(), block.trained ? 1 : 0);
  }
  return sample;
}

std::string_view last_system_prompt(std::span<const Message> messages) {
  for (size_t i = messages.size(); i-- > 0;) {
    if (messages[i].role == Role::kSystem)
      return messages[i].content ? std::string_view(*messages[i].content) : "";
  }
  return {};
}

void write_r1_call(ChatWriter& out, const ToolCall& call, std::string_view arguments) {
  out.markup(kR1CallBegin);
  out.text(call.type);
  out.markup(kR1Separator);
  out.text(call.name);
  out.markup("\n```json\n");
  out.text(arguments);
  out.markup("\n```");
  out.markup(kR1CallEnd);
}

void write_r1_output(ChatWriter& out, std::string_view content, std::optional<bool> first) {
  if (first) out.markup(*first ? kR1OutputsBegin : std::string_view("\n"));
  out.markup(kR1OutputBegin);
  out.text(content);
  out.markup(kR1OutputEnd);
}

void write_r1_tools_prompt(ChatWriter& out, std::span<const std::string> tools) {
  if (tools.empty()) return;
  std::string functions;
  for (const std::string& tool : tools) {
    const std::string function = python_json_member(tool, "function", "tool");
    if (function.empty())
      throw DataError("tool without a \"function\": the template {} needs one",
                      template_name(TemplateKind::kR1Tools));
    functions += fmt::format("{}{}", functions.empty() ? "" : ", ", function);
  }
  out.markup("You can call any of the following function tools to satisfy the user's requests: ");
  out.text(python_json(fmt::format("[{}]", functions), "tools", 2));
  out.markup("\n\nExample function tool call syntax:\n\n");
  out.markup(kR1CallsBegin);
  out.markup(kR1CallBegin);
  out.markup("function");
  out.markup(kR1Separator);
  out.markup("example_function_name\n```json\n{\n  \"arg1\": \"some_value\"\n  ...\n}\n```\n");
  out.markup(kR1CallEnd);
  out.markup(kR1CallsEnd);
  out.markup("\n\n");
}

void write_qwen_system(ChatWriter& out, TemplateKind kind, std::span<const Message> messages,
                       std::span<const std::string> tools) {
  if (messages.empty())
    throw DataError("a conversation without messages: the template {} needs at least one",
                    template_name(kind));
  out.markup("<|im_start|>system\n");
  if (messages[0].role == Role::kSystem) {
    if (messages[0].content) out.text(*messages[0].content);
  } else if (kind == TemplateKind::kQwen25Math) {
    out.markup("Please reason step by step, and put your final answer within \\boxed{}.");
  } else if (kind == TemplateKind::kQwen25Base) {
    out.markup("You are a helpful assistant.");
  } else {
    out.markup("You are Qwen, created by Alibaba Cloud. You are a helpful assistant.");
  }
  if (!tools.empty()) {
    out.markup(
        "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou "
        "are provided with function "
        "signatures within <tools></tools> XML tags:\n<tools>");
    for (const std::string& tool : tools) {
      out.markup("\n");
      out.text(python_json(tool, "tool"));
    }
    out.markup(
        "\n</tools>\n\nFor each function call, return a json object with function name and "
        "arguments within "
        "<tool_call></tool_call> XML tags:\n<tool_call>\n{\"name\": <function-name>, "
        "\"arguments\": "
        "<args-json-object>}\n</tool_call>");
  }
  out.markup("<|im_end|>\n");
}

void write_qwen_call(ChatWriter& out, const ToolCall& call, std::string_view arguments) {
  out.markup("<tool_call>\n{\"name\": \"");
  out.text(call.name);
  out.markup("\", \"arguments\": ");
  out.text(arguments);
  out.markup("}\n</tool_call>");
}

void write_qwen_output(ChatWriter& out, std::span<const Message> messages, size_t at) {
  const auto is_tool = [&](size_t i) {
    return i < messages.size() && messages[i].role == Role::kTool;
  };
  if (at == 0 || !is_tool(at - 1)) out.markup("<|im_start|>user");
  out.markup("\n<tool_response>\n");
  if (messages[at].content) out.text(*messages[at].content);
  out.markup("\n</tool_response>");
  if (!is_tool(at + 1)) out.markup("<|im_end|>\n");
}

}  // namespace r1::text
