#include "runtime/checkpoint/json_scanner.h"

#include <charconv>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "runtime/checkpoint/checked.h"
#include "runtime/checkpoint/io.h"

namespace r1::checkpoint {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }

void append_utf8(std::string& out, uint32_t c) {
  const auto put = [&](uint32_t b) { out += static_cast<char>(b); };
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xc0 | (c >> 6));
    put(0x80 | (c & 0x3f));
  } else if (c < 0x10000) {
    put(0xe0 | (c >> 12));
    put(0x80 | ((c >> 6) & 0x3f));
    put(0x80 | (c & 0x3f));
  } else {
    put(0xf0 | (c >> 18));
    put(0x80 | ((c >> 12) & 0x3f));
    put(0x80 | ((c >> 6) & 0x3f));
    put(0x80 | (c & 0x3f));
  }
}

}  // namespace

size_t invalid_utf8_at(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const auto tail = [&](size_t i) { return i < text.size() && (byte(i) & 0xc0u) == 0x80u; };
  size_t i = 0;
  while (i < text.size()) {
    uint64_t word = 0;
    if (i + 8 <= text.size()) {  // eight ASCII bytes at once
      std::memcpy(&word, text.data() + i, 8);
      if ((word & 0x8080808080808080ull) == 0) {
        i += 8;
        continue;
      }
    }
    const unsigned char c = byte(i);
    if (c < 0x80) {
      i += 1;
    } else if (c >= 0xc2 && c <= 0xdf && tail(i + 1)) {
      i += 2;
    } else if (c >= 0xe0 && c <= 0xef && tail(i + 1) && tail(i + 2) &&
               (c != 0xe0 || byte(i + 1) >= 0xa0) && (c != 0xed || byte(i + 1) < 0xa0)) {
      i += 3;
    } else if (c >= 0xf0 && c <= 0xf4 && tail(i + 1) && tail(i + 2) && tail(i + 3) &&
               (c != 0xf0 || byte(i + 1) >= 0x90) && (c != 0xf4 || byte(i + 1) < 0x90)) {
      i += 4;
    } else {
      return i;
    }
  }
  return std::string_view::npos;
}

std::string json_string(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\t') {
      out += "\\t";
    } else if (static_cast<unsigned char>(c) < 0x20) {
      out += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
    } else {
      out += c;
    }
  }
  return out + '"';
}

JsonScanner::JsonScanner(std::string_view text, std::string_view source)
    : text_(text), source_(source) {
  if (const size_t bad = invalid_utf8_at(text); bad != std::string_view::npos) {
    fail_at(bad, fmt::format("not valid UTF-8 (0x{:02x})", static_cast<unsigned char>(text[bad])));
  }
}

void JsonScanner::fail_at(size_t offset, const std::string& text) const {
  throw DataError("{}: byte {}: {}", source_, offset, text);
}

void JsonScanner::fail_expected(std::string_view what) const {
  if (at_ >= text_.size()) fail("expected {}, found the end of the text", what);
  fail("expected {}, found {}", what, shown(text_.substr(at_, 1)));
}

