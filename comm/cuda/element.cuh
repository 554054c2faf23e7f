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

/// 16 or 8 bytes of elements.
template <class S, int kBytes = 16>
struct alignas(kBytes) Pack {
  static_assert(kBytes == 16 || kBytes == 8);
  using Word = std::conditional_t<kBytes == 16, uint4, uint2>;  ///< one access
  static constexpr int kElems = kBytes / static_cast<int>(sizeof(S));
  S v[kElems];
};

/// Elements [i, i + kElems) of p, those from `n` on zero; one access where p is_aligned.
template <class S, int kBytes = 16>
__device__ __forceinline__ Pack<S, kBytes> load_pack(const S* p, int64_t i, int64_t n,
                                                     bool aligned) {
  using P = Pack<S, kBytes>;
  P out;
  if (aligned && i + P::kElems <= n) {
    const auto w = *reinterpret_cast<const typename P::Word*>(p + i);
    memcpy(&out, &w, kBytes);
  } else {
    memset(&out, 0, kBytes);
#pragma unroll
    for (int k = 0; k < P::kElems; ++k)
      if (i + k < n) out.v[k] = p[i + k];
  }
  return out;
}
template <class S, int kBytes>
__device__ __forceinline__ void store_pack(S* p, int64_t i, int64_t n, bool aligned,
                                           const Pack<S, kBytes>& x) {
  using P = Pack<S, kBytes>;
  if (aligned && i + P::kElems <= n) {
    typename P::Word w;
    memcpy(&w, &x, kBytes);
    *reinterpret_cast<typename P::Word*>(p + i) = w;
  } else {
#pragma unroll
    for (int k = 0; k < P::kElems; ++k)
      if (i + k < n) p[i + k] = x.v[k];
  }
}
/// For packs of so many bytes.
__device__ __forceinline__ bool is_aligned(const void* p, int bytes = 16) {
  return reinterpret_cast<uintptr_t>(p) % bytes == 0;
}

}  // namespace r1::comm::cuda
