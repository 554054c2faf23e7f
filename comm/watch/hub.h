// The hub of the control channel: what it hears from ranks, and what it concludes.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "comm/watch/watch.h"
#include "runtime/core/fd.h"

namespace r1::comm {

/// What the hub concludes from what it hears: pure but for the time that it is given, so that tests need no sockets.
class Judge {
 public:
  explicit Judge(const WatchOptions& options);
  void joined(int rank, const std::string& host, double now);
  void heard(const Heartbeat& beat, double now);
  void farewell(int rank, double now);
  void lost(int rank, double now);  ///< its connection closed without a farewell

  struct Verdict {
    ExitCode code = ExitCode::kTemporary;
    std::vector<int> culprits;  ///< empty: none can be told to speak for itself
    bool speaks = false;        ///< the first culprit is alive and tells the cause itself
    bool primary = true;        ///< false: somebody else (a parent process) has told or will tell the cause
    std::string why, table;
  };
  /// Nothing while all is well. Call it several times a second.
  [[nodiscard]] std::optional<Verdict> judge(double now);
  [[nodiscard]] std::vector<std::string> slow_ranks() { return slow_.update(views_); }
  [[nodiscard]] const std::vector<RankView>& views() const { return views_; }

 private:
  WatchOptions o_;
  std::vector<RankView> views_;
  std::vector<double> heard_at_, ended_at_;
  SlowRanks slow_;
  double moved_at_ = 0, last_ = 0;
};

class WatchHub {
 public:
  WatchHub(const WatchOptions& options, bool one_host);
  ~WatchHub();
  WatchHub(const WatchHub&) = delete;
  WatchHub& operator=(const WatchHub&) = delete;
  [[nodiscard]] std::string offer() const;
  /// Sockets to poll for reading.
  [[nodiscard]] std::vector<int> sockets() const;
  /// Accepts, reads; `own`: this rank's heartbeat. What the job must end for.
  [[nodiscard]] std::optional<Judge::Verdict> service(const Heartbeat& own, double now);
  [[nodiscard]] std::vector<std::string> slow_ranks() { return judge_.slow_ranks(); }
  /// Tells the ranks to leave.
  void stop(const Judge::Verdict& verdict);
  /// True when the rank has closed its connection.
  [[nodiscard]] bool has_left(int rank) const { return judge_.views()[static_cast<size_t>(rank)].gone; }
  [[nodiscard]] const std::string& host_of(int rank) const { return judge_.views()[static_cast<size_t>(rank)].host; }
  void farewell();

 private:
  struct Peer {
    Fd fd;
    int rank = -1;  ///< -1 until the token was right
    double since = 0;
    FrameReader reader;
  };
  void read(Peer& peer, double now);

  WatchOptions o_;
  Judge judge_;
  Fd listener_;
  int port_ = 0;
  bool one_host_;
  std::string token_;
  std::vector<Peer> peers_;
};

}  // namespace r1::comm
