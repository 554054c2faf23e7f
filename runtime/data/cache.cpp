#include "runtime/data/cache.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "runtime/core/error.h"
#include "runtime/core/host.h"

namespace r1::data {
namespace fs = std::filesystem;
static_assert(std::endian::native == std::endian::little,
              "the cache is read as it lies in the file");

namespace {

constexpr uint64_t kMagic = 0x3130544144315221ull;  // "!R1DAT01"; the version is part of it
constexpr size_t kHeaderBytes = 4096;
constexpr size_t kBufferBytes = size_t{1} << 20;
constexpr uint64_t kHasLabels = uint64_t{1} << 63;
constexpr uint32_t kTrained = 0x80000000u;
constexpr size_t kBadRowExamples = 20;
/// Mapped pages that were read count as this process's memory; they are let go after so many bytes.
constexpr size_t kResidentBytes = size_t{64} << 20;

struct Header {
  uint64_t magic = kMagic;
  Hash128 key;
  CacheTotals totals;
  uint64_t offsets_at = 0, lines_at = 0, bad_rows_at = 0, end = 0;
  Hash128 words_hash, offsets_hash, lines_hash, bad_rows_hash;
  Hash128 self;  // of all before it
};
static_assert(std::is_trivially_copyable_v<Header> && sizeof(Header) <= kHeaderBytes);

[[nodiscard]] Hash128 header_hash(const Header& header) {
  Hasher hasher;
  hasher.update(&header, offsetof(Header, self));
  return hasher.finish();
}

[[noreturn]] void storage_error(const fs::path& path, const char* what) {
  const int error = errno;
  throw StorageError(
      "{}: {}: {}{}", path.string(), what, std::strerror(error),
      error == ENOSPC || error == EDQUOT ? " (the tokenised data takes 4 bytes a token)" : "");
}

void write_all(int fd, const void* data, size_t bytes, const fs::path& path) {
  const char* p = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t n = ::write(fd, p, bytes);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) storage_error(path, "cannot be written");
    p += n;
    bytes -= static_cast<size_t>(n);
  }
}

/// Reads exactly; false at a premature end.
[[nodiscard]] bool read_at(int fd, void* out, size_t bytes, uint64_t at) {
  char* p = static_cast<char*>(out);
  while (bytes > 0) {
    const ssize_t n = ::pread(fd, p, bytes, static_cast<off_t>(at));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    p += n, at += static_cast<uint64_t>(n), bytes -= static_cast<size_t>(n);
  }
  return true;
}

[[nodiscard]] fs::path temporary_name(const fs::path& file) {
  std::string host = host_name();
  for (char& c : host)
    if (c == '/') c = '_';
  return fs::path(fmt::format("{}.tmp.{}.{}.{}", file.string(), host, ::getpid(),
                              std::chrono::steady_clock::now().time_since_epoch().count()));
}

[[nodiscard]] Fd unnamed_file(const fs::path& dir) {
  const int fd = ::open(dir.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  if (fd >= 0) return Fd(fd);
  std::string name = (dir / "r1run-XXXXXX").string();  // file systems without O_TMPFILE
  const int named = ::mkostemp(name.data(), O_CLOEXEC);
  if (named < 0) storage_error(dir, "no temporary file can be made here");
  ::unlink(name.c_str());
  return Fd(named);
}

}  // namespace

// --- reading

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

