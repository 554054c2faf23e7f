// Keyed permutations of 0..n-1, evaluated one index at a time with no table: the data order is a
// function of (seed, purpose, epoch, index), so the data position is one integer.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <string_view>
#include <utility>

#include "runtime/core/rng.h"

namespace r1::data {

class Permutation {
 public:
  /// Of 0..n-1, n >= 1, keyed by (seed, purpose, a, b); a and b are e.g. an epoch and a class.
  Permutation(uint64_t seed, std::string_view purpose, uint64_t a, uint64_t b, uint64_t n)
      : rng_(Rng(Rng(seed, purpose).bits(a), "permutation").bits(b), "permutation:rounds"), n_(n) {
    // Feistel halves; at least 3 bits each, so that 4^half_bits >= n and the rounds have something
    // to mix.
    while (half_bits_ < 32 && (uint64_t{1} << (2 * half_bits_)) < n) ++half_bits_;
  }

  [[nodiscard]] uint64_t operator()(uint64_t index) const {
    return n_ <= kSmall ? small(index) : feistel(index);
  }

 private:
  static constexpr uint64_t kSmall = 32;
  static constexpr uint64_t kRounds = 6;

  /// Fisher-Yates on the spot: Feistel networks on a handful of bits reach only some of the
  /// permutations.
  [[nodiscard]] uint64_t small(uint64_t index) const {
    std::array<uint8_t, kSmall> v{};
    for (uint64_t i = 0; i < n_; ++i) v[i] = static_cast<uint8_t>(i);
    for (uint64_t i = n_ - 1; i >= 1 && n_ > 1; --i) std::swap(v[i], v[rng_.below(i, i + 1)]);
    return v[index];
  }
  /// Balanced Feistel network, walked until the value falls below n again (at most 4 steps on
  /// average).
  [[nodiscard]] uint64_t feistel(uint64_t index) const {
    const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
    do {
      uint64_t left = index >> half_bits_, right = index & mask;
      for (uint64_t round = 0; round < kRounds; ++round) {
        const uint64_t next = left ^ (rng_.bits((round << 48) ^ right) & mask);
        left = right;
        right = next;
      }
      index = left << half_bits_ | right;
    } while (index >= n_);
    return index;
  }

  Rng rng_;
  uint64_t n_;
  unsigned half_bits_ = 3;
};

}  // namespace r1::data
