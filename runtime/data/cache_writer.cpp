// Cache files on their way: written front to back, named when whole.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "runtime/core/error.h"
#include "runtime/data/cache_format.h"
#include "runtime/data/file_io.h"

namespace r1::data {
namespace fs = std::filesystem;

namespace {

constexpr size_t kBadRowExamples = 20;
constexpr const char* kUnnamedFile = "temporary file";  // what messages call it

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
    make_cache_directory(dir);
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
  write_all(fd_.get(), buffer_.data(), buffer_.size(), file_.empty() ? kUnnamedFile : temporary_);
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
    words[i] = static_cast<uint32_t>(sample.ids[i]) | (sample.trained[i] != 0 ? kTrainedBit : 0);
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
  CacheHeader h;
  h.key = key_;
  h.totals = totals_;
  h.words_hash = words_hash_.finish();
  offsets_->add(&totals_.words, sizeof totals_.words);
  h.offsets_at = align();
  h.offsets_hash = append(*offsets_);
  h.lines_at = align();
  h.lines_hash = append(*lines_);
  nlohmann::json list = nlohmann::json::array();
  for (const BadRow& row : bad_rows_) list.push_back({{"line", row.line}, {"reason", row.reason}});
  const std::string bad_json = list.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  Hasher bad_rows_hash;
  h.bad_rows_at = align();
  write(bad_json.data(), bad_json.size(), bad_rows_hash);
  h.bad_rows_hash = bad_rows_hash.finish();
  flush();
  h.end = kHeaderBytes + position_;
  h.self = header_hash(h);
  commit(&h, sizeof h);
  std::string damage;
  auto out = CacheFile::from_fd(std::move(fd_), key_, &damage);
  if (out == nullptr)
    throw StorageError("{}: does not read back as it was written: {}",
                       file_.empty() ? kUnnamedFile : file_.string(), damage);
  return out;
}

// Zeros up to the next multiple of 8; returns that place.
uint64_t CacheWriter::align() {
  Hasher unused;
  const std::array<char, 8> zeros{};
  const uint64_t at = kHeaderBytes + position_ + buffer_.size();
  write(zeros.data(), (8 - at % 8) % 8, unused);
  return kHeaderBytes + position_ + buffer_.size();
}

// Copies a spooled section behind what is written; returns its hash.
Hash128 CacheWriter::append(Spool& spool) {
  Hasher hasher;
  spool.flush();
  std::vector<char> chunk(kBufferBytes);
  for (uint64_t at = 0; at < spool.bytes;) {
    const size_t n = static_cast<size_t>(std::min<uint64_t>(chunk.size(), spool.bytes - at));
    if (!read_at(spool.fd.get(), chunk.data(), n, at))
      storage_error(spool.dir, "a temporary file cannot be read back");
    write(chunk.data(), n, hasher);
    at += n;
  }
  return hasher.finish();
}

// The header, last; then the file takes its name.
void CacheWriter::commit(const void* header, size_t bytes) {
  ssize_t n = 0;
  do n = ::pwrite(fd_.get(), header, bytes, 0);
  while (n < 0 && errno == EINTR);
  const fs::path shown = file_.empty() ? fs::path(kUnnamedFile) : temporary_;
  if (n != static_cast<ssize_t>(bytes)) storage_error(shown, "cannot be written");
  if (file_.empty()) return;
  if (::fsync(fd_.get()) != 0) storage_error(shown, "cannot be flushed to disk");
  if (::rename(temporary_.c_str(), file_.c_str()) != 0)
    storage_error(file_, "cannot be renamed into place");
  temporary_.clear();
}

}  // namespace r1::data
