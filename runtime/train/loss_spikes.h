// Notices a loss far above those of the steps before it. Pure.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>

namespace r1::train {

class LossSpikes {
 public:
  /// A loss more than `sigmas` standard deviations above the mean of up to `window` steps before it is a spike; 0: never.
  explicit LossSpikes(double sigmas, size_t window = 50) : sigmas_(sigmas), window_(window) {}
  struct Spike {
    double mean = 0, deviation = 0;  ///< of the steps before
  };
  /// Takes the next loss; what it stands out from when it is a spike. Losses that are not finite are left out. Needs 20 steps
  /// first. The deviation counts as 1 % of the mean at least: on a plateau noise is no spike.
  [[nodiscard]] std::optional<Spike> add(double loss);

 private:
  double sigmas_;
  size_t window_;
  std::deque<double> recent_;
};

}  // namespace r1::train
