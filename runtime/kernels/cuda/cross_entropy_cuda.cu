// Cross-entropy over this rank's vocabulary part, on bf16 (or fp32) logits in place; nothing of
// size [C, V] in fp32.
//
// stats reads the logits once (2V bytes a row in bf16): online maximum and sum of exponentials, a
// thread its columns, then a fixed tree. backward reads and writes them once (4V). One block a row.
#include "runtime/kernels/cuda/common.cuh"

namespace r1::kernels::cuda {
namespace {

constexpr int kThreads = 512;
constexpr float kLog2e = 1.44269504088896340736F;

// Maximum (in log2 units) and sum of 2^(x - maximum) of the columns seen so far.
struct Running {
  float max = -INFINITY, sum = 0;
  template <int W>
  __device__ __forceinline__ void take(const Floats<W>& x) {
    float top = x.v[0];
#pragma unroll
    for (int j = 1; j < W; ++j) top = fmaxf(top, x.v[j]);
    top *= kLog2e;
    if (top > max) {
      sum *= exp2f(max - top);  // 0 at first: max is -inf
      max = top;
    }
    if (max == -INFINITY) return;  // only -inf so far: contributes nothing
#pragma unroll
    for (int j = 0; j < W; ++j) sum += exp2f(fmaf(x.v[j], kLog2e, -max));
  }
};

// Calls vec(column) for the 16-byte aligned middle of a row and one(column) for the ends.
template <class T, int W, class Vec, class One>
__device__ __forceinline__ void for_row(const T* row, int64_t n, Vec&& vec, One&& one) {
  const auto misaligned = static_cast<int64_t>(reinterpret_cast<uintptr_t>(row) % 16 / sizeof(T));
  int64_t head = misaligned == 0 ? 0 : 16 / static_cast<int64_t>(sizeof(T)) - misaligned;
  if (head > n) head = n;
  const int64_t vecs = (n - head) / W;
  if (threadIdx.x < head) one(threadIdx.x);
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < vecs; i += kThreads) vec(head + i * W);
  const int64_t tail = head + vecs * W + threadIdx.x;
  if (tail < n) one(tail);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    stats_kernel(const T* __restrict__ logits, const int* __restrict__ targets, int64_t vocab_begin,
                 float* __restrict__ stats, int64_t rows, int64_t v) {
  constexpr int kW = 16 / static_cast<int>(sizeof(T));
  __shared__ float maxima[32], sums[32];
  const T* row = logits + static_cast<int64_t>(blockIdx.x) * v;
  Running r;
  for_row<T, kW>(
      row, v, [&](int64_t c) { r.take(load<kW>(row + c)); },
      [&](int64_t c) { r.take(load<1>(row + c)); });
  const float top = block_reduce(r.max, maxima, Max{}, -INFINITY);
  const float part =
      r.max == -INFINITY ? r.sum : r.sum * exp2f(r.max - top);  // sum is 0 there, or NaN
  const float sum = block_reduce(part, sums, Sum{}, 0.0F);
  if (threadIdx.x == 0) {
    const int64_t c = targets[blockIdx.x] < 0 ? -1 : targets[blockIdx.x] - vocab_begin;
    stats[blockIdx.x] = top / kLog2e;
    stats[rows + blockIdx.x] = sum;
    stats[2 * rows + blockIdx.x] = c >= 0 && c < v ? to_float(row[c]) : 0.0F;
  }
}

__global__ void __launch_bounds__(256)
    combine_kernel(const float* __restrict__ all, const int* __restrict__ targets,
                   float* __restrict__ lse, float* __restrict__ loss, int parts, int64_t rows) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (c >= rows) return;
  float top = -INFINITY;
  for (int p = 0; p < parts; ++p) top = fmaxf(top, all[p * 3 * rows + c]);
  double sum = 0, target = 0;
  for (int p = 0; p < parts; ++p) {
    const float* s = all + p * 3 * rows + c;
    if (s[rows] != 0.0F)
      sum +=
          static_cast<double>(s[rows]) * exp(static_cast<double>(s[0]) - static_cast<double>(top));
    target += static_cast<double>(s[2 * rows]);
  }
  const double value = static_cast<double>(top) + log(sum);
  lse[c] = static_cast<float>(value);
  loss[c] = targets[c] < 0 ? 0.0F : static_cast<float>(value - target);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(T* __restrict__ logits, const int* __restrict__ targets, int64_t vocab_begin,
                    const float* __restrict__ lse, float scale, int64_t v) {
  constexpr int kW = 16 / static_cast<int>(sizeof(T));
  T* row = logits + static_cast<int64_t>(blockIdx.x) * v;
  const int target = targets[blockIdx.x];
  if (target < 0) {
    Floats<kW> zero;
#pragma unroll
    for (int j = 0; j < kW; ++j) zero.v[j] = 0;
    for_row<T, kW>(
        row, v, [&](int64_t c) { store<kW>(row + c, zero); },
        [&](int64_t c) { row[c] = from_float<T>(0.0F); });
    return;
  }
  const float log_sum = lse[blockIdx.x], shift = log_sum * kLog2e;
  const int64_t hit = target - vocab_begin;
  // expm1 for the target: where p is near 1, p - 1 would lose its digits.
  const auto gradient = [&](float x, bool is_target) {
    return (is_target ? expm1f(x - log_sum) : exp2f(fmaf(x, kLog2e, -shift))) * scale;
  };
  for_row<T, kW>(
      row, v,
      [&](int64_t c) {
        Floats<kW> x = load<kW>(row + c);
#pragma unroll
        for (int j = 0; j < kW; ++j) x.v[j] = gradient(x.v[j], c + j == hit);
        store<kW>(row + c, x);
      },
      [&](int64_t c) { row[c] = from_float<T>(gradient(to_float(row[c]), c == hit)); });
}

}  // namespace

void cross_entropy_stats(const Tensor& logits, const Tensor& targets, int64_t vocab_begin,
                         const Tensor& stats, const Stream& s) {
  const int64_t rows = logits.dim(0);
  if (rows == 0) return;
  const Launch l(s);
  dispatch(logits.dtype, [&](auto* tag) {
    using T = Element<decltype(tag)>;
    stats_kernel<T><<<static_cast<unsigned>(rows), kThreads, 0, l.stream>>>(
        logits.ptr<T>(), targets.ptr<int>(), vocab_begin, stats.ptr<float>(), rows, logits.dim(1));
  });
  CUDA_LAUNCH_CHECK();
}

void cross_entropy_combine(const Tensor& all_stats, const Tensor& targets, const Tensor& lse,
                           const Tensor& loss, const Stream& s) {
  const int64_t rows = targets.dim(0);
  if (rows == 0) return;
  const Launch l(s);
  combine_kernel<<<static_cast<unsigned>(ceil_div(rows, 256)), 256, 0, l.stream>>>(
      all_stats.ptr<float>(), targets.ptr<int>(), lse.ptr<float>(), loss.ptr<float>(),
      static_cast<int>(all_stats.dim(0)), rows);
  CUDA_LAUNCH_CHECK();
}

void cross_entropy_backward(const Tensor& logits, const Tensor& targets, int64_t vocab_begin,
                            const Tensor& lse, float scale, const Stream& s) {
  const int64_t rows = logits.dim(0);
  if (rows == 0 || logits.dim(1) == 0) return;
  const Launch l(s);
  dispatch(logits.dtype, [&](auto* tag) {
    using T = Element<decltype(tag)>;
    backward_kernel<T><<<static_cast<unsigned>(rows), kThreads, 0, l.stream>>>(
        logits.ptr<T>(), targets.ptr<int>(), vocab_begin, lse.ptr<float>(), scale, logits.dim(1));
  });
  CUDA_LAUNCH_CHECK();
}

}  // namespace r1::kernels::cuda
