// The job that r1run trains when neither --model nor --data is given: a small R1-distill-shaped
// model (Qwen2 architecture, byte-level tokenizer with the DeepSeek control tokens) and a slice of
// GSM8K, both in the binary.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string_view>

namespace r1::data {

/// The bundled slice of GSM8K: JSONL of {"question", "answer"} (MIT; see gsm8k_slice.ORIGIN).
[[nodiscard]] std::string_view default_data_jsonl();
/// Writes it to `file` (temporary name, then rename). Throws StorageError.
void write_default_data(const std::filesystem::path& file);

/// Row length in tokens that suits the slice.
inline constexpr int64_t kDefaultSeqLen = 512;

/// Writes config.json, generation_config.json, tokenizer.json and tokenizer_config.json of the
/// default model into `dir` (made if missing; each file by temporary name and rename). Weights are
/// not written: they are initialised from a seed by whoever trains. Throws StorageError.
void write_default_model_files(const std::filesystem::path& dir);
[[nodiscard]] std::string_view default_config_json();

}  // namespace r1::data
