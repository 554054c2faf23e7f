#include "runtime/train/gemm_ceiling.h"

#include <algorithm>

namespace r1::train {

double gemm_ceiling(std::span<const GemmShape> shapes, double least_s, const std::function<double(const GemmShape&)>& seconds) {
  double best = 0, spent = 0;
  for (int pass = 0; pass < 2 || spent < least_s; ++pass) {
    const double before = spent;
    for (const GemmShape& shape : shapes) {
      const double s = seconds(shape);
      spent += s;
      if (s > 0) best = std::max(best, shape.flops() / s);
    }
    if (spent <= before && pass > 0) break;  // a clock that stands still
  }
  return best;
}

}  // namespace r1::train
