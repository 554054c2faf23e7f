// Cache files that are finished: checked, mapped and read.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <iterator>
#include <nlohmann/json.hpp>
#include <utility>

#include "runtime/core/error.h"
#include "runtime/data/cache_format.h"
#include "runtime/data/file_io.h"

namespace r1::data {
namespace fs = std::filesystem;

namespace {

/// Mapped pages that were read count as this process's memory; they are let go after so many bytes.
constexpr size_t kResidentBytes = size_t{64} << 20;

}  // namespace

std::shared_ptr<const CacheFile> CacheFile::open(const fs::path& file, const Hash128& key,
                                                 std::string* damage) {
  Fd fd(::open(file.c_str(), O_RDONLY | O_CLOEXEC));
  if (fd.get() < 0) {
    if (errno != ENOENT && damage != nullptr) *damage = std::strerror(errno);
    return nullptr;
  }
  return from_fd(std::move(fd), key, damage);
}

std::shared_ptr<const CacheFile> CacheFile::from_fd(Fd fd, const Hash128& key,
                                                    std::string* damage) {
  std::shared_ptr<CacheFile> out(new CacheFile());
  if (!out->map(std::move(fd), key, damage)) return nullptr;
  return out;
}

namespace {

/// A section's place in the file, and its checksum.
struct Section {
  const char* name;
  uint64_t begin, end;
  Hash128 hash;
};

/// Checksums are taken by reading, not through the map: pages that were mapped count as memory of
/// this process. `keep`, if given, gets the bytes.
[[nodiscard]] bool intact(int fd, const Section& section, std::string* keep) {
  std::vector<char> buffer(kBufferBytes);
  Hasher hasher;
  for (uint64_t at = section.begin; at < section.end;) {
    const size_t n = static_cast<size_t>(std::min<uint64_t>(buffer.size(), section.end - at));
    if (!read_at(fd, buffer.data(), n, at)) return false;
    hasher.update(buffer.data(), n);
    if (keep != nullptr) keep->append(buffer.data(), n);
    at += n;
  }
  return hasher.finish() == section.hash;
}

/// Reads the header; what is wrong with it, or nothing.
[[nodiscard]] std::string read_header(int fd, uint64_t size, const Hash128& key, CacheHeader* h) {
  std::array<char, kHeaderBytes> head;
  if (size < kHeaderBytes || !read_at(fd, head.data(), head.size(), 0))
    return "shorter than its header";
  std::memcpy(h, head.data(), sizeof *h);
  if (std::any_of(head.begin() + sizeof *h, head.end(), [](char c) { return c != 0; }))
    return "the header is not as it was written";
  if (h->magic != kMagic) return "not a cache file of this version";
  if (h->self != header_hash(*h)) return "the header's checksum does not match";
  if (h->key != key) return "made for other data or settings";
  if (h->end != size) return fmt::format("{} bytes, expected {}", size, h->end);
  return {};
}

/// Checks every section; what is wrong, or nothing. `bad_rows` gets the last one.
[[nodiscard]] std::string read_sections(int fd, const CacheHeader& h, std::string* bad_rows) {
  const Section sections[] = {
      {"tokens", kHeaderBytes, kHeaderBytes + 4 * h.totals.words, h.words_hash},
      {"index", h.offsets_at, h.offsets_at + 8 * (h.totals.samples + 1), h.offsets_hash},
      {"line numbers", h.lines_at, h.lines_at + 4 * h.totals.samples, h.lines_hash},
      {"list of bad rows", h.bad_rows_at, h.end, h.bad_rows_hash}};
  for (const Section& s : sections)
    if (!intact(fd, s, &s == std::end(sections) - 1 ? bad_rows : nullptr))
      return fmt::format("the checksum of the {} does not match", s.name);
  return {};
}

}  // namespace

bool CacheFile::map(Fd fd, const Hash128& key, std::string* damage) {
  const auto broken = [&](std::string why) {
    if (damage != nullptr) *damage = std::move(why);
    return false;
  };
  struct stat st {};
  if (::fstat(fd.get(), &st) != 0) return broken(std::strerror(errno));
  const auto size = static_cast<uint64_t>(st.st_size);
  CacheHeader h;
  if (std::string why = read_header(fd.get(), size, key, &h); !why.empty())
    return broken(std::move(why));
  std::string bad_json;
  if (std::string why = read_sections(fd.get(), h, &bad_json); !why.empty())
    return broken(std::move(why));
  for (const auto& j : nlohmann::json::parse(bad_json))
    bad_rows_.push_back(
        {fs::path(), j.at("line").get<int64_t>(), j.at("reason").get<std::string>()});

  void* base = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, fd.get(), 0);
  if (base == MAP_FAILED) return broken(fmt::format("cannot be mapped: {}", std::strerror(errno)));
  base_ = base;
  bytes_ = size;
  totals_ = h.totals;
  const char* p = static_cast<const char*>(base);
  words_ = reinterpret_cast<const uint32_t*>(p + kHeaderBytes);
  offsets_ = reinterpret_cast<const uint64_t*>(p + h.offsets_at);
  lines_ = reinterpret_cast<const uint32_t*>(p + h.lines_at);
  return true;
}

CacheFile::~CacheFile() {
  if (base_ != nullptr) ::munmap(base_, bytes_);
}

void CacheFile::touched(size_t bytes) const {
  // Rows are read in random order; each fault maps its neighbourhood (64 KiB), too.
  bytes += size_t{64} << 10;
  const size_t before = touched_.fetch_add(bytes, std::memory_order_relaxed);
  if (before / kResidentBytes != (before + bytes) / kResidentBytes)
    ::madvise(base_, bytes_,
              MADV_DONTNEED);  // drops the mapping of clean file pages; the page cache keeps them
}

int64_t CacheFile::length(uint64_t sample) const {
  R1_CHECK(sample < totals_.samples, "sample {} of {}", sample, totals_.samples);
  const uint64_t words = (offsets_[sample + 1] & ~kHasLabels) - (offsets_[sample] & ~kHasLabels);
  return static_cast<int64_t>((offsets_[sample] & kHasLabels) != 0 ? words / 2 : words);
}

int64_t CacheFile::line(uint64_t sample) const {
  R1_CHECK(sample < totals_.samples, "sample {} of {}", sample, totals_.samples);
  return lines_[sample];
}

CacheFile::View CacheFile::sample(uint64_t sample) const {
  const auto n = static_cast<size_t>(length(sample));
  const uint32_t* first = words_ + (offsets_[sample] & ~kHasLabels);
  const bool labels = (offsets_[sample] & kHasLabels) != 0;
  touched(n * 4 * (labels ? 2 : 1));
  return {{first, n},
          labels ? std::span<const uint32_t>(first + n, n) : std::span<const uint32_t>()};
}

void CacheFile::lengths(std::vector<int32_t>& out) const {
  out.reserve(out.size() + totals_.samples);
  for (uint64_t i = 0; i < totals_.samples; ++i) {
    out.push_back(static_cast<int32_t>(length(i)));
    if (i % (kResidentBytes / 8) == kResidentBytes / 8 - 1) ::madvise(base_, bytes_, MADV_DONTNEED);
  }
}

}  // namespace r1::data
