#include "runtime/nn/decoder_layer.h"

#include <cmath>

#include "runtime/kernels/ops.h"

namespace r1::nn {

namespace k = r1::kernels;
using parallel::LayerSlot;
using parallel::Recompute;

namespace {

k::RopeArgs rope_args(const LayerShared& sh, bool inverse) {
  return {.q_heads = sh.local.q_heads.size(), .kv_heads = sh.local.kv_heads.size(), .head_dim = sh.config->head_dim,
          .inverse = inverse};
}

k::AttentionArgs attention_args(const LayerShared& sh, const Batch& batch) {
  return {.q_heads = sh.local.q_heads.size(), .kv_heads = sh.local.kv_heads.size(), .head_dim = sh.config->head_dim,
          .kv_of_q = sh.kv_of_q, .scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(sh.config->head_dim))),
          .max_segment = batch.max_segment, .host_cu = batch.host_cu};
}

float eps_of(const LayerShared& sh) { return static_cast<float>(sh.config->rms_eps); }

}  // namespace

void DecoderLayer::attention_projection(const Batch& batch, const LayerActs& a, const Stream& s) const {
  const Tensor n1 = shared_.region->gather(a[LayerSlot::kNorm1], shared_.scratch.gathered, s);
  const Tensor& qkv = a[LayerSlot::kQkv];
  if (shared_.config->qk_norm) {
    const Tensor& raw = a[LayerSlot::kQkvRaw];
    k::linear_forward(n1, w_.qkv, w_.qkv_bias, raw, s);
    k::qk_norm_forward(raw, w_.q_norm, w_.k_norm, eps_of(shared_), rope_args(shared_, false), qkv,
                       a[LayerSlot::kQkRstd], s);
  } else {
    k::linear_forward(n1, w_.qkv, w_.qkv_bias, qkv, s);
  }
  k::rope(qkv, batch.positions, shared_.cos_sin, rope_args(shared_, false), s);
}

void DecoderLayer::attention(const Batch& batch, const LayerActs& a, const Stream& s) const {
  k::attention_forward(a[LayerSlot::kQkv], batch.cu_seqlens, attention_args(shared_, batch), a[LayerSlot::kAttn],
                       a[LayerSlot::kLse], shared_.scratch.workspace, s);
}

void DecoderLayer::attention_output(const Tensor& x, const LayerActs& a, const Stream& s) const {
  const LayerScratch& t = shared_.scratch;
  k::linear_forward(a[LayerSlot::kAttn], w_.o, {}, t.partial, s);
  shared_.region->scatter_sum(t.partial, t.summed, s);
  k::add_rmsnorm_forward(x, t.summed, w_.post_norm, eps_of(shared_), a[LayerSlot::kMid], a[LayerSlot::kNorm2],
                         a[LayerSlot::kRstd2], s);
}

void DecoderLayer::mlp_projection(const LayerActs& a, const Stream& s) const {
  const Tensor n2 = shared_.region->gather(a[LayerSlot::kNorm2], shared_.scratch.gathered, s);
  k::linear_forward(n2, w_.gate_up, {}, a[LayerSlot::kGateUp], s);
}

void DecoderLayer::forward(const Tensor& x, const Batch& batch, const LayerActs& a, const Tensor& y,
                           const Stream& s) const {
  const LayerScratch& t = shared_.scratch;
  k::rmsnorm_forward(x, w_.input_norm, eps_of(shared_), a[LayerSlot::kNorm1], a[LayerSlot::kRstd1], s);
  attention_projection(batch, a, s);
  attention(batch, a, s);
  attention_output(x, a, s);
  mlp_projection(a, s);
  k::swiglu_forward(a[LayerSlot::kGateUp], a[LayerSlot::kAct], s);
  k::linear_forward(a[LayerSlot::kAct], w_.down, {}, t.partial, s);
  shared_.region->scatter_sum(t.partial, t.summed, s);
  k::add(a[LayerSlot::kMid], t.summed, y, s);
}

void DecoderLayer::rematerialise(const Tensor& x, const Batch& batch, const LayerActs& a, const Stream& s) const {
  const Recompute policy = shared_.recompute;
  if (policy == Recompute::kNone) return;
  k::rmsnorm_forward(x, w_.input_norm, eps_of(shared_), a[LayerSlot::kNorm1], a[LayerSlot::kRstd1], s);
  if (policy == Recompute::kFull) attention_projection(batch, a, s);
  if (policy == Recompute::kFull || policy == Recompute::kSelective) attention(batch, a, s);
  if (policy == Recompute::kFull) {
    attention_output(x, a, s);
    mlp_projection(a, s);
  } else {
    k::rmsnorm_forward(a[LayerSlot::kMid], w_.post_norm, eps_of(shared_), a[LayerSlot::kNorm2], a[LayerSlot::kRstd2], s);
  }
  k::swiglu_forward(a[LayerSlot::kGateUp], a[LayerSlot::kAct], s);
}

