// Chat templates in C++: conversations to text, to ids, and to training samples; answers back to
// their parts.
//
// A model directory's template (Jinja text) is never run. It is recognised by exact match among
// known templates, each of which has its own rendering here that equals the template's output
// character for character.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/tokenizer/tokenizer.h"

namespace r1::text {

/// A call of a function by the assistant.
struct ToolCall {
  std::string name = {};
  std::string arguments = {};  ///< JSON text of an object, or any text when arguments_is_string
  bool arguments_is_string =
      false;  ///< the source gave the arguments as a JSON string (as the OpenAI format does)
  std::string type = "function";
  std::string id = {};
};

enum class Role { kSystem, kUser, kAssistant, kTool };

/// "system", "user", "assistant", "tool".
[[nodiscard]] std::string_view role_name(Role role);
/// The role of that name, or nothing.
[[nodiscard]] std::optional<Role> role_by_name(std::string_view name);

/// One turn of a conversation.
struct Message {
  Role role = Role::kUser;
  std::optional<std::string> content = {};  ///< nothing is JSON null, which templates tell from ""
  std::optional<std::string> reasoning =
      {};  ///< thoughts given apart from the content (assistant only)
  std::vector<ToolCall> tool_calls = {};  ///< assistant only
  std::optional<bool> trained = {};       ///< render_training: this turn's own word on its loss
};

/// The known templates.
enum class TemplateKind {
  kR1Distill,       ///< DeepSeek-R1-Distill-*: generation prompt ends in `<think>\n`
  kR1DistillFirst,  ///< the first published form: generation prompt ends in `<｜Assistant｜>`
  kR1Tools,         ///< llama.cpp's deepseek-r1 template: tools in the prompt
  kQwen25,          ///< Qwen2.5-*-Instruct
  kQwen25Base,      ///< the same with the default system prompt "You are a helpful assistant."
  kQwen25Math,      ///< the same with Qwen2.5-Math's default system prompt
};

/// Name for `--template` and messages, e.g. "r1-distill".
[[nodiscard]] std::string_view template_name(TemplateKind kind);
/// All names, in the order of the enum.
[[nodiscard]] std::vector<std::string> template_names();
/// The template of that name. UsageError listing the names when there is none.
[[nodiscard]] TemplateKind template_by_name(std::string_view name);
/// Recognises the Jinja text of a template. DataError (with `source_name` and the override) when it
/// is not known.
[[nodiscard]] TemplateKind template_by_text(std::string_view jinja, std::string_view source_name);
/// The template of a model directory: `override_name` when not empty, else chat_template.jinja,
/// else the "chat_template" of tokenizer_config.json. DataError when missing or unknown.
[[nodiscard]] TemplateKind load_template(const std::filesystem::path& model_dir,
                                         std::string_view override_name = {});

/// True when the generation prompt ends inside an open thought (`<think>\n`).
[[nodiscard]] bool generation_opens_thought(TemplateKind kind);
/// DataError naming the template's control tokens that the tokenizer lacks, if any.
void check_template_tokens(const Tokenizer& tokenizer, TemplateKind kind);

struct RenderOptions {
  bool add_generation_prompt = false;
  bool parse_special =
      false;  ///< render_ids: control tokens inside content too, as Hugging Face does
  std::vector<std::string> tools =
      {};  ///< each the JSON text of one tool, as in OpenAI's "tools" list
};

/// The template's output. DataError when a tool or an arguments object is not valid JSON.
[[nodiscard]] std::string render_text(TemplateKind kind, std::span<const Message> messages,
                                      const RenderOptions& options = {});
/// The ids of the template's output. Content is encoded as plain text: it never yields control
/// tokens, except that
/// `<think>` and `</think>` in an assistant's content stand for its thoughts. With parse_special
/// the ids are those that Hugging Face gives for render_text().
[[nodiscard]] std::vector<int32_t> render_ids(const Tokenizer& tokenizer, TemplateKind kind,
                                              std::span<const Message> messages,
                                              const RenderOptions& options = {});

/// Which assistant turns keep their thoughts in a training sample.
enum class ThinkHistory {
  kAll,   ///< every turn, and every turn is a target
  kLast,  ///< the last one only: earlier turns look as the model meets them in use, and are
          ///< context, not targets
};

struct TrainingRenderOptions {
  ThinkHistory think_history = ThinkHistory::kAll;
  bool train_on_prompt = false;         ///< loss on every token but the first
  std::vector<std::string> tools = {};  ///< as RenderOptions::tools
};

/// Token ids of one sample and, for each, whether the model is trained to predict it.
struct RenderedSample {
  std::vector<int32_t> ids;
  std::vector<uint8_t> trained;   ///< same length as ids; 1: a target
  int32_t unclosed_thoughts = 0;  ///< assistant turns whose `<think>` never closes (answers cut
                                  ///< off): the end token after such a turn is not a target
};

/// Renders a conversation as a training sample. A thought (Message::reasoning, or
/// `<think>...</think>` at the start of the content) is kept as
/// `<think>\n{thought}\n</think>\n\n{answer}`. The prompt is encoded apart from each target, so the
/// ids before a target are exactly those that generation starts from; for R1 they end in
/// `<think>\n`, and an answer without thoughts follows an empty thought. A target's end token is
/// trained. DataError: no assistant turn, tokens the tokenizer lacks, invalid JSON in tools or
/// arguments.
[[nodiscard]] RenderedSample render_training(const Tokenizer& tokenizer, TemplateKind kind,
                                             std::span<const Message> messages,
                                             const TrainingRenderOptions& options = {});

/// Splits an assistant's content into thought and answer, without the white space around both where
/// they meet. A thought is what stands before the first `</think>`, with or without `<think>` in
/// front (a generation prompt may have opened it), or all of a content that starts with `<think>`
/// and never closes it.
struct SplitThought {
  std::optional<std::string> reasoning = {};  ///< nothing when there is no thought
  std::string content;
  bool closed = true;  ///< false: `<think>` without `</think>`
};
[[nodiscard]] SplitThought split_thought(std::string_view content);

/// What an answer consists of.
struct ParsedAnswer {
  std::string reasoning;
  std::string content;
  std::vector<ToolCall> tool_calls = {};
};

/// Splits an answer into reasoning, content and tool calls while it streams. Markers may arrive in
/// pieces. The sum of all deltas is the same however the answer is cut into pieces.
class AnswerParser {
 public:
  /// thinking_open: the prompt already ended in `<think>\n`.
  AnswerParser(TemplateKind kind, bool thinking_open);
  /// What became certain with this piece; tool calls appear when complete.
  [[nodiscard]] ParsedAnswer push(std::string_view piece);
  /// What was held back. A tool call that was cut off is given as content, unless `partial` (more
  /// may follow), when it is dropped.
  [[nodiscard]] ParsedAnswer finish(bool partial = false);

 private:
  enum class State { kStart, kReasoning, kContent, kToolCalls };
  enum class Step { kOn, kWait };  // go on at once, or wait for the next piece
  void run(bool at_end, ParsedAnswer& out);
  Step start(bool at_end);
  Step text_part(bool at_end, ParsedAnswer& out);
  Step qwen_call(ParsedAnswer& out);
  Step r1_call(bool at_end, ParsedAnswer& out);
  Step enter_content();
  void drop(size_t n);
  size_t find_marker(std::string_view where, std::string_view marker);
  bool qwen_;  // tool calls in Qwen's form, else in DeepSeek's
  State state_;
  bool trim_next_ = true;  // white space at the start of the current part is dropped
  std::string pending_;    // not yet certain
  size_t searched_ = 0;    // bytes of pending_ in which the awaited marker does not begin
};

/// Parses a whole answer.
[[nodiscard]] ParsedAnswer parse_answer(TemplateKind kind, std::string_view answer,
                                        bool thinking_open, bool partial = false);

}  // namespace r1::text
