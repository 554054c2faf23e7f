#include "runtime/kernels/checks.h"
#include "runtime/kernels/kernel_table.h"

namespace r1::kernels {

void linear_forward(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& y,
                    const Stream& s) {
  const checks::Call call("linear_forward", s);
  call.rank("x", x, 2);
  call.rank("w", w, 2);
  call.shape("w", w, {w.dim(0), x.dim(1)});
  call.shape("y", y, {x.dim(0), w.dim(0)});
  call.floats({{"x", x}, {"w", w}, {"y", y}});
  if (!bias.empty()) {
    call.shape("bias", bias, {w.dim(0)});
    call.floats({{"x", x}, {"bias", bias}});
  }
  kernel_table(s.device.kind).linear_forward(x, w, bias, y, s);
}

void linear_backward_input(const Tensor& dy, const Tensor& w, const Tensor& dx, bool accumulate,
                           const Stream& s) {
  const checks::Call call("linear_backward_input", s);
  call.rank("dy", dy, 2);
  call.rank("w", w, 2);
  call.shape("w", w, {dy.dim(1), w.dim(1)});
  call.shape("dx", dx, {dy.dim(0), w.dim(1)});
  call.floats({{"dy", dy}, {"w", w}, {"dx", dx}});
  kernel_table(s.device.kind).linear_backward_input(dy, w, dx, accumulate, s);
}

void linear_backward_weight(const Tensor& dy, const Tensor& x, const Tensor& dw, bool accumulate,
                            const Stream& s) {
  const checks::Call call("linear_backward_weight", s);
  call.rank("dy", dy, 2);
  call.rank("x", x, 2);
  call.shape("x", x, {dy.dim(0), x.dim(1)});
  call.shape("dw", dw, {dy.dim(1), x.dim(1)});
  call.floats({{"dy", dy}, {"x", x}});
  call.fp32("dw", dw, /*bf16=*/true);
  kernel_table(s.device.kind).linear_backward_weight(dy, x, dw, accumulate, s);
}

void bias_backward(const Tensor& dy, const Tensor& db, const Stream& s) {
  const checks::Call call("bias_backward", s);
  call.rank("dy", dy, 2);
  call.shape("db", db, {dy.dim(1)});
  call.floats({{"dy", dy}});
  call.fp32("db", db, /*bf16=*/true);
  kernel_table(s.device.kind).bias_backward(dy, db, s);
}

}  // namespace r1::kernels
