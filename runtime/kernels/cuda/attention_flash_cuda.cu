// Causal attention within segments, after FlashAttention-2 (Dao 2023), in fp32 FMA.
//
// A block of 256 threads holds a tile of kRows queries (or keys) of one head in shared memory as
// fp32 and walks over the other side in tiles of kRows; a thread owns a kR x kR patch of the scores
// and kR rows x DP/16 columns of the result. A tile may cover several segments: each query row
// knows the first token of its segment and sees keys [segment begin, own position]. So the launch
// does not depend on how the tokens are packed.
//
// No atomics: dq in one kernel over key tiles, dk and dv in another over the query heads of the
// group and query tiles, so results repeat bit for bit. Work: forward 4 D FLOP a visible pair,
// backward 14 D (scores computed in both kernels).
#include "runtime/kernels/cuda/attention_flash.h"
#include "runtime/kernels/cuda/common.cuh"

namespace r1::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kLanes = 16;      // threads along a row of the scores; 16 x 16 threads
constexpr int kMaxHeads = 512;  // of one rank
constexpr float kLog2e = 1.44269504088896340736F;

// DP: head dim rounded up to a multiple of 64; tiles of kRows x DP, padded by 4 floats so that the
// 16 lanes of a row of threads read different banks.
template <int DP>
struct Tile {
  static constexpr int kRows = DP <= 128 ? 64 : 32;
  static constexpr int kR = kRows / kLanes;  // rows (and score columns) a thread
  static constexpr int kStride = DP + 4;
  static constexpr int kScoreStride = kRows + 4;
  static constexpr int kCols = DP / 64;  // float4 columns of a result row a thread: tx * 4 + 64 * k
  static constexpr int kFloats = kRows * kStride;
  static constexpr int kScoreFloats = kRows * kScoreStride;
};

struct Heads {
  int64_t tokens, ld;
  int nq, nkv, d, segments;
  float scale;
  int16_t kv_of_q[kMaxHeads];
};

// Rows [first, first + kRows) of a matrix with row stride `ld` into shared memory, zeros beyond
// `tokens` and `d`.
template <int DP, class T>
__device__ __forceinline__ void fetch(float* tile, const T* base, int64_t ld, int64_t first,
                                      int64_t tokens, int d) {
  using C = Tile<DP>;
  for (int i = static_cast<int>(threadIdx.x); i < C::kRows * DP; i += kThreads) {
    const int r = i / DP, c = i % DP;
    const int64_t t = first + r;
    tile[r * C::kStride + c] = t < tokens && c < d ? to_float(base[t * ld + c]) : 0.0F;
  }
}

// out[i][j] = sum over c of a[ty + 16 i][c] * b[tx + 16 j][c]
template <int DP>
__device__ __forceinline__ void dot_rows(const float* a, const float* b, int tx, int ty,
                                         float (&out)[Tile<DP>::kR][Tile<DP>::kR]) {
  using C = Tile<DP>;
#pragma unroll
  for (int i = 0; i < C::kR; ++i)
#pragma unroll
    for (int j = 0; j < C::kR; ++j) out[i][j] = 0;
#pragma unroll 4
  for (int c = 0; c < DP; c += 4) {
    float4 x[C::kR], y[C::kR];
#pragma unroll
    for (int i = 0; i < C::kR; ++i)
      x[i] = *reinterpret_cast<const float4*>(a + (ty + kLanes * i) * C::kStride + c);
#pragma unroll
    for (int j = 0; j < C::kR; ++j)
      y[j] = *reinterpret_cast<const float4*>(b + (tx + kLanes * j) * C::kStride + c);
#pragma unroll
    for (int i = 0; i < C::kR; ++i)
#pragma unroll
      for (int j = 0; j < C::kR; ++j)
        out[i][j] += x[i].x * y[j].x + x[i].y * y[j].y + x[i].z * y[j].z + x[i].w * y[j].w;
  }
}

