// The draw of a token: against the plain way (everything sorted), and what it depends on.
#include "runtime/kernels/sample.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>
#include <vector>

#include "runtime/core/error.h"
#include "runtime/core/rng.h"
#include "runtime/kernels/ops.h"

namespace r1::kernels {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

std::vector<float> random_logits(uint64_t seed, size_t n, double spread) {
  const Rng rng(seed, "logits");
  std::vector<float> l(n);
  for (size_t i = 0; i < n; ++i) l[i] = static_cast<float>(spread * rng.normal(i));
  return l;
}

std::vector<uint32_t> bits_of(const std::vector<int32_t>& seen, size_t vocab) {
  std::vector<uint32_t> bits(static_cast<size_t>(seen_words(static_cast<int64_t>(vocab))), 0);
  for (const int32_t id : seen) bits[static_cast<size_t>(id / 32)] |= 1U << (id % 32);
  return bits;
}

/// The token of one row of logits.
int32_t sample_one(std::vector<float> logits, SampleRow row, const std::vector<int32_t>& seen = {}) {
  const auto vocab = static_cast<int64_t>(logits.size());
  std::vector<uint32_t> bits = bits_of(seen, logits.size());
  row.row = 0;
  row.seen = seen.empty() ? -1 : 0;
  int32_t token = 77;
  const int64_t parts[] = {0, vocab};
  sample({.data = logits.data(), .shape = {vocab}}, parts, {&row, 1},
         {.data = bits.data(), .dtype = DType::kI32, .shape = {1, seen_words(vocab)}},
         {.data = &token, .dtype = DType::kI32, .shape = {1}}, {});
  return token;
}

/// Log-probabilities after penalty, temperature, top-k, top-p and min-p, by sorting everything: transformers' processors
/// one after the other. -infinity: left out.
std::vector<double> reference(std::vector<float> logits, const SampleRow& p, const std::vector<int32_t>& seen) {
  const std::set<int32_t> distinct(seen.begin(), seen.end());
  for (const int32_t id : distinct) {
    float& l = logits[static_cast<size_t>(id)];
    l = static_cast<float>(l > 0 ? static_cast<double>(l) / p.repetition_penalty
                                 : static_cast<double>(l) * p.repetition_penalty);
  }
  std::vector<double> z(logits.begin(), logits.end());
  for (double& x : z) x /= p.temperature;
  std::vector<size_t> order(z.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return logits[a] > logits[b]; });
  if (p.top_k > 0)
    for (size_t i = static_cast<size_t>(p.top_k); i < order.size(); ++i) z[order[i]] = -kInf;
  const auto normalise = [&] {
    double sum = 0;
    for (const double x : z) sum += std::exp(x - z[order[0]]);
    const double log_sum = std::log(sum) + z[order[0]];
    for (double& x : z) x -= log_sum;
  };
  normalise();
  if (p.top_p < 1) {
    double sum = 0;
    std::vector<double> cut = z;
    for (const size_t i : order) {
      if (sum >= p.top_p) cut[i] = -kInf;
      sum += std::exp(z[i]);
    }
    z = std::move(cut);
    normalise();
  }
  const double least = std::log(p.min_p) + z[order[0]];
  for (double& x : z)
    if (x < least) x = -kInf;
  normalise();
  return z;
}

/// The Gumbel noise of a token as the documentation says it is made.
double noise(const SampleRow& p, size_t token) {
  const auto words =
      philox4x32({static_cast<uint32_t>(token / 4), static_cast<uint32_t>(p.position), static_cast<uint32_t>(p.request),
                  static_cast<uint32_t>(p.request >> 32)},
                 p.seed ^ hash_name("sample"));
  return -std::log(-std::log((static_cast<double>(words[token % 4]) + 0.5) / 4294967296.0));
}

