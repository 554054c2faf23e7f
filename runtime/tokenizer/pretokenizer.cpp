#include "runtime/tokenizer/pretokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "runtime/tokenizer/unicode.h"

namespace r1::text {
namespace {

// Letters of the alphabets with case, as DeepSeek-LLM lists them.
constexpr std::string_view kCasedLetters =
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-"
    "\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-"
    "\u0481\u048a-"
    "\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-"
    "\u1d2b\u1d6b-"
    "\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-"
    "\u1f57\u1f59\u1f5b\u1f5d"
    "\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-"
    "\u1fdb\u1fe0-"
    "\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-"
    "\u211d\u2124\u2126\u2128\u212a-"
    "\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-"
    "\u2ce4\u2ceb-"
    "\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-"
    "\uabbf\ufb00-"
    "\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-"
    "\U000104d3\U000104d8-"
    "\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-"
    "\U0001e943";
constexpr std::string_view kDeepSeekPunctuation =
    "!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002";
constexpr std::string_view kCjkRanges = "\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff";
constexpr std::string_view kV3CjkRanges = "\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff";

// The set of a bracket expression of single characters and ranges, one of our own constants above.
class CharSet {
 public:
  explicit CharSet(std::string_view members) {
    const char* p = members.data();
    const char* const end = p + members.size();
    while (p < end) {
      const Char first = decode_char(p, end);
      p += first.bytes;
      Char last = first;
      if (p + 1 < end && *p == '-') {
        last = decode_char(p + 1, end);
        p += 1 + last.bytes;
      }
      ranges_.emplace_back(first.code_point, last.code_point);
    }
    std::sort(ranges_.begin(), ranges_.end());
  }
  [[nodiscard]] bool operator()(uint32_t code_point) const {
    // Ranges may touch (一 ends one and begins another) but do not nest.
    auto after =
        std::upper_bound(ranges_.begin(), ranges_.end(), std::pair{code_point, UINT32_MAX});
    return after != ranges_.begin() && code_point <= std::prev(after)->second;
  }

 private:
  std::vector<std::pair<uint32_t, uint32_t>> ranges_;
};

const CharSet& cased_letters() {
  static const CharSet set(kCasedLetters);
  return set;
}
const CharSet& deepseek_punctuation() {
  static const CharSet set(kDeepSeekPunctuation);
  return set;
}
const CharSet& cjk() {
  static const CharSet set(kCjkRanges);
  return set;
}
const CharSet& v3_cjk() {
  static const CharSet set(kV3CjkRanges);
  return set;
}

// A text with its class table; positions are byte offsets.
class Scan {
 public:
  explicit Scan(std::string_view text)
      : table_(CharTable::get()), begin_(text.data()), end_(text.data() + text.size()) {}

  struct At {
    uint32_t code_point;
    uint32_t bytes;
    uint8_t flags;
  };
  [[nodiscard]] At at(size_t pos) const {
    const Char c = decode_char(begin_ + pos, end_);
    return {c.code_point, c.bytes, table_[c.code_point]};
  }
  [[nodiscard]] size_t size() const { return static_cast<size_t>(end_ - begin_); }
  [[nodiscard]] char byte(size_t pos) const { return begin_[pos]; }
  [[nodiscard]] bool is(size_t pos, uint8_t mask) const {
    return pos < size() && (at(pos).flags & mask) != 0;
  }
  /// End of the run of characters with (flags & mask) != 0 from `pos`, at most `limit` characters.
  [[nodiscard]] size_t run(size_t pos, uint8_t mask, size_t limit = SIZE_MAX) const {
    const char* p = begin_ + pos;
    for (; p < end_ && limit > 0; --limit) {
      const auto b = static_cast<unsigned char>(*p);
      if (b < 0x80) {
        if ((table_[b] & mask) == 0) break;
        ++p;
        continue;
      }
      const Char c = decode_char(p, end_);
      if ((table_[c.code_point] & mask) == 0) break;
      p += c.bytes;
    }
    return static_cast<size_t>(p - begin_);
  }
  /// End of the run of characters with (flags & mask) == 0 from `pos`.
  [[nodiscard]] size_t run_without(size_t pos, uint8_t mask) const {
    const char* p = begin_ + pos;
    while (p < end_) {
      const Char c = decode_char(p, end_);
      if ((table_[c.code_point] & mask) != 0) break;
      p += c.bytes;
    }
    return static_cast<size_t>(p - begin_);
  }
  /// End of the run of CR and LF from `pos`.
  [[nodiscard]] size_t newlines(size_t pos) const {
    while (pos < size() && (byte(pos) == '\r' || byte(pos) == '\n')) ++pos;
    return pos;
  }

