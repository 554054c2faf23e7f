// Element types of reductions on the GPU: how they are stored, accumulated and compared
// (comm/reduce.cpp says the same for the CPU; a result must not depend on where it was formed).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "comm/communicator.h"

namespace r1::comm::cuda {

struct F32 {
  using Stored = float;
  using Acc = float;
  static __device__ __forceinline__ Acc load(Stored v) { return v; }
  static __device__ __forceinline__ Stored store(Acc v) { return v; }
};
struct F64 {
  using Stored = double;
  using Acc = double;
  static __device__ __forceinline__ Acc load(Stored v) { return v; }
  static __device__ __forceinline__ Stored store(Acc v) { return v; }
};
struct BF16 {
  using Stored = __nv_bfloat16;
  using Acc = float;
  static __device__ __forceinline__ Acc load(Stored v) { return __bfloat162float(v); }
  static __device__ __forceinline__ Stored store(Acc v) { return __float2bfloat16_rn(v); }
};
struct F16 {
  using Stored = __half;
  using Acc = float;
  static __device__ __forceinline__ Acc load(Stored v) { return __half2float(v); }
  static __device__ __forceinline__ Stored store(Acc v) { return __float2half_rn(v); }
};
// Unsigned sums wrap; maxima compare signed.
struct I32 {
  using Stored = int32_t;
  using Acc = uint32_t;
  static __device__ __forceinline__ Acc load(Stored v) { return static_cast<Acc>(v); }
  static __device__ __forceinline__ Stored store(Acc v) { return static_cast<Stored>(v); }
};
struct I64 {
  using Stored = int64_t;
  using Acc = uint64_t;
  static __device__ __forceinline__ Acc load(Stored v) { return static_cast<Acc>(v); }
  static __device__ __forceinline__ Stored store(Acc v) { return static_cast<Stored>(v); }
};

template <class T>
__device__ __forceinline__ typename T::Acc combine(ReduceOp op, typename T::Acc a,
                                                   typename T::Acc b) {
  if (op == ReduceOp::kSum) return a + b;
  if constexpr (std::is_floating_point_v<typename T::Acc>)
    return (a > b || a != a) ? a : b;
  else
    return T::store(a) > T::store(b) ? a : b;
}

/// Calls f with the element type of `dtype`.
template <class F>
void with_element(DType dtype, F f) {
  switch (dtype) {
    case DType::kF32:
      return f(F32{});
    case DType::kF64:
      return f(F64{});
    case DType::kBF16:
      return f(BF16{});
    case DType::kF16:
      return f(F16{});
    case DType::kI32:
      return f(I32{});
    case DType::kI64:
      return f(I64{});
    case DType::kU8:
      break;
  }
  R1_CHECK(false, "no reduction of {} is defined", dtype_name(dtype));
}

/// 16 bytes of elements.
template <class S>
struct alignas(16) Pack {
  static constexpr int kElems = 16 / sizeof(S);
  S v[kElems];
};

/// Elements [i, i + kElems) of p, those from `n` on zero; one access where p is 16-byte aligned.
template <class S>
__device__ __forceinline__ Pack<S> load_pack(const S* p, int64_t i, int64_t n, bool aligned) {
  Pack<S> out;
  if (aligned && i + Pack<S>::kElems <= n) {
    const uint4 w = *reinterpret_cast<const uint4*>(p + i);
    memcpy(&out, &w, 16);
  } else {
    memset(&out, 0, 16);
#pragma unroll
    for (int k = 0; k < Pack<S>::kElems; ++k)
      if (i + k < n) out.v[k] = p[i + k];
  }
  return out;
}
template <class S>
__device__ __forceinline__ void store_pack(S* p, int64_t i, int64_t n, bool aligned,
                                           const Pack<S>& x) {
  if (aligned && i + Pack<S>::kElems <= n) {
    uint4 w;
    memcpy(&w, &x, 16);
    *reinterpret_cast<uint4*>(p + i) = w;
  } else {
#pragma unroll
    for (int k = 0; k < Pack<S>::kElems; ++k)
      if (i + k < n) p[i + k] = x.v[k];
  }
}
__device__ __forceinline__ bool is_aligned(const void* p) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

}  // namespace r1::comm::cuda