// acc[i][k] += sum over r of p[ty + 16 i][r] * v[r][tx * 4 + 64 k ..]; p [kRows][kRows] scores, v a
// tile.
template <int DP>
__device__ __forceinline__ void add_product(const float* p, const float* v, int tx, int ty,
                                            float4 (&acc)[Tile<DP>::kR][Tile<DP>::kCols]) {
  using C = Tile<DP>;
#pragma unroll 2
  for (int r = 0; r < C::kRows; r += 4) {
    float4 w[C::kR];
#pragma unroll
    for (int i = 0; i < C::kR; ++i)
      w[i] = *reinterpret_cast<const float4*>(p + (ty + kLanes * i) * C::kScoreStride + r);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
#pragma unroll
      for (int k = 0; k < C::kCols; ++k) {
        const float4 x =
            *reinterpret_cast<const float4*>(v + (r + e) * C::kStride + tx * 4 + 64 * k);
#pragma unroll
        for (int i = 0; i < C::kR; ++i) {
          const float f = e == 0 ? w[i].x : e == 1 ? w[i].y : e == 2 ? w[i].z : w[i].w;
          acc[i][k].x += f * x.x;
          acc[i][k].y += f * x.y;
          acc[i][k].z += f * x.z;
          acc[i][k].w += f * x.w;
        }
      }
    }
  }
}

template <int DP, class T>
__device__ __forceinline__ void put_row(T* row, int tx, int d, const float4 (&acc)[Tile<DP>::kCols],
                                        float factor) {
#pragma unroll
  for (int k = 0; k < Tile<DP>::kCols; ++k) {
    const int c = tx * 4 + 64 * k;
    const float v[4] = {acc[k].x, acc[k].y, acc[k].z, acc[k].w};
#pragma unroll
    for (int e = 0; e < 4; ++e)
      if (c + e < d) row[c + e] = from_float<T>(v[e] * factor);
  }
}

// [begin, end) of the segment that holds token t; an empty range past the last segment.
__device__ __forceinline__ int2 segment_of(const int* cu, int segments, int64_t t) {
  if (segments == 0 || t >= cu[segments]) return {0, 0};
  int lo = 0, hi = segments - 1;  // the last i with cu[i] <= t (empty segments share a start)
  while (lo < hi) {
    const int mid = (lo + hi + 1) / 2;
    if (cu[mid] <= t)
      lo = mid;
    else
      hi = mid - 1;
  }
  return {cu[lo], cu[lo + 1]};
}

// Sum or maximum over the 16 threads of a score row; the result in all of them.
template <class Op>
__device__ __forceinline__ float row_reduce(float x, Op op) {
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2)
    x = op(x, __shfl_xor_sync(0xffffffffu, x, offset));
  return x;
}

