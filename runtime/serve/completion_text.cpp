#include "runtime/serve/completion_text.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace r1::serve {

namespace {

/// Tokens that AnswerParser looks for.
bool is_marker(std::string_view token) {
  return token == "<think>" || token == "</think>" || token == "<tool_call>" || token == "</tool_call>" ||
         token.starts_with("<｜tool▁");
}

}  // namespace

StopFinder::StopFinder(std::vector<std::string> stops) : stops_(std::move(stops)) {}

std::string StopFinder::push(std::string_view piece) {
  if (found_) return {};
  pending_ += piece;
  size_t first = std::string::npos;
  for (const std::string& stop : stops_) first = std::min(first, pending_.find(stop));
  if (first != std::string::npos) {
    found_ = true;
    std::string out = pending_.substr(0, first);
    pending_.clear();
    return out;
  }
  // The longest end of the text that a stop string begins with.
  size_t held = 0;
  for (const std::string& stop : stops_)
    for (size_t n = std::min(stop.size() - 1, pending_.size()); n > held; --n)
      if (std::string_view(pending_).substr(pending_.size() - n) == std::string_view(stop).substr(0, n)) held = n;
  std::string out = pending_.substr(0, pending_.size() - held);
  pending_.erase(0, out.size());
  return out;
}

std::string StopFinder::finish() { return std::exchange(pending_, {}); }

CompletionText::CompletionText(const text::Tokenizer& tokenizer, text::TemplateKind kind, bool thinking_open,
                               std::vector<std::string> stops)
    : tokenizer_(tokenizer), decoder_(tokenizer), stops_(std::move(stops)), parser_(kind, thinking_open) {
  if (thinking_open) reasoning_.emplace();
}

CompletionText::Delta CompletionText::push(int32_t token) {
  // Some tokenizers mark as special what tells the parts apart.
  if (tokenizer_.is_special(token) && !is_marker(tokenizer_.token_bytes(token))) return {};
  return add(parser_.push(stops_.push(decoder_.push(token))));
}

CompletionText::Delta CompletionText::finish() {
  std::string rest = stops_.push(decoder_.finish());
  rest += stops_.finish();
  Delta d = add(parser_.push(rest));
  const Delta last = add(parser_.finish());
  d.reasoning += last.reasoning;
  d.answer += last.answer;
  return d;
}

CompletionText::Delta CompletionText::add(text::ParsedAnswer parsed) {
  if (!parsed.reasoning.empty()) reasoning_ = reasoning_.value_or("") + parsed.reasoning;
  answer_ += parsed.content;
  std::move(parsed.tool_calls.begin(), parsed.tool_calls.end(), std::back_inserter(tool_calls_));
  return {.reasoning = std::move(parsed.reasoning), .answer = std::move(parsed.content)};
}

}  // namespace r1::serve
