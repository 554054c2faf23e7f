#include "comm/reduce.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

namespace r1::comm {
namespace {

template <class T>
std::vector<T> reduced(DType dtype, ReduceOp op, const std::vector<std::vector<T>>& in) {
  std::vector<const void*> sources;
  for (const auto& v : in) sources.push_back(v.data());
  std::vector<T> out(in[0].size());
  reduce_in_order(dtype, op, sources, out.data(), static_cast<int64_t>(out.size()));
  return out;
}

// (1 + 2^-24) + 2^-24 is 1, 1 + (2^-24 + 2^-24) is not: the order shows, at every place of a block
// and in its tail.
TEST(Reduce, SumsInTheOrderOfTheSources) {
  for (size_t n : {1u, 7u, 1024u, 1031u, 3000u}) {
    const std::vector<float> one(n, 1.0f), tiny(n, 0x1p-24f);
    EXPECT_EQ(reduced(DType::kF32, ReduceOp::kSum, std::vector{one, tiny, tiny}), one);
    EXPECT_EQ(reduced(DType::kF32, ReduceOp::kSum, std::vector{tiny, tiny, one}),
              std::vector<float>(n, 1 + 0x1p-23f));
  }
}

std::vector<float> in_tree(const std::vector<std::vector<float>>& in) {
  std::vector<const void*> sources;
  for (const auto& v : in) sources.push_back(v.data());
  std::vector<float> out(in[0].size());
  sum_in_tree(DType::kF32, sources, out.data(), static_cast<int64_t>(out.size()));
  return out;
}

// Four ranks sum as two pairs, and so as two ranks that hold the pairs' sums; three as one and two.
TEST(Reduce, ATreeSumsPairsOfHalves) {
  for (size_t n : {1u, 7u, 1024u, 3000u}) {
    const std::vector<float> one(n, 1.0f), tiny(n, 0x1p-24f);
    EXPECT_EQ(in_tree({one, tiny}), one);
    EXPECT_EQ(in_tree({one, one, tiny, tiny}), std::vector<float>(n, 2.0f));
    EXPECT_EQ(in_tree({tiny, tiny, one, one}), in_tree({in_tree({tiny, tiny}), in_tree({one, one})}));
    EXPECT_EQ(in_tree({one, tiny, tiny}), std::vector<float>(n, 1 + 0x1p-23f)) << "1 + (2^-24 + 2^-24)";
  }
}

// 256 + 1 + 1 in bf16 steps stays 256 (steps of 2 there, ties to even); accumulated in fp32 it is
// 258.
TEST(Reduce, AccumulatesBF16InFP32) {
  const std::vector<uint16_t> big{float_to_bf16(256)}, one{float_to_bf16(1)};
  EXPECT_EQ(bf16_to_float(reduced(DType::kBF16, ReduceOp::kSum, std::vector{big, one, one})[0]),
            258);
}

TEST(Reduce, F16OverflowOfAPartialSumIsNoOverflowOfTheResult) {
  const std::vector<uint16_t> big{float_to_f16(60000)}, negative{float_to_f16(-60000)};
  EXPECT_EQ(f16_to_float(reduced(DType::kF16, ReduceOp::kSum, std::vector{big, big, negative})[0]),
            60000);
}

TEST(Reduce, MaximumShowsANaNOfAnySource) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(std::isnan(reduced<float>(DType::kF32, ReduceOp::kMax, {{nan}, {1}})[0]));
  EXPECT_TRUE(std::isnan(reduced<float>(DType::kF32, ReduceOp::kMax, {{1}, {nan}})[0]));
  EXPECT_TRUE(std::isnan(reduced<float>(DType::kF32, ReduceOp::kMax, {{1}, {nan}, {2}})[0]));
}

TEST(Reduce, IntegersCompareSignedAndWrap) {
  EXPECT_EQ(reduced<int64_t>(DType::kI64, ReduceOp::kMax, {{-5}, {3}, {-9}})[0], 3);
  const int32_t top = std::numeric_limits<int32_t>::max();
  EXPECT_EQ(reduced<int32_t>(DType::kI32, ReduceOp::kSum, {{top}, {1}})[0],
            std::numeric_limits<int32_t>::min());
}

TEST(Reduce, MayWriteOverASource) {
  std::vector<float> a(2500, 1), b(2500, 2);
  const void* sources[] = {a.data(), b.data()};
  reduce_in_order(DType::kF32, ReduceOp::kSum, sources, b.data(), 2500);
  EXPECT_EQ(b, std::vector<float>(2500, 3));
}

TEST(Reduce, BytesAreRefused) {
  uint8_t x = 1;
  const void* sources[] = {&x, &x};
  EXPECT_THROW(reduce_in_order(DType::kU8, ReduceOp::kSum, sources, &x, 1), InternalError);
}

}  // namespace
}  // namespace r1::comm
