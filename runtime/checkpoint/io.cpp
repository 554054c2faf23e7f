#include "runtime/checkpoint/io.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>

#include "runtime/checkpoint/checked.h"
#include "runtime/core/error.h"
#include "runtime/core/host.h"

namespace r1::checkpoint {
namespace {

constexpr size_t kBufferBytes = 1u << 20;

std::string reason(int error) { return std::generic_category().message(error); }

// What the user can do about an errno value of a write.
std::string advice(const fs::path& path, int error) {
  if (error == ENOSPC || error == EDQUOT) {
    struct statvfs v {};
    if (::statvfs(path.parent_path().empty() ? "." : path.parent_path().c_str(), &v) == 0)
      return fmt::format("; {} bytes are free there",
                         static_cast<uint64_t>(v.f_bavail) * v.f_frsize);
  }
  if (error == EFBIG)
    return "; the limit on file size (ulimit -f) or of the file system is too low";
  if (error == EACCES || error == EPERM || error == EROFS)
    return "; choose a directory that you may write with --output";
  return "";
}

int ask(SyscallHook* hook, Syscall& call) { return hook == nullptr ? 0 : hook->before(call); }
int ask(SyscallHook* hook, SyscallKind kind, const fs::path& path, const fs::path& to = {}) {
  if (hook == nullptr) return 0;
  Syscall call{.kind = kind, .path = path, .to = to};
  return hook->before(call);
}

// Runs `call` (which returns -1 and sets errno on failure) behind the hook; the errno value, or 0.
template <class F>
int guarded(SyscallHook* hook, SyscallKind kind, const fs::path& path, const fs::path& to,
            F&& call) {
  if (const int injected = ask(hook, kind, path, to); injected != 0) return injected;
  int rc = 0;
  do {
    rc = call();
  } while (rc < 0 && errno == EINTR);
  return rc < 0 ? errno : 0;
}

fs::path folder_of(const fs::path& path) {
  return path.parent_path().empty() ? fs::path(".") : path.parent_path();
}

// Removes what is below the open directory `fd` (which it closes). `path` is for messages and the
// hook.
void remove_below(int fd, const fs::path& path, SyscallHook* hook) {
  DIR* dir = ::fdopendir(fd);
  if (dir == nullptr) {
    const int e = errno;
    ::close(fd);
    throw StorageError("cannot list {}: {}", path.string(), reason(e));
  }
  struct Closer {
    DIR* d;
    ~Closer() { ::closedir(d); }
  } closer{dir};
  for (;;) {
    errno = 0;
    const dirent* item = ::readdir(dir);
    if (item == nullptr) {
      if (errno != 0) throw StorageError("cannot list {}: {}", path.string(), reason(errno));
      return;
    }
    const std::string name = item->d_name;
    if (name == "." || name == "..") continue;
    const fs::path child = path / name;
    const int sub =
        ::openat(::dirfd(dir), name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    int e = 0;
    if (sub >= 0) {
      remove_below(sub, child, hook);
      e = guarded(hook, SyscallKind::kRmdir, child, {},
                  [&] { return ::unlinkat(::dirfd(dir), name.c_str(), AT_REMOVEDIR); });
    } else if (errno == ENOTDIR || errno == ELOOP) {
      e = guarded(hook, SyscallKind::kUnlink, child, {},
                  [&] { return ::unlinkat(::dirfd(dir), name.c_str(), 0); });
    } else {
      e = errno;
    }
    if (e != 0 && e != ENOENT)
      throw StorageError("cannot remove {}: {}", child.string(), reason(e));
  }
}

}  // namespace

std::string_view name_of(SyscallKind kind) {
  switch (kind) {
    case SyscallKind::kMkdir:
      return "mkdir";
    case SyscallKind::kCreate:
      return "create";
    case SyscallKind::kAllocate:
      return "fallocate";
    case SyscallKind::kWrite:
      return "write";
    case SyscallKind::kFsync:
      return "fsync";
    case SyscallKind::kClose:
      return "close";
    case SyscallKind::kRename:
      return "rename";
    case SyscallKind::kExchange:
      return "exchange";
    case SyscallKind::kFsyncDir:
      return "fsync directory";
    case SyscallKind::kUnlink:
      return "unlink";
    case SyscallKind::kRmdir:
      return "rmdir";
  }
  return "?";
}

std::string shown(std::string_view text, size_t max) {
  std::string out = "\"";
  size_t used = 0;
  for (const char ch : text) {
    if (used++ == max) return out + fmt::format("...\" ({} bytes)", text.size());
    const auto c = static_cast<unsigned char>(ch);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += ch;
    } else if (c < 0x20 || c >= 0x7f) {
      out += fmt::format("\\x{:02x}", c);
    } else {
      out += ch;
    }
  }
  return out + '"';
}

// ---- reading

ReadFile::ReadFile(const fs::path& path) : path_(path) {
  // O_NONBLOCK: opening a FIFO must not wait for a writer.
  fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd_ < 0) throw DataError("{}: cannot open: {}", path.string(), reason(errno));
  struct stat st {};
  const int rc = ::fstat(fd_, &st);
  const int e = errno;
  if (rc != 0 || !S_ISREG(st.st_mode)) {
    ::close(std::exchange(fd_, -1));
    if (rc != 0) throw DataError("{}: cannot stat: {}", path.string(), reason(e));
    throw DataError("{}: is a {}, not a regular file", path.string(),
                    S_ISDIR(st.st_mode) ? "directory" : "device, pipe or socket");
  }
  size_ = static_cast<uint64_t>(st.st_size);
}
ReadFile::ReadFile(ReadFile&& o) noexcept
    : path_(std::move(o.path_)), fd_(std::exchange(o.fd_, -1)), size_(o.size_) {}