void check_distribution(const std::vector<float>& logits, SampleRow p, const std::vector<int32_t>& seen) {
  const std::vector<double> expected = reference(logits, p, seen);
  constexpr int kDraws = 20000;
  std::vector<int> counts(logits.size(), 0);
  p.request = 3;
  for (int i = 0; i < kDraws; ++i) {
    p.position = i;
    const int32_t t = sample_one(logits, p, seen);
    ASSERT_GE(t, 0);
    ASSERT_GT(expected[static_cast<size_t>(t)], -kInf) << "token " << t << " was cut off";
    ++counts[static_cast<size_t>(t)];
  }
  double chi = 0;
  int cells = 0;
  for (size_t i = 0; i < counts.size(); ++i) {
    const double e = std::exp(expected[i]) * kDraws;
    if (e < 5) continue;
    chi += (counts[i] - e) * (counts[i] - e) / e;
    ++cells;
  }
  ASSERT_GE(cells, 1);
  // Chi-square with cells - 1 degrees of freedom: five deviations above its mean. The draws are fixed by their key.
  EXPECT_LT(chi, cells + 5 * std::sqrt(2.0 * cells) + 1) << cells << " cells";
}

TEST(Sample, DrawsFromTheDistribution) {
  const std::vector<float> logits = random_logits(1, 97, 2);
  check_distribution(logits, {.temperature = 1, .seed = 5}, {});
  check_distribution(logits, {.temperature = 0.6, .top_p = 0.95, .seed = 6}, {});
  check_distribution(logits, {.temperature = 1.3, .top_k = 7, .seed = 7}, {});
  check_distribution(logits, {.temperature = 1, .min_p = 0.1, .seed = 8}, {});
  check_distribution(
      logits, {.temperature = 0.9, .top_k = 20, .top_p = 0.8, .min_p = 0.02, .repetition_penalty = 1.5, .seed = 9},
      {3, 5, 3, 96, 0});
}

SampleRow random_row(const Rng& rng, int64_t vocab) {
  SampleRow p{.temperature = 0.2 + rng.uniform(1) * 1.5,
              .seed = rng.bits(2),
              .request = rng.bits(3),
              .position = static_cast<int64_t>(rng.below(4, 100000))};
  if (rng.below(5, 2) == 0) p.top_k = 1 + static_cast<int64_t>(rng.below(6, static_cast<uint64_t>(2 * vocab)));
  if (rng.below(7, 2) == 0) p.top_p = 0.02 + 0.97 * rng.uniform(8);
  if (rng.below(9, 3) == 0) p.min_p = 0.3 * rng.uniform(10);
  if (rng.below(11, 2) == 0) p.repetition_penalty = 0.7 + rng.uniform(12);
  return p;
}

TEST(Sample, CutsWhereThePlainWayCuts) {
  // Over many draws of distributions flat enough that a token of the support hardly stays away: every kept token is
  // drawn, no other ever is.
  for (uint64_t seed = 0; seed < 40; ++seed) {
    const Rng rng(seed, "support");
    const size_t vocab = 2 + rng.below(0, 60);
    SampleRow p = random_row(rng, static_cast<int64_t>(vocab));
    const std::vector<float> logits = random_logits(seed, vocab, 0.5 * p.temperature);
    const std::vector<int32_t> seen{1, static_cast<int32_t>(vocab / 2), 1};
    const std::vector<double> expected = reference(logits, p, seen);
    std::vector<bool> drawn(vocab, false);
    for (int64_t i = 0; i < 6000; ++i) {
      p.position = i;
      drawn[static_cast<size_t>(sample_one(logits, p, seen))] = true;
    }
    for (size_t i = 0; i < vocab; ++i)
      EXPECT_EQ(drawn[i], expected[i] > -kInf) << "seed " << seed << " token " << i << " log p " << expected[i];
  }
}

