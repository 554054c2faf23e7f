#include "runtime/train/prompts.h"

#include <unistd.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "runtime/core/log.h"
#include "runtime/data/formats.h"

namespace r1::train {

namespace {

using Json = nlohmann::json;

/// Text that ends in <think>, white space apart.
bool opens_thought(std::string_view text) {
  const auto end = text.find_last_not_of(" \t\r\n");
  return end != std::string_view::npos && text.substr(0, end + 1).ends_with("<think>");
}

std::vector<std::string> lines_of(std::istream& in) {
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    lines.push_back(std::move(line));
  }
  return lines;
}

std::vector<std::string> lines_of_file(const std::string& name, std::istream& standard_input) {
  if (name == "-") return lines_of(standard_input);
  std::ifstream in(name, std::ios::binary);
  if (!in.is_open()) throw UsageError("--chat {}: cannot be read ({})", name, std::generic_category().message(errno));
  in.peek();
  if (in.bad() || (in.fail() && !in.eof())) throw UsageError("--chat {}: cannot be read (is it a directory?)", name);
  return lines_of(in);
}

}  // namespace

PromptReader::PromptReader(const text::Tokenizer* tokenizer, std::string model_dir, std::string template_name,
                           bool parse_special)
    : tokenizer_(tokenizer),
      model_dir_(std::move(model_dir)),
      template_name_(std::move(template_name)),
      parse_special_(parse_special) {}

const text::Tokenizer& PromptReader::tokenizer(const char* what) const {
  if (tokenizer_ == nullptr)
    throw UsageError("{}: there is no tokenizer.json in {}; give token ids with --prompt-ids", what, model_dir_);
  return *tokenizer_;
}

text::TemplateKind PromptReader::kind() {
  if (!kind_) {
    kind_ = text::load_template(model_dir_, template_name_);
    text::check_template_tokens(tokenizer("a conversation"), *kind_);
  }
  return *kind_;
}

text::TemplateKind PromptReader::kind_or_default() {
  if (kind_) return *kind_;
  try {
    return text::load_template(model_dir_, template_name_);
  } catch (const DataError&) {
    return text::TemplateKind::kR1Distill;  // a base model without a template
  }
}

Prompt PromptReader::from_text(std::string_view text) const {
  Prompt p{.ids = tokenizer("a prompt of text").encode(text, {.add_special = true, .parse_special = parse_special_}),
           .thinking_open = opens_thought(text)};
  if (text.empty() || p.ids.empty()) throw UsageError("the prompt is empty");
  return p;
}

Prompt PromptReader::from_messages(std::span<const text::Message> messages, const std::vector<std::string>& tools) {
  const text::TemplateKind k = kind();
  return {.ids = text::render_ids(tokenizer("a conversation"), k, messages,
                                  {.add_generation_prompt = true, .parse_special = parse_special_, .tools = tools}),
          .thinking_open = text::generation_opens_thought(k)};
}

Prompt PromptReader::from_row(const std::string& row, const std::string& place) {
  const Json j = Json::parse(row, nullptr, false);
  if (!j.is_object()) throw DataError("{}: not a JSON object; expected messages, prompt or prompt_ids in it", place);
  try {
    if (j.contains("messages")) {
      const data::ParsedRow parsed = data::parse_row(data::Format::kMessages, row);
      return from_messages(parsed.messages, parsed.tools);
    }
    if (const auto it = j.find("prompt"); it != j.end()) {
      if (!it->is_string()) throw DataError("{}: `prompt` is not a string", place);
      return from_text(it->get_ref<const std::string&>());
    }
    if (const auto it = j.find("prompt_ids"); it != j.end()) {
      Prompt p;
      for (const Json& id : it->is_array() ? *it : Json::array()) {
        if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() > INT32_MAX)
          throw DataError("{}: `prompt_ids` holds {}, which is no token id", place,
                          id.dump(-1, ' ', false, Json::error_handler_t::replace).substr(0, 40));
        p.ids.push_back(id.get<int32_t>());
      }
      if (p.ids.empty()) throw DataError("{}: `prompt_ids` is not a list of token ids with at least one", place);
      return p;
    }
  } catch (const data::RowError& e) {
    throw DataError("{}: {}", place, e.what());
  } catch (const UsageError& e) {
    throw DataError("{}: {}", place, e.what());
  }
  throw DataError("{}: none of messages, prompt, prompt_ids in it", place);
}

std::vector<Prompt> read_prompts(const JobConfig& cfg, PromptReader& reader, std::istream& standard_input) {
  std::vector<Prompt> out;
  if (!cfg.prompt_ids.empty()) {
    Prompt p;
    for (const int64_t id : cfg.prompt_ids) p.ids.push_back(static_cast<int32_t>(std::min<int64_t>(id, INT32_MAX)));
    out.push_back(std::move(p));
  } else if (cfg.is_set("prompt")) {
    out.push_back(reader.from_text(cfg.prompt));
  } else {
    const bool rows = !cfg.chat.empty();
    const std::string name = rows && cfg.chat != "-" ? cfg.chat : "standard input";
    if (name == "standard input" && isatty(STDIN_FILENO) == 1)
      log::info("reading {} from standard input, one a line, until Ctrl-D", rows ? "rows" : "prompts");
    const std::vector<std::string> lines = rows ? lines_of_file(cfg.chat, standard_input) : lines_of(standard_input);
    for (size_t i = 0; i < lines.size(); ++i) {
      if (lines[i].find_first_not_of(" \t") == std::string::npos) continue;
      out.push_back(rows ? reader.from_row(lines[i], fmt::format("{}:{}", name, i + 1)) : reader.from_text(lines[i]));
    }
    if (out.empty())
      throw UsageError(
          "{} holds no prompt; give one with --prompt, --prompt-ids or --chat, or one a line on standard input", name);
  }
  return out;
}

std::vector<Prompt> broadcast_prompts(comm::Communicator& world, std::vector<Prompt> prompts) {
  Json all = Json::array();
  if (world.rank() == 0)
    for (const Prompt& p : prompts) all.push_back({p.thinking_open, p.ids});
  const std::string text = broadcast_text(world, world.rank() == 0 ? all.dump() : std::string());
  if (world.rank() == 0) return prompts;
  prompts.clear();
  for (const Json& j : Json::parse(text))
    prompts.push_back({.ids = j[1].get<std::vector<int32_t>>(), .thinking_open = j[0].get<bool>()});
  return prompts;
}

}  // namespace r1::train
