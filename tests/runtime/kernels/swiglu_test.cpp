#include "tests/runtime/kernels/support.h"

namespace r1::kernels::test {
namespace {

double silu(double x) { return x / (1 + std::exp(-x)); }

std::vector<double> swiglu(const std::vector<double>& gate_up, int64_t tokens, int64_t ffn) {
  std::vector<double> h;
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t i = 0; i < ffn; ++i)
      h.push_back(silu(gate_up[static_cast<size_t>(t * 2 * ffn + i)]) *
                  gate_up[static_cast<size_t>((t * 2 + 1) * ffn + i)]);
  return h;
}

struct Dims {
  int64_t tokens, ffn;
};
void PrintTo(const Dims& d, std::ostream* os) { *os << d.tokens << "x" << d.ffn; }
class SwiGlu : public testing::TestWithParam<Dims> {};
INSTANTIATE_TEST_SUITE_P(Shapes, SwiGlu,
                         testing::Values(Dims{0, 8}, Dims{3, 0}, Dims{1, 1}, Dims{5, 7},
                                         Dims{9, 64}, Dims{31, 203}));

TEST_P(SwiGlu, Forward) {
  const auto [T, F] = GetParam();
  const Floats gate_up = normal("gate_up", {T, 2 * F}, 4);
  Floats h({T, F});
  swiglu_forward(gate_up, h, {});
  expect_close(h, swiglu(gate_up.doubles(), T, F), "h");
}

TEST_P(SwiGlu, BackwardAlsoInPlace) {
  const auto [T, F] = GetParam();
  Floats gate_up = normal("gate_up", {T, 2 * F}, 4);
  const Floats dh = normal("dh", {T, F});
  std::vector<double> want(gate_up.size());
  for (int64_t t = 0; t < T; ++t)
    for (int64_t i = 0; i < F; ++i) {
      const double g = static_cast<double>(gate_up[t * 2 * F + i]),
                   u = static_cast<double>(gate_up[(t * 2 + 1) * F + i]);
      const double s = 1 / (1 + std::exp(-g)), d = static_cast<double>(dh[t * F + i]);
      want[static_cast<size_t>(t * 2 * F + i)] = d * u * (s + g * s * (1 - s));
      want[static_cast<size_t>((t * 2 + 1) * F + i)] = d * g * s;
    }
  Floats dgate_up({T, 2 * F});
  swiglu_backward(dh, gate_up, dgate_up, {});
  expect_close(dgate_up, want, "dgate_up");
  swiglu_backward(dh, gate_up, gate_up, {});
  EXPECT_EQ(gate_up.values(), dgate_up.values()) << "in place";
}

TEST(SwiGluGradient, AgreesWithCentralDifferences) {
  const int64_t T = 3, F = 9;
  const Floats gate_up = normal("gate_up", {T, 2 * F}), r = normal("r", {T, F});
  Floats d({T, 2 * F});
  swiglu_backward(r, gate_up, d, {});
  expect_close(
      d,
      central_difference(gate_up.doubles(),
                         [&](const auto& v) { return inner(swiglu(v, T, F), r.doubles()); }),
      "dgate_up", {.l2 = 1e-5, .element = 1e-5});
}

TEST(SwiGlu, LargeGatesSaturateWithoutNaN) {
  const float huge[] = {-1e30F, -200, -100, -88, 88, 100, 200, 1e30F};
  Floats gate_up({1, 16}), h({1, 8}), d({1, 16});
  const Floats dh = filled({1, 8}, 1.0F);
  for (int64_t i = 0; i < 8; ++i) gate_up[i] = huge[i], gate_up[8 + i] = 1;
  swiglu_forward(gate_up, h, {});
  swiglu_backward(dh, gate_up, d, {});
  for (int64_t i = 0; i < 8; ++i) {
    const bool open = huge[i] > 0;
    EXPECT_NEAR(h[i], open ? huge[i] : 0, open ? 0 : 1e-36) << huge[i];
    EXPECT_NEAR(d[i], open ? 1 : 0, 1e-30) << huge[i];
  }
  gate_up[0] = std::numeric_limits<float>::quiet_NaN();
  swiglu_forward(gate_up, h, {});
  EXPECT_TRUE(std::isnan(h[0])) << "a NaN must reach the loss";
}

TEST(SwiGluThreads, ResultsDoNotDependOnTheirNumber) {
  const int64_t T = 50, F = 77;
  const Floats gate_up = normal("gate_up", {T, 2 * F}), dh = normal("dh", {T, F});
  expect_same_for_any_threads([&] {
    Floats h({T, F}), d({T, 2 * F});
    swiglu_forward(gate_up, h, {});
    swiglu_backward(dh, gate_up, d, {});
    return concat({&h, &d});
  });
}

}  // namespace
}  // namespace r1::kernels::test
