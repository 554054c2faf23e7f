#include "runtime/kernels/checks.h"
#include "runtime/kernels/kernel_table.h"

namespace r1::kernels {
namespace {

void check_args(const checks::Call& call, const AttentionArgs& a, int64_t tokens,
                const Tensor& cu_seqlens, const Tensor& workspace, DeviceKind kind) {
  call.heads(a.q_heads, a.kv_heads, a.head_dim, a.kv_of_q);
  call.require(!a.host_cu.empty() && a.host_cu.front() == 0, "host_cu must begin with 0");
  for (size_t i = 1; i < a.host_cu.size(); ++i) {
    const int64_t length = a.host_cu[i] - a.host_cu[i - 1];
    call.require(length >= 0 && length <= a.max_segment,
                 "segment {} covers [{}, {}), longest allowed is {}", i - 1, a.host_cu[i - 1],
                 a.host_cu[i], a.max_segment);
  }
  call.require(a.host_cu.back() <= tokens, "segments end at {} of {} tokens", a.host_cu.back(),
               tokens);
  call.shape("cu_seqlens", cu_seqlens, {static_cast<int64_t>(a.host_cu.size())});
  call.dtype("cu_seqlens", cu_seqlens, {DType::kI32});
  const size_t needed = attention_workspace_bytes(kind, tokens, a.q_heads, a.kv_heads, a.head_dim);
  if (needed > 0) {
    call.memory("workspace", workspace);
    call.require(workspace.bytes() >= needed, "workspace of {} bytes, {} needed", workspace.bytes(),
                 needed);
  }
}

}  // namespace

void attention_forward(const Tensor& qkv, const Tensor& cu_seqlens, const AttentionArgs& args,
                       const Tensor& o, const Tensor& lse, const Tensor& workspace,
                       const Stream& s) {
  const checks::Call call("attention_forward", s);
  call.rank("qkv", qkv, 2);
  const int64_t tokens = qkv.dim(0);
  check_args(call, args, tokens, cu_seqlens, workspace, s.device.kind);
  call.shape("qkv", qkv, {tokens, (args.q_heads + 2 * args.kv_heads) * args.head_dim});
  call.shape("o", o, {tokens, args.q_heads * args.head_dim});
  call.shape("lse", lse, {args.q_heads, tokens});
  call.floats({{"qkv", qkv}, {"o", o}});
  call.fp32("lse", lse);
  kernel_table(s.device.kind).attention_forward(qkv, cu_seqlens, args, o, lse, workspace, s);
}

void attention_backward(const Tensor& do_, const Tensor& qkv, const Tensor& o, const Tensor& lse,
                        const Tensor& cu_seqlens, const AttentionArgs& args, const Tensor& dqkv,
                        const Tensor& workspace, const Stream& s) {
  const checks::Call call("attention_backward", s);
  call.rank("qkv", qkv, 2);
  const int64_t tokens = qkv.dim(0);
  check_args(call, args, tokens, cu_seqlens, workspace, s.device.kind);
  call.shape("qkv", qkv, {tokens, (args.q_heads + 2 * args.kv_heads) * args.head_dim});
  call.shape("dqkv", dqkv, {tokens, (args.q_heads + 2 * args.kv_heads) * args.head_dim});
  call.shape("do", do_, {tokens, args.q_heads * args.head_dim});
  call.shape("o", o, {tokens, args.q_heads * args.head_dim});
  call.shape("lse", lse, {args.q_heads, tokens});
  call.floats({{"do", do_}, {"qkv", qkv}, {"o", o}, {"dqkv", dqkv}});
  call.fp32("lse", lse);
  call.require(qkv.empty() || qkv.data != dqkv.data, "dqkv must not alias qkv");
  kernel_table(s.device.kind)
      .attention_backward(do_, qkv, o, lse, cu_seqlens, args, dqkv, workspace, s);
}

}  // namespace r1::kernels