void JsonScanner::skip_space() {
  while (at_ < text_.size() &&
         (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\r' || text_[at_] == '\t'))
    ++at_;
}

char JsonScanner::peek() {
  skip_space();
  return at_ < text_.size() ? text_[at_] : '\0';
}

void JsonScanner::expect(char c, std::string_view what) {
  if (peek() != c || at_ >= text_.size()) fail_expected(what);
  ++at_;
}

void JsonScanner::enter(char open, std::string_view what) {
  if (peek() != open) fail_expected(what);
  if (++depth_ > kMaxDepth) fail("nested deeper than {}", kMaxDepth);
  ++at_;
  first_ = true;
}

void JsonScanner::begin_object() { enter('{', "an object"); }
void JsonScanner::begin_array() { enter('[', "an array"); }

bool JsonScanner::next_member(std::string& key) {
  if (peek() == '}') {
    ++at_;
    --depth_;
    first_ = false;
    return false;
  }
  if (!first_) expect(',', "\",\" or \"}\"");
  if (peek() != '"') fail_expected("a member name");
  key.clear();
  scan_string(&key, SIZE_MAX);
  expect(':', "\":\"");
  first_ = false;
  return true;
}

bool JsonScanner::next_element() {
  if (peek() == ']') {
    ++at_;
    --depth_;
    first_ = false;
    return false;
  }
  if (!first_) {
    expect(',', "\",\" or \"]\"");
    if (peek() == ']') fail_expected("a value");
  }
  first_ = false;
  return true;
}

unsigned JsonScanner::hex4() {
  unsigned v = 0;
  for (int i = 0; i < 4; ++i, ++at_) {
    const char c = at_ < text_.size() ? text_[at_] : '\0';
    if (is_digit(c))
      v = v * 16 + static_cast<unsigned>(c - '0');
    else if (c >= 'a' && c <= 'f')
      v = v * 16 + static_cast<unsigned>(c - 'a' + 10);
    else if (c >= 'A' && c <= 'F')
      v = v * 16 + static_cast<unsigned>(c - 'A' + 10);
    else
      fail_expected("four hex digits after \\u");
  }
  return v;
}

void JsonScanner::scan_string(std::string* out, size_t max_bytes) {
  const size_t begin = at_;
  ++at_;  // the quote
  for (;;) {
    const size_t from = at_;
    while (at_ < text_.size() && text_[at_] != '"' && text_[at_] != '\\' &&
           static_cast<unsigned char>(text_[at_]) >= 0x20)
      ++at_;
    if (out != nullptr) {
      out->append(text_.data() + from, at_ - from);
      if (out->size() > max_bytes)
        fail_at(begin, fmt::format("a string of more than {} bytes", max_bytes));
    }
    if (at_ >= text_.size()) fail_at(begin, "a string without end");
    const char c = text_[at_];
    if (c == '"') {
      ++at_;
      return;
    }
    if (c != '\\')
      fail("a control character (0x{:02x}) in a string", static_cast<unsigned char>(c));
    ++at_;
    if (at_ >= text_.size()) fail_at(begin, "a string without end");
    const char e = text_[at_++];
    uint32_t code = 0;
    switch (e) {
      case '"':
      case '\\':
      case '/':
        code = static_cast<unsigned char>(e);
        break;
      case 'b':
        code = '\b';
        break;
      case 'f':
        code = '\f';
        break;
      case 'n':
        code = '\n';
        break;
      case 'r':
        code = '\r';
        break;
      case 't':
        code = '\t';
        break;
      case 'u': {
        const size_t escape = at_ - 2;
        code = hex4();
        if (code >= 0xdc00 && code <= 0xdfff) fail_at(escape, "a low surrogate without a high one");
        if (code >= 0xd800 && code <= 0xdbff) {
          if (text_.substr(at_, 2) != "\\u") fail_at(escape, "a high surrogate without a low one");
          at_ += 2;
          const unsigned low = hex4();
          if (low < 0xdc00 || low > 0xdfff) fail_at(escape, "a high surrogate without a low one");
          code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
        }
        break;
      }
      default:
        fail_at(at_ - 2, fmt::format("unknown escape \\{}", shown({&e, 1})));
    }
    if (out != nullptr) append_utf8(*out, code);
  }
}

std::string JsonScanner::string(size_t max_bytes) {
  if (peek() != '"') fail_expected("a string");
  std::string out;
  scan_string(&out, max_bytes);
  if (out.size() > max_bytes) fail("a string of more than {} bytes", max_bytes);
  return out;
}

std::string_view JsonScanner::scan_number() {
  const size_t begin = at_;
  const auto at = [&] { return at_ < text_.size() ? text_[at_] : '\0'; };
  if (at() == '-') ++at_;
  if (!is_digit(at())) fail_expected("a digit");
  if (at() == '0') {
    ++at_;
    if (is_digit(at())) fail_at(begin, "a number with a leading zero");
  } else {
    while (is_digit(at())) ++at_;
  }
  if (at() == '.') {
    ++at_;
    if (!is_digit(at())) fail_expected("a digit");
    while (is_digit(at())) ++at_;
  }
  if (at() == 'e' || at() == 'E') {
    ++at_;
    if (at() == '+' || at() == '-') ++at_;
    if (!is_digit(at())) fail_expected("a digit");
    while (is_digit(at())) ++at_;
  }
  return text_.substr(begin, at_ - begin);
}

uint64_t JsonScanner::unsigned_integer(uint64_t max) {
  const char c = peek();
  if (c == '-') fail("expected a non-negative integer, found a minus sign");
  if (!is_digit(c)) fail_expected("a non-negative integer");
  const size_t begin = at_;
  const std::string_view token = scan_number();
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(token.data(), token.data() + token.size(), value);
  if (end != token.data() + token.size() && error == std::errc())
    fail_at(begin, fmt::format("expected an integer without fraction or exponent, found {}",
                               shown(token, 40)));
  if (error != std::errc() || value > max)
    fail_at(begin, fmt::format("{} is larger than {}", shown(token, 40), max));
  return value;
}

int64_t JsonScanner::integer() {
  const char c = peek();
  if (c != '-' && !is_digit(c)) fail_expected("an integer");
  const size_t begin = at_;
  const std::string_view token = scan_number();
  int64_t value = 0;
  const auto [end, error] = std::from_chars(token.data(), token.data() + token.size(), value);
  if (error != std::errc())
    fail_at(begin, fmt::format("{} does not fit in 64 bits", shown(token, 40)));
  if (end != token.data() + token.size() || token == "-0")
    fail_at(begin, fmt::format("expected an integer, found {}", shown(token, 40)));
  return value;
}

double JsonScanner::real() {
  const char c = peek();
  if (c != '-' && !is_digit(c)) fail_expected("a number");
  const size_t begin = at_;
  const std::string_view token = scan_number();
  double value = 0;
  const auto [end, error] = std::from_chars(token.data(), token.data() + token.size(), value);
  if (error != std::errc() || end != token.data() + token.size() || !std::isfinite(value))
    fail_at(begin, fmt::format("{} does not fit in a double", shown(token, 40)));
  return value;
}

void JsonScanner::skip_value() {
  // Recursion is bounded by kMaxDepth.
  const char c = peek();
  const auto literal = [&](std::string_view word) {
    if (text_.substr(at_, word.size()) != word) fail_expected("a value");
    at_ += word.size();
  };
  if (c == '{') {
    begin_object();
    std::string key;
    while (next_member(key)) skip_value();
  } else if (c == '[') {
    begin_array();
    while (next_element()) skip_value();
  } else if (c == '"') {
    scan_string(nullptr, SIZE_MAX);
  } else if (c == '-' || is_digit(c)) {
    const size_t begin = at_;
    const std::string token(scan_number());
    if (!std::isfinite(std::strtod(token.c_str(), nullptr)))
      fail_at(begin, fmt::format("{} does not fit in a double", shown(token, 40)));
  } else if (c == 't') {
    literal("true");
  } else if (c == 'f') {
    literal("false");
  } else if (c == 'n') {
    literal("null");
  } else {
    fail_expected("a value");
  }
}

void JsonScanner::end() {
  skip_space();
  if (at_ < text_.size())
    fail("unexpected {} after the end of the text", shown(text_.substr(at_, 1)));
}

}  // namespace r1::checkpoint
