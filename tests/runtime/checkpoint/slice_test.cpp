#include "runtime/checkpoint/slice.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>

#include "runtime/core/rng.h"

namespace r1::checkpoint {
namespace {

// ---- conversions

double value_of(DType t, uint64_t bits) {
  switch (t) {
    case DType::kF32:
      return static_cast<double>(std::bit_cast<float>(static_cast<uint32_t>(bits)));
    case DType::kBF16:
      return static_cast<double>(std::bit_cast<float>(static_cast<uint32_t>(bits << 16)));
    case DType::kF64:
      return std::bit_cast<double>(bits);
    case DType::kF16: {
      const int exponent = static_cast<int>((bits >> 10) & 31);
      const auto mantissa = static_cast<double>(bits & 1023);
      const double sign = (bits & 0x8000) ? -1.0 : 1.0;
      if (exponent == 31)
        return mantissa != 0 ? std::numeric_limits<double>::quiet_NaN()
                             : sign * std::numeric_limits<double>::infinity();
      return sign * (exponent == 0 ? std::ldexp(mantissa, -24)
                                   : std::ldexp(1024 + mantissa, exponent - 25));
    }
    default:
      ADD_FAILURE();
      return 0;
  }
}

uint64_t convert_one(DType from, DType to, uint64_t bits) {
  uint64_t out = 0;
  convert_elements(from, &bits, to, &out, 1);
  return out;
}

TEST(Convert, EveryHalfWidensExactly) {
  for (const DType from : {DType::kBF16, DType::kF16})
    for (uint64_t bits = 0; bits < 65536; ++bits) {
      const double want = value_of(from, bits);
      for (const DType to : {DType::kF32, DType::kF64}) {
        const double got = value_of(to, convert_one(from, to, bits));
        if (std::isnan(want))
          ASSERT_TRUE(std::isnan(got));
        else
          ASSERT_EQ(std::bit_cast<uint64_t>(got), std::bit_cast<uint64_t>(want)) << bits;
      }
      if (!std::isnan(want)) {  // and back
        ASSERT_EQ(convert_one(DType::kF32, from, convert_one(from, DType::kF32, bits)), bits);
        ASSERT_EQ(convert_one(DType::kF64, from, convert_one(from, DType::kF64, bits)), bits);
      }
    }
}

// The nearest of the 16-bit values, ties to even, found by looking at the two neighbours.
uint64_t nearest(DType to, double v) {
  const uint64_t infinity = to == DType::kF16 ? 0x7c00 : 0x7f80;
  const uint64_t sign = std::signbit(v) ? 0x8000 : 0;
  const double a = std::fabs(v);
  uint64_t lo = 0, hi = infinity;  // value(lo) <= a <= value(hi)
  while (hi - lo > 1) {
    const uint64_t mid = (lo + hi) / 2;
    (value_of(to, mid) <= a ? lo : hi) = mid;
  }
  // Overflow rounds as if the next binade existed.
  const double above =
      hi == infinity ? 2 * value_of(to, lo) - value_of(to, lo - 1) : value_of(to, hi);
  const double below = value_of(to, lo);
  if (std::isinf(a)) return sign | infinity;
  const double down = a - below,
               up = above - a;  // exact: neighbours within a factor of two, or tiny
  if (down < up) return sign | lo;
  if (up < down) return sign | hi;
  return sign | ((lo & 1) ? hi : lo);
}

TEST(Convert, NarrowingRoundsOnceToNearestEven) {
  const Rng rng(3, "narrow");
  for (const DType to : {DType::kF16, DType::kBF16}) {
    for (uint64_t i = 0; i < 20'000; ++i) {
      // Midpoints between neighbours, and a hair to either side: where rounding twice goes wrong.
      const uint64_t bits = rng.below(i, to == DType::kF16 ? 0x7bff : 0x7f7f);
      const double mid = (value_of(to, bits) + value_of(to, bits + 1)) / 2;
      for (const double v :
           {mid, std::nextafter(mid, 0.0), std::nextafter(mid, 1e300), -mid, mid * (1 + 0x1p-40)}) {
        ASSERT_EQ(convert_one(DType::kF64, to, std::bit_cast<uint64_t>(v)), nearest(to, v)) << v;
        const auto f = static_cast<float>(v);
        ASSERT_EQ(convert_one(DType::kF32, to, std::bit_cast<uint32_t>(f)),
                  nearest(to, static_cast<double>(f)))
            << f;
      }
    }
    for (const double v :
         {0.0, -0.0, 1e300, -1e300, 5e-324, 65519.999, 65520.0, 3.39e38, 3.4e38, 1e-45, 2e-8, 3e-8,
          std::numeric_limits<double>::infinity(), -std::numeric_limits<double>::infinity()})
      EXPECT_EQ(convert_one(DType::kF64, to, std::bit_cast<uint64_t>(v)), nearest(to, v)) << v;
    EXPECT_TRUE(std::isnan(value_of(to, convert_one(DType::kF64, to, 0x7ff8000000000001ull))));
    EXPECT_TRUE(std::isnan(value_of(to, convert_one(DType::kF32, to, 0x7f800001u))));
  }
}

TEST(Convert, BetweenHalvesRoundsOnce) {
  for (uint64_t bits = 0; bits < 65536; ++bits) {
    const double b = value_of(DType::kBF16, bits), h = value_of(DType::kF16, bits);
    if (!std::isnan(b)) {
      ASSERT_EQ(convert_one(DType::kBF16, DType::kF16, bits), nearest(DType::kF16, b)) << bits;
    }
    if (!std::isnan(h)) {
      ASSERT_EQ(convert_one(DType::kF16, DType::kBF16, bits), nearest(DType::kBF16, h)) << bits;
    }
  }
}

TEST(Convert, EqualTypesKeepBitsAndIntegersDoNotConvert) {
  for (const DType t : {DType::kF32, DType::kBF16, DType::kF16, DType::kF64, DType::kI32,
                        DType::kI64, DType::kU8}) {
    const uint64_t mask = dtype_bytes(t) == 8 ? ~0ull : (1ull << (8 * dtype_bytes(t))) - 1;
    EXPECT_EQ(convert_one(t, t, 0x7ff4123456789abcull),
              0x7ff4123456789abcull & mask);  // NaN payloads included
  }
  EXPECT_FALSE(convertible(DType::kI32, DType::kF32));
  EXPECT_FALSE(convertible(DType::kF32, DType::kU8));
  EXPECT_TRUE(convertible(DType::kF64, DType::kBF16));
  uint64_t a = 0, b = 0;
  EXPECT_THROW(convert_elements(DType::kI32, &a, DType::kF32, &b, 1), InternalError);
}

TEST(Convert, UnalignedPointers) {
  std::vector<char> raw(4 * 5 + 1), out(2 * 5 + 1);
  for (int i = 0; i < 5; ++i) {
    const auto f = static_cast<float>(i);
    std::memcpy(raw.data() + 1 + 4 * i, &f, 4);
  }
  convert_elements(DType::kF32, raw.data() + 1, DType::kBF16, out.data() + 1, 5);
  for (int i = 0; i < 5; ++i) {
    uint16_t b = 0;
    std::memcpy(&b, out.data() + 1 + 2 * i, 2);
    EXPECT_EQ(bf16_to_float(b), static_cast<float>(i));
  }
}

// ---- boxes

std::vector<int64_t> random_shape(const Rng& rng, uint64_t i) {
  std::vector<int64_t> shape(rng.below(i, 5));
  for (size_t d = 0; d < shape.size(); ++d)
    shape[d] = static_cast<int64_t>(1 + rng.below(i * 16 + d + 1, 6));
  return shape;
}
Box random_box(const Rng& rng, uint64_t i, std::span<const int64_t> shape) {
  Box b = whole_box(shape);
  for (size_t d = 0; d < shape.size(); ++d) {
    if (rng.below(i * 32 + 16 + d, 2) == 0) continue;  // whole in this dim
    b.start[d] = static_cast<int64_t>(rng.below(i * 32 + 2 * d, static_cast<uint64_t>(shape[d])));
    b.size[d] = static_cast<int64_t>(
        rng.below(i * 32 + 2 * d + 1, static_cast<uint64_t>(shape[d] - b.start[d] + 1)));
  }
  return b;
}

// Dense values of a box of the tensor whose element e has the value e.
std::vector<int64_t> values_of(const Box& box, std::span<const int64_t> shape) {
  std::vector<int64_t> out;
  std::vector<int64_t> at(shape.size(), 0);
  const int64_t n = std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
  for (int64_t e = 0; e < n; ++e) {
    bool in = true;
    for (size_t d = 0; d < shape.size(); ++d)
      in = in && box.start[d] <= at[d] && at[d] < box.start[d] + box.size[d];
    if (in) out.push_back(e);
    for (size_t d = shape.size(); d-- > 0;) {
      if (++at[d] < shape[d]) break;
      at[d] = 0;
    }
  }
  return out;
}

TEST(Box, RunsMoveExactlyTheCommonElements) {
  const Rng shapes(1, "shape"), boxes(2, "box");
  int64_t moved = 0;
  for (uint64_t i = 0; i < 5000; ++i) {
    const std::vector<int64_t> shape = random_shape(shapes, i);
    const Box from = random_box(boxes, 2 * i, shape), to = random_box(boxes, 2 * i + 1, shape);
    const Box part = intersect(from, to);
    const std::vector<int64_t> source = values_of(from, shape), target = values_of(to, shape);
    std::vector<int64_t> got(target.size(), -1);
    int64_t last_from = -1, last_to = -1;
    for_each_run(part, from, to, [&](const BoxRun& r) {
      ASSERT_GT(r.elems, 0);
      ASSERT_GT(r.from, last_from);  // in order of both
      ASSERT_GT(r.to, last_to);
      for (int64_t e = 0; e < r.elems; ++e) {
        ASSERT_EQ(got.at(static_cast<size_t>(r.to + e)), -1);
        got.at(static_cast<size_t>(r.to + e)) = source.at(static_cast<size_t>(r.from + e));
      }
      last_from = r.from + r.elems - 1;
      last_to = r.to + r.elems - 1;
      moved += r.elems;
    });
    const std::vector<int64_t> common = values_of(part, shape);
    ASSERT_EQ(static_cast<int64_t>(common.size()), part.elems());
    size_t n = 0;
    for (size_t e = 0; e < got.size(); ++e) {
      const bool is_common = std::binary_search(common.begin(), common.end(), target[e]);
      ASSERT_EQ(got[e], is_common ? target[e] : -1);
      n += is_common ? 1 : 0;
    }
    ASSERT_EQ(n, common.size());
  }
  EXPECT_GT(moved, 10'000);
}

TEST(Box, LongRunsAreJoined) {
  const std::vector<int64_t> shape{4, 3, 5};
  int runs = 0;
  const auto count = [&](const Box& part, const Box& from, const Box& to) {
    runs = 0;
    for_each_run(part, from, to, [&](const BoxRun&) { ++runs; });
    return runs;
  };
  const Box all = whole_box(shape), rows = slice_box(shape, 0, 1, 3),
            columns = slice_box(shape, 2, 0, 2);
  EXPECT_EQ(count(all, all, all), 1);
  EXPECT_EQ(count(rows, all, rows), 1);
  EXPECT_EQ(count(columns, all, columns), 12);
  EXPECT_EQ(count(whole_box({}), whole_box({}), whole_box({})), 1);
}

TEST(Box, OfAShard) {
  const std::vector<int64_t> shape{8, 6};
  const auto spec = parallel::ShardSpec::cut(shape, 1, {{0, 2}, {2, 2}, {2, 6}});
  EXPECT_EQ(box_of(spec, 0), (Box{{0, 0}, {8, 2}}));
  EXPECT_EQ(box_of(spec, 1).elems(), 0);
  EXPECT_EQ(box_of(spec, 2), (Box{{0, 2}, {8, 4}}));
  EXPECT_EQ(box_of(parallel::ShardSpec::replicated(shape, 3), 2), whole_box(shape));
  EXPECT_EQ(box_of(spec, 2).str(), "[0:8, 2:6]");
}

}  // namespace
}  // namespace r1::checkpoint
