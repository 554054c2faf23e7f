#include <algorithm>
#include <cstring>

#include "runtime/device/cpu/thread_pool.h"
#include "runtime/kernels/cpu_kernels.h"
#include "runtime/kernels/norm_cpu.h"

namespace r1::kernels::cpu {
namespace {

constexpr int64_t kRows = 16;  // rows of a task; the partial sums of dw follow the same cut

}  // namespace

void rmsnorm_forward(const Tensor& x, const Tensor& w, float eps, const Tensor& y,
                     const Tensor& rstd, const Stream&) {
  const int64_t tokens = x.dim(0), hidden = x.dim(1);
  if (hidden == 0) return;
  parallel_ranges(tokens, kRows, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* row = x.ptr<float>() + t * hidden;
      const float r = row_rstd(row, hidden, eps);
      rstd.ptr<float>()[t] = r;
      row_normalize(row, w.ptr<float>(), r, y.ptr<float>() + t * hidden, hidden);
    }
  });
}

void add_rmsnorm_forward(const Tensor& x, const Tensor& delta, const Tensor& w, float eps,
                         const Tensor& sum, const Tensor& y, const Tensor& rstd, const Stream&) {
  const int64_t tokens = x.dim(0), hidden = x.dim(1);
  if (hidden == 0) return;
  parallel_ranges(tokens, kRows, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* a = x.ptr<float>() + t * hidden;
      const float* b = delta.ptr<float>() + t * hidden;
      float* out = sum.ptr<float>() + t * hidden;
      simd::for_lanes(hidden, [&](int64_t i, auto... part) {
        simd::store(out + i, simd::load(a + i, part...) + simd::load(b + i, part...), part...);
      });
      const float r = row_rstd(out, hidden, eps);
      rstd.ptr<float>()[t] = r;
      row_normalize(out, w.ptr<float>(), r, y.ptr<float>() + t * hidden, hidden);
    }
  });
}

void rmsnorm_backward(const Tensor& dy, const Tensor& x, const Tensor& w, const Tensor& rstd,
                      const Tensor& residual, const Tensor& dx, const Tensor& dw, const Stream&) {
  const int64_t tokens = x.dim(0), hidden = x.dim(1);
  if (tokens == 0 || hidden == 0) return;
  // dw is summed over the rows of a task in fp32, then over tasks in fp64, both in order.
  const int64_t tasks = (tokens + kRows - 1) / kRows;
  auto* partial =
      static_cast<float*>(thread_scratch(0, static_cast<size_t>(tasks * hidden) * sizeof(float)));
  parallel_for(tasks, [&](int64_t task) {
    float* dw_part = partial + task * hidden;
    std::memset(dw_part, 0, static_cast<size_t>(hidden) * sizeof(float));
    for (int64_t t = task * kRows; t < std::min(tokens, (task + 1) * kRows); ++t) {
      const int64_t at = t * hidden;
      row_norm_backward(dy.ptr<float>() + at, x.ptr<float>() + at, w.ptr<float>(),
                        rstd.ptr<float>()[t],
                        residual.empty() ? nullptr : residual.ptr<float>() + at,
                        dx.ptr<float>() + at, dw_part, hidden);
    }
  });
  constexpr int64_t kColumns = 64;
  parallel_ranges(hidden, kColumns, [&](int64_t begin, int64_t end) {
    double total[kColumns] = {};
    for (int64_t task = 0; task < tasks; ++task)
      for (int64_t j = begin; j < end; ++j)
        total[j - begin] += static_cast<double>(partial[task * hidden + j]);
    for (int64_t j = begin; j < end; ++j)
      dw.ptr<float>()[j] += static_cast<float>(total[j - begin]);
  });
}

}  // namespace r1::kernels::cpu
