// The largest logit of each row and the first id that has it. One block a row; bytes: the logits once. fp32
// comparisons, the smaller id on ties, so the result does not depend on the order of the threads.
#include "runtime/kernels/cuda/common.cuh"

namespace r1::kernels::cuda {
namespace {

constexpr int kThreads = 512;

struct Best {
  float value;
  int index;
};

/// NaN beats everything, then the larger value, then the smaller index.
__device__ Best better(Best a, Best b) {
  const bool a_nan = isnan(a.value), b_nan = isnan(b.value);
  if (a_nan != b_nan) return a_nan ? a : b;
  if (!a_nan && a.value != b.value) return a.value > b.value ? a : b;
  return a.index <= b.index ? a : b;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    argmax_kernel(const T* __restrict__ logits, int64_t vocab, int64_t vocab_begin, float* __restrict__ value,
                  float* __restrict__ id) {
  __shared__ Best warps[kThreads / kWarp];
  const T* row = logits + static_cast<int64_t>(blockIdx.x) * vocab;
  Best best{-INFINITY, 0x7fffffff};
  for (int64_t i = threadIdx.x; i < vocab; i += kThreads)
    best = better(best, Best{to_float(row[i]), static_cast<int>(i)});
  const auto across = [](Best b) {
    for (int offset = kWarp / 2; offset > 0; offset /= 2)
      b = better(b,
                 Best{__shfl_down_sync(0xffffffffu, b.value, offset), __shfl_down_sync(0xffffffffu, b.index, offset)});
    return b;
  };
  best = across(best);
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  if (lane == 0) warps[warp] = best;
  __syncthreads();
  if (warp != 0) return;
  best = across(lane < kThreads / kWarp ? warps[lane] : Best{-INFINITY, 0x7fffffff});
  if (lane != 0) return;
  value[blockIdx.x] = best.value;
  id[blockIdx.x] = static_cast<float>(vocab_begin + (best.index == 0x7fffffff ? 0 : best.index));
}

}  // namespace

void argmax(const Tensor& logits, int64_t vocab_begin, const Tensor& best, const Stream& s) {
  const int64_t rows = logits.dim(0);
  if (rows == 0) return;
  const Launch l(s);
  dispatch(logits.dtype, [&](auto* tag) {
    using T = Element<decltype(tag)>;
    argmax_kernel<T><<<static_cast<unsigned>(rows), kThreads, 0, l.stream>>>(
        logits.ptr<T>(), logits.dim(1), vocab_begin, best.ptr<float>(), best.ptr<float>() + rows);
  });
  CUDA_LAUNCH_CHECK();
}

}  // namespace r1::kernels::cuda