template <class T, int DP>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const T* __restrict__ qkv, const int* __restrict__ cu, T* __restrict__ o,
                   float* __restrict__ lse, Heads h) {
  using C = Tile<DP>;
  extern __shared__ float shared[];
  float *q = shared, *k = q + C::kFloats, *v = k + C::kFloats, *p = v + C::kFloats;
  __shared__ int begin[C::kRows], lowest;
  const int tx = static_cast<int>(threadIdx.x) % kLanes,
            ty = static_cast<int>(threadIdx.x) / kLanes;
  // Later tiles see more keys: they go first, so that the last blocks to run are short.
  const int64_t q0 = static_cast<int64_t>(gridDim.x - 1 - blockIdx.x) * C::kRows;
  const int head = static_cast<int>(blockIdx.y), kv = h.kv_of_q[head];
  if (threadIdx.x < C::kRows) {
    const int2 s = segment_of(cu, h.segments, q0 + threadIdx.x);
    begin[threadIdx.x] = s.y == 0 ? INT_MAX : s.x;  // no key is visible past the segments
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    int least = INT_MAX;
    for (int i = 0; i < C::kRows; ++i) least = min(least, begin[i]);
    lowest = least;
  }
  fetch<DP>(q, qkv + static_cast<int64_t>(head) * h.d, h.ld, q0, h.tokens, h.d);
  __syncthreads();
  float top[C::kR], sum[C::kR];
  float4 acc[C::kR][C::kCols];
#pragma unroll
  for (int i = 0; i < C::kR; ++i) {
    top[i] = -INFINITY;
    sum[i] = 0;
#pragma unroll
    for (int c = 0; c < C::kCols; ++c) acc[i][c] = {0, 0, 0, 0};
  }
  const float scale = h.scale * kLog2e;
  const int64_t stop = q0 + C::kRows < h.tokens ? q0 + C::kRows : h.tokens;
  for (int64_t k0 = lowest == INT_MAX ? stop : lowest / C::kRows * C::kRows; k0 < stop;
       k0 += C::kRows) {
    __syncthreads();
    fetch<DP>(k, qkv + static_cast<int64_t>(h.nq + kv) * h.d, h.ld, k0, h.tokens, h.d);
    fetch<DP>(v, qkv + static_cast<int64_t>(h.nq + h.nkv + kv) * h.d, h.ld, k0, h.tokens, h.d);
    __syncthreads();
    float s[C::kR][C::kR];
    dot_rows<DP>(q, k, tx, ty, s);
#pragma unroll
    for (int i = 0; i < C::kR; ++i) {
      const int r = ty + kLanes * i;
      float best = top[i];
#pragma unroll
      for (int j = 0; j < C::kR; ++j) {
        const int64_t t = k0 + tx + kLanes * j;
        s[i][j] = t >= begin[r] && t <= q0 + r ? s[i][j] * scale : -INFINITY;
        best = fmaxf(best, s[i][j]);
      }
      best = row_reduce(best, Max{});
      const float base = best == -INFINITY ? 0.0F : best;  // nothing visible yet: all terms are 0
      const float shrink = exp2f(top[i] - base);
      float part = 0;
#pragma unroll
      for (int j = 0; j < C::kR; ++j) {
        const float e = exp2f(s[i][j] - base);
        p[r * C::kScoreStride + tx + kLanes * j] = e;
        part += e;
      }
      sum[i] = sum[i] * shrink + row_reduce(part, Sum{});
      top[i] = best;
#pragma unroll
      for (int c = 0; c < C::kCols; ++c) {
        acc[i][c].x *= shrink;
        acc[i][c].y *= shrink;
        acc[i][c].z *= shrink;
        acc[i][c].w *= shrink;
      }
    }
    __syncthreads();
    add_product<DP>(p, v, tx, ty, acc);
  }
#pragma unroll
  for (int i = 0; i < C::kR; ++i) {
    const int64_t t = q0 + ty + kLanes * i;
    if (t >= h.tokens) continue;
    put_row<DP>(o + (t * h.nq + head) * h.d, tx, h.d, acc[i],
                sum[i] == 0.0F ? 0.0F : 1.0F / sum[i]);
    if (tx == 0) lse[head * h.tokens + t] = sum[i] == 0.0F ? 0.0F : top[i] / kLog2e + logf(sum[i]);
  }
}

// delta[head, t] = sum over c of do[t, head, c] * o[t, head, c]; one warp an item.
template <class T>
__global__ void __launch_bounds__(kThreads)
    delta_kernel(const T* __restrict__ d_o, const T* __restrict__ o, float* __restrict__ delta,
                 int64_t tokens, int nq, int d) {
  const int64_t item = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (item >= tokens * nq) return;
  float sum = 0;
  for (int c = static_cast<int>(threadIdx.x) % kWarp; c < d; c += kWarp)
    sum += to_float(d_o[item * d + c]) * to_float(o[item * d + c]);
  sum = warp_reduce(sum, Sum{});
  if (threadIdx.x % kWarp == 0) delta[item % nq * tokens + item / nq] = sum;
}

