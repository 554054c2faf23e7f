#include "runtime/tokenizer/python_json.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "runtime/core/error.h"
#include "runtime/tokenizer/tokenizer_file.h"

namespace r1::text {
namespace {

constexpr size_t kMaxDepth = 256;

// repr(float): the shortest digits that read back, as a plain number from 1e-4 up to 1e16.
std::string python_float(double v) {
  char buffer[64];
  const auto end =
      std::to_chars(buffer, buffer + sizeof buffer, v, std::chars_format::scientific).ptr;
  const std::string text(buffer, end);
  const size_t e = text.find('e');
  const int exponent = std::stoi(text.substr(e + 1));
  const std::string_view sign = std::signbit(v) ? "-" : "";
  std::string digits;
  for (const char c : text.substr(0, e)) {
    if (c >= '0' && c <= '9') digits += c;
  }
  if (exponent < -4 || exponent >= 16) {
    const std::string fraction =
        digits.size() > 1 ? fmt::format(".{}", digits.substr(1)) : std::string();
    return fmt::format("{}{}{}e{}{:02}", sign, digits[0], fraction, exponent < 0 ? '-' : '+',
                       std::abs(exponent));
  }
  if (exponent < 0)
    return fmt::format("{}0.{}{}", sign, std::string(static_cast<size_t>(-exponent - 1), '0'),
                       digits);
  const auto whole = static_cast<size_t>(exponent) + 1;
  if (digits.size() <= whole)
    return fmt::format("{}{}{}.0", sign, digits, std::string(whole - digits.size(), '0'));
  return fmt::format("{}{}.{}", sign, digits.substr(0, whole), digits.substr(whole));
}

void append_string(std::string& out, std::string_view text) {
  out += '"';
  for (const char c : text) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      case '\b':
        out += "\\b";
        break;
      case '\f':
        out += "\\f";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          out += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
        } else {
          out += c;
        }
    }
  }
  out += '"';
}

using Json = nlohmann::json;

// Writes while it parses; with `member`, only the value of that member of the outermost object.
class Writer : public nlohmann::json_sax<Json> {
 public:
  Writer(std::string_view where, int indent, std::string_view member)
      : where_(where), indent_(indent), member_(member), writing_(member.empty()) {}
  std::string out;

  bool null() override { return scalar("null"); }
  bool boolean(bool v) override { return scalar(v ? "true" : "false"); }
  bool number_integer(number_integer_t v) override { return scalar(std::to_string(v)); }
  bool number_unsigned(number_unsigned_t v) override { return scalar(std::to_string(v)); }
  bool number_float(number_float_t v, const string_t& text) override {
    // Integers too large for 64 bits come here; Python keeps all their digits.
    return scalar(text.find_first_of(".eE") == std::string::npos ? text : python_float(v));
  }
  bool string(string_t& v) override {
    before_value();
    if (writing_) append_string(out, v);
    after_value();
    return true;
  }
  bool binary(binary_t&) override { return false; }
  bool key(string_t& v) override {
    if (depth_ == 1 && !member_.empty()) {
      writing_ = v == member_;
      if (writing_) out.clear();  // as in Python, the last of equal names counts
      after_key_ = true;
      return true;
    }
    if (writing_) {
      separate();
      append_string(out, v);
      out += ": ";
    }
    after_key_ = true;
    return true;
  }
  bool start_object(size_t) override { return open('{'); }
  bool end_object() override { return close('}'); }
  bool start_array(size_t) override { return open('['); }
  bool end_array() override { return close(']'); }
  bool parse_error(size_t position, const std::string&,
                   const nlohmann::detail::exception& error) override {
    throw DataError("{}: byte {}: not valid JSON: {}", where_, position,
                    printable(error.what(), 300));
  }

 private:
  void newline() {
    out += '\n';
    out.append(static_cast<size_t>(indent_) * items_.size(), ' ');
  }
  // Before an item of the innermost container.
  void separate() {
    if (items_.empty()) return;
    if (items_.back()) out += indent_ < 0 ? ", " : ",";
    items_.back() = true;
    if (indent_ >= 0) newline();
  }
  void before_value() {
    if (writing_ && !after_key_) separate();
    after_key_ = false;
  }
  void after_value() {
    if (depth_ == 1 && !member_.empty()) writing_ = false;
  }
  bool scalar(std::string_view text) {
    before_value();
    if (writing_) out += text;
    after_value();
    return true;
  }
  bool open(char bracket) {
    if (depth_ == kMaxDepth)
      throw DataError("{}: JSON nested deeper than {} levels", where_, kMaxDepth);
    before_value();
    ++depth_;
    if (writing_) {
      out += bracket;
      items_.push_back(false);
    }
    return true;
  }
  bool close(char bracket) {
    --depth_;
    if (writing_) {
      const bool any = items_.back();
      items_.pop_back();
      if (any && indent_ >= 0) newline();
      out += bracket;
    }
    after_value();
    return true;
  }

  std::string_view where_;
  int indent_;
  std::string_view member_;
  bool writing_;
  bool after_key_ = false;
  size_t depth_ = 0;
  std::vector<bool> items_;  // a container that is being written: whether it has an item yet
};

}  // namespace

std::string python_json(std::string_view json, std::string_view where, int indent) {
  Writer writer(where, indent, {});
  Json::sax_parse(json.begin(), json.end(), &writer);
  return std::move(writer.out);
}

std::string python_json_string(std::string_view text) {
  std::string out;
  append_string(out, text);
  return out;
}

std::string python_json_member(std::string_view json, std::string_view name,
                               std::string_view where) {
  Writer writer(where, -1, name);
  Json::sax_parse(json.begin(), json.end(), &writer);
  return std::move(writer.out);
}

}  // namespace r1::text
