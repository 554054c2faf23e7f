#include "runtime/train/step_health.h"

#include <fmt/ranges.h>

#include <cmath>

#include "runtime/core/log.h"

namespace r1::train {
namespace {

/// JSON has no NaN and no infinity: they are written as words.
nlohmann::ordered_json number(double v) {
  if (std::isfinite(v)) return v;
  return std::isnan(v) ? "nan" : v > 0 ? "inf" : "-inf";
}

}  // namespace

bool StepHealth::finite(double loss, double norm) { return std::isfinite(loss) && std::isfinite(norm); }

std::vector<std::string> StepHealth::samples_of(const Step& step, size_t most) const {
  std::vector<std::string> out;
  for (int64_t r = step.first_row; r < step.first_row + step.rows; ++r)
    for (const int64_t sample : data_.row(r).samples) {
      if (out.size() == most) return out;
      const auto& source = data_.stats().sources.at(static_cast<size_t>(data_.sample_source(sample)));
      out.push_back(fmt::format("{}:{}", source.path.filename().string(), data_.sample_line(sample)));
    }
  return out;
}

std::string StepHealth::rows_text(const Step& step) const {
  constexpr size_t kShown = 8;
  std::vector<std::string> samples = samples_of(step, kShown + 1);
  const bool more = samples.size() > kShown;
  if (more) samples.back() = "...";
  return fmt::format("rows {} to {}: {}", step.first_row, step.first_row + step.rows - 1, fmt::join(samples, ", "));
}

bool StepHealth::observe(const Step& step) {
  constexpr size_t kListed = 1000;
  const bool skipped = !finite(step.loss, step.norm);
  in_a_row_ = skipped ? in_a_row_ + 1 : 0;
  const std::optional<LossSpikes::Spike> spike = spikes_.add(step.loss);
  if (!ctx_.first()) return skipped;
  const int64_t last_row = step.first_row + step.rows - 1;
  if (skipped) {
    log::warn("step {}: the {} is not finite (loss {}, gradient norm {}): the step is skipped on all ranks, weights unchanged ({})",
              step.step, std::isfinite(step.loss) ? "gradient" : "loss", step.loss, step.norm, rows_text(step));
    metrics_({{"type", "skipped"}, {"step", step.step}, {"loss", number(step.loss)}, {"grad_norm", number(step.norm)},
              {"first_row", step.first_row}, {"last_row", last_row}, {"samples", samples_of(step, kListed)},
              {"in_a_row", in_a_row_}});
  } else if (spike) {
    log::warn("step {}: the loss {:.4f} stands out from the steps before it ({:.4f} +- {:.4f}) ({})", step.step, step.loss,
              spike->mean, spike->deviation, rows_text(step));
    metrics_({{"type", "spike"}, {"step", step.step}, {"loss", step.loss}, {"mean", spike->mean},
              {"deviation", spike->deviation}, {"first_row", step.first_row}, {"last_row", last_row},
              {"samples", samples_of(step, kListed)}});
  }
  return skipped;
}

void StepHealth::check(const std::string& saved) const {
  const int64_t most = ctx_.config.max_skipped_steps;
  if (in_a_row_ > most)
    throw DivergedError("{} steps in a row had NaN or Inf (--max-skipped-steps {}); {}", in_a_row_, most, saved);
}

}  // namespace r1::train
