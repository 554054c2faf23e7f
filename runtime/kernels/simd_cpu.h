// Eight fp32 lanes for the CPU kernels, on the compiler's vector types. Loops over them keep a
// fixed order of summation whatever the compiler, and need no -ffast-math. Included by *_cpu.cpp
// files only.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <limits>

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

/// e^x, at most 1 ulp off (tested over all floats in range); below -87.33 it is 0, above 88.72
/// infinity; NaN stays NaN. Range reduction by ln 2 in two parts (Cody & Waite 1980), then a
/// polynomial of degree 6 for e^r on |r| <= ln(2)/2 (coefficients of Cephes' expf, Moshier).
inline V exp(V x) {
  const V high = set(88.7228394F), low = set(-87.3365448F);
  V in = x > high ? high : x;
  in = in < low ? low : in;
  const V round = set(12582912.0F);  // 1.5 * 2^23: adding it rounds to an integer
  const V n = (in * set(1.44269504088896341F) + round) - round;
  V r = in - n * set(0.693359375F);
  r = r - n * set(-2.12194440e-4F);
  V p = set(1.9875691500e-4F);
  p = p * r + set(1.3981999507e-3F);
  p = p * r + set(8.3334519073e-3F);
  p = p * r + set(4.1665795894e-2F);
  p = p * r + set(1.6666665459e-1F);
  p = p * r + set(5.0000001201e-1F);
  const V y = (p * (r * r) + r) + set(1.0F);
  // Scaled in two steps: 2^128 itself is not a float.
  const VI e = __builtin_convertvector(n, VI);
  const VI half = e >> 1;
  const auto power = [](VI k) { return std::bit_cast<V>((k + 127) << 23); };
  V out = y * power(half) * power(e - half);
  out = x < low ? set(0.0F) : out;
  return x > high ? set(std::numeric_limits<float>::infinity()) : out;
}

}  // namespace r1::kernels::simd
