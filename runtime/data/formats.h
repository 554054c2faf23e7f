// Rows as users bring them -> token ids with a loss mask. One function call a row; no state, so any
// number of threads.
//
// Formats (the names of --format), found by the keys of the first rows when not given, in this
// order. Capitals in keys and roles do not matter.
//   input-ids          {"input_ids", "labels", "attention_mask"}; labels not shifted, -100 = not
//                      trained
//   messages           {"messages": [{"role", "content", "tool_calls", "reasoning_content",
//                      "weight"}], "tools"}
//   sharegpt           {"conversations" or "conversation": [{"from", "value"}], "system", "tools"};
//                      turns may also be XTuner's {"system", "input", "output"}
//   alpaca             {"instruction", "input", "output", "system", "history"} (output: also
//                      response, answer, completion)
//   prompt-completion  {"prompt", "completion"}: raw text without a template (lists of messages:
//                      with one)
//   question-response  {"question", "response"} (question: also query, problem, prompt, input,
//                      user; response: also solution, output, assistant); the response may begin
//                      with <think>...</think>, or "reasoning" (also reasoning_content, thinking,
//                      complex_cot) holds the thought; "system" or "system_prompt"
//   question-answer    {"question", "answer"} (question: as above); an answer that ends in "#### N"
//                      (GSM8K) becomes thought and \boxed{N}
//   text               {"text"}, or lines of plain text; everything is trained
// Pairs of preferences (chosen, rejected) and answers with a verdict are refused by name.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/tokenizer/chat.h"
#include "runtime/tokenizer/tokenizer.h"

namespace r1::data {

enum class Format : uint8_t {
  kMessages,
  kShareGpt,
  kAlpaca,
  kPromptCompletion,
  kQuestionAnswer,
  kQuestionResponse,
  kText,
  kInputIds,
};
[[nodiscard]] std::string_view format_name(Format format);
/// Nothing when there is no such format.
[[nodiscard]] std::optional<Format> format_by_name(std::string_view name);
/// The format of a JSON row by its keys. Nothing when none fits or the text is not JSON; `why` then
/// says what was found.
[[nodiscard]] std::optional<Format> detect_format(std::string_view row, std::string* why);
/// True when rows of this format are rendered with the chat template (prompt-completion: only if
/// they are lists).
[[nodiscard]] bool needs_template(Format format);

/// Why a row cannot be used; becomes a BadRow with file and line.
class RowError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A row read, before it is tokenised: a conversation, raw text, or ids.
struct ParsedRow {
  enum class Kind : uint8_t { kConversation, kText, kIds };
  Kind kind = Kind::kConversation;
  std::vector<text::Message> messages;
  std::vector<std::string> tools;
  std::string prompt, completion;  // kText: prompt is not trained
  std::vector<int32_t> ids, labels;
  bool empty_answer = false;  // the last assistant turn says nothing
};

/// Reads a JSON row. Throws RowError. A conversation need not hold an assistant turn (encode_row
/// asks for one).
[[nodiscard]] ParsedRow parse_row(Format format, std::string_view row);

/// What tokenising depends on besides the row.
struct EncodeSettings {
  const text::Tokenizer* tokenizer = nullptr;       ///< null: only input-ids can be read
  std::optional<text::TemplateKind> chat_template;  ///< needed for conversations
  text::ThinkHistory think_history = text::ThinkHistory::kLast;
  bool train_on_prompt = false;
  bool parse_special = false;
  std::optional<int32_t> end_id;  ///< ends a text; none: texts have no end token
};

struct EncodedSample {
  std::vector<int32_t> ids;
  std::vector<uint8_t> trained;  ///< 1: the model learns to predict this token
  std::vector<int32_t>
      labels;  ///< only where they are not the ids themselves (input-ids); then as long as ids
  bool unclosed_thought = false, empty_answer = false;
};

/// Throws RowError (the row's fault) or UsageError (no template or tokenizer for a row that needs
/// one).
[[nodiscard]] EncodedSample encode_row(const ParsedRow& row, const EncodeSettings& settings);
/// A line of plain text.
[[nodiscard]] EncodedSample encode_text(std::string_view text, const EncodeSettings& settings);

/// GSM8K's answer: {worked solution without <<...>> annotations, final answer}; nothing without a
/// "#### N" at the end.
struct WorkedAnswer {
  std::string solution, answer;
};
[[nodiscard]] std::optional<WorkedAnswer> split_worked_answer(std::string_view answer);

}  // namespace r1::data
