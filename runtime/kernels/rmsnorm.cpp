#include "runtime/kernels/checks.h"
#include "runtime/kernels/kernel_table.h"

namespace r1::kernels {

void rmsnorm_forward(const Tensor& x, const Tensor& w, float eps, const Tensor& y,
                     const Tensor& rstd, const Stream& s) {
  const checks::Call call("rmsnorm_forward", s);
  call.rank("x", x, 2);
  call.shape("w", w, {x.dim(1)});
  call.shape("y", y, {x.dim(0), x.dim(1)});
  call.shape("rstd", rstd, {x.dim(0)});
  call.floats({{"x", x}, {"w", w}, {"y", y}});
  call.fp32("rstd", rstd);
  kernel_table(s.device.kind).rmsnorm_forward(x, w, eps, y, rstd, s);
}

void add_rmsnorm_forward(const Tensor& x, const Tensor& delta, const Tensor& w, float eps,
                         const Tensor& sum, const Tensor& y, const Tensor& rstd, const Stream& s) {
  const checks::Call call("add_rmsnorm_forward", s);
  call.rank("x", x, 2);
  call.shape("delta", delta, {x.dim(0), x.dim(1)});
  call.shape("w", w, {x.dim(1)});
  call.shape("sum", sum, {x.dim(0), x.dim(1)});
  call.shape("y", y, {x.dim(0), x.dim(1)});
  call.shape("rstd", rstd, {x.dim(0)});
  call.floats({{"x", x}, {"delta", delta}, {"w", w}, {"sum", sum}, {"y", y}});
  call.fp32("rstd", rstd);
  kernel_table(s.device.kind).add_rmsnorm_forward(x, delta, w, eps, sum, y, rstd, s);
}

void rmsnorm_backward(const Tensor& dy, const Tensor& x, const Tensor& w, const Tensor& rstd,
                      const Tensor& residual, const Tensor& dx, const Tensor& dw, const Stream& s) {
  const checks::Call call("rmsnorm_backward", s);
  call.rank("x", x, 2);
  call.shape("dy", dy, {x.dim(0), x.dim(1)});
  call.shape("w", w, {x.dim(1)});
  call.shape("rstd", rstd, {x.dim(0)});
  call.shape("dx", dx, {x.dim(0), x.dim(1)});
  call.shape("dw", dw, {x.dim(1)});
  call.floats({{"dy", dy}, {"x", x}, {"w", w}, {"dx", dx}});
  call.fp32("rstd", rstd);
  call.fp32("dw", dw, /*bf16=*/true);
  if (!residual.empty()) {
    call.shape("residual", residual, {x.dim(0), x.dim(1)});
    call.floats({{"dx", dx}, {"residual", residual}});
  }
  kernel_table(s.device.kind).rmsnorm_backward(dy, x, w, rstd, residual, dx, dw, s);
}

}  // namespace r1::kernels
