#include "runtime/train/final_answer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <numeric>

#include "runtime/core/error.h"
#include "runtime/core/text.h"

namespace r1::train {

namespace {

/// Content of the braces that open at text[open]; nothing when they never close.
std::optional<std::string_view> braces(std::string_view text, size_t open) {
  int depth = 0;
  for (size_t i = open; i < text.size(); ++i) {
    if (text[i] == '\\') {
      ++i;  // an escaped brace is text
    } else if (text[i] == '{') {
      ++depth;
    } else if (text[i] == '}' && --depth == 0) {
      return text.substr(open + 1, i - open - 1);
    }
  }
  return {};
}

void erase_all(std::string& s, std::string_view what) {
  for (size_t at = 0; (at = s.find(what, at)) != std::string::npos;) s.erase(at, what.size());
}

/// Drops commands whose braces hold words: \text{ dollars}.
void erase_words(std::string& s) {
  for (const std::string_view command : {"\\text{", "\\mathrm{", "\\textbf{", "\\mbox{"})
    for (size_t at = 0; (at = s.find(command, at)) != std::string::npos;) {
      const auto inside = braces(s, at + command.size() - 1);
      if (!inside) return;
      s.erase(at, command.size() + inside->size() + 1);
    }
}

struct Fraction {
  int64_t numerator = 0, denominator = 1;
};

/// A decimal number of up to 15 digits.
std::optional<Fraction> decimal(std::string_view s) {
  Fraction f;
  bool negative = false, point = false;
  int digits = 0;
  if (!s.empty() && (s[0] == '-' || s[0] == '+')) negative = s[0] == '-', s.remove_prefix(1);
  for (const char c : s) {
    if (c == '.' && !point) {
      point = true;
      continue;
    }
    if (std::isdigit(static_cast<unsigned char>(c)) == 0 || ++digits > 15) return {};
    f.numerator = f.numerator * 10 + (c - '0');
    if (point) f.denominator *= 10;
  }
  if (digits == 0) return {};
  if (negative) f.numerator = -f.numerator;
  return f;
}

std::optional<Fraction> quotient(std::string_view a, std::string_view b) {
  const auto x = decimal(a), y = decimal(b);
  if (!x || !y || y->numerator == 0) return {};
  const __int128 n = static_cast<__int128>(x->numerator) * y->denominator,
                 d = static_cast<__int128>(x->denominator) * y->numerator;
  constexpr __int128 kMost = INT64_MAX;
  if (n > kMost || n < -kMost || d > kMost || d < -kMost) return {};
  Fraction f{static_cast<int64_t>(n), static_cast<int64_t>(d)};
  if (f.denominator < 0) f = {-f.numerator, -f.denominator};
  return f;
}

std::optional<Fraction> number(std::string_view s) {
  bool negative = false;
  std::string_view rest = s;
  if (rest.starts_with("-\\")) negative = true, rest.remove_prefix(1);
  for (const std::string_view command : {"\\frac{", "\\dfrac{", "\\tfrac{"}) {
    if (!rest.starts_with(command)) continue;
    const auto top = braces(rest, command.size() - 1);
    if (!top) return {};
    const size_t open = command.size() + top->size() + 1;
    const auto bottom = open < rest.size() && rest[open] == '{' ? braces(rest, open) : std::nullopt;
    if (!bottom || open + bottom->size() + 2 != rest.size()) return {};
    auto f = quotient(*top, *bottom);
    if (f && negative) f->numerator = -f->numerator;
    return f;
  }
  if (const size_t slash = s.find('/'); slash != std::string_view::npos)
    return quotient(s.substr(0, slash), s.substr(slash + 1));
  return decimal(s);
}

}  // namespace

std::optional<std::string> final_answer(std::string_view text) {
  constexpr std::string_view kBoxed = "\\boxed{", kMark = "####";
  // A box that never closes (the answer was cut off) is none; an earlier one then counts.
  for (size_t at = text.rfind(kBoxed); at != std::string_view::npos;
       at = at == 0 ? std::string_view::npos : text.rfind(kBoxed, at - 1))
    if (const auto inside = braces(text, at + kBoxed.size() - 1)) return std::string(trimmed(*inside));
  const size_t mark = text.rfind(kMark);
  if (mark == std::string_view::npos) return {};
  std::string_view line = text.substr(mark + kMark.size());
  line = trimmed(line.substr(0, line.find('\n')));
  if (line.empty()) return {};
  return std::string(line);
}

std::string canonical_answer(std::string_view answer) {
  std::string s(trimmed(answer));
  erase_words(s);
  for (const std::string_view drop :
       {"\\left", "\\right", "\\!", "\\,", "\\ ", "\\$", "$", "\\%", "%", " ", "\t", "\n", "\r"})
    erase_all(s, drop);
  if (s.ends_with('.')) s.pop_back();
  // Thousands: 1,234,567 but not (1,2).
  std::string plain = s;
  if (plain.find_first_not_of("0123456789,.+-") == std::string::npos) erase_all(plain, ",");
  const auto f = number(plain);
  if (!f) return s;
  const int64_t divisor = std::max<int64_t>(1, std::gcd(f->numerator, f->denominator));
  const int64_t n = f->numerator / divisor, d = f->denominator / divisor;
  return d == 1 ? std::to_string(n) : fmt::format("{}/{}", n, d);
}

double pass_at_k(int64_t n, int64_t c, int64_t k) {
  R1_CHECK(0 <= c && c <= n && 1 <= k && k <= n, "pass@{} of {} answers, {} right", k, n, c);
  if (n - c < k) return 1;
  double none = 1;
  for (int64_t i = n - c + 1; i <= n; ++i) none *= 1.0 - static_cast<double>(k) / static_cast<double>(i);
  return 1 - none;
}

}  // namespace r1::train
