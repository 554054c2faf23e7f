// Sums that do not depend on their order: each fp64 addend is added without rounding to a fixed-point number of 640 bits,
// held as base-2^32 digits in 64-bit words. Words of any number of partial sums may be added as integers, in any order and over
// any ranks; the result is that of the exact sum of the addends. Reference: Kulisch & Miranker, "The Arithmetic of the
// Digital Computer: A New Approach", SIAM Review 28(1), 1986.
//
// Used where a scalar is summed over what a layout spreads (squares of gradients, token losses): pp, dp, micro-batches and
// ZeRO change the order of summation and must not change the result.
#pragma once

#include <bit>
#include <cstdint>

namespace r1::kernels {

/// The lowest bit has the value 2^kExactLowest: squares of fp32 values are multiples of it, as are fp32 values themselves.
inline constexpr int kExactLowest = -298;
inline constexpr int kExactDigits = 20;
/// The digits, then how many addends were NaN and how many infinite.
inline constexpr int kExactWords = kExactDigits + 2;

/// What an addend adds to three neighbouring words; a word that gets 0 may lie beyond the end.
struct ExactAddend {
  int word = 0;
  int64_t amounts[3] = {};
};
/// v: a sum of squares of fp32 values or of fp32 values, below 2^288 in magnitude. Each word takes 2^31 addends.
constexpr ExactAddend exact_addend(double v) {
  const auto bits = std::bit_cast<uint64_t>(v);
  const int exponent = static_cast<int>((bits >> 52) & 0x7ff);
  uint64_t mantissa = bits & ((uint64_t{1} << 52) - 1);
  if (exponent == 0x7ff) return {.word = mantissa != 0 ? kExactDigits : kExactDigits + 1, .amounts = {1, 0, 0}};
  if (exponent == 0) return {};  // 0: anything else this small is no multiple of the lowest bit
  mantissa |= uint64_t{1} << 52;
  int position = exponent - 1075 - kExactLowest;
  if (position < 0) {  // the bits below the lowest are zeros
    mantissa = position > -64 ? mantissa >> -position : 0;
    position = 0;
  }
  const int shift = position % 32;
  const int64_t sign = (bits >> 63) != 0 ? -1 : 1;
  const uint64_t low = mantissa << shift;  // bits 0..63 of the shifted mantissa; the rest lies above
  const uint64_t high = shift == 0 ? 0 : mantissa >> (64 - shift);
  return {.word = position / 32,
          .amounts = {sign * static_cast<int64_t>(low & 0xffffffffu), sign * static_cast<int64_t>(low >> 32),
                      sign * static_cast<int64_t>(high)}};
}
constexpr void exact_add(int64_t* words, double v) {
  const ExactAddend a = exact_addend(v);
  for (int i = 0; i < 3; ++i)
    if (a.amounts[i] != 0) words[a.word + i] += a.amounts[i];
}

/// 2^e for normal results.
constexpr double exact_power(int e) { return std::bit_cast<double>(static_cast<uint64_t>(e + 1023) << 52); }

/// The value of `words`: within a unit in the last place of the exact sum, and a function of that sum alone. NaN and infinite
/// addends give NaN and infinity.
constexpr double exact_value(const int64_t* words) {
  if (words[kExactDigits] != 0) return std::bit_cast<double>(uint64_t{0x7ff8000000000000});
  if (words[kExactDigits + 1] != 0) return std::bit_cast<double>(uint64_t{0x7ff0000000000000});
  uint32_t digits[kExactDigits] = {};
  bool negative = false;
  for (int pass = 0; pass < 2; ++pass) {
    int64_t carry = 0;
    for (int i = 0; i < kExactDigits; ++i) {
      const int64_t v = (negative ? -words[i] : words[i]) + carry;
      digits[i] = static_cast<uint32_t>(v & 0xffffffff);
      carry = v >> 32;  // rounds down: the digit left behind is never negative
    }
    if (carry >= 0) break;
    negative = true;
  }
  double total = 0;
  for (int i = 0; i < kExactDigits; ++i) total += static_cast<double>(digits[i]) * exact_power(32 * i + kExactLowest);
  return negative ? -total : total;
}

}  // namespace r1::kernels