TEST(Sample, IsTheLargestSumOfLogProbabilityAndNoise) {
  for (uint64_t seed = 0; seed < 400; ++seed) {
    const Rng rng(seed, "parameters");
    constexpr size_t kVocabs[] = {1, 2, 7, 33, 400, 5000};
    const size_t vocab = kVocabs[rng.below(20, std::size(kVocabs))];
    const SampleRow p = random_row(rng, static_cast<int64_t>(vocab));
    std::vector<float> logits = random_logits(seed, vocab, 0.3 + 6 * rng.uniform(21));
    if (seed % 2 == 0)  // ties, as bf16 makes them
      for (float& l : logits) l = std::round(4 * l) / 4;
    if (seed % 5 == 0)
      for (size_t i = 1; i < vocab; i += 3) logits[i] = -std::numeric_limits<float>::infinity();
    std::vector<int32_t> seen;
    for (uint64_t i = 0; i < 20; ++i) seen.push_back(static_cast<int32_t>(rng.below(30 + i, vocab)));
    const std::vector<double> z = reference(logits, p, seen);
    size_t best = 0;
    double score = -kInf;
    for (size_t i = 0; i < vocab; ++i)
      if (const double s = z[i] + noise(p, i); s > score) best = i, score = s;
    EXPECT_EQ(sample_one(logits, p, seen), static_cast<int32_t>(best)) << "seed " << seed << " of " << vocab;
  }
}

TEST(Sample, PartsOfAVocabularyAreOneRow) {
  const int64_t vocab = 71, rows = 5;
  const std::vector<float> whole = random_logits(4, static_cast<size_t>(rows * vocab), 2);
  std::vector<SampleRow> wanted;
  for (const int64_t r : {3, 0, 3, 4})
    wanted.push_back({.row = r, .temperature = 1, .top_p = 0.9, .seed = 3, .request = wanted.size(), .position = 9});
  wanted[2].seen = 1;
  wanted[2].repetition_penalty = 3;
  std::vector<uint32_t> seen(static_cast<size_t>(2 * seen_words(vocab)), 0);
  seen[3] = 0xffffffffU;  // tokens 0 to 31 of the second row
  std::vector<int32_t> first;
  for (const std::vector<int64_t>& parts :
       {std::vector<int64_t>{0, vocab}, {0, 24, 48, vocab}, {0, 0, 70, 70, vocab}, {0, 1, 2, vocab, vocab}}) {
    std::vector<float> logits;
    for (size_t p = 0; p + 1 < parts.size(); ++p)
      for (int64_t r = 0; r < rows; ++r)
        logits.insert(logits.end(), whole.begin() + r * vocab + parts[p], whole.begin() + r * vocab + parts[p + 1]);
    std::vector<int32_t> tokens(wanted.size(), -5);
    sample({.data = logits.data(), .shape = {rows * vocab}}, parts, wanted,
           {.data = seen.data(), .dtype = DType::kI32, .shape = {2, seen_words(vocab)}},
           {.data = tokens.data(), .dtype = DType::kI32, .shape = {4}}, {});
    if (first.empty()) first = tokens;
    EXPECT_EQ(tokens, first);
  }
  for (size_t i = 0; i < wanted.size(); ++i) {
    std::vector<int32_t> ids;
    if (wanted[i].seen >= 0)
      for (int32_t id = 0; id < 32; ++id) ids.push_back(id);
    const auto begin = whole.begin() + wanted[i].row * vocab;
    EXPECT_EQ(first[i], sample_one({begin, begin + vocab}, wanted[i], ids)) << "alone";
  }
}

TEST(Sample, GreedyTakesTheFirstOfTheLargest) {
  const std::vector<float> logits{1, 4, 3, 4, -2};
  EXPECT_EQ(sample_one(logits, {}), 1);
  EXPECT_EQ(sample_one(logits, {.repetition_penalty = 2}, {1, 1}), 3);
  EXPECT_EQ(sample_one(logits, {.repetition_penalty = 2}, {1, 3, 2}), 1) << "2, 1.5, 2: the first";
  EXPECT_EQ(sample_one(logits, {.temperature = 1, .top_k = 1, .seed = 9}), 1);
  EXPECT_EQ(sample_one(logits, {.temperature = 1, .top_p = 1e-9, .seed = 9}), 1);
  EXPECT_EQ(sample_one({-0.0F, 0.0F}, {.temperature = 1, .top_k = 1}), 0);
}

TEST(Sample, SaysWhenThereIsNoChoice) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  for (const double t : {0.0, 1.0}) {
    EXPECT_EQ(sample_one({1, nan, 2}, {.temperature = t}), -1);
    EXPECT_EQ(sample_one({-inf, -inf}, {.temperature = t}), -1);
    EXPECT_EQ(sample_one({0, inf}, {.temperature = t}), -1);
    EXPECT_EQ(sample_one({-inf, 2}, {.temperature = t}), 1);
  }
}

