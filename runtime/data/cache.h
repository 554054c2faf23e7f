// The tokenised form of one data file: a cache file named after its key (content, tokenizer,
// settings), memory-mapped by every rank that reads it. Written under a temporary name, flushed and
// renamed; a lock keeps two processes from doing the same work, and where the file system has no
// locks both write and the later rename wins: the content is the same.
//
// Little-endian layout: header (4096 bytes), words u32, offsets u64 [samples + 1], lines u32
// [samples], bad rows (JSON). A word is a token id, bit 31 set where the token is a target. A
// sample with labels of its own (offset bit 63) has its ids, then as many labels. Every section has
// a checksum, and so has the header.
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "runtime/core/fd.h"
#include "runtime/data/dataset.h"
#include "runtime/data/formats.h"
#include "runtime/data/hash.h"

namespace r1::data {

/// What is known of the whole file; part of the header.
struct CacheTotals {
  uint64_t samples = 0, words = 0, tokens = 0, trained_tokens = 0, longest = 0;
  uint64_t bad_rows = 0, unclosed_think = 0, empty_answers = 0;
  int64_t max_id = -1, max_id_line = 0;
  uint64_t format = 0;
};

/// Set in a word whose token is a target; the rest of it is the token's id.
inline constexpr uint32_t kTrainedBit = 0x80000000u;

/// A finished cache file, mapped.
class CacheFile {
 public:
  /// Nothing when there is none. A file that is not whole or fails a checksum: nothing, and
  /// `damage` says why.
  [[nodiscard]] static std::shared_ptr<const CacheFile> open(const std::filesystem::path& file,
                                                             const Hash128& key,
                                                             std::string* damage);
  /// The same from an open descriptor (an unnamed file).
  [[nodiscard]] static std::shared_ptr<const CacheFile> from_fd(Fd fd, const Hash128& key,
                                                                std::string* damage);
  ~CacheFile();
  CacheFile(const CacheFile&) = delete;
  CacheFile& operator=(const CacheFile&) = delete;

  [[nodiscard]] const CacheTotals& totals() const { return totals_; }
  [[nodiscard]] const std::vector<BadRow>& bad_rows() const { return bad_rows_; }
  [[nodiscard]] int64_t length(uint64_t sample) const;
  [[nodiscard]] int64_t line(uint64_t sample) const;
  /// words: [length]; labels: empty, or [length].
  struct View {
    std::span<const uint32_t> words;
    std::span<const uint32_t> labels;
  };
  [[nodiscard]] View sample(uint64_t sample) const;
  /// Appends the lengths of all samples.
  void lengths(std::vector<int32_t>& out) const;

 private:
  CacheFile() = default;
  [[nodiscard]] bool map(Fd fd, const Hash128& key, std::string* damage);
  void touched(size_t bytes) const;

  CacheTotals totals_;
  std::vector<BadRow> bad_rows_;
  void* base_ = nullptr;
  size_t bytes_ = 0;
  const uint32_t* words_ = nullptr;
  const uint64_t* offsets_ = nullptr;
  const uint32_t* lines_ = nullptr;
  mutable std::atomic<size_t> touched_{0};
};

/// Writes a cache file front to back, in bounded memory. Without finish() nothing is left behind.
class CacheWriter {
 public:
  enum class Place : uint8_t { kNamed, kUnnamed, kMemory };
  /// kNamed: takes the name `file` in the end. kUnnamed: a file without a name in the temporary
  /// directory. kMemory: no disk at all. Throws StorageError.
  CacheWriter(Place place, std::filesystem::path file, const Hash128& key);
  ~CacheWriter();
  CacheWriter(const CacheWriter&) = delete;
  CacheWriter& operator=(const CacheWriter&) = delete;

  void add(const EncodedSample& sample, int64_t line);
  void add_bad_row(BadRow row);
  [[nodiscard]] const CacheTotals& totals() const { return totals_; }
  [[nodiscard]] const std::vector<BadRow>& bad_rows() const { return bad_rows_; }
  /// Flushes, renames, and maps. Throws StorageError.
  [[nodiscard]] std::shared_ptr<const CacheFile> finish(Format format);

 private:
  struct Spool;
  void write(const void* data, size_t bytes, Hasher& hasher);
  void flush();
  uint64_t align();
  [[nodiscard]] Hash128 append(Spool& spool);
  void commit(const void* header, size_t bytes);

  std::filesystem::path file_, temporary_;
  Hash128 key_;
  Fd fd_;
  std::unique_ptr<Spool> offsets_, lines_;
  std::vector<char> buffer_;
  uint64_t position_ = 0;
  Hasher words_hash_;
  CacheTotals totals_;
  std::vector<BadRow> bad_rows_;
};

/// Held while a cache file is made. The kernel drops it when its holder dies.
class CacheLock {
 public:
  /// Nothing while another process holds it. On file systems without locks: a lock that locks
  /// nothing.
  [[nodiscard]] static std::optional<CacheLock> try_acquire(
      const std::filesystem::path& cache_file);
  CacheLock(CacheLock&&) noexcept = default;
  CacheLock& operator=(CacheLock&&) noexcept = default;
  ~CacheLock();

 private:
  CacheLock(Fd fd, std::filesystem::path path) : fd_(std::move(fd)), path_(std::move(path)) {}
  Fd fd_;
  std::filesystem::path path_;
};

/// Hash of a file's stored bytes; remembered in `cache_dir` (when not empty) by inode, size and
/// times, so that a large file is read for it once and not by every rank. `progress` as in
/// DataOptions.
[[nodiscard]] Hash128 content_hash(const std::filesystem::path& file,
                                   const std::filesystem::path& cache_dir,
                                   const std::function<void(const DataProgress&)>& progress);

/// Writes a small file by temporary name and rename. Throws StorageError.
void write_file_atomically(const std::filesystem::path& file, std::string_view content);

}  // namespace r1::data
