// One decoder layer of the Llama/Qwen family with explicit forward and backward:
//
//   mid = x + Wo attention(rope(norm(Wqkv rmsnorm(x))))      y = mid + Wdown swiglu(Wgate_up rmsnorm(mid))
//
// Legend: T tokens of a micro-batch, Ts this rank's part between blocks, H hidden, NQ/NKV local heads, D head dim, F local ffn.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "parallel/exec/tp_region.h"
#include "parallel/spec/model_spec.h"
#include "runtime/nn/batch.h"

namespace r1::nn {

/// Weights or gradients of a layer, local shapes.
struct LayerTensors {
  Tensor input_norm;  ///< [H]
  Tensor qkv;         ///< [(NQ + 2 NKV) D, H]
  Tensor qkv_bias;    ///< [(NQ + 2 NKV) D] or empty
  Tensor q_norm, k_norm;  ///< [D] or empty
  Tensor o;           ///< [H, NQ D]
  Tensor post_norm;   ///< [H]
  Tensor gate_up;     ///< [2 F, H]
  Tensor down;        ///< [H, F]
};

/// The activations of one layer and micro-batch, each kept or in scratch (parallel::LayerSlot).
struct LayerActs {
  std::array<Tensor, static_cast<size_t>(parallel::LayerSlot::kCount)> slots;
  [[nodiscard]] Tensor& operator[](parallel::LayerSlot s) { return slots[static_cast<size_t>(s)]; }
  [[nodiscard]] const Tensor& operator[](parallel::LayerSlot s) const { return slots[static_cast<size_t>(s)]; }
};

/// Gradients a layer's backward passes from its input half to its weight half.
struct LayerGrads {
  Tensor dy;        ///< [Ts, H] gradient of y
  Tensor dmid;      ///< [Ts, H]
  Tensor dqkv;      ///< [T, (NQ + 2 NKV) D]
  Tensor dgate_up;  ///< [T, 2 F]; may be the gate_up activation itself
};

/// Working memory shared by all layers.
struct LayerScratch {
  Tensor partial;            ///< [T, H]
  Tensor gathered;           ///< [T, H], tp > 1
  Tensor gathered_gradient;  ///< [T, H], tp > 1
  Tensor summed;             ///< [Ts, H]; `partial` itself when tp is 1
  Tensor d_attention;        ///< [T, NQ D]
  Tensor d_swiglu;           ///< [T, F]
  Tensor workspace;          ///< uint8
};

/// What all layers of a rank share.
struct LayerShared {
  const parallel::ModelConfig* config = nullptr;
  parallel::LocalShape local;
  std::vector<int32_t> kv_of_q;
  const parallel::TpRegion* region = nullptr;
  Tensor cos_sin;  ///< [positions, D] fp32
  LayerScratch scratch;
  parallel::Recompute recompute = parallel::Recompute::kNone;
};

/// What a backward does with the gradients of matrices. A step's first one writes them: clearing them before and reading the
/// zeros would be two more passes over what is the largest part of a model's gradients.
enum class MatrixGradients : uint8_t { kLater, kWrite, kAccumulate };

class DecoderLayer {
 public:
  DecoderLayer(const LayerShared& shared, LayerTensors weights, LayerTensors gradients)
      : shared_(shared), w_(std::move(weights)), g_(std::move(gradients)) {}

  /// x, y [Ts, H]; fills `acts`. Collective over tp.
  void forward(const Tensor& x, const Batch& batch, const LayerActs& acts, const Tensor& y, const Stream& s) const;
  /// Computes again what the policy did not keep (bit-equal: the same operations on the same inputs). The last product of
  /// the block is not repeated: nothing in the backward needs it. Collective over tp.
  void rematerialise(const Tensor& x, const Batch& batch, const LayerActs& acts, const Stream& s) const;
  /// dx [Ts, H] from grads.dy; fills the other tensors of `grads`. Accumulates the gradients of norms; those of matrices and
  /// their biases as backward_weight would, unless `matrices` is kLater. dx may be grads.dy only when it is not. Collective
  /// over tp.
  void backward_input(const Tensor& x, const Batch& batch, const LayerActs& acts, const LayerGrads& grads,
                      const Tensor& dx, MatrixGradients matrices, const Stream& s) const;
  /// The gradients of the matrices, written or accumulated, and of their biases, always accumulated. Collective over tp.
  void backward_weight(const LayerActs& acts, const LayerGrads& grads, MatrixGradients matrices, const Stream& s) const;

 private:
  void attention_projection(const Batch& batch, const LayerActs& acts, const Stream& s) const;
  void attention(const Batch& batch, const LayerActs& acts, const Stream& s) const;
  void attention_output(const Tensor& x, const LayerActs& acts, const Stream& s) const;
  void mlp_projection(const LayerActs& acts, const Stream& s) const;

  const LayerShared& shared_;
  LayerTensors w_, g_;
};

}  // namespace r1::nn
