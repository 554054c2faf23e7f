// RoPE in place inside the fused qkv tensor, and Qwen3's RMSNorm of each q and k head.
//
// RoPE, half-split convention: for i < D/2: (a, b) = (x[i], x[i + D/2]) -> (a cos - b sin, b cos +
// a sin); the inverse flips the sign of sin. q and k are read and written once; a token's cos and
// sin stay in registers over its heads.
#include "runtime/kernels/cuda/common.cuh"
#include "runtime/kernels/cuda/elementwise.h"

namespace r1::kernels::cuda {
namespace {

constexpr int kThreads = 256;

// A thread owns one vector of a token's half head and walks over the heads of its group.
template <class T, int W>
__global__ void __launch_bounds__(kThreads)
    rope_kernel(T* __restrict__ qkv, const int* __restrict__ positions,
                const float* __restrict__ cos_sin, int64_t tokens, int heads, int64_t ld, int d,
                float sign, int heads_per_thread) {
  const int half = d / 2, vecs = half / W;
  const int groups = (heads + heads_per_thread - 1) / heads_per_thread;
  const int64_t id = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t token = id / (static_cast<int64_t>(vecs) * groups);
  if (token >= tokens) return;
  const int rest = static_cast<int>(id - token * vecs * groups);
  const int c = rest % vecs * W, first = rest / vecs * heads_per_thread;
  const float* table = cos_sin + static_cast<int64_t>(positions[token]) * d;
  const Floats<W> cs = load<W>(table + c);
  Floats<W> sn = load<W>(table + half + c);
#pragma unroll
  for (int j = 0; j < W; ++j) sn.v[j] *= sign;
  T* row = qkv + token * ld + c;
  const int last = min(first + heads_per_thread, heads);
  // Four heads' loads before their stores: the compiler cannot tell that one head's store leaves the next head alone.
  constexpr int kBatch = 4;
  for (int begin = first; begin < last; begin += kBatch) {
    Floats<W> a[kBatch], b[kBatch];
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      // Beyond the last head the last again, for nothing: a branch would part the loads.
      const T* p = row + static_cast<int64_t>(min(begin + k, last - 1)) * d;
      a[k] = load<W>(p);
      b[k] = load<W>(p + half);
    }
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      if (begin + k >= last) break;
      T* p = row + static_cast<int64_t>(begin + k) * d;
      Floats<W> x, y;
#pragma unroll
      for (int j = 0; j < W; ++j) {
        x.v[j] = a[k].v[j] * cs.v[j] - b[k].v[j] * sn.v[j];
        y.v[j] = b[k].v[j] * cs.v[j] + a[k].v[j] * sn.v[j];
      }
      store<W>(p, x);
      store<W>(p + half, y);
    }
  }
}

// One warp a (token, head); v heads are copied. Columns are dealt in vectors of W to the lanes.
template <class T, int W>
__global__ void __launch_bounds__(kThreads)
    qk_norm_forward_kernel(const T* __restrict__ raw, const T* __restrict__ qw,
                           const T* __restrict__ kw, float eps, T* __restrict__ out,
                           float* __restrict__ rstd, int64_t items, int nq, int nkv, int d) {
  const int64_t item = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (item >= items) return;
  const int heads = nq + 2 * nkv, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t token = item / heads;
  const int head = static_cast<int>(item - token * heads);
  const T* x = raw + item * d;
  T* y = out + item * d;
  if (head >= nq + nkv) {
    for (int c = lane * W; c < d; c += kWarp * W) store<W>(y + c, load<W>(x + c));
    return;
  }
  float squares = 0;
  for (int c = lane * W; c < d; c += kWarp * W) {
    const Floats<W> v = load<W>(x + c);
#pragma unroll
    for (int j = 0; j < W; ++j) squares += v.v[j] * v.v[j];
  }
  const float r = 1.0F / sqrtf(warp_reduce(squares, Sum{}) / static_cast<float>(d) + eps);
  if (lane == 0) rstd[token * (nq + nkv) + head] = r;
  const T* w = head < nq ? qw : kw;
  for (int c = lane * W; c < d; c += kWarp * W) {
    Floats<W> v = load<W>(x + c);
    const Floats<W> g = load<W>(w + c);
#pragma unroll
    for (int j = 0; j < W; ++j) v.v[j] *= r * g.v[j];
    store<W>(y + c, v);
  }
}

