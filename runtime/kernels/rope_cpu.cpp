#include <algorithm>
#include <cstring>

#include "runtime/core/error.h"
#include "runtime/device/cpu/thread_pool.h"
#include "runtime/kernels/cpu_kernels.h"
#include "runtime/kernels/norm_cpu.h"

namespace r1::kernels::cpu {
namespace {

constexpr int64_t kRows = 16;  // tokens of a task

int64_t width(const RopeArgs& a) { return (a.q_heads + 2 * a.kv_heads) * a.head_dim; }

}  // namespace

void rope(const Tensor& qkv, const Tensor& positions, const Tensor& cos_sin, const RopeArgs& args,
          const Stream&) {
  const int64_t tokens = qkv.dim(0), heads = args.q_heads + args.kv_heads, half = args.head_dim / 2;
  const int64_t max_positions = cos_sin.dim(0);
  const simd::V sign = simd::set(args.inverse ? -1.0F : 1.0F);
  parallel_ranges(tokens, kRows, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t position = positions.ptr<int32_t>()[t];
      R1_CHECK(position >= 0 && position < max_positions,
               "rope: token {} has position {}, the table has {}", t, position, max_positions);
      const float* cosine = cos_sin.ptr<float>() + position * args.head_dim;
      const float* sine = cosine + half;
      for (int64_t h = 0; h < heads; ++h) {
        float* low = qkv.ptr<float>() + t * width(args) + h * args.head_dim;
        float* high = low + half;
        simd::for_lanes(half, [&](int64_t i, auto... part) {
          const simd::V c = simd::load(cosine + i, part...),
                        s = simd::load(sine + i, part...) * sign;
          const simd::V a = simd::load(low + i, part...), b = simd::load(high + i, part...);
          simd::store(low + i, a * c - b * s, part...);
          simd::store(high + i, b * c + a * s, part...);
        });
      }
    }
  });
}

void qk_norm_forward(const Tensor& raw, const Tensor& q_weight, const Tensor& k_weight, float eps,
                     const RopeArgs& args, const Tensor& out, const Tensor& rstd, const Stream&) {
  const int64_t tokens = raw.dim(0), heads = args.q_heads + args.kv_heads, dim = args.head_dim;
  if (heads == 0) return;
  parallel_ranges(tokens, kRows, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* in = raw.ptr<float>() + t * width(args);
      float* to = out.ptr<float>() + t * width(args);
      for (int64_t h = 0; h < heads; ++h) {
        const float r = row_rstd(in + h * dim, dim, eps);
        rstd.ptr<float>()[t * heads + h] = r;
        const Tensor& w = h < args.q_heads ? q_weight : k_weight;
        row_normalize(in + h * dim, w.ptr<float>(), r, to + h * dim, dim);
      }
      std::memcpy(to + heads * dim, in + heads * dim,
                  static_cast<size_t>(args.kv_heads * dim) * sizeof(float));
    }
  });
}

void qk_norm_backward(const Tensor& d, const Tensor& raw, const Tensor& q_weight,
                      const Tensor& k_weight, const Tensor& rstd, const RopeArgs& args,
                      const Tensor& dq_weight, const Tensor& dk_weight, const Stream&) {
  const int64_t tokens = raw.dim(0), heads = args.q_heads + args.kv_heads, dim = args.head_dim;
  if (tokens == 0 || heads == 0) return;
  const int64_t tasks = (tokens + kRows - 1) / kRows;
  auto* partial =
      static_cast<float*>(thread_scratch(0, static_cast<size_t>(tasks * 2 * dim) * sizeof(float)));
  parallel_for(tasks, [&](int64_t task) {
    float* dw = partial + task * 2 * dim;  // of q, then of k
    std::memset(dw, 0, static_cast<size_t>(2 * dim) * sizeof(float));
    for (int64_t t = task * kRows; t < std::min(tokens, (task + 1) * kRows); ++t)
      for (int64_t h = 0; h < heads; ++h) {
        const int64_t at = t * width(args) + h * dim;
        const bool is_q = h < args.q_heads;
        row_norm_backward(d.ptr<float>() + at, raw.ptr<float>() + at,
                          (is_q ? q_weight : k_weight).ptr<float>(),
                          rstd.ptr<float>()[t * heads + h], nullptr, d.ptr<float>() + at,
                          is_q ? dw : dw + dim, dim);
      }
  });
  for (int64_t j = 0; j < 2 * dim; ++j) {
    double total = 0;
    for (int64_t task = 0; task < tasks; ++task)
      total += static_cast<double>(partial[task * 2 * dim + j]);
    float& out = j < dim ? dq_weight.ptr<float>()[j] : dk_weight.ptr<float>()[j - dim];
    out += static_cast<float>(total);
  }
}

}  // namespace r1::kernels::cpu
