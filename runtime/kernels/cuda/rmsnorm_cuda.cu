// RMSNorm forward (with and without the residual add) and backward.
//
// y = x * rstd * w, rstd = 1/sqrt(mean(x^2) + eps); sums in fp32.
// Forward: one block a row, the row in registers: 2H elements moved (4H with the add).
// Backward: dx = rstd * (g - xhat * mean(g xhat)) + residual with g = dy * w, xhat = x * rstd; dw =
// sum over rows of dy * xhat. Persistent blocks stride over rows and keep their dw part in
// registers; the parts are added in block order, so the result does not depend on timing. 3H
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

template <class T, int W, int NV>
__global__ void __launch_bounds__(NV <= 4 ? kSmallBlock : 1024)
    rmsnorm_backward_kernel(const T* dy, const T* __restrict__ x, const T* __restrict__ w,
                            const float* __restrict__ rstd, const T* residual, T* dx,
                            float* __restrict__ partial, int64_t rows, int h) {
  __shared__ float slots[2][32];
  const int step = static_cast<int>(blockDim.x) * W;
  const int first = static_cast<int>(threadIdx.x) * W;
  Floats<W> dw[NV];
#pragma unroll
  for (int i = 0; i < NV; ++i) {
#pragma unroll
    for (int j = 0; j < W; ++j) dw[i].v[j] = 0;
  }
  int parity = 0;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x, parity ^= 1) {
    const int64_t base = row * h;
    const float r = rstd[row];
    Floats<W> g[NV], xh[NV], skip[NV];
#pragma unroll
    for (int i = 0; i < NV; ++i) {
      const int c = first + i * step;
      if (c < h) {
        g[i] = load<W>(dy + base + c);
        xh[i] = load<W>(x + base + c);
        if (residual != nullptr) skip[i] = load<W>(residual + base + c);
      }
    }
    float dot = 0;
#pragma unroll
    for (int i = 0; i < NV; ++i) {
      if (first + i * step < h) {
        const Floats<W> weight = load<W>(w + first + i * step);  // in L1 after the first row
#pragma unroll
        for (int j = 0; j < W; ++j) {
          xh[i].v[j] *= r;
          dw[i].v[j] += g[i].v[j] * xh[i].v[j];
          g[i].v[j] *= weight.v[j];
          dot += g[i].v[j] * xh[i].v[j];
        }
      }
    }
    dot = block_reduce(dot, slots[parity], Sum{}, 0.0F) / static_cast<float>(h);
#pragma unroll
    for (int i = 0; i < NV; ++i) {
      const int c = first + i * step;
      if (c < h) {
        Floats<W> out;
#pragma unroll
        for (int j = 0; j < W; ++j) {
          out.v[j] = r * (g[i].v[j] - xh[i].v[j] * dot);
          if (residual != nullptr) out.v[j] += skip[i].v[j];
        }
        store<W>(dx + base + c, out);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < NV; ++i) {
    const int c = first + i * step;
    if (c < h) store<W>(partial + static_cast<int64_t>(blockIdx.x) * h + c, dw[i]);
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
      auto* kernel = rmsnorm_backward_kernel<T, decltype(width)::value, decltype(vecs)::value>;
      // One wave of persistent blocks: the number depends on the device alone, so the sums repeat.
      int resident = 0;
      CUDA_CHECK(
          cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, shape.threads, 0));
      const int64_t blocks =
          std::min<int64_t>(rows, int64_t{l.ctx.multiprocessors()} * std::max(1, resident));
      auto* partial = static_cast<float*>(
          l.ctx.scratch(static_cast<size_t>(blocks * h) * sizeof(float), l.stream));
      kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(shape.threads), 0, l.stream>>>(
          dy.ptr<T>(), x.ptr<T>(), w.ptr<T>(), rstd.ptr<float>(),
          has_residual ? residual.ptr<T>() : nullptr, dx.ptr<T>(), partial, rows,
          static_cast<int>(h));
      CUDA_LAUNCH_CHECK();
      add_partial_sums(partial, blocks, h, dw, l.stream);
    });
  });
}

}  // namespace r1::kernels::cuda