template <class T, int DP>
__global__ void __launch_bounds__(kThreads)
    dq_kernel(const T* __restrict__ d_o, const T* __restrict__ qkv, const float* __restrict__ lse,
              const float* __restrict__ delta, const int* __restrict__ cu, T* __restrict__ dqkv,
              Heads h) {
  using C = Tile<DP>;
  extern __shared__ float shared[];
  float *q = shared, *g = q + C::kFloats, *k = g + C::kFloats, *v = k + C::kFloats,
        *p = v + C::kFloats;
  __shared__ int begin[C::kRows], lowest;
  __shared__ float row_lse[C::kRows], row_delta[C::kRows];
  const int tx = static_cast<int>(threadIdx.x) % kLanes,
            ty = static_cast<int>(threadIdx.x) / kLanes;
  const int64_t q0 = static_cast<int64_t>(gridDim.x - 1 - blockIdx.x) * C::kRows;
  const int head = static_cast<int>(blockIdx.y), kv = h.kv_of_q[head];
  if (threadIdx.x < C::kRows) {
    const int64_t t = q0 + threadIdx.x;
    const int2 s = segment_of(cu, h.segments, t);
    begin[threadIdx.x] = s.y == 0 ? INT_MAX : s.x;
    row_lse[threadIdx.x] = t < h.tokens ? lse[head * h.tokens + t] * kLog2e : 0.0F;
    row_delta[threadIdx.x] = t < h.tokens ? delta[head * h.tokens + t] : 0.0F;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    int least = INT_MAX;
    for (int i = 0; i < C::kRows; ++i) least = min(least, begin[i]);
    lowest = least;
  }
  fetch<DP>(q, qkv + static_cast<int64_t>(head) * h.d, h.ld, q0, h.tokens, h.d);
  fetch<DP>(g, d_o + static_cast<int64_t>(head) * h.d, static_cast<int64_t>(h.nq) * h.d, q0,
            h.tokens, h.d);
  __syncthreads();
  float4 acc[C::kR][C::kCols];
#pragma unroll
  for (int i = 0; i < C::kR; ++i)
#pragma unroll
    for (int c = 0; c < C::kCols; ++c) acc[i][c] = {0, 0, 0, 0};
  const float scale = h.scale * kLog2e;
  const int64_t stop = q0 + C::kRows < h.tokens ? q0 + C::kRows : h.tokens;
  for (int64_t k0 = lowest == INT_MAX ? stop : lowest / C::kRows * C::kRows; k0 < stop;
       k0 += C::kRows) {
    __syncthreads();
    fetch<DP>(k, qkv + static_cast<int64_t>(h.nq + kv) * h.d, h.ld, k0, h.tokens, h.d);
    fetch<DP>(v, qkv + static_cast<int64_t>(h.nq + h.nkv + kv) * h.d, h.ld, k0, h.tokens, h.d);
    __syncthreads();
    float s[C::kR][C::kR], dp[C::kR][C::kR];
    dot_rows<DP>(q, k, tx, ty, s);
    dot_rows<DP>(g, v, tx, ty, dp);
#pragma unroll
    for (int i = 0; i < C::kR; ++i) {
      const int r = ty + kLanes * i;
#pragma unroll
      for (int j = 0; j < C::kR; ++j) {
        const int64_t t = k0 + tx + kLanes * j;
        const bool seen = t >= begin[r] && t <= q0 + r;
        p[r * C::kScoreStride + tx + kLanes * j] =
            seen ? exp2f(s[i][j] * scale - row_lse[r]) * (dp[i][j] - row_delta[r]) * h.scale : 0.0F;
      }
    }
    __syncthreads();
    add_product<DP>(p, k, tx, ty, acc);
  }
#pragma unroll
  for (int i = 0; i < C::kR; ++i) {
    const int64_t t = q0 + ty + kLanes * i;
    if (t < h.tokens)
      put_row<DP>(dqkv + t * h.ld + static_cast<int64_t>(head) * h.d, tx, h.d, acc[i], 1.0F);
  }
}

