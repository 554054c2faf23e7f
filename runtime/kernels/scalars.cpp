#include "runtime/kernels/checks.h"
#include "runtime/kernels/exact_sum.h"
#include "runtime/kernels/kernel_table.h"

namespace r1::kernels {

namespace {

void check_words(const checks::Call& call, const Tensor& words) {
  call.memory("words", words);
  call.dtype("words", words, {DType::kI64});
  call.require(words.numel() == kExactWords, "words has {} elements, expected {}", words.numel(), kExactWords);
}

}  // namespace

void sum_into(const Tensor& x, const Tensor& words, const Stream& s) {
  const checks::Call call("sum_into", s);
  call.memory("x", x);
  call.dtype("x", x, {DType::kF32});
  check_words(call, words);
  kernel_table(s.device.kind).sum_into(x, words, s);
}

void exact_total(const Tensor& words, const Tensor& out, const Stream& s) {
  const checks::Call call("exact_total", s);
  check_words(call, words);
  call.memory("out", out);
  call.dtype("out", out, {DType::kF64});
  call.require(out.numel() == 1, "out has {} elements, expected 1", out.numel());
  kernel_table(s.device.kind).exact_total(words, out, s);
}

void clip_factor(const Tensor& sum_squares, const Tensor& loss, float max_norm, const Tensor& factor, const Stream& s) {
  const checks::Call call("clip_factor", s);
  call.memory("sum_squares", sum_squares);
  call.dtype("sum_squares", sum_squares, {DType::kF64});
  call.memory("loss", loss);
  call.dtype("loss", loss, {DType::kF64});
  call.memory("factor", factor);
  call.dtype("factor", factor, {DType::kF32});
  call.require(sum_squares.numel() == 1 && loss.numel() == 1 && factor.numel() == 1, "scalars expected");
  kernel_table(s.device.kind).clip_factor(sum_squares, loss, max_norm, factor, s);
}

}  // namespace r1::kernels
