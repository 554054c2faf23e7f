// The prompts of a job: from the command line, a file or standard input to token ids, on every rank.
#pragma once

#include <cstdint>
#include <istream>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/tokenizer/chat.h"
#include "runtime/tokenizer/tokenizer.h"
#include "runtime/train/context.h"

namespace r1::train {

struct Prompt {
  std::vector<int32_t> ids;
  bool thinking_open = false;  ///< ends inside an open thought
};

/// What prompts are made with.
class PromptReader {
 public:
  /// `tokenizer` null: only ids can be read. `model_dir` and `template_name`: where the chat template comes from, when
  /// needed.
  PromptReader(const text::Tokenizer* tokenizer, std::string model_dir, std::string template_name, bool parse_special);

  /// Text, with the tokens that the tokenizer's post-processor adds. Throws UsageError when it has no tokens.
  [[nodiscard]] Prompt from_text(std::string_view text) const;
  /// A conversation, up to where the assistant begins. Throws DataError, UsageError.
  [[nodiscard]] Prompt from_messages(std::span<const text::Message> messages, const std::vector<std::string>& tools);
  /// A JSON row with `messages`, `prompt` or `prompt_ids`. Throws DataError naming `place`.
  [[nodiscard]] Prompt from_row(const std::string& row, const std::string& place);
  /// The template; loaded at its first use. Throws DataError.
  [[nodiscard]] text::TemplateKind kind();
  /// The template, or DeepSeek-R1's when the model has none: how answers are split.
  [[nodiscard]] text::TemplateKind kind_or_default();

 private:
  [[nodiscard]] const text::Tokenizer& tokenizer(const char* what) const;

  const text::Tokenizer* tokenizer_;
  std::string model_dir_, template_name_;
  bool parse_special_;
  std::optional<text::TemplateKind> kind_;
};

/// The prompts that the options name; standard input when they name none: one prompt a line. Throws UsageError,
/// DataError.
[[nodiscard]] std::vector<Prompt> read_prompts(const JobConfig& cfg, PromptReader& reader,
                                               std::istream& standard_input);

/// Prompts of rank 0 on every rank. Collective.
[[nodiscard]] std::vector<Prompt> broadcast_prompts(comm::Communicator& world, std::vector<Prompt> prompts);

}  // namespace r1::train
