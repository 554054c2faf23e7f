// RMSNorm forward (with and without the residual add) and backward.
//
// y = x * rstd * w, rstd = 1/sqrt(mean(x^2) + eps); sums in fp32.
// Forward: one block a row, the row in registers: 2H elements moved (4H with the add).
// Backward: dx = rstd * (g - xhat * mean(g xhat)) + residual with g = dy * w, xhat = x * rstd; dw =
// sum over rows of dy * xhat. Persistent blocks stride over rows and keep their dw part in
// registers; the parts are added in a fixed order, so the result does not depend on timing. 3H
// elements moved, 4H with a residual.
#include "runtime/kernels/cuda/common.cuh"
#include "runtime/kernels/cuda/elementwise.h"

namespace r1::kernels::cuda {
namespace {

constexpr int kVec = 8;  // elements a thread moves at once: 16 bytes of bf16

constexpr int kSmallBlock = 256;  // threads of a block with up to 4 vectors a thread

// How a block of whole warps holds a row.
struct RowShape {
  int vecs;     // vectors a thread holds
  int threads;  // of a block
  int width;    // elements of a vector: kVec, or 1 for rows that are not 16-byte aligned
};

RowShape row_shape(int64_t h, bool vector) {
  // Vectors up to four a thread; longer rows (none of today's models) element by element.
  const int width = vector && h <= int64_t{4} * kSmallBlock * kVec ? kVec : 1;
  const int64_t n = ceil_div(h, width);
  int vecs = 1;
  while (ceil_div(n, vecs) > (vecs <= 4 ? kSmallBlock : 1024) && vecs < 16) vecs *= 2;
  if (vecs == 1 && n > 128) vecs = 2;
  const int64_t threads = ceil_div(ceil_div(n, vecs), kWarp) * kWarp;
  if (threads > 1024)
    throw InternalError("rmsnorm: rows of {} elements are not supported on CUDA", h);
  return {vecs, static_cast<int>(threads), width};
}

template <class F>
void with_row_shape(const RowShape& r, F&& f) {
  const auto go = [&]<int kWidth, int kVecs>() {
    f(std::integral_constant<int, kWidth>{}, std::integral_constant<int, kVecs>{});
  };
  if (r.width == kVec) {
    switch (r.vecs) {
      case 1:
        go.template operator()<kVec, 1>();
        return;
      case 2:
        go.template operator()<kVec, 2>();
        return;
      default:
        go.template operator()<kVec, 4>();
        return;
    }
  }
  switch (r.vecs) {
    case 1:
      go.template operator()<1, 1>();
      return;
    case 2:
      go.template operator()<1, 2>();
      return;
    case 4:
      go.template operator()<1, 4>();
      return;
    case 8:
      go.template operator()<1, 8>();
      return;
    default:
      go.template operator()<1, 16>();
      return;
  }
}

template <class T, int W, int NV, bool kAdd>
__global__ void __launch_bounds__(NV <= 4 ? kSmallBlock : 1024)
    rmsnorm_forward_kernel(const T* x, const T* delta, const T* __restrict__ w, float eps, T* sum,
                           T* __restrict__ y, float* __restrict__ rstd, int h) {
  __shared__ float slots[32];
  const int64_t row = static_cast<int64_t>(blockIdx.x) * h;
  Floats<W> v[NV];
  float squares = 0;
#pragma unroll
  for (int i = 0; i < NV; ++i) {
    const int c = (i * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)) * W;
    if (c < h) v[i] = load<W>(x + row + c);
  }
  if constexpr (kAdd) {
    Floats<W> d[NV];
#pragma unroll
    for (int i = 0; i < NV; ++i) {
      const int c = (i * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)) * W;
      if (c < h) d[i] = load<W>(delta + row + c);
    }
#pragma unroll
    for (int i = 0; i < NV; ++i) {
      const int c = (i * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)) * W;
      if (c < h) {
#pragma unroll
        for (int j = 0; j < W; ++j) v[i].v[j] = rounded<T>(v[i].v[j] + d[i].v[j]);
        store<W>(sum + row + c, v[i]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < NV; ++i) {
    const int c = (i * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)) * W;
    if (c < h) {
#pragma unroll
      for (int j = 0; j < W; ++j) squares += v[i].v[j] * v[i].v[j];
    }
  }
  squares = block_reduce(squares, slots, Sum{}, 0.0F);
  const float r = 1.0F / sqrtf(squares / static_cast<float>(h) + eps);
  if (threadIdx.x == 0) rstd[blockIdx.x] = r;
#pragma unroll
  for (int i = 0; i < NV; ++i) {
    const int c = (i * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)) * W;
    if (c < h) {
      const Floats<W> weight = load<W>(w + c);
#pragma unroll
      for (int j = 0; j < W; ++j) v[i].v[j] *= r * weight.v[j];
      store<W>(y + row + c, v[i]);
    }
  }
}

