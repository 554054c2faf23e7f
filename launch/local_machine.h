// Starting ranks on this machine.
#pragma once

#include "launch/arguments.h"
#include "launch/command.h"
#include "launch/detect.h"

namespace r1::launch {

/// Cores (hwloc) within this process's allowed set, and whether it runs as root.
[[nodiscard]] LocalMachine local_machine();

enum class Announce { kNo, kYes };

/// Starts the ranks of a subcommand on this machine and returns the job's exit code. A single rank
/// needs no MPI launcher. With --dry-run prints the command instead. Throws UsageError.
[[nodiscard]] int launch_local(const Arguments& a, const Environment& env, Announce announce);

}  // namespace r1::launch
