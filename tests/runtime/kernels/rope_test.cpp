#include "tests/runtime/kernels/support.h"

namespace r1::kernels::test {
namespace {

struct Dims {
  int64_t tokens, q_heads, kv_heads, dim;
  [[nodiscard]] int64_t width() const { return (q_heads + 2 * kv_heads) * dim; }
  [[nodiscard]] RopeArgs args(bool inverse = false) const {
    return {.q_heads = q_heads, .kv_heads = kv_heads, .head_dim = dim, .inverse = inverse};
  }
};
void PrintTo(const Dims& d, std::ostream* os) {
  *os << d.tokens << "x" << d.q_heads << "/" << d.kv_heads << "x" << d.dim;
}

constexpr int64_t kPositions = 50;

Floats table(int64_t dim) {
  Floats t({kPositions, dim});
  for (int64_t p = 0; p < kPositions; ++p)
    for (int64_t i = 0; i < dim / 2; ++i) {
      const double angle =
          static_cast<double>(p) *
          std::pow(10000.0, -2.0 * static_cast<double>(i) / static_cast<double>(dim));
      t[p * dim + i] = static_cast<float>(std::cos(angle));
      t[p * dim + dim / 2 + i] = static_cast<float>(std::sin(angle));
    }
  return t;
}

Ints positions(int64_t tokens) {
  Ints p({tokens});
  for (int64_t t = 0; t < tokens; ++t) p[t] = static_cast<int32_t>((t * 7) % kPositions);
  return p;
}

class Rope : public testing::TestWithParam<Dims> {};
INSTANTIATE_TEST_SUITE_P(Shapes, Rope,
                         testing::Values(Dims{0, 2, 1, 8}, Dims{3, 0, 0, 8}, Dims{3, 0, 1, 8},
                                         Dims{1, 1, 1, 2}, Dims{5, 3, 1, 6}, Dims{17, 4, 2, 16},
                                         Dims{40, 3, 3, 64}, Dims{9, 5, 2, 26}));

TEST_P(Rope, RotatesQAndKAndLeavesV) {
  const Dims d = GetParam();
  const Floats raw = normal("qkv", {d.tokens, d.width()}), cs = table(d.dim);
  const Ints pos = positions(d.tokens);
  Floats qkv = raw;
  rope(qkv, pos, cs, d.args(), {});
  std::vector<double> want = raw.doubles();
  for (int64_t t = 0; t < d.tokens; ++t)
    for (int64_t h = 0; h < d.q_heads + d.kv_heads; ++h)
      for (int64_t i = 0; i < d.dim / 2; ++i) {
        const int64_t at = t * d.width() + h * d.dim + i;
        const double c = static_cast<double>(cs[pos[t] * d.dim + i]),
                     s = static_cast<double>(cs[pos[t] * d.dim + d.dim / 2 + i]);
        const double a = static_cast<double>(raw[at]), b = static_cast<double>(raw[at + d.dim / 2]);
        want[static_cast<size_t>(at)] = a * c - b * s;
        want[static_cast<size_t>(at + d.dim / 2)] = b * c + a * s;
      }
  expect_close(qkv, want, "rotated");
  for (int64_t t = 0; t < d.tokens; ++t)
    for (int64_t i = (d.q_heads + d.kv_heads) * d.dim; i < d.width(); ++i)
      ASSERT_EQ(qkv[t * d.width() + i], raw[t * d.width() + i]) << "v";
  // The inverse rotation is the transpose: with unit (cos, sin) it gives the input back.
  rope(qkv, pos, cs, d.args(true), {});
  expect_close(qkv, raw.doubles(), "rotated back");
}

TEST(RopeChecks, APositionOutsideTheTableIsNamed) {
  const Dims d{2, 1, 1, 4};
  const Floats cs = table(4);
  for (const int32_t bad : {-1, static_cast<int32_t>(kPositions)}) {
    Floats qkv = normal("qkv", {2, d.width()});
    Ints pos = positions(2);
    pos[1] = bad;
    EXPECT_THROW(rope(qkv, pos, cs, d.args(), {}), InternalError);
  }
}

std::vector<double> qk_norm(const std::vector<double>& raw, const std::vector<double>& qw,
                            const std::vector<double>& kw, const Dims& d) {
  std::vector<double> out = raw;
  for (int64_t t = 0; t < d.tokens; ++t)
    for (int64_t h = 0; h < d.q_heads + d.kv_heads; ++h) {
      double* x = out.data() + t * d.width() + h * d.dim;
      double sum = 0;
      for (int64_t i = 0; i < d.dim; ++i) sum += x[i] * x[i];
      const double r = 1 / std::sqrt(sum / static_cast<double>(d.dim) + static_cast<double>(1e-6F));
      const auto& w = h < d.q_heads ? qw : kw;
      for (int64_t i = 0; i < d.dim; ++i) x[i] *= r * w[static_cast<size_t>(i)];
    }
  return out;
}

TEST_P(Rope, QkNormForward) {
  const Dims d = GetParam();
  const Floats raw = normal("qkv", {d.tokens, d.width()}), qw = normal("qw", {d.dim}),
               kw = normal("kw", {d.dim});
  Floats out({d.tokens, d.width()}), rstd({d.tokens, d.q_heads + d.kv_heads});
  qk_norm_forward(raw, qw, kw, 1e-6F, d.args(), out, rstd, {});
  expect_close(out, qk_norm(raw.doubles(), qw.doubles(), kw.doubles(), d), "out");
  for (const float r : rstd) EXPECT_GT(r, 0.0F);
}

class QkNormGradient : public testing::TestWithParam<Dims> {};
INSTANTIATE_TEST_SUITE_P(Shapes, QkNormGradient,
                         testing::Values(Dims{0, 2, 1, 8}, Dims{3, 0, 1, 8}, Dims{5, 3, 1, 6},
                                         Dims{18, 1, 1, 8}));

TEST_P(QkNormGradient, AgreesWithCentralDifferences) {
  const Dims d = GetParam();
  const Floats raw = normal("qkv", {d.tokens, d.width()}), qw = normal("qw", {d.dim}),
               kw = normal("kw", {d.dim});
  const Floats r = normal("r", {d.tokens, d.width()});
  Floats out({d.tokens, d.width()}), rstd({d.tokens, d.q_heads + d.kv_heads}), grad = r;
  Floats dqw = filled({d.dim}, 0), dkw = filled({d.dim}, 0);
  qk_norm_forward(raw, qw, kw, 1e-6F, d.args(), out, rstd, {});
  qk_norm_backward(grad, raw, qw, kw, rstd, d.args(), dqw, dkw, {});
  const auto loss = [&](const auto& a, const auto& b, const auto& c) {
    return inner(qk_norm(a, b, c, d), r.doubles());
  };
  const Tolerance tol{.l2 = 2e-5, .element = 1e-4};
  expect_close(
      grad,
      central_difference(raw.doubles(),
                         [&](const auto& v) { return loss(v, qw.doubles(), kw.doubles()); }),
      "d", tol);
  expect_close(
      dqw,
      central_difference(qw.doubles(),
                         [&](const auto& v) { return loss(raw.doubles(), v, kw.doubles()); }),
      "dqw", tol);
  expect_close(
      dkw,
      central_difference(kw.doubles(),
                         [&](const auto& v) { return loss(raw.doubles(), qw.doubles(), v); }),
      "dkw", tol);
}

TEST(RopeThreads, ResultsDoNotDependOnTheirNumber) {
  const Dims d{70, 3, 2, 16};
  const Floats raw = normal("qkv", {d.tokens, d.width()}), cs = table(d.dim),
               qw = normal("qw", {d.dim}), kw = normal("kw", {d.dim});
  const Ints pos = positions(d.tokens);
  expect_same_for_any_threads([&] {
    Floats out({d.tokens, d.width()}), rstd({d.tokens, 5}), grad = raw, dqw = filled({d.dim}, 1),
                                                            dkw = filled({d.dim}, 1);
    qk_norm_forward(raw, qw, kw, 1e-6F, d.args(), out, rstd, {});
    rope(out, pos, cs, d.args(), {});
    qk_norm_backward(grad, raw, qw, kw, rstd, d.args(), dqw, dkw, {});
    return concat({&out, &rstd, &grad, &dqw, &dkw});
  });
}

}  // namespace
}  // namespace r1::kernels::test
