// The parameters of one virtual stage on one rank: flat blocks of weights, gradients and optimizer state, and views by
// role. Offsets come from parallel::param_layout, so plan and allocation agree.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "parallel/spec/model_spec.h"
#include "runtime/device/device.h"
#include "runtime/nn/decoder_layer.h"

namespace r1::models {

class StageParameters {
 public:
  /// Allocates zeroed blocks on `device`. `training`: gradients and optimizer state too, of which this rank holds `shard` of
  /// `shards` (parallel::state_layout). `gradient_slots` blocks of gradients; `tied_head`: a tied head's gradients apart from the
  /// embedding's, in a stage that is both ends.
  struct Holds {
    bool training = true;
    int shard = 0, shards = 1, gradient_slots = 1;
    bool tied_head = false;
  };
  StageParameters(const parallel::ModelSpec& spec, int stage, int tp_rank, const parallel::NumericFormat& format, Device device,
                  const Holds& holds, const Stream& s);

  [[nodiscard]] int stage() const { return stage_; }
  [[nodiscard]] int tp_rank() const { return tp_rank_; }
  [[nodiscard]] const std::vector<parallel::ParamSpec>& specs() const { return specs_; }
  [[nodiscard]] const parallel::ParamLayout& layout() const { return layout_; }
  [[nodiscard]] int64_t elems() const { return layout_.elems; }

  [[nodiscard]] const parallel::StateLayout& state_layout() const { return state_layout_; }
  [[nodiscard]] int shards() const { return shards_; }

  /// Whole flat blocks: weights and gradients [elems], master and moments [state_layout().elems]; empty when not allocated (no
  /// master beside fp32 weights, inference).
  [[nodiscard]] Tensor weights() const { return weights_; }
  [[nodiscard]] Tensor gradients() const { return gradient_slot(0); }
  /// Blocks of gradients: sums end in slot 0, partial sums lie in the others (GradientSlots).
  [[nodiscard]] size_t gradient_slots() const { return gradient_slots_.size(); }
  [[nodiscard]] Tensor gradient_slot(size_t i) const { return gradient_slots_.empty() ? Tensor{} : gradient_slots_.at(i); }
  /// A tied head's own gradients, with the shape of the embedding; empty where it accumulates in the embedding's.
  [[nodiscard]] Tensor tied_head_gradient(size_t slot) const {
    return tied_head_gradients_.empty() ? Tensor{} : tied_head_gradients_.at(slot);
  }
  [[nodiscard]] Tensor master() const { return master_; }
  [[nodiscard]] Tensor exp_avg() const { return exp_avg_; }
  [[nodiscard]] Tensor exp_avg_sq() const { return exp_avg_sq_; }

  /// Parameter i's part of a flat block, with its local shape.
  [[nodiscard]] Tensor part(const Tensor& block, size_t i) const;
  /// Parameter i's shard in a block of optimizer state: rows state_layout().rows[i] of its local part.
  [[nodiscard]] Tensor state(const Tensor& block, size_t i) const;
  /// Index of a role in a layer; throws InternalError when the stage does not hold it.
  [[nodiscard]] size_t index(parallel::ParamRole role, int64_t layer) const;
  [[nodiscard]] bool holds(parallel::ParamRole role, int64_t layer) const;
  /// One parameter, or `count` neighbouring fused ones, as rows of one matrix (or one vector).
  [[nodiscard]] Tensor fused(const Tensor& block, size_t first, size_t count) const;
  /// The tensors of a decoder layer in `block` (weights or gradients; empty block: empty tensors).
  [[nodiscard]] nn::LayerTensors layer(const Tensor& block, int64_t layer) const;

 private:
  int stage_, tp_rank_, shards_;
  std::vector<parallel::ParamSpec> specs_;
  parallel::ParamLayout layout_;
  parallel::StateLayout state_layout_;
  Buffer weight_buffer_, master_buffer_, exp_avg_buffer_, exp_avg_sq_buffer_;
  std::vector<Buffer> gradient_buffers_;
  std::vector<Tensor> gradient_slots_, tied_head_gradients_;
  Tensor weights_, master_, exp_avg_, exp_avg_sq_;
};

/// Fills every parameter of the model with its initial value: normal(0, initializer_range) for matrices, zeros for biases,
/// ones for norms. The value of an element depends on (seed, parameter name, global index) only, never on the layout.
void initialise(const StageParameters& params, const parallel::ModelConfig& config, uint64_t seed, const Stream& s);

/// Copies fp32 host values of parameter i (its local part, local shape) into weights and this rank's shard of the master.
void set_weights(const StageParameters& params, size_t i, const float* values, const Stream& s);
/// A tensor's values (fp32 or bf16) as fp32 on the host; waits for the stream.
[[nodiscard]] std::vector<float> host_floats(const Tensor& t, const Stream& s);
/// Parameter i's part of `block` as fp32 on the host.
[[nodiscard]] std::vector<float> host_values(const StageParameters& params, const Tensor& block, size_t i, const Stream& s);

}  // namespace r1::models