bool CacheFile::map(Fd fd, const Hash128& key, std::string* damage) {
  const auto broken = [&](std::string why) {
    if (damage != nullptr) *damage = std::move(why);
    return false;
  };
  Header h;
  struct stat st {};
  if (::fstat(fd.get(), &st) != 0) return broken(std::strerror(errno));
  const auto size = static_cast<uint64_t>(st.st_size);
  std::array<char, kHeaderBytes> head;
  if (size < kHeaderBytes || !read_at(fd.get(), head.data(), head.size(), 0))
    return broken("shorter than its header");
  std::memcpy(&h, head.data(), sizeof h);
  if (std::any_of(head.begin() + sizeof h, head.end(), [](char c) { return c != 0; }))
    return broken("the header is not as it was written");
  if (h.magic != kMagic) return broken("not a cache file of this version");
  if (h.self != header_hash(h)) return broken("the header's checksum does not match");
  if (h.key != key) return broken("made for other data or settings");
  if (h.end != size) return broken(fmt::format("{} bytes, expected {}", size, h.end));
  // Checksums are taken by reading, not through the map: pages that were mapped count as memory of
  // this process.
  std::vector<char> buffer(kBufferBytes);
  const auto intact = [&](uint64_t begin, uint64_t end, const Hash128& expected,
                          std::string* keep) {
    Hasher hasher;
    while (begin < end) {
      const size_t n = static_cast<size_t>(std::min<uint64_t>(buffer.size(), end - begin));
      if (!read_at(fd.get(), buffer.data(), n, begin)) return false;
      hasher.update(buffer.data(), n);
      if (keep != nullptr) keep->append(buffer.data(), n);
      begin += n;
    }
    return hasher.finish() == expected;
  };
  std::string bad_json;
  if (!intact(kHeaderBytes, kHeaderBytes + 4 * h.totals.words, h.words_hash, nullptr))
    return broken("the checksum of the tokens does not match");
  if (!intact(h.offsets_at, h.offsets_at + 8 * (h.totals.samples + 1), h.offsets_hash, nullptr))
    return broken("the checksum of the index does not match");
  if (!intact(h.lines_at, h.lines_at + 4 * h.totals.samples, h.lines_hash, nullptr))
    return broken("the checksum of the line numbers does not match");
  if (!intact(h.bad_rows_at, h.end, h.bad_rows_hash, &bad_json))
    return broken("the checksum of the list of bad rows does not match");
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

// --- writing

/// A section that is written while another grows: a temporary file, copied behind it at the end.
struct CacheWriter::Spool {
  Fd fd;
  fs::path dir;
  std::vector<char> buffer;
  uint64_t bytes = 0;
  Spool(Fd file, fs::path in) : fd(std::move(file)), dir(std::move(in)) {}
  void add(const void* data, size_t n) {
    const char* p = static_cast<const char*>(data);
    buffer.insert(buffer.end(), p, p + n);
    bytes += n;
    if (buffer.size() >= kBufferBytes) flush();
  }
  void flush() {
    write_all(fd.get(), buffer.data(), buffer.size(), dir);
    buffer.clear();
  }
};

CacheWriter::CacheWriter(Place place, fs::path file, const Hash128& key)
    : file_(std::move(file)), key_(key) {
  R1_CHECK((place == Place::kNamed) == !file_.empty(), "file name '{}'", file_.string());
  fs::path dir;
  const auto unnamed = [&] {
    if (place != Place::kMemory) return unnamed_file(dir);
    Fd fd(::memfd_create("r1run-data", MFD_CLOEXEC));
    if (fd.get() < 0) storage_error("memory file", "cannot be made");
    return fd;
  };
  if (place == Place::kNamed) {
    dir = file_.parent_path();
    std::error_code error;
    fs::create_directories(dir, error);
    if (error)
      throw StorageError("{}: the cache directory cannot be made: {}", dir.string(),
                         error.message());
    temporary_ = temporary_name(file_);
    fd_ = Fd(::open(temporary_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
    if (fd_.get() < 0) storage_error(temporary_, "the cache cannot be written");
  } else {
    std::error_code ignored;
    dir = fs::temp_directory_path(ignored);
    if (ignored) dir = "/tmp";
    fd_ = unnamed();
  }
  try {
    offsets_ = std::make_unique<Spool>(unnamed(), dir);
    lines_ = std::make_unique<Spool>(unnamed(), dir);
    const std::vector<char> header(kHeaderBytes, 0);
    write_all(fd_.get(), header.data(), header.size(), temporary_);
  } catch (...) {
    if (!temporary_.empty()) ::unlink(temporary_.c_str());
    throw;
  }
}

CacheWriter::~CacheWriter() {
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void CacheWriter::write(const void* data, size_t bytes, Hasher& hasher) {
  hasher.update(data, bytes);
  const char* p = static_cast<const char*>(data);
  buffer_.insert(buffer_.end(), p, p + bytes);
  if (buffer_.size() >= kBufferBytes) flush();
}

void CacheWriter::flush() {
  write_all(fd_.get(), buffer_.data(), buffer_.size(),
            file_.empty() ? "temporary file" : temporary_);
  position_ += buffer_.size();
  buffer_.clear();
}

void CacheWriter::add(const EncodedSample& sample, int64_t line) {
  const size_t n = sample.ids.size();
  R1_CHECK(
      n > 0 && sample.trained.size() == n && (sample.labels.empty() || sample.labels.size() == n),
      "{} ids, {} mask entries, {} labels", n, sample.trained.size(), sample.labels.size());
  const uint64_t offset = totals_.words | (sample.labels.empty() ? 0 : kHasLabels);
  offsets_->add(&offset, sizeof offset);
  const auto line32 = static_cast<uint32_t>(std::min<int64_t>(line, 0xffffffff));
  lines_->add(&line32, sizeof line32);
  std::vector<uint32_t> words(n);
  for (size_t i = 0; i < n; ++i) {
    R1_CHECK(sample.ids[i] >= 0, "token id {}", sample.ids[i]);
    words[i] = static_cast<uint32_t>(sample.ids[i]) | (sample.trained[i] != 0 ? kTrained : 0);
    if (i > 0 && sample.trained[i] != 0) ++totals_.trained_tokens;
    const int64_t id = std::max(sample.ids[i], sample.labels.empty() ? -1 : sample.labels[i]);
    if (id > totals_.max_id) totals_.max_id = id, totals_.max_id_line = line;
  }
  write(words.data(), words.size() * 4, words_hash_);
  if (!sample.labels.empty()) write(sample.labels.data(), n * 4, words_hash_);
  totals_.words += sample.labels.empty() ? n : 2 * n;
  totals_.tokens += n;
  totals_.longest = std::max<uint64_t>(totals_.longest, n);
  totals_.unclosed_think += sample.unclosed_thought ? 1 : 0;
  totals_.empty_answers += sample.empty_answer ? 1 : 0;
  ++totals_.samples;
}

void CacheWriter::add_bad_row(BadRow row) {
  ++totals_.bad_rows;
  if (bad_rows_.size() < kBadRowExamples) bad_rows_.push_back(std::move(row));
}

std::shared_ptr<const CacheFile> CacheWriter::finish(Format format) {
  totals_.format = static_cast<uint64_t>(format);
  Header h;
  h.key = key_;
  h.totals = totals_;
  h.words_hash = words_hash_.finish();
  const auto align = [&] {
    Hasher unused;
    const std::array<char, 8> zeros{};
    const uint64_t at = kHeaderBytes + position_ + buffer_.size();
    write(zeros.data(), (8 - at % 8) % 8, unused);
    return kHeaderBytes + position_ + buffer_.size();
  };
  const auto append = [&](Spool& spool, Hasher& hasher) {
    spool.flush();
    std::vector<char> chunk(kBufferBytes);
    for (uint64_t at = 0; at < spool.bytes;) {
      const size_t n = static_cast<size_t>(std::min<uint64_t>(chunk.size(), spool.bytes - at));
      if (!read_at(spool.fd.get(), chunk.data(), n, at))
        storage_error(spool.dir, "a temporary file cannot be read back");
      write(chunk.data(), n, hasher);
      at += n;
    }
  };
  Hasher offsets_hash, lines_hash, bad_rows_hash;
  offsets_->add(&totals_.words, sizeof totals_.words);
  h.offsets_at = align();
  append(*offsets_, offsets_hash);
  h.offsets_hash = offsets_hash.finish();
  h.lines_at = align();
  append(*lines_, lines_hash);
  h.lines_hash = lines_hash.finish();
  nlohmann::json list = nlohmann::json::array();
  for (const BadRow& row : bad_rows_) list.push_back({{"line", row.line}, {"reason", row.reason}});
  const std::string bad_json = list.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  h.bad_rows_at = align();
  write(bad_json.data(), bad_json.size(), bad_rows_hash);
  h.bad_rows_hash = bad_rows_hash.finish();
  flush();
  h.end = kHeaderBytes + position_;
  h.self = header_hash(h);
  ssize_t n = 0;
  do n = ::pwrite(fd_.get(), &h, sizeof h, 0);
  while (n < 0 && errno == EINTR);
  const fs::path shown = file_.empty() ? fs::path("temporary file") : temporary_;
  if (n != static_cast<ssize_t>(sizeof h)) storage_error(shown, "cannot be written");
  if (!file_.empty()) {
    if (::fsync(fd_.get()) != 0) storage_error(shown, "cannot be flushed to disk");
    if (::rename(temporary_.c_str(), file_.c_str()) != 0)
      storage_error(file_, "cannot be renamed into place");
    temporary_.clear();
  }
  std::string damage;
  auto out = CacheFile::from_fd(std::move(fd_), key_, &damage);
  if (out == nullptr)
    throw StorageError("{}: does not read back as it was written: {}",
                       (file_.empty() ? shown : file_).string(), damage);
  return out;
}

// --- lock

std::optional<CacheLock> CacheLock::try_acquire(const fs::path& cache_file) {
  fs::path path = cache_file;
  path += ".lock";
  std::error_code error;
  fs::create_directories(path.parent_path(), error);
  if (error)
    throw StorageError("{}: the cache directory cannot be made: {}", path.parent_path().string(),
                       error.message());
  while (true) {
    Fd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
    if (fd.get() < 0) storage_error(path, "the cache cannot be written");
    int rc = 0;
    do rc = ::flock(fd.get(), LOCK_EX | LOCK_NB);
    while (rc != 0 && errno == EINTR);
    if (rc != 0) {
      if (errno == EWOULDBLOCK) return std::nullopt;
      return CacheLock(std::move(fd), path);  // no locks here: work twice rather than not at all
    }
    // The holder before us removed the file when it was done: then this lock is on a name that is
    // gone.
    struct stat ours {
    }, named{};
    if (::fstat(fd.get(), &ours) == 0 && ::stat(path.c_str(), &named) == 0 &&
        ours.st_ino == named.st_ino && ours.st_dev == named.st_dev)
      return CacheLock(std::move(fd), path);
  }
}

CacheLock::~CacheLock() {
  if (fd_.get() >= 0) ::unlink(path_.c_str());
}

// --- content hash

void write_file_atomically(const fs::path& file, std::string_view content) {
  const fs::path temporary = temporary_name(file);
  Fd fd(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
  if (fd.get() < 0) storage_error(temporary, "cannot be written");
  try {
    write_all(fd.get(), content.data(), content.size(), temporary);
    if (::fsync(fd.get()) != 0) storage_error(temporary, "cannot be flushed to disk");
    if (::rename(temporary.c_str(), file.c_str()) != 0)
      storage_error(file, "cannot be renamed into place");
  } catch (...) {
    ::unlink(temporary.c_str());
    throw;
  }
}

namespace {

/// All that changes when a file's content does, short of a clock that is set back.
[[nodiscard]] std::string identity(const struct stat& st) {
  return fmt::format("{} {} {} {}.{} {}.{}", st.st_dev, st.st_ino, st.st_size, st.st_mtim.tv_sec,
                     st.st_mtim.tv_nsec, st.st_ctim.tv_sec, st.st_ctim.tv_nsec);
}

}  // namespace

Hash128 content_hash(const fs::path& file, const fs::path& cache_dir,
                     const std::function<void(const DataProgress&)>& progress) {
  Fd fd(::open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  struct stat st {};
  if (fd.get() < 0 || ::fstat(fd.get(), &st) != 0)
    throw DataError("data file {}: cannot be opened: {}", file.string(), std::strerror(errno));
  fs::path note;
  if (!cache_dir.empty()) {
    Hasher name;
    name.field(std::to_string(st.st_dev));
    name.field(std::to_string(st.st_ino));
    note = cache_dir / (name.finish().hex() + ".hash");
    Fd in(::open(note.c_str(), O_RDONLY | O_CLOEXEC));
    if (in.get() >= 0) {
      std::array<char, 512> text{};
      const ssize_t n = ::read(in.get(), text.data(), text.size());
      const std::string_view content(text.data(), n > 0 ? static_cast<size_t>(n) : 0);
      const std::string head = identity(st) + "\n";
      Hash128 hash;
      if (content.size() == head.size() + 33 && content.starts_with(head) &&
          content.back() == '\n') {
        hash.hi = std::strtoull(std::string(content.substr(head.size(), 16)).c_str(), nullptr, 16);
        hash.lo =
            std::strtoull(std::string(content.substr(head.size() + 16, 16)).c_str(), nullptr, 16);
        return hash;
      }
    }
  }
  Hasher hasher;
  std::vector<char> buffer(kBufferBytes);
  DataProgress state{.path = file, .bytes_total = st.st_size};
  auto last = std::chrono::steady_clock::now();
  while (true) {
    const ssize_t n = ::read(fd.get(), buffer.data(), buffer.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw DataError("{}: cannot be read: {}", file.string(), std::strerror(errno));
    if (n == 0) break;
    hasher.update(buffer.data(), static_cast<size_t>(n));
    const auto now = std::chrono::steady_clock::now();
    if (progress && now - last > std::chrono::milliseconds(250)) {
      last = now;
      progress(state);
    }
  }
  const Hash128 hash = hasher.finish();
  // Remembered only when the file was left alone for a while: a write within the same tick of the
  // clock as our look at the times would not show.
  struct stat after {};
  const auto now = std::chrono::duration_cast<std::chrono::seconds>(
                       std::chrono::system_clock::now().time_since_epoch())
                       .count();
  if (!note.empty() && ::fstat(fd.get(), &after) == 0 && identity(after) == identity(st) &&
      st.st_ctim.tv_sec + 2 < now) {
    std::error_code error;
    fs::create_directories(cache_dir, error);
    try {
      if (!error) write_file_atomically(note, identity(st) + "\n" + hash.hex() + "\n");
    } catch (const StorageError&) {
      // The note only saves time.
    }
  }
  return hash;
}

}  // namespace r1::data
