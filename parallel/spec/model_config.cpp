#include "parallel/spec/model_config.h"

#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numbers>
#include <set>

#include "runtime/core/error.h"
#include "runtime/core/json.h"

namespace r1::parallel {
namespace {

using nlohmann::json;

/// Reads keys of one JSON object and reports problems by file and key.
class Keys {
 public:
  Keys(const json& object, std::string source) : object_(object), source_(std::move(source)) {}

  [[nodiscard]] bool has(const char* key) const { return object_.contains(key) && !object_[key].is_null(); }

  [[nodiscard]] int64_t integer(const char* key, std::optional<int64_t> fallback, int64_t low, int64_t high) const {
    if (!has(key)) {
      if (fallback) return *fallback;
      throw DataError("{}: key '{}' is missing", source_, key);
    }
    const json& v = object_[key];
    if (!v.is_number_integer()) throw DataError("{}: '{}' is {}, expected an integer", source_, key, v.dump());
    const int64_t n = v.get<int64_t>();
    if (n < low || n > high) throw DataError("{}: '{}' is {}, allowed are {} to {}", source_, key, n, low, high);
    return n;
  }
  [[nodiscard]] double number(const char* key, double fallback, double low, double high) const {
    if (!has(key)) return fallback;
    const json& v = object_[key];
    if (!v.is_number()) throw DataError("{}: '{}' is {}, expected a number", source_, key, v.dump());
    const double n = v.get<double>();
    if (!(n >= low && n <= high)) throw DataError("{}: '{}' is {}, allowed are {} to {}", source_, key, n, low, high);
    return n;
  }
  [[nodiscard]] bool boolean(const char* key, bool fallback) const {
    if (!has(key)) return fallback;
    const json& v = object_[key];
    if (!v.is_boolean()) throw DataError("{}: '{}' is {}, expected true or false", source_, key, v.dump());
    return v.get<bool>();
  }
  [[nodiscard]] std::string text(const char* key, const std::string& fallback) const {
    if (!has(key)) return fallback;
    const json& v = object_[key];
    if (!v.is_string()) throw DataError("{}: '{}' is {}, expected a string", source_, key, v.dump());
    return v.get<std::string>();
  }
  /// Throws unless the key is absent, null or equal to `neutral`.
  void only(const char* key, const json& neutral, const char* why) const {
    if (has(key) && object_[key] != neutral)
      throw DataError("{}: '{}' is {}: {} is not implemented (only {})", source_, key, object_[key].dump(), why,
                      neutral.dump());
  }

