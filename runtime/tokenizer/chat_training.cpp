// Conversations as training samples. Differs from the templates where those serve generation:
// thoughts are kept, and every call of tools is closed, so that the model learns to end its turn.
#include <fmt/format.h>

#include "runtime/core/error.h"
#include "runtime/tokenizer/chat.h"
#include "runtime/tokenizer/chat_writer.h"
#include "runtime/tokenizer/python_json.h"

namespace r1::text {
namespace {

bool is_space(char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r'; }

std::string_view strip_front(std::string_view text) {
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  return text;
}

std::string_view strip(std::string_view text) {
  text = strip_front(text);
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return text;
}

// An assistant turn, taken apart.
struct Answer {
  std::string reasoning;
  bool has_thought = false;
  bool closed = true;
  std::string content;
};

class TrainingRenderer {
 public:
  TrainingRenderer(TemplateKind kind, std::span<const Message> messages,
                   const TrainingRenderOptions& options)
      : kind_(kind), messages_(messages), options_(options), out_(is_r1(kind)) {
    for (size_t i = 0; i < messages.size(); ++i) {
      if (messages[i].role == Role::kAssistant) last_answer_ = i;
    }
  }

  RenderedSample render(const Tokenizer& tokenizer) {
    if (last_answer_ == SIZE_MAX && !options_.train_on_prompt) {
      throw DataError(
          "a conversation without an assistant turn has nothing to train on (turns: {})",
          messages_.size());
    }
    begin(nullptr);
    if (is_r1(kind_)) {
      render_r1();
    } else {
      render_qwen();
    }
    RenderedSample sample = out_.encode(tokenizer);
    sample.unclosed_thoughts = unclosed_thoughts_;
    // Nothing stands before the first token to predict it from.
    if (!sample.trained.empty()) sample.trained[0] = 0;
    return sample;
  }

 private:
  // Starts a part that is no target (unless the message or the options want it).
  void begin(const Message* message) {
    const bool wanted =
        message != nullptr && message->role != Role::kAssistant && message->trained.value_or(false);
    const bool refused = message != nullptr && !message->trained.value_or(true);
    out_.set_trained((options_.train_on_prompt && !refused) || wanted);
  }
  [[nodiscard]] bool keeps_thought(size_t at) const {
    return options_.think_history == ThinkHistory::kAll || at == last_answer_;
  }
  // Starts the target of an assistant turn.
  void begin_target(size_t at) {
    // Generation starts from the ids of what stands before, so no token may reach over this seam.
    if (keeps_thought(at)) out_.cut();
    out_.set_trained(messages_[at].trained.value_or(keeps_thought(at) || options_.train_on_prompt));
  }
  // `split`: thoughts inside the content count as thoughts.
  [[nodiscard]] static Answer take_apart(const Message& m, bool split) {
    Answer answer;
    answer.content = m.content.value_or("");
    if (m.reasoning) {
      answer.reasoning = strip(*m.reasoning);
      answer.has_thought = true;
    } else if (split) {
      SplitThought parts = split_thought(answer.content);
      answer.has_thought = parts.reasoning.has_value();
      answer.reasoning = std::move(parts.reasoning).value_or("");
      answer.closed = parts.closed;
      answer.content = std::move(parts.content);
    }
    return answer;
  }
  // After `<think>\n`: the thought, its end, the answer's beginning.
  void write_thought_after_marker(const Answer& answer) {
    out_.text(answer.reasoning);
    if (!answer.closed) {
      ++unclosed_thoughts_;
      return;
    }
    out_.markup("\n</think>\n\n");
  }

  void render_r1() {
    out_.markup(kR1Begin);
    if (kind_ == TemplateKind::kR1Tools) write_r1_tools_prompt(out_, options_.tools);
    out_.text(last_system_prompt(messages_));
    bool in_outputs = false;
    bool first_output = true;
    const bool closes_turns = kind_ == TemplateKind::kR1Tools;
    for (size_t i = 0; i < messages_.size(); ++i) {
      const Message& m = messages_[i];
      switch (m.role) {
        case Role::kSystem:
          break;
        case Role::kUser:
          begin(&m);
          if (in_outputs && closes_turns) close_outputs();
          in_outputs = false;
          out_.markup(kR1User);
          out_.text(m.content.value_or(""));
          if (closes_turns) out_.markup(kR1End);
          break;
        case Role::kTool:
          begin(&m);
          if (closes_turns) {
            if (first_output) out_.markup(kR1OutputsBegin);
            out_.markup("\n");
            write_r1_output(out_, m.content.value_or(""), std::nullopt);
          } else {
            write_r1_output(out_, m.content.value_or(""), first_output);
          }
          first_output = false;
          in_outputs = true;
          break;
        case Role::kAssistant:
          begin(m.trained.value_or(true) ? nullptr : &m);
          if (in_outputs && closes_turns) {
            close_outputs();
            in_outputs = false;
          }
          render_r1_answer(i, in_outputs);
          in_outputs = false;
          break;
      }
    }
  }
  void close_outputs() {
    out_.markup(kR1OutputsEnd);
    out_.markup(kR1End);
  }
  // `continues`: the answer follows tool outputs without a marker of its own, as DeepSeek's
  // template has it.
  void render_r1_answer(size_t at, bool continues) {
    const Message& m = messages_[at];
    const Answer answer = take_apart(m, true);
    out_.markup(continues ? kR1OutputsEnd : kR1Assistant);
    const bool thinks = keeps_thought(at);
    const bool opened = thinks && !continues && generation_opens_thought(kind_);
    if (opened) out_.markup("<think>\n");
    begin_target(at);
    if (opened) {
      write_thought_after_marker(answer);
    } else if (thinks && answer.has_thought) {
      out_.markup("<think>\n");
      write_thought_after_marker(answer);
    }
    // Markers left in the answer itself are its text.
    out_.text(answer.content);
    if (!m.tool_calls.empty()) {
      out_.markup(kR1CallsBegin);
      for (size_t k = 0; k < m.tool_calls.size(); ++k) {
        const ToolCall& call = m.tool_calls[k];
        if (k > 0) out_.markup("\n");
        write_r1_call(out_, call, r1_arguments(call));
      }
      out_.markup(kR1CallsEnd);
    }
    // An answer that was cut off inside its thought must not teach the model to stop there.
    if (thinks && !answer.closed) out_.set_trained(false);
    out_.markup(kR1End);
  }
  [[nodiscard]] std::string r1_arguments(const ToolCall& call) const {
    if (!call.arguments_is_string)
      return python_json(call.arguments, fmt::format("arguments of {}", call.name));
    return kind_ == TemplateKind::kR1Tools ? python_json_string(call.arguments) : call.arguments;
  }

  void render_qwen() {
    write_qwen_system(out_, kind_, messages_, options_.tools);
    for (size_t i = 0; i < messages_.size(); ++i) {
      const Message& m = messages_[i];
      if (m.role == Role::kAssistant) {
        begin(m.trained.value_or(true) ? nullptr : &m);
        render_qwen_answer(i);
        continue;
      }
      if (m.role == Role::kSystem && i == 0) continue;
      begin(&m);
      if (m.role == Role::kTool) {
        write_qwen_output(out_, messages_, i);
      } else {
        out_.markup(fmt::format("<|im_start|>{}\n", role_name(m.role)));
        out_.text(m.content.value_or(""));
        out_.markup("<|im_end|>\n");
      }
    }
  }
  void render_qwen_answer(size_t at) {
    const Message& m = messages_[at];
    // Qwen2.5 has no form for thoughts: those inside the content stay as they are written.
    const bool thinks = keeps_thought(at);
    const Answer answer = take_apart(m, !thinks);
    out_.markup("<|im_start|>assistant\n");
    begin_target(at);
    if (thinks && answer.has_thought) {
      out_.markup("<think>\n");
      write_thought_after_marker(answer);
    }
    out_.text(answer.content);
    bool separate = !answer.content.empty();
    for (const ToolCall& call : m.tool_calls) {
      if (separate) out_.markup("\n");
      separate = true;
      write_qwen_call(out_, call,
                      call.arguments_is_string
                          ? python_json_string(call.arguments)
                          : python_json(call.arguments, fmt::format("arguments of {}", call.name)));
    }
    out_.markup("<|im_end|>");
    begin(m.trained.value_or(true) ? nullptr : &m);
    out_.markup("\n");
  }

  TemplateKind kind_;
  std::span<const Message> messages_;
  const TrainingRenderOptions& options_;
  ChatWriter out_;
  size_t last_answer_ = SIZE_MAX;
  int32_t unclosed_thoughts_ = 0;
};

}  // namespace

SplitThought split_thought(std::string_view content) {
  SplitThought parts;
  std::string_view rest = strip_front(content);
  const bool opened = rest.starts_with(kThinkBegin);
  if (opened) rest.remove_prefix(kThinkBegin.size());
  const size_t end = rest.find(kThinkEnd);
  if (end == std::string_view::npos) {
    if (!opened) {
      parts.content = content;
      return parts;
    }
    parts.reasoning = std::string(strip(rest));
    parts.closed = false;
    return parts;
  }
  parts.reasoning = std::string(strip(rest.substr(0, end)));
  parts.content = strip_front(rest.substr(end + kThinkEnd.size()));
  return parts;
}

RenderedSample render_training(const Tokenizer& tokenizer, TemplateKind kind,
                               std::span<const Message> messages,
                               const TrainingRenderOptions& options) {
  check_template_tokens(tokenizer, kind);
  return TrainingRenderer(kind, messages, options).render(tokenizer);
}

}  // namespace r1::text
