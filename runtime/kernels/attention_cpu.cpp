// Causal attention on the CPU, after FlashAttention-2 (Dao 2023): the scores of a block of queries
// exist only as a tile in the second-level cache. Products go to BLAS with the row strides of the
// fused qkv tensor, so nothing is repacked.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "runtime/device/cpu/thread_pool.h"
#include "runtime/kernels/cpu_kernels.h"
#include "runtime/kernels/gemm_cpu.h"
#include "runtime/kernels/simd_cpu.h"

namespace r1::kernels::cpu {
namespace {

constexpr int64_t kQueryBlock = 128;
constexpr int64_t kKeyBlock = 256;       // forward: 128 KiB of scores
constexpr int64_t kBackwardBlock = 128;  // both ways; two tiles of 64 KiB

/// Where the heads of a token are.
struct Layout {
  int64_t tokens, width, dim, q_heads, kv_heads;
  explicit Layout(const AttentionArgs& a, int64_t t)
      : tokens(t),
        width((a.q_heads + 2 * a.kv_heads) * a.head_dim),
        dim(a.head_dim),
        q_heads(a.q_heads),
        kv_heads(a.kv_heads) {}
  [[nodiscard]] int64_t q(int64_t token, int64_t head) const { return token * width + head * dim; }
  [[nodiscard]] int64_t k(int64_t token, int64_t head) const {
    return token * width + (q_heads + head) * dim;
  }
  [[nodiscard]] int64_t v(int64_t token, int64_t head) const {
    return token * width + (q_heads + kv_heads + head) * dim;
  }
  [[nodiscard]] int64_t o(int64_t token, int64_t head) const {
    return (token * q_heads + head) * dim;
  }
};

float row_max(const float* x, int64_t n, float m) {
  simd::V best = simd::set(m);
  simd::for_lanes(n, [&](int64_t i, auto... part) {
    if constexpr (sizeof...(part) == 0)
      best = simd::max(simd::load(x + i), best);
    else
      best = simd::max(simd::load(x + i, part..., m), best);
  });
  return simd::max_lane(best);
}

/// x = exp(x - m) in place; returns the sum.
float row_exp(float* x, int64_t n, float m) {
  const simd::V vm = simd::set(m);
  simd::V sum{};
  simd::for_lanes(n, [&](int64_t i, auto... part) {
    simd::V e;
    if constexpr (sizeof...(part) == 0)
      e = simd::exp_nonpositive(simd::load(x + i) - vm);
    else
      e = simd::exp_nonpositive(
          simd::load(x + i, part..., -std::numeric_limits<float>::infinity()) - vm);
    simd::store(x + i, e, part...);
    sum += e;
  });
  return simd::sum(sum);
}

void row_scale(float* x, int64_t n, float factor) {
  const simd::V f = simd::set(factor);
  simd::for_lanes(n, [&](int64_t i, auto... part) {
    simd::store(x + i, simd::load(x + i, part...) * f, part...);
  });
}

/// Queries [q0, q1) of one segment that begins at token `segment`, for one head.
void forward_block(const AttentionArgs& args, const Layout& at, const float* qkv, int64_t segment,
                   int64_t q0, int64_t q1, int64_t head, float* o, float* lse) {
  const int64_t rows = q1 - q0, kv = args.kv_of_q[static_cast<size_t>(head)];
  auto* scores = static_cast<float*>(
      thread_scratch(1, static_cast<size_t>(kQueryBlock * kKeyBlock) * sizeof(float)));
  float maximum[kQueryBlock], sum[kQueryBlock];
  std::fill_n(maximum, rows, -std::numeric_limits<float>::infinity());
  std::fill_n(sum, rows, 0.0F);
  for (int64_t k0 = segment; k0 < q1; k0 += kKeyBlock) {
    const int64_t keys = std::min(kKeyBlock, q1 - k0);
    gemm_tile(Op::kNone, Op::kTranspose, rows, keys, at.dim, args.scale, qkv + at.q(q0, head),
              at.width, qkv + at.k(k0, kv), at.width, 0.0F, scores, keys);
    for (int64_t r = 0; r < rows; ++r) {
      float* row = scores + r * keys;
      const int64_t seen =
          std::clamp<int64_t>(q0 + r + 1 - k0, 0, keys);  // causal: keys up to the query's own
      if (seen > 0) {
        const float m = row_max(row, seen, maximum[r]);
        const float shrink = std::exp(maximum[r] - m);
        if (k0 > segment && shrink != 1.0F) row_scale(o + at.o(q0 + r, head), at.dim, shrink);
        maximum[r] = m;
        sum[r] = sum[r] * shrink + row_exp(row, seen, m);
      }
      std::fill(row + seen, row + keys, 0.0F);
    }
    gemm_tile(Op::kNone, Op::kNone, rows, at.dim, keys, 1.0F, scores, keys, qkv + at.v(k0, kv),
              at.width, k0 == segment ? 0.0F : 1.0F, o + at.o(q0, head), at.q_heads * at.dim);
  }
  for (int64_t r = 0; r < rows; ++r) {
    row_scale(o + at.o(q0 + r, head), at.dim, 1.0F / sum[r]);
    lse[head * at.tokens + q0 + r] = maximum[r] + std::log(sum[r]);
  }
}

/// dq of the q heads of one kv head, and its dk and dv, within tokens [s0, s1). The q heads are
/// summed in order.
void backward_segment(const AttentionArgs& args, const Layout& at, const float* d_o,
                      const float* qkv, const float* o, const float* lse, int64_t s0, int64_t s1,
                      int64_t kv, float* dqkv) {
  constexpr int64_t kB = kBackwardBlock;
  auto* p =
      static_cast<float*>(thread_scratch(1, static_cast<size_t>(2 * kB * kB) * sizeof(float)));
  float* ds = p + kB * kB;
  auto* delta =
      static_cast<float*>(thread_scratch(2, static_cast<size_t>(s1 - s0) * sizeof(float)));
  bool first_head = true;
  for (int64_t head = 0; head < at.q_heads; ++head) {
    if (args.kv_of_q[static_cast<size_t>(head)] != kv) continue;
    for (int64_t t = s0; t < s1; ++t) {  // delta = rowsum(do * o)
      const float* a = d_o + at.o(t, head);
      const float* b = o + at.o(t, head);
      simd::VD dot{};
      simd::for_lanes(at.dim, [&](int64_t i, auto... part) {
        dot += simd::widen(simd::load(a + i, part...)) * simd::widen(simd::load(b + i, part...));
      });
      delta[t - s0] = static_cast<float>(simd::sum(dot));
    }
    for (int64_t k0 = s0; k0 < s1; k0 += kB) {
      const int64_t keys = std::min(kB, s1 - k0);
      for (int64_t q0 = k0; q0 < s1; q0 += kB) {
        const int64_t rows = std::min(kB, s1 - q0);
        gemm_tile(Op::kNone, Op::kTranspose, rows, keys, at.dim, args.scale, qkv + at.q(q0, head),
                  at.width, qkv + at.k(k0, kv), at.width, 0.0F, p, keys);
        gemm_tile(Op::kNone, Op::kTranspose, rows, keys, at.dim, 1.0F, d_o + at.o(q0, head),
                  at.q_heads * at.dim, qkv + at.v(k0, kv), at.width, 0.0F, ds, keys);
        for (int64_t r = 0; r < rows; ++r) {
          float* prob = p + r * keys;
          float* dscore = ds + r * keys;
          const int64_t seen = std::clamp<int64_t>(q0 + r + 1 - k0, 0, keys);
          const simd::V row_lse = simd::set(lse[head * at.tokens + q0 + r]);
          const simd::V row_delta = simd::set(delta[q0 + r - s0]), factor = simd::set(args.scale);
          simd::for_lanes(seen, [&](int64_t i, auto... part) {
            const simd::V e = simd::exp(simd::load(prob + i, part...) - row_lse);
            simd::store(prob + i, e, part...);
            simd::store(dscore + i, e * (simd::load(dscore + i, part...) - row_delta) * factor,
                        part...);
          });
          std::fill(prob + seen, prob + keys, 0.0F);
          std::fill(dscore + seen, dscore + keys, 0.0F);
        }
        const float add_kv =
            first_head && q0 == k0 ? 0.0F : 1.0F;  // the first to touch these rows overwrites
        gemm_tile(Op::kTranspose, Op::kNone, keys, at.dim, rows, 1.0F, p, keys,
                  d_o + at.o(q0, head), at.q_heads * at.dim, add_kv, dqkv + at.v(k0, kv), at.width);
        gemm_tile(Op::kTranspose, Op::kNone, keys, at.dim, rows, 1.0F, ds, keys,
                  qkv + at.q(q0, head), at.width, add_kv, dqkv + at.k(k0, kv), at.width);
        gemm_tile(Op::kNone, Op::kNone, rows, at.dim, keys, 1.0F, ds, keys, qkv + at.k(k0, kv),
                  at.width, k0 == s0 ? 0.0F : 1.0F, dqkv + at.q(q0, head), at.width);
      }
    }
    first_head = false;
  }
  if (first_head)  // no q head of this rank reads this kv head
    for (int64_t t = s0; t < s1; ++t) {
      std::fill_n(dqkv + at.k(t, kv), at.dim, 0.0F);
      std::fill_n(dqkv + at.v(t, kv), at.dim, 0.0F);
    }
}

}  // namespace

void attention_forward(const Tensor& qkv, const Tensor&, const AttentionArgs& args, const Tensor& o,
                       const Tensor& lse, const Tensor&, const Stream&) {
  const Layout at(args, qkv.dim(0));
  if (at.tokens == 0 || at.q_heads == 0) return;
  struct Block {
    int64_t segment, q0, q1;
  };
  std::vector<Block> blocks;
  for (size_t i = 0; i + 1 < args.host_cu.size(); ++i)
    for (int64_t q0 = args.host_cu[i]; q0 < args.host_cu[i + 1]; q0 += kQueryBlock)
      blocks.push_back(
          {args.host_cu[i], q0, std::min<int64_t>(q0 + kQueryBlock, args.host_cu[i + 1])});
  // The longest first: the last tasks to be taken should be short ones.
  std::stable_sort(blocks.begin(), blocks.end(), [](const Block& a, const Block& b) {
    return a.q1 - a.segment > b.q1 - b.segment;
  });
  parallel_for(static_cast<int64_t>(blocks.size()) * at.q_heads, [&](int64_t i) {
    const Block& b = blocks[static_cast<size_t>(i / at.q_heads)];
    forward_block(args, at, qkv.ptr<float>(), b.segment, b.q0, b.q1, i % at.q_heads, o.ptr<float>(),
                  lse.ptr<float>());
  });
  const int64_t end = args.host_cu.back();  // tokens past the last segment are padding
  std::fill(o.ptr<float>() + at.o(end, 0), o.ptr<float>() + at.o(at.tokens, 0), 0.0F);
  for (int64_t h = 0; h < at.q_heads; ++h)
    std::fill(lse.ptr<float>() + h * at.tokens + end, lse.ptr<float>() + (h + 1) * at.tokens, 0.0F);
}

void attention_backward(const Tensor& do_, const Tensor& qkv, const Tensor& o, const Tensor& lse,
                        const Tensor&, const AttentionArgs& args, const Tensor& dqkv, const Tensor&,
                        const Stream&) {
  const Layout at(args, qkv.dim(0));
  if (at.tokens == 0 || at.width == 0) return;
  std::vector<std::pair<int64_t, int64_t>> segments;
  for (size_t i = 0; i + 1 < args.host_cu.size(); ++i)
    if (args.host_cu[i + 1] > args.host_cu[i])
      segments.emplace_back(args.host_cu[i], args.host_cu[i + 1]);
  std::stable_sort(segments.begin(), segments.end(), [](const auto& a, const auto& b) {
    return a.second - a.first > b.second - b.first;
  });
  parallel_for(static_cast<int64_t>(segments.size()) * at.kv_heads, [&](int64_t i) {
    const auto [s0, s1] = segments[static_cast<size_t>(i / at.kv_heads)];
    backward_segment(args, at, do_.ptr<float>(), qkv.ptr<float>(), o.ptr<float>(), lse.ptr<float>(),
                     s0, s1, i % at.kv_heads, dqkv.ptr<float>());
  });
  std::fill(dqkv.ptr<float>() + at.q(args.host_cu.back(), 0),
            dqkv.ptr<float>() + at.q(at.tokens, 0), 0.0F);
}

}  // namespace r1::kernels::cpu
