#include "runtime/data/file_io.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <string>
#include <system_error>

#include "runtime/core/error.h"
#include "runtime/core/fd.h"
#include "runtime/core/host.h"
#include "runtime/data/cache.h"

namespace r1::data {
namespace fs = std::filesystem;

void storage_error(const fs::path& path, const char* what) {
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

bool read_at(int fd, void* out, size_t bytes, uint64_t at) {
  char* p = static_cast<char*>(out);
  while (bytes > 0) {
    const ssize_t n = ::pread(fd, p, bytes, static_cast<off_t>(at));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    p += n, at += static_cast<uint64_t>(n), bytes -= static_cast<size_t>(n);
  }
  return true;
}

fs::path temporary_name(const fs::path& file) {
  std::string host = host_name();
  for (char& c : host)
    if (c == '/') c = '_';
  return fs::path(fmt::format("{}.tmp.{}.{}.{}", file.string(), host, ::getpid(),
                              std::chrono::steady_clock::now().time_since_epoch().count()));
}

void make_cache_directory(const fs::path& dir) {
  std::error_code error;
  fs::create_directories(dir, error);
  if (error)
    throw StorageError("{}: the cache directory cannot be made: {}", dir.string(), error.message());
}

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

}  // namespace r1::data
