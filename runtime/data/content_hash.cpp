// The hash of a data file's bytes, remembered beside the cache.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <system_error>

#include "runtime/core/error.h"
#include "runtime/data/cache.h"
#include "runtime/data/file_io.h"

namespace r1::data {
namespace fs = std::filesystem;

namespace {

/// All that changes when a file's content does, short of a clock that is set back.
[[nodiscard]] std::string identity(const struct stat& st) {
  return fmt::format("{} {} {} {}.{} {}.{}", st.st_dev, st.st_ino, st.st_size, st.st_mtim.tv_sec,
                     st.st_mtim.tv_nsec, st.st_ctim.tv_sec, st.st_ctim.tv_nsec);
}

/// Where a file's hash is remembered: by inode.
[[nodiscard]] fs::path note_of(const struct stat& st, const fs::path& cache_dir) {
  Hasher name;
  name.field(std::to_string(st.st_dev));
  name.field(std::to_string(st.st_ino));
  return cache_dir / (name.finish().hex() + ".hash");
}

/// The hash that a note holds, if it was made for the file as it is.
[[nodiscard]] std::optional<Hash128> remembered(const fs::path& note, const struct stat& st) {
  Fd in(::open(note.c_str(), O_RDONLY | O_CLOEXEC));
  if (in.get() < 0) return std::nullopt;
  std::array<char, 512> text{};
  const ssize_t n = ::read(in.get(), text.data(), text.size());
  const std::string_view content(text.data(), n > 0 ? static_cast<size_t>(n) : 0);
  const std::string head = identity(st) + "\n";
  if (content.size() != head.size() + 33 || !content.starts_with(head) || content.back() != '\n')
    return std::nullopt;
  const auto half = [&](size_t at) {
    return std::strtoull(std::string(content.substr(head.size() + at, 16)).c_str(), nullptr, 16);
  };
  Hash128 hash;
  hash.hi = half(0);
  hash.lo = half(16);
  return hash;
}

/// Remembers the hash, unless the file has changed or may be changing. Failures are no matter: the
/// note only saves time.
void remember(const fs::path& note, const Hash128& hash, const struct stat& before, int fd) {
  // Remembered only when the file was left alone for a while: a write within the same tick of the
  // clock as our look at the times would not show.
  struct stat after {};
  const auto now = std::chrono::duration_cast<std::chrono::seconds>(
                       std::chrono::system_clock::now().time_since_epoch())
                       .count();
  if (::fstat(fd, &after) != 0 || identity(after) != identity(before) ||
      before.st_ctim.tv_sec + 2 >= now)
    return;
  std::error_code error;
  fs::create_directories(note.parent_path(), error);
  if (error) return;
  try {
    write_file_atomically(note, identity(before) + "\n" + hash.hex() + "\n");
  } catch (const StorageError&) {
  }
}

[[nodiscard]] Hash128 hash_of_bytes(int fd, const DataProgress& state,
                                    const std::function<void(const DataProgress&)>& progress) {
  Hasher hasher;
  std::vector<char> buffer(kBufferBytes);
  auto last = std::chrono::steady_clock::now();
  while (true) {
    const ssize_t n = ::read(fd, buffer.data(), buffer.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw DataError("{}: cannot be read: {}", state.path.string(), std::strerror(errno));
    if (n == 0) return hasher.finish();
    hasher.update(buffer.data(), static_cast<size_t>(n));
    const auto now = std::chrono::steady_clock::now();
    if (progress && now - last > std::chrono::milliseconds(250)) {
      last = now;
      progress(state);
    }
  }
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
    note = note_of(st, cache_dir);
    if (const auto hash = remembered(note, st)) return *hash;
  }
  const Hash128 hash = hash_of_bytes(fd.get(), {.path = file, .bytes_total = st.st_size}, progress);
  if (!note.empty()) remember(note, hash, st, fd.get());
  return hash;
}

}  // namespace r1::data
