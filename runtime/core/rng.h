// Counter-based random numbers (Philox 4x32-10, Salmon et al., SC'11): no state, so a value depends on its key and
// counter only, never on a rank or on how many numbers were drawn before.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <string_view>

namespace r1 {

/// Philox 4x32-10: four 32-bit words from a 128-bit counter and a 64-bit key.
[[nodiscard]] constexpr std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> ctr, uint64_t key) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * ctr[0], p1 = uint64_t{0xCD9E8D57u} * ctr[2];
    ctr = {static_cast<uint32_t>(p1 >> 32) ^ ctr[1] ^ k0, static_cast<uint32_t>(p1),
           static_cast<uint32_t>(p0 >> 32) ^ ctr[3] ^ k1, static_cast<uint32_t>(p0)};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return ctr;
}

/// FNV-1a, for turning a purpose's name ("init:model.embed_tokens.weight") into part of a key.
[[nodiscard]] constexpr uint64_t hash_name(std::string_view name) {
  uint64_t h = 0xcbf29ce484222325ull;
  for (char c : name) h = (h ^ static_cast<uint8_t>(c)) * 0x100000001b3ull;
  return h;
}

/// Random numbers for one purpose: value i depends on (seed, purpose, i) only.
class Rng {
 public:
  Rng(uint64_t seed, std::string_view purpose) : key_(seed ^ hash_name(purpose)), hi_(hash_name(purpose)) {}
  [[nodiscard]] uint64_t bits(uint64_t index) const {
    const auto r = block(index);
    return (static_cast<uint64_t>(r[1]) << 32) | r[0];
  }
  /// Uniform in [0, 1), 53 bits.
  [[nodiscard]] double uniform(uint64_t index) const { return static_cast<double>(bits(index) >> 11) * 0x1p-53; }
  /// Uniform integer in [0, n) without modulo bias worth noticing (128-bit multiply).
  [[nodiscard]] uint64_t below(uint64_t index, uint64_t n) const {
    return static_cast<uint64_t>((static_cast<unsigned __int128>(bits(index)) * n) >> 64);
  }
  /// Standard normal (Box-Muller on the four words of one block).
  [[nodiscard]] double normal(uint64_t index) const {
    const auto r = block(index);
    const double u1 = (static_cast<double>(r[0]) + 1.0) * 0x1p-32, u2 = static_cast<double>(r[1]) * 0x1p-32;
    return std::sqrt(-2.0 * std::log(u1)) * std::cos(6.283185307179586 * u2);
  }

 private:
  [[nodiscard]] std::array<uint32_t, 4> block(uint64_t index) const {
    return philox4x32({static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), static_cast<uint32_t>(hi_),
                       static_cast<uint32_t>(hi_ >> 32)},
                      key_);
  }
  uint64_t key_, hi_;
};

}  // namespace r1