ReadFile& ReadFile::operator=(ReadFile&& o) noexcept {
  std::swap(path_, o.path_);
  std::swap(fd_, o.fd_);
  std::swap(size_, o.size_);
  return *this;
}
ReadFile::~ReadFile() {
  if (fd_ >= 0) ::close(fd_);
}

void ReadFile::read(uint64_t offset, void* dst, size_t bytes) const {
  const auto end = checked_add(offset, bytes);
  if (!end || *end > size_)
    throw DataError("{}: bytes [{}, +{}) are beyond the end of the file ({} bytes)", path_.string(),
                    offset, bytes, size_);
  char* p = static_cast<char*>(dst);
  while (bytes > 0) {
    const ssize_t n = ::pread(fd_, p, bytes, static_cast<off_t>(offset));
    if (n < 0) {
      if (errno == EINTR) continue;
      throw DataError("{}: reading {} bytes at {}: {}", path_.string(), bytes, offset,
                      reason(errno));
    }
    if (n == 0)
      throw DataError(
          "{}: ends at byte {}; it had {} bytes when it was opened: is something still writing it?",
          path_.string(), offset, size_);
    p += n;
    offset += static_cast<uint64_t>(n);
    bytes -= static_cast<size_t>(n);
  }
}

void ReadFile::check_unchanged() const {
  struct stat st {};
  if (::fstat(fd_, &st) != 0) throw DataError("{}: cannot stat: {}", path_.string(), reason(errno));
  if (static_cast<uint64_t>(st.st_size) != size_)
    throw DataError(
        "{}: has {} bytes now and had {} when it was opened: is something still writing it?",
        path_.string(), st.st_size, size_);
}

std::string read_text_file(const fs::path& path, size_t max_bytes) {
  const ReadFile file(path);
  if (file.size() > max_bytes)
    throw DataError("{}: has {} bytes; at most {} are allowed", path.string(), file.size(),
                    max_bytes);
  std::string text(static_cast<size_t>(file.size()), '\0');
  file.read(0, text.data(), text.size());
  return text;
}

// ---- writing

