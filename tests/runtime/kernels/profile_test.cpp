// The profile counts what ran, and attention classes group what one launch serves.
#include "runtime/kernels/profile.h"

#include <gtest/gtest.h>

#include <vector>

#include "runtime/kernels/attention_class.h"
#include "runtime/kernels/ops.h"

namespace r1::kernels {
namespace {

TEST(Profile, CountsCallsAndWork) {
  std::vector<float> x(6, 1.0F), w(12, 1.0F), y(8);
  const auto tensor = [](std::vector<float>& v, Shape shape) {
    return Tensor{.data = v.data(), .dtype = DType::kF32, .shape = shape, .device = {}};
  };
  const Tensor tx = tensor(x, {2, 3}), tw = tensor(w, {4, 3}), ty = tensor(y, {2, 4});
  linear_forward(tx, tw, {}, ty, {});  // before: not counted
  profile_begin(DeviceKind::kCpu);
  linear_forward(tx, tw, {}, ty, {});
  linear_forward(tx, tw, {}, ty, {});
  scale(ty, 2.0F, {});
  const std::vector<OpProfile> ops = profile_end();
  linear_forward(tx, tw, {}, ty, {});
  ASSERT_EQ(ops.size(), 2U);
  for (const OpProfile& p : ops) {
    const bool product = p.name == "linear_forward";
    EXPECT_TRUE(product || p.name == "scale") << p.name;
    EXPECT_EQ(p.calls, product ? 2 : 1);
    EXPECT_DOUBLE_EQ(p.flops, product ? 2 * 2.0 * 2 * 3 * 4 : 0);
    EXPECT_DOUBLE_EQ(p.bytes, product ? 2 * 4.0 * (6 + 12 + 8) : 4.0 * 16);
    EXPECT_GT(p.seconds, 0);
  }
  EXPECT_EQ(y[0], 3.0F) << "results are those of the operations themselves";
}

TEST(AttentionClass, EqualSegmentsAreExact) {
  const std::vector<int32_t> cu{0, 48, 96, 144};
  EXPECT_EQ(attention_class(cu, 48, 144), (AttentionClass{.equal = true, .segments = 3, .longest = 48}));
}

TEST(AttentionClass, PaddingWithEmptySegmentsStaysInTheClass) {
  std::vector<int32_t> cu{0, 100, 130, 400, 900, 1000};
  const AttentionClass c = attention_class(cu, 500, 1000);
  EXPECT_EQ(c, (AttentionClass{.equal = false, .segments = 8, .longest = 512}));
  cu.resize(static_cast<size_t>(c.segments) + 1, cu.back());
  EXPECT_EQ(attention_class(cu, 500, 1000), c);
}

TEST(AttentionClass, LongestCoversEverySegment) {
  for (int64_t longest = 1; longest < 5000; longest += 37) {
    const std::vector<int32_t> cu{0, static_cast<int32_t>(longest), 6000};
    const AttentionClass c = attention_class(cu, 6000 - longest > longest ? 6000 - longest : longest, 6000);
    EXPECT_GE(c.longest, std::max(longest, 6000 - longest));
  }
}

}  // namespace
}  // namespace r1::kernels
