#include "runtime/core/human.h"

#include <fmt/format.h>

#include <array>
#include <cmath>

namespace r1 {
namespace {

/// Three significant digits without an exponent: "9.99", "99.9", "999".
std::string three_digits(double v) {
  const double a = std::abs(v);
  if (a < 9.995) return fmt::format("{:.2f}", v);
  if (a < 99.95) return fmt::format("{:.1f}", v);
  return fmt::format("{:.0f}", v);
}

/// Divides by `base` until what three_digits would print is below it.
template <size_t N>
std::string scaled(double v, double base, const std::array<const char*, N>& units) {
  size_t i = 0;
  while (i + 1 < N && std::abs(v) >= base - 0.5) {
    v /= base;
    ++i;
  }
  return fmt::format("{} {}", three_digits(v), units[i]);
}

}  // namespace

std::string human_bytes(double bytes) {
  if (!std::isfinite(bytes)) return "?";
  if (std::abs(bytes) < 1023.5) return fmt::format("{:.0f} B", bytes);
  return scaled(bytes / 1024, 1024, std::array{"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"});
}

std::string human_duration(double seconds) {
  if (!std::isfinite(seconds)) return "?";
  if (seconds < 0) return fmt::format("-{}", human_duration(-seconds));
  if (seconds == 0) return "0 s";
  if (seconds < 59.995) {
    if (seconds >= 0.9995) return three_digits(seconds) + " s";
    if (seconds >= 0.9995e-3) return three_digits(seconds * 1e3) + " ms";
    if (seconds >= 0.9995e-6) return three_digits(seconds * 1e6) + " us";
    return three_digits(seconds * 1e9) + " ns";
  }
  const double whole = std::round(seconds);
  if (whole >= 1e15) return "?";  // beyond any clock; keeps the integers below exact
  const auto s = static_cast<int64_t>(whole);
  if (s < 3600) return fmt::format("{} min {:02} s", s / 60, s % 60);
  const int64_t minutes = (s + 30) / 60;
  if (minutes < 24 * 60) return fmt::format("{} h {:02} min", minutes / 60, minutes % 60);
  const int64_t hours = (s + 1800) / 3600;
  return fmt::format("{} d {:02} h", hours / 24, hours % 24);
}

std::string human_si(double value, std::string_view unit) {
  if (!std::isfinite(value)) return "?";
  const double a = std::abs(value);
  const auto with = [&](const std::string& number, std::string_view prefix) {
    return prefix.empty() && unit.empty() ? number : fmt::format("{} {}{}", number, prefix, unit);
  };
  if (a == 0) return with("0", "");
  if (a >= 999.5) {
    return scaled(value / 1e3, 1e3, std::array{"k", "M", "G", "T", "P", "E"}) + std::string(unit);
  }
  if (a >= 0.0995) {
    if (value == std::floor(value)) return with(fmt::format("{:.0f}", value), "");
    return with(a < 0.9995 ? fmt::format("{:.3f}", value) : three_digits(value), "");
  }
  if (a >= 0.9995e-3) return with(three_digits(value * 1e3), "m");
  if (a >= 0.9995e-6) return with(three_digits(value * 1e6), "u");
  return with(three_digits(value * 1e9), "n");
}

std::string human_count(int64_t value) {
  std::string digits = fmt::format("{}", value);
  const size_t first = value < 0 ? 1 : 0;
  for (size_t at = digits.size(); at > first + 3;) {
    at -= 3;
    digits.insert(at, 1, ',');
  }
  return digits;
}

}  // namespace r1
