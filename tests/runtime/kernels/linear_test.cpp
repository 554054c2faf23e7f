#include "tests/runtime/kernels/support.h"

namespace r1::kernels::test {
namespace {

struct Dims {
  int64_t tokens, in, out;
};
void PrintTo(const Dims& d, std::ostream* os) { *os << d.tokens << "x" << d.in << "x" << d.out; }

// Zeros, ones, primes, tails of every vector and tile width, decoding (few tokens), and several
// tiles both ways.
const Dims kDims[] = {{0, 8, 8},     {5, 0, 7},    {5, 7, 0},      {1, 1, 1},      {1, 13, 17},
                      {2, 64, 48},   {3, 31, 129}, {4, 128, 7},    {5, 97, 101},   {7, 256, 40},
                      {8, 33, 65},   {9, 8, 1031}, {17, 19, 23},   {64, 64, 64},   {127, 5, 61},
                      {33, 1, 257},  {1, 768, 5},  {600, 30, 520}, {1040, 17, 40}, {6, 1000, 33},
                      {16, 48, 1200}};

/// c[m, n] = sum over k of a(m, k) b(k, n) + start[m, n].
template <class A, class B>
std::vector<double> product(int64_t m, int64_t n, int64_t k, A a, B b,
                            const std::vector<double>& start) {
  std::vector<double> c(static_cast<size_t>(m * n));
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      double sum = start.empty() ? 0 : start[static_cast<size_t>(i * n + j)];
      for (int64_t p = 0; p < k; ++p)
        sum += static_cast<double>(a(i, p)) * static_cast<double>(b(p, j));
      c[static_cast<size_t>(i * n + j)] = sum;
    }
  return c;
}

class Linear : public testing::TestWithParam<Dims> {};
INSTANTIATE_TEST_SUITE_P(Shapes, Linear, testing::ValuesIn(kDims));

TEST_P(Linear, ForwardIsTheProductWithAndWithoutBias) {
  const auto [T, IN, OUT] = GetParam();
  const Floats x = normal("x", {T, IN}), w = normal("w", {OUT, IN}), bias = normal("bias", {OUT});
  const auto at_x = [&, in = IN](int64_t t, int64_t i) { return x[t * in + i]; };
  const auto at_wt = [&, in = IN](int64_t i, int64_t o) { return w[o * in + i]; };
  Floats y({T, OUT}), y_bias({T, OUT});
  linear_forward(x, w, none(), y, {});
  linear_forward(x, w, bias, y_bias, {});
  expect_close(y, product(T, OUT, IN, at_x, at_wt, {}), "y");
  std::vector<double> start;
  for (int64_t t = 0; t < T; ++t) start.insert(start.end(), bias.begin(), bias.end());
  expect_close(y_bias, product(T, OUT, IN, at_x, at_wt, start), "y with bias");
}

TEST_P(Linear, BackwardInputOverwritesOrAccumulates) {
  const auto [T, IN, OUT] = GetParam();
  const Floats dy = normal("dy", {T, OUT}), w = normal("w", {OUT, IN});
  const auto at_dy = [&, out = OUT](int64_t t, int64_t o) { return dy[t * out + o]; };
  const auto at_w = [&, in = IN](int64_t o, int64_t i) { return w[o * in + i]; };
  Floats dx({T, IN}), sum = normal("earlier", {T, IN});
  const std::vector<double> earlier = sum.doubles();
  linear_backward_input(dy, w, dx, false, {});
  linear_backward_input(dy, w, sum, true, {});
  expect_close(dx, product(T, IN, OUT, at_dy, at_w, {}), "dx");
  expect_close(sum, product(T, IN, OUT, at_dy, at_w, earlier), "dx accumulated");
}

TEST_P(Linear, BackwardWeightOverwritesOrAccumulatesAndBiasAccumulates) {
  const auto [T, IN, OUT] = GetParam();
  const Floats dy = normal("dy", {T, OUT}), x = normal("x", {T, IN});
  Floats dw = normal("dw", {OUT, IN}), db = normal("db", {OUT});
  const std::vector<double> dw0 = dw.doubles(), db0 = db.doubles();
  Floats written = filled({OUT, IN}, std::numeric_limits<float>::quiet_NaN());
  linear_backward_weight(dy, x, dw, true, {});
  linear_backward_weight(dy, x, written, false, {});
  bias_backward(dy, db, {});
  const auto at_dyt = [&, out = OUT](int64_t o, int64_t t) { return dy[t * out + o]; };
  const auto at_x = [&, in = IN](int64_t t, int64_t i) { return x[t * in + i]; };
  expect_close(dw, product(OUT, IN, T, at_dyt, at_x, dw0), "dw accumulated");
  expect_close(written, product(OUT, IN, T, at_dyt, at_x, {}), "dw");
  expect_close(db,
               product(
                   OUT, 1, T, at_dyt, [](int64_t, int64_t) { return 1.0F; }, db0),
               "db");
}

class LinearGradient : public testing::TestWithParam<Dims> {};
INSTANTIATE_TEST_SUITE_P(Shapes, LinearGradient,
                         testing::Values(Dims{1, 1, 1}, Dims{1, 13, 17}, Dims{5, 7, 3},
                                         Dims{9, 17, 11}));

TEST_P(LinearGradient, AgreesWithCentralDifferences) {
  const auto [T, IN, OUT] = GetParam();
  const Floats x = normal("x", {T, IN}), w = normal("w", {OUT, IN}), r = normal("r", {T, OUT});
  const auto loss = [&, in = IN, out = OUT, t_ = T](const std::vector<double>& xv,
                                                    const std::vector<double>& wv) {
    const auto y = product(
        t_, out, in, [&](int64_t t, int64_t i) { return xv[static_cast<size_t>(t * in + i)]; },
        [&](int64_t i, int64_t o) { return wv[static_cast<size_t>(o * in + i)]; }, {});
    return inner(y, r.doubles());
  };
  Floats dx({T, IN}), dw = filled({OUT, IN}, 0);
  linear_backward_input(r, w, dx, false, {});
  linear_backward_weight(r, x, dw, false, {});
  const Tolerance tol{.l2 = 1e-5, .element = 1e-4};
  expect_close(dx,
               central_difference(x.doubles(), [&](const auto& v) { return loss(v, w.doubles()); }),
               "dx", tol);
  expect_close(dw,
               central_difference(w.doubles(), [&](const auto& v) { return loss(x.doubles(), v); }),
               "dw", tol);
}

TEST(LinearThreads, ResultsDoNotDependOnTheirNumber) {
  for (const auto& [T, IN, OUT] : {Dims{700, 96, 600}, Dims{3, 300, 500}, Dims{1, 512, 3000}}) {
    const Floats x = normal("x", {T, IN}), w = normal("w", {OUT, IN}), bias = normal("b", {OUT}),
                 dy = normal("dy", {T, OUT});
    expect_same_for_any_threads([&, t = T, in = IN, out = OUT] {
      Floats y({t, out}), dx({t, in}), dw = filled({out, in}, 0.5F), db = filled({out}, 0.25F);
      linear_forward(x, w, bias, y, {});
      linear_backward_input(dy, w, dx, false, {});
      linear_backward_weight(dy, x, dw, true, {});
      bias_backward(dy, db, {});
      return concat({&y, &dx, &dw, &db});
    });
  }
}

TEST(LinearFewTokens, ATokensResultDoesNotDependOnItsBatch) {
  const int64_t in = 77, out = 203;
  const Floats x = normal("x", {32, in}), w = normal("w", {out, in}), bias = normal("b", {out});
  Floats alone({32, out});
  for (int64_t t = 0; t < 32; ++t)
    linear_forward(Tensor(x).rows(t, t + 1), w, bias, Tensor(alone).rows(t, t + 1), {});
  for (int64_t batch = 2; batch <= 32; ++batch) {
    Floats y({batch, out});
    linear_forward(Tensor(x).rows(0, batch), w, bias, y, {});
    EXPECT_EQ(std::memcmp(y.begin(), alone.begin(), y.size() * sizeof(float)), 0) << batch;
  }
}

TEST(LinearChecks, NameTheArgumentAndBothShapes) {
  const Floats x({4, 6}), w({5, 7}), y({4, 5});
  try {
    linear_forward(x, w, none(), y, {});
    FAIL() << "a weight of the wrong width was accepted";
  } catch (const InternalError& e) {
    EXPECT_NE(std::string(e.what()).find("linear_forward: w has shape [5, 7], expected [5, 6]"),
              std::string::npos)
        << e.what();
  }
  const Block<double> wide({4, 5});
  EXPECT_THROW(linear_forward(Floats({4, 6}), Floats({5, 6}), none(), wide, {}), InternalError);
  Tensor elsewhere = y;
  elsewhere.device = {.kind = DeviceKind::kCuda, .index = 1};
  EXPECT_THROW(linear_forward(Floats({4, 6}), Floats({5, 6}), none(), elsewhere, {}),
               InternalError);
}

}  // namespace
}  // namespace r1::kernels::test
