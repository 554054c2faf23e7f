#include "launch/hostfile_text.h"

#include <arpa/inet.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <fstream>

#include "runtime/core/error.h"

namespace r1::launch::hostfile {
namespace {

constexpr size_t kMaxFileBytes = 64u << 20;
constexpr size_t kMaxLine = 8192;

}  // namespace

std::string_view trim(std::string_view s) {
  while (!s.empty() && is_blank(s.front())) s.remove_prefix(1);
  while (!s.empty() && is_blank(s.back())) s.remove_suffix(1);
  return s;
}

std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text.substr(0, 60))
    out += static_cast<unsigned char>(c) < 0x20 || static_cast<unsigned char>(c) >= 0x7f
               ? fmt::format("\\x{:02x}", static_cast<unsigned char>(c))
               : std::string(1, c);
  return text.size() > 60 ? out + "…" : out;
}

std::string at(const std::string& source, int line) {
  return line > 0 ? fmt::format("{}:{}", source, line) : source;
}

std::optional<int64_t> whole_number(std::string_view text) {
  int64_t v = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), v);
  if (text.empty() || !is_digit(text.front()) || error != std::errc() ||
      end != text.data() + text.size())
    return std::nullopt;
  return v;
}

int number_in(std::string_view text, int64_t least, int64_t most, const std::string& what,
              const std::string& where) {
  const auto v = whole_number(text);
  if (!v || *v < least || *v > most)
    throw UsageError("{}: {} is \"{}\"; allowed: a whole number from {} to {}", where, what,
                     escaped(text), least, most);
  return static_cast<int>(*v);
}

bool is_address(const std::string& name) {
  std::array<unsigned char, 16> bytes;
  return inet_pton(AF_INET, name.c_str(), bytes.data()) == 1 ||
         inet_pton(AF_INET6, name.c_str(), bytes.data()) == 1;
}

void check_user(std::string_view user, const std::string& where) {
  const bool first = !user.empty() && (is_letter(user[0]) || user[0] == '_' || is_digit(user[0]));
  const bool rest = std::all_of(user.begin(), user.end(), [](char c) {
    return is_letter(c) || is_digit(c) || c == '_' || c == '-' || c == '.';
  });
  if (!first || !rest || user.size() > 64)
    throw UsageError("{}: user name \"{}\"; allowed: letters, digits, _ - . , at most 64 of them",
                     where, escaped(user));
}

namespace {

/// Takes comments out, line by line.
class CommentCutter {
 public:
  Line cut(std::string_view raw, int number);
  [[nodiscard]] bool in_block() const { return in_block_; }

 private:
  bool in_block_ = false;
};

Line CommentCutter::cut(std::string_view raw, int number) {
  Line line;
  line.number = number;
  for (size_t i = 0; i < raw.size(); ++i) {
    if (in_block_) {
      if (raw.substr(i).starts_with("*/")) {
        in_block_ = false;
        ++i;
        line.text += ' ';
      }
    } else if (raw.substr(i).starts_with("/*")) {
      in_block_ = true;
      ++i;
    } else if (raw[i] == '#' || raw.substr(i).starts_with("//")) {
      std::string_view comment = trim(raw.substr(i + (raw[i] == '#' ? 1 : 2)));
      if (comment.starts_with("r1run:")) line.annotation = std::string(trim(comment.substr(6)));
      break;
    } else {
      line.text += raw[i];
    }
  }
  return line;
}

}  // namespace

std::vector<Line> lines_of(std::string_view text, const std::string& source,
                           std::vector<std::string>* warnings) {
  if (text.size() > kMaxFileBytes)
    throw UsageError("{}: {} bytes: not a hostfile (at most {} are read)", source, text.size(),
                     kMaxFileBytes);
  std::vector<Line> lines;
  CommentCutter comments;
  bool crlf = false;
  size_t from = 0;
  if (text.starts_with("\xef\xbb\xbf")) {
    warnings->push_back(source + ": starts with a byte order mark, which mpirun refuses; ignored");
    from = 3;
  }
  const bool ends_open = !text.empty() && text.back() != '\n';
  while (from < text.size()) {
    const size_t nl = std::min(text.find('\n', from), text.size());
    std::string_view raw = text.substr(from, nl - from);
    from = nl + 1;
    const int number = static_cast<int>(lines.size()) + 1;
    if (!raw.empty() && raw.back() == '\r') {
      crlf = true;
      raw.remove_suffix(1);
    }
    if (raw.size() > kMaxLine)
      throw UsageError("{}: line of {} characters, starting with \"{}\"; allowed: at most {}",
                       at(source, number), raw.size(), escaped(raw), kMaxLine);
    lines.push_back(comments.cut(raw, number));
  }
  if (comments.in_block()) throw UsageError("{}: a /* comment is not closed", source);
  if (crlf)
    warnings->push_back(
        source +
        ": has Windows line ends (CRLF), which mpirun refuses; r1run hands it a clean copy");
  if (ends_open)
    warnings->push_back(source + ": the last line has no newline; r1run hands mpirun a clean copy");
  return lines;
}

std::string read_text(const std::string& path, const char* what) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw UsageError("{} {}: {}", what, path, std::strerror(errno));
  std::string text;
  std::array<char, 65536> buffer;
  while (in.read(buffer.data(), buffer.size()) || in.gcount() > 0) {
    text.append(buffer.data(), static_cast<size_t>(in.gcount()));
    if (text.size() > kMaxFileBytes) break;  // lines_of says so
  }
  if (in.bad() || (text.empty() && !in.eof()))
    throw UsageError("{} {}: cannot be read{}", what, path,
                     errno != 0 ? fmt::format(": {}", std::strerror(errno)) : "");
  return text;
}

std::string_view Words::next() {
  text_ = trim(text_);
  if (text_.empty()) return {};
  size_t n = 1;
  if (text_[0] != '=')
    while (n < text_.size() && !is_blank(text_[n]) && text_[n] != '=') ++n;
  const std::string_view word = text_.substr(0, n);
  text_.remove_prefix(n);
  return word;
}

}  // namespace r1::launch::hostfile
