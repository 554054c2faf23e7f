#include "runtime/checkpoint/crc32c.h"

#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

namespace r1::checkpoint {
namespace {

// Polynomials over GF(2) modulo P, reflected: bit 31 is x^0.
constexpr uint32_t kPoly = 0x82F63B78u;
constexpr uint32_t kOne = 0x80000000u;

constexpr uint32_t multiply(uint32_t a, uint32_t b) {
  uint32_t product = 0;
  for (uint32_t bit = kOne; bit != 0; bit >>= 1) {
    if (a & bit) product ^= b;
    b = (b & 1u) ? (b >> 1) ^ kPoly : b >> 1;
  }
  return product;
}

// kSquares[k] = x^(2^k).
constexpr std::array<uint32_t, 67> kSquares = [] {
  std::array<uint32_t, 67> t{};
  t[0] = kOne >> 1;
  for (size_t k = 1; k < t.size(); ++k) t[k] = multiply(t[k - 1], t[k - 1]);
  return t;
}();

// x^(8 * bytes): what appending `bytes` zero bytes multiplies a checksum by.
constexpr uint32_t shift_of(uint64_t bytes) {
  uint32_t p = kOne;
  for (size_t k = 3; bytes != 0; bytes >>= 1, ++k)
    if (bytes & 1u) p = multiply(kSquares[k], p);
  return p;
}

// Slicing by 8: kTable[j][b] is the effect of byte b followed by j zero bytes.
constexpr std::array<std::array<uint32_t, 256>, 8> kTable = [] {
  std::array<std::array<uint32_t, 256>, 8> t{};
  for (uint32_t b = 0; b < 256; ++b) {
    uint32_t c = b;
    for (int i = 0; i < 8; ++i) c = (c & 1u) ? (c >> 1) ^ kPoly : c >> 1;
    t[0][b] = c;
  }
  for (uint32_t b = 0; b < 256; ++b)
    for (size_t j = 1; j < 8; ++j) t[j][b] = (t[j - 1][b] >> 8) ^ t[0][t[j - 1][b] & 0xffu];
  return t;
}();

uint64_t load64(const unsigned char* p) {
  uint64_t v = 0;
  std::memcpy(&v, p, 8);
  return v;
}

#if defined(__x86_64__)

// The CRC32 instruction takes 3 cycles and starts one every cycle, so three independent streams
// keep it busy. Streams of kLong bytes each; what is left in streams of kShort; the rest in one.
// (Gopal et al., "Fast CRC Computation for iSCSI Polynomial Using CRC32 Instruction", Intel, 2011.)
constexpr size_t kLong = 8192, kShort = 256;

using ShiftTable = std::array<std::array<uint32_t, 256>, 4>;
constexpr ShiftTable make_shift_table(uint64_t bytes) {
  ShiftTable t{};
  const uint32_t factor = shift_of(bytes);
  for (uint32_t j = 0; j < 4; ++j)
    for (uint32_t b = 0; b < 256; ++b) t[j][b] = multiply(factor, b << (8 * j));
  return t;
}
constexpr ShiftTable kShiftLong = make_shift_table(kLong);
constexpr ShiftTable kShiftShort = make_shift_table(kShort);

uint32_t shift(const ShiftTable& t, uint32_t c) {
  return t[0][c & 0xffu] ^ t[1][(c >> 8) & 0xffu] ^ t[2][(c >> 16) & 0xffu] ^ t[3][c >> 24];
}

template <size_t kBlock>
__attribute__((target("sse4.2"))) uint32_t three_streams(const unsigned char*& p, size_t& n,
                                                         uint32_t c, const ShiftTable& table) {
  while (n >= 3 * kBlock) {
    uint64_t a = c, b = 0, d = 0;
    for (const unsigned char* end = p + kBlock; p != end; p += 8) {
      a = _mm_crc32_u64(a, load64(p));
      b = _mm_crc32_u64(b, load64(p + kBlock));
      d = _mm_crc32_u64(d, load64(p + 2 * kBlock));
    }
    c = shift(table, static_cast<uint32_t>(a)) ^ static_cast<uint32_t>(b);
    c = shift(table, c) ^ static_cast<uint32_t>(d);
    p += 2 * kBlock;
    n -= 3 * kBlock;
  }
  return c;
}

__attribute__((target("sse4.2"))) uint32_t crc32c_hardware(const unsigned char* p, size_t n,
                                                           uint32_t crc) {
  uint32_t c = ~crc;
  c = three_streams<kLong>(p, n, c, kShiftLong);
  c = three_streams<kShort>(p, n, c, kShiftShort);
  uint64_t wide = c;
  for (; n >= 8; p += 8, n -= 8) wide = _mm_crc32_u64(wide, load64(p));
  c = static_cast<uint32_t>(wide);
  for (; n > 0; ++p, --n) c = _mm_crc32_u8(c, *p);
  return ~c;
}

#endif

}  // namespace

uint32_t crc32c_portable(const void* data, size_t bytes, uint32_t crc) {
  const auto* p = static_cast<const unsigned char*>(data);
  uint32_t c = ~crc;
  for (; bytes >= 8; p += 8, bytes -= 8) {
    const uint64_t v = load64(p) ^ c;
    c = 0;
    for (size_t j = 0; j < 8; ++j) c ^= kTable[7 - j][(v >> (8 * j)) & 0xffu];
  }
  for (; bytes > 0; ++p, --bytes) c = (c >> 8) ^ kTable[0][(c ^ *p) & 0xffu];
  return ~c;
}

uint32_t crc32c(const void* data, size_t bytes, uint32_t crc) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("sse4.2"))
    return crc32c_hardware(static_cast<const unsigned char*>(data), bytes, crc);
#endif
  return crc32c_portable(data, bytes, crc);
}

uint32_t crc32c_combine(uint32_t crc_a, uint32_t crc_b, uint64_t bytes_b) {
  return multiply(shift_of(bytes_b), crc_a) ^ crc_b;
}

}  // namespace r1::checkpoint
