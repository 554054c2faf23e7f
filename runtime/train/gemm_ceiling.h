// The rate of matrix products that a step's rate is compared with.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

namespace r1::train {

/// y [m, n] = x [m, k] w [n, k]^T.
struct GemmShape {
  int64_t m = 0, n = 0, k = 0;
  [[nodiscard]] double flops() const { return 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k); }
};

/// The highest rate (FLOP/s) of any product: all shapes in turn, at least twice, and until `least_s` seconds have been measured. The
/// best, not the mean: a ceiling must not be lowered by the first touch of memory, by another process's time slice, or by a shape that
/// suits this processor less. `seconds`: runs a product and says how long it took.
[[nodiscard]] double gemm_ceiling(std::span<const GemmShape> shapes, double least_s, const std::function<double(const GemmShape&)>& seconds);

}  // namespace r1::train
