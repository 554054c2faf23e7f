#include "runtime/tokenizer/chat.h"

#include <fmt/format.h>

#include <array>
#include <fstream>
#include <nlohmann/json.hpp>

#include "runtime/core/error.h"
#include "runtime/tokenizer/chat_writer.h"
#include "runtime/tokenizer/python_json.h"
#include "runtime/tokenizer/tokenizer_file.h"

namespace r1::text {
namespace {

// 128-bit FNV-1a: names a template by its exact text.
struct TextHash {
  uint64_t high;
  uint64_t low;
  bool operator==(const TextHash&) const = default;
};

TextHash hash_text(std::string_view text) {
  __extension__ using Wide = unsigned __int128;
  Wide h = static_cast<Wide>(0x6c62272e07bb0142) << 64 | 0x62b821756295c58d;
  constexpr Wide kPrime = static_cast<Wide>(1) << 88 | 0x13B;
  for (const char c : text) {
    h ^= static_cast<unsigned char>(c);
    h *= kPrime;
  }
  return {static_cast<uint64_t>(h >> 64), static_cast<uint64_t>(h)};
}

struct KnownTemplate {
  TemplateKind kind;
  std::string_view name;
  TextHash hash;  // of the text without a newline at its end, which Jinja drops
  size_t bytes;
};

constexpr std::array kKnown = {
    KnownTemplate{
        TemplateKind::kR1Distill, "r1-distill", {0x5687f00d768574c9, 0x205028f717c92b4a}, 2246},
    KnownTemplate{TemplateKind::kR1DistillFirst,
                  "r1-distill-first",
                  {0xa7c173a4c0aad9e7, 0xc9b11c398a8b4c2c},
                  2237},
    KnownTemplate{TemplateKind::kR1Tools,
                  "llama-cpp-deepseek-r1",
                  {0x3ebfc7822c54e49f, 0x84700d40e8124508},
                  3066},
    KnownTemplate{TemplateKind::kQwen25, "qwen2.5", {0xed7f78b381060efb, 0x01559bfa504c74bd}, 2506},
    KnownTemplate{
        TemplateKind::kQwen25Base, "qwen2.5-base", {0xa8fc72fb8f1a0758, 0x5a6b04ad509a0b2d}, 2426},
    KnownTemplate{
        TemplateKind::kQwen25Math, "qwen2.5-math", {0x53433316c00b1b0f, 0xc53273ee42497add}, 2512},
};

const KnownTemplate& known(TemplateKind kind) {
  for (const auto& t : kKnown) {
    if (t.kind == kind) return t;
  }
  throw InternalError("template kind {}", static_cast<int>(kind));
}

std::string read_text_file(const std::filesystem::path& path) {
  constexpr uintmax_t kMaxBytes = 64 << 20;
  std::error_code error;
  const auto size = std::filesystem::file_size(path, error);
  if (error) throw DataError("{}: cannot read: {}", path.string(), error.message());
  if (size > kMaxBytes) throw DataError("{}: {} bytes, expected a small file", path.string(), size);
  std::ifstream in(path, std::ios::binary);
  std::string text(size, '\0');
  in.read(text.data(), static_cast<std::streamsize>(size));
  if (!in)
    throw DataError("{}: cannot read: only {} of {} bytes came", path.string(), in.gcount(), size);
  return text;
}

std::string joined_names() {
  std::string names;
  for (const auto& t : kKnown) names += fmt::format("{}{}", names.empty() ? "" : ", ", t.name);
  return names;
}

// ---- renderings
// -------------------------------------------------------------------------------------------------

std::string_view text_of(const Message& m) {
  return m.content ? std::string_view(*m.content) : std::string_view();
}

std::string_view after_last_thought(std::string_view content) {
  const size_t at = content.rfind(kThinkEnd);
  return at == std::string_view::npos ? content : content.substr(at + kThinkEnd.size());
}

// Arguments as they stand in DeepSeek's calls: as given, or the object's JSON.
std::string plain_arguments(const ToolCall& call) {
  return call.arguments_is_string
             ? call.arguments
             : python_json(call.arguments, fmt::format("arguments of {}", call.name));
}

// The `tojson` of arguments: a string becomes a string literal.
std::string json_arguments(const ToolCall& call) {
  return call.arguments_is_string
             ? python_json_string(call.arguments)
             : python_json(call.arguments, fmt::format("arguments of {}", call.name));
}

// DeepSeek-R1-Distill's template, its oddities included: a single call is left open, and whether
// calls and outputs get their opening marker is remembered over the whole conversation.
void render_r1_distill(std::span<const Message> messages, const RenderOptions& options,
                       bool opens_thought, ChatWriter& out) {
  out.markup(kR1Begin);
  out.text(last_system_prompt(messages));
  bool first_call_seen = false;
  bool in_outputs = false;
  bool first_output = true;
  for (const Message& m : messages) {
    switch (m.role) {
      case Role::kSystem:
        break;
      case Role::kUser:
        in_outputs = false;
        out.markup(kR1User);
        out.text(text_of(m));
        break;
      case Role::kAssistant:
        if (!m.content) {
          in_outputs = false;
          for (const ToolCall& call : m.tool_calls) {
            const std::string arguments = plain_arguments(call);
            if (!first_call_seen) {
              out.markup(kR1Assistant);
              out.markup(kR1CallsBegin);
              write_r1_call(out, call, arguments);
              first_call_seen = true;
            } else {
              out.markup("\n");
              write_r1_call(out, call, arguments);
              out.markup(kR1CallsEnd);
              out.markup(kR1End);
            }
          }
        } else if (in_outputs) {
          out.markup(kR1OutputsEnd);
          out.answer(*m.content);
          out.markup(kR1End);
          in_outputs = false;
        } else {
          out.markup(kR1Assistant);
          out.answer(after_last_thought(*m.content));
          out.markup(kR1End);
        }
        break;
      case Role::kTool:
        in_outputs = true;
        write_r1_output(out, text_of(m), first_output);
        first_output = false;
        break;
    }
  }
  if (in_outputs) out.markup(kR1OutputsEnd);
  if (options.add_generation_prompt && !in_outputs) {
    out.markup(kR1Assistant);
    if (opens_thought) out.markup("<think>\n");
  }
}

// llama.cpp's template for R1: tools in the prompt, and every turn closed.
void render_r1_tools(std::span<const Message> messages, const RenderOptions& options,
                     ChatWriter& out) {
  out.markup(kR1Begin);
  write_r1_tools_prompt(out, options.tools);
  out.text(last_system_prompt(messages));
  bool in_outputs = false;
  bool first_output = true;
  const auto flush_outputs = [&] {
    if (!in_outputs) return;
    out.markup(kR1OutputsEnd);
    out.markup(kR1End);
    in_outputs = false;
  };
  for (const Message& m : messages) {
    if (m.role != Role::kTool) flush_outputs();
    switch (m.role) {
      case Role::kSystem:
        break;
      case Role::kUser:
        out.markup(kR1User);
        out.text(text_of(m));
        out.markup(kR1End);
        break;
      case Role::kAssistant:
        out.markup(kR1Assistant);
        if (text_of(m).empty()) {
          out.markup(kR1CallsBegin);
          bool first = true;
          for (const ToolCall& call : m.tool_calls) {
            if (!first) out.markup("\n");
            first = false;
            write_r1_call(out, call, json_arguments(call));
          }
          out.markup(kR1CallsEnd);
        } else {
          out.answer(after_last_thought(text_of(m)));
        }
        out.markup(kR1End);
        break;
      case Role::kTool:
        in_outputs = true;
        if (first_output) out.markup(kR1OutputsBegin);
        first_output = false;
        out.markup("\n");
        write_r1_output(out, text_of(m), std::nullopt);
        break;
    }
  }
  flush_outputs();
  if (options.add_generation_prompt) {
    out.markup(kR1Assistant);
    out.markup("<think>\n");
  }
}

void render_qwen(TemplateKind kind, std::span<const Message> messages, const RenderOptions& options,
                 ChatWriter& out) {
  write_qwen_system(out, kind, messages, options.tools);
  for (size_t i = 0; i < messages.size(); ++i) {
    const Message& m = messages[i];
    if (m.role == Role::kTool) {
      write_qwen_output(out, messages, i);
    } else if (m.role == Role::kAssistant && !m.tool_calls.empty()) {
      out.markup("<|im_start|>assistant");
      if (!text_of(m).empty()) {
        out.markup("\n");
        out.text(text_of(m));
      }
      for (const ToolCall& call : m.tool_calls) {
        out.markup("\n");
        write_qwen_call(out, call, json_arguments(call));
      }
      out.markup("<|im_end|>\n");
    } else if (m.role != Role::kSystem || i > 0) {
      out.markup(fmt::format("<|im_start|>{}\n", role_name(m.role)));
      out.text(text_of(m));
      out.markup("<|im_end|>\n");
    }
  }
  if (options.add_generation_prompt) out.markup("<|im_start|>assistant\n");
}

ChatWriter render(TemplateKind kind, std::span<const Message> messages,
                  const RenderOptions& options) {
  ChatWriter out(is_r1(kind));
  switch (kind) {
    case TemplateKind::kR1Distill:
    case TemplateKind::kR1DistillFirst:
      render_r1_distill(messages, options, kind == TemplateKind::kR1Distill, out);
      break;
    case TemplateKind::kR1Tools:
      render_r1_tools(messages, options, out);
      break;
    case TemplateKind::kQwen25:
    case TemplateKind::kQwen25Base:
    case TemplateKind::kQwen25Math:
      render_qwen(kind, messages, options, out);
      break;
  }
  return out;
}

}  // namespace

std::string_view role_name(Role role) {
  switch (role) {
    case Role::kSystem:
      return "system";
    case Role::kUser:
      return "user";
    case Role::kAssistant:
      return "assistant";
    case Role::kTool:
      return "tool";
  }
  throw InternalError("role {}", static_cast<int>(role));
}

std::optional<Role> role_by_name(std::string_view name) {
  for (const Role role : {Role::kSystem, Role::kUser, Role::kAssistant, Role::kTool}) {
    if (role_name(role) == name) return role;
  }
  return std::nullopt;
}

std::string_view template_name(TemplateKind kind) { return known(kind).name; }

std::vector<std::string> template_names() {
  std::vector<std::string> names;
  for (const auto& t : kKnown) names.emplace_back(t.name);
  return names;
}

TemplateKind template_by_name(std::string_view name) {
  for (const auto& t : kKnown) {
    if (t.name == name) return t.kind;
  }
  throw UsageError("--template {}: no such template; known are {}", printable(name),
                   joined_names());
}

TemplateKind template_by_text(std::string_view jinja, std::string_view source_name) {
  std::string_view text = jinja;
  if (!text.empty() && text.back() == '\n') text.remove_suffix(1);
  const TextHash hash = hash_text(text);
  for (const auto& t : kKnown) {
    if (t.bytes == text.size() && t.hash == hash) return t.kind;
  }
  throw DataError(
      "{}: unknown chat template ({} bytes, hash {:016x}{:016x}, begins `{}`). Templates are not "
      "run; known are {}. If one of "
      "them fits this model, choose it with --template NAME",
      source_name, jinja.size(), hash.high, hash.low, printable(jinja, 120), joined_names());
}

TemplateKind load_template(const std::filesystem::path& model_dir, std::string_view override_name) {
  if (!override_name.empty()) return template_by_name(override_name);
  const auto alone = model_dir / "chat_template.jinja";
  std::error_code error;
  if (std::filesystem::exists(alone, error))
    return template_by_text(read_text_file(alone), alone.string());
  const auto path = model_dir / "tokenizer_config.json";
  const std::string text = read_text_file(path);
  const auto json = nlohmann::json::parse(text, nullptr, false);
  if (!json.is_object()) throw DataError("{}: not valid JSON, or not an object", path.string());
  const auto at = json.find("chat_template");
  const std::string source = path.string() + ": chat_template";
  if (at == json.end() || at->is_null()) {
    throw DataError("{} is missing. Choose one with --template NAME; known are {}", source,
                    joined_names());
  }
  if (at->is_string()) return template_by_text(at->get_ref<const std::string&>(), source);
  if (at->is_array()) {  // several, by name
    for (const auto& item : *at) {
      if (item.is_object() && item.value("name", "") == "default" && item.contains("template") &&
          item["template"].is_string()) {
        return template_by_text(item["template"].get_ref<const std::string&>(),
                                source + " \"default\"");
      }
    }
  }
  throw DataError("{} is neither text nor a list with a template named \"default\"", source);
}

bool generation_opens_thought(TemplateKind kind) {
  return kind == TemplateKind::kR1Distill || kind == TemplateKind::kR1Tools;
}

void check_template_tokens(const Tokenizer& tokenizer, TemplateKind kind) {
  std::vector<std::string_view> needed = {"<|im_start|>", "<|im_end|>"};
  if (is_r1(kind)) needed = {kR1Begin, kR1End, kR1User, kR1Assistant, kThinkBegin, kThinkEnd};
  std::string missing;
  for (const auto token : needed) {
    const auto id = tokenizer.token_id(token);
    if (!id || !tokenizer.is_control(*id)) missing += fmt::format(" {}", token);
  }
  if (!missing.empty()) {
    throw DataError("{}: the tokenizer lacks control tokens of the chat template {}:{}",
                    tokenizer.source_name(), template_name(kind), missing);
  }
}

std::string render_text(TemplateKind kind, std::span<const Message> messages,
                        const RenderOptions& options) {
  return render(kind, messages, options).joined();
}

std::vector<int32_t> render_ids(const Tokenizer& tokenizer, TemplateKind kind,
                                std::span<const Message> messages, const RenderOptions& options) {
  const ChatWriter out = render(kind, messages, options);
  if (options.parse_special) return tokenizer.encode(out.joined(), {.parse_special = true});
  return out.encode(tokenizer).ids;
}

}  // namespace r1::text
