#include "runtime/data/default/default_job.h"

#include <system_error>

#include "runtime/core/error.h"
#include "runtime/data/cache.h"
#include "runtime/tokenizer/byte_level.h"

// Made at build time from gsm8k_slice.jsonl (default_job.cmake).
extern const unsigned char r1_gsm8k_slice[];
extern const unsigned long r1_gsm8k_slice_bytes;

namespace r1::data {
namespace {

// 256 bytes and 7 control tokens, padded to a multiple of 16 as real models pad theirs. Eight heads
// on two kv heads: tp 4 replicates kv heads, tp 3 cuts everything unevenly. 2.4M parameters.
constexpr std::string_view kConfig = R"({
  "architectures": ["Qwen2ForCausalLM"],
  "attention_dropout": 0.0,
  "bos_token_id": 256,
  "eos_token_id": 257,
  "hidden_act": "silu",
  "hidden_size": 192,
  "initializer_range": 0.02,
  "intermediate_size": 512,
  "max_position_embeddings": 4096,
  "max_window_layers": 6,
  "model_type": "qwen2",
  "num_attention_heads": 8,
  "num_hidden_layers": 6,
  "num_key_value_heads": 2,
  "pad_token_id": 262,
  "rms_norm_eps": 1e-06,
  "rope_theta": 10000.0,
  "sliding_window": null,
  "tie_word_embeddings": false,
  "torch_dtype": "float32",
  "use_cache": true,
  "use_sliding_window": false,
  "vocab_size": 272
}
)";

constexpr std::string_view kGenerationConfig = R"({
  "_from_model_config": true,
  "bos_token_id": 256,
  "do_sample": true,
  "eos_token_id": 257,
  "pad_token_id": 262,
  "temperature": 0.6,
  "top_p": 0.95
}
)";

}  // namespace

std::string_view default_data_jsonl() {
  return {reinterpret_cast<const char*>(r1_gsm8k_slice), r1_gsm8k_slice_bytes};
}

void write_default_data(const std::filesystem::path& file) {
  std::error_code error;
  if (file.has_parent_path()) std::filesystem::create_directories(file.parent_path(), error);
  if (error)
    throw StorageError("{}: cannot be made: {}", file.parent_path().string(), error.message());
  write_file_atomically(file, default_data_jsonl());
}

std::string_view default_config_json() { return kConfig; }

void write_default_model_files(const std::filesystem::path& dir) {
  std::error_code error;
  std::filesystem::create_directories(dir, error);
  if (error) throw StorageError("{}: cannot be made: {}", dir.string(), error.message());
  write_file_atomically(dir / "config.json", kConfig);
  write_file_atomically(dir / "generation_config.json", kGenerationConfig);
  write_file_atomically(dir / "tokenizer.json", text::byte_level_tokenizer_json());
  write_file_atomically(dir / "tokenizer_config.json", text::byte_level_tokenizer_config_json());
}

}  // namespace r1::data
