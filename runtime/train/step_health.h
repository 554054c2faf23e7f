// Watches the loss and the gradient norm of each step: steps that were skipped because of NaN or Inf, and losses that stand out.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "runtime/data/dataset.h"
#include "runtime/train/context.h"
#include "runtime/train/loss_spikes.h"

namespace r1::train {

class StepHealth {
 public:
  using Metrics = std::function<void(nlohmann::ordered_json)>;
  /// `metrics` takes lines of metrics.jsonl on the first rank.
  StepHealth(const RankContext& ctx, const data::Dataset& data, Metrics metrics)
      : ctx_(ctx), data_(data), metrics_(std::move(metrics)), spikes_(ctx.config.spike_sigmas) {}

  struct Step {
    int64_t step = 0;                ///< from 1
    int64_t first_row = 0, rows = 0; ///< global rows of the step
    double loss = 0, norm = 0;
  };
  /// Whether a step's loss and gradient are finite: only then may the weights change. The same on every rank.
  [[nodiscard]] static bool finite(double loss, double norm);
  /// Takes a step, the same on every rank: counts it, and warns with the rows and their samples. True when it was skipped.
  bool observe(const Step& step);
  [[nodiscard]] int64_t skipped_in_a_row() const { return in_a_row_; }
  /// Throws DivergedError when more than --max-skipped-steps in a row were skipped; `saved`: what can be gone back to.
  void check(const std::string& saved) const;

 private:
  /// "data.jsonl:12" of each sample in the rows, at most `most` of them.
  [[nodiscard]] std::vector<std::string> samples_of(const Step& step, size_t most) const;
  [[nodiscard]] std::string rows_text(const Step& step) const;

  const RankContext& ctx_;
  const data::Dataset& data_;
  Metrics metrics_;
  LossSpikes spikes_;
  int64_t in_a_row_ = 0;
};

}  // namespace r1::train