// Persistent warps over (token, q or k head); weight gradients collect in shared memory a warp (a
// lane adds to its own columns only), then a fixed tree: warps of the block, blocks
// (add_partial_sums). partial [blocks, 2, D].
template <class T, int W>
__global__ void __launch_bounds__(kThreads)
    qk_norm_backward_kernel(T* __restrict__ grad, const T* __restrict__ raw,
                            const T* __restrict__ qw, const T* __restrict__ kw,
                            const float* __restrict__ rstd, float* __restrict__ partial,
                            int64_t items, int nq, int nkv, int d) {
  extern __shared__ float dws[];  // [warps, 2, D]
  const int warps = kThreads / kWarp, warp = static_cast<int>(threadIdx.x) / kWarp,
            lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int i = static_cast<int>(threadIdx.x); i < warps * 2 * d; i += kThreads) dws[i] = 0;
  __syncthreads();
  const int heads = nq + nkv;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * warps + warp; item < items;
       item += static_cast<int64_t>(gridDim.x) * warps) {
    const int64_t token = item / heads;
    const int head = static_cast<int>(item - token * heads);
    const int64_t base = (token * (heads + nkv) + head) * d;
    const T* w = head < nq ? qw : kw;
    float* dw = dws + (warp * 2 + (head < nq ? 0 : 1)) * d;
    const float r = rstd[item];
    float dot = 0;
    for (int c = lane * W; c < d; c += kWarp * W) {
      const Floats<W> dy = load<W>(grad + base + c), x = load<W>(raw + base + c),
                      g = load<W>(w + c);
#pragma unroll
      for (int j = 0; j < W; ++j) {
        const float xh = x.v[j] * r;
        dw[c + j] += dy.v[j] * xh;
        dot += dy.v[j] * g.v[j] * xh;
      }
    }
    dot = warp_reduce(dot, Sum{}) / static_cast<float>(d);
    for (int c = lane * W; c < d; c += kWarp * W) {
      const Floats<W> dy = load<W>(grad + base + c), x = load<W>(raw + base + c),
                      g = load<W>(w + c);
      Floats<W> out;
#pragma unroll
      for (int j = 0; j < W; ++j) out.v[j] = r * (dy.v[j] * g.v[j] - x.v[j] * r * dot);
      store<W>(grad + base + c, out);
    }
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < 2 * d; i += kThreads) {
    float sum = 0;
    for (int k = 0; k < warps; ++k) sum += dws[k * 2 * d + i];
    partial[static_cast<int64_t>(blockIdx.x) * 2 * d + i] = sum;
  }
}

// Vectors of 8 (4 for head dims up to 128, so that all lanes of a warp have one), or single
// elements.
template <class F>
void by_width(int width, F&& f) {
  switch (width) {
    case 8:
      f(std::integral_constant<int, 8>{});
      return;
    case 4:
      f(std::integral_constant<int, 4>{});
      return;
    default:
      f(std::integral_constant<int, 1>{});
      return;
  }
}
int head_width(int64_t d, bool aligned) {
  return !aligned || d % 4 != 0 ? 1 : d <= 128 || d % 8 != 0 ? 4 : 8;
}

}  // namespace

