#include "parallel/mesh/mesh.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "runtime/core/error.h"

namespace r1::parallel {
namespace {

using testing::HasSubstr;
using testing::Not;

template <class F>
std::string usage_error(F&& f) {
  try {
    f();
  } catch (const UsageError& e) {
    return e.what();
  }
  ADD_FAILURE() << "no UsageError";
  return "";
}

TEST(Mesh, CoordinatesAndRanksInvert) {
  for (int pp = 1; pp <= 5; ++pp) {
    for (int dp = 1; dp <= 4; ++dp) {
      for (int tp = 1; tp <= 6; ++tp) {
        const MeshShape mesh{pp, dp, tp};
        ASSERT_EQ(mesh.world(), pp * dp * tp);
        int expected = 0;
        for (int p = 0; p < pp; ++p) {
          for (int d = 0; d < dp; ++d) {
            for (int t = 0; t < tp; ++t, ++expected) {  // tp innermost
              const MeshCoord c{p, d, t};
              ASSERT_EQ(rank_of(mesh, c), expected) << mesh.str();
              ASSERT_EQ(coord_of(mesh, expected), c) << mesh.str();
            }
          }
        }
      }
    }
  }
}

TEST(Mesh, OutOfRangeIsOurBug) {
  const MeshShape mesh{2, 1, 4};
  EXPECT_THROW((void)coord_of(mesh, -1), InternalError);
  EXPECT_THROW((void)coord_of(mesh, 8), InternalError);
  EXPECT_THROW((void)rank_of(mesh, {2, 0, 0}), InternalError);
  EXPECT_THROW((void)rank_of(mesh, {0, 1, 0}), InternalError);
  EXPECT_THROW((void)rank_of(mesh, {0, 0, -1}), InternalError);
}

TEST(Mesh, Printed) {
  EXPECT_EQ((MeshShape{2, 1, 4}.str()), "pp 2 x dp 1 x tp 4");
  EXPECT_EQ((MeshCoord{1, 0, 3}.str()), "pp 1 dp 0 tp 3");
}

TEST(Mesh, FactorisationsAreAllAndDistinct) {
  for (int world = 1; world <= 48; ++world) {
    std::set<std::tuple<int, int, int>> brute, got;
    for (int a = 1; a <= world; ++a) {
      for (int b = 1; b <= world; ++b) {
        for (int c = 1; c <= world; ++c) {
          if (a * b * c == world) brute.emplace(a, b, c);
        }
      }
    }
    const auto list = factorisations(world, 4);
    for (const auto& m : list) got.emplace(m.pp, m.dp, m.tp);
    EXPECT_EQ(got, brute) << world;
    EXPECT_EQ(list.size(), brute.size()) << world;
  }
}

TEST(Mesh, FactorisationsPutTpThatStaysOnAHostFirst) {
  const auto list = factorisations(8, 4);
  bool outside = false;
  int last_pp = 0;
  for (const auto& m : list) {
    const bool fits = m.tp <= 4;
    EXPECT_FALSE(fits && outside) << m.str() << " after one whose tp spans hosts";
    if (!fits && !outside) last_pp = 0;
    outside |= !fits;
    EXPECT_GE(m.pp, last_pp) << m.str();
    last_pp = m.pp;
  }
  EXPECT_TRUE(outside);
  EXPECT_LE(list.front().tp, 4);
  // tp 3 on hosts of 4 ranks: every second group would span two hosts, so it comes after every
  // tp 4.
  const auto twelve = factorisations(12, 4);
  const auto first_3 = std::ranges::find(twelve, 3, &MeshShape::tp);
  ASSERT_NE(first_3, twelve.end());
  EXPECT_EQ(std::ranges::find(first_3, twelve.end(), 4, &MeshShape::tp), twelve.end());
}

TEST(Mesh, CheckNamesWhatWouldFit) {
  EXPECT_NO_THROW(check_mesh({2, 1, 4}, 8, 4));
  const auto text = usage_error([] { check_mesh({2, 1, 4}, 6, 6); });
  EXPECT_THAT(text, HasSubstr("--pp 2 --dp 1 --tp 4 needs 8 ranks, but 6 ranks were started"));
  EXPECT_THAT(text, HasSubstr("--pp 2 --dp 1 --tp 3"));  // keeps pp and dp: first
  EXPECT_LT(text.find("--pp 2 --dp 1 --tp 3"), text.find("--pp 1 --dp 6 --tp 1"));
  EXPECT_THAT(usage_error([] {
                check_mesh({2, 1, 1}, 1, 1);
              }),
              HasSubstr("needs 2 ranks, but 1 rank was started"));
  // Never a wall of text.
  EXPECT_THAT(usage_error([] { check_mesh({1, 1, 1}, 1024, 8); }), HasSubstr("more"));
}

TEST(Mesh, CheckNamesTheAxisThatIsNotPositive) {
  EXPECT_THAT(usage_error([] { check_mesh({0, 1, 1}, 1, 1); }), HasSubstr("--pp 0"));
  EXPECT_THAT(usage_error([] { check_mesh({1, -2, 1}, 1, 1); }), HasSubstr("--dp -2"));
  EXPECT_THAT(usage_error([] { check_mesh({1, 1, 0}, 1, 1); }), HasSubstr("--tp 0"));
  // A product beyond int must not wrap around to the world's size.
  EXPECT_THAT(usage_error([] { check_mesh({65536, 65536, 1}, 1, 1); }), HasSubstr("4294967296"));
}

TEST(Mesh, LayoutText) {
  EXPECT_EQ(parse_layout("2x1x4"), (MeshShape{2, 1, 4}));
  EXPECT_EQ(parse_layout("1x16x8"), (MeshShape{1, 16, 8}));
  for (const char* bad :
       {"", "2", "2x1", "2x1x", "x1x1", "2x1x4x1", "2x0x4", "-2x1x4", "2 x1x4", "2x1x4 ", "axbxc",
        "2X1X4", "9999999999x1x1", "2x+1x4", "1.5x1x1", "2,1,4"}) {
    const auto text = usage_error([&] { (void)parse_layout(bad); });
    EXPECT_THAT(text, HasSubstr("PPxDPxTP")) << bad;
    EXPECT_THAT(text, HasSubstr(fmt::format("\"{}\"", bad)));
  }
}

}  // namespace
}  // namespace r1::parallel
