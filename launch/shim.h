// The parent of one rank. mpirun and srun start r1run once per rank; r1run starts r1run-rank and
// outlives it, so that whatever kills the rank, its cause is printed once and the launcher sees a
// documented exit code. (Open MPI 4.1.4 does nothing while this parent lives: killing the child of
// one of 3 ranks left mpirun quiet for the 6 s the parent took to end, and mpirun then returned the
// parent's code.)
#pragma once

#include <string>
#include <vector>

#include "launch/detect.h"
#include "launch/fault.h"

namespace r1::launch {

/// Set by our own launcher: parents of ranks then write records (kRecordMark + JSON) instead of
/// text.
inline constexpr const char* kSupervisedVariable = "R1RUN_SUPERVISED";
/// First byte of a record line on standard error (ASCII record separator): cannot start a line of
/// text.
inline constexpr char kRecordMark = '\x1e';

struct ShimOptions {
  std::string rank_program;            ///< full path of r1run-rank
  std::vector<std::string> arguments;  ///< passed through unchanged
  Whereabouts where;
  bool supervised = false;
  std::vector<std::string>
      launcher_addresses;  ///< of the supervising launcher; empty: no control channel
  int control_port = 0;
  std::string control_token;
  std::string warning;  ///< for people, said by rank 0 before its rank program starts; may be empty
  std::string job_dir;  ///< directory that all ranks of the job on this host share; empty: none
  std::string output;   ///< of the job, for the flight record of a rank that is a cause; empty: none is kept
  /// SIGTERM may be a notice (srun passes on Slurm's of preemption, time limit and scancel): the rank
  /// saves first. Not so under mpirun, which sends it when another rank has failed.
  bool term_saves = false;
  bool every_rank_reports = false;  ///< each parent on a host, not only the first, keeps a control channel
  double peer_timeout_s = 10;  ///< a rank that has been stopped this long is a fault
  /// Waiting times before a fault is printed, during which the launcher's SIGTERM says that another
  /// rank is the cause. Open MPI sends it 1 s after the first non-zero exit on the same host, 3 s
  /// on other hosts (measured).
  /// Asked to end, the rank gets this long before it is killed; 0: as long as the launcher gives
  /// it. mpirun kills 1 s after SIGTERM and then leaves orphans for init to collect: being quicker
  /// leaves nothing.
  double end_grace_s = 0;
  /// On a host without rank 0, for reported errors (which all ranks may share): until SIGTERM of
  /// the end that rank 0 causes would have come.
  double remote_report_wait_s = 3.5;
  double report_wait_s = 0.2, silent_exit_wait_s = 0.4, secondary_wait_s = 4.0;
};

/// Options as the environment and the user's arguments (`--peer-timeout`) give them.
[[nodiscard]] ShimOptions shim_options(const Environment& env, const Whereabouts& where,
                                       std::vector<std::string> arguments);

/// Starts the rank, passes signals on, waits, prints at most one line on standard error, and
/// returns the exit code for the launcher: the rank's own when it ended by itself, the documented
/// one when it died; in 0…125 always.
[[nodiscard]] int run_shim(const ShimOptions& options);

}  // namespace r1::launch
