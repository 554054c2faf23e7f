// What is shown while data is read and tokenised.
#pragma once

#include <chrono>
#include <string>

#include "runtime/data/dataset.h"

namespace r1::train {

/// Turns reports of Dataset::open, which come several times a second, into lines at a pace for people: the first after 2 s,
/// then one every 5 s; while another process works, one every 30 s.
class DataProgressLine {
 public:
  using Clock = std::chrono::steady_clock;
  /// The line to show now, or "".
  [[nodiscard]] std::string next(const data::DataProgress& p, Clock::time_point now = Clock::now());

 private:
  std::string file_;
  Clock::time_point begin_{}, due_{};
};

}  // namespace r1::train
