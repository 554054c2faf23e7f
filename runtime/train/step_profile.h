// `--profile N`: the time of every operation over N steps, against the ceilings measured on this device, and what each rank
// spends computing and waiting: the pipeline's bubble and exposed communication.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "comm/timed/timed.h"
#include "runtime/kernels/profile.h"
#include "runtime/train/context.h"
#include "runtime/train/engine.h"

namespace r1::train {

/// Where a rank's time between ranks goes, seconds.
struct WaitingTime {
  double bubble = 0;   ///< in operations along the pipeline: waiting for another stage, and the messages themselves
  double exposed = 0;  ///< in all others: communication (and the wait for slower ranks) that computation does not hide
};
[[nodiscard]] WaitingTime waiting_time(std::span<const comm::CommTime> times);

/// What a rank computes: matrix products, whose rate tells a slow card from a large share of the work, and everything else.
struct ComputeTime {
  double products = 0;       ///< seconds
  double product_flops = 0;
  double others = 0;         ///< seconds
};
[[nodiscard]] ComputeTime compute_time(std::span<const kernels::OpProfile> ops);

class StepProfile {
 public:
  using Metrics = std::function<void(nlohmann::ordered_json)>;
  static constexpr int64_t kWarmupSteps = 3;  ///< before the first step that is profiled
  /// `gemm_rate`: FLOP/s of this rank's device alone, measured. `metrics` takes lines of metrics.jsonl on the first rank.
  StepProfile(const RankContext& ctx, Engine& engine, int64_t steps, double gemm_rate, Metrics metrics);
  /// Around each step; the profile begins after three steps of warm-up. Collective when it ends.
  void before_step();
  void after_step(double seconds);

 private:
  void report();
  /// What each rank computes and waits for: the lines for people; the metrics go out. Collective.
  [[nodiscard]] std::string report_ranks(std::span<const kernels::OpProfile> ops, std::span<const comm::CommTime> times);

  const RankContext& ctx_;
  Engine& engine_;
  int64_t steps_, seen_ = 0;
  double gemm_rate_, seconds_ = 0;
  Metrics metrics_;
};

/// Bytes/s of a large copy on the device, read and written bytes counted.
[[nodiscard]] double measure_copy_rate(const Device& device);

}  // namespace r1::train
