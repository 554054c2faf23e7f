// Small tokenizers of every family's shape for the fuzz targets: the bytes, merges learned from a
// few lines of text, and added tokens with every flag.
#pragma once

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/tokenizer/byte_level.h"
#include "runtime/tokenizer/pretokenizer.h"
#include "runtime/tokenizer/unicode.h"

namespace r1::fuzz {

/// A tokenizer.json, and what encoding by the definition needs to know of it.
struct SmallBpe {
  std::string json;
  std::vector<text::SplitPattern> splits;
  std::map<std::pair<int32_t, int32_t>, std::pair<size_t, int32_t>> merges;  // -> rank, result
  bool nfc = false;
};

inline std::string byte_spelling(unsigned char byte) {
  static const std::vector<std::string> spellings = [] {
    std::vector<std::string> all(256);
    uint32_t beyond = 256;
    for (uint32_t b = 0; b < 256; ++b) {
      const bool itself = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
      text::append_utf8(all[b], itself ? b : beyond++);
    }
    return all;
  }();
  return spellings[byte];
}

/// `regexes`: of the Split steps. `pairs`: merges written as lists of two.
inline SmallBpe small_bpe(const std::vector<std::string>& regexes, bool nfc, bool pairs) {
  using Json = nlohmann::json;
  constexpr std::string_view kText =
      "The theater's 123 tickets aren't there; the other hotel isn't here.\n\n  caf\xc3\xa9 "
      "cafe\xcc"
      "\x81 \xe4\xbd\xa0\xe5\xa5\xbd\xe4\xbd\xa0\xe5\xa5\xbd \xe3\x81\x93\xe3\x82\x93 "
      "<<12+12=24>>24 "
      "\\boxed{24}\t\tint main() { return 0; }\r\n aaaaaaaaaaaaaaaa bbbb....---- \xf0\x9f\x98\x80";
  SmallBpe out;
  out.nfc = nfc;
  for (const std::string& regex : regexes)
    out.splits.push_back(*text::split_pattern_by_regex(regex));
  std::vector<std::vector<int32_t>> pieces;
  text::split_text(out.splits.data(), out.splits.size(), kText, [&](std::string_view piece) {
    std::vector<int32_t> ids;
    for (const char c : piece) ids.push_back(static_cast<unsigned char>(c));
    pieces.push_back(std::move(ids));
  });
  Json file = Json::parse(text::byte_level_tokenizer_json());
  std::vector<std::string> spelling(256);
  for (int b = 0; b < 256; ++b) spelling[b] = byte_spelling(static_cast<unsigned char>(b));
  Json merges = Json::array();
  for (int round = 0; round < 160; ++round) {
    std::map<std::pair<int32_t, int32_t>, int> counts;
    for (const auto& ids : pieces)
      for (size_t i = 0; i + 1 < ids.size(); ++i) ++counts[{ids[i], ids[i + 1]}];
    if (counts.empty()) break;
    const auto [left, right] =
        std::max_element(counts.begin(), counts.end(), [](const auto& a, const auto& b) {
          return a.second < b.second;
        })->first;
    // A token that two merges make has the id of the first.
    const std::string whole = spelling[left] + spelling[right];
    const auto known = std::find(spelling.begin(), spelling.end(), whole);
    const int32_t result = static_cast<int32_t>(known - spelling.begin());
    out.merges[{left, right}] = {merges.size(), result};
    merges.push_back(pairs ? Json{spelling[left], spelling[right]}
                           : Json(spelling[left] + " " + spelling[right]));
    if (known == spelling.end()) spelling.push_back(whole);
    for (auto& ids : pieces) {
      std::vector<int32_t> merged;
      for (size_t i = 0; i < ids.size(); ++i) {
        const bool hit = i + 1 < ids.size() && ids[i] == left && ids[i + 1] == right;
        merged.push_back(hit ? result : ids[i]);
        i += hit ? 1 : 0;
      }
      ids = std::move(merged);
    }
  }
  Json& model = file["model"];
  for (size_t id = 256; id < spelling.size(); ++id) model["vocab"][spelling[id]] = id;
  model["merges"] = merges;
  if (nfc) file["normalizer"] = {{"type", "NFC"}};
  Json& steps = file["pre_tokenizer"]["pretokenizers"];
  const Json byte_level = steps.back();
  steps = Json::array();
  for (const std::string& regex : regexes)
    steps.push_back({{"type", "Split"},
                     {"pattern", {{"Regex", regex}}},
                     {"behavior", "Isolated"},
                     {"invert", false}});
  steps.push_back(byte_level);
  for (auto& token : file["added_tokens"]) token["id"] = token["id"].get<int>() + 744;
  out.json = file.dump();
  return out;
}

/// The same with control tokens that take white space along, or stand as words only.
inline std::string with_odd_tokens(const std::string& tokenizer_json) {
  nlohmann::json file = nlohmann::json::parse(tokenizer_json);
  const auto add = [&](const char* content, bool special, bool normalized, bool lstrip, bool rstrip,
                       bool single_word) {
    file["added_tokens"].push_back({{"id", 2000 + file["added_tokens"].size()},
                                    {"content", content},
                                    {"special", special},
                                    {"normalized", normalized},
                                    {"lstrip", lstrip},
                                    {"rstrip", rstrip},
                                    {"single_word", single_word}});
  };
  add("<L>", true, false, true, false, false);
  add("<R>", true, false, false, true, false);
  add("<LR>", true, true, true, true, false);
  add("<W>", true, false, false, false, true);
  add("<\xc3\xa9>", false, true, false, false, false);
  add("<|a|>", false, false, false, false, false);
  add("<|a|>b", false, false, false, false, false);
  return file.dump();
}

inline const std::string kQwenRegex =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
inline const std::string kLlamaRegex =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
inline const std::string kGpt2Regex =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
inline const std::vector<std::string> kDeepSeekV3Regexes = {
    R"(\p{N}{1,3})", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    R"re([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)re"};
inline const std::vector<std::string> kDeepSeekCoderRegexes = {
    R"([\r\n])", R"(\s?\p{L}+)", R"(\s?\p{P}+)", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
    R"(\p{N})"};

}  // namespace r1::fuzz
