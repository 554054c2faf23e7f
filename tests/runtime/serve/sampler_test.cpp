// The choice of a token: against distributions computed the plain way, and what it depends on.
#include "runtime/serve/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "runtime/core/rng.h"

namespace r1::serve {
namespace {

std::vector<float> random_logits(uint64_t seed, size_t n, double spread) {
  const Rng rng(seed, "logits");
  std::vector<float> l(n);
  for (size_t i = 0; i < n; ++i) l[i] = static_cast<float>(spread * rng.normal(i));
  return l;
}

/// Probabilities after penalty, temperature, top-k, top-p and min-p, by sorting everything: transformers' processors
/// one after the other.
std::vector<double> reference(std::vector<float> logits, const SamplingParams& p, const std::vector<int32_t>& seen) {
  std::vector<int32_t> distinct = seen;
  std::sort(distinct.begin(), distinct.end());
  distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
  for (const int32_t id : distinct) {
    float& l = logits[static_cast<size_t>(id)];
    l = static_cast<float>(l > 0 ? static_cast<double>(l) / p.repetition_penalty
                                 : static_cast<double>(l) * p.repetition_penalty);
  }
  std::vector<double> z(logits.begin(), logits.end());
  for (double& x : z) x /= p.temperature;
  std::vector<size_t> order(z.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return z[a] > z[b]; });
  const double minus = -std::numeric_limits<double>::infinity();
  if (p.top_k > 0)
    for (size_t i = static_cast<size_t>(p.top_k); i < order.size(); ++i) z[order[i]] = minus;
  const auto softmax = [&] {
    std::vector<double> out;
    double sum = 0;
    for (const double x : z) sum += std::exp(x - z[order[0]]);
    for (const double x : z) out.push_back(std::exp(x - z[order[0]]) / sum);
    return out;
  };
  std::vector<double> probs = softmax();
  double sum = 0;
  for (const size_t i : order) {
    if (sum >= p.top_p) z[i] = minus;
    sum += probs[i];
  }
  probs = softmax();
  const double least = p.min_p * probs[order[0]];
  for (size_t i = 0; i < z.size(); ++i)
    if (probs[i] < least) z[i] = minus;
  return softmax();
}

void check_distribution(const std::vector<float>& logits, const SamplingParams& p, const std::vector<int32_t>& seen) {
  const std::vector<double> expected = reference(logits, p, seen);
  constexpr int kDraws = 20000;
  std::vector<int> counts(logits.size(), 0);
  SampleScratch scratch;
  for (int i = 0; i < kDraws; ++i) {
    const int32_t t = sample_token(logits, p, seen, {.seed = p.seed, .request = 3, .position = i}, scratch);
    ASSERT_GE(t, 0);
    ASSERT_GT(expected[static_cast<size_t>(t)], 0) << "token " << t << " was cut off";
    ++counts[static_cast<size_t>(t)];
  }
  double chi = 0;
  int cells = 0;
  for (size_t i = 0; i < counts.size(); ++i) {
    const double e = expected[i] * kDraws;
    if (e < 5) continue;
    chi += (counts[i] - e) * (counts[i] - e) / e;
    ++cells;
  }
  ASSERT_GE(cells, 1);
  // Chi-square with cells - 1 degrees of freedom: five deviations above its mean. The draws are fixed by their key.
  EXPECT_LT(chi, cells + 5 * std::sqrt(2.0 * cells) + 1) << cells << " cells";
}

TEST(Sampler, DrawsFromTheDistribution) {
  const std::vector<float> logits = random_logits(1, 97, 2);
  check_distribution(logits, {.temperature = 1, .seed = 5}, {});
  check_distribution(logits, {.temperature = 0.6, .top_p = 0.95, .seed = 6}, {});
  check_distribution(logits, {.temperature = 1.3, .top_k = 7, .seed = 7}, {});
  check_distribution(logits, {.temperature = 1, .min_p = 0.1, .seed = 8}, {});
  check_distribution(
      logits, {.temperature = 0.9, .top_k = 20, .top_p = 0.8, .min_p = 0.02, .repetition_penalty = 1.5, .seed = 9},
      {3, 5, 3, 96, 0});
}

TEST(Sampler, CutsWhereThePlainWayCuts) {
  // The support alone, over many parameters: every kept token can be drawn, no other ever is.
  for (uint64_t seed = 0; seed < 30; ++seed) {
    const Rng rng(seed, "parameters");
    const std::vector<float> logits = random_logits(seed, 400, 1.0 + 3 * rng.uniform(0));
    const SamplingParams p{.temperature = 0.3 + rng.uniform(1),
                           .top_k = static_cast<int64_t>(rng.below(2, 300)),
                           .top_p = 0.05 + 0.9 * rng.uniform(3),
                           .min_p = rng.uniform(4) * 0.05,
                           .repetition_penalty = 0.7 + rng.uniform(5),
                           .seed = seed};
    const std::vector<int32_t> seen{1, 17, 300, 17};
    const std::vector<double> expected = reference(logits, p, seen);
    SampleScratch scratch;
    static_cast<void>(sample_token(logits, p, seen, {.seed = seed}, scratch));
    std::vector<bool> kept(logits.size(), false);
    for (const auto& c : scratch.candidates) kept[static_cast<size_t>(c.id)] = true;
    for (size_t i = 0; i < logits.size(); ++i)
      EXPECT_EQ(kept[i], expected[i] > 0) << "seed " << seed << " token " << i << " p " << expected[i];
  }
}

TEST(Sampler, GreedyTakesTheFirstOfTheLargest) {
  SampleScratch scratch;
  const std::vector<float> logits{1, 4, 3, 4, -2};
  EXPECT_EQ(sample_token(logits, {}, {}, {}, scratch), 1);
  EXPECT_EQ(sample_token(logits, {.repetition_penalty = 2}, std::vector<int32_t>{1, 1}, {}, scratch), 3);
  EXPECT_EQ(sample_token(logits, {.repetition_penalty = 2}, std::vector<int32_t>{1, 3, 2}, {}, scratch), 1)
      << "2, 1.5, 2: the first";
  EXPECT_EQ(sample_token(logits, {.temperature = 1, .top_k = 1}, {}, {.seed = 9}, scratch), 1);
}

TEST(Sampler, SaysWhenThereIsNoChoice) {
  SampleScratch scratch;
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  for (const double t : {0.0, 1.0}) {
    EXPECT_EQ(sample_token(std::vector<float>{1, nan, 2}, {.temperature = t}, {}, {}, scratch), -1);
    EXPECT_EQ(sample_token(std::vector<float>{-inf, -inf}, {.temperature = t}, {}, {}, scratch), -1);
    EXPECT_EQ(sample_token(std::vector<float>{0, inf}, {.temperature = t}, {}, {}, scratch), -1);
    EXPECT_EQ(sample_token(std::vector<float>{-inf, 2}, {.temperature = t}, {}, {}, scratch), 1);
  }
}

TEST(Sampler, DependsOnItsKeyAlone) {
  const std::vector<float> logits = random_logits(2, 1000, 1);
  const SamplingParams p{.temperature = 1, .seed = 4};
  SampleScratch a, b;
  int differ_by_seed = 0, differ_by_request = 0, differ_by_position = 0;
  for (int64_t i = 0; i < 200; ++i) {
    const DrawKey key{.seed = 4, .request = 7, .position = i};
    const int32_t t = sample_token(logits, p, {}, key, a);
    static_cast<void>(sample_token(logits, p, {}, {.seed = 1, .request = 1, .position = 1}, b));
    EXPECT_EQ(t, sample_token(logits, p, {}, key, b)) << "whatever was drawn before";
    differ_by_seed += t != sample_token(logits, p, {}, {.seed = 5, .request = 7, .position = i}, b) ? 1 : 0;
    differ_by_request += t != sample_token(logits, p, {}, {.seed = 4, .request = 8, .position = i}, b) ? 1 : 0;
    differ_by_position += t != sample_token(logits, p, {}, {.seed = 4, .request = 7, .position = i + 1000}, b) ? 1 : 0;
  }
  EXPECT_GT(differ_by_seed, 150);
  EXPECT_GT(differ_by_request, 150);
  EXPECT_GT(differ_by_position, 150);
}

TEST(Sampler, LastBitsOfLogitsHardlyEverChangeTheToken) {
  // Noise as between two layouts, on a flat distribution over a large vocabulary (where an inverse distribution
  // function would go wrong once in some tens of draws).
  std::vector<float> logits = random_logits(3, 32000, 0.5), noisy = logits;
  const Rng noise(4, "noise");
  for (size_t i = 0; i < noisy.size(); ++i) noisy[i] += static_cast<float>(2e-6 * (noise.uniform(i) - 0.5));
  int changed = 0;
  SampleScratch scratch;
  for (int64_t i = 0; i < 100; ++i) {
    const DrawKey key{.seed = 1, .request = 0, .position = i};
    changed += sample_token(logits, {.temperature = 1}, {}, key, scratch) !=
                       sample_token(noisy, {.temperature = 1}, {}, key, scratch)
                   ? 1
                   : 0;
  }
  EXPECT_EQ(changed, 0);
}

TEST(Sampler, VariatesAreExponential) {
  double sum = 0, squares = 0;
  constexpr int kCount = 40000;
  for (int32_t i = 0; i < kCount; ++i) {
    const double e = exponential_variate({.seed = 1, .request = 2, .position = 3}, i);
    ASSERT_GT(e, 0);
    sum += e;
    squares += e * e;
  }
  EXPECT_NEAR(sum / kCount, 1.0, 0.03);
  EXPECT_NEAR(squares / kCount, 2.0, 0.15);
}

}  // namespace
}  // namespace r1::serve