TEST(Sample, ManyUnlikelyTokensAreLikelyTogether) {
  std::vector<float> logits(400000, -13.0F);  // e^-13 each: 0.90 of the likeliest's mass together
  logits[0] = 0;
  int others = 0;
  for (int64_t i = 0; i < 60; ++i) others += sample_one(logits, {.temperature = 1, .seed = 2, .position = i}) != 0 ? 1 : 0;
  EXPECT_GT(others, 15);
  EXPECT_LT(others, 45);
}

TEST(Sample, ExtremeTemperatures) {
  const std::vector<float> logits{-3, 5, 4.9999995F, -1e30F};
  for (const double t : {1e-300, 1e-30, 1e-9})
    for (int64_t i = 0; i < 50; ++i) EXPECT_EQ(sample_one(logits, {.temperature = t, .position = i}), 1);
  std::set<int32_t> drawn;
  for (int64_t i = 0; i < 200; ++i) drawn.insert(sample_one(logits, {.temperature = 1e300, .position = i}));
  EXPECT_EQ(drawn.size(), 4u);
  EXPECT_EQ(sample_one(logits, {.temperature = 1e300, .top_k = 1}), 1) << "the likeliest, however small the difference";
}

TEST(Sample, DependsOnItsKeyAlone) {
  const std::vector<float> logits = random_logits(2, 1000, 1);
  int differ_by_seed = 0, differ_by_request = 0, differ_by_position = 0;
  const auto draw = [&](uint64_t seed, uint64_t request, int64_t position) {
    return sample_one(logits, {.temperature = 1, .seed = seed, .request = request, .position = position});
  };
  for (int64_t i = 0; i < 200; ++i) {
    const int32_t t = draw(4, 7, i);
    EXPECT_EQ(t, draw(4, 7, i));
    differ_by_seed += t != draw(5, 7, i) ? 1 : 0;
    differ_by_request += t != draw(4, 8, i) ? 1 : 0;
    differ_by_position += t != draw(4, 7, i + 1000) ? 1 : 0;
  }
  EXPECT_GT(differ_by_seed, 150);
  EXPECT_GT(differ_by_request, 150);
  EXPECT_GT(differ_by_position, 150);
}

TEST(Sample, LastBitsOfLogitsHardlyEverChangeTheToken) {
  // Noise as between two layouts, on a flat distribution over a large vocabulary (where an inverse distribution
  // function would go wrong once in some tens of draws).
  std::vector<float> logits = random_logits(3, 32000, 0.5), noisy = logits;
  const Rng bits(4, "noise");
  for (size_t i = 0; i < noisy.size(); ++i) noisy[i] += static_cast<float>(2e-6 * (bits.uniform(i) - 0.5));
  int changed = 0;
  for (int64_t i = 0; i < 100; ++i) {
    const SampleRow p{.temperature = 1, .seed = 1, .position = i};
    changed += sample_one(logits, p) != sample_one(noisy, p) ? 1 : 0;
  }
  EXPECT_EQ(changed, 0);
}

TEST(Sample, VariatesAreExponential) {
  double sum = 0, squares = 0;
  constexpr int kCount = 40000;
  for (int32_t i = 0; i < kCount; ++i) {
    const double e = -std::log(draw_uniform(draw_word(draw_key(1), 2, 3, i)));
    ASSERT_GT(e, 0);
    sum += e;
    squares += e * e;
  }
  EXPECT_NEAR(sum / kCount, 1.0, 0.03);
  EXPECT_NEAR(squares / kCount, 2.0, 0.15);
}

// What the GPU's selection and its filters stand on.

