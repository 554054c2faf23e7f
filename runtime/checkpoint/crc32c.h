// CRC-32C (Castagnoli, RFC 3720 appendix B.4): polynomial 0x1EDC6F41, reflected, initial value and
// final xor 0xFFFFFFFF; crc32c("123456789") == 0xE3069283.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace r1::checkpoint {

/// Checksum of `bytes` bytes appended to data whose checksum is `crc` (0 for none). Uses the CPU's
/// CRC32 instruction in three interleaved streams where the CPU has it, else tables.
[[nodiscard]] uint32_t crc32c(const void* data, size_t bytes, uint32_t crc = 0);
[[nodiscard]] inline uint32_t crc32c(std::string_view text, uint32_t crc = 0) {
  return crc32c(text.data(), text.size(), crc);
}
/// The same by tables only: the fallback, and the reference in tests.
[[nodiscard]] uint32_t crc32c_portable(const void* data, size_t bytes, uint32_t crc = 0);
/// Checksum of A followed by B from crc(A), crc(B) and the length of B in bytes; O(log length).
[[nodiscard]] uint32_t crc32c_combine(uint32_t crc_a, uint32_t crc_b, uint64_t bytes_b);

}  // namespace r1::checkpoint
