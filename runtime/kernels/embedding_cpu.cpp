#include <cstring>

#include "runtime/device/cpu/thread_pool.h"
#include "runtime/kernels/cpu_kernels.h"
#include "runtime/kernels/simd_cpu.h"

namespace r1::kernels::cpu {

void embedding_forward(const Tensor& ids, const Tensor& w, int64_t vocab_begin, const Tensor& y,
                       const Stream&) {
  const int64_t tokens = ids.dim(0), vocab = w.dim(0), hidden = w.dim(1);
  const size_t row_bytes = static_cast<size_t>(hidden) * sizeof(float);
  if (row_bytes == 0) return;
  parallel_ranges(tokens, 32, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t local = ids.ptr<int32_t>()[t] - vocab_begin;
      float* out = y.ptr<float>() + t * hidden;
      if (local >= 0 && local < vocab)
        std::memcpy(out, w.ptr<float>() + local * hidden, row_bytes);
      else
        std::memset(out, 0, row_bytes);
    }
  });
}

void embedding_backward(const Tensor& ids, const Tensor& dy, int64_t vocab_begin, const Tensor& dw,
                        const Stream&) {
  // Task j owns the rows of dw whose id is j modulo kTasks and reads all ids in order: each row is
  // summed by one task in token order, whichever thread runs it.
  constexpr int64_t kTasks = 16;
  const int64_t tokens = ids.dim(0), vocab = dw.dim(0), hidden = dw.dim(1);
  parallel_for(kTasks, [&](int64_t task) {
    for (int64_t t = 0; t < tokens; ++t) {
      const int64_t local = ids.ptr<int32_t>()[t] - vocab_begin;
      if (local < 0 || local >= vocab || local % kTasks != task) continue;
      const float* in = dy.ptr<float>() + t * hidden;
      float* out = dw.ptr<float>() + local * hidden;
      simd::for_lanes(hidden, [&](int64_t i, auto... part) {
        simd::store(out + i, simd::load(out + i, part...) + simd::load(in + i, part...), part...);
      });
    }
  });
}

}  // namespace r1::kernels::cpu
