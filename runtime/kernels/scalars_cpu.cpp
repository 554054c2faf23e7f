#include <algorithm>
#include <cmath>

#include "runtime/kernels/cpu_kernels.h"

namespace r1::kernels::cpu {

void sum_into(const Tensor& x, const Tensor& out, const Stream&) {
  double sum = 0;
  const float* v = x.ptr<float>();
  for (int64_t i = 0; i < x.numel(); ++i) sum += static_cast<double>(v[i]);
  out.ptr<double>()[0] += sum;
}

void clip_factor(const Tensor& sum_squares, float max_norm, const Tensor& factor, const Stream&) {
  const double norm = std::sqrt(sum_squares.ptr<double>()[0]);
  float f = 1.0F;
  if (!std::isfinite(norm)) f = 0.0F;
  else if (max_norm > 0) f = static_cast<float>(std::min(1.0, static_cast<double>(max_norm) / (norm + 1e-6)));
  factor.ptr<float>()[0] = f;
}

}  // namespace r1::kernels::cpu
