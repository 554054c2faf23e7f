#include "runtime/kernels/checks.h"
#include "runtime/kernels/kernel_table.h"

namespace r1::kernels {

void cross_entropy_stats(const Tensor& logits, const Tensor& targets, int64_t vocab_begin,
                         const Tensor& stats, const Stream& s) {
  const checks::Call call("cross_entropy_stats", s);
  call.rank("logits", logits, 2);
  call.shape("targets", targets, {logits.dim(0)});
  call.shape("stats", stats, {3, logits.dim(0)});
  call.floats({{"logits", logits}});
  call.dtype("targets", targets, {DType::kI32});
  call.fp32("stats", stats);
  kernel_table(s.device.kind).cross_entropy_stats(logits, targets, vocab_begin, stats, s);
}

void cross_entropy_combine(const Tensor& all_stats, const Tensor& targets, const Tensor& lse,
                           const Tensor& loss, const Stream& s) {
  const checks::Call call("cross_entropy_combine", s);
  call.rank("targets", targets, 1);
  call.rank("all_stats", all_stats, 3);
  call.shape("all_stats", all_stats, {all_stats.dim(0), 3, targets.dim(0)});
  call.require(all_stats.dim(0) >= 1, "no parts to combine");
  call.shape("lse", lse, {targets.dim(0)});
  call.shape("loss", loss, {targets.dim(0)});
  call.dtype("targets", targets, {DType::kI32});
  call.fp32("all_stats", all_stats);
  call.fp32("lse", lse);
  call.fp32("loss", loss);
  kernel_table(s.device.kind).cross_entropy_combine(all_stats, targets, lse, loss, s);
}

void cross_entropy_backward(const Tensor& logits, const Tensor& targets, int64_t vocab_begin,
                            const Tensor& lse, float scale, const Stream& s) {
  const checks::Call call("cross_entropy_backward", s);
  call.rank("logits", logits, 2);
  call.shape("targets", targets, {logits.dim(0)});
  call.shape("lse", lse, {logits.dim(0)});
  call.floats({{"logits", logits}});
  call.dtype("targets", targets, {DType::kI32});
  call.fp32("lse", lse);
  kernel_table(s.device.kind).cross_entropy_backward(logits, targets, vocab_begin, lse, scale, s);
}

}  // namespace r1::kernels
