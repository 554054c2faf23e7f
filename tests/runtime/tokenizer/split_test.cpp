// Splitting and normalization against Hugging Face tokenizers on random texts
// (tests/data/tokenizers/ORIGIN.md).
#include <gtest/gtest.h>
#include <utf8proc.h>

#include <cstdlib>
#include <map>
#include <random>

#include "runtime/tokenizer/pretokenizer.h"
#include "runtime/tokenizer/unicode.h"
#include "tests/runtime/tokenizer/support.h"

namespace r1::text {
namespace {

using testing::Json;

std::vector<std::string> split(const std::vector<SplitPattern>& steps, std::string_view text) {
  std::vector<std::string> pieces;
  split_text(steps.data(), steps.size(), text, [&](std::string_view p) { pieces.emplace_back(p); });
  return pieces;
}

// The patterns' spellings hold surrogates as JSON writes them, which the parser joins.
std::map<std::string, std::vector<SplitPattern>> known_splits() {
  std::map<std::string, std::vector<SplitPattern>> steps;
  const Json file = Json::parse(testing::read_data("tokenizers/pretokenizer_patterns.json"));
  for (const auto& [name, entry] : file.items()) {
    for (const Json& regex : entry["split"]) {
      const auto pattern = split_pattern_by_regex(regex.get<std::string>());
      EXPECT_TRUE(pattern.has_value()) << name << ": " << regex;
      if (pattern) steps[name].push_back(*pattern);
    }
  }
  return steps;
}

TEST(Split, EqualsHuggingFaceOnRandomTexts) {
  const auto steps = known_splits();
  std::map<std::string, int> seen;
  for (const Json& row : testing::read_lines("tokenizers/splits_hf.jsonl.gz")) {
    if (!row.contains("pattern")) continue;
    const auto name = row["pattern"].get<std::string>();
    ++seen[name];
    EXPECT_EQ(split(steps.at(name), row["text"].get<std::string>()),
              row["pieces"].get<std::vector<std::string>>())
        << name << ": " << row["text"];
  }
  EXPECT_EQ(seen.size(), 6U);
  for (const auto& [name, count] : seen) EXPECT_GT(count, 1000) << name;
}

TEST(Split, PiecesJoinToTheTextWhateverItsBytes) {
  const auto steps = known_splits();
  std::mt19937 random(7);
  for (int round = 0; round < 2000; ++round) {
    std::string text(random() % 24, '\0');
    for (char& c : text)
      c = static_cast<char>(random() % 3 == 0 ? random()
                                              : " a1.\n\xe4\xbd\xa0\xcc\x81"[random() % 10]);
    for (const auto& [name, list] : steps) {
      std::string joined;
      for (const auto& piece : split(list, text)) {
        EXPECT_FALSE(piece.empty());
        joined += piece;
      }
      EXPECT_EQ(joined, text) << name;
    }
  }
}

TEST(Split, UnknownPatternsAreNotRecognised) {
  EXPECT_FALSE(split_pattern_by_regex("(a+)+$"));
  EXPECT_FALSE(split_pattern_by_regex(""));
  EXPECT_FALSE(split_pattern_by_regex("\\s+"));
  // CR and LF may stand raw or escaped.
  EXPECT_EQ(split_pattern_by_regex("[\r\n]"), SplitPattern::kNewlines);
  EXPECT_EQ(split_pattern_by_regex("[\\r\\n]"), SplitPattern::kNewlines);
}

TEST(Unicode, NfcEqualsHuggingFaceOnRandomTexts) {
  int seen = 0;
  for (const Json& row : testing::read_lines("tokenizers/splits_hf.jsonl.gz")) {
    if (!row.contains("nfc")) continue;
    ++seen;
    std::string buffer;
    EXPECT_EQ(normalize_nfc(row["text"].get<std::string>(), buffer), row["nfc"].get<std::string>())
        << row["text"];
  }
  EXPECT_GT(seen, 2000);
}

TEST(Unicode, NfcLeavesIllFormedBytesAndNormalTextAlone) {
  std::string buffer;
  const std::string normal = "caf\u00e9 \u4f60\u597d";
  EXPECT_EQ(normalize_nfc(normal, buffer).data(), normal.data());
  EXPECT_EQ(normalize_nfc("e\xff\u0301", buffer), "e\xff\u0301");
  EXPECT_EQ(normalize_nfc("\xffx\u0301e\u0301\xc3", buffer), "\xffx\u0301\u00e9\xc3");
}

// Marks that came with Unicode 10 and later: Hugging Face's normalizer neither moves them nor moves
// or composes anything over them.
TEST(Unicode, NfcLeavesMarksAloneThatTheReferenceDoesNotKnow) {
  std::string buffer;
  for (const char* text :
       {"\u05d0\u0345\u0c3c", "a\u0899\u0301", "e\u0345\u07fd\u0316", "\U00011935\U00011930",
        "\u0898\u0737"})
    EXPECT_EQ(normalize_nfc(text, buffer), text);
  EXPECT_EQ(normalize_nfc("e\u0899\u0345\u0316", buffer), "e\u0899\u0316\u0345");
}

TEST(Unicode, NfcOfEveryCharacterEqualsUtf8proc) {
  for (uint32_t c = 0; c < 0x110000; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    std::string text;
    append_utf8(text, 'a');
    append_utf8(text, c);
    std::string buffer;
    const auto ours = normalize_nfc(text, buffer);
    utf8proc_uint8_t* theirs = nullptr;
    const auto n = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                                static_cast<utf8proc_ssize_t>(text.size()), &theirs,
                                static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
    ASSERT_GE(n, 0);
    EXPECT_EQ(ours, std::string_view(reinterpret_cast<const char*>(theirs), static_cast<size_t>(n)))
        << "U+" << std::hex << c;
    free(theirs);
  }
}

// The table is Unicode 16, utf8proc may be older: every code point that it knows must have the same
// class.
TEST(Unicode, ClassesAgreeWithUtf8procWhereItKnowsTheCharacter) {
  const CharTable& table = CharTable::get();
  int known = 0;
  for (uint32_t c = 0; c < 0x110000; ++c) {
    uint8_t expected = 0;
    switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
      case UTF8PROC_CATEGORY_CN:
      case UTF8PROC_CATEGORY_CS:
        continue;
      case UTF8PROC_CATEGORY_LU:
      case UTF8PROC_CATEGORY_LL:
      case UTF8PROC_CATEGORY_LT:
      case UTF8PROC_CATEGORY_LM:
      case UTF8PROC_CATEGORY_LO:
        expected = kLetter;
        break;
      case UTF8PROC_CATEGORY_MN:
      case UTF8PROC_CATEGORY_MC:
      case UTF8PROC_CATEGORY_ME:
        expected = kMark;
        break;
      case UTF8PROC_CATEGORY_ND:
      case UTF8PROC_CATEGORY_NL:
      case UTF8PROC_CATEGORY_NO:
        expected = kNumber;
        break;
      case UTF8PROC_CATEGORY_PC:
      case UTF8PROC_CATEGORY_PD:
      case UTF8PROC_CATEGORY_PS:
      case UTF8PROC_CATEGORY_PE:
      case UTF8PROC_CATEGORY_PI:
      case UTF8PROC_CATEGORY_PF:
      case UTF8PROC_CATEGORY_PO:
        expected = kPunct;
        break;
      case UTF8PROC_CATEGORY_SM:
      case UTF8PROC_CATEGORY_SC:
      case UTF8PROC_CATEGORY_SK:
      case UTF8PROC_CATEGORY_SO:
        expected = kSymbol;
        break;
      default:
        break;
    }
    ++known;
    constexpr uint8_t kGeneral = kLetter | kNumber | kPunct | kSymbol | kMark;
    EXPECT_EQ(table[c] & kGeneral, expected) << "U+" << std::hex << c;
  }
  EXPECT_GT(known, 280000);
  int spaces = 0;
  for (uint32_t c = 0; c < 0x110000; ++c) spaces += (table[c] & kSpace) != 0 ? 1 : 0;
  EXPECT_EQ(spaces, 25);  // White_Space, unchanged since Unicode 6.3
}

}  // namespace
}  // namespace r1::text