TEST(SamplePieces, KeysOrderByLogitThenId) {
  const float inf = std::numeric_limits<float>::infinity(), tiny = std::numeric_limits<float>::denorm_min();
  const float rising[] = {-inf, -3e38F, -2, -1.9999999F, -tiny, 0, tiny, 1, 1.0000001F, 3e38F, inf};
  const int32_t ids[] = {0, 1, 1000, static_cast<int32_t>(kMaxSampleVocab) - 1};
  uint64_t last = 0;
  for (const float l : rising)
    for (size_t i = std::size(ids); i-- > 0;) {
      const uint64_t key = sample_order(l, ids[i]);
      EXPECT_GT(key, last) << l << ' ' << ids[i];
      EXPECT_LT(key, uint64_t{1} << kSampleOrderBits);
      EXPECT_EQ(ordered_logit(key), l);
      EXPECT_EQ(ordered_id(key), ids[i]);
      last = key;
    }
  EXPECT_EQ(sample_order(-0.0F, 5), sample_order(0.0F, 5));
}

TEST(SamplePieces, NoCandidateLiesBelowTheLowestLogit) {
  const Rng rng(1, "lowest");
  for (uint64_t i = 0; i < 20000; ++i) {
    const int exponent = static_cast<int>(rng.below(4 * i + 1, 160)) - 80;
    const auto largest = static_cast<float>(std::ldexp(2 * rng.uniform(4 * i) - 1, exponent));
    const double t = std::ldexp(1 + rng.uniform(4 * i + 2), static_cast<int>(rng.below(4 * i + 3, 200)) - 100);
    const float below = std::nextafter(lowest_logit(largest, t), -std::numeric_limits<float>::infinity());
    if (std::isinf(below)) continue;
    EXPECT_LT((static_cast<double>(below) - static_cast<double>(largest)) / t, kLowestZ) << largest << ' ' << t;
    EXPECT_LE(lowest_logit(largest, t), largest);
  }
}

TEST(SamplePieces, MassesAreFixedPoint) {
  EXPECT_EQ(sample_mass(1), uint64_t{1} << 44);
  EXPECT_EQ(sample_mass(std::exp(kLowestZ)), 0u);
  EXPECT_EQ(mass_to_reach(0.5, 10), 5u);
  EXPECT_EQ(mass_to_reach(0.51, 10), 6u);
  EXPECT_EQ(mass_to_reach(1e-30, 10), 1u);
  EXPECT_EQ(mass_to_reach(0, 10), 1u);
  const uint64_t most = static_cast<uint64_t>(kMaxSampleVocab) << 44;
  EXPECT_LE(mass_to_reach(std::nextafter(1.0, 0.0), most), most);
  EXPECT_LT(mass_to_reach(0.999, most), most);
}

TEST(SamplePieces, WordsAreThoseOfPhilox) {
  for (int32_t id = 0; id < 9; ++id)
    EXPECT_EQ(draw_word(11, uint64_t{5} << 32 | 6, 7, id),
              philox4x32({static_cast<uint32_t>(id / 4), 7, 6, 5}, 11)[static_cast<size_t>(id % 4)]);
}

TEST(Sample, RefusesWhatDoesNotFit) {
  std::vector<float> logits(12);
  int32_t token = 0;
  const Tensor t{.data = logits.data(), .shape = {12}}, out{.data = &token, .dtype = DType::kI32, .shape = {1}};
  const std::vector<SampleRow> rows{{.row = 2}};
  const std::vector<int64_t> fits{0, 4}, five{0, 5}, falling{0, 6, 4}, late{1, 4};
  sample(t, fits, rows, {}, out, {});
  for (const auto& parts : {five, falling, late}) EXPECT_THROW(sample(t, parts, rows, {}, out, {}), InternalError);
  EXPECT_THROW(sample(t, fits, std::vector<SampleRow>{{.row = 3}}, {}, out, {}), InternalError);
  EXPECT_THROW(sample(t, fits, std::vector<SampleRow>{{.seen = 0}}, {}, out, {}), InternalError);
  EXPECT_THROW(sample(t, fits, std::vector<SampleRow>{}, {}, out, {}), InternalError);
  EXPECT_THROW(sample(t, fits, std::vector<SampleRow>{{.temperature = -1}}, {}, out, {}), InternalError);
  const Tensor none{.data = logits.data(), .shape = {0}};
  EXPECT_THROW(sample(none, std::vector<int64_t>{0, kMaxSampleVocab + 1}, rows, {}, out, {}), InternalError);
}

}  // namespace
}  // namespace r1::kernels
