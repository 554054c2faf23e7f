// tokenizer.json: whatever the bytes, a tokenizer that encodes and decodes, or a DataError.
#include "runtime/core/error.h"
#include "runtime/tokenizer/tokenizer.h"
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const auto t =
        r1::text::Tokenizer::from_json({reinterpret_cast<const char*>(data), size}, "fuzz");
    for (const int32_t id : t.encode("Hello, <think>42</think> \xc3\xa9\xff\n"))
      FUZZ_REQUIRE(id >= 0 && id < t.vocab_size());
  } catch (const r1::DataError&) {
  }
  return 0;
}

std::vector<std::string> r1::fuzz::seeds() {
  // Every part of a file once, small: the rate depends on the length.
  const std::string split =
      R"({"type":"Split","pattern":{"Regex":"\\p{N}"},"behavior":"Isolated","invert":false})";
  const std::string bytes =
      R"({"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":false})";
  const std::string model =
      R"("model":{"type":"BPE","dropout":null,"unk_token":null,"ignore_merges":true,"vocab":{"H":0,"e":1,"l":2,"He":3},"merges":["H e"]})";
  const std::string added =
      R"("added_tokens":[{"id":4,"content":"<think>","single_word":false,"lstrip":true,"rstrip":false,"normalized":true,"special":true}])";
  const std::string steps =
      R"("pre_tokenizer":{"type":"Sequence","pretokenizers":[)" + split + "," + bytes + "]}";
  return {
      "{" + added + R"(,"normalizer":{"type":"NFC"},)" + steps + "," + model + "}",
      "{" + added +
          R"(,"post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<think>"}},{"Sequence":{"id":"A"}}],)"
          R"("special_tokens":{"<think>":{"ids":[4]}}},)" +
          steps + "," + model + "}",
      R"({"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false},"decoder":{"type":"Sequence","decoders":[)" +
          bytes + "]}," + model + "}",
      R"({"pre_tokenizer":)" + bytes +
          R"(,"model":{"vocab":{"a":0,"b":1,"ab":2},"merges":[["a","b"]]}})",
      R"({"pre_tokenizer":{"type":"Digits","individual_digits":true},"model":{"vocab":{"a":0},"merges":[["a","x"]]}})",
      R"({"version":"1.0","added_tokens":[],"model":{"type":"BPE","vocab":{"a":0,"b":1,"ab":2},"merges":["a b"]}})"};
}
