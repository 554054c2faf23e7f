// --max-restarts: the job is started again from its newest checkpoint, in the same allocation,
// after a fault that a new start may cure (exit code 75). A fault that comes back without a new
// checkpoint between is not cured by starting again: after three of them in a row the job ends.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "launch/launch_job.h"
#include "launch/supervise.h"

namespace r1::launch {

/// Restarts in a row that may pass without a checkpoint newer than the last one's.
inline constexpr int kRestartsWithoutProgress = 3;

/// Decides after each end of the job. Pure.
class RestartPolicy {
 public:
  /// `checkpoint`: the newest step before the first start; -1 none.
  RestartPolicy(int most, int64_t checkpoint) : most_(most), checkpoint_(checkpoint) {}
  struct Decision {
    bool restart = false;
    double pause_s = 0;  ///< before the restart: longer when the last one brought nothing
    std::string reason;  ///< why not, for people; empty when there was nothing to restart
  };
  /// `checkpoint`: the newest step now; -1 none.
  [[nodiscard]] Decision after(const JobOutcome& outcome, int64_t checkpoint);
  [[nodiscard]] int restarts() const noexcept { return restarts_; }

 private:
  int most_;
  int64_t checkpoint_;
  int restarts_ = 0, without_progress_ = 0;
};

/// Steps of the committed checkpoints (step-N with a manifest) in a directory; empty when there is
/// none or it cannot be read.
[[nodiscard]] std::set<int64_t> checkpoint_steps(const std::string& output);

/// The directory a training job writes to when --output is not given: the first of "r1run-out",
/// "r1run-out-2", … that does not exist. The rank program chooses by the same rule; a job that may
/// be restarted has to keep the first choice.
[[nodiscard]] std::string free_output(const std::string& fallback);

/// The words of the ranks of a restart: the user's options with --output and --resume as given and
/// without --max-restarts.
[[nodiscard]] std::vector<std::string> restart_words(const JobConfig& config,
                                                     const std::string& output,
                                                     const std::string& resume);

/// The cluster without the hosts named, when what is left still holds `ranks`; otherwise unchanged:
/// a host may come back.
[[nodiscard]] Cluster without_hosts(const Cluster& cluster, const std::vector<std::string>& lost,
                                    int ranks);

using RunOnce = std::function<JobOutcome(const Request&, const Destination&)>;
/// Waits; false when the process was asked to end meanwhile.
using Pause = std::function<bool(double seconds)>;
[[nodiscard]] bool pause_unless_asked_to_end(double seconds);

/// Runs a training job, again and again as --max-restarts allows. Returns the exit code of the last
/// run.
[[nodiscard]] int run_with_restarts(const Request& request, const Destination& destination,
                                    const RunOnce& run_once,
                                    const Pause& wait = pause_unless_asked_to_end);

}  // namespace r1::launch
