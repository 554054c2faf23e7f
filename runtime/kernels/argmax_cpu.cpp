#include <algorithm>
#include <cmath>
#include <limits>

#include "runtime/device/cpu/thread_pool.h"
#include "runtime/kernels/cpu_kernels.h"
#include "runtime/kernels/simd_cpu.h"

namespace r1::kernels::cpu {
namespace {

struct Best {
  float value;
  int64_t index;
};

/// The first of the largest of n > 0 values; NaN when there is one. Two looks: the maximum by
/// vectors (with what `max` would lose, a NaN, kept in a sum), then where it stands.
Best first_largest(const float* x, int64_t n) {
  simd::V m = simd::set(-std::numeric_limits<float>::infinity()), poison{};
  simd::for_lanes(n, [&](int64_t i, auto... part) {
    simd::V v;
    if constexpr (sizeof...(part) == 0)
      v = simd::load(x + i);
    else
      v = simd::load(x + i, part..., -std::numeric_limits<float>::infinity());
    m = simd::max(v, m);
    poison += v != v ? v : simd::V{};
  });
  if (std::isnan(simd::sum(poison))) return {std::numeric_limits<float>::quiet_NaN(), 0};
  const float value = simd::max_lane(m);
  return {value, std::find(x, x + n, value) - x};
}

}  // namespace

void argmax(const Tensor& logits, int64_t vocab_begin, const Tensor& best, const Stream&) {
  const int64_t rows = logits.dim(0), vocab = logits.dim(1);
  float* value = best.ptr<float>();
  float* id = value + rows;
  parallel_for(rows, [&](int64_t r) {
    const Best b = vocab == 0 ? Best{-std::numeric_limits<float>::infinity(), 0}
                              : first_largest(logits.ptr<float>() + r * vocab, vocab);
    value[r] = b.value;
    id[r] = static_cast<float>(vocab_begin + b.index);
  });
}

}  // namespace r1::kernels::cpu
