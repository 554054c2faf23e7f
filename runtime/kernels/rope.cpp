#include "runtime/kernels/checks.h"
#include "runtime/kernels/kernel_table.h"

namespace r1::kernels {
namespace {

int64_t qkv_width(const RopeArgs& a) { return (a.q_heads + 2 * a.kv_heads) * a.head_dim; }

void check_heads(const checks::Call& call, const RopeArgs& a) {
  call.require(a.q_heads >= 0 && a.kv_heads >= 0 && a.head_dim >= 1,
               "{} q heads, {} kv heads, head dim {}", a.q_heads, a.kv_heads, a.head_dim);
}

}  // namespace

void rope(const Tensor& qkv, const Tensor& positions, const Tensor& cos_sin, const RopeArgs& args,
          const Stream& s) {
  const checks::Call call("rope", s);
  check_heads(call, args);
  call.require(args.head_dim % 2 == 0, "head dim {} is odd", args.head_dim);
  call.rank("qkv", qkv, 2);
  call.shape("qkv", qkv, {qkv.dim(0), qkv_width(args)});
  call.shape("positions", positions, {qkv.dim(0)});
  call.rank("cos_sin", cos_sin, 2);
  call.shape("cos_sin", cos_sin, {cos_sin.dim(0), args.head_dim});
  call.floats({{"qkv", qkv}});
  call.dtype("positions", positions, {DType::kI32});
  call.fp32("cos_sin", cos_sin);
  kernel_table(s.device.kind).rope(qkv, positions, cos_sin, args, s);
}

void qk_norm_forward(const Tensor& raw, const Tensor& q_weight, const Tensor& k_weight, float eps,
                     const RopeArgs& args, const Tensor& out, const Tensor& rstd, const Stream& s) {
  const checks::Call call("qk_norm_forward", s);
  check_heads(call, args);
  call.rank("raw", raw, 2);
  call.shape("raw", raw, {raw.dim(0), qkv_width(args)});
  call.shape("q_weight", q_weight, {args.head_dim});
  call.shape("k_weight", k_weight, {args.head_dim});
  call.shape("out", out, {raw.dim(0), qkv_width(args)});
  call.shape("rstd", rstd, {raw.dim(0), args.q_heads + args.kv_heads});
  call.floats({{"raw", raw}, {"q_weight", q_weight}, {"k_weight", k_weight}, {"out", out}});
  call.fp32("rstd", rstd);
  call.require(raw.empty() || raw.data != out.data, "out must not alias raw");
  kernel_table(s.device.kind).qk_norm_forward(raw, q_weight, k_weight, eps, args, out, rstd, s);
}

void qk_norm_backward(const Tensor& d, const Tensor& raw, const Tensor& q_weight,
                      const Tensor& k_weight, const Tensor& rstd, const RopeArgs& args,
                      const Tensor& dq_weight, const Tensor& dk_weight, const Stream& s) {
  const checks::Call call("qk_norm_backward", s);
  check_heads(call, args);
  call.rank("raw", raw, 2);
  call.shape("raw", raw, {raw.dim(0), qkv_width(args)});
  call.shape("d", d, {raw.dim(0), qkv_width(args)});
  call.shape("q_weight", q_weight, {args.head_dim});
  call.shape("k_weight", k_weight, {args.head_dim});
  call.shape("rstd", rstd, {raw.dim(0), args.q_heads + args.kv_heads});
  call.shape("dq_weight", dq_weight, {args.head_dim});
  call.shape("dk_weight", dk_weight, {args.head_dim});
  call.floats({{"d", d}, {"raw", raw}, {"q_weight", q_weight}, {"k_weight", k_weight}});
  call.fp32("rstd", rstd);
  call.fp32("dq_weight", dq_weight, /*bf16=*/true);
  call.fp32("dk_weight", dk_weight, /*bf16=*/true);
  call.require(raw.empty() || raw.data != d.data, "d must not alias raw");
  kernel_table(s.device.kind)
      .qk_norm_backward(d, raw, q_weight, k_weight, rstd, args, dq_weight, dk_weight, s);
}

}  // namespace r1::kernels
