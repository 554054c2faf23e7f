// generation_config.json: whatever the bytes, settings that can be sampled with or a DataError.
#include "runtime/core/error.h"
#include "runtime/serve/generation_config.h"
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const auto c = r1::serve::parse_generation_config({reinterpret_cast<const char*>(data), size}, "fuzz");
    const auto p = r1::serve::resolve_sampling(c, {}, nullptr);
    FUZZ_REQUIRE(p.temperature >= 0 && p.top_k >= 0 && p.top_p > 0 && p.top_p <= 1 && p.min_p >= 0 && p.min_p <= 1 &&
                 p.repetition_penalty > 0);
    for (const int64_t id : c.eos_ids) FUZZ_REQUIRE(id >= 0 && id <= INT32_MAX);
  } catch (const r1::DataError&) {
  }
  return 0;
}

std::vector<std::string> r1::fuzz::seeds() {
  return {
      R"({"do_sample": true, "temperature": 0.6, "top_p": 0.95, "top_k": 50, "min_p": 0.0, "repetition_penalty": 1.05, "eos_token_id": [1, 2]})",
      R"({"do_sample": false, "eos_token_id": 151643, "top_k": null})",
      R"({"temperature": 1e400, "eos_token_id": 18446744073709551615})"};
}
