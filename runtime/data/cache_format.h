// How a cache file lies on disk (see cache.h): what its writer and its reader share.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "runtime/data/cache.h"
#include "runtime/data/hash.h"

namespace r1::data {
static_assert(std::endian::native == std::endian::little,
              "the cache is read as it lies in the file");

inline constexpr uint64_t kMagic = 0x3130544144315221ull;  // "!R1DAT01"; the version is part of it
inline constexpr size_t kHeaderBytes = 4096;
inline constexpr uint64_t kHasLabels = uint64_t{1} << 63;

struct CacheHeader {
  uint64_t magic = kMagic;
  Hash128 key;
  CacheTotals totals;
  uint64_t offsets_at = 0, lines_at = 0, bad_rows_at = 0, end = 0;
  Hash128 words_hash, offsets_hash, lines_hash, bad_rows_hash;
  Hash128 self;  // of all before it
};
static_assert(std::is_trivially_copyable_v<CacheHeader> && sizeof(CacheHeader) <= kHeaderBytes);

[[nodiscard]] inline Hash128 header_hash(const CacheHeader& header) {
  Hasher hasher;
  hasher.update(&header, offsetof(CacheHeader, self));
  return hasher.finish();
}

}  // namespace r1::data
