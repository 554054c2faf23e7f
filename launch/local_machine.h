// Starting ranks on this machine.
#pragma once

#include "launch/command.h"
#include "launch/detect.h"
#include "runtime/core/options.h"

namespace r1::launch {

/// Cores (hwloc) within this process's allowed set, and whether it runs as root.
[[nodiscard]] LocalMachine local_machine();

/// A subcommand that needs ranks: its options, and the words the ranks get (the user's own,
/// subcommand first).
struct Request {
  JobConfig config;
  std::vector<std::string> for_ranks;
  [[nodiscard]] int world() const { return config.pp * config.dp * config.tp; }
};

enum class Announce { kNo, kYes };

/// Starts the ranks of a subcommand on this machine and returns the job's exit code. A single rank
/// needs no MPI launcher. With --dry-run prints the command instead. Throws UsageError.
[[nodiscard]] int launch_local(const Request& request, const Environment& env, Announce announce);

}  // namespace r1::launch
