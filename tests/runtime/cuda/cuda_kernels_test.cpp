// Every CUDA operation against its CPU reference, over shapes and dtypes, with poisoned outputs and
// guarded memory.
#include <array>
#include <functional>
#include <numeric>

#include "runtime/kernels/exact_sum.h"
#include "runtime/kernels/sample.h"
#include "tests/runtime/cuda/support.h"

namespace r1::cuda::test {
namespace {

using kernels::AdamWArgs;
using kernels::AttentionArgs;
using kernels::DecodeAttentionArgs;
using kernels::RopeArgs;

constexpr DType kTypes[] = {DType::kF32, DType::kBF16};

class CudaKernels : public CudaTest {
 protected:
  /// Runs the operation on both sides.
  void both(const std::function<void(Side, const Stream&)>& op) {
    op(Side::kCpu, Stream{});
    op(Side::kGpu, stream_);
    backend_of(DeviceKind::kCuda).synchronize(stream_);
  }
  void gpu(const std::function<void(Side, const Stream&)>& op) {
    op(Side::kGpu, stream_);
    backend_of(DeviceKind::kCuda).synchronize(stream_);
  }
  static std::string text(DType t, std::initializer_list<int64_t> dims) {
    std::string s(dtype_name(t));
    for (int64_t d : dims) s += fmt::format(" {}", d);
    return s;
  }
};

// ---------------------------------------------------------------- linear

TEST_F(CudaKernels, LinearForwardAndBackward) {
  const std::array<std::array<int64_t, 3>, 9> shapes = {{{1, 8, 8},
                                                         {5, 16, 24},
                                                         {7, 13, 5},
                                                         {128, 64, 96},
                                                         {333, 160, 72},
                                                         {0, 8, 8},
                                                         {4, 0, 8},
                                                         {4, 8, 0},
                                                         {256, 1536, 2048}}};
  for (const DType t : kTypes)
    for (const auto& [tokens, in, out] : shapes)
      for (const DType grad : kTypes) {
        if (t == DType::kF32 && grad == DType::kBF16) continue;
        SCOPED_TRACE(text(t, {tokens, in, out}) + " gradient " + std::string(dtype_name(grad)));
        const auto x = Both::normal("x", {tokens, in}, t), w = Both::normal("w", {out, in}, t, 0.1),
                   b = Both::normal("b", {out}, t);
        const auto dy = Both::normal("dy", {tokens, out}, t);
        for (const bool with_bias : {false, true}) {
          const auto y = Both::output({tokens, out}, t);
          both([&](Side s, const Stream& stream) {
            kernels::linear_forward(x(s), w(s), with_bias ? b(s) : Tensor{}, y(s), stream);
          });
          expect_same(y, with_bias ? "y with bias" : "y");
        }
        const auto dx = Both::output({tokens, in}, t);
        both([&](Side s, const Stream& stream) {
          kernels::linear_backward_input(dy(s), w(s), dx(s), false, stream);
        });
        expect_same(dx, "dx");
        const auto dx2 = Both::normal("dx2", {tokens, in}, t);
        both([&](Side s, const Stream& stream) {
          kernels::linear_backward_input(dy(s), w(s), dx2(s), true, stream);
        });
        expect_same(dx2, "dx accumulated", two_roundings(t));
        const auto dw = Both::normal("dw", {out, in}, grad), db = Both::normal("db", {out}, grad),
                   written = Both::output({out, in}, grad);
        both([&](Side s, const Stream& stream) {
          kernels::linear_backward_weight(dy(s), x(s), dw(s), true, stream);
          kernels::linear_backward_weight(dy(s), x(s), written(s), false, stream);
          kernels::bias_backward(dy(s), db(s), stream);
        });
        expect_same(dw, "dw accumulated", two_roundings(grad));
        expect_same(written, "dw");
        expect_same(db, "db", grad == DType::kBF16 ? one_rounding(grad) : Tolerance{3e-6, 1e-5});
      }
}

TEST_F(CudaKernels, LinearWithUnalignedRowsAndViews) {
  // Rows [3, 3 + n) of a tensor whose rows are 10 bytes: the pointers are 2-byte aligned only.
  const auto x = Both::normal("x", {40, 5}, DType::kBF16),
             w = Both::normal("w", {7, 5}, DType::kBF16);
  const auto y = Both::output({32, 7}, DType::kBF16);
  both([&](Side s, const Stream& stream) {
    Tensor rows = x(s);
    rows.data = static_cast<char*>(rows.data) + 3 * 5 * dtype_bytes(rows.dtype);
    rows.shape = {32, 5};
    kernels::linear_forward(rows, w(s), {}, y(s), stream);
  });
  expect_same(y, "y");
}

TEST_F(CudaKernels, LinearRepeatsBitForBit) {
  const auto x = Both::normal("x", {2048, 512}, DType::kBF16),
             dy = Both::normal("dy", {2048, 256}, DType::kBF16);
  std::vector<uint8_t> first;
  for (int i = 0; i < 3; ++i) {
    const auto dw = Both::normal("dw", {256, 512}, DType::kF32);
    gpu([&](Side s, const Stream& stream) {
      kernels::linear_backward_weight(dy(s), x(s), dw(s), true, stream);
    });
    if (i == 0)
      first = dw.bytes();
    else
      EXPECT_EQ(first, dw.bytes());
  }
}

TEST_F(CudaKernels, BiasBackwardOfTallAndWideShapes) {
  for (const auto& [tokens, out] :
       {std::pair<int64_t, int64_t>{5000, 24}, {70, 4096}, {1, 1}, {4099, 1000}, {33, 7}})
    for (const DType t : kTypes) {
      SCOPED_TRACE(text(t, {tokens, out}));
      const auto dy = Both::normal("dy", {tokens, out}, t),
                 db = Both::normal("db", {out}, DType::kF32);
      both([&](Side s, const Stream& stream) { kernels::bias_backward(dy(s), db(s), stream); });
      expect_same(db, "db", {3e-6, 1e-5});
    }
}

// ---------------------------------------------------------------- embedding

TEST_F(CudaKernels, Embedding) {
  struct Case {
    int64_t tokens, vocab, hidden, begin;
    const char* ids;
  };
  const Case cases[] = {
      {1, 3, 8, 0, "random"},       {300, 50, 64, 100, "random"}, {1000, 40, 24, 0, "one"},
      {4096, 7, 128, 2, "few"},     {777, 1000, 13, 5, "random"}, {64, 1, 8, 0, "one"},
      {128, 16, 8, 500, "outside"}, {0, 4, 8, 0, "one"},          {2500, 300, 2056, 0, "few"}};
  for (const DType t : kTypes)
    for (const DType grad : kTypes)
      for (const Case& c : cases) {
        if (t == DType::kF32 && grad == DType::kBF16) continue;
        SCOPED_TRACE(text(t, {c.tokens, c.vocab, c.hidden, c.begin}) + " " + c.ids);
        std::vector<int32_t> values(static_cast<size_t>(c.tokens));
        const Rng rng(3, "ids");
        for (size_t i = 0; i < values.size(); ++i) {
          const auto n = static_cast<uint64_t>(c.vocab);
          const std::string kind = c.ids;
          const int64_t id = kind == "one"   ? 0
                             : kind == "few" ? static_cast<int64_t>(rng.below(i, 3))
                                             : static_cast<int64_t>(rng.below(i, n + n / 4 + 1));
          values[i] = static_cast<int32_t>(kind == "outside" ? 0 : c.begin + id);
        }
        const auto ids = Both::ints({c.tokens}, values);
        const auto w = Both::normal("w", {c.vocab, c.hidden}, t),
                   y = Both::output({c.tokens, c.hidden}, t);
        both([&](Side s, const Stream& stream) {
          kernels::embedding_forward(ids(s), w(s), c.begin, y(s), stream);
        });
        expect_same(y, "y", {0, 0});
        const auto dy = Both::normal("dy", {c.tokens, c.hidden}, t);
        const auto dw = Both::normal("dw", {c.vocab, c.hidden}, grad),
                   again = Both::normal("dw", {c.vocab, c.hidden}, grad);
        both([&](Side s, const Stream& stream) {
          kernels::embedding_backward(ids(s), dy(s), c.begin, dw(s), stream);
        });
        expect_same(dw, "dw", grad == DType::kBF16 ? one_rounding(grad) : Tolerance{5e-6, 2e-5});
        gpu([&](Side s, const Stream& stream) {
          kernels::embedding_backward(ids(s), dy(s), c.begin, again(s), stream);
        });
        EXPECT_EQ(dw.bytes(), again.bytes()) << "two runs differ";
      }
}

// ---------------------------------------------------------------- RMSNorm

TEST_F(CudaKernels, RmsNorm) {
  for (const DType t : kTypes)
    for (const auto& [rows, h] : {std::pair<int64_t, int64_t>{1, 8},
                                  {3, 64},
                                  {5, 13},
                                  {700, 1536},
                                  {129, 3584},
                                  {33, 4096},
                                  {17, 5120},
                                  {9, 8192},
                                  {4, 1001},
                                  {2, 12288},
                                  {0, 64},
                                  {3000, 128}}) {
      SCOPED_TRACE(text(t, {rows, h}));
      const auto x = Both::normal("x", {rows, h}, t), delta = Both::normal("delta", {rows, h}, t),
                 w = Both::normal("w", {h}, t);
      const auto y = Both::output({rows, h}, t), rstd = Both::output({rows}, DType::kF32);
      both([&](Side s, const Stream& stream) {
        kernels::rmsnorm_forward(x(s), w(s), 1e-6F, y(s), rstd(s), stream);
      });
      expect_same(y, "y");
      expect_same(rstd, "rstd");

      const auto sum = Both::output({rows, h}, t), y2 = Both::output({rows, h}, t),
                 rstd2 = Both::output({rows}, DType::kF32);
      both([&](Side s, const Stream& stream) {
        kernels::add_rmsnorm_forward(x(s), delta(s), w(s), 1e-6F, sum(s), y2(s), rstd2(s), stream);
      });
      expect_same(sum, "sum");
      // The GPU's sum is rounded to bf16 before the norm, the CPU's is not.
      expect_same(y2, "y of the sum", t == DType::kBF16 ? Tolerance{3e-3, 1e-2} : one_rounding(t));
      expect_same(rstd2, "rstd of the sum",
                  t == DType::kBF16 ? Tolerance{1e-3, 2e-3} : one_rounding(t));

      const auto in_place = Both::normal("x", {rows, h}, t);
      gpu([&](Side s, const Stream& stream) {
        kernels::add_rmsnorm_forward(in_place(s), delta(s), w(s), 1e-6F, in_place(s), y2(s),
                                     rstd2(s), stream);
      });
      EXPECT_EQ(in_place.bytes(), sum.bytes()) << "sum in place of x";

      for (const DType grad : kTypes) {
        if (t == DType::kF32 && grad == DType::kBF16) continue;
        for (const bool with_residual : {false, true}) {
          const auto dy = Both::normal("dy", {rows, h}, t),
                     residual = Both::normal("residual", {rows, h}, t);
          const auto dx = Both::output({rows, h}, t), dw = Both::normal("dw", {h}, grad);
          both([&](Side s, const Stream& stream) {
            kernels::rmsnorm_backward(dy(s), x(s), w(s), rstd(s),
                                      with_residual ? residual(s) : Tensor{}, dx(s), dw(s), stream);
          });
          expect_same(dx, "dx", t == DType::kBF16 ? one_rounding(t) : Tolerance{5e-6, 2e-5});
          expect_same(dw, "dw", grad == DType::kBF16 ? one_rounding(grad) : Tolerance{5e-6, 2e-5});
          if (!with_residual) continue;
          const auto aliased = Both::normal("residual", {rows, h}, t),
                     dw2 = Both::normal("dw", {h}, grad);
          gpu([&](Side s, const Stream& stream) {
            kernels::rmsnorm_backward(dy(s), x(s), w(s), rstd(s), aliased(s), aliased(s), dw2(s),
                                      stream);
          });
          EXPECT_EQ(aliased.bytes(), dx.bytes()) << "dx in place of the residual";
          EXPECT_EQ(dw2.bytes(), dw.bytes()) << "two runs differ";
        }
      }
    }
}

// ---------------------------------------------------------------- RoPE, q/k norm

Both positions_of(int64_t tokens, int64_t limit) {
  std::vector<int32_t> p(static_cast<size_t>(tokens));
  for (size_t i = 0; i < p.size(); ++i)
    p[i] = static_cast<int32_t>((i * 7) % static_cast<size_t>(limit));
  return Both::ints({tokens}, p);
}

TEST_F(CudaKernels, RopeAndItsInverse) {
  for (const DType t : kTypes)
    for (const auto& [tokens, nq, nkv, d] : {std::array<int64_t, 4>{1, 1, 1, 2},
                                             {37, 8, 2, 8},
                                             {65, 12, 2, 128},
                                             {100, 7, 1, 64},
                                             {9, 3, 3, 20},
                                             {5, 0, 1, 16},
                                             {0, 2, 2, 16},
                                             {300, 28, 4, 128}}) {
      SCOPED_TRACE(text(t, {tokens, nq, nkv, d}));
      const int64_t width = (nq + 2 * nkv) * d, limit = 64;
      std::vector<float> table(static_cast<size_t>(limit * d));
      for (int64_t p = 0; p < limit; ++p)
        for (int64_t i = 0; i < d / 2; ++i) {
          const double angle =
              static_cast<double>(p) *
              std::pow(10000.0, -2.0 * static_cast<double>(i) / static_cast<double>(d));
          table[static_cast<size_t>(p * d + i)] = static_cast<float>(std::cos(angle));
          table[static_cast<size_t>(p * d + d / 2 + i)] = static_cast<float>(std::sin(angle));
        }
      const Both cos_sin({limit, d}, DType::kF32, table);
      const auto positions = positions_of(tokens, limit);
      for (const bool inverse : {false, true}) {
        const auto qkv = Both::normal("qkv", {tokens, width}, t);
        both([&](Side s, const Stream& stream) {
          kernels::rope(qkv(s), positions(s), cos_sin(s),
                        {.q_heads = nq, .kv_heads = nkv, .head_dim = d, .inverse = inverse},
                        stream);
        });
        expect_same(qkv, inverse ? "inverse" : "forward");
      }
    }
}

TEST_F(CudaKernels, QkNorm) {
  for (const DType t : kTypes)
    for (const auto& [tokens, nq, nkv, d] : {std::array<int64_t, 4>{1, 1, 1, 2},
                                             {37, 8, 2, 8},
                                             {65, 12, 2, 128},
                                             {50, 3, 1, 13},
                                             {9, 2, 2, 256},
                                             {5, 0, 1, 16},
                                             {0, 2, 2, 16},
                                             {700, 32, 8, 128}}) {
      SCOPED_TRACE(text(t, {tokens, nq, nkv, d}));
      const RopeArgs args{.q_heads = nq, .kv_heads = nkv, .head_dim = d, .inverse = false};
      const int64_t width = (nq + 2 * nkv) * d;
      const auto raw = Both::normal("raw", {tokens, width}, t), qw = Both::normal("qw", {d}, t),
                 kw = Both::normal("kw", {d}, t);
      const auto out = Both::output({tokens, width}, t),
                 rstd = Both::output({tokens, nq + nkv}, DType::kF32);
      both([&](Side s, const Stream& stream) {
        kernels::qk_norm_forward(raw(s), qw(s), kw(s), 1e-6F, args, out(s), rstd(s), stream);
      });
      expect_same(out, "out");
      expect_same(rstd, "rstd");
      for (const DType grad : kTypes) {
        if (t == DType::kF32 && grad == DType::kBF16) continue;
        const auto dg = Both::normal("d", {tokens, width}, t), dqw = Both::normal("dqw", {d}, grad),
                   dkw = Both::normal("dkw", {d}, grad);
        both([&](Side s, const Stream& stream) {
          kernels::qk_norm_backward(dg(s), raw(s), qw(s), kw(s), rstd(s), args, dqw(s), dkw(s),
                                    stream);
        });
        const Tolerance tol = t == DType::kBF16 ? one_rounding(t) : Tolerance{5e-6, 2e-5};
        expect_same(dg, "d", tol);
        expect_same(dqw, "dq_weight",
                    grad == DType::kBF16 ? one_rounding(grad) : Tolerance{5e-6, 2e-5});
        expect_same(dkw, "dk_weight",
                    grad == DType::kBF16 ? one_rounding(grad) : Tolerance{5e-6, 2e-5});
      }
    }
}

// ---------------------------------------------------------------- attention

struct AttentionCase {
  const char* name;
  int64_t nkv, d;
  std::vector<int32_t> kv_of_q;
  std::vector<int32_t> lengths;  // segments
  int64_t padding = 0;           // tokens past the last segment
};

std::vector<int32_t> even_groups(int nq, int nkv) {
  std::vector<int32_t> kv(static_cast<size_t>(nq));
  for (int i = 0; i < nq; ++i) kv[static_cast<size_t>(i)] = i / (nq / nkv);
  return kv;
}

std::vector<AttentionCase> attention_cases() {
  return {
      {"one token", 1, 64, {0}, {1}},
      {"short row", 2, 64, even_groups(4, 2), {7}},
      {"one row", 2, 128, even_groups(4, 2), {200}},
      {"equal rows", 2, 128, even_groups(12, 2), {256, 256, 256}},
      {"equal odd rows", 1, 64, even_groups(3, 1), {77, 77}},
      {"packed", 2, 128, even_groups(4, 2), {5, 100, 23, 128, 1, 1, 64}},
      {"packed with padding", 2, 64, even_groups(6, 2), {130, 3, 40}, 27},
      {"packed long", 1, 128, even_groups(2, 1), {700, 300, 24}},
      {"small heads", 2, 8, even_groups(8, 2), {30, 34}},
      {"heads of 16", 2, 16, even_groups(8, 2), {64, 64}},
      {"heads of 80", 2, 80, even_groups(4, 2), {100, 60}},
      {"heads of 256", 1, 256, even_groups(2, 1), {70, 70}},
      {"odd head dim", 1, 13, even_groups(2, 1), {40}},
      {"uneven groups", 2, 64, {0, 0, 1}, {128, 128}},
      {"uneven groups packed", 3, 128, {0, 1, 1, 1, 2}, {50, 100, 17}},
      {"unread kv heads", 4, 64, {1, 1, 3}, {64, 32}},
      {"no q heads", 2, 64, {}, {16}},
      {"empty segments", 1, 64, even_groups(2, 1), {0, 20, 0, 30, 0}},
  };
}

TEST_F(CudaKernels, AttentionForwardAndBackward) {
  for (const bool deterministic : {false, true}) {
    api_->set_deterministic(deterministic);
    for (const DType t : kTypes)
      for (const AttentionCase& c : attention_cases()) {
        SCOPED_TRACE(std::string(c.name) + " " + std::string(dtype_name(t)) +
                     (deterministic ? " deterministic" : ""));
        std::vector<int32_t> cu{0};
        for (int32_t n : c.lengths) cu.push_back(cu.back() + n);
        const int64_t tokens = cu.back() + c.padding, nq = static_cast<int64_t>(c.kv_of_q.size());
        const AttentionArgs args{
            .q_heads = nq,
            .kv_heads = c.nkv,
            .head_dim = c.d,
            .kv_of_q = c.kv_of_q,
            .scale = 1.0F / std::sqrt(static_cast<float>(c.d)),
            .max_segment = *std::max_element(c.lengths.begin(), c.lengths.end()),
            .host_cu = cu};
        const int64_t width = (nq + 2 * c.nkv) * c.d;
        const auto qkv = Both::normal("qkv", {tokens, width}, t),
                   o = Both::output({tokens, nq * c.d}, t),
                   lse = Both::output({nq, tokens}, DType::kF32);
        const auto seqlens = Both::ints({static_cast<int64_t>(cu.size())}, cu);
        const auto bytes = static_cast<int64_t>(
            kernels::attention_workspace_bytes(DeviceKind::kCuda, tokens, nq, c.nkv, c.d));
        const Buffer memory(gpu_device(), static_cast<size_t>(bytes));
        const Tensor workspace{
            .data = memory.data(), .dtype = DType::kU8, .shape = {bytes}, .device = gpu_device()};
        both([&](Side s, const Stream& stream) {
          kernels::attention_forward(qkv(s), seqlens(s), args, o(s), lse(s),
                                     s == Side::kGpu ? workspace : Tensor{}, stream);
        });
        expect_same(o, "o", inner_rounding(t));
        if (t == DType::kF32) expect_same(lse, "lse", inner_rounding(t));
        const auto d_o = Both::normal("do", {tokens, nq * c.d}, t),
                   dqkv = Both::output({tokens, width}, t);
        const auto backward = [&](const Both& to) {
          return [&](Side s, const Stream& stream) {
            kernels::attention_backward(d_o(s), qkv(s), o(s), lse(s), seqlens(s), args, to(s),
                                        s == Side::kGpu ? workspace : Tensor{}, stream);
          };
        };
        both(backward(dqkv));
        expect_same(dqkv, "dqkv", inner_rounding(t));
        if (!deterministic) continue;
        const auto again = Both::output({tokens, width}, t);
        gpu(backward(again));
        EXPECT_EQ(dqkv.bytes(), again.bytes()) << "two runs differ";
      }
  }
  api_->set_deterministic(false);
  for (const auto& [shape, bytes] : api_->attention_plans())
    std::printf("  attention %s: %lld bytes\n", shape.c_str(), static_cast<long long>(bytes));
}

TEST_F(CudaKernels, DecodeAttentionOverAPagedCache) {
  struct Case {
    int64_t sequences, nkv, d, block;
    std::vector<int32_t> kv_of_q, lens;
  };
  const Case cases[] = {{1, 1, 64, 16, {0}, {1}},
                        {3, 2, 128, 16, even_groups(12, 2), {1, 300, 77}},
                        {4, 2, 64, 32, {0, 0, 1}, {0, 256, 257, 700}},
                        {2, 1, 80, 8, even_groups(20, 1), {513, 64}},
                        {2, 3, 16, 16, {1, 1}, {40, 33}}};
  for (const DType t : kTypes)
    for (const Case& c : cases) {
      SCOPED_TRACE(text(t, {c.sequences, static_cast<int64_t>(c.kv_of_q.size()), c.nkv, c.d}));
      const int64_t nq = static_cast<int64_t>(c.kv_of_q.size()),
                    longest = *std::max_element(c.lens.begin(), c.lens.end());
      const int64_t per = (longest + c.block - 1) / c.block + 1, blocks = per * c.sequences;
      std::vector<int32_t> table(static_cast<size_t>(per * c.sequences));
      for (size_t i = 0; i < table.size(); ++i)
        table[i] =
            static_cast<int32_t>((i * 7 + 3) % table.size());  // a permutation: 7 does not divide
      if (std::gcd(table.size(), size_t{7}) != 1) std::iota(table.rbegin(), table.rend(), 0);
      const auto k = Both::normal("k", {blocks, c.block, c.nkv, c.d}, t),
                 v = Both::normal("v", {blocks, c.block, c.nkv, c.d}, t);
      const auto q = Both::normal("q", {c.sequences, (nq + 2 * c.nkv) * c.d}, t),
                 o = Both::output({c.sequences, nq * c.d}, t);
      const auto tables = Both::ints({c.sequences, per}, table),
                 lens = Both::ints({c.sequences}, c.lens);
      const DecodeAttentionArgs args{.q_heads = nq,
                                     .kv_heads = c.nkv,
                                     .head_dim = c.d,
                                     .kv_of_q = c.kv_of_q,
                                     .scale = 1.0F / std::sqrt(static_cast<float>(c.d)),
                                     .max_context = longest};
      const auto bytes = static_cast<int64_t>(kernels::decode_attention_workspace_bytes(
          DeviceKind::kCuda, c.sequences, nq, c.d, longest));
      const Buffer memory(gpu_device(), static_cast<size_t>(bytes));
      const Tensor workspace{
          .data = memory.data(), .dtype = DType::kU8, .shape = {bytes}, .device = gpu_device()};
      both([&](Side s, const Stream& stream) {
        kernels::decode_attention(q(s), k(s), v(s), tables(s), lens(s), args, o(s),
                                  s == Side::kGpu ? workspace : Tensor{}, stream);
      });
      expect_same(o, "o", t == DType::kBF16 ? one_rounding(t) : Tolerance{5e-6, 3e-5});

      std::vector<int64_t> slots(static_cast<size_t>(c.sequences));
      for (size_t i = 0; i < slots.size(); ++i)
        slots[i] = i == 1 ? -1 : static_cast<int64_t>(i) * 5 + 2;
      const auto at = Both::longs({c.sequences}, slots);
      both([&](Side s, const Stream& stream) {
        kernels::kv_cache_append(q(s), at(s), args, k(s), v(s), stream);
      });
      expect_same(k, "k cache", {0, 0});
      expect_same(v, "v cache", {0, 0});
    }
}

// ---------------------------------------------------------------- SwiGLU

TEST_F(CudaKernels, SwiGlu) {
  for (const DType t : kTypes)
    for (const auto& [tokens, f] : {std::pair<int64_t, int64_t>{1, 8},
                                    {5, 13},
                                    {300, 160},
                                    {17, 8960},
                                    {3, 18944},
                                    {0, 8},
                                    {4, 0}}) {
      SCOPED_TRACE(text(t, {tokens, f}));
      const auto gate_up = Both::normal("gate_up", {tokens, 2 * f}, t, 3.0),
                 h = Both::output({tokens, f}, t);
      both(
          [&](Side s, const Stream& stream) { kernels::swiglu_forward(gate_up(s), h(s), stream); });
      expect_same(h, "h");
      const auto dh = Both::normal("dh", {tokens, f}, t), d = Both::output({tokens, 2 * f}, t),
                 in_place = Both::normal("gate_up", {tokens, 2 * f}, t, 3.0);
      both([&](Side s, const Stream& stream) {
        kernels::swiglu_backward(dh(s), gate_up(s), d(s), stream);
      });
      expect_same(d, "d");
      gpu([&](Side s, const Stream& stream) {
        kernels::swiglu_backward(dh(s), in_place(s), in_place(s), stream);
      });
      EXPECT_EQ(in_place.bytes(), d.bytes()) << "in place";
    }
}

TEST_F(CudaKernels, SwiGluOfExtremeGates) {
  const Both gate_up({1, 16}, DType::kF32,
                     {-200, -90, -50, 0, 50, 90, 200, -0.0F, 1, 1, 1, 1, 1, 1, 1, 1});
  const auto h = Both::output({1, 8}, DType::kF32);
  both([&](Side s, const Stream& stream) { kernels::swiglu_forward(gate_up(s), h(s), stream); });
  expect_same(h, "h");
}

// ---------------------------------------------------------------- argmax

TEST_F(CudaKernels, Argmax) {
  for (const DType t : kTypes)
    for (const auto& [rows, vocab] :
         {std::array<int64_t, 2>{1, 1}, {3, 31}, {5, 513}, {2, 4099}, {1, 151936}, {3, 0}, {0, 9}}) {
      SCOPED_TRACE(text(t, {rows, vocab}));
      const Rng rng(7, "ties");
      std::vector<float> values(static_cast<size_t>(rows * vocab));
      for (size_t i = 0; i < values.size(); ++i)
        values[i] = static_cast<float>(rng.below(i, 200)) - 150.0F;  // many equal ones
      const Both logits({rows, vocab}, t, values), best = Both::output({2, rows}, DType::kF32);
      both([&](Side s, const Stream& stream) {
        kernels::argmax(logits(s), 4096, best(s), stream);
      });
      expect_same(best, "best", {0, 0});
    }
  const Both logits({1, 3}, DType::kF32, {1, std::nanf(""), 9}), best = Both::output({2, 1}, DType::kF32);
  gpu([&](Side s, const Stream& stream) { kernels::argmax(logits(s), 0, best(s), stream); });
  EXPECT_TRUE(std::isnan(best.gpu()[0]));
}

// ---------------------------------------------------------------- sample

/// Logits of one kind each, for rows that draw from them in many ways.
std::vector<float> logits_to_sample(int kind, int64_t rows, int64_t vocab) {
  const Rng rng(11, "logits to sample " + std::to_string(kind));
  std::vector<float> v(static_cast<size_t>(rows * vocab));
  for (size_t i = 0; i < v.size(); ++i) {
    const double normal = rng.normal(i);
    switch (kind) {
      case 0:  // like a language model's
        v[i] = static_cast<float>(3 * normal + (rng.below(i, 2000) == 0 ? 15 : 0));
        break;
      case 1:  // flat: more candidates than fit shared memory, where the vocabulary is large
        v[i] = static_cast<float>(0.3 * normal);
        break;
      case 2:  // many ties and -infinity
        v[i] = i % 3 == 1 ? -std::numeric_limits<float>::infinity() : std::round(static_cast<float>(2 * normal));
        break;
      default:  // all equal, zeros of both signs
        v[i] = i % 2 == 0 ? -0.0F : 0.0F;
    }
  }
  return v;
}

TEST_F(CudaKernels, Sample) {
  using kernels::SampleRow;
  const float nan = std::nanf(""), inf = std::numeric_limits<float>::infinity();
  int64_t draws = 0, close = 0, none = 0;
  for (const DType t : kTypes)
    for (const auto& [c, vocab] : {std::array<int64_t, 2>{1, 1}, {40, 7}, {9, 1000}, {16, 32000}, {5, 151936}})
      for (int kind = 0; kind < 4; ++kind)
        for (const bool in_parts : {false, true}) {
          SCOPED_TRACE(text(t, {c, vocab}) + fmt::format(" kind {}{}", kind, in_parts ? " in parts" : ""));
          const Rng rng(12, fmt::format("rows {} {} {}", vocab, kind, in_parts));
          uint64_t next = 0;
          const auto below = [&](int64_t n) { return static_cast<int64_t>(rng.below(next++, static_cast<uint64_t>(n))); };
          const auto uniform = [&] { return rng.uniform(next++); };
          std::vector<int64_t> parts{0, vocab};
          if (in_parts) parts = {0, vocab / 3, vocab / 3, vocab - vocab / 4, vocab};
          const int64_t width = parts[1];  // of the first part, where row r of it begins at r * width
          std::vector<float> values = logits_to_sample(kind, c, vocab);
          if (c > 4 && width > 0) {
            values[static_cast<size_t>(1 * width)] = nan;
            values[static_cast<size_t>(2 * width)] = inf;
            if (!in_parts) std::fill_n(values.begin() + 3 * vocab, vocab, -inf);
          }
          const Both logits({c * vocab}, t, values);
          const int64_t words = kernels::seen_words(vocab);
          std::vector<int32_t> bits(static_cast<size_t>(3 * words));
          for (int32_t& w : bits) w = static_cast<int32_t>(rng.bits(next++));
          const Both seen = Both::ints({3, words}, bits);
          std::vector<SampleRow> rows;
          for (int64_t i = 0; i < (vocab > 1000 ? 40 : 200); ++i) {
            constexpr double kTemperatures[] = {0, 1e-300, 1e-5, 100, 1e300};
            SampleRow r{.row = i % c,
                        .temperature = below(4) == 0 ? kTemperatures[below(5)] : 0.1 + 1.5 * uniform(),
                        .seed = rng.bits(next++),
                        .request = rng.bits(next++),
                        .position = below(1 << 20)};
            if (below(2) == 0) r.top_k = 1 + (below(2) == 0 ? below(50) : below(2 * vocab));
            if (below(2) == 0) r.top_p = below(5) == 0 ? 1e-9 : uniform();
            if (below(3) == 0) r.min_p = 0.3 * uniform();
            if (below(3) == 0) r.repetition_penalty = 0.5 + 2 * uniform(), r.seen = below(3);
            rows.push_back(r);
          }
          const auto n = static_cast<int64_t>(rows.size());
          const auto draw = [&](std::span<const SampleRow> some, Side side, const Stream& stream, const Both& tokens) {
            kernels::sample(logits(side), parts, some, seen(side), tokens(side), stream);
          };
          const auto poisoned = [](int64_t count) {
            return Both::ints({count}, std::vector<int32_t>(static_cast<size_t>(count), -77));
          };
          const Both tokens = poisoned(n), again = poisoned(n);
          both([&](Side s, const Stream& stream) { draw(rows, s, stream, tokens); });
          gpu([&](Side s, const Stream& stream) { draw(rows, s, stream, again); });
          EXPECT_EQ(tokens.bytes(), again.bytes()) << "another run";
          std::vector<int32_t> got(rows.size());
          std::memcpy(got.data(), tokens.bytes().data(), 4 * got.size());
          for (int64_t i = 0; i < n; i += 13) {
            const Both alone = poisoned(1);
            gpu([&](Side s, const Stream& stream) { draw({&rows[static_cast<size_t>(i)], 1}, s, stream, alone); });
            int32_t token;
            std::memcpy(&token, alone.bytes().data(), 4);
            EXPECT_EQ(token, got[static_cast<size_t>(i)]) << "row " << i << " alone";
          }
          for (size_t i = 0; i < rows.size(); ++i) {
            const SampleRow& r = rows[i];
            const int32_t want = tokens(Side::kCpu).ptr<int32_t>()[i];
            ++draws;
            none += want < 0 ? 1 : 0;
            if (got[i] == want) continue;
            const std::string what =
                fmt::format("row {} temperature {} top_k {} top_p {} min_p {} penalty {}: {}, expected {}", i, r.temperature,
                            r.top_k, r.top_p, r.min_p, r.repetition_penalty, got[i], want);
            ASSERT_TRUE(got[i] >= 0 && want >= 0 && r.temperature > 0) << what;
            const auto score = [&](int32_t id) {
              const auto p = static_cast<size_t>(std::upper_bound(parts.begin(), parts.end(), id) - parts.begin() - 1);
              float l = logits.cpu()[static_cast<size_t>(c * parts[p] + r.row * (parts[p + 1] - parts[p]) + id - parts[p])];
              const int64_t word = std::max<int64_t>(r.seen, 0) * words + id / 32;
              if (r.seen >= 0 && (static_cast<uint32_t>(bits[static_cast<size_t>(word)]) >> (id % 32) & 1) != 0)
                l = kernels::penalised(l, r.repetition_penalty);
              const uint32_t noise = kernels::draw_word(kernels::draw_key(r.seed), r.request, r.position, id);
              return static_cast<double>(l) / r.temperature - std::log(-std::log(kernels::draw_uniform(noise)));
            };
            EXPECT_NEAR(score(got[i]), score(want), 1e-9) << what;
            ++close;
          }
        }
  EXPECT_GT(none, 20);
  EXPECT_LE(close, draws / 1000) << "of " << draws << " draws, where two scores were within 1e-9";
}

TEST_F(CudaKernels, SampleIsCapturedWithItsRows) {
  const int64_t vocab = 5000;
  const auto logits = Both::normal("logits", {2 * vocab}, DType::kBF16, 2.0);
  const std::vector<int64_t> parts{0, vocab};
  std::vector<kernels::SampleRow> rows{{.row = 1, .temperature = 1, .top_p = 0.9, .seed = 3},
                                       {.row = 0, .temperature = 1, .top_k = 20, .seed = 3}};
  const auto tokens = Both::ints({2}, {-7, -7}), none = Both::ints({0}, {});
  kernels::sample(logits(Side::kCpu), parts, rows, {}, tokens(Side::kCpu), {});
  DeviceBackend& backend = backend_of(DeviceKind::kCuda);
  const int64_t allocations = api_->allocation_count();
  backend.begin_capture(stream_);
  kernels::sample(logits(Side::kGpu), parts, {}, {}, none(Side::kGpu), stream_);
  kernels::sample(logits(Side::kGpu), parts, rows, {}, tokens(Side::kGpu), stream_);
  const Graph graph = backend.end_capture(stream_);
  rows.assign(2, {});  // they were read when the call returned
  backend.launch(graph, stream_);
  backend.synchronize(stream_);
  EXPECT_EQ(api_->allocation_count(), allocations);
  backend.destroy_graph(graph);
  int32_t got[2];
  std::memcpy(got, tokens.bytes().data(), sizeof got);
  for (size_t i = 0; i < 2; ++i) EXPECT_EQ(got[i], tokens(Side::kCpu).ptr<int32_t>()[i]);
}

// ---------------------------------------------------------------- cross-entropy

TEST_F(CudaKernels, CrossEntropyOverParts) {
  for (const DType t : kTypes)
    for (const auto& [rows, vocab, parts] : {std::array<int64_t, 3>{1, 1, 1},
                                             {5, 7, 1},
                                             {33, 1001, 1},
                                             {16, 1000, 3},
                                             {9, 4099, 4},
                                             {3, 151936, 1},
                                             {6, 5, 8},
                                             {0, 10, 1}}) {
      SCOPED_TRACE(text(t, {rows, vocab, parts}));
      const Rng rng(5, "targets");
      std::vector<int32_t> ids(static_cast<size_t>(rows));
      for (size_t i = 0; i < ids.size(); ++i)
        ids[i] =
            i % 5 == 3 ? -100 : static_cast<int32_t>(rng.below(i, static_cast<uint64_t>(vocab)));
      const auto targets = Both::ints({rows}, ids);
      // Uneven parts, the last of 8 parts of 5 empty.
      std::vector<Both> logits;
      const Both all = Both::output({parts, 3, rows}, DType::kF32);
      int64_t begin = 0;
      std::vector<int64_t> begins;
      for (int64_t p = 0; p < parts; ++p) {
        const int64_t end = vocab * (p + 1) / parts;
        logits.push_back(Both::normal(fmt::format("logits{}", p), {rows, end - begin}, t, 6.0));
        begins.push_back(begin);
        both([&](Side s, const Stream& stream) {
          Tensor stats = all(s);
          if (stats.data != nullptr) stats.data = static_cast<float*>(stats.data) + p * 3 * rows;
          stats.shape = {3, rows};
          kernels::cross_entropy_stats(logits.back()(s), targets(s), begin, stats, stream);
        });
        begin = end;
      }
      expect_same(all, "stats", {2e-5, 2e-5});
      const auto lse = Both::output({rows}, DType::kF32), loss = Both::output({rows}, DType::kF32);
      both([&](Side s, const Stream& stream) {
        kernels::cross_entropy_combine(all(s), targets(s), lse(s), loss(s), stream);
      });
      expect_same(lse, "lse", {3e-6, 1e-5});
      expect_same(loss, "loss", {3e-6, 1e-5, 1e-6});  // lse and logit of some 10 cancel
      for (int64_t p = 0; p < parts; ++p) {
        const Both& l = logits[static_cast<size_t>(p)];
        both([&](Side s, const Stream& stream) {
          kernels::cross_entropy_backward(l(s), targets(s), begins[static_cast<size_t>(p)], lse(s),
                                          0.125F, stream);
        });
        expect_same(l, fmt::format("gradient of part {}", p),
                    t == DType::kBF16 ? one_rounding(t) : Tolerance{2e-5, 2e-5});
      }
    }
}

TEST_F(CudaKernels, CrossEntropyOfLargeLogits) {
  // A confident row: p of the target is 1 - 3e-7; rows around +-3e4 would overflow without the
  // maximum.
  const Both logits({3, 4}, DType::kF32,
                    {15, 0, -3, 0, 30000, 29990, 29000, -30000, -30000, -30001, -30002, -30003});
  const auto targets = Both::ints({3}, {0, 1, 3});
  const auto stats = Both::output({1, 3, 3}, DType::kF32), lse = Both::output({3}, DType::kF32),
             loss = Both::output({3}, DType::kF32);
  both([&](Side s, const Stream& stream) {
    Tensor own = stats(s);
    own.shape = {3, 3};
    kernels::cross_entropy_stats(logits(s), targets(s), 0, own, stream);
    kernels::cross_entropy_combine(stats(s), targets(s), lse(s), loss(s), stream);
    kernels::cross_entropy_backward(logits(s), targets(s), 0, lse(s), 1.0F, stream);
  });
  // fp32 keeps lse of 3e4 to 2e-3; what is left of it in the loss and in the probabilities has that error.
  expect_same(loss, "loss", {1e-5, 1e-5, 2e-3});
  expect_same(logits, "gradient", {1e-4, 1e-4, 2e-3});
}

// ---------------------------------------------------------------- optimizer and helpers

TEST_F(CudaKernels, AdamW) {
  for (const DType p_type : kTypes)
    for (const bool with_master : {false, true})
      for (const DType g_type : kTypes)
        for (const DType m_type : kTypes)
          for (const int64_t n : {int64_t{1}, int64_t{4}, int64_t{1003}, int64_t{65536}}) {
            if (p_type == DType::kF32 && with_master) continue;
            SCOPED_TRACE(text(p_type, {n}) + (with_master ? " master" : "") + " g " +
                         std::string(dtype_name(g_type)) + " m " + std::string(dtype_name(m_type)));
            const auto g = Both::normal("g", {n}, g_type, 0.1);
            const auto master = Both::normal("master", {with_master ? n : 0}, DType::kF32);
            const auto grad_scale = Both({1}, DType::kF32, {0.5F});
            const AdamWArgs args{.lr = 1e-2,
                                 .beta1 = 0.9,
                                 .beta2 = 0.999,
                                 .eps = 1e-8,
                                 .weight_decay = 0.1,
                                 .step = 3,
                                 .seed = 77};
            // The CPU states are given in the GPU's dtype, so that both round in the same way.
            struct State {
              std::vector<uint8_t> cpu;
              DType type;
              int64_t n;
              [[nodiscard]] Tensor tensor() const {
                return {.data = const_cast<uint8_t*>(cpu.data()),
                        .dtype = type,
                        .shape = {n},
                        .device = {}};
              }
            };
            const auto state = [&](const Both& b) { return State{b.bytes(), b.type(), n}; };
            const auto p = Both::normal("master", {n}, p_type),
                       m = Both::normal("m", {n}, m_type, 0.1);
            std::vector<float> squares(static_cast<size_t>(n));
            for (size_t i = 0; i < squares.size(); ++i)
              squares[i] = 0.01F * static_cast<float>(1 + i % 17);
            const Both v({n}, m_type, squares);
            State cp = state(p), cm = state(m), cv = state(v);
            const State cg = state(g);
            kernels::adamw_step(cp.tensor(), master(Side::kCpu), cg.tensor(), cm.tensor(),
                                cv.tensor(), grad_scale(Side::kCpu), args, Stream{});
            kernels::adamw_step(p(Side::kGpu), master(Side::kGpu), g(Side::kGpu), m(Side::kGpu),
                                v(Side::kGpu), grad_scale(Side::kGpu), args, stream_);
            backend_of(DeviceKind::kCuda).synchronize(stream_);
            const auto compare = [&](const Both& gpu_side, const State& cpu_side,
                                     const char* what) {
              const std::vector<uint8_t> got = gpu_side.bytes();
              int64_t different = 0;
              for (int64_t i = 0; i < n; ++i) {
                float a, b;
                if (cpu_side.type == DType::kBF16) {
                  uint16_t x, y;
                  std::memcpy(&x, got.data() + 2 * i, 2);
                  std::memcpy(&y, cpu_side.cpu.data() + 2 * i, 2);
                  a = bf16_to_float(x), b = bf16_to_float(y);
                  // Where the random bits decide, a last-bit difference of the fp32 value may tip
                  // the rounding.
                  different += x != y;
                  ASSERT_NEAR(a, b, std::abs(b) * 0x1p-7F + 1e-8F) << what << " element " << i;
                } else {
                  std::memcpy(&a, got.data() + 4 * i, 4);
                  std::memcpy(&b, cpu_side.cpu.data() + 4 * i, 4);
                  ASSERT_NEAR(a, b, std::abs(b) * 1e-5F + 1e-7F) << what << " element " << i;
                }
              }
              EXPECT_LE(different, 1 + n / 200)
                  << what << ": stochastic rounding differs from the CPU's";
            };
            compare(p, cp, "p");
            compare(m, cm, "m");
            compare(v, cv, "v");
            if (with_master) expect_same(master, "master", {1e-6, 1e-5});

            const std::vector<uint8_t> before = p.bytes(), mean = m.bytes();
            const auto zero = Both({1}, DType::kF32, {0.0F});
            gpu([&](Side s, const Stream& stream) {
              kernels::adamw_step(p(s), master(s), g(s), m(s), v(s), zero(s), args, stream);
            });
            EXPECT_EQ(before, p.bytes()) << "a step with scale 0 changed the weights";
            EXPECT_EQ(mean, m.bytes()) << "a step with scale 0 changed the moments";
          }
}

TEST_F(CudaKernels, StochasticRoundingIsUnbiased) {
  // One step that should add 1/16 of the bf16 spacing to every weight: on the average it must.
  const int64_t n = 1 << 20;
  const Both p({n}, DType::kBF16, std::vector<float>(static_cast<size_t>(n), 1.0F)),
      g({n}, DType::kBF16, std::vector<float>(static_cast<size_t>(n), -1.0F));
  const Both m({n}, DType::kBF16, std::vector<float>(static_cast<size_t>(n), 0.0F)),
      v({n}, DType::kBF16, std::vector<float>(static_cast<size_t>(n), 0.0F));
  const auto one = Both({1}, DType::kF32, {1.0F});
  const double lr = 0x1p-7 / 16;
  gpu([&](Side s, const Stream& stream) {
    kernels::adamw_step(p(s), Tensor{}, g(s), m(s), v(s), one(s),
                        {.lr = lr,
                         .beta1 = 0.9,
                         .beta2 = 0.999,
                         .eps = 1e-8,
                         .weight_decay = 0,
                         .step = 1,
                         .seed = 9},
                        stream);
  });
  const auto values = p.gpu();
  const double mean = std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(n);
  EXPECT_NEAR(mean - 1.0, lr,
              lr * 0.02);  // deviation of the mean: 2^-7 * 0.24 / 1024 = 0.4 % of lr
}

TEST_F(CudaKernels, SumOfSquares) {
  for (const DType t : kTypes)
    for (const int64_t n :
         {int64_t{0}, int64_t{1}, int64_t{7}, int64_t{1000}, int64_t{100003}, int64_t{3000000}}) {
      SCOPED_TRACE(text(t, {n}));
      const int64_t columns = n % 8 == 0 ? 8 : 1;
      const auto x = Both::normal("x", {n / columns, columns}, t);
      const auto out = Both::doubles({1}, {2.5});
      Buffer words(gpu_device(), kernels::kExactWords * sizeof(int64_t));
      const Tensor sum{.data = words.data(), .dtype = DType::kI64, .shape = {kernels::kExactWords}, .device = gpu_device()};
      gpu([&](Side s, const Stream& stream) {
        backend_of(DeviceKind::kCuda).fill_zero(sum.data, sum.bytes(), stream);
        kernels::sum_of_squares(std::array<Tensor, 1>{x(s)}, sum, stream);
        kernels::exact_total(sum, out(s), stream);
      });
      double want = 0;
      for (const float f : x.cpu()) want += static_cast<double>(f) * static_cast<double>(f);
      EXPECT_NEAR(out.gpu()[0], want, want * 1e-12);
    }
}

TEST_F(CudaKernels, ClipFactor) {
  const double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
  for (const double squares : {0.0, 16.0, 1e-30, nan, inf})
    for (const double loss : {0.0, 12.5, nan, -inf})
      for (const float most : {0.0F, 1.0F, 8.0F}) {
        SCOPED_TRACE(fmt::format("{} {} {}", squares, loss, most));
        const auto q = Both::doubles({1}, {squares}), l = Both::doubles({1}, {loss});
        const auto factor = Both::output({1}, DType::kF32);
        both([&](Side s, const Stream& stream) { kernels::clip_factor(q(s), l(s), most, factor(s), stream); });
        EXPECT_EQ(static_cast<float>(factor.gpu()[0]), factor.cpu()[0]);
      }
}

TEST_F(CudaKernels, SumOfSquaresOfAList) {
  // More than a launch takes; wide, narrow and unaligned rows, of both dtypes.
  enum class Values { kOrdinary, kDenormal, kLarge, kInfinite };
  for (const Values kind : {Values::kOrdinary, Values::kDenormal, Values::kLarge, Values::kInfinite}) {
    SCOPED_TRACE(static_cast<int>(kind));
    std::vector<Both> all;
    all.reserve(300);
    long double exact = 0;  // millions of addends of a few sizes: an fp64 sum is off by 1e-11
    for (int i = 0; i < 300; ++i) {
      const int64_t cols = std::array<int64_t, 10>{1, 3, 8, 9, 24, 256, 1536, 1000, 2047, 8960}[static_cast<size_t>(i % 10)];
      const int64_t rows = 1 + i * 7 % 65;
      const DType t = i % 3 == 0 ? DType::kF32 : DType::kBF16;
      std::vector<float> values(static_cast<size_t>(rows * cols));
      for (size_t k = 0; k < values.size(); ++k) {
        const auto digits = static_cast<float>(128 + k % 128) * (k % 2 == 0 ? 1.0F : -1.0F);
        values[k] = kind == Values::kDenormal ? std::ldexp(static_cast<float>(k % 128), -133)  // bf16's denormals, zero too
                                              : std::ldexp(digits, static_cast<int>((k + static_cast<size_t>(i)) % 16) * 3 - 40);
      }
      if (kind == Values::kLarge) std::fill(values.begin(), values.end(), 0x1.fep+127F);
      if (kind == Values::kInfinite && i == 176) values[values.size() / 3] = INFINITY;  // a wide bf16 row
      for (const float f : values) exact += static_cast<long double>(f) * static_cast<long double>(f);
      all.emplace_back(Shape{rows, cols}, t, values);
    }
    const auto out = Both::doubles({1}, {0});
    Buffer words(gpu_device(), kernels::kExactWords * sizeof(int64_t));
    const Tensor sum{.data = words.data(), .dtype = DType::kI64, .shape = {kernels::kExactWords}, .device = gpu_device()};
    gpu([&](Side s, const Stream& stream) {
      std::vector<Tensor> list;
      for (const Both& x : all) list.push_back(x(s));
      backend_of(DeviceKind::kCuda).fill_zero(sum.data, sum.bytes(), stream);
      kernels::sum_of_squares(list, sum, stream);
      kernels::exact_total(sum, out(s), stream);
    });
    const auto want = static_cast<double>(exact);
    if (kind == Values::kInfinite)
      EXPECT_TRUE(std::isinf(out.gpu()[0])) << out.gpu()[0];
    else
      EXPECT_NEAR(out.gpu()[0], want, want * 1e-12);
  }
}

TEST_F(CudaKernels, SumOfSquaresOfSingleElementsHasTheCpusDigits) {
  // Rows of one element are exact, so every digit agrees, over 60 decades.
  const int64_t n = 1003;
  std::vector<float> values(static_cast<size_t>(n));
  for (size_t k = 0; k < values.size(); ++k)
    values[k] = std::ldexp(1.0F + 0.001F * static_cast<float>(k), static_cast<int>(k * 37 % 200) - 100);
  const Both x({n, 1}, DType::kF32, values);
  std::vector<int64_t> cpu(kernels::kExactWords), got(kernels::kExactWords);
  const Tensor on_cpu{.data = cpu.data(), .dtype = DType::kI64, .shape = {kernels::kExactWords}, .device = {}};
  kernels::sum_of_squares(std::array<Tensor, 1>{x(Side::kCpu)}, on_cpu, Stream{});
  Buffer words(gpu_device(), kernels::kExactWords * sizeof(int64_t));
  const Tensor sum{.data = words.data(), .dtype = DType::kI64, .shape = {kernels::kExactWords}, .device = gpu_device()};
  gpu([&](Side s, const Stream& stream) {
    backend_of(DeviceKind::kCuda).fill_zero(sum.data, sum.bytes(), stream);
    kernels::sum_of_squares(std::array<Tensor, 1>{x(s)}, sum, stream);
    backend_of(DeviceKind::kCuda).copy(got.data(), sum.data, sum.bytes(), stream);
  });
  EXPECT_EQ(got, cpu);
}

TEST_F(CudaKernels, AdamWOfPartsIsThatOfTheWhole) {
  // Shards may begin anywhere: their random bits, and so every bit of the result, are those of the whole.
  const int64_t n = 4099, cut = 1237;
  for (const DType p_type : kTypes)
    for (const DType m_type : kTypes) {
      SCOPED_TRACE(std::string(dtype_name(p_type)) + " m " + std::string(dtype_name(m_type)));
      std::vector<float> squares(static_cast<size_t>(n));
      for (size_t i = 0; i < squares.size(); ++i) squares[i] = 0.01F * static_cast<float>(1 + i % 17);
      const auto g = Both::normal("g", {n}, DType::kBF16, 0.1);
      const auto one = Both({1}, DType::kF32, {1.0F});
      const auto run = [&](const std::vector<int64_t>& bounds) {
        const Both p = Both::normal("p", {n}, p_type), m = Both::normal("m", {n}, m_type, 0.1), v({n}, m_type, squares);
        gpu([&](Side s, const Stream& stream) {
          for (size_t i = 0; i + 1 < bounds.size(); ++i) {
            const auto part = [&](const Both& whole) {
              Tensor t = whole(s);
              t.data = static_cast<char*>(t.data) + bounds[i] * dtype_bytes(t.dtype);
              t.shape = {bounds[i + 1] - bounds[i]};
              return t;
            };
            kernels::adamw_step(part(p), Tensor{}, part(g), part(m), part(v), one(s),
                                {.lr = 1e-3, .weight_decay = 0.1, .step = 3, .seed = 5, .first_element = bounds[i]}, stream);
          }
        });
        return std::array{p.bytes(), m.bytes(), v.bytes()};
      };
      EXPECT_EQ(run({0, n}), run({0, cut, n})) << "a part that begins within a vector";
      EXPECT_EQ(run({0, n}), run({0, 1024, 2048 + 3, n}));
    }
}

TEST_F(CudaKernels, AddCastScaleCopy) {
  for (const DType t : kTypes)
    for (const int64_t n : {int64_t{0}, int64_t{1}, int64_t{8}, int64_t{1003}, int64_t{100000}}) {
      SCOPED_TRACE(text(t, {n}));
      const auto a = Both::normal("a", {n}, t), b = Both::normal("b", {n}, t),
                 out = Both::output({n}, t);
      both([&](Side s, const Stream& stream) { kernels::add(a(s), b(s), out(s), stream); });
      expect_same(out, "add");
      for (const DType u : kTypes) {
        const auto src = Both::normal("src", {n}, u), dst = Both::normal("dst", {n}, t),
                   to = Both::output({n}, t);
        both([&](Side s, const Stream& stream) {
          kernels::add_into(dst(s), src(s), stream);
          kernels::cast(src(s), to(s), stream);
        });
        expect_same(dst, "add_into");
        expect_same(to, "cast");
      }
      both([&](Side s, const Stream& stream) { kernels::scale(a(s), -1.7F, stream); });
      expect_same(a, "scale");
    }
  // Views that begin off any 16-byte boundary.
  const auto x = Both::normal("x", {1000}, DType::kBF16),
             y = Both::normal("y", {1000}, DType::kBF16);
  both([&](Side s, const Stream& stream) {
    const auto part = [&](const Both& t) {
      Tensor v = t(s);
      v.data = static_cast<char*>(v.data) + 3 * dtype_bytes(v.dtype);
      v.shape = {990};
      return v;
    };
    kernels::add_into(part(y), part(x), stream);
    kernels::scale(part(x), 0.5F, stream);
  });
  expect_same(y, "add_into of a view");
  expect_same(x, "scale of a view");
  const auto wide = Both::normal("wide", {37, 50}, DType::kBF16),
             narrow = Both::output({37, 11}, DType::kBF16);
  both(
      [&](Side s, const Stream& stream) { kernels::copy_columns(wide(s), 23, narrow(s), stream); });
  expect_same(narrow, "copy_columns", {0, 0});
}

// ---------------------------------------------------------------- device seam

TEST_F(CudaKernels, DeviceSeam) {
  DeviceBackend& backend = backend_of(DeviceKind::kCuda);
  const DeviceInfo info = api_->device_info(gpu_device());
  std::printf(
      "  %s, %d multiprocessors, compute capability %d.%d, %.1f of %.1f GiB free, CUDA driver %d, "
      "runtime %d, cuBLASLt %zu\n",
      info.name.c_str(), info.multiprocessors, info.major, info.minor,
      static_cast<double>(info.free_bytes) / 0x1p30, static_cast<double>(info.total_bytes) / 0x1p30,
      info.driver_cuda, info.runtime_cuda, info.cublaslt_version);
  EXPECT_GE(info.major, 8);
  EXPECT_GT(info.free_bytes, 0U);
  EXPECT_EQ(info.uuid.size(), 40U);
  try {
    static_cast<void>(backend.allocate(gpu_device(), size_t{1} << 50));
    FAIL() << "a petabyte was allocated";
  } catch (const MemoryError& e) {
    EXPECT_NE(std::string(e.what()).find("GiB free"), std::string::npos) << e.what();
  }
  EXPECT_THROW(static_cast<void>(backend.allocate({.kind = DeviceKind::kCuda, .index = 99}, 1)),
               UsageError);
  const Buffer b(gpu_device(), 1000);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(b.data()) % 256, 0U);
  std::vector<uint8_t> to(1000, 1);
  backend.fill_zero(b.data(), 1000, stream_);
  backend.copy(to.data(), b.data(), 1000, stream_);
  backend.synchronize(stream_);
  EXPECT_TRUE(std::all_of(to.begin(), to.end(), [](uint8_t x) { return x == 0; }));
}

TEST_F(CudaKernels, EventsGraphsAndNoAllocationOnReplay) {
  const auto x = Both::normal("x", {512, 256}, DType::kBF16),
             w = Both::normal("w", {384, 256}, DType::kBF16);
  const auto y = Both::output({512, 384}, DType::kBF16),
             db = Both::normal("db", {384}, DType::kF32),
             want = Both::normal("db", {384}, DType::kF32);
  const auto body = [&](const Both& sums) {
    kernels::linear_forward(x(Side::kGpu), w(Side::kGpu), {}, y(Side::kGpu), stream_);
    kernels::bias_backward(y(Side::kGpu), sums(Side::kGpu), stream_);
  };
  DeviceBackend& backend = backend_of(DeviceKind::kCuda);
  body(want);  // sizes the scratch and settles the algorithm
  body(want);
  body(want);
  backend.synchronize(stream_);
  const int64_t allocations = api_->allocation_count();
  backend.begin_capture(stream_);
  body(db);
  const Graph graph = backend.end_capture(stream_);
  const Event begin = backend.create_event(gpu_device(), true),
              end = backend.create_event(gpu_device(), true);
  backend.record(begin, stream_);
  for (int i = 0; i < 3; ++i) backend.launch(graph, stream_);
  backend.record(end, stream_);
  backend.synchronize(end);
  EXPECT_TRUE(backend.done(end));
  EXPECT_GT(backend.elapsed_us(begin, end), 0.0);
  EXPECT_EQ(api_->allocation_count(), allocations);
  EXPECT_EQ(db.bytes(), want.bytes()) << "three replays differ from three calls";
  backend.destroy_graph(graph);
  backend.destroy_event(begin);
  backend.destroy_event(end);
}

}  // namespace
}  // namespace r1::cuda::test
