// Eight fp32 lanes for the CPU kernels, on the compiler's vector types. Loops over them keep a
// fixed order of summation whatever the compiler, and need no -ffast-math. Included by *_cpu.cpp
// files only.
#pragma once

#include <immintrin.h>

#include <bit>
#include <cstdint>
#include <cstring>
#include <limits>

#include "runtime/core/dtype.h"

namespace r1::kernels::simd {

using V = float __attribute__((vector_size(32)));
using VI = int32_t __attribute__((vector_size(32)));
using D4 = double __attribute__((vector_size(32)));
/// Eight fp64 lanes: two registers.
struct VD {
  D4 low{}, high{};
  VD& operator+=(const VD& o) {
    low += o.low;
    high += o.high;
    return *this;
  }
  friend VD operator*(const VD& a, const VD& b) { return {a.low * b.low, a.high * b.high}; }
};
inline constexpr int64_t kLanes = 8;

inline V set(float x) { return V{x, x, x, x, x, x, x, x}; }

inline V load(const float* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, V v) { std::memcpy(p, &v, sizeof v); }

/// The first k lanes (k < 8); the others are `fill`.
inline V load(const float* p, int64_t k, float fill = 0.0F) {
  V v = set(fill);
  std::memcpy(&v, p, static_cast<size_t>(k) * sizeof(float));
  return v;
}
inline void store(float* p, V v, int64_t k) {
  std::memcpy(p, &v, static_cast<size_t>(k) * sizeof(float));
}

inline V max(V a, V b) { return a > b ? a : b; }
inline V sqrt(V a) {
  V r;
  for (int i = 0; i < kLanes; ++i) r[i] = __builtin_sqrtf(a[i]);  // becomes one vsqrtps
  return r;
}
inline VD widen(V a) {
  return {__builtin_convertvector(__builtin_shufflevector(a, a, 0, 1, 2, 3), D4),
          __builtin_convertvector(__builtin_shufflevector(a, a, 4, 5, 6, 7), D4)};
}

/// Sums of lanes in a fixed tree.
inline float sum(V a) { return ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7])); }
inline double sum(const VD& a) {
  const D4 s = a.low + a.high;
  return (s[0] + s[2]) + (s[1] + s[3]);
}
inline float max_lane(V a) {
  float m = a[0];
  for (int i = 1; i < kLanes; ++i) m = a[i] > m ? a[i] : m;
  return m;
}

/// Calls f(i) for whole vectors at i, then f(i, k) for the k < 8 elements that remain: one body
/// serves both through load(p + i, part...) and store(p + i, v, part...).
template <class F>
inline void for_lanes(int64_t n, F&& f) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) f(i);
  if (i < n) f(i, n - i);
}

/// IEEE half to fp32 and back (to nearest even), n elements: the processor's own conversion where
/// it has one.
inline void from_f16(const uint16_t* in, float* out, int64_t n) {
  int64_t i = 0;
#ifdef __F16C__
  for (; i + kLanes <= n; i += kLanes) {
    __m128i h;
    std::memcpy(&h, in + i, sizeof h);
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(h));
  }
#endif
  for (; i < n; ++i) out[i] = f16_to_float(in[i]);
}
inline void to_f16(const float* in, uint16_t* out, int64_t n) {
  int64_t i = 0;
#ifdef __F16C__
  for (; i + kLanes <= n; i += kLanes) {
    const __m128i h = _mm256_cvtps_ph(_mm256_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT);
    std::memcpy(out + i, &h, sizeof h);
  }
#endif
  for (; i < n; ++i) out[i] = float_to_f16(in[i]);
}

namespace detail {

// Range reduction by ln 2 in two parts (Cody & Waite 1980), then a polynomial of degree 6 for e^r
// on |r| <= ln(2)/2 (coefficients of Cephes' expf, Moshier). x must be in
// [-87.3365448, 88.3762627], where 2^n is a normal number, or NaN.
inline V exp_in_range(V x) {
  const V shift =
      set(12582912.0F);  // 1.5 * 2^23: adding it leaves the rounded integer in the low bits
  const V t = x * set(1.44269504088896341F) + shift;
  const V n = t - shift;
  V r = x - n * set(0.693359375F);
  r = r - n * set(-2.12194440e-4F);
  V p = set(1.9875691500e-4F);
  p = p * r + set(1.3981999507e-3F);
  p = p * r + set(8.3334519073e-3F);
  p = p * r + set(4.1665795894e-2F);
  p = p * r + set(1.6666665459e-1F);
  p = p * r + set(5.0000001201e-1F);
  const V y = (p * (r * r) + r) + set(1.0F);
  // Times 2^n, whose exponent bits are the low bits of t plus 127. A product, not an addition of
  // exponents: NaN stays NaN.
  return y * std::bit_cast<V>((std::bit_cast<VI>(t) + 127) << 23);
}

inline constexpr float kExpLow = -87.3365448F, kExpHigh = 88.3762627F;

}  // namespace detail

/// e^x, at most 1 ulp off (tested over its range); below -87.34 it is 0, above 88.37 infinity; NaN
/// stays NaN.
inline V exp(V x) {
  const V high = set(detail::kExpHigh), low = set(detail::kExpLow);
  V in = x > high ? high : x;
  in = in < low ? low : in;
  V out = detail::exp_in_range(in);
  out = x < low ? set(0.0F) : out;
  return x > high ? set(std::numeric_limits<float>::infinity()) : out;
}

/// The same for x <= 0 (or NaN), as in a softmax after its maximum is subtracted.
inline V exp_nonpositive(V x) {
  const V low = set(detail::kExpLow);
  const V out = detail::exp_in_range(x < low ? low : x);
  return x < low ? set(0.0F) : out;
}

}  // namespace r1::kernels::simd