template <class T, int DP>
__global__ void __launch_bounds__(kThreads)
    dkv_kernel(const T* __restrict__ d_o, const T* __restrict__ qkv, const float* __restrict__ lse,
               const float* __restrict__ delta, const int* __restrict__ cu, T* __restrict__ dqkv,
               Heads h) {
  using C = Tile<DP>;
  extern __shared__ float shared[];
  float *k = shared, *v = k + C::kFloats, *q = v + C::kFloats, *g = q + C::kFloats,
        *p = g + C::kFloats;
  __shared__ int last[C::kRows],
      highest;  // end of each key's segment: the queries [key, end) see it
  __shared__ float row_lse[C::kRows], row_delta[C::kRows];
  const int tx = static_cast<int>(threadIdx.x) % kLanes,
            ty = static_cast<int>(threadIdx.x) / kLanes;
  const int64_t k0 = static_cast<int64_t>(blockIdx.x) * C::kRows;
  const int kv = static_cast<int>(blockIdx.y);
  if (threadIdx.x < C::kRows) last[threadIdx.x] = segment_of(cu, h.segments, k0 + threadIdx.x).y;
  __syncthreads();
  if (threadIdx.x == 0) {
    int most = 0;
    for (int i = 0; i < C::kRows; ++i) most = max(most, last[i]);
    highest = most;
  }
  fetch<DP>(k, qkv + static_cast<int64_t>(h.nq + kv) * h.d, h.ld, k0, h.tokens, h.d);
  fetch<DP>(v, qkv + static_cast<int64_t>(h.nq + h.nkv + kv) * h.d, h.ld, k0, h.tokens, h.d);
  __syncthreads();
  float4 dk[C::kR][C::kCols], dv[C::kR][C::kCols];
#pragma unroll
  for (int i = 0; i < C::kR; ++i)
#pragma unroll
    for (int c = 0; c < C::kCols; ++c) dk[i][c] = dv[i][c] = {0, 0, 0, 0};
  const float scale = h.scale * kLog2e;
  for (int head = 0; head < h.nq; ++head) {
    if (h.kv_of_q[head] != kv) continue;
    for (int64_t q0 = k0; q0 < highest; q0 += C::kRows) {
      __syncthreads();
      fetch<DP>(q, qkv + static_cast<int64_t>(head) * h.d, h.ld, q0, h.tokens, h.d);
      fetch<DP>(g, d_o + static_cast<int64_t>(head) * h.d, static_cast<int64_t>(h.nq) * h.d, q0,
                h.tokens, h.d);
      if (threadIdx.x < C::kRows) {
        const int64_t t = q0 + threadIdx.x;
        row_lse[threadIdx.x] = t < h.tokens ? lse[head * h.tokens + t] * kLog2e : 0.0F;
        row_delta[threadIdx.x] = t < h.tokens ? delta[head * h.tokens + t] : 0.0F;
      }
      __syncthreads();
      // Transposed: rows are keys, columns queries.
      float s[C::kR][C::kR], dp[C::kR][C::kR];
      dot_rows<DP>(k, q, tx, ty, s);
      dot_rows<DP>(v, g, tx, ty, dp);
#pragma unroll
      for (int i = 0; i < C::kR; ++i) {
        const int r = ty + kLanes * i;
#pragma unroll
        for (int j = 0; j < C::kR; ++j) {
          const int c = tx + kLanes * j;
          const int64_t t = q0 + c;
          const bool seen = t >= k0 + r && t < last[r];
          s[i][j] = seen ? exp2f(s[i][j] * scale - row_lse[c]) : 0.0F;
          dp[i][j] = s[i][j] * (dp[i][j] - row_delta[c]) * h.scale;
          p[r * C::kScoreStride + c] = s[i][j];
        }
      }
      __syncthreads();
      add_product<DP>(p, g, tx, ty, dv);
      __syncthreads();
#pragma unroll
      for (int i = 0; i < C::kR; ++i)
#pragma unroll
        for (int j = 0; j < C::kR; ++j)
          p[(ty + kLanes * i) * C::kScoreStride + tx + kLanes * j] = dp[i][j];
      __syncthreads();
      add_product<DP>(p, q, tx, ty, dk);
    }
  }
#pragma unroll
  for (int i = 0; i < C::kR; ++i) {
    const int64_t t = k0 + ty + kLanes * i;
    if (t >= h.tokens) continue;
    put_row<DP>(dqkv + t * h.ld + static_cast<int64_t>(h.nq + kv) * h.d, tx, h.d, dk[i], 1.0F);
    put_row<DP>(dqkv + t * h.ld + static_cast<int64_t>(h.nq + h.nkv + kv) * h.d, tx, h.d, dv[i],
                1.0F);
  }
}

