#include "runtime/nn/paged_layer.h"

#include <algorithm>
#include <cmath>

#include "runtime/kernels/ops.h"

namespace r1::nn {

namespace k = r1::kernels;

void PagedLayer::attention(const PagedBatch& batch, const Tensor& qkv, const Tensor& out, const Stream& s) const {
  const parallel::ModelConfig& c = *shared_.config;
  const k::DecodeAttentionArgs args{.q_heads = shared_.local.q_heads.size(),
                                    .kv_heads = shared_.local.kv_heads.size(),
                                    .head_dim = c.head_dim,
                                    .kv_of_q = shared_.kv_of_q,
                                    .scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(c.head_dim))),
                                    .max_context = batch.max_context};
  k::kv_cache_append(qkv, batch.slots, args, keys_, values_, s);
  for (int64_t begin = 0; begin < batch.tokens; begin += shared_.attention_rows) {
    const int64_t end = std::min(begin + shared_.attention_rows, batch.tokens);
    k::decode_attention(qkv.rows(begin, end), keys_, values_, batch.block_table.rows(begin, end),
                        batch.context_lens.rows(begin, end), args, out.rows(begin, end), shared_.scratch.workspace, s);
  }
}

void PagedLayer::forward(const Tensor& x, bool pending, const PagedBatch& batch, const Stream& s) const {
  const PagedScratch& t = shared_.scratch;
  const parallel::ModelConfig& c = *shared_.config;
  const auto eps = static_cast<float>(c.rms_eps);
  const auto rows = [&](const Tensor& all) { return all.rows(0, batch.tokens); };
  const Tensor norm = rows(t.norm), rstd = rows(t.rstd), partial = rows(t.partial), qkv = rows(t.qkv);
  const k::RopeArgs rope{
      .q_heads = shared_.local.q_heads.size(), .kv_heads = shared_.local.kv_heads.size(), .head_dim = c.head_dim};

  if (pending)
    k::add_rmsnorm_forward(x, partial, w_.input_norm, eps, x, norm, rstd, s);
  else
    k::rmsnorm_forward(x, w_.input_norm, eps, norm, rstd, s);
  if (c.qk_norm) {
    k::linear_forward(norm, w_.qkv, w_.qkv_bias, rows(t.qkv_raw), s);
    k::qk_norm_forward(rows(t.qkv_raw), w_.q_norm, w_.k_norm, eps, rope, qkv, rows(t.qk_rstd), s);
  } else {
    k::linear_forward(norm, w_.qkv, w_.qkv_bias, qkv, s);
  }
  k::rope(qkv, batch.positions, shared_.cos_sin, rope, s);
  attention(batch, qkv, rows(t.attention), s);
  k::linear_forward(rows(t.attention), w_.o, {}, partial, s);
  shared_.tp->all_reduce(partial, comm::ReduceOp::kSum, s);

  k::add_rmsnorm_forward(x, partial, w_.post_norm, eps, x, norm, rstd, s);
  k::linear_forward(norm, w_.gate_up, {}, rows(t.gate_up), s);
  k::swiglu_forward(rows(t.gate_up), rows(t.swiglu), s);
  k::linear_forward(rows(t.swiglu), w_.down, {}, partial, s);
  shared_.tp->all_reduce(partial, comm::ReduceOp::kSum, s);
}

}  // namespace r1::nn
