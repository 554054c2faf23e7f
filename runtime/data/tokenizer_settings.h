// The chat template and the special tokens of a model directory.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "runtime/data/dataset.h"
#include "runtime/tokenizer/chat.h"

namespace r1::data {

/// What a model directory says about its tokenizer, beside tokenizer.json.
struct TokenizerSettings {
  std::optional<text::TemplateKind> chat_template;
  std::string no_template_reason;  ///< why there is none
  std::optional<int32_t> end_id, pad_id;
};

/// Reads them from DataOptions::model_dir, or from where the tokenizer was loaded. Empty without a
/// tokenizer. Throws UsageError for an unknown DataOptions::template_name.
[[nodiscard]] TokenizerSettings tokenizer_settings(const DataOptions& options,
                                                   const text::Tokenizer* tokenizer);

}  // namespace r1::data
