// Checked arithmetic on sizes. Every size that a file declares goes through these: no raw + or * on
// such numbers elsewhere in this folder.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "runtime/core/error.h"

namespace r1::checkpoint {

/// a + b, or nothing when it does not fit in 64 bits.
[[nodiscard]] constexpr std::optional<uint64_t> checked_add(uint64_t a, uint64_t b) {
  uint64_t r = 0;
  if (__builtin_add_overflow(a, b, &r)) return std::nullopt;
  return r;
}
/// a * b, or nothing when it does not fit in 64 bits.
[[nodiscard]] constexpr std::optional<uint64_t> checked_mul(uint64_t a, uint64_t b) {
  uint64_t r = 0;
  if (__builtin_mul_overflow(a, b, &r)) return std::nullopt;
  return r;
}
/// Product of the dims in order, or nothing on overflow or a negative dim. The order matters: [0,
/// 2^63, 4] is 0 all along, [2^63, 4, 0] overflows before the zero (as in the reference reader).
[[nodiscard]] constexpr std::optional<uint64_t> checked_product(std::span<const int64_t> dims) {
  uint64_t n = 1;
  for (const int64_t d : dims) {
    if (d < 0) return std::nullopt;
    const auto next = checked_mul(n, static_cast<uint64_t>(d));
    if (!next) return std::nullopt;
    n = *next;
  }
  return n;
}
/// The value, or an InternalError naming `what`: for sizes that an earlier check has already
/// bounded.
template <class T>
[[nodiscard]] constexpr T must_fit(std::optional<T> value, std::string_view what) {
  R1_CHECK(value.has_value(), "{} does not fit in 64 bits", what);
  return *value;
}

}  // namespace r1::checkpoint
