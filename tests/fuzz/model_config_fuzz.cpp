// config.json: whatever the bytes, a configuration whose numbers make sense or a DataError.
#include "parallel/spec/model_config.h"
#include "runtime/core/error.h"
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const auto c = r1::parallel::parse_model_config({reinterpret_cast<const char*>(data), size}, "fuzz");
    FUZZ_REQUIRE(c.hidden > 0 && c.layers > 0 && c.head_dim % 2 == 0 && c.heads % c.kv_heads == 0);
    FUZZ_REQUIRE(r1::parallel::rope_inverse_frequencies(c).size() == static_cast<size_t>(c.head_dim / 2));
  } catch (const r1::DataError&) {
  }
  return 0;
}

std::vector<std::string> r1::fuzz::seeds() {
  const std::string base = R"("hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2,
    "intermediate_size": 160, "vocab_size": 512, "max_position_embeddings": 128, "hidden_act": "silu")";
  return {R"({"architectures": ["Qwen2ForCausalLM"], )" + base + "}",
          R"({"architectures": ["LlamaForCausalLM"], "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64}, )" + base + "}",
          R"({"architectures": ["Qwen3ForCausalLM"], "head_dim": 16, "rope_parameters": {"rope_theta": 1e6}, )" + base + "}",
          R"({"architectures": ["Qwen2ForCausalLM"], "layer_types": ["full_attention"], "quantization_config": {}})"};
}
