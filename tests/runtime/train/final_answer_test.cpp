// Final answers: found, brought into one spelling, and counted.
#include "runtime/train/final_answer.h"

#include <gtest/gtest.h>

#include <vector>

#include "runtime/core/error.h"

namespace r1::train {
namespace {

TEST(FinalAnswer, IsTheLastBoxOrMark) {
  EXPECT_EQ(final_answer("so \\boxed{3} no, \\boxed{ 42 }."), "42");
  EXPECT_EQ(final_answer("\\boxed{\\frac{1}{2}}"), "\\frac{1}{2}");
  EXPECT_EQ(final_answer("\\boxed{a \\} b} rest}"), "a \\} b");
  EXPECT_EQ(final_answer("\\boxed{7} and then \\boxed{8"), "7") << "the second never closes";
  EXPECT_EQ(final_answer("steps\n#### 1,234\n"), "1,234");
  EXPECT_EQ(final_answer("#### 1\n#### 2 apples\nmore"), "2 apples");
  EXPECT_EQ(final_answer("\\boxed{5}\n#### 6"), "5") << "a box beats a mark";
  EXPECT_EQ(final_answer("the answer is 42"), std::nullopt);
  EXPECT_EQ(final_answer("####\n7"), std::nullopt);
  EXPECT_EQ(final_answer(""), std::nullopt);
  EXPECT_EQ(final_answer("\\boxed{"), std::nullopt);
}

TEST(FinalAnswer, HasOneSpelling) {
  struct Case {
    const char *a, *b;
    bool same;
  };
  const std::vector<Case> cases{
      {"72", "72.0", true},
      {"$1,234.50", "1234.5", true},
      {"0.5", "\\frac{1}{2}", true},
      {"-3/4", "-\\dfrac{3}{4}", true},
      {"18\\text{ dollars}", "18", true},
      {"25\\%", "25", true},
      {"007", "7", true},
      {"+5", "5.", true},
      {"1/3", "0.333", false},
      {"12", "21", false},
      {"", "0", false},
      {"abc", "abc", true},
      {"x + 1", "x+1", true},
      {"(1,2)", "(12)", false},
      {"1/0", "1/0", true},
      {"-0", "0", true},
      {"99999999999999999999", "99999999999999999998", false},
      {"1.2.3", "1.23", false},
      {"3 apples", "3", false},
  };
  for (const Case& c : cases)
    EXPECT_EQ(canonical_answer(c.a) == canonical_answer(c.b), c.same)
        << c.a << " | " << c.b << ": " << canonical_answer(c.a);
}

TEST(FinalAnswer, PassAtKIsTheShareOfSubsetsWithARightAnswer) {
  // Against the definition: all subsets of size k counted.
  for (int n = 1; n <= 9; ++n)
    for (int c = 0; c <= n; ++c)
      for (int k = 1; k <= n; ++k) {
        int subsets = 0, good = 0;
        for (unsigned mask = 0; mask < (1u << n); ++mask) {
          if (__builtin_popcount(mask) != k) continue;
          ++subsets;
          good += (mask & ((1u << c) - 1)) != 0 ? 1 : 0;
        }
        EXPECT_NEAR(pass_at_k(n, c, k), static_cast<double>(good) / subsets, 1e-12) << n << " " << c << " " << k;
      }
  EXPECT_THROW(static_cast<void>(pass_at_k(3, 1, 4)), InternalError);
}

}  // namespace
}  // namespace r1::train
