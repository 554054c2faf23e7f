#include "runtime/kernels/checks.h"
#include "runtime/kernels/exact_sum.h"
#include "runtime/kernels/kernel_table.h"

namespace r1::kernels {
namespace {

constexpr std::initializer_list<DType> kFloats = {DType::kF32, DType::kBF16, DType::kF16,
                                                  DType::kF64};

void same_count(const checks::Call& call, const char* name, const Tensor& t, int64_t n) {
  call.memory(name, t);
  call.require(t.numel() == n, "{} has {} elements, expected {}", name, t.numel(), n);
}

}  // namespace

void adamw_step(const Tensor& p, const Tensor& master, const Tensor& g, const Tensor& m,
                const Tensor& v, const Tensor& grad_scale, const AdamWArgs& args, const Stream& s) {
  const checks::Call call("adamw_step", s);
  const int64_t n = p.numel();
  call.memory("p", p);
  same_count(call, "g", g, n);
  same_count(call, "m", m, n);
  same_count(call, "v", v, n);
  same_count(call, "grad_scale", grad_scale, 1);
  call.dtype("grad_scale", grad_scale, {DType::kF32});
  for (const auto& [name, t] : {checks::Named{"p", p}, {"g", g}, {"m", m}, {"v", v}})
    call.dtype(name, t, {DType::kF32, DType::kBF16});
  if (!master.empty()) {
    same_count(call, "master", master, n);
    call.dtype("master", master, {DType::kF32});
  }
  call.require(args.step >= 1, "step {} (counts from 1)", args.step);
  kernel_table(s.device.kind).adamw_step(p, master, g, m, v, grad_scale, args, s);
}

void sum_of_squares(std::span<const Tensor> matrices, const Tensor& words, const Stream& s) {
  const checks::Call call("sum_of_squares", s);
  for (const Tensor& x : matrices) {
    call.rank("x", x, 2);
    call.dtype("x", x, {DType::kF32, DType::kBF16});
  }
  same_count(call, "words", words, kExactWords);
  call.dtype("words", words, {DType::kI64});
  kernel_table(s.device.kind).sum_of_squares(matrices, words, s);
}

void add_into(const Tensor& dst, const Tensor& src, const Stream& s) {
  const checks::Call call("add_into", s);
  call.memory("dst", dst);
  same_count(call, "src", src, dst.numel());
  call.dtype("dst", dst, kFloats);
  call.dtype("src", src, kFloats);
  kernel_table(s.device.kind).add_into(dst, src, s);
}

void add(const Tensor& a, const Tensor& b, const Tensor& out, const Stream& s) {
  const checks::Call call("add", s);
  call.memory("a", a);
  same_count(call, "b", b, a.numel());
  same_count(call, "out", out, a.numel());
  call.floats({{"a", a}, {"b", b}, {"out", out}});
  kernel_table(s.device.kind).add(a, b, out, s);
}

void cast(const Tensor& src, const Tensor& dst, const Stream& s) {
  const checks::Call call("cast", s);
  call.memory("src", src);
  same_count(call, "dst", dst, src.numel());
  call.dtype("src", src, kFloats);
  call.dtype("dst", dst, kFloats);
  kernel_table(s.device.kind).cast(src, dst, s);
}

void scale(const Tensor& x, float factor, const Stream& s) {
  const checks::Call call("scale", s);
  call.memory("x", x);
  call.dtype("x", x, {DType::kF32, DType::kBF16});
  kernel_table(s.device.kind).scale(x, factor, s);
}

void copy_columns(const Tensor& src, int64_t begin, const Tensor& dst, const Stream& s) {
  const checks::Call call("copy_columns", s);
  call.rank("src", src, 2);
  call.rank("dst", dst, 2);
  call.shape("dst", dst, {src.dim(0), dst.dim(1)});
  call.require(begin >= 0 && begin + dst.dim(1) <= src.dim(1), "columns [{}, {}) of {}", begin,
               begin + dst.dim(1), src.dim(1));
  call.require(src.dtype == dst.dtype, "src is {}, dst is {}", dtype_name(src.dtype),
               dtype_name(dst.dtype));
  kernel_table(s.device.kind).copy_columns(src, begin, dst, s);
}

}  // namespace r1::kernels
