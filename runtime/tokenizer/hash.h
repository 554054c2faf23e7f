// A fast 64-bit hash of bytes: for tables and fingerprints, not against forgery. The value is part
// of fingerprints, so it must stay the same from version to version (little-endian hosts).
#pragma once

#include <cstdint>
#include <cstring>
#include <string_view>

namespace r1::text {

inline constexpr uint64_t kHashMix = 0x9E3779B97F4A7C15;

/// Both halves of the 128-bit product, folded.
[[nodiscard]] inline uint64_t mix(uint64_t a, uint64_t b) {
  __extension__ using Wide = unsigned __int128;
  const Wide product = static_cast<Wide>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

inline constexpr uint64_t kHashMix2 = 0xD6E8FEB86659FD93;

[[nodiscard]] inline uint64_t load64(const char* p) {
  uint64_t v;
  std::memcpy(&v, p, 8);
  return v;
}
[[nodiscard]] inline uint64_t load32(const char* p) {
  uint32_t v;
  std::memcpy(&v, p, 4);
  return v;
}

/// Hash of `text` under `seed`.
[[nodiscard]] inline uint64_t hash_bytes(std::string_view text, uint64_t seed) {
  const char* p = text.data();
  size_t n = text.size();
  uint64_t h = seed ^ n * kHashMix2;
  while (n > 16) {
    h = mix(load64(p) ^ kHashMix, load64(p + 8) ^ h);
    p += 16;
    n -= 16;
  }
  uint64_t a = 0;
  uint64_t b = 0;
  if (n >= 8) {
    a = load64(p);
    b = load64(p + n - 8);
  } else if (n >= 4) {
    a = load32(p);
    b = load32(p + n - 4);
  } else if (n > 0) {
    const auto byte = [p](size_t i) {
      return static_cast<uint64_t>(static_cast<unsigned char>(p[i]));
    };
    a = byte(0) << 16 | byte(n / 2) << 8 | byte(n - 1);
  }
  return mix(a ^ kHashMix ^ h, b ^ kHashMix2 ^ seed);
}

}  // namespace r1::text
