// A directory that the ranks of one host share for a while.
#pragma once

#include <filesystem>

#include "comm/communicator.h"

namespace r1::train {

class HostScratch {
 public:
  /// A new directory under $TMPDIR (or /tmp) of each host of the world. Collective. Throws StorageError on the ranks of a host
  /// where none can be made.
  explicit HostScratch(comm::Communicator& world);
  HostScratch(const HostScratch&) = delete;
  HostScratch& operator=(const HostScratch&) = delete;
  /// Removes it if remove() was not reached.
  ~HostScratch();

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  /// Removes the directory once every rank has come here; files in it that are mapped stay readable. Collective.
  void remove();

 private:
  comm::Communicator& world_;
  std::filesystem::path path_;
  bool owner_ = false;  // this rank made it
};

}  // namespace r1::train
