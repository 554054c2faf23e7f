#include "runtime/kernels/checks.h"
#include "runtime/kernels/kernel_table.h"

namespace r1::kernels {

void argmax(const Tensor& logits, int64_t vocab_begin, const Tensor& best, const Stream& s) {
  const checks::Call call("argmax", s);
  call.rank("logits", logits, 2);
  call.shape("best", best, {2, logits.dim(0)});
  call.floats({{"logits", logits}});
  call.fp32("best", best);
  call.require(vocab_begin >= 0 && vocab_begin + logits.dim(1) < (int64_t{1} << 24), "a vocabulary of {} tokens",
               vocab_begin + logits.dim(1));
  kernel_table(s.device.kind).argmax(logits, vocab_begin, best, s);
}

}  // namespace r1::kernels
