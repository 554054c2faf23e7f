// From accumulated local gradients to updated weights: sums over replicas, global-norm clipping, AdamW, LR schedules.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/exec/process_groups.h"
#include "parallel/spec/model_spec.h"
#include "runtime/device/device.h"

namespace r1::optim {

/// Flat blocks of one virtual stage (see models::StageParameters).
struct ParamBlock {
  const std::vector<parallel::ParamSpec>* specs = nullptr;
  const parallel::ParamLayout* layout = nullptr;
  int tp_rank = 0;
  Tensor weights, gradients, master, exp_avg, exp_avg_sq;  ///< [elems] each; master may be empty
};

/// Sums gradients over everything that holds the same element: tp ranks that share it (norms, replicated kv heads, with
/// each rank's own partial gradient), the two ends of a tied embedding, and dp replicas.
class GradientSync {
 public:
  /// `packed`: fp32/bf16 scratch of parallel::shared_gradient_elems for the largest block.
  GradientSync(std::vector<ParamBlock> blocks, parallel::ProcessGroups& groups, Tensor packed);
  /// Collective over tp, ends and dp.
  void run(const Stream& s) const;

 private:
  struct SharedRun {
    int64_t packed = 0;  ///< element offset in the packed buffer: the same on every tp rank
    int64_t offset = 0;  ///< element offset in the block
    int64_t count = 0;
  };
  std::vector<ParamBlock> blocks_;
  parallel::ProcessGroups& groups_;
  Tensor packed_;
  std::vector<std::vector<SharedRun>> shared_;  ///< per block
  std::vector<int64_t> packed_elems_;           ///< per block
};

/// Sum of squares of all gradients of the model, each element counted once. Collective over the replica group.
class GradientNorm {
 public:
  GradientNorm(std::vector<ParamBlock> blocks, parallel::ProcessGroups& groups, Device device);
  /// Returns the device scalar [1] fp64 with the global sum of squares.
  [[nodiscard]] Tensor run(const Stream& s) const;

 private:
  std::vector<Tensor> owned_;  ///< the runs of gradients this rank counts
  parallel::ProcessGroups& groups_;
  Buffer buffer_;
};

struct AdamWOptions {
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0.0;
  /// Parameter classes without weight decay: any of "norm", "bias", "embedding".
  std::vector<std::string> no_decay;
  double clip = 0.0;  ///< largest global gradient norm; 0: no clipping
  uint64_t seed = 0;  ///< stochastic rounding of bf16 states
};

class AdamW {
 public:
  AdamW(std::vector<ParamBlock> blocks, AdamWOptions options, Device device);
  /// One update. `sum_squares` from GradientNorm; a norm that is not finite leaves all state unchanged.
  /// step counts from 1; lr is this step's.
  void step(double lr, int64_t step, const Tensor& sum_squares, const Stream& s) const;

 private:
  struct Range {
    size_t block = 0;
    int64_t begin = 0, end = 0;
    bool decay = true;
  };
  std::vector<ParamBlock> blocks_;
  AdamWOptions options_;
  std::vector<Range> ranges_;
  Buffer factor_;
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
