#include <algorithm>
#include <cmath>

#include "runtime/kernels/cpu_kernels.h"
#include "runtime/kernels/exact_sum.h"

namespace r1::kernels::cpu {

void sum_into(const Tensor& x, const Tensor& words, const Stream&) {
  const float* v = x.ptr<float>();
  auto* to = words.ptr<int64_t>();
  for (int64_t i = 0; i < x.numel(); ++i)
    exact_add(to, static_cast<double>(v[i]));
}

void exact_total(const Tensor& words, const Tensor& out, const Stream&) {
  out.ptr<double>()[0] = exact_value(words.ptr<int64_t>());
}

void clip_factor(const Tensor& sum_squares, const Tensor& loss, float max_norm, const Tensor& factor, const Stream&) {
  const double norm = std::sqrt(sum_squares.ptr<double>()[0]);
  float f = 1.0F;
  if (!std::isfinite(norm) || !std::isfinite(loss.ptr<double>()[0])) f = 0.0F;
  else if (max_norm > 0) f = static_cast<float>(std::min(1.0, static_cast<double>(max_norm) / (norm + 1e-6)));
  factor.ptr<float>()[0] = f;
}

}  // namespace r1::kernels::cpu
