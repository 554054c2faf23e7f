// Elementwise helpers and column sums. Each element is read and written once.
#include <cuda_fp16.h>

#include "runtime/kernels/cuda/common.cuh"
#include "runtime/kernels/cuda/elementwise.h"

namespace r1::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kVec = 8;

__device__ __forceinline__ double to_double(double x) { return x; }
__device__ __forceinline__ double to_double(float x) { return x; }
__device__ __forceinline__ double to_double(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ double to_double(__half x) { return __half2float(x); }
__device__ __forceinline__ void put(double* p, double x) { *p = x; }
__device__ __forceinline__ void put(float* p, double x) { *p = static_cast<float>(x); }
// Through fp32 would round twice where x has more digits; the direct conversion rounds once.
__device__ __forceinline__ void put(bf16* p, double x) { *p = __double2bfloat16(x); }
__device__ __forceinline__ void put(__half* p, double x) { *p = __double2half(x); }

// One thread a vector of kVec, the last one the rest. f(index, count) with count == kVec where
// full.
template <class Body>
__device__ __forceinline__ void for_vectors(int64_t n, Body&& body) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kVec;
  if (i < n) body(i, n - i < kVec ? static_cast<int>(n - i) : kVec);
}

template <class D, class S, bool kVector>
__global__ void __launch_bounds__(kThreads)
    add_into_kernel(D* dst, const S* __restrict__ src, int64_t n) {
  for_vectors(n, [&](int64_t i, int count) {
    if (kVector && count == kVec) {
      Floats<kVec> d = load<kVec>(dst + i);
      const Floats<kVec> x = load<kVec>(src + i);
#pragma unroll
      for (int j = 0; j < kVec; ++j) d.v[j] += x.v[j];
      store<kVec>(dst + i, d);
    } else {
      for (int j = 0; j < count; ++j)
        dst[i + j] = from_float<D>(to_float(dst[i + j]) + to_float(src[i + j]));
    }
  });
}

template <class D, class S, bool kVector>
__global__ void __launch_bounds__(kThreads)
    cast_kernel(D* __restrict__ dst, const S* __restrict__ src, int64_t n) {
  for_vectors(n, [&](int64_t i, int count) {
    if (kVector && count == kVec) {
      store<kVec>(dst + i, load<kVec>(src + i));
    } else {
      for (int j = 0; j < count; ++j) dst[i + j] = from_float<D>(to_float(src[i + j]));
    }
  });
}

// fp16 and fp64: rare, one element a thread.
template <class D, class S, bool kAdd>
__global__ void __launch_bounds__(kThreads) convert_kernel(D* dst, const S* src, int64_t n) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < n) put(dst + i, to_double(src[i]) + (kAdd ? to_double(dst[i]) : 0.0));
}

// out may be a or b: no __restrict__.
template <class T, bool kVector>
__global__ void __launch_bounds__(kThreads) add_kernel(const T* a, const T* b, T* out, int64_t n) {
  for_vectors(n, [&](int64_t i, int count) {
    if (kVector && count == kVec) {
      Floats<kVec> x = load<kVec>(a + i);
      const Floats<kVec> y = load<kVec>(b + i);
#pragma unroll
      for (int j = 0; j < kVec; ++j) x.v[j] += y.v[j];
      store<kVec>(out + i, x);
    } else {
      for (int j = 0; j < count; ++j)
        out[i + j] = from_float<T>(to_float(a[i + j]) + to_float(b[i + j]));
    }
  });
}

