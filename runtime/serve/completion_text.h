// From tokens to what a reader sees: whole characters, stop strings cut off, reasoning apart from the answer.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/tokenizer/chat.h"
#include "runtime/tokenizer/tokenizer.h"

namespace r1::serve {

/// Finds stop strings in text that arrives in pieces, and holds back what may be the beginning of one.
class StopFinder {
 public:
  explicit StopFinder(std::vector<std::string> stops);
  /// Text that became certain: nothing of it belongs to a stop string. After found() nothing more comes.
  [[nodiscard]] std::string push(std::string_view piece);
  /// What was held back.
  [[nodiscard]] std::string finish();
  [[nodiscard]] bool found() const { return found_; }

 private:
  std::vector<std::string> stops_;
  std::string pending_;
  bool found_ = false;
};

/// A completion while it streams.
class CompletionText {
 public:
  /// `tokenizer` must outlive it. `thinking_open`: the prompt ended inside an open thought; otherwise a completion that
  /// begins with <think> reasons until </think>, and any other is all answer, as it is.
  CompletionText(const text::Tokenizer& tokenizer, text::TemplateKind kind, bool thinking_open,
                 std::vector<std::string> stops);

  struct Delta {
    std::string reasoning, answer;
  };
  /// What became certain with this token.
  [[nodiscard]] Delta push(int32_t token);
  /// A stop string is there: the completion is over.
  [[nodiscard]] bool stopped() const { return stops_.found(); }
  [[nodiscard]] Delta finish();

  /// All so far.
  [[nodiscard]] const std::string& answer() const { return answer_; }
  /// Nothing when there was no thought.
  [[nodiscard]] const std::optional<std::string>& reasoning() const { return reasoning_; }
  [[nodiscard]] const std::vector<text::ToolCall>& tool_calls() const { return tool_calls_; }

 private:
  [[nodiscard]] Delta add(text::ParsedAnswer parsed);

  const text::Tokenizer& tokenizer_;
  text::StreamDecoder decoder_;
  StopFinder stops_;
  text::AnswerParser parser_;
  std::string answer_;
  std::optional<std::string> reasoning_;
  std::vector<text::ToolCall> tool_calls_;
};

}  // namespace r1::serve
