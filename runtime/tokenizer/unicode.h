// Code points, their classes and NFC, in time linear in the text.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace r1::text {

/// Bits of a code point's class (Unicode 16).
enum CharClass : uint8_t {
  kLetter = 1,      ///< \p{L}
  kNumber = 2,      ///< \p{N}
  kSpace = 4,       ///< \s: White_Space
  kPunct = 8,       ///< \p{P}
  kSymbol = 16,     ///< \p{S}
  kMark = 32,       ///< \p{M}
  kNfcActive = 64,  ///< NFC may change it or join it to what stands before
  kWord = 128,      ///< \w
};

/// A decoded character. Bytes that are no well-formed UTF-8 come one at a time, with code point
/// kInvalidChar, no class.
struct Char {
  uint32_t code_point;
  uint32_t bytes;
};
inline constexpr uint32_t kInvalidChar = 0xFFFFFFFF;

/// Class bits of every code point.
class CharTable {
 public:
  /// Built on first use from the table of runs; immutable after.
  static const CharTable& get();
  [[nodiscard]] uint8_t operator[](uint32_t code_point) const {
    return code_point < kCount ? flags_[code_point] : uint8_t{0};
  }

 private:
  static constexpr uint32_t kCount = 0x110000;
  CharTable();
  std::array<uint8_t, kCount> flags_;
};

/// The character at `p` (p < end).
[[nodiscard]] inline Char decode_char(const char* p, const char* end) {
  const auto byte = [p](int i) { return static_cast<uint32_t>(static_cast<unsigned char>(p[i])); };
  const uint32_t b0 = byte(0);
  if (b0 < 0x80) return {b0, 1};
  const auto left = end - p;
  const auto is_tail = [](uint32_t b) { return (b & 0xC0) == 0x80; };
  if (b0 >= 0xC2 && b0 <= 0xDF && left >= 2 && is_tail(byte(1))) {
    return {(b0 & 0x1F) << 6 | (byte(1) & 0x3F), 2};
  }
  if ((b0 & 0xF0) == 0xE0 && left >= 3 && is_tail(byte(1)) && is_tail(byte(2))) {
    const uint32_t c = (b0 & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F);
    if (c >= 0x800 && (c < 0xD800 || c > 0xDFFF)) return {c, 3};
  }
  if (b0 >= 0xF0 && b0 <= 0xF4 && left >= 4 && is_tail(byte(1)) && is_tail(byte(2)) &&
      is_tail(byte(3))) {
    const uint32_t c =
        (b0 & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 | (byte(3) & 0x3F);
    if (c >= 0x10000 && c < 0x110000) return {c, 4};
  }
  return {kInvalidChar, 1};
}

/// Length of the longest prefix of `bytes` that could still begin a character (0 when none could):
/// the "maximal subpart" of Unicode 15, section 3.9. `complete` says whether it is a whole
/// character.
[[nodiscard]] size_t maximal_subpart(std::string_view bytes, bool& complete);

/// Appends `code_point` (a scalar value) as UTF-8.
void append_utf8(std::string& out, uint32_t code_point);

/// NFC of `text`; returns `text` itself when it already is, else a view of `buffer`. Ill-formed
/// bytes stay as they are.
[[nodiscard]] std::string_view normalize_nfc(std::string_view text, std::string& buffer);

}  // namespace r1::text