template <class T, bool kVector>
__global__ void __launch_bounds__(kThreads) scale_kernel(T* x, float factor, int64_t n) {
  for_vectors(n, [&](int64_t i, int count) {
    if (kVector && count == kVec) {
      Floats<kVec> v = load<kVec>(x + i);
#pragma unroll
      for (int j = 0; j < kVec; ++j) v.v[j] *= factor;
      store<kVec>(x + i, v);
    } else {
      for (int j = 0; j < count; ++j) x[i + j] = from_float<T>(to_float(x[i + j]) * factor);
    }
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    add_bias_kernel(T* y, const T* __restrict__ bias, int64_t total, int64_t cols) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < total) y[i] = from_float<T>(to_float(y[i]) + to_float(bias[i % cols]));
}

// A block sums kWarp columns: its kWarp rows of threads take every kWarp-th part, then a tree over
// the rows.
template <class G>
__global__ void __launch_bounds__(kWarp* kWarp)
    partial_sums_kernel(const float* __restrict__ partial, int64_t parts, int64_t ld, int64_t cols,
                        G* __restrict__ out) {
  __shared__ float tile[kWarp][kWarp + 1];
  const int x = static_cast<int>(threadIdx.x), y = static_cast<int>(threadIdx.y);
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kWarp + x;
  float sum = 0;
  if (c < cols) {
#pragma unroll 8
    for (int64_t p = y; p < parts; p += kWarp) sum += partial[p * ld + c];
  }
  tile[y][x] = sum;
  __syncthreads();
  sum = warp_reduce(tile[x][y], Sum{});  // warp y holds column y of the block
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kWarp + y;
  if (x == 0 && column < cols) out[column] = from_float<G>(to_float(out[column]) + sum);
}

// Column sums of dy [rows, cols]: a block takes a slab of rows for 32 * W columns; 8 row lanes,
// added in a fixed order.
constexpr int kSumLanes = 8;
template <class T, int W>
__global__ void __launch_bounds__(kWarp* kSumLanes)
    column_sums_kernel(const T* __restrict__ dy, int64_t rows, int64_t cols, int64_t slab,
                       float* __restrict__ partial) {
  __shared__ float tile[kSumLanes][kWarp * W + 1];
  const int x = static_cast<int>(threadIdx.x), y = static_cast<int>(threadIdx.y);
  const int64_t c = (static_cast<int64_t>(blockIdx.x) * kWarp + x) * W;
  const int64_t begin = static_cast<int64_t>(blockIdx.y) * slab,
                end = begin + slab < rows ? begin + slab : rows;
  float sum[W];
#pragma unroll
  for (int j = 0; j < W; ++j) sum[j] = 0;
  if (c < cols) {
#pragma unroll 4
    for (int64_t r = begin + y; r < end; r += kSumLanes) {
      const Floats<W> v = load<W>(dy + r * cols + c);
#pragma unroll
      for (int j = 0; j < W; ++j) sum[j] += v.v[j];
    }
  }
#pragma unroll
  for (int j = 0; j < W; ++j) tile[y][x * W + j] = sum[j];
  __syncthreads();
  for (int i = y * kWarp + x; i < kWarp * W; i += kWarp * kSumLanes) {
    const int64_t column = static_cast<int64_t>(blockIdx.x) * kWarp * W + i;
    if (column >= cols) continue;
    float total = 0;
#pragma unroll
    for (int k = 0; k < kSumLanes; ++k) total += tile[k][i];
    partial[static_cast<int64_t>(blockIdx.y) * cols + column] = total;
  }
}

__global__ void clip_factor_kernel(const double* __restrict__ sum_squares, const double* __restrict__ loss, float max_norm,
                                   float* __restrict__ factor) {
  const double norm = sqrt(sum_squares[0]);
  float f = 1.0F;
  if (!isfinite(norm) || !isfinite(loss[0])) f = 0.0F;
  else if (max_norm > 0) f = static_cast<float>(fmin(1.0, static_cast<double>(max_norm) / (norm + 1e-6)));
  factor[0] = f;
}

unsigned vector_blocks(int64_t n) { return static_cast<unsigned>(ceil_div(n, int64_t{kThreads} * kVec)); }

template <class F>
void dispatch_all(DType t, F&& f) {
  switch (t) {
    case DType::kF32:
      f(static_cast<float*>(nullptr));
      return;
    case DType::kBF16:
      f(static_cast<bf16*>(nullptr));
      return;
    case DType::kF16:
      f(static_cast<__half*>(nullptr));
      return;
    case DType::kF64:
      f(static_cast<double*>(nullptr));
      return;
    default:
      throw InternalError("no CUDA kernel for {}", dtype_name(t));
  }
}

bool is_fast(DType t) { return t == DType::kF32 || t == DType::kBF16; }

template <bool kAdd>
void convert(const Tensor& src, const Tensor& dst, const Stream& s) {
  const int64_t n = dst.numel();
  if (n == 0) return;
  const Launch l(s);
  if (is_fast(src.dtype) && is_fast(dst.dtype)) {
    const bool vector = all_aligned16(src.data, dst.data);
    dispatch(dst.dtype, [&](auto* d) {
      dispatch(src.dtype, [&](auto* x) {
        using D = Element<decltype(d)>;
        using S = Element<decltype(x)>;
        auto go = [&](auto v) {
          if constexpr (kAdd)
            add_into_kernel<D, S, decltype(v)::value>
                <<<vector_blocks(n), kThreads, 0, l.stream>>>(dst.ptr<D>(), src.ptr<S>(), n);
          else
            cast_kernel<D, S, decltype(v)::value>
                <<<vector_blocks(n), kThreads, 0, l.stream>>>(dst.ptr<D>(), src.ptr<S>(), n);
        };
        if (vector)
          go(std::true_type{});
        else
          go(std::false_type{});
      });
    });
  } else {
    dispatch_all(dst.dtype, [&](auto* d) {
      dispatch_all(src.dtype, [&](auto* x) {
        using D = Element<decltype(d)>;
        using S = Element<decltype(x)>;
        convert_kernel<D, S, kAdd>
            <<<static_cast<unsigned>(ceil_div(n, kThreads)), kThreads, 0, l.stream>>>(
                dst.ptr<D>(), src.ptr<S>(), n);
      });
    });
  }
  CUDA_LAUNCH_CHECK();
}

}  // namespace

void add_bias_rows(const Tensor& y, const Tensor& bias, cudaStream_t stream) {
  const int64_t n = y.numel();
  if (n == 0) return;
  dispatch(y.dtype, [&](auto* tag) {
    using T = Element<decltype(tag)>;
    add_bias_kernel<T><<<static_cast<unsigned>(ceil_div(n, kThreads)), kThreads, 0, stream>>>(
        y.ptr<T>(), bias.ptr<T>(), n, y.dim(1));
  });
  CUDA_LAUNCH_CHECK();
}

