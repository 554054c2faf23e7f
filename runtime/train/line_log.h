// A file of lines that a long job appends to (metrics.jsonl). A full disk must neither end the job nor lose a line: what cannot be
// written waits in memory and goes out with a later line.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include "runtime/core/fd.h"

namespace r1::train {

class LineLog {
 public:
  /// Opens for appending. Throws StorageError when it cannot be.
  explicit LineLog(std::filesystem::path path);
  ~LineLog();
  LineLog(const LineLog&) = delete;
  LineLog& operator=(const LineLog&) = delete;

  /// Appends `line` and a newline, whole lines only as far as the file system takes them. Warns once when it stops taking them, and
  /// once more when it does again. Beyond kMostWaiting bytes the oldest waiting lines are dropped and counted in the warning.
  void append(std::string_view line);
  /// Bytes that wait.
  [[nodiscard]] size_t waiting() const noexcept { return waiting_.size(); }

  static constexpr size_t kMostWaiting = size_t{16} << 20;

 private:
  void write_out();
  std::filesystem::path path_;
  Fd fd_;
  std::string waiting_;
  bool failing_ = false;
  size_t dropped_ = 0;  // lines
};

}  // namespace r1::train
