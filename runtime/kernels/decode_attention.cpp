#include "runtime/kernels/checks.h"
#include "runtime/kernels/kernel_table.h"

namespace r1::kernels {
namespace {

void check_cache(const checks::Call& call, const DecodeAttentionArgs& a, const Tensor& k_cache,
                 const Tensor& v_cache) {
  call.heads(a.q_heads, a.kv_heads, a.head_dim, a.kv_of_q);
  call.rank("k_cache", k_cache, 4);
  call.shape("k_cache", k_cache, {k_cache.dim(0), k_cache.dim(1), a.kv_heads, a.head_dim});
  call.shape("v_cache", v_cache, {k_cache.dim(0), k_cache.dim(1), a.kv_heads, a.head_dim});
}

}  // namespace

void kv_cache_append(const Tensor& qkv, const Tensor& slots, const DecodeAttentionArgs& args,
                     const Tensor& k_cache, const Tensor& v_cache, const Stream& s) {
  const checks::Call call("kv_cache_append", s);
  check_cache(call, args, k_cache, v_cache);
  call.rank("qkv", qkv, 2);
  call.shape("qkv", qkv, {qkv.dim(0), (args.q_heads + 2 * args.kv_heads) * args.head_dim});
  call.shape("slots", slots, {qkv.dim(0)});
  call.floats({{"qkv", qkv}, {"k_cache", k_cache}, {"v_cache", v_cache}});
  call.dtype("slots", slots, {DType::kI64});
  kernel_table(s.device.kind).kv_cache_append(qkv, slots, args, k_cache, v_cache, s);
}

void decode_attention(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache,
                      const Tensor& block_table, const Tensor& context_lens,
                      const DecodeAttentionArgs& args, const Tensor& o, const Tensor& workspace,
                      const Stream& s) {
  const checks::Call call("decode_attention", s);
  check_cache(call, args, k_cache, v_cache);
  call.rank("q", q, 2);
  const int64_t sequences = q.dim(0);
  call.require(q.dim(1) >= args.q_heads * args.head_dim, "q has {} columns for {} heads of {}",
               q.dim(1), args.q_heads, args.head_dim);
  call.rank("block_table", block_table, 2);
  call.shape("block_table", block_table, {sequences, block_table.dim(1)});
  call.shape("context_lens", context_lens, {sequences});
  call.shape("o", o, {sequences, args.q_heads * args.head_dim});
  call.floats({{"q", q}, {"k_cache", k_cache}, {"v_cache", v_cache}, {"o", o}});
  call.dtype("block_table", block_table, {DType::kI32});
  call.dtype("context_lens", context_lens, {DType::kI32});
  call.require(args.max_context >= 0 && args.max_context <= block_table.dim(1) * k_cache.dim(1),
               "a context of {} tokens does not fit in {} blocks of {}", args.max_context,
               block_table.dim(1), k_cache.dim(1));
  const size_t needed = decode_attention_workspace_bytes(s.device.kind, sequences, args.q_heads,
                                                         args.head_dim, args.max_context);
  if (needed > 0) {
    call.memory("workspace", workspace);
    call.require(workspace.bytes() >= needed, "workspace of {} bytes, {} needed", workspace.bytes(),
                 needed);
  }
  kernel_table(s.device.kind)
      .decode_attention(q, k_cache, v_cache, block_table, context_lens, args, o, workspace, s);
}

}  // namespace r1::kernels
