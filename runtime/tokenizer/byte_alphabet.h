// The byte-level alphabet: a printable character for every byte, as vocabularies spell their
// tokens.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace r1::text {

/// The character of each byte: printable Latin-1 characters stand for themselves, the other bytes
/// for U+0100 and up, in order (GPT-2's bytes_to_unicode).
inline constexpr std::array<uint16_t, 256> kByteChars = [] {
  std::array<uint16_t, 256> chars{};
  uint16_t next = 256;
  for (uint16_t b = 0; b < 256; ++b) {
    const bool itself = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
    chars[b] = itself ? b : next++;
  }
  return chars;
}();

/// Writes the bytes that a spelling stands for. False, with `bytes` cut short, when a character is
/// outside the alphabet.
[[nodiscard]] bool spelled_bytes(std::string_view spelling, std::string& bytes);

}  // namespace r1::text