NewFile::NewFile(const fs::path& target, uint64_t expect_bytes, SyscallHook* hook)
    : target_(target), hook_(hook), expect_bytes_(expect_bytes) {
  temporary_ =
      folder_of(target) / fmt::format(".{}.tmp-{}", target.filename().string(), random_token(8));
  Syscall call{.kind = SyscallKind::kCreate, .path = temporary_};
  if (const int e = ask(hook_, call); e != 0) fail("creating", e);
  fd_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
  if (fd_ < 0) fail("creating", errno);
  if (expect_bytes_ == 0) return;
  call = {.kind = SyscallKind::kAllocate, .path = temporary_, .bytes = expect_bytes_};
  int e = ask(hook_, call);
  // Not posix_fallocate: it writes zeros where the file system cannot reserve.
  while (e == 0 && ::fallocate(fd_, 0, 0, static_cast<off_t>(expect_bytes_)) != 0) {
    if (errno != EINTR) e = errno;
  }
  if (e != 0 && e != EOPNOTSUPP && e != ENOSYS && e != EINVAL)
    fail(fmt::format("reserving {} bytes for", expect_bytes_), e);
}

NewFile::~NewFile() {
  if (temporary_.empty()) return;
  if (fd_ >= 0) ::close(fd_);
  if (ask(hook_, SyscallKind::kUnlink, temporary_) == 0) ::unlink(temporary_.c_str());
}

void NewFile::fail(std::string_view what, int error) {
  if (fd_ >= 0) ::close(std::exchange(fd_, -1));
  const fs::path temporary = std::exchange(temporary_, {});
  const std::string hint = advice(temporary, error);
  if (ask(hook_, SyscallKind::kUnlink, temporary) == 0) ::unlink(temporary.c_str());
  throw StorageError("{} {}: {}{}", what, target_.string(), reason(error), hint);
}

void NewFile::flush(const char* data, size_t bytes) {
  while (bytes > 0) {
    Syscall call{.kind = SyscallKind::kWrite,
                 .path = temporary_,
                 .data = data,
                 .bytes = bytes,
                 .offset = on_disk_};
    if (const int e = ask(hook_, call); e != 0) fail("writing", e);
    const ssize_t n = ::pwrite(fd_, data, call.bytes, static_cast<off_t>(on_disk_));
    if (n < 0) {
      if (errno == EINTR) continue;
      fail("writing", errno);
    }
    data += n;
    bytes -= static_cast<size_t>(n);
    on_disk_ += static_cast<uint64_t>(n);
  }
}

void NewFile::write(const void* data, size_t bytes) {
  R1_CHECK(fd_ >= 0, "{}: write after finish or failure", target_.string());
  written_ += bytes;
  const auto* p = static_cast<const char*>(data);
  if (buffer_.size() + bytes < kBufferBytes) {
    buffer_.append(p, bytes);
    return;
  }
  flush(buffer_.data(), buffer_.size());
  buffer_.clear();
  if (bytes >= kBufferBytes)
    flush(p, bytes);
  else
    buffer_.assign(p, bytes);
}

void NewFile::finish() {
  R1_CHECK(fd_ >= 0, "{}: finish after finish or failure", target_.string());
  flush(buffer_.data(), buffer_.size());
  buffer_.clear();
  R1_CHECK(expect_bytes_ == 0 || written_ == expect_bytes_, "{}: {} bytes written, {} announced",
           target_.string(), written_, expect_bytes_);
  // A failed fsync means that the data may be lost although a second one would succeed: give up the
  // file.
  if (const int e =
          guarded(hook_, SyscallKind::kFsync, temporary_, {}, [&] { return ::fsync(fd_); });
      e != 0)
    fail("fsync of", e);
  if (const int e = ask(hook_, SyscallKind::kClose, temporary_); e != 0) fail("closing", e);
  if (::close(std::exchange(fd_, -1)) != 0 && errno != EINTR)
    fail("closing", errno);  // NFS reports here
  if (const int e = guarded(hook_, SyscallKind::kRename, temporary_, target_,
                            [&] { return ::rename(temporary_.c_str(), target_.c_str()); });
      e != 0)
    fail("renaming to", e);
  temporary_.clear();
  fsync_directory(folder_of(target_), hook_);
}

