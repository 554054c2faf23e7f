#include <algorithm>
#include <cstring>

#include "runtime/device/cpu/thread_pool.h"
#include "runtime/kernels/cpu_kernels.h"
#include "runtime/kernels/gemm_cpu.h"
#include "runtime/kernels/simd_cpu.h"

namespace r1::kernels::cpu {

void linear_forward(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& y,
                    const Stream&) {
  const int64_t tokens = x.dim(0), in = x.dim(1), out = w.dim(0);
  const bool with_bias = !bias.empty();
  if (tokens <= kFewRows) {
    gemm_few_rows(tokens, out, in, x.ptr<float>(), w.ptr<float>(),
                  with_bias ? bias.ptr<float>() : nullptr, y.ptr<float>());
    return;
  }
  if (with_bias) {
    // The product is added to the bias: one pass over y, where adding afterwards would read it
    // again.
    const float* b = bias.ptr<float>();
    parallel_ranges(tokens, 64, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t)
        std::memcpy(y.ptr<float>() + t * out, b, static_cast<size_t>(out) * sizeof(float));
    });
  }
  gemm(Op::kNone, Op::kTranspose, tokens, out, in, 1.0F, x.ptr<float>(), in, w.ptr<float>(), in,
       with_bias ? 1.0F : 0.0F, y.ptr<float>(), out);
}

void linear_backward_input(const Tensor& dy, const Tensor& w, const Tensor& dx, bool accumulate,
                           const Stream&) {
  const int64_t tokens = dy.dim(0), out = dy.dim(1), in = w.dim(1);
  gemm(Op::kNone, Op::kNone, tokens, in, out, 1.0F, dy.ptr<float>(), out, w.ptr<float>(), in,
       accumulate ? 1.0F : 0.0F, dx.ptr<float>(), in);
}

void linear_backward_weight(const Tensor& dy, const Tensor& x, const Tensor& dw, bool accumulate,
                            const Stream&) {
  const int64_t tokens = dy.dim(0), out = dy.dim(1), in = x.dim(1);
  gemm(Op::kTranspose, Op::kNone, out, in, tokens, 1.0F, dy.ptr<float>(), out, x.ptr<float>(), in,
       accumulate ? 1.0F : 0.0F, dw.ptr<float>(), in);
}

void bias_backward(const Tensor& dy, const Tensor& db, const Stream&) {
  const int64_t tokens = dy.dim(0), out = dy.dim(1);
  constexpr int64_t kColumns = 64;  // a task's columns: 256 bytes of each row
  constexpr int64_t kRows = 64;     // summed in fp32 before they join the fp64 total
  parallel_ranges(out, kColumns, [&](int64_t begin, int64_t end) {
    double total[kColumns] = {};
    for (int64_t t0 = 0; t0 < tokens; t0 += kRows) {
      float part[kColumns] = {};
      for (int64_t t = t0; t < std::min(tokens, t0 + kRows); ++t) {
        const float* row = dy.ptr<float>() + t * out + begin;
        for (int64_t j = 0; j < end - begin; ++j) part[j] += row[j];
      }
      for (int64_t j = 0; j < kColumns; ++j) total[j] += static_cast<double>(part[j]);
    }
    for (int64_t j = 0; j < end - begin; ++j)
      db.ptr<float>()[begin + j] += static_cast<float>(total[j]);
  });
}

}  // namespace r1::kernels::cpu
