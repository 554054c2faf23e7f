#include "tests/runtime/kernels/support.h"

namespace r1::kernels::test {
namespace {

struct Case {
  const char* name;
  std::vector<int32_t> kv_of_q;
  int64_t kv_heads, dim;
  std::vector<int32_t> lengths;
  int64_t padding;  // tokens past the last segment
};
void PrintTo(const Case& c, std::ostream* os) { *os << c.name; }

const Case kCases[] = {
    {"one token", {0}, 1, 4, {1}, 0},
    {"no tokens", {0}, 1, 4, {0}, 0},
    {"segments of one token", {0, 0, 1}, 2, 8, {1, 1, 1, 1}, 0},
    {"short odd segments", {0, 0, 0}, 1, 5, {3, 7, 2, 11}, 0},
    {"empty segments and padding", {0, 1}, 2, 16, {0, 5, 0, 9, 0}, 4},
    {"uneven groups", {0, 1, 1, 1, 2}, 3, 12, {20, 13}, 0},
    {"a kv head nobody reads", {1, 1}, 3, 8, {17, 3}, 2},
    {"no q heads", {}, 2, 8, {6}, 0},
    {"no heads", {}, 0, 8, {6}, 1},
    {"across query and key blocks", {0, 0, 1}, 2, 16, {300, 129}, 0},
    {"several key blocks", {0}, 1, 32, {650}, 3},
    {"exact blocks", {0, 1}, 2, 8, {128, 256}, 0},
    {"wide heads", {0, 0}, 1, 128, {70}, 0},
};

struct Problem {
  int64_t tokens, q_heads, width;
  std::vector<int32_t> cu;
  AttentionArgs args;
  explicit Problem(const Case& c) : cu{0} {
    int32_t longest = 0;
    for (const int32_t n : c.lengths) {
      cu.push_back(cu.back() + n);
      longest = std::max(longest, n);
    }
    tokens = cu.back() + c.padding;
    q_heads = static_cast<int64_t>(c.kv_of_q.size());
    width = (q_heads + 2 * c.kv_heads) * c.dim;
    args = {.q_heads = q_heads,
            .kv_heads = c.kv_heads,
            .head_dim = c.dim,
            .kv_of_q = c.kv_of_q,
            .scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(c.dim))),
            .max_segment = longest,
            .host_cu = cu};
  }
  [[nodiscard]] Ints cu_tensor() const { return Ints({static_cast<int64_t>(cu.size())}, cu); }
};

struct Reference {
  std::vector<double> o, lse, dqkv;
};

/// Attention and its gradient written out in fp64: every score of a segment at once.
Reference reference(const Problem& p, const std::vector<double>& qkv,
                    const std::vector<double>& d_o) {
  const AttentionArgs& a = p.args;
  const auto dim = static_cast<size_t>(a.head_dim), width = static_cast<size_t>(p.width),
             nq = static_cast<size_t>(p.q_heads);
  Reference r{std::vector<double>(static_cast<size_t>(p.tokens) * nq * dim),
              std::vector<double>(nq * static_cast<size_t>(p.tokens)),
              std::vector<double>(qkv.size())};
  for (size_t h = 0; h < nq; ++h) {
    const size_t q_col = h * dim, k_col = (nq + static_cast<size_t>(a.kv_of_q[h])) * dim;
    const size_t v_col = k_col + static_cast<size_t>(a.kv_heads) * dim;
    for (size_t s = 0; s + 1 < p.cu.size(); ++s)
      for (auto i = static_cast<size_t>(p.cu[s]); i < static_cast<size_t>(p.cu[s + 1]); ++i) {
        const auto first = static_cast<size_t>(p.cu[s]);
        std::vector<double> prob;
        double sum = 0;
        for (size_t j = first; j <= i; ++j) {
          double score = 0;
          for (size_t x = 0; x < dim; ++x)
            score += qkv[i * width + q_col + x] * qkv[j * width + k_col + x];
          prob.push_back(std::exp(score * static_cast<double>(a.scale)));
          sum += prob.back();
        }
        r.lse[h * static_cast<size_t>(p.tokens) + i] = std::log(sum);
        for (size_t j = first; j <= i; ++j) {
          prob[j - first] /= sum;
          for (size_t x = 0; x < dim; ++x)
            r.o[(i * nq + h) * dim + x] += prob[j - first] * qkv[j * width + v_col + x];
        }
        if (d_o.empty()) continue;
        const double* g = d_o.data() + (i * nq + h) * dim;
        double delta = 0;
        for (size_t x = 0; x < dim; ++x) delta += g[x] * r.o[(i * nq + h) * dim + x];
        for (size_t j = first; j <= i; ++j) {
          double dp = 0;
          for (size_t x = 0; x < dim; ++x) dp += g[x] * qkv[j * width + v_col + x];
          const double ds = prob[j - first] * (dp - delta) * static_cast<double>(a.scale);
          for (size_t x = 0; x < dim; ++x) {
            r.dqkv[j * width + v_col + x] += prob[j - first] * g[x];
            r.dqkv[j * width + k_col + x] += ds * qkv[i * width + q_col + x];
            r.dqkv[i * width + q_col + x] += ds * qkv[j * width + k_col + x];
          }
        }
      }
  }
  return r;
}