Heads heads_of(const AttentionArgs& a, int64_t tokens) {
  R1_CHECK(a.q_heads <= kMaxHeads, "{} q heads on one rank, at most {} on CUDA", a.q_heads,
           kMaxHeads);
  if (a.head_dim > 256)
    throw InternalError("attention: head dim {} above 256 is not supported on CUDA", a.head_dim);
  Heads h{.tokens = tokens,
          .ld = (a.q_heads + 2 * a.kv_heads) * a.head_dim,
          .nq = static_cast<int>(a.q_heads),
          .nkv = static_cast<int>(a.kv_heads),
          .d = static_cast<int>(a.head_dim),
          .segments = static_cast<int>(a.host_cu.size()) - 1,
          .scale = a.scale,
          .kv_of_q = {}};
  for (size_t i = 0; i < a.kv_of_q.size(); ++i) h.kv_of_q[i] = static_cast<int16_t>(a.kv_of_q[i]);
  return h;
}

template <class F>
void by_head_dim(int64_t d, F&& f) {
  if (d <= 64)
    f(std::integral_constant<int, 64>{});
  else if (d <= 128)
    f(std::integral_constant<int, 128>{});
  else
    f(std::integral_constant<int, 256>{});
}

template <class K, class... A>
void launch(K* kernel, int64_t rows, int tile, int64_t heads, size_t shared, cudaStream_t stream,
            const A&... args) {
  if (heads == 0) return;
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(shared)));
  kernel<<<dim3(static_cast<unsigned>(ceil_div(rows, tile)), static_cast<unsigned>(heads)),
           kThreads, shared, stream>>>(args...);
  CUDA_LAUNCH_CHECK();
}

}  // namespace

void flash_forward(const Tensor& qkv, const Tensor& cu_seqlens, const AttentionArgs& args,
                   const Tensor& o, const Tensor& lse, const Stream& s) {
  const int64_t tokens = qkv.dim(0);
  if (tokens == 0 || args.q_heads == 0) return;
  const Launch l(s);
  const Heads h = heads_of(args, tokens);
  by_head_dim(args.head_dim, [&](auto dp) {
    constexpr int kDP = decltype(dp)::value;
    using C = Tile<kDP>;
    dispatch(qkv.dtype, [&](auto* tag) {
      using T = Element<decltype(tag)>;
      launch(forward_kernel<T, kDP>, tokens, C::kRows, args.q_heads,
             (3 * C::kFloats + C::kScoreFloats) * sizeof(float), l.stream,
             static_cast<const T*>(qkv.data), static_cast<const int*>(cu_seqlens.data), o.ptr<T>(),
             lse.ptr<float>(), h);
    });
  });
}

void flash_backward(const Tensor& do_, const Tensor& qkv, const Tensor& o, const Tensor& lse,
                    const Tensor& cu_seqlens, const AttentionArgs& args, const Tensor& dqkv,
                    float* delta, const Stream& s) {
  const int64_t tokens = qkv.dim(0);
  if (tokens == 0 || qkv.dim(1) == 0) return;
  const Launch l(s);
  const Heads h = heads_of(args, tokens);
  by_head_dim(args.head_dim, [&](auto dp) {
    constexpr int kDP = decltype(dp)::value;
    using C = Tile<kDP>;
    dispatch(qkv.dtype, [&](auto* tag) {
      using T = Element<decltype(tag)>;
      const auto *d_o = static_cast<const T*>(do_.data), *x = static_cast<const T*>(qkv.data),
                 *out = static_cast<const T*>(o.data);
      const auto* sums = static_cast<const float*>(lse.data);
      const auto* cu = static_cast<const int*>(cu_seqlens.data);
      constexpr size_t kShared = (4 * C::kFloats + C::kScoreFloats) * sizeof(float);
      if (args.q_heads > 0) {
        delta_kernel<T><<<static_cast<unsigned>(ceil_div(tokens * args.q_heads, kThreads / kWarp)),
                          kThreads, 0, l.stream>>>(d_o, out, delta, tokens, h.nq, h.d);
        CUDA_LAUNCH_CHECK();
      }
      const auto* deltas = static_cast<const float*>(delta);
      launch(dq_kernel<T, kDP>, tokens, C::kRows, args.q_heads, kShared, l.stream, d_o, x, sums,
             deltas, cu, dqkv.ptr<T>(), h);
      launch(dkv_kernel<T, kDP>, tokens, C::kRows, args.kv_heads, kShared, l.stream, d_o, x, sums,
             deltas, cu, dqkv.ptr<T>(), h);
    });
  });
}

}  // namespace r1::kernels::cuda
