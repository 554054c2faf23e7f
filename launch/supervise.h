// Runs the launch command, passes signals on, gathers the ranks' fault records and prints one root
// cause.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "launch/command.h"
#include "launch/fault.h"

namespace r1::launch {

struct SuperviseOptions {
  int hosts = 1;
  double peer_timeout_s = 10;  ///< a host that has been silent this long is lost
  /// True for jobs that save on SIGUSR1: a request to end (SIGTERM, Ctrl-C) then becomes "save and
  /// stop" first.
  bool saves_on_request = false;
  /// What it means when the launcher could not start the ranks: a mistake in the command or the
  /// hostfile (mpirun), or nodes that are not ready (srun, whose hosts Slurm chose).
  ExitCode start_failure = ExitCode::kUsage;
  /// Whether the ranks' parents are told to end their ranks once a cause is known. mpirun does that
  /// itself; srun's SIGTERM may also be a notice of preemption, at which a rank saves first.
  bool tells_ranks_to_end = false;
  bool forward_stdin = false;  ///< hand this process's standard input to rank 0
  /// After a request to end, the job has this long to save before the ranks are ended.
  double save_grace_s = 25;
};

/// Cuts records out of a stream of output. Bytes of ordinary text are returned at once, so progress
/// lines are not held back.
class RecordFilter {
 public:
  /// Returns the text to show; complete records are appended to `records`.
  [[nodiscard]] std::string feed(std::string_view bytes, std::vector<FaultRecord>* records);
  /// What is left at the end of the stream.
  [[nodiscard]] std::string finish();

 private:
  bool in_record_ = false;
  std::string partial_;
};

/// The record that names the cause: primary before secondary, then the order of arrival (clocks of
/// hosts differ). nullopt when there is none.
[[nodiscard]] std::optional<FaultRecord> root_cause(const std::vector<FaultRecord>& records);

/// The code for the caller when the launcher ended and no record came. `own_failures`: what it means
/// when the launcher itself could not start the ranks.
[[nodiscard]] int code_without_record(int wait_status, bool stop_requested,
                                      ExitCode own_failures = ExitCode::kUsage);

/// How a job ended.
struct JobOutcome {
  int code = 0;                      ///< the root cause's, else what the launcher's own means
  std::optional<FaultRecord> cause;  ///< what was printed; empty when no rank left a word
  std::vector<std::string> lost_hosts;
  bool stop_requested = false;  ///< by a signal to this process: to end, or to save and end
  /// Ended by a fault (a rank's, a host's or the launcher's own), not on request and not as it
  /// should.
  bool fault = false;
  bool launcher_failed =
      false;  ///< a fault of the launcher's own: it could not start or hold the ranks
};

/// Runs the command to its end. Throws InternalError when the system refuses pipes or processes,
/// UsageError when the command cannot be executed.
[[nodiscard]] JobOutcome supervise(const Command& command, const SuperviseOptions& options);

}  // namespace r1::launch
