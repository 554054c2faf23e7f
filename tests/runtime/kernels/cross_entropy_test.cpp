#include "tests/runtime/kernels/support.h"

namespace r1::kernels::test {
namespace {

struct Case {
  int64_t rows;
  std::vector<int64_t> parts;  // vocabulary of each tp rank
};
void PrintTo(const Case& c, std::ostream* os) {
  *os << c.rows << "x";
  for (const int64_t v : c.parts) *os << v << "+";
}

class CrossEntropy : public testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(Parts, CrossEntropy,
                         testing::Values(Case{0, {8}}, Case{3, {1}}, Case{7, {13}}, Case{5, {64}},
                                         Case{9, {7, 0, 30}}, Case{33, {100, 101, 99}},
                                         Case{4, {1537, 2000}}, Case{2, {0, 0, 5}}));

TEST_P(CrossEntropy, LossAndGradientOverVocabularyParts) {
  const auto& [C, parts] = GetParam();
  int64_t vocab = 0;
  for (const int64_t v : parts) vocab += v;
  const Floats logits = normal("logits", {C, vocab}, 3);
  const Rng rng(3, "targets");
  Ints targets({C});
  for (int64_t t = 0; t < C; ++t)
    targets[t] = t % 4 == 2 ? -100
                            : static_cast<int32_t>(rng.below(static_cast<uint64_t>(t),
                                                             static_cast<uint64_t>(vocab)));

  const auto P = static_cast<int64_t>(parts.size());
  Floats all({P, 3, C});
  std::vector<Floats> part_logits;
  int64_t begin = 0;
  for (int64_t p = 0; p < P; ++p) {
    Floats part({C, parts[static_cast<size_t>(p)]});
    copy_columns(logits, begin, part, {});
    const Tensor stats = Tensor(all).view({3 * P, C}).rows(3 * p, 3 * p + 3);
    cross_entropy_stats(part, targets, begin, stats, {});
    begin += parts[static_cast<size_t>(p)];
    part_logits.push_back(part);
  }
  Floats lse({C}), loss({C});
  cross_entropy_combine(all, targets, lse, loss, {});

  const float scale = 0.125F;
  std::vector<double> want_lse, want_loss, want_gradient;
  for (int64_t t = 0; t < C; ++t) {
    double sum = 0;
    for (int64_t i = 0; i < vocab; ++i) sum += std::exp(static_cast<double>(logits[t * vocab + i]));
    want_lse.push_back(std::log(sum));
    const bool trained = targets[t] >= 0;
    want_loss.push_back(
        trained ? std::log(sum) - static_cast<double>(logits[t * vocab + targets[t]]) : 0);
    for (int64_t i = 0; i < vocab; ++i)
      want_gradient.push_back(!trained
                                  ? 0
                                  : (std::exp(static_cast<double>(logits[t * vocab + i])) / sum -
                                     (i == targets[t] ? 1 : 0)) *
                                        0.125);
  }
  expect_close(lse, want_lse, "lse");
  expect_close(loss, want_loss, "loss");

  begin = 0;
  std::vector<double> gradient(want_gradient.size());
  for (size_t p = 0; p < part_logits.size(); ++p) {
    cross_entropy_backward(part_logits[p], targets, begin, lse, scale, {});
    for (int64_t t = 0; t < C; ++t)
      for (int64_t i = 0; i < parts[p]; ++i)
        gradient[static_cast<size_t>(t * vocab + begin + i)] =
            static_cast<double>(part_logits[p][t * parts[p] + i]);
    begin += parts[p];
  }
  expect_close(gradient, want_gradient, "gradient");
}

TEST(CrossEntropy, GradientAgreesWithCentralDifferences) {
  const int64_t C = 4, V = 9;
  Floats logits = normal("logits", {C, V});
  const Ints targets({C}, {3, -1, 0, 8});
  const auto loss_sum = [&](const std::vector<double>& x) {
    double total = 0;
    for (size_t t = 0; t < 4; ++t) {
      if (targets[static_cast<int64_t>(t)] < 0) continue;
      double sum = 0;
      for (size_t i = 0; i < 9; ++i) sum += std::exp(x[t * 9 + i]);
      total += std::log(sum) - x[t * 9 + static_cast<size_t>(targets[static_cast<int64_t>(t)])];
    }
    return total;
  };
  const auto want = central_difference(logits.doubles(), loss_sum);
  Floats stats({1, 3, C}), lse({C}), loss({C});
  cross_entropy_stats(logits, targets, 0, Tensor(stats).view({3, C}), {});
  cross_entropy_combine(stats, targets, lse, loss, {});
  double total = 0;
  for (const float x : loss) total += static_cast<double>(x);
  EXPECT_NEAR(total, loss_sum(logits.doubles()), 1e-5);
  cross_entropy_backward(logits, targets, 0, lse, 1.0F, {});
  expect_close(logits, want, "dlogits", {.l2 = 1e-5, .element = 1e-5});
}

TEST(CrossEntropy, AnEmptyPartHasTheStatedStatistics) {
  const Ints targets({2}, {1, -1});
  Floats stats({3, 2});
  cross_entropy_stats(Floats({2, 0}), targets, 0, stats, {});
  EXPECT_EQ(stats.values(), (std::vector<float>{-INFINITY, -INFINITY, 0, 0, 0, 0}));
}

TEST(CrossEntropy, ExtremeLogitsAndNaN) {
  Floats logits({4, 3});
  const std::vector<float> rows = {1e4F, -1e4F, 0, -INFINITY, 2, -INFINITY, NAN, 1, 2, 80, 80, 80};
  std::copy(rows.begin(), rows.end(), logits.begin());
  const Ints targets({4}, {0, 1, 1, 2});
  Floats stats({1, 3, 4}), lse({4}), loss({4});
  cross_entropy_stats(logits, targets, 0, Tensor(stats).view({3, 4}), {});
  cross_entropy_combine(stats, targets, lse, loss, {});
  EXPECT_FLOAT_EQ(loss[0], 0);
  EXPECT_FLOAT_EQ(loss[1], 0);
  EXPECT_TRUE(std::isnan(loss[2])) << "a NaN must reach the loss";
  EXPECT_NEAR(loss[3], std::log(3.0), 1e-5);
}

TEST(CrossEntropyThreads, ResultsDoNotDependOnTheirNumber) {
  const int64_t C = 37, V = 1500;
  const Floats logits = normal("logits", {C, V});
  Ints targets({C});
  for (int64_t t = 0; t < C; ++t) targets[t] = static_cast<int32_t>(t * 31 % V);
  expect_same_for_any_threads([&] {
    Floats x = logits, stats({1, 3, C}), lse({C}), loss({C});
    cross_entropy_stats(x, targets, 0, Tensor(stats).view({3, C}), {});
    cross_entropy_combine(stats, targets, lse, loss, {});
    cross_entropy_backward(x, targets, 0, lse, 0.5F, {});
    return concat({&x, &stats, &loss});
  });
}

}  // namespace
}  // namespace r1::kernels::test