void DecoderLayer::backward_input(const Tensor& x, const Batch& batch, const LayerActs& a, const LayerGrads& grads,
                                  const Tensor& dx, MatrixGradients matrices, const Stream& s) const {
  const LayerScratch& t = shared_.scratch;
  const parallel::TpRegion& region = *shared_.region;
  const bool weights = matrices != MatrixGradients::kLater, add = matrices == MatrixGradients::kAccumulate;

  // MLP half: y = mid + down(swiglu(gate_up(norm2(mid))))
  const Tensor dy = region.gather(grads.dy, t.gathered_gradient, s);  // [T, H]
  k::linear_backward_input(dy, w_.down, t.d_swiglu, false, s);
  if (weights) k::linear_backward_weight(dy, a[LayerSlot::kAct], g_.down, add, s);
  k::swiglu_backward(t.d_swiglu, a[LayerSlot::kGateUp], grads.dgate_up, s);
  k::linear_backward_input(grads.dgate_up, w_.gate_up, t.partial, false, s);
  if (weights)
    k::linear_backward_weight(grads.dgate_up, region.gather(a[LayerSlot::kNorm2], t.gathered, s), g_.gate_up, add, s);
  region.scatter_sum(t.partial, t.summed, s);
  k::rmsnorm_backward(t.summed, a[LayerSlot::kMid], w_.post_norm, a[LayerSlot::kRstd2], grads.dy, grads.dmid,
                      g_.post_norm, s);

  // Attention half: mid = x + o(attention(rope(qkv(norm1(x)))))
  const Tensor dmid = region.gather(grads.dmid, t.gathered_gradient, s);  // [T, H]
  k::linear_backward_input(dmid, w_.o, t.d_attention, false, s);
  if (weights) k::linear_backward_weight(dmid, a[LayerSlot::kAttn], g_.o, add, s);
  k::attention_backward(t.d_attention, a[LayerSlot::kQkv], a[LayerSlot::kAttn], a[LayerSlot::kLse], batch.cu_seqlens,
                        attention_args(shared_, batch), grads.dqkv, t.workspace, s);
  k::rope(grads.dqkv, batch.positions, shared_.cos_sin, rope_args(shared_, true), s);
  if (shared_.config->qk_norm)
    k::qk_norm_backward(grads.dqkv, a[LayerSlot::kQkvRaw], w_.q_norm, w_.k_norm, a[LayerSlot::kQkRstd],
                        rope_args(shared_, false), g_.q_norm, g_.k_norm, s);
  k::linear_backward_input(grads.dqkv, w_.qkv, t.partial, false, s);
  if (weights) {
    k::linear_backward_weight(grads.dqkv, region.gather(a[LayerSlot::kNorm1], t.gathered, s), g_.qkv, add, s);
    if (shared_.config->qkv_bias) k::bias_backward(grads.dqkv, g_.qkv_bias, s);
  }
  region.scatter_sum(t.partial, t.summed, s);
  k::rmsnorm_backward(t.summed, x, w_.input_norm, a[LayerSlot::kRstd1], grads.dmid, dx, g_.input_norm, s);
}

void DecoderLayer::backward_weight(const LayerActs& a, const LayerGrads& grads, MatrixGradients matrices, const Stream& s) const {
  const bool add = matrices == MatrixGradients::kAccumulate;
  const LayerScratch& t = shared_.scratch;
  const parallel::TpRegion& region = *shared_.region;
  const Tensor dy = region.gather(grads.dy, t.gathered_gradient, s);
  k::linear_backward_weight(dy, a[LayerSlot::kAct], g_.down, add, s);
  k::linear_backward_weight(grads.dgate_up, region.gather(a[LayerSlot::kNorm2], t.gathered, s), g_.gate_up, add, s);
  const Tensor dmid = region.gather(grads.dmid, t.gathered_gradient, s);
  k::linear_backward_weight(dmid, a[LayerSlot::kAttn], g_.o, add, s);
  k::linear_backward_weight(grads.dqkv, region.gather(a[LayerSlot::kNorm1], t.gathered, s), g_.qkv, add, s);
  if (shared_.config->qkv_bias) k::bias_backward(grads.dqkv, g_.qkv_bias, s);
}

}  // namespace r1::nn
