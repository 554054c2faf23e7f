#include "parallel/shard/shard.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "runtime/core/error.h"
#include "runtime/core/rng.h"

namespace r1::parallel {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

/// A random tensor shape and a random cut of it: uneven, with empty parts and overlaps.
ShardSpec random_spec(uint64_t seed) {
  const Rng rng(seed, "shard_test");
  uint64_t n = 0;
  const auto below = [&](uint64_t limit) { return static_cast<int64_t>(rng.below(n++, limit)); };
  std::vector<int64_t> shape(static_cast<size_t>(1 + below(3)));
  for (auto& s : shape) s = 1 + below(7);
  const int dim = static_cast<int>(below(shape.size()));
  const int64_t extent = shape[static_cast<size_t>(dim)];
  std::vector<Interval> parts;
  const int ranks = static_cast<int>(1 + below(6));
  for (int r = 0; r < ranks; ++r) {
    auto p = even_part(extent, r, ranks);  // covers; then only grown
    p.begin -= below(static_cast<uint64_t>(p.begin) + 1) * below(2);
    p.end += below(static_cast<uint64_t>(extent - p.end) + 1) * below(2);
    parts.push_back(p);
  }
  return ShardSpec::cut(shape, dim, parts);
}

int64_t elems(const std::vector<int64_t>& shape) {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}

TEST(Shard, EvenPartsCoverInOrderAndDifferByAtMostOne) {
  for (int64_t total : {0, 1, 2, 7, 8, 28, 96, 151936}) {
    for (int n = 1; n <= 9; ++n) {
      int64_t at = 0, least = total + 1, most = 0;
      for (int i = 0; i < n; ++i) {
        const auto p = even_part(total, i, n);
        EXPECT_EQ(p.begin, at);
        EXPECT_EQ(p.begin, total * i / n);
        at = p.end;
        least = std::min(least, p.size());
        most = std::max(most, p.size());
      }
      EXPECT_EQ(at, total);
      EXPECT_LE(most - least, 1);
    }
  }
  const int64_t huge = int64_t{1} << 62;  // the product with i would overflow
  EXPECT_EQ(even_part(huge, 7, 8), (Interval{huge / 8 * 7, huge}));
  EXPECT_THROW((void)even_part(8, 2, 2), InternalError);
}

TEST(Shard, UnshardingWhatWasShardedIsIdentity) {
  for (uint64_t seed = 0; seed < 400; ++seed) {
    const auto spec = random_spec(seed);
    const auto n = elems(spec.global_shape());
    std::vector<int> seen(static_cast<size_t>(n), 0);
    for (int r = 0; r < spec.ranks(); ++r) {
      // Element ids of the shard, by the plain definition: walk the local shape and map each index.
      std::vector<int64_t> by_runs(static_cast<size_t>(spec.local_elems(r)), -1);
      for (const auto& run : runs_of(spec, r, spec.part(r))) {
        for (int64_t k = 0; k < run.count; ++k) {
          auto& slot = by_runs.at(static_cast<size_t>(run.local + k));
          ASSERT_EQ(slot, -1) << "seed " << seed;
          slot = run.global + k;
        }
      }
      const auto local = spec.local_shape(r);
      ASSERT_EQ(elems(local), spec.local_elems(r));
      for (int64_t e = 0; e < spec.local_elems(r); ++e) {
        int64_t rest = e, global = 0, stride = 1;
        for (size_t d = local.size(); d-- > 0;) {
          const int64_t index = rest % local[d];
          rest /= local[d];
          global += (index + (static_cast<int>(d) == spec.dim() ? spec.part(r).begin : 0)) * stride;
          stride *= spec.global_shape()[d];
        }
        ASSERT_EQ(by_runs[static_cast<size_t>(e)], global) << "seed " << seed << " rank " << r;
      }
      // Each element of the tensor is owned exactly once.
      for (const auto& own : spec.owned(r)) {
        for (const auto& run : runs_of(spec, r, own)) {
          for (int64_t k = 0; k < run.count; ++k) {
            ASSERT_EQ(by_runs.at(static_cast<size_t>(run.local + k)), run.global + k);
            ++seen.at(static_cast<size_t>(run.global + k));
          }
        }
      }
    }
    for (const int count : seen) ASSERT_EQ(count, 1) << "seed " << seed;
  }
}

TEST(Shard, SharedIsWhereTwoOrMoreHold) {
  for (uint64_t seed = 0; seed < 400; ++seed) {
    const auto spec = random_spec(seed);
    const auto shared = spec.shared();
    int64_t last = 0;
    for (const auto& s : shared) {
      ASSERT_GT(s.size(), 0);
      ASSERT_GE(s.begin, last) << "in order and apart";
      last = s.end;
      for (int r = 0; r < spec.ranks(); ++r) {
        const auto p = spec.part(r);
        const bool all = p.begin <= s.begin && s.end <= p.end;
        const bool none = p.end <= s.begin || s.end <= p.begin || p.size() == 0;
        ASSERT_TRUE(all || none) << "seed " << seed;
      }
    }
    for (int64_t i = 0; i < spec.global_shape()[static_cast<size_t>(spec.dim())]; ++i) {
      int holders = 0;
      for (int r = 0; r < spec.ranks(); ++r)
        holders += spec.part(r).begin <= i && i < spec.part(r).end;
      const bool is_shared = std::any_of(shared.begin(), shared.end(), [&](const Interval& s) {
        return s.begin <= i && i < s.end;
      });
      ASSERT_EQ(is_shared, holders >= 2) << "seed " << seed << " index " << i;
      ASSERT_EQ(spec.holders({i, i + 1}).size(), static_cast<size_t>(holders));
    }
  }
}

TEST(Shard, KvHeadsReplicated) {
  // 2 kv heads of 16 rows over tp 4: each on two ranks.
  const std::vector<int64_t> shape{32, 96};
  const auto spec = ShardSpec::cut(shape, 0, {{0, 16}, {0, 16}, {16, 32}, {16, 32}});
  EXPECT_THAT(spec.shared(), ElementsAre(Interval{0, 16}, Interval{16, 32}));
  EXPECT_THAT(spec.holders({0, 16}), ElementsAre(0, 1));
  EXPECT_THAT(spec.owned(0), ElementsAre(Interval{0, 16}));
  EXPECT_TRUE(spec.owned(1).empty());
  EXPECT_THAT(spec.owned(2), ElementsAre(Interval{16, 32}));
  EXPECT_THAT(spec.local_shape(3), ElementsAre(16, 96));
}

TEST(Shard, ReplicatedIsOneRunOwnedByTheFirst) {
  const std::vector<int64_t> shape{3, 5, 2};
  const auto spec = ShardSpec::replicated(shape, 4);
  EXPECT_EQ(spec.local_elems(2), 30);
  EXPECT_THAT(spec.owned(0), ElementsAre(Interval{0, 3}));
  EXPECT_TRUE(spec.owned(3).empty());
  EXPECT_THAT(spec.shared(), ElementsAre(Interval{0, 3}));
  const auto runs = runs_of(spec, 3, {0, 3});
  ASSERT_EQ(runs.size(), 1u);
  EXPECT_EQ(runs[0].count, 30);
  const auto one = ShardSpec::replicated(shape, 1);
  EXPECT_TRUE(one.shared().empty());
}

TEST(Shard, ScalarsAndEmptyTensors) {
  const auto scalar = ShardSpec::replicated({}, 2);
  EXPECT_EQ(scalar.local_elems(1), 1);
  EXPECT_TRUE(scalar.local_shape(1).empty());
  const auto runs = runs_of(scalar, 1, {0, 1});
  ASSERT_EQ(runs.size(), 1u);
  EXPECT_EQ(runs[0].count, 1);

  const std::vector<int64_t> none{0, 4};
  const auto empty = ShardSpec::replicated(none, 2);
  EXPECT_EQ(empty.local_elems(0), 0);
  EXPECT_TRUE(runs_of(empty, 0, {0, 0}).empty());
  EXPECT_TRUE(empty.owned(0).empty());

  const std::vector<int64_t> rows{3};  // more ranks than rows
  const auto thin = ShardSpec::cut(rows, 0, {{0, 1}, {1, 1}, {1, 3}});
  EXPECT_EQ(thin.local_elems(1), 0);
  EXPECT_TRUE(thin.owned(1).empty());
  EXPECT_TRUE(thin.shared().empty());
}

TEST(Shard, GapsAndOverrunsAreRefused) {
  const std::vector<int64_t> shape{8, 4};
  const auto message = [&](int dim, std::vector<Interval> parts) -> std::string {
    try {
      (void)ShardSpec::cut(shape, dim, std::move(parts));
    } catch (const InternalError& e) {
      return e.what();
    }
    return "";
  };
  EXPECT_THAT(message(0, {{0, 3}, {4, 8}}), HasSubstr("nobody holds [3,4)"));
  EXPECT_THAT(message(0, {{0, 3}, {3, 7}}), HasSubstr("nobody holds [7,8)"));
  EXPECT_THAT(message(0, {{1, 8}}), HasSubstr("nobody holds [0,1)"));
  EXPECT_THAT(message(1, {{0, 3}, {3, 5}}), HasSubstr("part [3,5)"));
  EXPECT_THAT(message(1, {{0, 4}, {3, 2}}), HasSubstr("part [3,2)"));
  EXPECT_THAT(message(2, {{0, 4}}), HasSubstr("dim 2"));
  EXPECT_THAT(message(0, {}), HasSubstr("no parts"));
  const auto spec = ShardSpec::cut(shape, 0, {{0, 4}, {4, 8}});
  EXPECT_THROW((void)runs_of(spec, 0, {3, 5}), InternalError);
}

}  // namespace
}  // namespace r1::parallel