template <bool kAdd>
void forward(const Tensor& x, const Tensor* delta, const Tensor& w, float eps, const Tensor* sum,
             const Tensor& y, const Tensor& rstd, const Stream& s) {
  const int64_t rows = x.dim(0), h = x.dim(1);
  if (rows == 0) return;
  const Launch l(s);
  const bool vector =
      h % kVec == 0 && all_aligned16(x.data, w.data, y.data, delta ? delta->data : nullptr,
                                     sum ? sum->data : nullptr);
  const RowShape shape = row_shape(h, vector);
  dispatch(x.dtype, [&](auto* tag) {
    using T = Element<decltype(tag)>;
    with_row_shape(shape, [&](auto width, auto vecs) {
      rmsnorm_forward_kernel<T, decltype(width)::value, decltype(vecs)::value, kAdd>
          <<<static_cast<unsigned>(rows), static_cast<unsigned>(shape.threads), 0, l.stream>>>(
              x.ptr<T>(), delta ? delta->ptr<T>() : nullptr, w.ptr<T>(), eps,
              sum ? sum->ptr<T>() : nullptr, y.ptr<T>(), rstd.ptr<float>(), static_cast<int>(h));
    });
  });
  CUDA_LAUNCH_CHECK();
}

// W elements in registers as they came from memory: bf16 takes half the registers of fp32.
template <class T, int W>
struct Piece {
  static constexpr int kBytes = W * static_cast<int>(sizeof(T));
  uint32_t words[kBytes < 4 ? 1 : kBytes / 4];

  __device__ __forceinline__ void load(const T* p) {
    if constexpr (kBytes == 2) {
      words[0] = *reinterpret_cast<const uint16_t*>(p);
    } else {
      constexpr int kAccess = kBytes < 16 ? kBytes : 16;
      using A = typename Word<kAccess>::type;
#pragma unroll
      for (int i = 0; i < kBytes / kAccess; ++i) {
        const A w = reinterpret_cast<const A*>(p)[i];
        memcpy(words + i * kAccess / 4, &w, kAccess);
      }
    }
  }
  __device__ __forceinline__ float operator[](int j) const {
    if constexpr (sizeof(T) == 4) return __uint_as_float(words[j]);
    else return __uint_as_float(j % 2 == 0 ? words[j / 2] << 16 : words[j / 2] & 0xffff0000u);
  }
};

// A group's next row is fetched while it works on the one before, where the registers suffice for two.
template <class T, int W, int NV>
constexpr bool kFetchAhead = NV <= 4 && NV * W * sizeof(T) <= 64;
// Threads of a block, from the registers a thread needs.
template <class T, int W, int NV>
constexpr int kBackwardThreads = NV > 4 ? 1024 : NV * W * sizeof(T) <= 16 ? 768 : NV * W * sizeof(T) <= 32 ? 512 : 384;
// The row of weights stays in registers, or comes from the first-level cache.
template <class T, int W, int NV>
constexpr bool kKeepWeight = NV * W * sizeof(T) <= 32;
constexpr int kMaxGroups = 15;  // each has a barrier of its own; barrier 0 is the block's
constexpr int64_t kGroupSumBytes = 44 * 1024;

