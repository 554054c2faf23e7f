// Answers, while they stream, into reasoning, content and tool calls.
#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "runtime/core/error.h"
#include "runtime/tokenizer/chat.h"
#include "runtime/tokenizer/chat_writer.h"
#include "runtime/tokenizer/python_json.h"

namespace r1::text {
namespace {

constexpr std::string_view kQwenCallBegin = "<tool_call>";
constexpr std::string_view kQwenCallEnd = "</tool_call>";

bool is_space(char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r'; }

size_t count_leading_space(std::string_view text) {
  size_t n = 0;
  while (n < text.size() && is_space(text[n])) ++n;
  return n;
}

std::string_view without_trailing_space(std::string_view text) {
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return text;
}

std::string_view strip(std::string_view text) {
  return without_trailing_space(text.substr(count_leading_space(text)));
}

// Length of the longest end of `text` that is a proper beginning of `marker`.
size_t partial_marker(std::string_view text, std::string_view marker) {
  for (size_t n = std::min(text.size(), marker.size() - 1); n > 0; --n) {
    if (text.ends_with(marker.substr(0, n))) return n;
  }
  return 0;
}

// How much of `text`, which holds no whole marker, is certain: not white space that may turn out to
// stand before the marker, nor a beginning of it.
size_t certain(std::string_view text, std::string_view marker) {
  return without_trailing_space(text.substr(0, text.size() - partial_marker(text, marker))).size();
}

// `type<｜tool▁sep｜>name\n```json\narguments\n```` between a call's markers.
std::optional<ToolCall> parse_r1_call(std::string_view body) {
  const size_t separator = body.find(kR1Separator);
  if (separator == std::string_view::npos) return std::nullopt;
  ToolCall call;
  call.type = strip(body.substr(0, separator));
  body.remove_prefix(separator + kR1Separator.size());
  constexpr std::string_view kFence = "```json";
  const size_t fence = body.find(kFence);
  const size_t end = body.rfind("```");
  if (fence == std::string_view::npos || end < fence + kFence.size()) return std::nullopt;
  call.name = strip(body.substr(0, fence));
  if (call.name.empty()) return std::nullopt;
  call.arguments = strip(body.substr(fence + kFence.size(), end - fence - kFence.size()));
  return call;
}

// `{"name": ..., "arguments": {...}}`.
std::optional<ToolCall> parse_qwen_call(std::string_view body) {
  try {
    const std::string name = python_json_member(body, "name", "tool call");
    ToolCall call;
    call.arguments = python_json_member(body, "arguments", "tool call");
    if (name.size() < 3 || name.front() != '"' || call.arguments.empty()) return std::nullopt;
    call.name = nlohmann::json::parse(name).get<std::string>();
    return call;
  } catch (const DataError&) {
    return std::nullopt;  // not JSON: the caller shows it as text
  }
}

}  // namespace

AnswerParser::AnswerParser(TemplateKind kind, bool thinking_open)
    : qwen_(!is_r1(kind)), state_(thinking_open ? State::kReasoning : State::kStart) {}

void AnswerParser::drop(size_t n) {
  pending_.erase(0, n);
  searched_ = 0;
}

// Goes on where the last search for a marker ended: a long part that comes in small pieces is
// searched once.
size_t AnswerParser::find_marker(std::string_view where, std::string_view marker) {
  const size_t overlap = marker.size() - 1;
  const size_t at = where.find(marker, searched_ > overlap ? searched_ - overlap : 0);
  searched_ = where.size();
  return at;
}

AnswerParser::Step AnswerParser::enter_content() {
  trim_next_ = true;
  state_ = State::kContent;
  return Step::kOn;
}

// Takes what is certain from the front of pending_. At the end everything is.
void AnswerParser::run(bool at_end, ParsedAnswer& out) {
  const auto step = [&] {
    switch (state_) {
      case State::kStart:
        return start(at_end);
      case State::kReasoning:
      case State::kContent:
        return text_part(at_end, out);
      case State::kToolCalls:
        return qwen_ ? qwen_call(out) : r1_call(at_end, out);
    }
    R1_CHECK(false, "state {}", static_cast<int>(state_));
  };
  while (step() == Step::kOn) {
  }
}

// Does the answer begin with a thought?
AnswerParser::Step AnswerParser::start(bool at_end) {
  const std::string_view text = pending_;
  const size_t space = count_leading_space(text);
  const auto rest = text.substr(space);
  if (rest.starts_with(kThinkBegin)) {
    drop(space + kThinkBegin.size());
    state_ = State::kReasoning;
    return Step::kOn;
  }
  if (!at_end && kThinkBegin.starts_with(rest)) return Step::kWait;
  trim_next_ = false;  // no thought: the content is kept as it is
  state_ = State::kContent;
  return Step::kOn;
}

// Reasoning or content, up to the marker that ends it.
AnswerParser::Step AnswerParser::text_part(bool at_end, ParsedAnswer& out) {
  const bool reasoning = state_ == State::kReasoning;
  const std::string_view marker = reasoning ? kThinkEnd : (qwen_ ? kQwenCallBegin : kR1CallsBegin);
  std::string& part = reasoning ? out.reasoning : out.content;
  if (trim_next_) {
    drop(count_leading_space(pending_));
    if (pending_.empty()) return Step::kWait;
    trim_next_ = false;
  }
  const std::string_view text = pending_;
  const size_t at = find_marker(text, marker);
  if (at != std::string_view::npos) {
    part += without_trailing_space(text.substr(0, at));
    drop(at + marker.size());
    trim_next_ = true;
    state_ = reasoning ? State::kContent : State::kToolCalls;
    return Step::kOn;
  }
  if (at_end) {
    part += reasoning ? without_trailing_space(text) : text;
    drop(text.size());
  } else if (const size_t n = certain(text, marker); n > 0) {
    part += text.substr(0, n);
    drop(n);
  }
  return Step::kWait;
}

// One call in Qwen's form; <tool_call> is behind us. What cannot be read is shown as text.
AnswerParser::Step AnswerParser::qwen_call(ParsedAnswer& out) {
  const std::string_view text = pending_;
  const size_t space = count_leading_space(text);
  const auto rest = text.substr(space);
  const size_t end = find_marker(rest, kQwenCallEnd);
  if (end == std::string_view::npos) return Step::kWait;
  const size_t whole = space + end + kQwenCallEnd.size();
  if (auto call = parse_qwen_call(rest.substr(0, end))) {
    out.tool_calls.push_back(std::move(*call));
  } else {
    out.content += kQwenCallBegin;
    out.content += text.substr(0, whole);
  }
  drop(whole);
  return enter_content();
}

// One call in DeepSeek's form, or the end of its list.
AnswerParser::Step AnswerParser::r1_call(bool at_end, ParsedAnswer& out) {
  const std::string_view text = pending_;
  const size_t space = count_leading_space(text);
  const auto rest = text.substr(space);
  if (rest.starts_with(kR1CallBegin)) {
    const size_t end = find_marker(rest, kR1CallEnd);
    if (end == std::string_view::npos) return Step::kWait;
    const auto body = rest.substr(kR1CallBegin.size(), end - kR1CallBegin.size());
    if (auto call = parse_r1_call(body)) {
      out.tool_calls.push_back(std::move(*call));
    } else {
      out.content += rest.substr(0, end + kR1CallEnd.size());
    }
    drop(space + end + kR1CallEnd.size());
    return Step::kOn;
  }
  if (rest.starts_with(kR1CallsEnd)) {
    drop(space + kR1CallsEnd.size());
  } else if (!at_end && (kR1CallBegin.starts_with(rest) || kR1CallsEnd.starts_with(rest))) {
    return Step::kWait;
  }
  return enter_content();
}

ParsedAnswer AnswerParser::push(std::string_view piece) {
  ParsedAnswer out;
  pending_ += piece;
  run(false, out);
  return out;
}

ParsedAnswer AnswerParser::finish(bool partial) {
  ParsedAnswer out;
  run(true, out);
  if (state_ == State::kToolCalls && !partial && !pending_.empty()) {
    out.content += qwen_ ? kQwenCallBegin : kR1CallsBegin;
    out.content += pending_;
  }
  pending_.clear();
  return out;
}

ParsedAnswer parse_answer(TemplateKind kind, std::string_view answer, bool thinking_open,
                          bool partial) {
  AnswerParser parser(kind, thinking_open);
  ParsedAnswer all = parser.push(answer);
  ParsedAnswer rest = parser.finish(partial);
  all.reasoning += rest.reasoning;
  all.content += rest.content;
  std::move(rest.tool_calls.begin(), rest.tool_calls.end(), std::back_inserter(all.tool_calls));
  return all;
}

}  // namespace r1::text