 private:
  const json& object_;
  std::string source_;
};

RopeConfig parse_rope(const json& root, const std::string& source) {
  RopeConfig rope;
  const Keys top(root, source);
  rope.theta = top.number("rope_theta", 10000.0, 1.0, 1e12);
  for (const char* name : {"rope_scaling", "rope_parameters"}) {
    if (!top.has(name)) continue;
    const json& object = root[name];
    if (!object.is_object()) throw DataError("{}: '{}' is {}, expected an object", source, name, object.dump());
    const std::string where = source + ": " + name;
    const Keys keys(object, where);
    rope.theta = keys.number("rope_theta", rope.theta, 1.0, 1e12);
    keys.only("partial_rotary_factor", 1.0, "a partial rotation");
    const std::string type = keys.text("rope_type", keys.text("type", "default"));
    if (type == "default") continue;
    if (type != "llama3")
      throw DataError("{}: rope_type '{}' is not implemented (default and llama3 are)", where, type);
    rope.llama3 = true;
    rope.factor = keys.number("factor", 8.0, 1.0, 1e6);
    rope.low_freq_factor = keys.number("low_freq_factor", 1.0, 1e-6, 1e6);
    rope.high_freq_factor = keys.number("high_freq_factor", 4.0, 1e-6, 1e6);
    rope.original_max_positions = keys.integer("original_max_position_embeddings", 8192, 1, int64_t{1} << 40);
    if (rope.high_freq_factor <= rope.low_freq_factor)
      throw DataError("{}: high_freq_factor {} must be above low_freq_factor {}", where, rope.high_freq_factor,
                      rope.low_freq_factor);
  }
  return rope;
}

/// Keys that are read, or that do not change what training computes.
const std::set<std::string>& known_keys() {
  static const std::set<std::string> keys{
      "architectures", "model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
      "head_dim", "intermediate_size", "vocab_size", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings",
      "rope_theta", "rope_scaling", "rope_parameters", "hidden_act", "attention_dropout", "attention_bias", "mlp_bias",
      "use_sliding_window", "sliding_window", "max_window_layers", "layer_types", "dtype", "torch_dtype",
      "initializer_range", "bos_token_id", "eos_token_id", "pad_token_id", "pretraining_tp", "quantization_config",
      "partial_rotary_factor", "transformers_version", "use_cache", "_name_or_path", "name_or_path", "use_mrope",
      "output_attentions", "output_hidden_states", "return_dict", "is_decoder", "is_encoder_decoder",
      "problem_type", "id2label", "label2id", "chunk_size_feed_forward", "add_cross_attention", "cross_attention_hidden_size",
      "finetuning_task", "tokenizer_class", "task_specific_params", "attn_implementation", "_attn_implementation",
      "unsloth_fixed", "unsloth_version", "logit_softcapping", "final_logit_softcapping", "attn_logit_softcapping",
      "residual_multiplier", "embedding_multiplier", "logits_scaling", "attention_multiplier", "query_pre_attn_scalar",
      "resid_pdrop", "embd_pdrop", "hidden_dropout", "num_experts", "n_routed_experts"};
  return keys;
}

}  // namespace

std::string ModelConfig::architecture_name() const {
  switch (architecture) {
    case Architecture::kQwen2: return "Qwen2ForCausalLM";
    case Architecture::kLlama: return "LlamaForCausalLM";
    case Architecture::kQwen3: return "Qwen3ForCausalLM";
  }
  return "?";
}

int64_t ModelConfig::matmul_parameters() const {
  return layers * (hidden * (q_dim() + 2 * kv_dim()) + q_dim() * hidden + 3 * hidden * ffn) + vocab * hidden;
}

int64_t ModelConfig::parameters() const {
  const int64_t norms = layers * 2 * hidden + hidden + (qk_norm ? layers * 2 * head_dim : 0);
  const int64_t biases = qkv_bias ? layers * (q_dim() + 2 * kv_dim()) : 0;
  return matmul_parameters() + norms + biases + (tied_embeddings ? 0 : vocab * hidden);
}

double ModelConfig::train_flops_per_token(double seq) const {
  return 6.0 * static_cast<double>(matmul_parameters()) +
         6.0 * static_cast<double>(layers) * static_cast<double>(q_dim()) * seq;
}

namespace {

Architecture read_architecture(const json& root, const Keys& keys, const std::string& source) {
  if (!keys.has("architectures") || !root["architectures"].is_array() || root["architectures"].size() != 1 ||
      !root["architectures"][0].is_string())
    throw DataError("{}: 'architectures' must list one architecture, e.g. [\"Qwen2ForCausalLM\"]", source);
  const std::string arch = root["architectures"][0].get<std::string>();
  if (arch == "Qwen2ForCausalLM") return Architecture::kQwen2;
  if (arch == "LlamaForCausalLM") return Architecture::kLlama;
  if (arch == "Qwen3ForCausalLM") return Architecture::kQwen3;
  throw DataError("{}: architecture '{}' is not implemented (Qwen2ForCausalLM, LlamaForCausalLM and Qwen3ForCausalLM are)", source,
                  arch);
}

void read_sizes(const Keys& keys, const std::string& source, ModelConfig* c) {
  constexpr int64_t kMax = int64_t{1} << 24;
  c->hidden = keys.integer("hidden_size", {}, 1, kMax);
  c->layers = keys.integer("num_hidden_layers", {}, 1, 4096);
  c->heads = keys.integer("num_attention_heads", {}, 1, 65536);
  c->kv_heads = keys.integer("num_key_value_heads", c->heads, 1, 65536);
  if (c->heads % c->kv_heads != 0)
    throw DataError("{}: num_attention_heads {} is not a multiple of num_key_value_heads {}", source, c->heads, c->kv_heads);
  if (!keys.has("head_dim") && c->architecture != Architecture::kQwen3 && c->hidden % c->heads != 0)
    throw DataError("{}: hidden_size {} is not a multiple of num_attention_heads {} and head_dim is not given", source,
                    c->hidden, c->heads);
  c->head_dim = keys.integer("head_dim", c->architecture == Architecture::kQwen3 ? 128 : c->hidden / c->heads, 2, 1024);
  if (c->head_dim % 2 != 0) throw DataError("{}: head_dim {} is odd; rotary embeddings need an even one", source, c->head_dim);
  c->ffn = keys.integer("intermediate_size", {}, 1, kMax);
  c->vocab = keys.integer("vocab_size", {}, 1, kMax);
  c->max_positions = keys.integer("max_position_embeddings", 32768, 1, int64_t{1} << 30);
}

/// What the models can have and this program does not do.
void refuse_other_features(const json& root, const Keys& keys, const std::string& source, Architecture architecture) {
  keys.only("hidden_act", "silu", "this activation");
  for (const char* dropout : {"attention_dropout", "resid_pdrop", "embd_pdrop", "hidden_dropout"})
    if (keys.number(dropout, 0.0, 0.0, 1.0) != 0.0)
      throw DataError("{}: '{}' is {}: dropout is not implemented (only 0)", source, dropout, root[dropout].dump());
  keys.only("mlp_bias", false, "a bias in the MLP");
  keys.only("pretraining_tp", 1, "pretraining_tp");
  keys.only("partial_rotary_factor", 1.0, "a partial rotation");
  keys.only("use_mrope", false, "multimodal RoPE");
  for (const char* key : {"quantization_config", "logit_softcapping", "final_logit_softcapping", "attn_logit_softcapping",
                          "residual_multiplier", "embedding_multiplier", "logits_scaling", "attention_multiplier",
                          "query_pre_attn_scalar", "num_experts", "n_routed_experts"})
    if (keys.has(key)) throw DataError("{}: '{}' is not implemented", source, key);
  if (architecture != Architecture::kQwen2) keys.only("attention_bias", false, "attention_bias");
  if (keys.boolean("use_sliding_window", false))
    throw DataError("{}: 'use_sliding_window' is true: sliding-window attention is not implemented", source);
  if (!keys.has("layer_types")) return;
  if (!root["layer_types"].is_array()) throw DataError("{}: 'layer_types' must be an array", source);
  for (const json& t : root["layer_types"])
    if (t != "full_attention")
      throw DataError("{}: 'layer_types' has {}: only full_attention is implemented", source, t.dump());
}

DType read_storage(const Keys& keys, const std::string& source) {
  const std::string dtype = keys.text("dtype", keys.text("torch_dtype", "float32"));
  if (dtype == "float32") return DType::kF32;
  if (dtype == "bfloat16") return DType::kBF16;
  if (dtype == "float16") return DType::kF16;
  throw DataError("{}: dtype '{}' is not known (float32, bfloat16 and float16 are)", source, dtype);
}

void read_token_ids(const json& root, const Keys& keys, ModelConfig* c) {
  if (keys.has("bos_token_id") && root["bos_token_id"].is_number_integer()) c->bos_id = root["bos_token_id"].get<int64_t>();
  if (!keys.has("eos_token_id")) return;
  const json& eos = root["eos_token_id"];
  if (eos.is_number_integer()) c->eos_ids.push_back(eos.get<int64_t>());
  if (eos.is_array())
    for (const json& e : eos)
      if (e.is_number_integer()) c->eos_ids.push_back(e.get<int64_t>());
}

}  // namespace

ModelConfig parse_model_config(std::string_view text, const std::string& source,
                               std::vector<std::string>* unknown_keys) {
  const json root = parse_json_object(text, source);
  const Keys keys(root, source);
  ModelConfig c;
  c.architecture = read_architecture(root, keys, source);
  read_sizes(keys, source, &c);
  c.rms_eps = keys.number("rms_norm_eps", 1e-6, 0.0, 1.0);
  c.tied_embeddings = keys.boolean("tie_word_embeddings", false);
  c.initializer_range = keys.number("initializer_range", 0.02, 0.0, 10.0);
  c.rope = parse_rope(root, source);
  refuse_other_features(root, keys, source, c.architecture);
  // Qwen2 has q/k/v biases by definition; the others only when attention_bias says so (then o_proj has one too).
  c.qkv_bias = c.architecture == Architecture::kQwen2;
  c.qk_norm = c.architecture == Architecture::kQwen3;
  c.storage = read_storage(keys, source);
  read_token_ids(root, keys, &c);
  if (unknown_keys != nullptr)
    for (const auto& [key, value] : root.items())
      if (!known_keys().contains(key)) unknown_keys->push_back(key);
  return c;
}

std::vector<double> rope_inverse_frequencies(const ModelConfig& config) {
  const RopeConfig& r = config.rope;
  std::vector<double> inv(static_cast<size_t>(config.head_dim / 2));
  for (size_t i = 0; i < inv.size(); ++i) {
    // transformers computes the exponent and the power in fp32; the difference shows at the 2e-5 bar, so follow it.
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(config.head_dim);
    float f = 1.0F / std::pow(static_cast<float>(r.theta), exponent);
    if (r.llama3) {
      const double wavelength = 2.0 * std::numbers::pi / static_cast<double>(f);
      const double low = static_cast<double>(r.original_max_positions) / r.low_freq_factor;
      const double high = static_cast<double>(r.original_max_positions) / r.high_freq_factor;
      if (wavelength > low) {
        f = static_cast<float>(static_cast<double>(f) / r.factor);
      } else if (wavelength >= high) {
        const double smooth = (static_cast<double>(r.original_max_positions) / wavelength - r.low_freq_factor) /
                              (r.high_freq_factor - r.low_freq_factor);
        f = static_cast<float>((1 - smooth) * static_cast<double>(f) / r.factor + smooth * static_cast<double>(f));
      }
    }
    inv[i] = static_cast<double>(f);
  }
  return inv;
}

}  // namespace r1::parallel
