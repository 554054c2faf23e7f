// Helpers of the kernels: 16-byte accesses, conversions through fp32, reductions over a warp and a
// block, dtype dispatch.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "runtime/core/error.h"
#include "runtime/device/cuda/check.h"
#include "runtime/device/cuda/context.h"
#include "runtime/kernels/cuda/cuda_kernels.h"

namespace r1::kernels::cuda {

using r1::cuda::Launch;
using bf16 = __nv_bfloat16;

inline constexpr int kWarp = 32;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }
template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float x) {
  return __float2bfloat16_rn(x);
}

/// N floats in registers; loaded from and stored to T with accesses of up to 16 bytes (p aligned to
/// min(16, N * sizeof(T))).
template <int N>
struct Floats {
  float v[N];
};

template <int Bytes>
struct Word;
template <>
struct Word<2> {
  using type = uint16_t;
};
template <>
struct Word<4> {
  using type = uint32_t;
};
template <>
struct Word<8> {
  using type = uint2;
};
template <>
struct Word<16> {
  using type = uint4;
};

template <int N, class T>
__device__ __forceinline__ Floats<N> load(const T* p) {
  constexpr int kBytes = N * static_cast<int>(sizeof(T));
  constexpr int kAccess = kBytes < 16 ? kBytes : 16;
  constexpr int kPer = kAccess / static_cast<int>(sizeof(T));
  using W = typename Word<kAccess>::type;
  Floats<N> out;
#pragma unroll
  for (int i = 0; i < kBytes / kAccess; ++i) {
    const W w = reinterpret_cast<const W*>(p)[i];
    T parts[kPer];
    memcpy(parts, &w, kAccess);
#pragma unroll
    for (int j = 0; j < kPer; ++j) out.v[i * kPer + j] = to_float(parts[j]);
  }
  return out;
}

template <int N, class T>
__device__ __forceinline__ void store(T* p, const Floats<N>& x) {
  constexpr int kBytes = N * static_cast<int>(sizeof(T));
  constexpr int kAccess = kBytes < 16 ? kBytes : 16;
  constexpr int kPer = kAccess / static_cast<int>(sizeof(T));
  using W = typename Word<kAccess>::type;
#pragma unroll
  for (int i = 0; i < kBytes / kAccess; ++i) {
    T parts[kPer];
#pragma unroll
    for (int j = 0; j < kPer; ++j) parts[j] = from_float<T>(x.v[i * kPer + j]);
    W w;
    memcpy(&w, parts, kAccess);
    reinterpret_cast<W*>(p)[i] = w;
  }
}

/// What a value becomes when it is stored as T and read again.
template <class T>
__device__ __forceinline__ float rounded(float x) {
  return to_float(from_float<T>(x));
}

template <class V, class Op>
__device__ __forceinline__ V warp_reduce(V x, Op op) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
    x = op(x, __shfl_xor_sync(0xffffffffu, x, offset));
  return x;
}
struct Sum {
  template <class V>
  __device__ V operator()(V a, V b) const {
    return a + b;
  }
};
struct Max {
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

/// Reduction over a block of whole warps (at most 32), result in every thread. `slots`: 32 values
/// of shared memory that no thread still reads; alternate between two arrays to need one barrier a
/// call.
template <class V, class Op>
__device__ __forceinline__ V block_reduce(V x, V* slots, Op op, V identity) {
  x = warp_reduce(x, op);
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  if (warps == 1) return x;
  if (threadIdx.x % kWarp == 0) slots[threadIdx.x / kWarp] = x;
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  return warp_reduce(lane < warps ? slots[lane] : identity, op);
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline bool aligned16(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }
template <class... P>
bool all_aligned16(const P*... p) {
  return (aligned16(p) && ...);
}

/// Calls f with a null pointer of the element type: dispatch(t.dtype, [&](auto* tag) { using T =
/// ...; }).
template <class F>
void dispatch(DType t, F&& f) {
  switch (t) {
    case DType::kF32:
      f(static_cast<float*>(nullptr));
      return;
    case DType::kBF16:
      f(static_cast<bf16*>(nullptr));
      return;
    default:
      throw InternalError("no CUDA kernel for {}", dtype_name(t));
  }
}
template <class P>
using Element = std::remove_pointer_t<P>;

}  // namespace r1::kernels::cuda
