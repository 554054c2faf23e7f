#include "runtime/kernels/checks.h"
#include "runtime/kernels/kernel_table.h"

namespace r1::kernels {

void swiglu_forward(const Tensor& gate_up, const Tensor& h, const Stream& s) {
  const checks::Call call("swiglu_forward", s);
  call.rank("h", h, 2);
  call.shape("gate_up", gate_up, {h.dim(0), 2 * h.dim(1)});
  call.floats({{"gate_up", gate_up}, {"h", h}});
  kernel_table(s.device.kind).swiglu_forward(gate_up, h, s);
}

void swiglu_backward(const Tensor& dh, const Tensor& gate_up, const Tensor& dgate_up,
                     const Stream& s) {
  const checks::Call call("swiglu_backward", s);
  call.rank("dh", dh, 2);
  call.shape("gate_up", gate_up, {dh.dim(0), 2 * dh.dim(1)});
  call.shape("dgate_up", dgate_up, {dh.dim(0), 2 * dh.dim(1)});
  call.floats({{"dh", dh}, {"gate_up", gate_up}, {"dgate_up", dgate_up}});
  kernel_table(s.device.kind).swiglu_backward(dh, gate_up, dgate_up, s);
}

}  // namespace r1::kernels
