// Products with few rows of x (decoding): w [out, in] is read once from memory, so the time is that
// of a copy's read half.
//
// Each y is one chain of vector sums over `in` in steps of 8 from the left, then the fixed tree of
// simd::sum, whichever block of rows it is computed in. So a sequence decodes to the same bits
// alone and in a batch.
#include <algorithm>

#include "runtime/device/cpu/thread_pool.h"
#include "runtime/kernels/gemm_cpu.h"
#include "runtime/kernels/simd_cpu.h"

namespace r1::kernels::cpu {
namespace {

/// y[t, o] for TOKENS rows of x and OUTS rows of w; 4 x 3 sums, 3 weights and one x fill the 16
/// vector registers. FETCH: meanwhile asks memory for OUTS rows at `fetch`, `advance` elements a
/// cache line of w. Rows are short, and the hardware's own prefetch starts anew at each.
template <int TOKENS, int OUTS, bool FETCH>
void block(int64_t in, const float* x, const float* w, const float* bias, float* y,
           int64_t y_stride, const float* fetch = nullptr, int64_t advance = 0) {
  constexpr int64_t kLine = 2 * simd::kLanes;
  simd::V sum[TOKENS][OUTS] = {};
  const auto step = [&](int64_t i, auto... part) {
    simd::V weight[OUTS];
    for (int o = 0; o < OUTS; ++o) weight[o] = simd::load(w + o * in + i, part...);
    for (int t = 0; t < TOKENS; ++t) {
      const simd::V value = simd::load(x + t * in + i, part...);
      for (int o = 0; o < OUTS; ++o) sum[t][o] += value * weight[o];
    }
  };
  int64_t i = 0;
  for (; i + kLine <= in; i += kLine) {
    if constexpr (FETCH) {
      for (int o = 0; o < OUTS; ++o) __builtin_prefetch(fetch + o * in);
      fetch += advance;
    }
    step(i);
    step(i + simd::kLanes);
  }
  for (; i + simd::kLanes <= in; i += simd::kLanes) step(i);
  if (i < in) step(i, in - i);
  for (int t = 0; t < TOKENS; ++t)
    for (int o = 0; o < OUTS; ++o)
      y[t * y_stride + o] = simd::sum(sum[t][o]) + (bias == nullptr ? 0.0F : bias[o]);
}

/// All tokens, TOKENS at a time, against OUTS rows of w, which stay in a near cache. Each part of
/// the tokens fetches its share of the next rows, so that memory is read at an even pace.
template <int TOKENS, int OUTS>
void rows(int64_t tokens, int64_t in, const float* x, const float* w, const float* bias, float* y,
          int64_t out) {
  const int64_t parts = (tokens + TOKENS - 1) / TOKENS, advance = 2 * simd::kLanes / parts;
  const float* fetch = w + OUTS * in;
  int64_t t = 0;
  for (; t + TOKENS <= tokens; t += TOKENS, fetch += in / parts)
    block<TOKENS, OUTS, true>(in, x + t * in, w, bias, y + t * out, out, fetch, advance);
  if constexpr (TOKENS > 2)
    for (; t + 2 <= tokens; t += 2)
      block<2, OUTS, false>(in, x + t * in, w, bias, y + t * out, out);
  for (; t < tokens; ++t) block<1, OUTS, false>(in, x + t * in, w, bias, y + t * out, out);
}

}  // namespace

void gemm_few_rows(int64_t tokens, int64_t out, int64_t in, const float* x, const float* w,
                   const float* bias, float* y) {
  if (tokens == 0) return;
  constexpr int64_t kRowsOfTask = 96;
  parallel_ranges(out, kRowsOfTask, [&](int64_t begin, int64_t end) {
    const auto bias_at = [&](int64_t o) { return bias == nullptr ? nullptr : bias + o; };
    int64_t o = begin;
    // Few tokens are little work: more rows at a time are more reads under way. Measured on Zen 4:
    // 6 rows are 30 % faster than 3 with four tokens, 10 % slower with eight.
    if (tokens == 1)
      for (; o + 8 <= end; o += 8) block<1, 8, false>(in, x, w + o * in, bias_at(o), y + o, out);
    if (tokens <= 6)
      for (; o + 6 <= end; o += 6) rows<2, 6>(tokens, in, x, w + o * in, bias_at(o), y + o, out);
    for (; o + 3 <= end; o += 3) rows<4, 3>(tokens, in, x, w + o * in, bias_at(o), y + o, out);
    for (; o < end; ++o) rows<4, 1>(tokens, in, x, w + o * in, bias_at(o), y + o, out);
  });
}

}  // namespace r1::kernels::cpu
