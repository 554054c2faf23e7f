#include "runtime/checkpoint/crc32c.h"

#include <gtest/gtest.h>

#include <string>

#include "runtime/core/rng.h"

namespace r1::checkpoint {
namespace {

std::string random_bytes(size_t n, uint64_t seed) {
  const Rng rng(seed, "bytes");
  std::string out(n, '\0');
  for (size_t i = 0; i < n; ++i) out[i] = static_cast<char>(rng.bits(i));
  return out;
}

// The definition, bit by bit.
uint32_t slow(const std::string& text) {
  uint32_t c = 0xffffffffu;
  for (const char ch : text) {
    c ^= static_cast<unsigned char>(ch);
    for (int i = 0; i < 8; ++i) c = (c & 1u) ? (c >> 1) ^ 0x82f63b78u : c >> 1;
  }
  return ~c;
}

// RFC 3720, appendix B.4.
TEST(Crc32c, PublishedVectors) {
  std::string ascending(32, '\0'), descending(32, '\0');
  for (size_t i = 0; i < 32; ++i) {
    ascending[i] = static_cast<char>(i);
    descending[i] = static_cast<char>(31 - i);
  }
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8a9136aau);
  EXPECT_EQ(crc32c(std::string(32, '\xff')), 0x62a8ab43u);
  EXPECT_EQ(crc32c(ascending), 0x46dd794eu);
  EXPECT_EQ(crc32c(descending), 0x113fdb5cu);
  EXPECT_EQ(crc32c(std::string_view("123456789")), 0xe3069283u);
  EXPECT_EQ(crc32c(std::string_view("")), 0u);
}

TEST(Crc32c, HardwareAndTablesEqualTheDefinition) {
  const std::string data = random_bytes(100'000, 7);
  // Around the sizes of the three-stream blocks (3 x 256, 3 x 8192) and unaligned starts.
  for (const size_t n : {0, 1, 7, 8, 9, 63, 255, 767, 768, 769, 1535, 1536, 24575, 24576, 24577,
                         49152, 60000, 90000})
    for (const size_t start : {0, 1, 3, 5}) {
      const std::string part = data.substr(start, n);
      const uint32_t want = slow(part);
      EXPECT_EQ(crc32c(part), want) << n;
      EXPECT_EQ(crc32c_portable(part.data(), part.size()), want) << n;
    }
}

TEST(Crc32c, PiecesAndCombine) {
  const std::string data = random_bytes(70'000, 8);
  const uint32_t whole = crc32c(data);
  const Rng rng(9, "cuts");
  for (uint64_t i = 0; i < 200; ++i) {
    const size_t cut = rng.below(i, data.size() + 1);
    const std::string_view a = std::string_view(data).substr(0, cut),
                           b = std::string_view(data).substr(cut);
    EXPECT_EQ(crc32c(b, crc32c(a)), whole);
    EXPECT_EQ(crc32c_portable(b.data(), b.size(), crc32c_portable(a.data(), a.size())), whole);
    EXPECT_EQ(crc32c_combine(crc32c(a), crc32c(b), b.size()), whole);
  }
}

TEST(Crc32c, CombineOverLongLengths) {
  // Appending n zeros, n far beyond memory: doubling n by combining the zero runs with themselves.
  uint32_t zeros = crc32c(std::string(1, '\0'));
  uint64_t n = 1;
  uint32_t data = crc32c(std::string_view("checkpoint"));
  for (int i = 0; i < 40; ++i) {
    const uint32_t twice = crc32c_combine(zeros, zeros, n);
    // (data + n zeros) + n zeros == data + 2n zeros
    EXPECT_EQ(crc32c_combine(crc32c_combine(data, zeros, n), zeros, n),
              crc32c_combine(data, twice, 2 * n))
        << n;
    zeros = twice;
    n *= 2;
    if (n <= 1u << 16) {
      EXPECT_EQ(zeros, slow(std::string(n, '\0')));
    }
  }
}

}  // namespace
}  // namespace r1::checkpoint
