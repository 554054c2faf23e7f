// `--profile N`: the time of every operation over N steps, against the ceilings measured on this device.
#pragma once

#include "runtime/train/context.h"
#include "runtime/train/engine.h"

namespace r1::train {

class StepProfile {
 public:
  /// `gemm_rate`: FLOP/s of this rank's device alone, measured.
  StepProfile(const RankContext& ctx, Engine& engine, int64_t steps, double gemm_rate);
  /// Around each step; the profile begins after three steps of warm-up. Collective when it ends.
  void before_step();
  void after_step(double seconds);

 private:
  void report();

  static constexpr int64_t kWarmupSteps = 3;
  const RankContext& ctx_;
  Engine& engine_;
  int64_t steps_, seen_ = 0;
  double gemm_rate_, seconds_ = 0;
};

/// Bytes/s of a large copy on the device, read and written bytes counted.
[[nodiscard]] double measure_copy_rate(const Device& device);

}  // namespace r1::train
