#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "runtime/data/cache.h"
#include "runtime/data/file_io.h"

namespace r1::data {
namespace fs = std::filesystem;

std::optional<CacheLock> CacheLock::try_acquire(const fs::path& cache_file) {
  fs::path path = cache_file;
  path += ".lock";
  make_cache_directory(path.parent_path());
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

}  // namespace r1::data
