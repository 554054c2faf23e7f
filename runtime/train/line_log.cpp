#include "runtime/train/line_log.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "runtime/core/error.h"
#include "runtime/core/log.h"

namespace r1::train {

LineLog::LineLog(std::filesystem::path path) : path_(std::move(path)) {
  fd_ = Fd(open(path_.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666));
  if (!fd_) throw StorageError("{}: cannot be written: {}", path_.string(), std::strerror(errno));
}

LineLog::~LineLog() {
  if (!waiting_.empty()) write_out();
  if (!waiting_.empty()) log::warn("{}: {} bytes of its last lines could not be written", path_.string(), waiting_.size());
}

void LineLog::append(std::string_view line) {
  waiting_ += line;
  waiting_ += '\n';
  while (waiting_.size() > kMostWaiting) {
    // The first line may be half in the file already: it stays, or its rest would spoil the next.
    const size_t first = waiting_.find('\n') + 1, second = waiting_.find('\n', first) + 1;
    if (second == 0) break;
    waiting_.erase(first, second - first);
    ++dropped_;
  }
  write_out();
}

void LineLog::write_out() {
  size_t done = 0;
  int error = 0;
  while (done < waiting_.size()) {
    const ssize_t n = ::write(fd_.get(), waiting_.data() + done, waiting_.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      error = n < 0 ? errno : ENOSPC;
      break;
    }
    done += static_cast<size_t>(n);
  }
  waiting_.erase(0, done);
  if (error != 0 && !failing_)
    log::warn("{}: cannot be written now ({}): its lines wait in memory", path_.string(), std::strerror(error));
  if (error == 0 && failing_)
    log::warn("{}: can be written again{}", path_.string(), dropped_ > 0 ? fmt::format("; {} lines were too many to keep", dropped_) : "");
  failing_ = error != 0;
  if (!failing_) dropped_ = 0;
}

}  // namespace r1::train