// Sum over a group's warps, with the group's own barrier. `slots`: as for block_reduce.
__device__ __forceinline__ float group_sum(float x, float* slots, int threads, int group) {
  x = warp_reduce(x, Sum{});
  const int warps = threads / kWarp;
  if (warps == 1) return x;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  if (lane == 0) slots[static_cast<int>(threadIdx.x) / kWarp - group * warps] = x;
  asm volatile("bar.sync %0, %1;" ::"r"(group + 1), "r"(threads) : "memory");
  return warp_reduce(lane < warps ? slots[lane] : 0.0F, Sum{});
}

// A block a multiprocessor, of several groups of threads: a group takes a row at a time and keeps its part of dw in registers.
// The groups' parts are added before they leave the block, so that few are left for the second launch.
template <class T, int W, int NV>
__global__ void __launch_bounds__(kBackwardThreads<T, W, NV>, 1)
    rmsnorm_backward_kernel(const T* dy, const T* __restrict__ x, const T* __restrict__ w,
                            const float* __restrict__ rstd, const T* residual, T* dx,
                            float* __restrict__ partial, int64_t rows, int h, int threads) {
  __shared__ float slots[kMaxGroups][2][32];
  extern __shared__ float4 group_sums[];  // [groups, h] floats, where there are several groups
  const int groups = static_cast<int>(blockDim.x) / threads, group = static_cast<int>(threadIdx.x) / threads;
  const int step = threads * W;
  const int first = (static_cast<int>(threadIdx.x) - group * threads) * W;
  struct Row {
    Piece<T, W> g[NV], x[NV], skip[NV];
    float rstd;
  };
  const auto fetch = [&](Row& to, int64_t row) {
    const int64_t base = row * h;
#pragma unroll
    for (int i = 0; i < NV; ++i) {
      const int c = first + i * step;
      if (c < h) {
        to.g[i].load(dy + base + c);
        to.x[i].load(x + base + c);
        if (residual != nullptr) to.skip[i].load(residual + base + c);
      }
    }
    to.rstd = rstd[row];
  };
  Floats<W> dw[NV];
  Piece<T, W> weight[NV];
#pragma unroll
  for (int i = 0; i < NV; ++i) {
    if (kKeepWeight<T, W, NV> && first + i * step < h) weight[i].load(w + first + i * step);
#pragma unroll
    for (int j = 0; j < W; ++j) dw[i].v[j] = 0;
  }
  const int64_t stride = static_cast<int64_t>(gridDim.x) * groups;
  int64_t row = static_cast<int64_t>(blockIdx.x) * groups + group;
  Row now, next;
  if (kFetchAhead<T, W, NV> && row < rows) fetch(now, row);
  for (int parity = 0; row < rows; row += stride, parity ^= 1) {
    if constexpr (kFetchAhead<T, W, NV>) {
      if (row + stride < rows) fetch(next, row + stride);
    } else {
      fetch(now, row);
    }
    const float r = now.rstd;
    float dot = 0;
#pragma unroll
    for (int i = 0; i < NV; ++i) {
      if (first + i * step < h) {
        if constexpr (!kKeepWeight<T, W, NV>) weight[i].load(w + first + i * step);
#pragma unroll
        for (int j = 0; j < W; ++j) {
          const float product = now.g[i][j] * (now.x[i][j] * r);
          dw[i].v[j] += product;
          dot += product * weight[i][j];
        }
      }
    }
    dot = group_sum(dot, slots[group][parity], threads, group) / static_cast<float>(h);
    const float factor = r * dot;
#pragma unroll
    for (int i = 0; i < NV; ++i) {
      const int c = first + i * step;
      if (c < h) {
        if constexpr (!kKeepWeight<T, W, NV>) weight[i].load(w + c);
        Floats<W> out;
#pragma unroll
        for (int j = 0; j < W; ++j) {
          out.v[j] = r * (now.g[i][j] * weight[i][j] - now.x[i][j] * factor);
          if (residual != nullptr) out.v[j] += now.skip[i][j];
        }
        store<W>(dx + row * h + c, out);
      }
    }
    if constexpr (kFetchAhead<T, W, NV>) now = next;
  }
  float* mine = groups == 1 ? partial + static_cast<int64_t>(blockIdx.x) * h
                            : reinterpret_cast<float*>(group_sums) + static_cast<int64_t>(group) * h;
#pragma unroll
  for (int i = 0; i < NV; ++i)
    if (first + i * step < h) store<W>(mine + first + i * step, dw[i]);
  if (groups == 1) return;
  __syncthreads();
  for (int c = static_cast<int>(threadIdx.x); c < h; c += static_cast<int>(blockDim.x)) {
    float sum = 0;
    for (int k = 0; k < groups; ++k) sum += reinterpret_cast<const float*>(group_sums)[k * h + c];
    partial[static_cast<int64_t>(blockIdx.x) * h + c] = sum;
  }
}

}  // namespace