void rope(const Tensor& qkv, const Tensor& positions, const Tensor& cos_sin, const RopeArgs& args,
          const Stream& s) {
  const int64_t tokens = qkv.dim(0), heads = args.q_heads + args.kv_heads, d = args.head_dim;
  if (tokens == 0 || heads == 0) return;
  const Launch l(s);
  const bool vector = d % 16 == 0 && all_aligned16(qkv.data, cos_sin.data);
  by_width(vector ? 8 : 1, [&](auto width) {
    constexpr int kW = decltype(width)::value;
    // Up to eight, evenly: each group of heads reads the tables again.
    const int64_t heads_per_thread = ceil_div(heads, ceil_div(heads, 8));
    const int64_t threads = tokens * (d / 2 / kW) * ceil_div(heads, heads_per_thread);
    dispatch(qkv.dtype, [&](auto* tag) {
      using T = Element<decltype(tag)>;
      rope_kernel<T, kW>
          <<<static_cast<unsigned>(ceil_div(threads, kThreads)), kThreads, 0, l.stream>>>(
              qkv.ptr<T>(), positions.ptr<int>(), cos_sin.ptr<float>(), tokens,
              static_cast<int>(heads), (args.q_heads + 2 * args.kv_heads) * d, static_cast<int>(d),
              args.inverse ? -1.0F : 1.0F, static_cast<int>(heads_per_thread));
    });
  });
  CUDA_LAUNCH_CHECK();
}

void qk_norm_forward(const Tensor& raw, const Tensor& q_weight, const Tensor& k_weight, float eps,
                     const RopeArgs& args, const Tensor& out, const Tensor& rstd, const Stream& s) {
  const int64_t items = raw.dim(0) * (args.q_heads + 2 * args.kv_heads), d = args.head_dim;
  if (items == 0) return;
  const Launch l(s);
  by_width(
      head_width(d, all_aligned16(raw.data, out.data, q_weight.data, k_weight.data)),
      [&](auto width) {
        dispatch(raw.dtype, [&](auto* tag) {
          using T = Element<decltype(tag)>;
          qk_norm_forward_kernel<T, decltype(width)::value>
              <<<static_cast<unsigned>(ceil_div(items, kThreads / kWarp)), kThreads, 0, l.stream>>>(
                  raw.ptr<T>(), q_weight.ptr<T>(), k_weight.ptr<T>(), eps, out.ptr<T>(),
                  rstd.ptr<float>(), items, static_cast<int>(args.q_heads),
                  static_cast<int>(args.kv_heads), static_cast<int>(d));
        });
      });
  CUDA_LAUNCH_CHECK();
}

void qk_norm_backward(const Tensor& d, const Tensor& raw, const Tensor& q_weight,
                      const Tensor& k_weight, const Tensor& rstd, const RopeArgs& args,
                      const Tensor& dq_weight, const Tensor& dk_weight, const Stream& s) {
  const int64_t items = raw.dim(0) * (args.q_heads + args.kv_heads), dim = args.head_dim;
  if (items == 0) return;
  const Launch l(s);
  const size_t shared = static_cast<size_t>(kThreads / kWarp * 2 * dim) * sizeof(float);
  R1_CHECK(shared <= 48 * 1024, "qk_norm_backward: head dim {} is not supported on CUDA", dim);
  const int64_t blocks =
      std::min<int64_t>(ceil_div(items, kThreads / kWarp), int64_t{l.ctx.multiprocessors()} * 4);
  auto* partial = static_cast<float*>(
      l.ctx.scratch(static_cast<size_t>(blocks * 2 * dim) * sizeof(float), l.stream));
  by_width(head_width(dim, all_aligned16(d.data, raw.data, q_weight.data, k_weight.data)),
           [&](auto width) {
             dispatch(raw.dtype, [&](auto* tag) {
               using T = Element<decltype(tag)>;
               qk_norm_backward_kernel<T, decltype(width)::value>
                   <<<static_cast<unsigned>(blocks), kThreads, shared, l.stream>>>(
                       d.ptr<T>(), raw.ptr<T>(), q_weight.ptr<T>(), k_weight.ptr<T>(),
                       rstd.ptr<float>(), partial, items, static_cast<int>(args.q_heads),
                       static_cast<int>(args.kv_heads), static_cast<int>(dim));
             });
           });
  CUDA_LAUNCH_CHECK();
  add_partial_sums(partial, blocks, 2 * dim, dq_weight, l.stream);
  add_partial_sums(partial + dim, blocks, 2 * dim, dk_weight, l.stream);
}

}  // namespace r1::kernels::cuda
