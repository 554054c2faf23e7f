// What the front door needs to know of the user's arguments before any rank runs.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "parallel/mesh/mesh.h"

namespace r1::launch {

struct Arguments {
  std::string subcommand = "train";
  bool help = false, version = false;
  parallel::MeshShape mesh;
  int threads = 0;  ///< 0: not given
  double peer_timeout_s = 10;
  std::vector<std::string> layouts;      ///< verify: --layouts, when given
  std::optional<std::string> json;       ///< verify: --json
  std::optional<std::string> reference;  ///< verify: --reference
  // The front door's own options; the ranks do not get them.
  bool dry_run = false;
  std::optional<std::string> hostfile;  ///< --hostfile
  std::optional<std::string> hosts;     ///< --host a:2,b:2
  int max_restarts = 0;
  /// The user's arguments without the front door's own, in their order.
  std::vector<std::string> for_ranks;
};

/// Names of the subcommands whose work is done by ranks.
[[nodiscard]] bool needs_ranks(const std::string& subcommand);

/// Reads the arguments (without the program's name). Values the ranks will refuse anyway are left
/// to them; throws UsageError for what the front door itself cannot work with.
[[nodiscard]] Arguments read_arguments(const std::vector<std::string>& arguments);

/// The arguments without the options named (each with its value, in either spelling).
[[nodiscard]] std::vector<std::string> without_options(const std::vector<std::string>& arguments,
                                                       const std::vector<std::string>& names);

}  // namespace r1::launch
