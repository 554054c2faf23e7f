// config.json of a Hugging Face model directory -> ModelConfig. Pure.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/core/dtype.h"

namespace r1::parallel {

enum class Architecture { kQwen2, kLlama, kQwen3 };

/// Rotary embedding of a model. `llama3` is the frequency scaling of Llama 3.1 (transformers, modeling_rope_utils).
struct RopeConfig {
  double theta = 10000.0;
  bool llama3 = false;
  double factor = 1, low_freq_factor = 1, high_freq_factor = 4;
  int64_t original_max_positions = 8192;
};

struct ModelConfig {
  Architecture architecture = Architecture::kQwen2;
  int64_t hidden = 0, layers = 0, heads = 0, kv_heads = 0, head_dim = 0, ffn = 0, vocab = 0, max_positions = 0;
  double rms_eps = 1e-6;
  bool tied_embeddings = false;
  bool qkv_bias = false, qk_norm = false;
  RopeConfig rope;
  DType storage = DType::kF32;       ///< dtype the weights are stored in (config's dtype/torch_dtype)
  double initializer_range = 0.02;
  std::vector<int64_t> eos_ids;      ///< may be empty
  std::optional<int64_t> bos_id;

  [[nodiscard]] std::string architecture_name() const;  ///< "Qwen2ForCausalLM"
  [[nodiscard]] int64_t q_dim() const { return heads * head_dim; }
  [[nodiscard]] int64_t kv_dim() const { return kv_heads * head_dim; }
  /// All parameters, a tied head counted once.
  [[nodiscard]] int64_t parameters() const;
  /// Weights that take part in matrix products: 6 FLOP a token each (research: N_matmul, head included, embedding not).
  [[nodiscard]] int64_t matmul_parameters() const;
  /// Training FLOP of one token in segments of `seq` tokens, causal attention counted half (Megatron-LM's convention).
  [[nodiscard]] double train_flops_per_token(double seq) const;
};

/// Parses config.json; `source` names the file in messages. Throws DataError naming the key for anything that changes
/// the result and is not implemented, for missing keys and for impossible values. Keys that this version does not know
/// are appended to `unknown_keys` when it is given.
[[nodiscard]] ModelConfig parse_model_config(std::string_view json, const std::string& source,
                                             std::vector<std::string>* unknown_keys = nullptr);

/// Inverse frequencies [head_dim / 2] after scaling, in double.
[[nodiscard]] std::vector<double> rope_inverse_frequencies(const ModelConfig& config);

}  // namespace r1::parallel
