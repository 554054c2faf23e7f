#include "tests/runtime/kernels/support.h"

namespace r1::kernels::test {
namespace {

constexpr double kEps = 1e-5;

std::vector<double> rmsnorm(const std::vector<double>& x, const std::vector<double>& w,
                            int64_t tokens, std::vector<double>* rstd = nullptr) {
  const size_t hidden = w.size();
  std::vector<double> y(x.size());
  for (size_t t = 0; t < static_cast<size_t>(tokens); ++t) {
    double sum = 0;
    for (size_t i = 0; i < hidden; ++i) sum += x[t * hidden + i] * x[t * hidden + i];
    const double r = 1 / std::sqrt(sum / static_cast<double>(hidden) +
                                   static_cast<double>(static_cast<float>(kEps)));
    if (rstd != nullptr) rstd->push_back(r);
    for (size_t i = 0; i < hidden; ++i) y[t * hidden + i] = x[t * hidden + i] * r * w[i];
  }
  return y;
}

struct Gradients {
  std::vector<double> dx, dw;
};
Gradients rmsnorm_gradients(const std::vector<double>& dy, const std::vector<double>& x,
                            const std::vector<double>& w, int64_t tokens) {
  std::vector<double> rstd;
  rmsnorm(x, w, tokens, &rstd);
  const size_t hidden = w.size();
  Gradients g{std::vector<double>(x.size()), std::vector<double>(hidden)};
  for (size_t t = 0; t < rstd.size(); ++t) {
    double dot = 0;
    for (size_t i = 0; i < hidden; ++i) dot += dy[t * hidden + i] * w[i] * x[t * hidden + i];
    for (size_t i = 0; i < hidden; ++i) {
      const size_t at = t * hidden + i;
      g.dx[at] =
          rstd[t] * (dy[at] * w[i] - x[at] * rstd[t] * rstd[t] * dot / static_cast<double>(hidden));
      g.dw[i] += dy[at] * x[at] * rstd[t];
    }
  }
  return g;
}

struct Dims {
  int64_t tokens, hidden;
};
void PrintTo(const Dims& d, std::ostream* os) { *os << d.tokens << "x" << d.hidden; }
class RmsNorm : public testing::TestWithParam<Dims> {};
INSTANTIATE_TEST_SUITE_P(Shapes, RmsNorm,
                         testing::Values(Dims{0, 8}, Dims{3, 0}, Dims{1, 1}, Dims{3, 7},
                                         Dims{16, 8}, Dims{17, 31}, Dims{33, 129}, Dims{70, 768}));

TEST_P(RmsNorm, Forward) {
  const auto [T, H] = GetParam();
  const Floats x = normal("x", {T, H}, 3), w = normal("w", {H});
  Floats y({T, H}), rstd({T});
  rmsnorm_forward(x, w, static_cast<float>(kEps), y, rstd, {});
  std::vector<double> want_rstd;
  const auto want = rmsnorm(x.doubles(), w.doubles(), T, &want_rstd);
  expect_close(y, want, "y");
  if (H > 0) expect_close(rstd, want_rstd, "rstd", {.l2 = 1e-7, .element = 1e-7});
}

TEST_P(RmsNorm, AddForwardAlsoInPlace) {
  const auto [T, H] = GetParam();
  Floats x = normal("x", {T, H}, 3);
  const Floats delta = normal("delta", {T, H}), w = normal("w", {H});
  std::vector<double> sum_want;
  for (size_t i = 0; i < x.size(); ++i)
    sum_want.push_back(
        static_cast<double>(x[static_cast<int64_t>(i)] + delta[static_cast<int64_t>(i)]));
  const auto want = rmsnorm(sum_want, w.doubles(), T);
  Floats sum({T, H}), y({T, H}), rstd({T});
  add_rmsnorm_forward(x, delta, w, static_cast<float>(kEps), sum, y, rstd, {});
  EXPECT_EQ(sum.doubles(), sum_want);
  expect_close(y, want, "y");
  Floats y2({T, H}), rstd2({T});
  add_rmsnorm_forward(x, delta, w, static_cast<float>(kEps), x, y2, rstd2, {});
  EXPECT_EQ(x.doubles(), sum_want);
  EXPECT_EQ(y2.values(), y.values());
}

TEST_P(RmsNorm, BackwardWithAndWithoutResidualAndInPlace) {
  const auto [T, H] = GetParam();
  const Floats x = normal("x", {T, H}, 3), w = normal("w", {H}),
               residual = normal("residual", {T, H});
  Floats dy = normal("dy", {T, H}), y({T, H}), rstd({T}), dx({T, H}), dw = normal("dw", {H});
  rmsnorm_forward(x, w, static_cast<float>(kEps), y, rstd, {});
  Gradients want = rmsnorm_gradients(dy.doubles(), x.doubles(), w.doubles(), T);
  for (int64_t i = 0; i < H; ++i) want.dw[static_cast<size_t>(i)] += static_cast<double>(dw[i]);
  const std::vector<float> dw0 = dw.values();

  rmsnorm_backward(dy, x, w, rstd, none(), dx, dw, {});
  // With one element the gradient is the small difference of two large terms.
  expect_close(dx, want.dx, "dx", H == 1 ? Tolerance{.l2 = 1e-3, .element = 1e-3} : Tolerance{});
  expect_close(dw, want.dw, "dw");

  for (size_t i = 0; i < want.dx.size(); ++i)
    want.dx[i] += static_cast<double>(residual[static_cast<int64_t>(i)]);
  Floats dx_res({T, H}), dw2({H}, dw0);
  rmsnorm_backward(dy, x, w, rstd, residual, dx_res, dw2, {});
  expect_close(dx_res, want.dx, "dx + residual");
  EXPECT_EQ(dw2.values(), dw.values());

  Floats in_residual = residual, dw3({H}, dw0);
  rmsnorm_backward(dy, x, w, rstd, in_residual, in_residual, dw3, {});
  EXPECT_EQ(in_residual.values(), dx_res.values()) << "dx aliasing residual";
  Floats dw4({H}, dw0);
  rmsnorm_backward(dy, x, w, rstd, residual, dy, dw4, {});
  EXPECT_EQ(dy.values(), dx_res.values()) << "dx aliasing dy";
  EXPECT_EQ(dw4.values(), dw.values());
}

TEST(RmsNormGradient, AgreesWithCentralDifferences) {
  const int64_t T = 3, H = 11;
  const Floats x = normal("x", {T, H}), w = normal("w", {H}), r = normal("r", {T, H});
  Floats y({T, H}), rstd({T}), dx({T, H}), dw = filled({H}, 0);
  rmsnorm_forward(x, w, static_cast<float>(kEps), y, rstd, {});
  rmsnorm_backward(r, x, w, rstd, none(), dx, dw, {});
  const Tolerance tol{.l2 = 1e-5, .element = 1e-5};
  expect_close(dx,
               central_difference(
                   x.doubles(),
                   [&](const auto& v) { return inner(rmsnorm(v, w.doubles(), T), r.doubles()); }),
               "dx", tol);
  expect_close(dw,
               central_difference(
                   w.doubles(),
                   [&](const auto& v) { return inner(rmsnorm(x.doubles(), v, T), r.doubles()); }),
               "dw", tol);
}

TEST(RmsNormThreads, ResultsDoNotDependOnTheirNumber) {
  const int64_t T = 133, H = 200;
  const Floats x = normal("x", {T, H}), w = normal("w", {H}), dy = normal("dy", {T, H});
  expect_same_for_any_threads([&] {
    Floats sum({T, H}), y({T, H}), rstd({T}), dx({T, H}), dw = filled({H}, 0.5F);
    add_rmsnorm_forward(x, dy, w, 1e-6F, sum, y, rstd, {});
    rmsnorm_backward(dy, sum, w, rstd, none(), dx, dw, {});
    return concat({&y, &dx, &dw});
  });
}

}  // namespace
}  // namespace r1::kernels::test
