#include "runtime/kernels/checks.h"
#include "runtime/kernels/kernel_table.h"

namespace r1::kernels {

void embedding_forward(const Tensor& ids, const Tensor& w, int64_t vocab_begin, const Tensor& y,
                       const Stream& s) {
  const checks::Call call("embedding_forward", s);
  call.rank("ids", ids, 1);
  call.dtype("ids", ids, {DType::kI32});
  call.rank("w", w, 2);
  call.shape("y", y, {ids.dim(0), w.dim(1)});
  call.floats({{"w", w}, {"y", y}});
  call.require(vocab_begin >= 0, "vocab_begin is {}", vocab_begin);
  kernel_table(s.device.kind).embedding_forward(ids, w, vocab_begin, y, s);
}

void embedding_backward(const Tensor& ids, const Tensor& dy, int64_t vocab_begin, const Tensor& dw,
                        const Stream& s) {
  const checks::Call call("embedding_backward", s);
  call.rank("ids", ids, 1);
  call.dtype("ids", ids, {DType::kI32});
  call.rank("dw", dw, 2);
  call.shape("dy", dy, {ids.dim(0), dw.dim(1)});
  call.floats({{"dy", dy}});
  call.fp32("dw", dw, /*bf16=*/true);
  call.require(vocab_begin >= 0, "vocab_begin is {}", vocab_begin);
  kernel_table(s.device.kind).embedding_backward(ids, dy, vocab_begin, dw, s);
}

}  // namespace r1::kernels
