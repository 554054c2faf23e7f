#include "runtime/tokenizer/byte_level.h"

#include <array>
#include <nlohmann/json.hpp>
#include <string_view>

#include "runtime/tokenizer/byte_alphabet.h"
#include "runtime/tokenizer/r1_template.h"
#include "runtime/tokenizer/unicode.h"

namespace r1::text {
namespace {

using Json = nlohmann::ordered_json;

struct Control {
  std::string_view content;
  bool special;  // as in DeepSeek's own files: markers of turns and thoughts stay visible when
                 // decoding
};

constexpr std::array kControls = {
    Control{"<｜begin▁of▁sentence｜>", true},
    Control{"<｜end▁of▁sentence｜>", true},
    Control{"<｜User｜>", false},
    Control{"<｜Assistant｜>", false},
    Control{"<think>", false},
    Control{"</think>", false},
    Control{"<｜▁pad▁｜>", true},
};

// Llama-3's pattern: any of the known ones would do, as there is nothing to merge.
constexpr std::string_view kSplit =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| "
    "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|"
    "\\s+(?!\\S)|\\s+";

}  // namespace

std::string byte_level_tokenizer_json() {
  Json vocab = Json::object();
  for (uint32_t byte = 0; byte < 256; ++byte) {
    std::string spelling;
    append_utf8(spelling, kByteChars[byte]);
    vocab[spelling] = byte;
  }
  Json added = Json::array();
  int id = 256;
  for (const Control& control : kControls) {
    added.push_back({{"id", id++},
                     {"content", control.content},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", control.special}});
  }
  const Json byte_level = {{"type", "ByteLevel"},
                           {"add_prefix_space", false},
                           {"trim_offsets", true},
                           {"use_regex", false}};
  const Json split = {{"type", "Split"},
                      {"pattern", {{"Regex", kSplit}}},
                      {"behavior", "Isolated"},
                      {"invert", false}};
  const Json file = {
      {"version", "1.0"},
      {"truncation", nullptr},
      {"padding", nullptr},
      {"added_tokens", added},
      {"normalizer", nullptr},
      {"pre_tokenizer",
       {{"type", "Sequence"}, {"pretokenizers", Json::array({split, byte_level})}}},
      {"post_processor", byte_level},
      {"decoder", byte_level},
      {"model",
       {{"type", "BPE"},
        {"dropout", nullptr},
        {"unk_token", nullptr},
        {"continuing_subword_prefix", nullptr},
        {"end_of_word_suffix", nullptr},
        {"fuse_unk", false},
        {"byte_fallback", false},
        {"ignore_merges", false},
        {"vocab", vocab},
        {"merges", Json::array()}}},
  };
  return file.dump(2) + "\n";
}

std::string byte_level_tokenizer_config_json() {
  const auto token = [](std::string_view content) {
    return Json{{"__type", "AddedToken"}, {"content", content}, {"lstrip", false},
                {"normalized", false},    {"rstrip", false},    {"single_word", false}};
  };
  const Json config = {
      {"add_bos_token", false},
      {"add_eos_token", false},
      {"bos_token", token(kControls[0].content)},
      {"clean_up_tokenization_spaces", false},
      {"eos_token", token(kControls[1].content)},
      {"model_max_length", 16384},
      {"pad_token", token(kControls[6].content)},
      {"tokenizer_class", "PreTrainedTokenizerFast"},
      {"unk_token", nullptr},
      {"chat_template", kR1DistillTemplate},
  };
  return config.dump(2) + "\n";
}

}  // namespace r1::text
