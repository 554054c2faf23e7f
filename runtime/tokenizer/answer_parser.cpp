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

std::string_view strip(std::string_view text) {
  text.remove_prefix(count_leading_space(text));
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return text;
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
  size_t n = text.size() - partial_marker(text, marker);
  while (n > 0 && is_space(text[n - 1])) --n;
  return n;
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

// Takes what is certain from the front of pending_. At the end everything is.
void AnswerParser::run(bool at_end, ParsedAnswer& out) {
  const std::string_view calls_begin = qwen_ ? kQwenCallBegin : kR1CallsBegin;
  const auto drop = [this](size_t n) {
    pending_.erase(0, n);
    searched_ = 0;
  };
  // Goes on where the last search for a marker ended: a long part that comes in small pieces is
  // searched once.
  const auto find = [this](std::string_view where, std::string_view marker) {
    const size_t overlap = marker.size() - 1;
    const size_t at = where.find(marker, searched_ > overlap ? searched_ - overlap : 0);
    searched_ = where.size();
    return at;
  };
  for (;;) {
    const std::string_view text = pending_;
    switch (state_) {
      case State::kStart: {
        const size_t space = count_leading_space(text);
        const auto rest = text.substr(space);
        if (rest.starts_with(kThinkBegin)) {
          drop(space + kThinkBegin.size());
          state_ = State::kReasoning;
          continue;
        }
        if (!at_end && kThinkBegin.starts_with(rest)) return;
        trim_next_ = false;  // no thought: the content is kept as it is
        state_ = State::kContent;
        continue;
      }
      case State::kReasoning:
      case State::kContent: {
        const bool reasoning = state_ == State::kReasoning;
        const std::string_view marker = reasoning ? kThinkEnd : calls_begin;
        std::string& part = reasoning ? out.reasoning : out.content;
        if (trim_next_) {
          drop(count_leading_space(text));
          if (pending_.empty()) return;
          trim_next_ = false;
          continue;
        }
        const size_t at = find(text, marker);
        if (at != std::string_view::npos) {
          size_t n = at;
          while (n > 0 && is_space(text[n - 1])) --n;
          part += text.substr(0, n);
          drop(at + marker.size());
          trim_next_ = true;
          state_ = reasoning ? State::kContent : State::kToolCalls;
          continue;
        }
        size_t n = at_end ? text.size() : certain(text, marker);
        while (at_end && reasoning && n > 0 && is_space(text[n - 1])) --n;
        part += text.substr(0, n);
        if (at_end || n > 0) drop(at_end ? text.size() : n);
        return;
      }
      case State::kToolCalls: {
        const size_t space = count_leading_space(text);
        const auto rest = text.substr(space);
        if (qwen_) {
          const size_t end = find(rest, kQwenCallEnd);
          if (end == std::string_view::npos) return;
          if (auto call = parse_qwen_call(rest.substr(0, end))) {
            out.tool_calls.push_back(std::move(*call));
          } else {
            out.content += std::string(kQwenCallBegin) +
                           std::string(text.substr(0, space + end + kQwenCallEnd.size()));
          }
          drop(space + end + kQwenCallEnd.size());
          trim_next_ = true;
          state_ = State::kContent;
          continue;
        }
        if (rest.starts_with(kR1CallBegin)) {
          const size_t end = find(rest, kR1CallEnd);
          if (end == std::string_view::npos) return;
          const auto body = rest.substr(kR1CallBegin.size(), end - kR1CallBegin.size());
          if (auto call = parse_r1_call(body)) {
            out.tool_calls.push_back(std::move(*call));
          } else {
            out.content += rest.substr(0, end + kR1CallEnd.size());
          }
          drop(space + end + kR1CallEnd.size());
          continue;
        }
        if (rest.starts_with(kR1CallsEnd)) {
          drop(space + kR1CallsEnd.size());
        } else if (!at_end && (kR1CallBegin.starts_with(rest) || kR1CallsEnd.starts_with(rest))) {
          return;
        }
        trim_next_ = true;
        state_ = State::kContent;
        continue;
      }
    }
  }
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
