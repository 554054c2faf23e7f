// The operations of training and decoding: one free function each, dispatched on the tensors' device.
//
// Legend: T tokens of a micro-batch (rows * seq_len, or this rank's part of them), H hidden, F ffn (local), V vocabulary
// (local part), D head dim, NQ/NKV query/key-value heads (local), IN/OUT dims of a linear layer.
// All tensors are contiguous row-major unless a stride is named. Any count may be 0 (a rank without heads): no-op.
// Every function enqueues on `s` and returns; on CPU it has run when it returns. On CPU all floats are fp32. On CUDA
// activations and weights are bf16 (fp32 in verification mode), accumulation is fp32, `dw`, `db` gradients are fp32
// (or bf16 with --state-dtype bf16), statistics (rstd, lse, loss) are fp32.
// "+=" marks accumulation into the output; everything else overwrites. Results on CPU do not depend on the number of threads.
#pragma once

#include <cstdint>
#include <span>

#include "runtime/device/tensor.h"

namespace r1::kernels {

// ---------------------------------------------------------------- linear (op: linear)

/// y = x w^T + bias. x [T, IN], w [OUT, IN], bias [OUT] or empty, y [T, OUT].
void linear_forward(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& y, const Stream& s);
/// dx = dy w (accumulate: dx += dy w). dy [T, OUT], w [OUT, IN], dx [T, IN].
void linear_backward_input(const Tensor& dy, const Tensor& w, const Tensor& dx, bool accumulate, const Stream& s);
/// dw = dy^T x (accumulate: dw += dy^T x). dy [T, OUT], x [T, IN], dw [OUT, IN].
void linear_backward_weight(const Tensor& dy, const Tensor& x, const Tensor& dw, bool accumulate, const Stream& s);
/// db += column sums of dy. dy [T, OUT], db [OUT].
void bias_backward(const Tensor& dy, const Tensor& db, const Stream& s);

// ---------------------------------------------------------------- embedding (op: embedding)

/// y[t] = w[ids[t] - vocab_begin], or zeros where ids[t] is not in this rank's vocabulary part.
/// ids [T] int32, w [V, H], y [T, H].
void embedding_forward(const Tensor& ids, const Tensor& w, int64_t vocab_begin, const Tensor& y, const Stream& s);
/// dw[ids[t] - vocab_begin] += dy[t] for the ids in this rank's part; a fixed order of summation.
void embedding_backward(const Tensor& ids, const Tensor& dy, int64_t vocab_begin, const Tensor& dw, const Stream& s);

// ---------------------------------------------------------------- RMSNorm (op: rmsnorm; Zhang & Sennrich 2019)

/// y = x * rstd * w, rstd = 1/sqrt(mean(x^2) + eps). x, y [T, H], w [H], rstd [T] fp32.
void rmsnorm_forward(const Tensor& x, const Tensor& w, float eps, const Tensor& y, const Tensor& rstd, const Stream& s);
/// sum = x + delta; y = rmsnorm(sum). sum may alias x. The fused residual add of a block edge.
void add_rmsnorm_forward(const Tensor& x, const Tensor& delta, const Tensor& w, float eps, const Tensor& sum,
                         const Tensor& y, const Tensor& rstd, const Stream& s);
/// dx = (gradient through the norm of dy) + residual; dw += ... . `residual` [T, H] is the gradient arriving on the
/// skip path, or empty. dx may alias residual or dy.
void rmsnorm_backward(const Tensor& dy, const Tensor& x, const Tensor& w, const Tensor& rstd, const Tensor& residual,
                      const Tensor& dx, const Tensor& dw, const Stream& s);

// ---------------------------------------------------------------- RoPE and q/k norm (op: rope)

/// Rotation in the half-split convention of Hugging Face (rotate_half) of q and k inside a fused qkv tensor, in place.
/// qkv [T, (NQ + 2 NKV) * D]: q heads, then k heads, then v heads; v is left alone. positions [T] int32.
/// cos_sin [max_positions, D]: first D/2 columns cos, last D/2 sin, fp32 (attention scaling already multiplied in).
/// `inverse` rotates back: the backward of the rotation applied to a gradient.
struct RopeArgs {
  int64_t q_heads = 0, kv_heads = 0, head_dim = 0;
  bool inverse = false;
};
void rope(const Tensor& qkv, const Tensor& positions, const Tensor& cos_sin, const RopeArgs& args, const Stream& s);

/// Qwen3's RMSNorm of each q and k head over D (before RoPE). raw and out [T, (NQ + 2 NKV) * D]: v is copied;
/// q_weight, k_weight [D]; rstd [T, NQ + NKV] fp32. out must not alias raw.
void qk_norm_forward(const Tensor& raw, const Tensor& q_weight, const Tensor& k_weight, float eps, const RopeArgs& args,
                     const Tensor& out, const Tensor& rstd, const Stream& s);
/// Backward of qk_norm_forward; d [T, (NQ + 2 NKV) * D] is the gradient of out on entry and of raw on return (in
/// place); dq_weight, dk_weight [D] +=.
void qk_norm_backward(const Tensor& d, const Tensor& raw, const Tensor& q_weight, const Tensor& k_weight,
                      const Tensor& rstd, const RopeArgs& args, const Tensor& dq_weight, const Tensor& dk_weight,
                      const Stream& s);

// ---------------------------------------------------------------- attention (op: attention; Dao et al. 2022, 2023)

/// Causal attention, confined to segments (packed samples), with grouped query heads.
/// cu_seqlens [segments + 1] int32 on the device: segment i covers tokens [cu[i], cu[i+1]); host_cu is the same on the host.
/// kv_of_q: for each local q head the local kv head it reads (host; size q_heads; non-decreasing). Uneven groups occur
/// when tensor parallelism cuts inside a group.
struct AttentionArgs {
  int64_t q_heads = 0, kv_heads = 0, head_dim = 0;
  std::span<const int32_t> kv_of_q;
  float scale = 1.0F;  ///< multiplies q.k before the softmax (1/sqrt(D))
  int64_t max_segment = 0;
  std::span<const int32_t> host_cu;
};
/// o = softmax(q k^T * scale) v within each segment. qkv [T, (NQ + 2 NKV) * D], o [T, NQ * D], lse [NQ, T] fp32
/// (log-sum-exp of the scaled scores, natural log). `workspace` from attention_workspace_bytes (uint8).
void attention_forward(const Tensor& qkv, const Tensor& cu_seqlens, const AttentionArgs& args, const Tensor& o,
                       const Tensor& lse, const Tensor& workspace, const Stream& s);
/// dqkv (all three parts, overwritten) from do_ [T, NQ * D].
void attention_backward(const Tensor& do_, const Tensor& qkv, const Tensor& o, const Tensor& lse,
                        const Tensor& cu_seqlens, const AttentionArgs& args, const Tensor& dqkv,
                        const Tensor& workspace, const Stream& s);
/// Bytes of workspace that forward and backward need for T tokens. Pure, the plan calls it too. (CPU: 0.)
[[nodiscard]] size_t attention_workspace_bytes(DeviceKind kind, int64_t tokens, int64_t q_heads, int64_t kv_heads,
                                               int64_t head_dim);

// ---------------------------------------------------------------- decoding with a paged KV cache (op: decode_attention)

/// Heads as in AttentionArgs. max_context is the largest of context_lens (host; it sizes the launch and the workspace).
struct DecodeAttentionArgs {
  int64_t q_heads = 0, kv_heads = 0, head_dim = 0;
  std::span<const int32_t> kv_of_q;
  float scale = 1.0F;
  int64_t max_context = 0;
};
/// Writes k and v of each token into its slot of the paged cache. qkv [T, (NQ + 2 NKV) * D] (after RoPE); slots [T] int64:
/// block * block_size + offset, negative: the token is not stored (padding). k_cache, v_cache [blocks, block_size, NKV, D].
/// No slot may occur twice.
void kv_cache_append(const Tensor& qkv, const Tensor& slots, const DecodeAttentionArgs& args, const Tensor& k_cache,
                     const Tensor& v_cache, const Stream& s);
/// o = softmax(q k^T * scale) v of one query token a sequence against all keys of its context (the token's own k and v
/// are in the cache already). q [B, >= NQ * D]: the first NQ * D columns of each row are read, so that the fused qkv row
/// serves as it is. block_table [B, max_blocks] int32: the cache block that holds positions [i * block_size, (i + 1) *
/// block_size) of sequence b; entries past the context are not read. context_lens [B] int32; 0: o row is 0. o [B, NQ * D].
void decode_attention(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, const Tensor& block_table,
                      const Tensor& context_lens, const DecodeAttentionArgs& args, const Tensor& o,
                      const Tensor& workspace, const Stream& s);
/// Bytes of workspace decode_attention needs for B sequences. Pure. (CPU: 0.)
[[nodiscard]] size_t decode_attention_workspace_bytes(DeviceKind kind, int64_t sequences, int64_t q_heads,
                                                      int64_t head_dim, int64_t max_context);

// ---------------------------------------------------------------- SwiGLU (op: swiglu; Shazeer 2020)

/// h = silu(gate) * up. gate_up [T, 2 F] (gate columns first), h [T, F].
void swiglu_forward(const Tensor& gate_up, const Tensor& h, const Stream& s);
/// dgate_up from dh. dgate_up may alias gate_up.
void swiglu_backward(const Tensor& dh, const Tensor& gate_up, const Tensor& dgate_up, const Stream& s);

// ---------------------------------------------------------------- cross-entropy over a vocabulary part (op: cross_entropy)

/// Per-token statistics of this rank's logits part, to be combined over tp:
/// stats [3, C] fp32: row 0 maximum, row 1 sum of exp(logit - own maximum), row 2 logit of the target (0 when the target
/// is not in this part or is negative). logits [C, V], targets [C] int32 (negative: not trained). V may be 0: max -inf, sum 0.
void cross_entropy_stats(const Tensor& logits, const Tensor& targets, int64_t vocab_begin, const Tensor& stats,
                         const Stream& s);
/// Combines the parts of all tp ranks: all_stats [P, 3, C] -> lse [C] and loss [C] fp32 (0 where not trained).
void cross_entropy_combine(const Tensor& all_stats, const Tensor& targets, const Tensor& lse, const Tensor& loss,
                           const Stream& s);
/// logits <- (softmax(logits) - onehot(target)) * scale in place, rows not trained become 0. lse [C].
void cross_entropy_backward(const Tensor& logits, const Tensor& targets, int64_t vocab_begin, const Tensor& lse,
                            float scale, const Stream& s);

// ---------------------------------------------------------------- the most likely token (op: argmax)

/// best [2, C] fp32: row 0 the largest logit of each row, row 1 the id it belongs to, the smallest where several are equal
/// (ids are below 2^24, where fp32 counts exactly). A row that holds NaN has NaN in row 0. V may be 0: -infinity, id
/// vocab_begin. logits [C, V].
void argmax(const Tensor& logits, int64_t vocab_begin, const Tensor& best, const Stream& s);

// ---------------------------------------------------------------- the draw of a token (op: sample)

/// How the next token of one row is chosen; applied in this order (as transformers does): repetition penalty, temperature,
/// top-k, top-p over what is left, min-p, draw.
struct SampleRow {
  int64_t row = 0;                 ///< of the logits
  double temperature = 0;          ///< 0: the most likely token; the three below then have no effect
  int64_t top_k = 0;               ///< among the k most likely tokens; 0: all
  double top_p = 1;                ///< among the fewest most likely tokens that together reach this probability
  double min_p = 0;                ///< leave out tokens less likely than this times the most likely one
  double repetition_penalty = 1;   ///< logits of the tokens seen are divided by it (those that are not positive: times)
  int64_t seen = -1;               ///< row of `seen`; -1: no token is punished
  uint64_t seed = 0, request = 0;  ///< the noise of a token is keyed by (seed, request, position, token)
  int64_t position = 0;
};
inline constexpr int64_t kMaxVocabParts = 128;
/// Words of a row of `seen`: a bit a token.
[[nodiscard]] constexpr int64_t seen_words(int64_t vocab) { return (vocab + 31) / 32; }
/// tokens[i] = the token that rows[i] draws, or -1 where its logits hold NaN, +infinity or no finite value. Of equally likely
/// tokens the smaller id stands first. The draw is a Gumbel maximum (Gumbel 1954; Maddison et al. 2014): the token with the
/// largest log-probability plus its own Gumbel noise. Where logits differ in their last bits (another layout, another batch
/// on a GPU), another token results only when two of these sums are that close, which is about as likely as the difference
/// is large (1e-6 in fp32), whatever the vocabulary; an inverse distribution function would add up the differences of all tokens
/// before the drawn one. CPU and CUDA may differ where two sums differ in the last bits of fp64 (exp and log),
/// or a share of top-p is reached to the last unit of 2^-44.
/// A row's token depends on its logits and its SampleRow alone.
/// logits [C * vocabulary]: the parts of all tp ranks one after the other, part p [C, vocab_begin[p + 1] - vocab_begin[p]];
/// vocab_begin (host): 0, ..., the vocabulary. rows (host): N, read before the call returns. seen [S, seen_words] int32: bit
/// id % 32 of word id / 32 says that token id was seen; may be empty. tokens [N] int32.
void sample(const Tensor& logits, std::span<const int64_t> vocab_begin, std::span<const SampleRow> rows,
            const Tensor& seen, const Tensor& tokens, const Stream& s);

// ---------------------------------------------------------------- optimizer and small helpers (op: optim)

/// One AdamW step (Loshchilov & Hutter 2019, decoupled decay) over n elements of flat ranges.
/// p (weights, storage dtype), master (fp32, or empty when p is fp32 itself), g (gradient), m, v (moments).
/// `grad_scale` multiplies g first (clipping). step counts from 1. PyTorch's order of operations:
/// p *= 1 - lr*wd; m = b1 m + (1-b1) g; v = b2 v + (1-b2) g^2; p -= lr/(1-b1^t) * m / (sqrt(v)/sqrt(1-b2^t) + eps).
/// The scalar factors are formed in fp64 and rounded to fp32 once, as PyTorch does with Python's floats.
struct AdamWArgs {
  double lr = 0, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0;  ///< double: 1 - 0.999F is off by 1.3e-5
  int64_t step = 1;
  uint64_t seed = 0;  ///< stochastic rounding of bf16 states, keyed by (seed, step, first_element + index)
  int64_t first_element = 0;  ///< number of the first element: a shard rounds as it would within the whole
};
/// grad_scale: fp32 scalar on the device (so that clipping needs no host round trip); 0 skips the step (weights unchanged).
void adamw_step(const Tensor& p, const Tensor& master, const Tensor& g, const Tensor& m, const Tensor& v,
                const Tensor& grad_scale, const AdamWArgs& args, const Stream& s);
/// words += sum of squares of the matrices [R, C], whatever the order of rows over them, calls and ranks (exact_sum.h): each row
/// is summed in fp64 in a fixed order, and the rows' sums are added without rounding. Each fp32 or bf16, words [kExactWords] int64.
void sum_of_squares(std::span<const Tensor> matrices, const Tensor& words, const Stream& s);
/// words += the sum of the elements of x, without rounding. x fp32, words as above.
void sum_into(const Tensor& x, const Tensor& words, const Stream& s);
/// out[0] = the value of words (exact_sum.h). out [1] fp64.
void exact_total(const Tensor& words, const Tensor& out, const Stream& s);
/// Factor of gradient clipping by the global norm: factor = min(1, max_norm / (norm + 1e-6)) as torch.nn.utils.clip_grad_norm_
/// forms it, norm = sqrt(sum_squares[0]). max_norm <= 0: 1. A norm or a loss that is not finite gives 0, which makes adamw_step
/// skip. sum_squares and loss [1] fp64, factor [1] fp32: all on the device, so that a step needs no host round trip.
void clip_factor(const Tensor& sum_squares, const Tensor& loss, float max_norm, const Tensor& factor, const Stream& s);
/// dst += src; same shape, dtypes may differ.
void add_into(const Tensor& dst, const Tensor& src, const Stream& s);
/// out = a + b.
void add(const Tensor& a, const Tensor& b, const Tensor& out, const Stream& s);
/// dst = src converted to dst's dtype.
void cast(const Tensor& src, const Tensor& dst, const Stream& s);
/// x *= factor.
void scale(const Tensor& x, float factor, const Stream& s);
/// dst[r, :] = src[r, 0:cols] of a wider row: copies columns [begin, begin + dst.dim(1)) of src [R, C].
void copy_columns(const Tensor& src, int64_t begin, const Tensor& dst, const Stream& s);

}  // namespace r1::kernels
