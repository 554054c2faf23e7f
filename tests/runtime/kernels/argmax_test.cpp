// The most likely token: ties, NaN, parts of a vocabulary.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "runtime/core/rng.h"
#include "runtime/kernels/ops.h"

namespace r1::kernels {
namespace {

std::vector<float> run(std::vector<float> logits, int64_t rows, int64_t vocab_begin) {
  std::vector<float> best(static_cast<size_t>(2 * rows));
  const int64_t vocab = static_cast<int64_t>(logits.size()) / rows;
  argmax({.data = logits.data(), .shape = {rows, vocab}}, vocab_begin, {.data = best.data(), .shape = {2, rows}}, {});
  return best;
}

TEST(Argmax, FindsTheFirstOfTheLargestOfAnyWidth) {
  for (const int64_t vocab : {1, 7, 8, 9, 31, 64, 1000, 4099})
    for (uint64_t seed = 0; seed < 5; ++seed) {
      const Rng rng(seed, "logits");
      std::vector<float> logits(static_cast<size_t>(3 * vocab));
      for (size_t i = 0; i < logits.size(); ++i)
        logits[i] = static_cast<float>(rng.below(i, 50)) - 70.0F;  // many ties, all negative
      const std::vector<float> best = run(logits, 3, 1000);
      for (int64_t r = 0; r < 3; ++r) {
        const auto begin = logits.begin() + r * vocab;
        const auto expected = std::max_element(begin, begin + vocab);
        EXPECT_EQ(best[static_cast<size_t>(r)], *expected);
        EXPECT_EQ(best[static_cast<size_t>(3 + r)], static_cast<float>(1000 + (expected - begin)))
            << "vocabulary " << vocab;
      }
    }
}

TEST(Argmax, ShowsNaN) {
  for (const size_t at : {size_t{0}, size_t{5}, size_t{8}, size_t{18}}) {
    std::vector<float> logits(19, 1.0F);
    logits[at] = std::numeric_limits<float>::quiet_NaN();
    EXPECT_TRUE(std::isnan(run(logits, 1, 0)[0])) << at;
  }
}

TEST(Argmax, AnEmptyPartIsLessThanAnything) {
  std::vector<float> best(2, 7);
  argmax({.data = nullptr, .shape = {1, 0}}, 12, {.data = best.data(), .shape = {2, 1}}, {});
  EXPECT_EQ(best[0], -std::numeric_limits<float>::infinity());
  EXPECT_EQ(best[1], 12.0F);
  EXPECT_EQ(run(std::vector<float>(9, -std::numeric_limits<float>::infinity()), 1, 3)[1], 3.0F);
}

}  // namespace
}  // namespace r1::kernels
