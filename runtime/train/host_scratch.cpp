#include "runtime/train/host_scratch.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <system_error>
#include <vector>

#include "runtime/core/error.h"
#include "runtime/train/context.h"

namespace r1::train {

namespace fs = std::filesystem;

HostScratch::HostScratch(comm::Communicator& world) : world_(world) {
  const std::vector<int64_t> hosts = host_of_rank(world);
  const int64_t here = hosts[static_cast<size_t>(world.rank())];
  std::error_code error;
  fs::path base = fs::temp_directory_path(error);
  if (error) base = "/tmp";
  std::string reason;
  for (int rank = 0; rank < world.size(); ++rank) {
    const auto at = hosts.begin() + rank;
    if (std::find(hosts.begin(), at, *at) != at) continue;  // not the first of its host
    std::string made;
    if (rank == world.rank()) {
      made = (base / "r1run-XXXXXX").string();
      if (mkdtemp(made.data()) == nullptr) {
        reason = std::strerror(errno);
        made.clear();
      }
      owner_ = !made.empty();
    }
    made = broadcast_text(world, std::move(made), rank);
    if (*at == here) path_ = made;
  }
  if (path_.empty())
    throw StorageError("{}: no temporary directory can be made{}; set TMPDIR to a place that can be written, or give --cache-dir",
                       base.string(), reason.empty() ? "" : ": " + reason);
}

HostScratch::~HostScratch() {
  std::error_code ignored;
  if (owner_) fs::remove_all(path_, ignored);
}

void HostScratch::remove() {
  world_.barrier();
  std::error_code ignored;
  if (owner_) fs::remove_all(path_, ignored);
  owner_ = false;
}

}  // namespace r1::train
