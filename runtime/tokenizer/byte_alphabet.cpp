#include "runtime/tokenizer/byte_alphabet.h"

#include "runtime/tokenizer/unicode.h"

namespace r1::text {
namespace {

constexpr uint16_t kNoByte = 0xFFFF;  // of a character outside the alphabet
constexpr size_t kAlphabetEnd = 256 + 68;

constexpr std::array<uint16_t, kAlphabetEnd> make_char_bytes() {
  std::array<uint16_t, kAlphabetEnd> bytes{};
  for (auto& b : bytes) b = kNoByte;
  for (uint16_t b = 0; b < 256; ++b) bytes[kByteChars[b]] = b;
  return bytes;
}
constexpr auto kCharBytes = make_char_bytes();

}  // namespace

bool spelled_bytes(std::string_view spelling, std::string& bytes) {
  bytes.clear();
  const char* const end = spelling.data() + spelling.size();
  for (const char* p = spelling.data(); p < end;) {
    const Char c = decode_char(p, end);
    if (c.code_point >= kAlphabetEnd || kCharBytes[c.code_point] == kNoByte) return false;
    bytes.push_back(static_cast<char>(kCharBytes[c.code_point]));
    p += c.bytes;
  }
  return true;
}

}  // namespace r1::text