void add_partial_sums(const float* partial, int64_t parts, int64_t ld, const Tensor& out,
                      cudaStream_t stream) {
  const int64_t cols = out.numel();
  if (cols == 0 || parts == 0) return;
  dispatch(out.dtype, [&](auto* tag) {
    using G = Element<decltype(tag)>;
    partial_sums_kernel<G>
        <<<static_cast<unsigned>(ceil_div(cols, kWarp)), dim3(kWarp, kWarp), 0, stream>>>(
            partial, parts, ld, cols, out.ptr<G>());
  });
  CUDA_LAUNCH_CHECK();
}

void bias_backward(const Tensor& dy, const Tensor& db, const Stream& s) {
  const int64_t rows = dy.dim(0), cols = dy.dim(1);
  if (rows == 0 || cols == 0) return;
  const Launch l(s);
  const bool vector = cols % kVec == 0 && aligned16(dy.data);
  const int64_t tiles = ceil_div(cols, int64_t{kWarp} * (vector ? kVec : 1));
  // About eight blocks a multiprocessor, each with at least 64 rows.
  const int64_t wanted = std::max<int64_t>(1, int64_t{l.ctx.multiprocessors()} * 8 / tiles);
  const int64_t slab = std::max<int64_t>(64, ceil_div(rows, std::min<int64_t>(wanted, 65535)));
  const int64_t slabs = ceil_div(rows, slab);
  auto* partial = static_cast<float*>(
      l.ctx.scratch(static_cast<size_t>(slabs * cols) * sizeof(float), l.stream));
  dispatch(dy.dtype, [&](auto* tag) {
    using T = Element<decltype(tag)>;
    const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(slabs)),
        block(kWarp, kSumLanes);
    if (vector)
      column_sums_kernel<T, kVec>
          <<<grid, block, 0, l.stream>>>(dy.ptr<T>(), rows, cols, slab, partial);
    else
      column_sums_kernel<T, 1>
          <<<grid, block, 0, l.stream>>>(dy.ptr<T>(), rows, cols, slab, partial);
  });
  CUDA_LAUNCH_CHECK();
  add_partial_sums(partial, slabs, cols, db, l.stream);
}

void clip_factor(const Tensor& sum_squares, const Tensor& loss, float max_norm, const Tensor& factor, const Stream& s) {
  const Launch l(s);
  clip_factor_kernel<<<1, 1, 0, l.stream>>>(sum_squares.ptr<double>(), loss.ptr<double>(), max_norm, factor.ptr<float>());
  CUDA_LAUNCH_CHECK();
}

void add_into(const Tensor& dst, const Tensor& src, const Stream& s) { convert<true>(src, dst, s); }
void cast(const Tensor& src, const Tensor& dst, const Stream& s) { convert<false>(src, dst, s); }

void add(const Tensor& a, const Tensor& b, const Tensor& out, const Stream& s) {
  const int64_t n = out.numel();
  if (n == 0) return;
  const Launch l(s);
  dispatch(out.dtype, [&](auto* tag) {
    using T = Element<decltype(tag)>;
    if (all_aligned16(a.data, b.data, out.data))
      add_kernel<T, true>
          <<<vector_blocks(n), kThreads, 0, l.stream>>>(a.ptr<T>(), b.ptr<T>(), out.ptr<T>(), n);
    else
      add_kernel<T, false>
          <<<vector_blocks(n), kThreads, 0, l.stream>>>(a.ptr<T>(), b.ptr<T>(), out.ptr<T>(), n);
  });
  CUDA_LAUNCH_CHECK();
}

void scale(const Tensor& x, float factor, const Stream& s) {
  const int64_t n = x.numel();
  if (n == 0) return;
  const Launch l(s);
  dispatch(x.dtype, [&](auto* tag) {
    using T = Element<decltype(tag)>;
    if (aligned16(x.data))
      scale_kernel<T, true><<<vector_blocks(n), kThreads, 0, l.stream>>>(x.ptr<T>(), factor, n);
    else
      scale_kernel<T, false><<<vector_blocks(n), kThreads, 0, l.stream>>>(x.ptr<T>(), factor, n);
  });
  CUDA_LAUNCH_CHECK();
}

void copy_columns(const Tensor& src, int64_t begin, const Tensor& dst, const Stream& s) {
  if (dst.numel() == 0) return;
  const Launch l(s);
  const auto element = static_cast<size_t>(dtype_bytes(dst.dtype));
  CUDA_CHECK(cudaMemcpy2DAsync(
      dst.data, static_cast<size_t>(dst.dim(1)) * element,
      static_cast<const char*>(src.data) + static_cast<size_t>(begin) * element,
      static_cast<size_t>(src.dim(1)) * element, static_cast<size_t>(dst.dim(1)) * element,
      static_cast<size_t>(dst.dim(0)), cudaMemcpyDeviceToDevice, l.stream));
}

}  // namespace r1::kernels::cuda
