#include <array>
#include <bit>
#include "runtime/kernels/exact_sum.h"
#include "runtime/kernels/rounding.h"
#include "tests/runtime/kernels/support.h"

namespace r1::kernels::test {
namespace {

constexpr int64_t kCounts[] = {0, 1, 7, 8, 1000, 16384, 40001};

Floats scalar(float x) { return Floats({1}, std::vector<float>{x}); }

TEST(AdamW, FollowsTheStatedOrderOverManySteps) {
  for (const int64_t n : kCounts) {
    const AdamWArgs base{.lr = 1e-2, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1};
    Floats p = normal("p", {n}), m = filled({n}, 0), v = filled({n}, 0);
    std::vector<double> rp = p.doubles(), rm(p.size()), rv(p.size());
    for (int64_t step = 1; step <= 5; ++step) {
      const Floats g = normal(fmt::format("g{}", step), {n}, 0.1);
      AdamWArgs args = base;
      args.step = step;
      adamw_step(p, none(), g, m, v, scalar(0.5F), args, {});
      for (size_t i = 0; i < rp.size(); ++i) {
        const double grad = 0.5 * static_cast<double>(g[static_cast<int64_t>(i)]);
        rp[i] *= 1 - 1e-2 * 0.1;
        rm[i] = 0.9 * rm[i] + 0.1 * grad;
        rv[i] = 0.95 * rv[i] + 0.05 * grad * grad;
        const auto t = static_cast<double>(step);
        rp[i] -= 1e-2 / (1 - std::pow(0.9, t)) * rm[i] /
                 (std::sqrt(rv[i]) / std::sqrt(1 - std::pow(0.95, t)) + 1e-8);
      }
    }
    expect_close(p, rp, "p", {.l2 = 1e-6, .element = 1e-6});
    expect_close(m, rm, "m", {.l2 = 1e-6, .element = 1e-6});
    expect_close(v, rv, "v", {.l2 = 1e-6, .element = 1e-6});
  }
}

TEST(AdamW, TheFirstStepMovesByTheLearningRate) {
  // With bias correction, m / sqrt(v) is the gradient's sign at step 1, whatever its size.
  Floats p({3}, {1, 1, 1}), m = filled({3}, 0), v = filled({3}, 0);
  adamw_step(p, none(), Floats({3}, {1e-3F, -50, 7}), m, v, scalar(1), {.lr = 0.25, .step = 1}, {});
  EXPECT_NEAR(p[0], 0.75, 1e-5);
  EXPECT_NEAR(p[1], 1.25, 1e-5);
  EXPECT_NEAR(p[2], 0.75, 1e-5);
}

TEST(AdamW, AGradientScaleOfZeroChangesNothing) {
  Floats p = normal("p", {100}), m = normal("m", {100}), v = filled({100}, 0.5F);
  const Floats g = filled({100}, NAN);
  const auto before = concat({&p, &m, &v});
  adamw_step(p, none(), g, m, v, scalar(0), {.lr = 0.1, .weight_decay = 0.1}, {});
  EXPECT_EQ(concat({&p, &m, &v}), before);
}

TEST(AdamW, AMasterIsTheWeightAndPItsRounding) {
  const int64_t n = 3000;
  Floats plain = normal("p", {n}), m = filled({n}, 0), v = filled({n}, 0);
  Floats master = plain, m2 = m, v2 = v;
  Block<uint16_t> p({n});
  const Floats g = normal("g", {n});
  const AdamWArgs args{.lr = 1e-3, .weight_decay = 0.01, .step = 3};
  adamw_step(plain, none(), g, m, v, scalar(1), args, {});
  adamw_step(p, master, g, m2, v2, scalar(1), args, {});
  EXPECT_EQ(master.values(), plain.values());
  EXPECT_EQ(m2.values(), m.values());
  for (int64_t i = 0; i < n; ++i) ASSERT_EQ(p[i], float_to_bf16(plain[i])) << i;
}

TEST(AdamW, Bf16StatesAreRoundedWithoutBiasAndTheSameWayEachTime) {
  const int64_t n = 20000;
  const auto run = [&](uint64_t seed) {
    Block<uint16_t> p({n}), m({n}), v({n});
    std::fill(p.begin(), p.end(), float_to_bf16(1.0F));
    std::fill(m.begin(), m.end(), uint16_t{0});
    std::fill(v.begin(), v.end(), uint16_t{0});
    // Each step moves p by 1e-3 of a bf16 step of 2^-8 below 1: rounding to nearest would never
    // move it.
    adamw_step(p, none(), filled({n}, 1.0F), m, v, scalar(1),
               {.lr = 1e-3 / 256, .eps = 0, .step = 1, .seed = seed}, {});
    double mean = 0;
    for (const uint16_t x : p)
      mean += static_cast<double>(bf16_to_float(x)) / static_cast<double>(n);
    return std::pair(mean, p.values());
  };
  const auto [mean, bits] = run(1);
  // The expected fall is 3.9e-6; a weight falls by 2^-8 with probability 1e-3, so its deviation
  // over n is 8.7e-7.
  EXPECT_NEAR(1 - mean, 1e-3 / 256, 3.5e-6);
  EXPECT_LT(mean, 1) << "no weight moved";
  EXPECT_EQ(run(1).second, bits);
  EXPECT_NE(run(2).second, bits);
}

TEST(AdamW, Bf16StatesOfPartsAreThoseOfTheWhole) {
  const int64_t n = 5003;
  const Floats g = normal("g", {n});
  const auto run = [&](const std::vector<int64_t>& bounds) {
    Block<uint16_t> p({n}), m({n}), v({n});
    for (int64_t i = 0; i < n; ++i) p[i] = float_to_bf16(g[n - 1 - i]), m[i] = float_to_bf16(0.1F * g[i]), v[i] = float_to_bf16(0.01F);
    for (size_t i = 0; i + 1 < bounds.size(); ++i) {
      const auto part = [&](Tensor t) {
        t.data = static_cast<char*>(t.data) + bounds[i] * dtype_bytes(t.dtype);
        t.shape = {bounds[i + 1] - bounds[i]};
        return t;
      };
      adamw_step(part(p), none(), part(g), part(m), part(v), scalar(1),
                 {.lr = 1e-3, .weight_decay = 0.1, .step = 3, .seed = 5, .first_element = bounds[i]}, {});
    }
    return std::array{p.values(), m.values(), v.values()};
  };
  const auto whole = run({0, n});
  EXPECT_EQ(run({0, 1024, 2048, n}), whole);
  EXPECT_EQ(run({0, 1, 14, 1237, 3333, n}), whole) << "parts that begin within a group of random bits";
}

TEST(StochasticRounding, BitsOfNeighboursStatesAndStepsAreUnrelated) {
  // Over 64 Ki elements of three states and two steps: each bit is set in half of them, and agrees with another element's,
  // state's or step's in half.
  constexpr int64_t kGroups = 8192;
  std::vector<std::vector<uint32_t>> streams;
  for (const int64_t step : {1, 2})
    for (const RoundedState state : {RoundedState::kWeight, RoundedState::kMean, RoundedState::kSquare}) {
      std::vector<uint32_t> bits;
      for (int64_t group = 0; group < kGroups; ++group) {
        const auto words = adamw_random(7, step, state, group);
        for (int64_t j = 0; j < kRoundedTogether; ++j) bits.push_back(rounding_bits(words, j));
      }
      streams.push_back(bits);
    }
  const auto expect_half = [&](const std::vector<uint32_t>& a, const std::vector<uint32_t>& b, size_t shift, const char* what) {
    int64_t set = 0;
    for (size_t i = shift; i < a.size(); ++i) set += std::popcount(a[i] ^ b[i - shift]);
    const double bits = 16.0 * static_cast<double>(a.size() - shift);
    EXPECT_NEAR(static_cast<double>(set), bits / 2, 5 * std::sqrt(bits) / 2) << what;
  };
  const std::vector<uint32_t> zeros(streams[0].size());
  for (const auto& a : streams) {
    expect_half(a, zeros, 0, "bits set");
    for (size_t shift = 1; shift <= 16; ++shift) expect_half(a, a, shift, "neighbours");
    for (const auto& b : streams)
      if (&a != &b) expect_half(a, b, 0, "states and steps");
  }
}

TEST(StochasticRounding, IsExactOnBf16ValuesAndKeepsTheSpecialOnes) {
  for (const float f : {0.0F, -0.0F, 1.0F, -3.0F, INFINITY, -INFINITY, 0x1p-130F})
    for (const uint32_t random : {0U, 0xffffU, 0x8000U})
      EXPECT_EQ(stochastic_bf16(f, random), float_to_bf16(f)) << f;
  EXPECT_TRUE(std::isnan(bf16_to_float(stochastic_bf16(NAN, 0xffffU))));
  EXPECT_EQ(bf16_to_float(stochastic_bf16(1.0F + 0x1p-8F, 0x7fffU)), 1.0F)
      << "half a step up, random below the half";
  EXPECT_EQ(bf16_to_float(stochastic_bf16(1.0F + 0x1p-8F, 0x8000U)), 1.0F + 0x1p-7F);
}

Block<int64_t> no_words() { return Block<int64_t>({kExactWords}, std::vector<int64_t>(kExactWords, 0)); }
double value_of(const Block<int64_t>& words) {
  Block<double> out({1}, std::vector<double>{-1});
  exact_total(words, out, {});
  return out[0];
}

TEST(ClipFactor, IsTheReferencesAndZeroWhereLossOrNormIsNotFinite) {
  const double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
  struct Case {
    double squares, loss;
    float most, want;
  };
  for (const Case& c : {Case{16, 3, 0, 1}, Case{16, 3, 8, 1}, Case{16, 3, 1, static_cast<float>(1 / (4 + 1e-6))}, Case{0, 0, 1, 1},
                        Case{nan, 3, 1, 0}, Case{inf, 3, 1, 0}, Case{16, nan, 1, 0}, Case{16, -inf, 0, 0}}) {
    const Block<double> squares({1}, std::vector<double>{c.squares}), loss({1}, std::vector<double>{c.loss});
    Floats factor({1});
    clip_factor(squares, loss, c.most, factor, {});
    EXPECT_EQ(factor[0], c.want) << c.squares << " " << c.loss << " " << c.most;
  }
}

TEST(SumOfSquares, AddsRowsWithoutRounding) {
  for (const int64_t n : kCounts) {
    const Floats x = normal("x", {n, 3}, 100);
    Block<int64_t> words = no_words();
    long double want = 0;
    for (const float f : x) want += static_cast<long double>(f) * static_cast<long double>(f);
    sum_of_squares(std::array<Tensor, 1>{x}, words, {});
    EXPECT_NEAR(value_of(words), static_cast<double>(want), 1e-14 * static_cast<double>(want)) << n;
  }
  Block<uint16_t> half({1, 5});
  std::fill(half.begin(), half.end(), float_to_bf16(1.5F));
  Block<int64_t> words = no_words();
  sum_of_squares(std::array<Tensor, 1>{half}, words, {});
  EXPECT_EQ(value_of(words), 5 * 2.25);
}

TEST(SumOfSquares, DoesNotDependOnTheOrderOfRows) {
  // 32 decades apart: any rounding between rows would show.
  std::vector<float> values;
  for (int i = 0; i < 200; ++i) values.push_back(std::ldexp(1.0F + 0.01F * static_cast<float>(i), (i * 37) % 200 - 100));
  Block<int64_t> forward = no_words(), backward = no_words();
  std::vector<Floats> rows;
  rows.reserve(values.size());
  for (const float v : values) rows.emplace_back(Shape{1, 1}, std::vector<float>{v});
  const std::vector<Tensor> one_call(rows.begin(), rows.end());
  sum_of_squares(one_call, forward, {});
  for (size_t i = rows.size(); i-- > 0;) sum_of_squares({&one_call[i], 1}, backward, {});
  EXPECT_TRUE(std::equal(forward.begin(), forward.end(), backward.begin()));
  EXPECT_GT(value_of(forward), 0);
}

TEST(ExactSum, TakesWhatFp32CanHold) {
  const std::vector<double> cases{0.0, 0x1p-298, 0x1p-149, 1.0, -1.0, 3.5e38, -2.5e-30, 0x1.fffffffffffffp+255, 0x1p+287};
  for (const double v : cases) {
    int64_t words[kExactWords] = {};
    exact_add(words, v);
    EXPECT_EQ(exact_value(words), v);
    exact_add(words, 1.0);
    exact_add(words, -v);
    EXPECT_EQ(exact_value(words), 1.0) << v << ": what was added and taken away leaves no trace";
  }
  int64_t words[kExactWords] = {};
  for (int i = 0; i < 1000000; ++i) exact_add(words, 0.1F);
  EXPECT_EQ(exact_value(words), 1e6 * static_cast<double>(0.1F));
}

TEST(ExactSum, NotFiniteAddendsAreSeen) {
  const double inf = std::numeric_limits<double>::infinity();
  int64_t words[kExactWords] = {};
  exact_add(words, 2.0);
  exact_add(words, inf);
  EXPECT_EQ(exact_value(words), inf);
  exact_add(words, std::nan(""));
  EXPECT_TRUE(std::isnan(exact_value(words)));
}

TEST(Elementwise, AddAddIntoScale) {
  for (const int64_t n : kCounts) {
    const Floats a = normal("a", {n}), b = normal("b", {n});
    Floats out({n}), into = a, scaled = a, in_place = b;
    add(a, b, out, {});
    add_into(into, b, {});
    scale(scaled, -2.5F, {});
    add(a, in_place, in_place, {});
    for (int64_t i = 0; i < n; ++i) {
      ASSERT_EQ(out[i], a[i] + b[i]);
      ASSERT_EQ(into[i], a[i] + b[i]);
      ASSERT_EQ(in_place[i], a[i] + b[i]);
      ASSERT_EQ(scaled[i], a[i] * -2.5F);
    }
  }
}

TEST(Elementwise, AddIntoAcrossDtypes) {
  const int64_t n = 2500;
  const Floats x = normal("x", {n});
  Block<uint16_t> bf({n}), half({n}, DType::kF16);
  Block<double> wide({n});
  for (int64_t i = 0; i < n; ++i)
    bf[i] = float_to_bf16(x[i]), half[i] = float_to_f16(x[i]), wide[i] = 1e10;
  Floats sum = x;
  add_into(sum, bf, {});
  add_into(wide, x, {});
  add_into(half, x, {});
  for (int64_t i = 0; i < n; ++i) {
    ASSERT_EQ(sum[i], x[i] + bf16_to_float(bf[i]));
    ASSERT_EQ(wide[i], 1e10 + static_cast<double>(x[i])) << "an fp64 sum keeps its digits";
    ASSERT_EQ(half[i], float_to_f16(f16_to_float(float_to_f16(x[i])) + x[i]));
  }
}

TEST(Cast, EveryPairOfFloatDtypesRoundsToNearest) {
  const int64_t n = 20011;
  const Floats x = normal("x", {n}, 50);
  Block<uint16_t> bf({n}), half({n}, DType::kF16), half_from_bf({n}, DType::kF16);
  Block<double> wide({n});
  Floats back({n}), from_half({n}), from_wide({n}), same({n});
  cast(x, bf, {});
  cast(x, half, {});
  cast(x, wide, {});
  cast(bf, back, {});
  cast(half, from_half, {});
  cast(wide, from_wide, {});
  cast(bf, half_from_bf, {});
  cast(x, same, {});
  for (int64_t i = 0; i < n; ++i) {
    ASSERT_EQ(bf[i], float_to_bf16(x[i]));
    ASSERT_EQ(half[i], float_to_f16(x[i]));
    ASSERT_EQ(wide[i], static_cast<double>(x[i]));
    ASSERT_EQ(back[i], bf16_to_float(bf[i]));
    ASSERT_EQ(from_half[i], f16_to_float(half[i]));
    ASSERT_EQ(from_wide[i], x[i]);
    ASSERT_EQ(half_from_bf[i], float_to_f16(bf16_to_float(bf[i])));
    ASSERT_EQ(same[i], x[i]);
  }
}

TEST(Cast, EveryHalfAndEveryBf16PatternSurvivesTheRoundTrip) {
  for (const DType type : {DType::kF16, DType::kBF16}) {
    Block<uint16_t> all({65536}, type), back({65536}, type);
    for (int64_t i = 0; i < 65536; ++i) all[i] = static_cast<uint16_t>(i);
    Floats wide({65536});
    cast(all, wide, {});
    cast(wide, back, {});
    for (int64_t i = 0; i < 65536; ++i) {
      if (std::isnan(wide[i])) {
        Floats nan({1}, std::vector<float>{wide[i]}), again({1});
        Block<uint16_t> one({1}, type);
        cast(nan, one, {});
        cast(one, again, {});
        ASSERT_TRUE(std::isnan(again[0])) << i;
      } else {
        ASSERT_EQ(back[i], i) << dtype_name(type);
      }
    }
  }
}

TEST(CopyColumns, CopiesAnyDtype) {
  const Floats src = normal("src", {40, 13});
  for (const auto& [begin, cols] :
       {std::pair<int64_t, int64_t>{0, 13}, {0, 1}, {5, 8}, {12, 1}, {13, 0}, {3, 0}}) {
    Floats dst({40, cols});
    copy_columns(src, begin, dst, {});
    for (int64_t r = 0; r < 40; ++r)
      for (int64_t c = 0; c < cols; ++c) ASSERT_EQ(dst[r * cols + c], src[r * 13 + begin + c]);
  }
  const Block<int32_t> ids({2, 3}, std::vector<int32_t>{1, 2, 3, 4, 5, 6});
  Block<int32_t> part({2, 2});
  copy_columns(ids, 1, part, {});
  EXPECT_EQ(part.values(), (std::vector<int32_t>{2, 3, 5, 6}));
  EXPECT_THROW(copy_columns(src, 6, Floats({40, 8}), {}), InternalError);
}

TEST(OptimThreads, ResultsDoNotDependOnTheirNumber) {
  const int64_t n = 100003;
  const Floats x = normal("x", {n}), g = normal("g", {n});
  expect_same_for_any_threads([&] {
    Floats p = x, m = filled({n}, 0), v = filled({n}, 0);
    Block<int64_t> norm = no_words();
    adamw_step(p, none(), g, m, v, scalar(0.9F), {.lr = 0.1, .step = 2}, {});
    Tensor rows = p;
    rows.shape = {n / 7, 7};
    sum_of_squares({&rows, 1}, norm, {});
    auto all = concat({&p, &m, &v});
    all.resize(all.size() + 2 * kExactWords);
    std::memcpy(&all[all.size() - 2 * kExactWords], norm.begin(), kExactWords * sizeof(int64_t));
    return all;
  });
}

}  // namespace
}  // namespace r1::kernels::test