void rmsnorm_forward(const Tensor& x, const Tensor& w, float eps, const Tensor& y,
                     const Tensor& rstd, const Stream& s) {
  forward<false>(x, nullptr, w, eps, nullptr, y, rstd, s);
}

void add_rmsnorm_forward(const Tensor& x, const Tensor& delta, const Tensor& w, float eps,
                         const Tensor& sum, const Tensor& y, const Tensor& rstd, const Stream& s) {
  forward<true>(x, &delta, w, eps, &sum, y, rstd, s);
}

void rmsnorm_backward(const Tensor& dy, const Tensor& x, const Tensor& w, const Tensor& rstd,
                      const Tensor& residual, const Tensor& dx, const Tensor& dw, const Stream& s) {
  const int64_t rows = x.dim(0), h = x.dim(1);
  if (rows == 0) return;
  const Launch l(s);
  const bool has_residual = !residual.empty();
  const bool vector = h % kVec == 0 && all_aligned16(dy.data, x.data, w.data, dx.data,
                                                     has_residual ? residual.data : nullptr);
  const RowShape shape = row_shape(h, vector);
  dispatch(x.dtype, [&](auto* tag) {
    using T = Element<decltype(tag)>;
    with_row_shape(shape, [&](auto width, auto vecs) {
      constexpr int kW = decltype(width)::value, kNv = decltype(vecs)::value;
      // The numbers of groups and blocks depend on the device and the shape alone, so the sums repeat.
      const int64_t multiprocessors = l.ctx.multiprocessors();
      const int64_t groups = std::max<int64_t>(
          1, std::min({int64_t{kBackwardThreads<T, kW, kNv> / shape.threads}, int64_t{kMaxGroups},
                       kGroupSumBytes / (h * int64_t{sizeof(float)}), ceil_div(rows, multiprocessors)}));
      const int64_t blocks = std::min(ceil_div(rows, groups), multiprocessors);
      const int64_t shared = groups > 1 ? groups * h * int64_t{sizeof(float)} : 0;
      auto* partial = static_cast<float*>(
          l.ctx.scratch(static_cast<size_t>(blocks * h) * sizeof(float), l.stream));
      rmsnorm_backward_kernel<T, kW, kNv>
          <<<static_cast<unsigned>(blocks), static_cast<unsigned>(groups * shape.threads), static_cast<size_t>(shared), l.stream>>>(
          dy.ptr<T>(), x.ptr<T>(), w.ptr<T>(), rstd.ptr<float>(),
          has_residual ? residual.ptr<T>() : nullptr, dx.ptr<T>(), partial, rows,
          static_cast<int>(h), shape.threads);
      CUDA_LAUNCH_CHECK();
      add_partial_sums(partial, blocks, h, dw, l.stream);
    });
  });
}

}  // namespace r1::kernels::cuda
