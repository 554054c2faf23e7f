#include <bit>

#include "runtime/kernels/simd_cpu.h"
#include "tests/runtime/kernels/support.h"

namespace r1::kernels::test {
namespace {

float exp1(float x) { return simd::exp(simd::set(x))[3]; }

TEST(SimdExp, IsWithinOneUlpOverItsRange) {
  // Every 997th float of (-87.3, 88.7), both signs: two million values.
  double worst = 0;
  for (const uint32_t sign : {0U, 0x80000000U})
    for (uint32_t bits = 0; bits < 0x42b20000U; bits += 8 * 997) {
      simd::V x;
      for (int i = 0; i < 8; ++i)
        x[i] = std::bit_cast<float>(sign | (bits + static_cast<uint32_t>(i) * 997));
      const simd::V y = simd::exp(x);
      for (int i = 0; i < 8; ++i) {
        if (x[i] < -87.33F || x[i] > 88.37F) continue;
        const double want = std::exp(static_cast<double>(x[i]));
        const auto rounded = static_cast<float>(want);
        const double ulp =
            static_cast<double>(std::nextafter(rounded, INFINITY)) - static_cast<double>(rounded);
        worst = std::max(worst, std::abs(static_cast<double>(y[i]) - want) / ulp);
      }
    }
  EXPECT_LE(worst, 1.0);
  EXPECT_GT(worst, 0.4) << "the measure itself";
}

TEST(SimdExp, Ends) {
  EXPECT_EQ(exp1(0), 1.0F);
  EXPECT_EQ(exp1(-0.0F), 1.0F);
  EXPECT_EQ(exp1(-INFINITY), 0.0F);
  EXPECT_EQ(exp1(-1e30F), 0.0F);
  EXPECT_EQ(exp1(-88), 0.0F);
  EXPECT_EQ(exp1(INFINITY), INFINITY);
  EXPECT_EQ(exp1(89), INFINITY);
  EXPECT_TRUE(std::isfinite(exp1(88.37F)));
  EXPECT_TRUE(std::isnan(exp1(NAN)));
  EXPECT_TRUE(std::isnan(exp1(std::bit_cast<float>(0x7fc12345U)))) << "a NaN with a payload";
}

TEST(SimdExp, TheNonPositiveFormIsTheSame) {
  for (float x = 0; x > -100; x -= 0.0137F)
    ASSERT_EQ(simd::exp_nonpositive(simd::set(x))[0], exp1(x)) << x;
  EXPECT_EQ(simd::exp_nonpositive(simd::set(-INFINITY))[0], 0.0F);
  EXPECT_TRUE(std::isnan(simd::exp_nonpositive(simd::set(std::bit_cast<float>(0xffc00001U)))[0]));
}

TEST(SimdLanes, LoopsTouchEachElementOnce) {
  for (int64_t n = 0; n < 40; ++n) {
    Floats x = filled({n}, 1);
    simd::for_lanes(n, [&](int64_t i, auto... part) {
      simd::store(x.begin() + i, simd::load(x.begin() + i, part...) + simd::set(1), part...);
    });
    for (const float f : x) ASSERT_EQ(f, 2.0F);
  }
}

}  // namespace
}  // namespace r1::kernels::test
