// The place that a placement gives a rank, taken on the host itself: a map may be of another machine,
// and what it names that is not here would do harm (NCCL without an adapter it knows falls back to
// sockets without a word).
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace r1::launch {

struct PlacedHere {
  std::vector<std::pair<std::string, std::string>> environment;  ///< for the rank
  std::vector<std::string> warnings;  ///< what of its place this host does not have
};

/// Binds this process, and so the rank it will start, to the CPUs that the table (kPlacementVariable)
/// gives this local rank; returns the rank's variables without those that name adapters or GPUs which
/// are not here. `root`: prefix of /sys and /proc, for tests. Throws UsageError on a table that is
/// none.
[[nodiscard]] PlacedHere take_place(std::string_view table, std::string_view host, int local_rank,
                                    const std::string& root = "");

}  // namespace r1::launch
