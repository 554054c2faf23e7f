// A strict pull reader of JSON text for files that nobody vouches for. It accepts what RFC 8259
// allows and nothing more (no byte order mark, comments, trailing commas, NaN, lone surrogates or
// NUL), bounds depth, keeps integers exact, and says at which byte it stopped. Repeated members are
// for the caller to refuse, on the decoded names.
//
// nlohmann::json parses what we write ourselves elsewhere; it is not used here because it keeps the
// last of two equal members, skips a byte order mark, and turns large integers into doubles.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "runtime/core/error.h"

namespace r1::checkpoint {

/// Is the text valid UTF-8 (no overlong forms, no surrogates, at most U+10FFFF)? Returns the offset
/// of the first byte that is not, or npos.
[[nodiscard]] size_t invalid_utf8_at(std::string_view text);

/// The text as a JSON string with quotes.
[[nodiscard]] std::string json_string(std::string_view text);

class JsonScanner {
 public:
  /// Nested objects and arrays: as serde_json, which the reference reader of safetensors uses.
  static constexpr int kMaxDepth = 127;

  /// `source` begins every error. Throws DataError at once when the text is not valid UTF-8.
  JsonScanner(std::string_view text, std::string_view source);

  /// Enters an object; then next_member() until it returns false.
  void begin_object();
  [[nodiscard]] bool next_member(std::string& key);
  /// Enters an array; then next_element() until it returns false.
  void begin_array();
  [[nodiscard]] bool next_element();

  [[nodiscard]] std::string string(size_t max_bytes);
  /// A non-negative integer without sign, fraction or exponent.
  [[nodiscard]] uint64_t unsigned_integer(uint64_t max);
  [[nodiscard]] int64_t integer();  ///< may be negative; "-0" is refused
  [[nodiscard]] double real();      ///< any finite number
  /// Any value, checked and thrown away.
  void skip_value();
  /// Nothing but white space may be left.
  void end();

  /// First byte of the next token; '\0' at the end.
  [[nodiscard]] char peek();
  [[nodiscard]] size_t offset() const { return at_; }
  /// Throws DataError "<source>: byte <offset>: <text>".
  template <class... Args>
  [[noreturn]] void fail(fmt::format_string<Args...> text, Args&&... args) const {
    fail_at(at_, fmt::format(text, std::forward<Args>(args)...));
  }

 private:
  [[noreturn]] void fail_at(size_t offset, const std::string& text) const;
  [[noreturn]] void fail_expected(std::string_view what) const;
  void skip_space();
  void expect(char c, std::string_view what);
  void enter(char open, std::string_view what);
  /// Reads a string token; stores its decoded text when `out` is not null.
  void scan_string(std::string* out, size_t max_bytes);
  unsigned hex4();
  /// Checks the number's grammar and returns its text.
  std::string_view scan_number();

  std::string_view text_, source_;
  size_t at_ = 0;
  int depth_ = 0;
  bool first_ = true;  // no member or element of the innermost container read yet
};

}  // namespace r1::checkpoint
