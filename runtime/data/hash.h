// A fast 128-bit hash of byte streams for cache keys and corruption checks (not cryptographic).
// Four lanes of 64-bit folded multiplies, about 10 GB/s; the result does not depend on how the
// stream is cut into updates.
#pragma once

#include <fmt/format.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

namespace r1::data {

struct Hash128 {
  uint64_t lo = 0, hi = 0;
  [[nodiscard]] bool operator==(const Hash128&) const = default;
  [[nodiscard]] std::string hex() const { return fmt::format("{:016x}{:016x}", hi, lo); }
};

class Hasher {
 public:
  void update(const void* data, size_t bytes) {
    if (bytes == 0) return;  // an empty vector's data may be null
    const char* p = static_cast<const char*>(data);
    total_ += bytes;
    if (filled_ != 0) {
      const size_t take = bytes < kBlock - filled_ ? bytes : kBlock - filled_;
      std::memcpy(block_.data() + filled_, p, take);
      filled_ += take, p += take, bytes -= take;
      if (filled_ < kBlock) return;
      mix(block_.data());
      filled_ = 0;
    }
    for (; bytes >= kBlock; p += kBlock, bytes -= kBlock) mix(p);
    if (bytes != 0) std::memcpy(block_.data(), p, bytes);
    filled_ = bytes;
  }
  void update(std::string_view text) { update(text.data(), text.size()); }
  /// A field of a key: its length goes in too, so that neighbouring fields cannot be confused.
  void field(std::string_view text) {
    number(text.size());
    update(text);
  }
  void number(uint64_t value) { update(&value, sizeof value); }

  [[nodiscard]] Hash128 finish() const {
    Hasher copy = *this;
    if (copy.filled_ != 0) {
      std::memset(copy.block_.data() + copy.filled_, 0, kBlock - copy.filled_);
      copy.mix(copy.block_.data());
    }
    uint64_t a = copy.total_ ^ 0x9e3779b97f4a7c15ull, b = ~copy.total_ ^ 0xc2b2ae3d27d4eb4full;
    for (const uint64_t lane : copy.lanes_) {
      a = fold(a ^ lane, 0xff51afd7ed558ccdull);
      b = fold(b + lane, 0xc4ceb9fe1a85ec53ull);
    }
    return {fold(a ^ (b >> 31), 0x9fb21c651e98df25ull), fold(b ^ (a >> 29), 0xa0761d6478bd642full)};
  }

 private:
  static constexpr size_t kBlock = 64;
  /// High and low half of a 128-bit product, folded. The operands are never both fixed by the input
  /// alone.
  [[nodiscard]] static uint64_t fold(uint64_t a, uint64_t b) {
    const unsigned __int128 p = static_cast<unsigned __int128>(a) * b;
    return static_cast<uint64_t>(p) ^ static_cast<uint64_t>(p >> 64);
  }
  void mix(const char* p) {
    std::array<uint64_t, 8> w;
    std::memcpy(w.data(), p, kBlock);
    for (size_t i = 0; i < 4; ++i)
      lanes_[i] = fold(w[2 * i] ^ lanes_[i], w[2 * i + 1] ^ kSecret[i]) +
                  lanes_[i] * 0x9e3779b97f4a7c15ull + w[2 * i] * 0xd6e8feb86659fd93ull +
                  w[2 * i + 1];
  }
  static constexpr std::array<uint64_t, 4> kSecret = {0x2d358dccaa6c78a5ull, 0x8bb84b93962eacc9ull,
                                                      0x4b33a62ed433d4a3ull, 0x4d5a2da51de1aa47ull};
  std::array<uint64_t, 4> lanes_ = {0xa0761d6478bd642full, 0xe7037ed1a0b428dbull,
                                    0x8ebc6af09c88c6e3ull, 0x589965cc75374cc3ull};
  std::array<char, kBlock> block_{};
  size_t filled_ = 0;
  uint64_t total_ = 0;
};

}  // namespace r1::data
