#include "runtime/train/loss_spikes.h"

#include <algorithm>
#include <cmath>

namespace r1::train {
namespace {

constexpr size_t kFewest = 20;         // steps before the first judgement
constexpr double kSmallestShare = 0.01;  // of the mean: least deviation assumed

}  // namespace

std::optional<LossSpikes::Spike> LossSpikes::add(double loss) {
  if (!std::isfinite(loss) || sigmas_ <= 0) return std::nullopt;
  std::optional<Spike> spike;
  if (recent_.size() >= kFewest) {
    const auto n = static_cast<double>(recent_.size());
    double mean = 0, squares = 0;
    for (const double x : recent_) mean += x / n;
    for (const double x : recent_) squares += (x - mean) * (x - mean) / n;
    const double deviation = std::max(std::sqrt(squares), kSmallestShare * std::abs(mean));
    if (loss > mean + sigmas_ * deviation) spike = Spike{mean, deviation};
  }
  recent_.push_back(loss);
  if (recent_.size() > window_) recent_.pop_front();
  return spike;
}

}  // namespace r1::train
