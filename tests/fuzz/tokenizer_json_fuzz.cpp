// tokenizer.json: whatever the bytes, a tokenizer that encodes and decodes, or a DataError.
#include "runtime/core/error.h"
#include "runtime/tokenizer/byte_level.h"
#include "runtime/tokenizer/tokenizer.h"
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const auto t = r1::text::Tokenizer::from_json({reinterpret_cast<const char*>(data), size}, "fuzz");
    for (const int32_t id : t.encode("Hello, <think>42</think> \xc3\xa9\xff\n")) FUZZ_REQUIRE(id >= 0 && id < t.vocab_size());
  } catch (const r1::DataError&) {
  }
  return 0;
}

std::vector<std::string> r1::fuzz::seeds() {
  return {r1::text::byte_level_tokenizer_json(),
          R"({"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}})",
          R"({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "x"]]}})"};
}
