// One row of RMSNorm, shared by rmsnorm and qk_norm. Included by *_cpu.cpp files only.
#pragma once

#include <cmath>
#include <cstdint>

#include "runtime/kernels/simd_cpu.h"

namespace r1::kernels::cpu {

/// 1/sqrt(mean(x^2) + eps) of n values, summed in fp64.
inline float row_rstd(const float* x, int64_t n, float eps) {
  simd::VD sum{};
  simd::for_lanes(n, [&](int64_t i, auto... part) {
    const simd::VD v = simd::widen(simd::load(x + i, part...));
    sum += v * v;
  });
  return static_cast<float>(
      1.0 / std::sqrt(simd::sum(sum) / static_cast<double>(n) + static_cast<double>(eps)));
}

/// y = x * rstd * w.
inline void row_normalize(const float* x, const float* w, float rstd, float* y, int64_t n) {
  const simd::V r = simd::set(rstd);
  simd::for_lanes(n, [&](int64_t i, auto... part) {
    simd::store(y + i, simd::load(x + i, part...) * r * simd::load(w + i, part...), part...);
  });
}

/// Backward of a row: with g = dy * w and c = rstd^3 * mean(g * x), dx = g * rstd - x * c (+
/// residual, where given) and dw += dy * x * rstd. dx may alias dy or residual.
inline void row_norm_backward(const float* dy, const float* x, const float* w, float rstd,
                              const float* residual, float* dx, float* dw, int64_t n) {
  simd::VD dot{};
  simd::for_lanes(n, [&](int64_t i, auto... part) {
    dot += simd::widen(simd::load(dy + i, part...) * simd::load(w + i, part...)) *
           simd::widen(simd::load(x + i, part...));
  });
  const double r3 = static_cast<double>(rstd) * rstd * rstd;
  const simd::V c = simd::set(static_cast<float>(simd::sum(dot) / static_cast<double>(n) * r3));
  const simd::V r = simd::set(rstd);
  simd::for_lanes(n, [&](int64_t i, auto... part) {
    const simd::V g = simd::load(dy + i, part...), v = simd::load(x + i, part...);
    simd::V d = g * simd::load(w + i, part...) * r - v * c;
    if (residual != nullptr) d += simd::load(residual + i, part...);
    simd::store(dw + i, simd::load(dw + i, part...) + g * (v * r), part...);
    simd::store(dx + i, d, part...);
  });
}

}  // namespace r1::kernels::cpu