 private:
  const CharTable& table_;
  const char* begin_;
  const char* end_;
};

bool is_newline(uint32_t code_point) { return code_point == '\r' || code_point == '\n'; }

// 's|'t|'re|'ve|'m|'ll|'d at an apostrophe; returns its end or `pos`. With ignore_case also ſ for
// s, as Unicode case folding has it.
size_t contraction(const Scan& s, size_t pos, bool ignore_case) {
  const auto letter = [&](size_t i) -> char {
    if (i >= s.size()) return '\0';
    const char c = s.byte(i);
    return ignore_case && c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  };
  switch (letter(pos + 1)) {
    case 's':
    case 't':
    case 'm':
    case 'd':
      return pos + 2;
    case 'r':
    case 'v':
      return letter(pos + 2) == 'e' ? pos + 3 : pos;
    case 'l':
      return letter(pos + 2) == 'l' ? pos + 3 : pos;
    default:
      return ignore_case && pos + 1 < s.size() && s.at(pos + 1).code_point == 0x17F ? pos + 3 : pos;
  }
}

// \s+(?!\S)|\s+ at white space; with `line_ends`, \s*[\r\n]+ goes first.
size_t white_space(const Scan& s, size_t pos, bool line_ends) {
  size_t end = pos;
  size_t last = pos;           // start of the run's last character
  size_t after_newline = pos;  // end of the run's last CR or LF
  while (end < s.size()) {
    const Scan::At c = s.at(end);
    if ((c.flags & kSpace) == 0) break;
    last = end;
    end += c.bytes;
    if (is_newline(c.code_point)) after_newline = end;
  }
  if (line_ends && after_newline > pos) return after_newline;
  // Before something that is no space the last character stays out, unless it is the only one.
  return end == s.size() || last == pos ? end : last;
}

// The common shape of Qwen2 and Llama-3, which differ in how many digits make a piece. Every
// character matches.
size_t qwen_like(const Scan& s, size_t pos, size_t max_digits) {
  const Scan::At c = s.at(pos);
  if (c.code_point == '\'') {
    const size_t end = contraction(s, pos, true);
    if (end > pos) return end;
  }
  const size_t next = pos + c.bytes;
  if ((c.flags & kLetter) != 0) return s.run(next, kLetter);
  if ((c.flags & kNumber) != 0) return s.run(next, kNumber, max_digits - 1);
  if (!is_newline(c.code_point) && s.is(next, kLetter)) return s.run(next, kLetter);
  constexpr uint8_t kNotOther = kSpace | kLetter | kNumber;
  if ((c.flags & kNotOther) == 0) return s.newlines(s.run_without(next, kNotOther));
  if (c.code_point == ' ' && next < s.size() && !s.is(next, kNotOther)) {
    return s.newlines(s.run_without(next, kNotOther));
  }
  return white_space(s, pos, true);
}

size_t gpt2(const Scan& s, size_t pos) {
  Scan::At c = s.at(pos);
  if (c.code_point == '\'') {
    const size_t end = contraction(s, pos, false);
    if (end > pos) return end;
  }
  size_t start = pos;
  if (c.code_point == ' ' && pos + 1 < s.size() && !s.is(pos + 1, kSpace)) {
    start = pos + 1;
    c = s.at(start);
  }
  if ((c.flags & kLetter) != 0) return s.run(start, kLetter);
  if ((c.flags & kNumber) != 0) return s.run(start, kNumber);
  if ((c.flags & kSpace) == 0) return s.run_without(start, kSpace | kLetter | kNumber);
  return white_space(s, pos, false);
}

bool is_ascii_punct(uint32_t c) {
  return (c >= '!' && c <= '/') || (c >= ':' && c <= '@') || (c >= '[' && c <= '`') ||
         (c >= '{' && c <= '~');
}
bool is_ascii_letter(char c) { return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z'); }

// DeepSeek-V3's main pattern at `pos`; `pos` when nothing matches there (digits, control
// characters).
size_t deepseek_v3(const Scan& s, size_t pos) {
  const Scan::At c = s.at(pos);
  size_t next = pos + c.bytes;
  if (is_ascii_punct(c.code_point) && next < s.size() && is_ascii_letter(s.byte(next))) {
    while (next < s.size() && is_ascii_letter(s.byte(next))) ++next;
    return next;
  }
  constexpr uint8_t kWordPart = kLetter | kMark;
  constexpr uint8_t kSign = kPunct | kSymbol;
  if ((c.flags & kWordPart) != 0) return s.run(next, kWordPart);
  if (!is_newline(c.code_point) && (c.flags & kSign) == 0 && s.is(next, kWordPart)) {
    return s.run(next, kWordPart);
  }
  if ((c.flags & kSign) != 0) return s.newlines(s.run(next, kSign));
  if (c.code_point == ' ' && s.is(next, kSign)) return s.newlines(s.run(next, kSign));
  return (c.flags & kSpace) != 0 ? white_space(s, pos, true) : pos;
}

// \s+$ where $ is the end of the text or of a line (before LF).
PatternMatch trailing_space(const Scan& s, size_t pos) {
  while (pos < s.size()) {
    const size_t begin = s.run_without(pos, kSpace);
    const size_t end = s.run(begin, kSpace);
    if (end == s.size()) return {begin, end};
    for (size_t k = end; k-- > begin + 1;) {
      if (s.byte(k) == '\n') return {begin, k};
    }
    pos = end;
  }
  return {pos, pos};
}

// First match of [set]+, or of \s?[set]+ with `leading_space`.
template <class In>
PatternMatch find_run(const Scan& s, size_t pos, bool leading_space, const In& in) {
  const auto run = [&](size_t p) {
    while (p < s.size()) {
      const Scan::At c = s.at(p);
      if (!in(c)) break;
      p += c.bytes;
    }
    return p;
  };
  while (pos < s.size()) {
    const Scan::At c = s.at(pos);
    if (leading_space && (c.flags & kSpace) != 0) {
      const size_t end = run(pos + c.bytes);
      if (end > pos + c.bytes) return {pos, end};
    }
    if (in(c)) return {pos, run(pos)};
    pos += c.bytes;
  }
  return {pos, pos};
}

PatternMatch find_numbers(const Scan& s, size_t pos, size_t max_digits) {
  const size_t begin = s.run_without(pos, kNumber);
  return {begin, s.run(begin, kNumber, max_digits)};
}

#define R1_QWEN_LIKE(digits)                                           \
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits \
  "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

std::vector<std::pair<std::string, SplitPattern>> known_patterns() {
  const auto cls = [](std::string_view set) { return fmt::format("[{}]+", set); };
  return {
      {R1_QWEN_LIKE("\\p{N}"), SplitPattern::kQwen2},
      {R1_QWEN_LIKE("\\p{N}{1,3}"), SplitPattern::kLlama3},
      {R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)",
       SplitPattern::kGpt2},
      {R"([\r\n])", SplitPattern::kNewlines},
      {fmt::format("\\s?{}", cls(kCasedLetters)), SplitPattern::kDeepSeekLetters},
      {fmt::format("\\s?{}", cls(kDeepSeekPunctuation)), SplitPattern::kDeepSeekPunct},
      {R"(\s+$)", SplitPattern::kTrailingSpace},
      {cls(kCjkRanges), SplitPattern::kCjk},
      {R"(\s?\p{L}+)", SplitPattern::kSpaceLetters},
      {R"(\s?\p{P}+)", SplitPattern::kSpacePunct},
      {R"(\p{N}+)", SplitPattern::kNumbers},
      {R"(\p{N})", SplitPattern::kNumber},
      {R"(\p{N}{1,3})", SplitPattern::kNumbers3},
      {cls(kV3CjkRanges), SplitPattern::kDeepSeekV3Cjk},
      {R"re([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+)re"
       R"re(| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)re",
       SplitPattern::kDeepSeekV3},
  };
}
#undef R1_QWEN_LIKE

}  // namespace

std::optional<SplitPattern> split_pattern_by_regex(std::string_view regex) {
  std::string escaped;
  for (const char c : regex) {
    if (c == '\r') {
      escaped += "\\r";
    } else if (c == '\n') {
      escaped += "\\n";
    } else {
      escaped += c;
    }
  }
  for (const auto& [known, pattern] : known_patterns()) {
    if (known == escaped) return pattern;
  }
  return std::nullopt;
}

PatternMatch find_match(SplitPattern pattern, std::string_view text, size_t pos) {
  const Scan s(text);
  switch (pattern) {
    case SplitPattern::kQwen2:
      return {pos, qwen_like(s, pos, 1)};
    case SplitPattern::kLlama3:
      return {pos, qwen_like(s, pos, 3)};
    case SplitPattern::kGpt2:
      return {pos, gpt2(s, pos)};
    case SplitPattern::kNewlines: {
      const size_t at = std::min(text.find_first_of("\r\n", pos), text.size());
      return {at, std::min(at + 1, text.size())};
    }
    case SplitPattern::kDeepSeekLetters: {
      const CharSet& set = cased_letters();
      return find_run(s, pos, true, [&](const Scan::At& c) {
        return c.code_point < 0x80 ? (c.flags & kLetter) != 0 : set(c.code_point);
      });
    }
    case SplitPattern::kDeepSeekPunct: {
      const CharSet& set = deepseek_punctuation();
      return find_run(s, pos, true, [&](const Scan::At& c) { return set(c.code_point); });
    }
    case SplitPattern::kTrailingSpace:
      return trailing_space(s, pos);
    case SplitPattern::kCjk: {
      const CharSet& set = cjk();
      return find_run(s, pos, false, [&](const Scan::At& c) {
        return c.code_point >= 0x800 && set(c.code_point);
      });
    }
    case SplitPattern::kSpaceLetters:
      return find_run(s, pos, true, [](const Scan::At& c) { return (c.flags & kLetter) != 0; });
    case SplitPattern::kSpacePunct:
      return find_run(s, pos, true, [](const Scan::At& c) { return (c.flags & kPunct) != 0; });
    case SplitPattern::kNumbers:
      return find_numbers(s, pos, SIZE_MAX);
    case SplitPattern::kNumber:
      return find_numbers(s, pos, 1);
    case SplitPattern::kNumbers3:
      return find_numbers(s, pos, 3);
    case SplitPattern::kDeepSeekV3Cjk: {
      const CharSet& set = v3_cjk();
      return find_run(s, pos, false, [&](const Scan::At& c) {
        return c.code_point >= 0x3040 && set(c.code_point);
      });
    }
    case SplitPattern::kDeepSeekV3:
      for (size_t begin = pos; begin < text.size(); begin += s.at(begin).bytes) {
        const size_t end = deepseek_v3(s, begin);
        if (end > begin) return {begin, end};
      }
      return {text.size(), text.size()};
  }
  return {text.size(), text.size()};
}

}  // namespace r1::text
