#include "runtime/data/tokenizer_settings.h"

#include <fstream>
#include <nlohmann/json.hpp>
#include <system_error>

#include "runtime/core/error.h"
#include "runtime/tokenizer/tokenizer.h"

namespace r1::data {
namespace fs = std::filesystem;

namespace {

[[nodiscard]] std::optional<int32_t> special_token(const nlohmann::json& config, const char* key,
                                                   const text::Tokenizer& tokenizer) {
  const auto it = config.find(key);
  if (it == config.end()) return std::nullopt;
  if (it->is_string()) return tokenizer.token_id(it->get_ref<const std::string&>());
  if (it->is_object() && it->contains("content") && it->at("content").is_string())
    return tokenizer.token_id(it->at("content").get_ref<const std::string&>());
  return std::nullopt;
}

[[nodiscard]] bool holds_files(const fs::path& path) {
  std::error_code ignored;
  return fs::is_directory(path, ignored);
}

/// Where tokenizer_config.json is looked for; empty: nowhere.
[[nodiscard]] fs::path settings_dir(const DataOptions& options, const text::Tokenizer& tokenizer) {
  if (!options.model_dir.empty()) return options.model_dir;
  const fs::path source = tokenizer.source_name();
  return holds_files(source) ? source : source.parent_path();
}

void find_template(const DataOptions& options, const fs::path& dir, TokenizerSettings* out) {
  if (!options.template_name.empty()) {
    out->chat_template = text::template_by_name(options.template_name);
    return;
  }
  if (dir.empty() || !holds_files(dir)) {
    out->no_template_reason =
        "the tokenizer came without a directory; name a template with --template";
    return;
  }
  try {
    out->chat_template = text::load_template(dir);
  } catch (const DataError& e) {
    out->no_template_reason = e.what();
  }
}

void find_special_tokens(const fs::path& dir, const text::Tokenizer& tokenizer,
                         TokenizerSettings* out) {
  std::ifstream in;
  if (!dir.empty()) in.open(dir / "tokenizer_config.json");
  if (in.is_open()) {
    const auto config = nlohmann::json::parse(in, nullptr, false);
    if (config.is_object()) {
      out->end_id = special_token(config, "eos_token", tokenizer);
      out->pad_id = special_token(config, "pad_token", tokenizer);
    }
  }
  // A lone tokenizer.json does not say which token ends a text.
  for (const char* name :
       {"<｜end▁of▁sentence｜>", "<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "</s>"})
    if (!out->end_id) out->end_id = tokenizer.token_id(name);
}

}  // namespace

TokenizerSettings tokenizer_settings(const DataOptions& options, const text::Tokenizer* tokenizer) {
  TokenizerSettings out;
  if (tokenizer == nullptr) return out;
  const fs::path dir = settings_dir(options, *tokenizer);
  find_template(options, dir, &out);
  find_special_tokens(dir, *tokenizer, &out);
  return out;
}

std::optional<int32_t> end_of_text_id(const fs::path& model_dir, const text::Tokenizer& tokenizer) {
  DataOptions options;
  options.model_dir = model_dir;
  return tokenizer_settings(options, &tokenizer).end_id;
}

}  // namespace r1::data
