// CUDA implementations of ops.h, handed out through r1run_cuda_kernels(). Called with checked
// arguments (runtime/kernels/*.cpp); activations and weights are bf16 or fp32, gradients of weights
// bf16 or fp32.
#pragma once

#include "runtime/kernels/ops.h"

namespace r1::kernels::cuda {

void linear_forward(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& y,
                    const Stream& s);
void linear_backward_input(const Tensor& dy, const Tensor& w, const Tensor& dx, bool accumulate,
                           const Stream& s);
void linear_backward_weight(const Tensor& dy, const Tensor& x, const Tensor& dw, bool accumulate, const Stream& s);
void bias_backward(const Tensor& dy, const Tensor& db, const Stream& s);
void embedding_forward(const Tensor& ids, const Tensor& w, int64_t vocab_begin, const Tensor& y,
                       const Stream& s);
void embedding_backward(const Tensor& ids, const Tensor& dy, int64_t vocab_begin, const Tensor& dw,
                        const Stream& s);
void rmsnorm_forward(const Tensor& x, const Tensor& w, float eps, const Tensor& y,
                     const Tensor& rstd, const Stream& s);
void add_rmsnorm_forward(const Tensor& x, const Tensor& delta, const Tensor& w, float eps,
                         const Tensor& sum, const Tensor& y, const Tensor& rstd, const Stream& s);
void rmsnorm_backward(const Tensor& dy, const Tensor& x, const Tensor& w, const Tensor& rstd,
                      const Tensor& residual, const Tensor& dx, const Tensor& dw, const Stream& s);
void rope(const Tensor& qkv, const Tensor& positions, const Tensor& cos_sin, const RopeArgs& args,
          const Stream& s);
void qk_norm_forward(const Tensor& raw, const Tensor& q_weight, const Tensor& k_weight, float eps,
                     const RopeArgs& args, const Tensor& out, const Tensor& rstd, const Stream& s);
void qk_norm_backward(const Tensor& d, const Tensor& raw, const Tensor& q_weight,
                      const Tensor& k_weight, const Tensor& rstd, const RopeArgs& args,
                      const Tensor& dq_weight, const Tensor& dk_weight, const Stream& s);
/// lse's layout is private to the pair forward/backward called with equal arguments: [NQ, T] in the
/// own kernels, [rows, NQ, S] or [T, NQ] where cuDNN runs (its backward reads packed statistics
/// only).
void attention_forward(const Tensor& qkv, const Tensor& cu_seqlens, const AttentionArgs& args,
                       const Tensor& o, const Tensor& lse, const Tensor& workspace,
                       const Stream& s);
void attention_backward(const Tensor& do_, const Tensor& qkv, const Tensor& o, const Tensor& lse,
                        const Tensor& cu_seqlens, const AttentionArgs& args, const Tensor& dqkv,
                        const Tensor& workspace, const Stream& s);
void kv_cache_append(const Tensor& qkv, const Tensor& slots, const DecodeAttentionArgs& args,
                     const Tensor& k_cache, const Tensor& v_cache, const Stream& s);
void decode_attention(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache,
                      const Tensor& block_table, const Tensor& context_lens,
                      const DecodeAttentionArgs& args, const Tensor& o, const Tensor& workspace,
                      const Stream& s);
void swiglu_forward(const Tensor& gate_up, const Tensor& h, const Stream& s);
void swiglu_backward(const Tensor& dh, const Tensor& gate_up, const Tensor& dgate_up,
                     const Stream& s);
void cross_entropy_stats(const Tensor& logits, const Tensor& targets, int64_t vocab_begin,
                         const Tensor& stats, const Stream& s);
void cross_entropy_combine(const Tensor& all_stats, const Tensor& targets, const Tensor& lse,
                           const Tensor& loss, const Stream& s);
void cross_entropy_backward(const Tensor& logits, const Tensor& targets, int64_t vocab_begin,
                            const Tensor& lse, float scale, const Stream& s);
void argmax(const Tensor& logits, int64_t vocab_begin, const Tensor& best, const Stream& s);
void sample(const Tensor& logits, std::span<const int64_t> vocab_begin, std::span<const SampleRow> rows,
            const Tensor& seen, const Tensor& tokens, const Stream& s);
void adamw_step(const Tensor& p, const Tensor& master, const Tensor& g, const Tensor& m,
                const Tensor& v, const Tensor& grad_scale, const AdamWArgs& args, const Stream& s);
void sum_of_squares(std::span<const Tensor> matrices, const Tensor& words, const Stream& s);
void sum_into(const Tensor& x, const Tensor& words, const Stream& s);
void exact_total(const Tensor& words, const Tensor& out, const Stream& s);
void clip_factor(const Tensor& sum_squares, const Tensor& loss, float max_norm, const Tensor& factor, const Stream& s);
void add_into(const Tensor& dst, const Tensor& src, const Stream& s);
void add(const Tensor& a, const Tensor& b, const Tensor& out, const Stream& s);
void cast(const Tensor& src, const Tensor& dst, const Stream& s);
void scale(const Tensor& x, float factor, const Stream& s);
void copy_columns(const Tensor& src, int64_t begin, const Tensor& dst, const Stream& s);

}  // namespace r1::kernels::cuda
