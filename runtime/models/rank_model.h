// The part of a model that one rank holds: its virtual stages with parameters and activations, run by the pipeline
// executor. Everything is allocated from the rank's plan at construction; a step allocates nothing.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "parallel/exec/pipeline.h"
#include "parallel/exec/process_groups.h"
#include "parallel/spec/model_spec.h"
#include "runtime/device/graph_cache.h"
#include "runtime/models/gradient_slots.h"
#include "runtime/models/offload.h"
#include "runtime/models/parameters.h"
#include "runtime/nn/decoder_layer.h"
#include "runtime/nn/lm_head.h"

namespace r1::models {

/// A micro-batch on the host: rows * seq_len tokens.
struct HostBatch {
  std::vector<int32_t> ids, targets, positions;
  std::vector<int32_t> cu_seqlens;  ///< starts of segments, and T at the end
  int64_t trained_tokens = 0;
};

class RankModel : public parallel::StageRunner {
 public:
  /// `plan` must come from parallel::plan_rank for this rank. Collective over nothing.
  RankModel(const parallel::ModelSpec& spec, const parallel::RankPlan& plan, parallel::ProcessGroups& groups,
            const parallel::Schedule& schedule, Device device, const Stream& s, bool training = true);
  ~RankModel() override;

  [[nodiscard]] std::vector<StageParameters>& parameters() { return params_; }
  [[nodiscard]] const std::vector<StageParameters>& parameters() const { return params_; }
  [[nodiscard]] const parallel::ModelSpec& spec() const { return spec_; }
  [[nodiscard]] const parallel::RankPlan& plan() const { return plan_; }
  /// A planned scratch tensor by name.
  [[nodiscard]] Tensor scratch(const std::string& name) const;
  /// Bytes allocated, by the plan's categories: equal to plan.bytes() exactly.
  [[nodiscard]] parallel::RankPlan::Bytes allocated() const;

  /// Copies the step's micro-batches to the device. `loss_scale`: 1 / global number of trained tokens.
  void load(std::span<const HostBatch> batches, float loss_scale, bool want_gradients, const Stream& s);
  /// Sees the logits of micro-batches as they are made (verification, sampling): (micro-batch, first token, logits [C, V]).
  using Sink = std::function<void(int microbatch, int64_t first_token, const Tensor& logits)>;
  void set_logits_sink(Sink sink) { sink_ = std::move(sink); }
  void zero_loss(const Stream& s);
  /// Graphs of the decoder layers, one a (stage, direction, slot, class of segments); none where the plan has no graphs.
  [[nodiscard]] GraphCache& graphs() { return graphs_; }
  /// On the device: exact sum of token losses since zero_loss (kernels/exact_sum.h; on the last stage, 0 elsewhere).
  [[nodiscard]] Tensor loss_words() const { return loss_words_; }
  /// Called during the last micro-batch's backward when all gradients of a unit are there: layer -1 the embedding, the number
  /// of layers the final norm and head. What is called at all, and when, is the same on all ranks of a stage.
  using GradientsReady = std::function<void(int stage, int64_t layer)>;
  void set_gradients_ready(GradientsReady ready) { ready_ = std::move(ready); }
  /// What orders the model after an update that runs beside it: `weights` is called before a unit's weights are read (also while
  /// a graph is captured), `gradients` before a step's first gradient of a stage is written.
  struct AfterUpdate {
    std::function<void(int stage, int64_t layer)> weights;
    std::function<void()> gradients;
  };
  void set_after_update(AfterUpdate after) { after_update_ = std::move(after); }

  // StageRunner
  void acquire(int stage, int microbatch) override;
  void release(int stage, int microbatch) override;
  [[nodiscard]] Tensor input(int stage, int microbatch) override;
  [[nodiscard]] Tensor output(int stage, int microbatch) override;
  [[nodiscard]] Tensor output_gradient(int stage, int microbatch) override;
  [[nodiscard]] Tensor input_gradient(int stage, int microbatch) override;
  void forward(int stage, int microbatch) override;
  void backward(int stage, int microbatch, parallel::ActionKind kind) override;

