// From summed gradients to updated weights: global-norm clipping, AdamW, LR schedules.
//
// On a device with streams the update runs beside what follows it: unit by unit in the order in which the next forward needs
// the weights, on a stream that yields to the computation.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/device/device.h"
#include "runtime/optim/gradients.h"

namespace r1::optim {

struct AdamWOptions {
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0.0;
  /// Parameter classes without weight decay: any of "norm", "bias", "embedding".
  std::vector<std::string> no_decay;
  double clip = 0.0;  ///< largest global gradient norm; 0: no clipping
  uint64_t seed = 0;  ///< stochastic rounding of bf16 states
};

class AdamW {
 public:
  AdamW(std::vector<ParamBlock> blocks, AdamWOptions options, parallel::ProcessGroups& groups, Device device);
  ~AdamW();
  AdamW(const AdamW&) = delete;
  AdamW& operator=(const AdamW&) = delete;
  /// One update. `sum_squares` from GradientNorm, `loss` [1] fp64; one of them that is not finite leaves all state unchanged.
  /// step counts from 1; lr is this step's. With shards each rank updates its own rows, and units of updated weights are on
  /// their way to the other replicas while the next ones are computed. What is enqueued on `s` afterwards sees the update only
  /// behind wait(), and must not write gradients before. Collective over dp.
  void step(double lr, int64_t step, const Tensor& sum_squares, const Tensor& loss, const Stream& s);
  /// What is enqueued on `s` from here on, captured or not, sees the newest weights of a unit (see Unit), or of all units.
  void wait(int stage, int64_t layer, const Stream& s) const;
  void wait(const Stream& s) const;
  /// Off: updates run on the caller's stream (a profile times single operations).
  void set_beside(bool on) { beside_ = on; }

 private:
  /// Neighbouring elements of a block that are treated alike: [begin, end) of weights and gradients, from state_begin of the
  /// optimizer state.
  struct Range {
    int64_t begin = 0, end = 0, state_begin = 0;
    bool decay = true;
  };
  struct Work {
    size_t block = 0;
    int64_t layer = 0;
    std::vector<Range> ranges;
    std::vector<ShardExchange::Bucket> buckets;  ///< of weights, with shards
    Event updated;
  };
  [[nodiscard]] bool decays(const parallel::ParamSpec& p) const;
  void add_ranges(Work& work, size_t first, size_t last) const;

  std::vector<ParamBlock> blocks_;
  AdamWOptions options_;
  std::vector<Work> work_;
  ShardExchange exchange_;
  Buffer factor_;
  DeviceBackend& backend_;
  Stream side_;
  Event begun_, ended_;
  bool beside_ = true;
};

/// Learning rate by step. Warm-up: step s of W (from 0) uses lr * (s + 1) / W; then the schedule over the remaining steps.
struct LrSchedule {
  enum class Kind { kConstant, kLinear, kCosine } kind = Kind::kConstant;
  double lr = 0, min_lr = 0;
  int64_t warmup_steps = 0, total_steps = 0;
  [[nodiscard]] double at(int64_t step) const;
};
[[nodiscard]] LrSchedule::Kind parse_lr_schedule(const std::string& name);

}  // namespace r1::optim
