// What is wrong with a job of which the hub knows each rank's last heartbeat. Pure.
#pragma once

#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "comm/watch/frames.h"

namespace r1::comm {

/// A rank as the hub sees it.
struct RankView {
  Heartbeat beat;
  std::string host;
  bool joined = false;    ///< it has said hello and sent a heartbeat
  bool finished = false;  ///< it has said farewell
  bool gone = false;      ///< its connection is closed, without a farewell
};

/// Who holds up a job in which nothing moves, and what for.
struct Diagnosis {
  std::vector<int> culprits;  ///< ranks that others wait for and that wait for nobody; all of a cycle
  bool cycle = false;         ///< the culprits wait for each other
  bool deadlock = false;      ///< a cycle of collectives: time cannot resolve it, while a transfer both sides are in may just be long
  std::string why;            ///< "no progress for 3.0 s in forward stage 0 micro-batch 1; waited for by ranks 0, 2: …"
};
/// Follows who waits for whom: in a collective, for the members that have not come to it; in a transfer, for the other side.
[[nodiscard]] Diagnosis diagnose(std::span<const RankView> ranks, double stalled_s);

/// One line a rank: what it is in, since when. Equal lines of neighbours are joined.
[[nodiscard]] std::string stall_table(std::span<const RankView> ranks);

/// "0, 2-5, 7"
[[nodiscard]] std::string rank_list(std::span<const int> ranks);

/// Finds ranks whose own work takes longer than their peers' (ranks of the same stage) or, compared with all, than at the
/// beginning. Own work: a step's time without what was spent waiting for others.
class SlowRanks {
 public:
  /// A rank is slow when its work takes `ratio` times its peers' median in `windows` windows in a row; a window has some steps
  /// and takes some seconds.
  struct Limits {
    double ratio = 1.5;
    int windows = 3;
    double window_s = 2.0;
    int window_steps = 3;
    double least_s = 0.02;  ///< excess of work a step below which nothing is said
  };
  explicit SlowRanks(Limits limits) : limits_(limits) {}
  SlowRanks() : SlowRanks(Limits{}) {}
  /// Call it with each new set of heartbeats; lines for people, each once per slow period of a rank.
  [[nodiscard]] std::vector<std::string> update(std::span<const RankView> ranks);

 private:
  struct State {
    int64_t step = -1, ns = 0, waited_ns = 0;  // where the window began
    double first_work = 0;                     // seconds a step, in the first window
    int slow_windows = 0;
    bool told = false;
  };
  Limits limits_;
  std::map<int, State> state_;
  bool warm_ = false;
};

}  // namespace r1::comm