 private:
  struct Chunk {
    int stage = 0;
    parallel::StageSpec spec;
    parallel::SlotLayout layout;
    size_t params = 0;                   ///< index in params_
    std::unique_ptr<GradientSlots> gradients;
    // By gradient slot: what they accumulate into differs, all else is the same.
    std::vector<std::vector<nn::DecoderLayer>> layers;
    std::vector<nn::LmHead> heads;  ///< empty but on the last stage
    [[nodiscard]] size_t depth() const { return layers.front().size(); }
    std::vector<Arena> slots, stashes;
    std::vector<HostSlot> host_slots;  ///< beside `slots`, where block inputs are offloaded
    std::map<int, size_t> slot_of, stash_of;  ///< micro-batch -> slot, stash
    std::map<int, size_t> ring_of;            ///< micro-batch -> gradient ring entry of its input gradient
  };
  [[nodiscard]] Chunk& chunk(int stage);
  [[nodiscard]] Arena& slot(Chunk& c, int microbatch);
  [[nodiscard]] nn::LayerActs acts(Chunk& c, int microbatch, size_t layer, bool backward);
  [[nodiscard]] nn::LayerGrads grads(Chunk& c, int microbatch, size_t layer, bool split);
  [[nodiscard]] Tensor layer_input(Chunk& c, int microbatch, size_t layer);
  [[nodiscard]] const nn::Batch& batch(int microbatch) const;
  /// The micro-batch as captured graphs see it: positions and segments in memory that is the same for all micro-batches.
  [[nodiscard]] nn::Batch layer_batch(int microbatch) const;
  [[nodiscard]] GraphCache::Key graph_key(Chunk& c, parallel::ActionKind kind, int microbatch, const nn::Batch& b) const;
  void weights_needed(int stage, int64_t layer) const;
  /// Before a stage's first gradients of a step.
  void open_gradients(const Chunk& c);
  [[nodiscard]] static nn::MatrixGradients matrix_gradients(const Chunk& c, parallel::ActionKind kind, int microbatch);
  /// Schedules run the micro-batches of a stage in order: the last one completes its gradients.
  void gradients_ready(int stage, int64_t layer, int microbatch) const;
  /// Where the offloaded input of a layer lies for a micro-batch; nullptr: it stays on the device.
  [[nodiscard]] void* host_input(Chunk& c, int microbatch, size_t layer);
  void forward_layers(Chunk& c, int microbatch, const nn::Batch& b);
  void backward_layers(Chunk& c, int microbatch, const nn::Batch& b, nn::MatrixGradients matrices, const Tensor& out);
  /// A backward's layers, as a graph where there are graphs.
  void run_layers(const GraphCache::Key& key, int microbatch, const std::function<void()>& work);

  const parallel::ModelSpec& spec_;
  parallel::RankPlan plan_;
  Device device_;
  Stream stream_;
  parallel::TpRegion region_;
  Arena scratch_;
  std::map<std::string, size_t> scratch_index_;
  std::vector<StageParameters> params_;
  nn::LayerShared shared_;
  std::vector<Chunk> chunks_;
  Buffer loss_buffer_;
  Tensor loss_words_;
  size_t ring_next_ = 0;
  float loss_scale_ = 0;
  bool want_gradients_ = false;
  std::vector<nn::Batch> batches_;
  std::unique_ptr<BlockInputOffload> offload_;
  GraphCache graphs_;
  PinnedBuffer staging_;  ///< the step's micro-batches on their way to a GPU
  Event staged_;          ///< all copies out of staging_ are over
  Sink sink_;
  GradientsReady ready_;
  AfterUpdate after_update_;
};

}  // namespace r1::models