class Attention : public testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(Cases, Attention, testing::ValuesIn(kCases));

TEST_P(Attention, ForwardAndBackwardAgreeWithTheDefinition) {
  const Problem p(GetParam());
  const Floats qkv = normal("qkv", {p.tokens, p.width}, 1.5),
               d_o = normal("do", {p.tokens, p.q_heads * p.args.head_dim});
  Floats o({p.tokens, p.q_heads * p.args.head_dim}), lse({p.q_heads, p.tokens}),
      dqkv({p.tokens, p.width});
  const Ints cu = p.cu_tensor();
  attention_forward(qkv, cu, p.args, o, lse, none(), {});
  attention_backward(d_o, qkv, o, lse, cu, p.args, dqkv, none(), {});
  const Reference want = reference(p, qkv.doubles(), d_o.doubles());
  expect_close(o, want.o, "o");
  expect_close(lse, want.lse, "lse");
  expect_close(dqkv, want.dqkv, "dqkv", {.l2 = 4e-6, .element = 1e-5});
}

TEST(AttentionReference, AgreesWithCentralDifferences) {
  const Case c{"small", {0, 0, 1}, 2, 3, {4, 3}, 0};
  const Problem p(c);
  const Floats qkv = normal("qkv", {p.tokens, p.width}), r = normal("r", {p.tokens, p.q_heads * 3});
  Floats o({p.tokens, p.q_heads * 3}), lse({p.q_heads, p.tokens}), dqkv({p.tokens, p.width});
  const Ints cu = p.cu_tensor();
  attention_forward(qkv, cu, p.args, o, lse, none(), {});
  attention_backward(r, qkv, o, lse, cu, p.args, dqkv, none(), {});
  expect_close(
      dqkv,
      central_difference(qkv.doubles(),
                         [&](const auto& v) { return inner(reference(p, v, {}).o, r.doubles()); }),
      "dqkv", {.l2 = 1e-5, .element = 2e-5});
}

TEST(Attention, LargeScoresDoNotOverflow) {
  const Case c{"large", {0}, 1, 8, {200}, 0};
  const Problem p(c);
  const Floats qkv = normal("qkv", {p.tokens, p.width}, 40);  // scores of several thousand
  Floats o({p.tokens, 8}), lse({1, p.tokens});
  attention_forward(qkv, p.cu_tensor(), p.args, o, lse, none(), {});
  for (const float x : o) ASSERT_TRUE(std::isfinite(x));
  // Each output lies within the range of the values it averages.
  for (int64_t x = 0; x < 8; ++x) {
    float low = INFINITY, high = -INFINITY;
    for (int64_t t = 0; t < p.tokens; ++t) {
      low = std::min(low, qkv[t * p.width + 16 + x]);
      high = std::max(high, qkv[t * p.width + 16 + x]);
      ASSERT_GE(o[t * 8 + x], low - 1e-3F);
      ASSERT_LE(o[t * 8 + x], high + 1e-3F);
    }
  }
}

