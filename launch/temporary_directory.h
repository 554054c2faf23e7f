// A directory for the files of one command.
#pragma once

#include <stdlib.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <string>
#include <system_error>

#include "runtime/core/error.h"

namespace r1::launch {

/// A fresh directory "r1run-NAME-…" where the system keeps temporary files, open to this user alone; gone with the object.
/// Throws StorageError.
class TemporaryDirectory {
 public:
  explicit TemporaryDirectory(const std::string& name) {
    std::string path = (std::filesystem::temp_directory_path() / ("r1run-" + name + "-XXXXXX")).string();
    if (mkdtemp(path.data()) == nullptr)
      throw StorageError("cannot create a temporary directory {}: {}", path, std::strerror(errno));
    path_ = path;
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  [[nodiscard]] std::string file(const std::string& name) const { return (path_ / name).string(); }

 private:
  std::filesystem::path path_;
};

}  // namespace r1::launch
