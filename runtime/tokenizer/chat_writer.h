// What the renderings of chat.cpp and chat_training.cpp share: marked-up text under construction,
// and the parts of the known formats.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/tokenizer/chat.h"

namespace r1::text {

// DeepSeek-R1's markers.
inline constexpr std::string_view kR1Begin = "<｜begin▁of▁sentence｜>";
inline constexpr std::string_view kR1End = "<｜end▁of▁sentence｜>";
inline constexpr std::string_view kR1User = "<｜User｜>";
inline constexpr std::string_view kR1Assistant = "<｜Assistant｜>";
inline constexpr std::string_view kR1CallsBegin = "<｜tool▁calls▁begin｜>";
inline constexpr std::string_view kR1CallsEnd = "<｜tool▁calls▁end｜>";
inline constexpr std::string_view kR1CallBegin = "<｜tool▁call▁begin｜>";
inline constexpr std::string_view kR1CallEnd = "<｜tool▁call▁end｜>";
inline constexpr std::string_view kR1Separator = "<｜tool▁sep｜>";
inline constexpr std::string_view kR1OutputsBegin = "<｜tool▁outputs▁begin｜>";
inline constexpr std::string_view kR1OutputsEnd = "<｜tool▁outputs▁end｜>";
inline constexpr std::string_view kR1OutputBegin = "<｜tool▁output▁begin｜>";
inline constexpr std::string_view kR1OutputEnd = "<｜tool▁output▁end｜>";
inline constexpr std::string_view kThinkBegin = "<think>";
inline constexpr std::string_view kThinkEnd = "</think>";

[[nodiscard]] bool is_r1(TemplateKind kind);

/// Collects text in order, with what is markup and what is a target told apart.
class ChatWriter {
 public:
  /// think_markers: `<think>` and `</think>` in answers are markup.
  explicit ChatWriter(bool think_markers) : think_markers_(think_markers) {}

  /// The format's own text: control tokens in it are meant.
  void markup(std::string_view text) { add(text, true); }
  /// Somebody's text.
  void text(std::string_view text) { add(text, false); }
  /// An assistant's text, where the markers of thoughts count.
  void answer(std::string_view text);
  /// What follows is (or is not) a target. Parts that differ in this are encoded apart.
  void set_trained(bool trained);
  /// What follows is encoded apart from what stands before, in any case.
  void cut();

  [[nodiscard]] std::string joined() const;
  [[nodiscard]] RenderedSample encode(const Tokenizer& tokenizer) const;

 private:
  struct Piece {
    std::string text;
    bool markup;
  };
  struct Block {
    std::vector<Piece> pieces;
    bool trained = false;
  };
  void add(std::string_view text, bool markup);
  std::vector<Block> blocks_{1};
  bool think_markers_;
};

/// The last system message's content: the one that DeepSeek's templates put in front. "" when there
/// is none.
[[nodiscard]] std::string_view last_system_prompt(std::span<const Message> messages);
/// `<｜tool▁call▁begin｜>type<｜tool▁sep｜>name\n```json\narguments\n```<｜tool▁call▁end｜>`.
void write_r1_call(ChatWriter& out, const ToolCall& call, std::string_view arguments);
/// A tool's output; `first` true: behind the outputs' opening marker, false: behind a newline,
/// nothing: alone.
void write_r1_output(ChatWriter& out, std::string_view content, std::optional<bool> first);
/// The tools part of llama.cpp's template; nothing when there are no tools.
void write_r1_tools_prompt(ChatWriter& out, std::span<const std::string> tools);

/// Qwen's system turn, with its default and its tools. DataError when there are no messages.
void write_qwen_system(ChatWriter& out, TemplateKind kind, std::span<const Message> messages,
                       std::span<const std::string> tools);
/// `<tool_call>\n{...}\n</tool_call>`.
void write_qwen_call(ChatWriter& out, const ToolCall& call, std::string_view arguments);
/// messages[at], a tool's output, in the user turn that neighbouring outputs share.
void write_qwen_output(ChatWriter& out, std::span<const Message> messages, size_t at);

}  // namespace r1::text
