#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "runtime/device/cpu/thread_pool.h"
#include "runtime/kernels/cpu_kernels.h"
#include "runtime/kernels/simd_cpu.h"

namespace r1::kernels::cpu {
namespace {

constexpr float kMinusInf = -std::numeric_limits<float>::infinity();

// A NaN anywhere must reach the loss: `a > b ? a : b` may drop it, the sum of exponentials keeps
// it.
float row_max(const float* x, int64_t n) {
  simd::V m0 = simd::set(kMinusInf), m1 = m0, m2 = m0, m3 = m0;
  int64_t i = 0;
  for (; i + 4 * simd::kLanes <= n; i += 4 * simd::kLanes) {
    m0 = simd::max(simd::load(x + i), m0);
    m1 = simd::max(simd::load(x + i + 8), m1);
    m2 = simd::max(simd::load(x + i + 16), m2);
    m3 = simd::max(simd::load(x + i + 24), m3);
  }
  float m = simd::max_lane(simd::max(simd::max(m0, m1), simd::max(m2, m3)));
  for (; i < n; ++i) m = std::max(m, x[i]);
  return m;
}

// Sum of exp(x - m): fp32 within blocks of 512, fp64 over blocks.
double row_sum_exp(const float* x, int64_t n, float m) {
  constexpr int64_t kBlock = 512;
  const simd::V vm = simd::set(m);
  double total = 0;
  int64_t begin = 0;
  for (; begin + kBlock <= n; begin += kBlock) {
    simd::V s0{}, s1{};
    for (int64_t i = begin; i < begin + kBlock; i += 2 * simd::kLanes) {
      s0 += simd::exp_nonpositive(simd::load(x + i) - vm);
      s1 += simd::exp_nonpositive(simd::load(x + i + simd::kLanes) - vm);
    }
    total += static_cast<double>(simd::sum(s0 + s1));
  }
  simd::V s{};
  for (; begin + simd::kLanes <= n; begin += simd::kLanes)
    s += simd::exp_nonpositive(simd::load(x + begin) - vm);
  if (begin < n) s += simd::exp_nonpositive(simd::load(x + begin, n - begin, kMinusInf) - vm);
  return total + static_cast<double>(simd::sum(s));
}

}  // namespace

void cross_entropy_stats(const Tensor& logits, const Tensor& targets, int64_t vocab_begin,
                         const Tensor& stats, const Stream&) {
  const int64_t rows = logits.dim(0), vocab = logits.dim(1);
  float* maximum = stats.ptr<float>();
  float* sum = maximum + rows;
  float* target_logit = sum + rows;
  parallel_for(rows, [&](int64_t t) {
    const float* row = logits.ptr<float>() + t * vocab;
    const float m = vocab == 0 ? kMinusInf : row_max(row, vocab);
    maximum[t] = m;
    // A row of -inf (or none): the sum relative to its own maximum would be NaN, but such a part
    // weighs nothing.
    sum[t] = vocab == 0
                 ? 0.0F
                 : static_cast<float>(row_sum_exp(row, vocab, std::isinf(m) && m < 0 ? 0.0F : m));
    const int64_t target = targets.ptr<int32_t>()[t] - vocab_begin;
    const bool here = targets.ptr<int32_t>()[t] >= 0 && target >= 0 && target < vocab;
    target_logit[t] = here ? row[target] : 0.0F;
  });
}

void cross_entropy_combine(const Tensor& all_stats, const Tensor& targets, const Tensor& lse,
                           const Tensor& loss, const Stream&) {
  const int64_t parts = all_stats.dim(0), rows = targets.dim(0);
  const float* stats = all_stats.ptr<float>();
  for (int64_t t = 0; t < rows; ++t) {
    float m = kMinusInf;
    for (int64_t p = 0; p < parts; ++p) m = std::max(m, stats[(p * 3 + 0) * rows + t]);
    double sum = 0;
    double target_logit = 0;  // 0 in all parts but one
    for (int64_t p = 0; p < parts; ++p) {
      const float part_max = stats[(p * 3 + 0) * rows + t];
      const double part_sum = static_cast<double>(stats[(p * 3 + 1) * rows + t]);
      // An empty part has maximum -inf and sum 0; its product with exp(-inf - -inf) would be NaN.
      if (part_sum != 0)
        sum += part_sum * std::exp(static_cast<double>(part_max) - static_cast<double>(m));
      target_logit += static_cast<double>(stats[(p * 3 + 2) * rows + t]);
    }
    const double log_sum = static_cast<double>(m) + std::log(sum);
    lse.ptr<float>()[t] = static_cast<float>(log_sum);
    loss.ptr<float>()[t] =
        targets.ptr<int32_t>()[t] < 0 ? 0.0F : static_cast<float>(log_sum - target_logit);
  }
}

void cross_entropy_backward(const Tensor& logits, const Tensor& targets, int64_t vocab_begin,
                            const Tensor& lse, float scale, const Stream&) {
  const int64_t rows = logits.dim(0), vocab = logits.dim(1);
  if (vocab == 0) return;
  const simd::V factor = simd::set(scale);
  parallel_for(rows, [&](int64_t t) {
    float* row = logits.ptr<float>() + t * vocab;
    const int64_t id = targets.ptr<int32_t>()[t];
    if (id < 0) {
      std::memset(row, 0, static_cast<size_t>(vocab) * sizeof(float));
      return;
    }
    const simd::V log_sum = simd::set(lse.ptr<float>()[t]);
    const int64_t target = id - vocab_begin;
    const bool here = target >= 0 && target < vocab;
    // 1 - p of the target from its own logit: where p is near 1 the difference of the products
    // would lose its digits.
    const float target_logit = here ? row[target] : 0.0F;
    simd::for_lanes(vocab, [&](int64_t i, auto... part) {
      simd::store(row + i, simd::exp(simd::load(row + i, part...) - log_sum) * factor, part...);
    });
    if (here) row[target] = std::expm1(target_logit - lse.ptr<float>()[t]) * scale;
  });
}

}  // namespace r1::kernels::cpu
