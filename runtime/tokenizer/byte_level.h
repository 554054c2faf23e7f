// The byte-level tokenizer of the bundled default model: one token a byte, and DeepSeek's control
// tokens.
#pragma once

#include <string>

namespace r1::text {

/// A Hugging Face tokenizer.json: ids 0..255 are the bytes, 256 up are `<｜begin▁of▁sentence｜>`,
/// `<｜end▁of▁sentence｜>`, `<｜User｜>`, `<｜Assistant｜>`, `<think>`, `</think>`, `<｜▁pad▁｜>`.
/// No merges.
[[nodiscard]] std::string byte_level_tokenizer_json();
/// The matching tokenizer_config.json, with the R1-distill chat template.
[[nodiscard]] std::string byte_level_tokenizer_config_json();

}  // namespace r1::text
