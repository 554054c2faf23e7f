// Known-good ids of other implementations: llama.cpp, Hugging Face tokenizers, llama3-tokenizer-js.
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/runtime/tokenizer/support.h"

namespace r1::text {
namespace {

using testing::Json;

class Vectors : public ::testing::TestWithParam<std::string> {};

TEST_P(Vectors, LlamaCpp) {
  const auto& tokenizer = testing::tokenizer(GetParam());
  const auto rows = testing::read_lines("tokenizers/" + GetParam() + "/vectors_llamacpp.jsonl");
  ASSERT_GE(rows.size(), 30U);
  for (const Json& row : rows) {
    const auto text = row["text"].get<std::string>();
    EXPECT_EQ(tokenizer.encode(text, {.parse_special = true}),
              row["ids"].get<std::vector<int32_t>>())
        << text;
  }
}

TEST_P(Vectors, HuggingFace) {
  const auto& tokenizer = testing::tokenizer(GetParam());
  const auto rows = testing::read_lines("tokenizers/" + GetParam() + "/vectors_hf.jsonl.gz");
  ASSERT_GE(rows.size(), 300U);
  for (const Json& row : rows) {
    const auto text = row["text"].get<std::string>();
    const auto ids = row["ids"].get<std::vector<int32_t>>();
    EXPECT_EQ(tokenizer.encode(text, {.parse_special = true}), ids) << text;
    const auto plain = tokenizer.encode(text);
    const auto is_control = [&](int32_t id) { return tokenizer.is_control(id); };
    EXPECT_TRUE(std::none_of(plain.begin(), plain.end(), is_control)) << text;
    if (std::none_of(ids.begin(), ids.end(), is_control)) {
      EXPECT_EQ(plain, ids) << text;
    } else {
      EXPECT_EQ(tokenizer.decode(plain), tokenizer.decode(ids));
    }

    const std::string decoded = row.value("decoded", text);
    EXPECT_EQ(replace_invalid_utf8(tokenizer.decode(ids)), decoded);
    EXPECT_EQ(replace_invalid_utf8(tokenizer.decode(ids, true)),
              row.value("decoded_skip_special", decoded));

    StreamDecoder stream(tokenizer);
    std::string streamed;
    for (const int32_t id : ids) {
      const std::string piece = stream.push(id);
      EXPECT_EQ(replace_invalid_utf8(piece), piece) << "half a character";
      streamed += piece;
    }
    streamed += stream.finish();
    EXPECT_EQ(streamed, decoded);
  }
}

INSTANTIATE_TEST_SUITE_P(Tokenizers, Vectors,
                         ::testing::Values("r1-distill-qwen", "r1-distill-llama", "qwen2.5",
                                           "deepseek-llm", "deepseek-coder", "gpt2"),
                         [](const auto& entry) {
                           std::string name = entry.param;
                           for (char& c : name) {
                             if (c == '-' || c == '.') c = '_';
                           }
                           return name;
                         });

TEST(VectorsLlama31, Llama3TokenizerJs) {
  const auto& tokenizer = testing::tokenizer("llama-3.1");
  const auto rows = testing::read_lines("tokenizers/llama-3.1/vectors_llama3_tokenizer_js.jsonl");
  ASSERT_EQ(rows.size(), 21U);
  constexpr int32_t kEnd = 128001;
  for (const Json& row : rows) {
    const auto text = row["text"].get<std::string>();
    const auto ids = row["ids"].get<std::vector<int32_t>>();
    EXPECT_EQ(tokenizer.decode(ids, row.contains("bos")), text);
    if (row.value("decode_only", false)) continue;
    auto encoded =
        tokenizer.encode(text, {.add_special = row.value("bos", false), .parse_special = true});
    if (row.value("eos", false))
      encoded.push_back(kEnd);  // the file's post-processor adds the beginning only
    EXPECT_EQ(encoded, ids) << text;
  }
}

}  // namespace
}  // namespace r1::text