TEST(Attention, ATokenSeesNothingLaterAndNoOtherSegment) {
  const Case c{"cut", {0, 1}, 2, 8, {150, 140}, 0};
  const Problem p(c);
  Floats qkv = normal("qkv", {p.tokens, p.width});
  Floats before({p.tokens, 16}), after({p.tokens, 16}), lse({2, p.tokens});
  const Ints cu = p.cu_tensor();
  attention_forward(qkv, cu, p.args, before, lse, none(), {});
  const int64_t changed = 130;
  for (int64_t i = 0; i < p.width; ++i) qkv[changed * p.width + i] += 1.0F;
  attention_forward(qkv, cu, p.args, after, lse, none(), {});
  for (int64_t t = 0; t < p.tokens; ++t) {
    bool same = true;
    for (int64_t i = 0; i < 16; ++i) same = same && before[t * 16 + i] == after[t * 16 + i];
    EXPECT_EQ(same, t < changed || t >= 150) << "token " << t;
  }
}

TEST(Attention, NaNReachesTheOutput) {
  const Case c{"nan", {0}, 1, 8, {9}, 0};
  const Problem p(c);
  Floats qkv = normal("qkv", {p.tokens, p.width});
  qkv[4 * p.width + 9] = std::numeric_limits<float>::quiet_NaN();  // k of token 4
  Floats o({p.tokens, 8}), lse({1, p.tokens});
  attention_forward(qkv, p.cu_tensor(), p.args, o, lse, none(), {});
  EXPECT_TRUE(std::isnan(o[5 * 8])) << "a NaN must reach the loss";
  EXPECT_FALSE(std::isnan(o[3 * 8]));
}

TEST(AttentionThreads, ResultsDoNotDependOnTheirNumber) {
  const Case c{"threads", {0, 0, 1, 1, 1}, 2, 16, {260, 5, 131, 40}, 3};
  const Problem p(c);
  const Floats qkv = normal("qkv", {p.tokens, p.width}),
               d_o = normal("do", {p.tokens, p.q_heads * 16});
  const Ints cu = p.cu_tensor();
  expect_same_for_any_threads([&] {
    Floats o({p.tokens, p.q_heads * 16}), lse({p.q_heads, p.tokens}), dqkv({p.tokens, p.width});
    attention_forward(qkv, cu, p.args, o, lse, none(), {});
    attention_backward(d_o, qkv, o, lse, cu, p.args, dqkv, none(), {});
    return concat({&o, &lse, &dqkv});
  });
}

TEST(AttentionChecks, SegmentsMustFit) {
  const Case c{"checks", {0}, 1, 4, {5, 4}, 0};
  Problem p(c);
  const Floats qkv({9, 12});
  Floats o({9, 4}), lse({1, 9});
  const Ints cu = p.cu_tensor();
  p.args.max_segment = 4;
  EXPECT_THROW(attention_forward(qkv, cu, p.args, o, lse, none(), {}), InternalError)
      << "longer than max_segment";
  p.args.max_segment = 5;
  const std::vector<int32_t> beyond = {0, 5, 10};
  p.args.host_cu = beyond;
  EXPECT_THROW(attention_forward(qkv, cu, p.args, o, lse, none(), {}), InternalError)
      << "past the tokens";
  p.args.host_cu = p.cu;
  const std::vector<int32_t> wrong_head = {1};
  p.args.kv_of_q = wrong_head;
  EXPECT_THROW(attention_forward(qkv, cu, p.args, o, lse, none(), {}), InternalError)
      << "kv head that is not there";
}

}  // namespace
}  // namespace r1::kernels::test
