// The control thread of a rank: heartbeats to a hub on rank 0 over TCP of its own, beside whatever the training uses. It calls no
// MPI, CUDA or NCCL and takes no lock of the training's, so it goes on when the training is stuck.
//
// The hub ends the job when a rank falls silent (its process is stopped, its host cut off), vanishes, finishes before the others,
// or when nothing has moved anywhere for a while. The rank that is the cause is told so and tells it itself; the others leave
// quietly.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "comm/watch/diagnose.h"
#include "runtime/core/rank_status.h"

namespace r1::comm {

struct WatchOptions {
  int rank = 0, size = 1;
  std::string host;
  double peer_timeout_s = 10;    ///< silence of a rank
  double stall_timeout_s = 600;  ///< nothing moves anywhere; three times that before the first step
  std::string stall_report;      ///< file for the table of ranks when it is too long to print; empty: none
};

/// Why this rank must leave now.
struct Leave {
  ReportKind kind = ReportKind::kSecondary;
  ExitCode code = ExitCode::kTemporary;
  std::string why;
};

/// What rank 0 makes before the others can join: a listening socket and a secret.
class WatchHub;
struct HubOffer {
  std::unique_ptr<WatchHub> hub;  ///< null on a job of one rank
  std::string text;               ///< for broadcasting: addresses, port, token
};
/// On rank 0. `one_host`: listens on the loopback interface only. Throws CommError when the system gives no port.
[[nodiscard]] HubOffer make_hub(const WatchOptions& options, bool one_host);

class Watch {
 public:
  /// `hub` on rank 0, null elsewhere; `offer` as broadcast. `leave` is called from the control thread, once, and must end the
  /// process. `status` and its flight recorder must outlive it.
  Watch(WatchOptions options, std::unique_ptr<WatchHub> hub, const std::string& offer, const RankStatusWriter& status,
        std::function<void(const Leave&)> leave);
  /// Says farewell: call it when the job ends as it should on this rank.
  ~Watch();
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;
  /// The pipeline rank, once the mesh is known.
  void set_stage(int stage) { stage_.store(stage); }

 private:
  void run();
  WatchOptions options_;
  std::unique_ptr<WatchHub> hub_;
  std::string offer_;
  const RankStatusWriter& status_;
  std::function<void(const Leave&)> leave_;
  std::atomic<int> stage_{-1};
  std::atomic<bool> ending_{false};
  std::thread thread_;
};

}  // namespace r1::comm
