// Conversations of arbitrary content through every template's renderings (for generation and for
// training), and answers through the parser.
//
// Two bytes say which template, what is checked, and options; the rest is an answer, a template, or
// messages, separated by byte 1: a byte of role and flags, then fields separated by byte 2
// (content, reasoning, name and arguments of calls).
#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>

#include "runtime/core/error.h"
#include "runtime/tokenizer/byte_level.h"
#include "runtime/tokenizer/chat.h"
#include "runtime/tokenizer/tokenizer.h"
#include "tests/fuzz/fuzz.h"

namespace {

using namespace r1;
using text::Message;
using text::Role;
using text::TemplateKind;

const text::Tokenizer& tokenizer() {
  static const text::Tokenizer instance = [] {
    nlohmann::json file = nlohmann::json::parse(text::byte_level_tokenizer_json());
    for (const char* name :
         {"<|im_start|>", "<|im_end|>", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>",
          "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>",
          "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>", "<｜tool▁output▁begin｜>",
          "<｜tool▁output▁end｜>", "<tool_call>", "</tool_call>"})
      file["added_tokens"].push_back({{"id", 256 + file["added_tokens"].size()},
                                      {"content", name},
                                      {"special", false},
                                      {"normalized", false}});
    return text::Tokenizer::from_json(file.dump(), "bytes");
  }();
  return instance;
}

std::vector<std::string_view> split(std::string_view text, char at) {
  std::vector<std::string_view> parts;
  for (;;) {
    const size_t end = text.find(at);
    parts.push_back(text.substr(0, end));
    if (end == std::string_view::npos) return parts;
    text.remove_prefix(end + 1);
  }
}

std::vector<Message> conversation(std::string_view bytes) {
  std::vector<Message> out;
  for (const std::string_view part : split(bytes, '\x01')) {
    if (part.empty() || out.size() >= 16) continue;
    const auto flags = static_cast<uint8_t>(part[0]);
    const auto fields = split(part.substr(1), '\x02');
    Message m;
    m.role = static_cast<Role>(flags & 3);
    const bool assistant = m.role == Role::kAssistant;
    if (!assistant || (flags & 4) == 0) m.content = std::string(fields[0]);
    if (assistant && (flags & 8) != 0 && fields.size() > 1) m.reasoning = std::string(fields[1]);
    for (size_t i = 2; assistant && i + 1 < fields.size() && i < 8; i += 2)
      m.tool_calls.push_back({.name = std::string(fields[i]),
                              .arguments = std::string(fields[i + 1]),
                              .arguments_is_string = (flags & 16) != 0});
    if ((flags & 32) != 0) m.trained = (flags & 64) != 0;
    out.push_back(std::move(m));
  }
  return out;
}

// Control tokens, those of thoughts apart: answers may hold them.
size_t controls(const std::vector<int32_t>& ids) {
  const text::Tokenizer& t = tokenizer();
  static const int32_t begin = *t.token_id("<think>"), end = *t.token_id("</think>");
  return static_cast<size_t>(std::count_if(ids.begin(), ids.end(), [&](int32_t id) {
    return t.is_control(id) && id != begin && id != end;
  }));
}

// The same conversation without any markers in what people wrote.
std::vector<Message> harmless(std::vector<Message> messages) {
  const auto clean = [](std::string& s) { std::replace(s.begin(), s.end(), '<', '('); };
  for (Message& m : messages) {
    if (m.content) clean(*m.content);
    if (m.reasoning) clean(*m.reasoning);
    for (text::ToolCall& call : m.tool_calls) clean(call.name), clean(call.arguments);
  }
  return messages;
}

void check_renderings(TemplateKind kind, const std::vector<Message>& messages, uint8_t options) {
  const text::Tokenizer& t = tokenizer();
  text::RenderOptions render{.add_generation_prompt = (options & 1) != 0};
  if ((options & 2) != 0)
    render.tools = {
        R"({"type": "function", "function": {"name": "f", "parameters": {"a": 1.5e3}}})"};
  const std::string text = text::render_text(kind, messages, render);
  // One property an input: rendering is what costs.
  switch (options >> 2 & 3) {
    case 0:
      render.parse_special = true;
      FUZZ_REQUIRE(text::render_ids(t, kind, messages, render) ==
                   t.encode(text, {.parse_special = true}));
      break;
    case 1:
      FUZZ_REQUIRE(controls(text::render_ids(t, kind, messages, render)) ==
                   controls(text::render_ids(t, kind, harmless(messages), render)));
      break;
    default:
      FUZZ_REQUIRE(t.decode(text::render_ids(t, kind, messages, render)) == text);
  }
}

void check_training(TemplateKind kind, const std::vector<Message>& messages, uint8_t options) {
  const text::Tokenizer& t = tokenizer();
  text::TrainingRenderOptions training{
      .think_history = (options & 4) != 0 ? text::ThinkHistory::kAll : text::ThinkHistory::kLast,
      .train_on_prompt = (options & 8) != 0,
      .tools = {}};
  const auto sample = text::render_training(t, kind, messages, training);
  FUZZ_REQUIRE(sample.ids.size() == sample.trained.size() && !sample.ids.empty());
  FUZZ_REQUIRE(sample.trained[0] == 0);
  if ((options & 16) == 0) return;
  FUZZ_REQUIRE(controls(sample.ids) ==
               controls(text::render_training(t, kind, harmless(messages), training).ids));
}

void add(text::ParsedAnswer& all, text::ParsedAnswer piece) {
  all.reasoning += piece.reasoning;
  all.content += piece.content;
  std::move(piece.tool_calls.begin(), piece.tool_calls.end(), std::back_inserter(all.tool_calls));
}

void check_answer(TemplateKind kind, std::string_view answer, uint8_t options) {
  const bool open = (options & 16) != 0, partial = (options & 32) != 0;
  const text::ParsedAnswer whole = text::parse_answer(kind, answer, open, partial);
  text::AnswerParser parser(kind, open);
  text::ParsedAnswer pieces;
  const size_t step = 1 + (options >> 6);
  for (size_t at = 0; at < answer.size(); at += step)
    add(pieces, parser.push(answer.substr(at, step)));
  add(pieces, parser.finish(partial));
  FUZZ_REQUIRE(whole.reasoning == pieces.reasoning && whole.content == pieces.content);
  FUZZ_REQUIRE(whole.tool_calls.size() == pieces.tool_calls.size());
  for (size_t i = 0; i < whole.tool_calls.size(); ++i)
    FUZZ_REQUIRE(whole.tool_calls[i].name == pieces.tool_calls[i].name &&
                 whole.tool_calls[i].arguments == pieces.tool_calls[i].arguments);
  const auto parts = text::split_thought(answer);
  FUZZ_REQUIRE(parts.reasoning || parts.content == answer);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  if (size < 3) return 0;
  static const size_t kinds = text::template_names().size();
  const auto kind = static_cast<TemplateKind>(bytes[0] % kinds);
  const std::string_view rest(reinterpret_cast<const char*>(bytes) + 2, size - 2);
  try {
    switch (bytes[0] / kinds % 4) {
      case 0:
        check_answer(kind, rest, bytes[1]);
        break;
      case 1:
        check_renderings(kind, conversation(rest), bytes[1]);
        break;
      case 2:
        check_training(kind, conversation(rest), bytes[1]);
        break;
      default:
        (void)text::template_by_text(rest, "fuzz");
        FUZZ_REQUIRE(rest.size() > 400);  // no known template is shorter
    }
  } catch (const DataError&) {  // arguments that are no JSON, no messages, no such template
  }
  return 0;
}

std::vector<std::string> r1::fuzz::seeds() {
  std::vector<std::string> out;
  for (char kind = 0; kind < 18; ++kind) {
    for (const char options : {'\x03', '\x05', '\x2d', '\x58'}) {
      const std::string head = {kind, options};
      out.push_back(head +
                    "\x01@be brief\x01"
                    "Ahi <｜User｜>\x01"
                    "B<think>a</think>b");
      out.push_back(head +
                    "\x01"
                    "Aq\x01"
                    "F\x02\x02"
                    "f\x02{\"a\": [1, \"x\"]}\x01"
                    "C[1]\x01"
                    "Bend");
      out.push_back(head +
                    "\x01"
                    "Aq\x01"
                    "Z<think>u\x02why\x02g\x02{}\x02h\x02{\"b\": null}\x01"
                    "Ar");
      out.push_back(head +
                    "<think>x</"
                    "think>y<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```"
                    "json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>z");
      out.push_back(head +
                    "<think>x</think>y <tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": "
                    "1}}\n</tool_call> z");
    }
  }
  return out;
}
