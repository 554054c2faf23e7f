// The reference rate of a step: the best of several products.
#include "runtime/train/gemm_ceiling.h"

#include <gtest/gtest.h>

#include <map>
#include <vector>

namespace r1::train {
namespace {

constexpr GemmShape kSmall{8, 8, 8}, kLarge{64, 64, 64}, kWide{16, 64, 16};

// One product ten times as fast as the others, once, among disturbed measurements: that is the ceiling, and no step can be shown
// above it because the products it was measured with were slow ones.
TEST(GemmCeiling, IsTheBestOfAllShapesAndRepeats) {
  const std::vector<GemmShape> shapes{kSmall, kLarge, kWide};
  int call = 0;
  std::map<int64_t, int> seen;
  const double rate = gemm_ceiling(shapes, 0, [&](const GemmShape& s) {
    ++seen[s.m];
    return s.flops() / (++call == 5 ? 10e9 : 1e9);
  });
  EXPECT_DOUBLE_EQ(rate, 10e9);
  for (const GemmShape& s : shapes) EXPECT_GE(seen[s.m], 2) << "the first run of a shape touches its memory";
}

TEST(GemmCeiling, MeasuresLongEnoughAndEnds) {
  int calls = 0;
  const std::vector<GemmShape> one{kLarge};
  EXPECT_GT(gemm_ceiling(one, 1.0, [&](const GemmShape&) { return ++calls, 0.25; }), 0);
  EXPECT_EQ(calls, 4);
  EXPECT_EQ(gemm_ceiling(one, 1.0, [](const GemmShape&) { return 0.0; }), 0) << "a clock that stands still is no rate";
}

}  // namespace
}  // namespace r1::train
