// A communicator that measures how long a rank's stream stands in each operation between ranks: what --profile tells of
// exposed communication and of waiting for other stages.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "runtime/core/flight_recorder.h"
#include "runtime/device/device.h"

namespace r1::comm {

/// One kind of operation of one group over a profile.
struct CommTime {
  std::string group;  ///< name of the group
  Operation op = Operation::kNone;
  int64_t calls = 0;
  double seconds = 0;  ///< between the arrival of the stream and its going on: waiting for others and the transfer itself
  double bytes = 0;    ///< of the whole tensors; 0 for barriers, for what is only started, and for waits
};

/// Collects the times of one rank. Operations on a GPU's stream are timed by two events on it, others by the host's clock (CPU
/// streams have run when a call returns). One thread; it must outlive the groups that it times.
class CommClock {
 public:
  /// `kind`: of the device whose streams are timed by events.
  explicit CommClock(DeviceKind kind) : kind_(kind) {}
  ~CommClock();
  CommClock(const CommClock&) = delete;
  CommClock& operator=(const CommClock&) = delete;
  /// From now on operations are timed. Not while a graph is being captured.
  void start() { on_ = true; }
  /// Ends it; waits for the device. Longest first.
  [[nodiscard]] std::vector<CommTime> stop();

  /// Runs `work`, which enqueues on `s`.
  template <class Work>
  auto time(const std::string& group, Operation op, size_t bytes, const Stream& s, Work&& work) {
    const Scope scope(*this, group, op, bytes, s);
    return work();
  }

 private:
  struct Sample {
    size_t entry = 0;
    Event begin, end;
    double seconds = 0;  // of the host's clock
    bool events = false;
  };
  /// Also when the operation throws: the events belong to the clock then.
  class Scope {
   public:
    Scope(CommClock& clock, const std::string& group, Operation op, size_t bytes, const Stream& s);
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    CommClock& clock_;
    const Stream& s_;
    bool on_;
    Sample sample_;
    std::chrono::steady_clock::time_point start_;
  };
  [[nodiscard]] size_t entry(const std::string& group, Operation op);

  DeviceKind kind_;
  bool on_ = false;
  std::vector<CommTime> entries_;
  std::vector<Sample> samples_;
};

/// `inner`, whose operations are timed while the clock is on, and the groups split from it likewise; groups of one rank are
/// left as they are. `inner` and `clock` must outlive it.
[[nodiscard]] std::unique_ptr<Communicator> make_timed(Communicator& inner, CommClock& clock);

}  // namespace r1::comm
