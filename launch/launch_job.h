// Starting ranks: here, on the hosts of a hostfile, or in an allocation.
#pragma once

#include "launch/command.h"
#include "launch/detect.h"
#include "launch/hostfile.h"
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

/// Where ranks go when there is more than this machine.
struct Destination {
  enum class Kind { kThisMachine, kMpirun, kSrun } kind = Kind::kThisMachine;
  Cluster cluster;
};
/// The hosts of --hostfile, those of --host, or what --host takes from --hostfile. Throws UsageError.
[[nodiscard]] Cluster given_hosts(const JobConfig& config);
/// Decides from the options and the surroundings: --hostfile, --host, a Slurm or PBS allocation, a
/// default hostfile, else this machine. Throws UsageError when a hostfile cannot be used.
[[nodiscard]] Destination choose_destination(const JobConfig& config, const Whereabouts& where,
                                             const Environment& env);

enum class Announce { kNo, kYes };

/// Starts the ranks of a subcommand and returns the job's exit code. A single rank
/// needs no MPI launcher. With --dry-run prints the command instead. Throws UsageError.
[[nodiscard]] int launch(const Request& request, const Destination& destination,
                         const Environment& env, Announce announce);

}  // namespace r1::launch
