// Words, numbers and lines of hostfiles and their kin.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace r1::launch::hostfile {

inline constexpr int kMostSlots = 65536;
inline constexpr size_t kMaxHosts = 1'000'000;

[[nodiscard]] inline bool is_blank(char c) { return c == ' ' || c == '\t'; }
[[nodiscard]] inline bool is_digit(char c) { return c >= '0' && c <= '9'; }
[[nodiscard]] inline bool is_letter(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}
/// Without blanks and tabs at both ends.
[[nodiscard]] std::string_view trim(std::string_view s);

/// Text that goes into a message: short, and bytes that would disturb a terminal as \\xNN.
[[nodiscard]] std::string escaped(std::string_view text);
/// "hosts.txt:7"; the source alone for line 0.
[[nodiscard]] std::string at(const std::string& source, int line);

/// Nothing where the text is more or less than digits.
[[nodiscard]] std::optional<int64_t> whole_number(std::string_view text);
/// Throws UsageError: `where`, `what`, and what is allowed.
[[nodiscard]] int number_in(std::string_view text, int64_t least, int64_t most,
                            const std::string& what, const std::string& where);
/// An IPv4 or IPv6 address.
[[nodiscard]] bool is_address(const std::string& name);
/// Throws UsageError unless the text may name a user.
void check_user(std::string_view user, const std::string& where);

/// One line with its comment cut off, and r1run's annotation if the comment holds one.
struct Line {
  std::string text;
  std::string annotation;
  int number = 0;
};

/// Splits into lines and takes the comments (#, //, /* */) out. A block comment may span lines.
/// Throws UsageError: too large, a comment that is not closed.
[[nodiscard]] std::vector<Line> lines_of(std::string_view text, const std::string& source,
                                         std::vector<std::string>* warnings);
/// The file's text; `what` it is for the message. Throws UsageError.
[[nodiscard]] std::string read_text(const std::string& path, const char* what);

/// Reads "key = value" pairs after a host's name.
class Words {
 public:
  explicit Words(std::string_view text) : text_(text) {}
  /// Next word or "="; empty at the end.
  std::string_view next();
  [[nodiscard]] bool equals_next() const { return trim(text_).starts_with("="); }

 private:
  std::string_view text_;
};

}  // namespace r1::launch::hostfile