void write_text_file(const fs::path& path, std::string_view text, SyscallHook* hook) {
  NewFile file(path, 0, hook);
  file.write(text.data(), text.size());
  file.finish();
}

void make_directory(const fs::path& path, bool may_exist, SyscallHook* hook) {
  int e = guarded(hook, SyscallKind::kMkdir, path, {}, [&] { return ::mkdir(path.c_str(), 0777); });
  if (e == EEXIST && may_exist) {
    struct stat st {};
    if (::stat(path.c_str(), &st) == 0 && S_ISDIR(st.st_mode)) return;
    e = ENOTDIR;
  }
  if (e != 0)
    throw StorageError("making directory {}: {}{}", path.string(), reason(e), advice(path, e));
  fsync_directory(folder_of(path), hook);
}

void make_directories(const fs::path& path, SyscallHook* hook) {
  fs::path whole;
  for (const fs::path& part : path) {
    whole /= part;
    struct stat st {};
    if (part.empty() || (::stat(whole.c_str(), &st) == 0 && S_ISDIR(st.st_mode))) continue;
    make_directory(whole, /*may_exist=*/true, hook);
  }
}

void rename_path(const fs::path& from, const fs::path& to, SyscallHook* hook) {
  const int e = guarded(hook, SyscallKind::kRename, from, to,
                        [&] { return ::rename(from.c_str(), to.c_str()); });
  if (e != 0) throw StorageError("renaming {} to {}: {}", from.string(), to.string(), reason(e));
}

bool exchange_paths(const fs::path& a, const fs::path& b, SyscallHook* hook) {
  const int e = guarded(hook, SyscallKind::kExchange, a, b, [&] {
    return static_cast<int>(
        ::syscall(SYS_renameat2, AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), RENAME_EXCHANGE));
  });
  if (e == EINVAL || e == ENOSYS || e == EOPNOTSUPP) return false;
  if (e != 0) throw StorageError("exchanging {} and {}: {}", a.string(), b.string(), reason(e));
  return true;
}

void fsync_directory(const fs::path& path, SyscallHook* hook) {
  if (const int e = ask(hook, SyscallKind::kFsyncDir, path); e != 0)
    throw StorageError("fsync of directory {}: {}", path.string(), reason(e));
  const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) throw StorageError("opening directory {}: {}", path.string(), reason(errno));
  int rc = 0;
  do {
    rc = ::fsync(fd);
  } while (rc < 0 && errno == EINTR);
  const int e = rc < 0 ? errno : 0;
  ::close(fd);
  // Some network file systems have no fsync of a directory; they order names themselves.
  if (e != 0 && e != EINVAL && e != ENOTSUP && e != EBADF)
    throw StorageError("fsync of directory {}: {}", path.string(), reason(e));
}

void remove_tree(const fs::path& path, SyscallHook* hook) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  int e = 0;
  if (fd >= 0) {
    remove_below(fd, path, hook);
    e = guarded(hook, SyscallKind::kRmdir, path, {}, [&] { return ::rmdir(path.c_str()); });
  } else if (errno == ENOTDIR || errno == ELOOP) {
    e = guarded(hook, SyscallKind::kUnlink, path, {}, [&] { return ::unlink(path.c_str()); });
  } else {
    e = errno;
  }
  if (e != 0 && e != ENOENT) throw StorageError("cannot remove {}: {}", path.string(), reason(e));
}

void require_free_space(const fs::path& path, uint64_t bytes) {
  struct statvfs v {};
  if (::statvfs(path.c_str(), &v) != 0)
    throw StorageError("{}: cannot ask for free space: {}", path.string(), reason(errno));
  const auto free = checked_mul(v.f_bavail, v.f_frsize);
  const auto need = checked_add(bytes, bytes / 20);  // 1.05 x: headers, directories, block rounding
  if (!need || (free && *free < *need))
    throw StorageError(
        "{}: {} bytes are needed and {} are free; make room or choose another --output",
        path.string(), need.value_or(UINT64_MAX), free.value_or(UINT64_MAX));
}

}  // namespace r1::checkpoint
