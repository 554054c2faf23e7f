// ModelConfig + mesh -> what every rank holds and computes: parameters with their shards, stages, activations, memory.
// Pure: the launcher's plan and the rank's allocation read the same functions.
//
// Legend: T tokens of a micro-batch (rows * seq_len), Ts this tp rank's part of them (sequence parallelism), H hidden,
// NQ/NKV local query/key-value heads, D head dim, F local ffn, V local vocabulary.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "parallel/mesh/mesh.h"
#include "parallel/schedule/schedule.h"
#include "parallel/shard/shard.h"
#include "parallel/spec/model_config.h"
#include "parallel/spec/row_tree.h"

namespace r1::parallel {

/// What a parameter is to its layer. Order = order in memory: q|k|v and gate|up must be neighbours (one GEMM each).
enum class ParamRole : uint8_t {
  kEmbedding, kInputNorm, kQ, kK, kV, kQBias, kKBias, kVBias, kQNorm, kKNorm, kO, kPostNorm, kGate, kUp, kDown,
  kFinalNorm, kHead,
};

struct ParamSpec {
  std::string name;             ///< name in the Hugging Face checkpoint
  ParamRole role = ParamRole::kEmbedding;
  int64_t layer = 0;            ///< -1 embedding, 0..L-1, L final norm and head
  std::vector<int64_t> shape;   ///< global
  ShardSpec shard;              ///< over tp
  bool tied_copy = false;       ///< the head's copy of a tied embedding: not a tensor of its own in checkpoints
  /// True when this parameter continues the previous one's block in memory (k after q, up after gate).
  bool fused_with_previous = false;
};

/// A virtual stage: layers [begin, end), with the embedding and/or the head.
struct StageSpec {
  int64_t layer_begin = 0, layer_end = 0;
  bool embedding = false, head = false;
};

/// Local sizes of one tp rank.
struct LocalShape {
  Interval q_heads, kv_heads, ffn, vocab;
  [[nodiscard]] std::vector<int32_t> kv_of_q(int64_t group) const;  ///< local kv head of each local q head
};

class ModelSpec {
 public:
  ModelSpec(ModelConfig config, int tp, int stages);

  [[nodiscard]] const ModelConfig& config() const { return config_; }
  [[nodiscard]] int tp() const { return tp_; }
  [[nodiscard]] const std::vector<StageSpec>& stages() const { return stages_; }
  [[nodiscard]] const LocalShape& local(int tp_rank) const { return locals_.at(static_cast<size_t>(tp_rank)); }
  /// Parameters of a virtual stage in memory order.
  [[nodiscard]] std::vector<ParamSpec> stage_params(int stage) const;
  /// Every parameter of the model once (tied head left out), in checkpoint order.
  [[nodiscard]] std::vector<ParamSpec> all_params() const;

 private:
  [[nodiscard]] std::vector<ParamSpec> layer_params(int64_t layer) const;
  [[nodiscard]] ParamSpec embedding_param() const;
  [[nodiscard]] std::vector<ParamSpec> head_params() const;

  ModelConfig config_;
  int tp_;
  std::vector<StageSpec> stages_;
  std::vector<LocalShape> locals_;  // by tp rank
};

/// Cuts layers into contiguous stages that minimise the slowest one, embedding and head counted (head = V*H matrix,
/// layer = its matrices; attention at `seq` = 0 left out). Each stage has one layer at least; throws UsageError when
/// there are more stages than layers.
[[nodiscard]] std::vector<StageSpec> partition_stages(const ModelConfig& config, int stages);

enum class Recompute { kNone, kCheap, kSelective, kFull };
[[nodiscard]] Recompute parse_recompute(const std::string& name);
[[nodiscard]] std::string recompute_name(Recompute policy);

/// One planned tensor.
struct PlannedTensor {
  std::string name;
  std::vector<int64_t> shape;
  DType dtype = DType::kF32;
  [[nodiscard]] int64_t elems() const;
  [[nodiscard]] int64_t bytes() const { return elems() * dtype_bytes(dtype); }
};

/// Dtypes of a job: the three explicit choices of storage, accumulation and reduction.
struct NumericFormat {
  DType weights = DType::kF32;      ///< weights and activations
  DType gradients = DType::kF32;    ///< accumulated gradients, and the dtype they are reduced in
  DType moments = DType::kF32;      ///< Adam moments
  bool master = false;              ///< fp32 master weights beside `weights`
};

/// The tensors a decoder layer keeps for one in-flight micro-batch. Index of each in `LayerSaved`.
enum class LayerSlot : uint8_t {
  kNorm1, kRstd1, kQkvRaw, kQkRstd, kQkv, kAttn, kLse, kMid, kNorm2, kRstd2, kGateUp, kAct, kCount
};
/// True when `policy` keeps the slot between forward and backward; otherwise it lives in scratch and is recomputed.
[[nodiscard]] bool keeps(Recompute policy, LayerSlot slot);
/// Shape and dtype of a slot for `tokens` = T of a micro-batch. Unused slots (no q/k norm) have 0 elements.
[[nodiscard]] PlannedTensor layer_slot(const ModelSpec& spec, int tp_rank, int64_t tokens, DType act, LayerSlot slot);

/// Tokens of T that tp_rank holds between blocks.
[[nodiscard]] Interval token_part(int64_t tokens, int tp_rank, int tp);

/// Tokens per chunk of the LM head: logits exist only a chunk at a time, of at most about `budget_elems` local elements.
[[nodiscard]] int64_t head_chunk_tokens(const ModelSpec& spec, int tp_rank, int64_t tokens, int64_t budget_elems);

/// Gradient buffers of a stage's input that may be on their way to the previous stage at once.
inline constexpr int kGradientSendRing = 3;

/// What the device side adds to the arithmetic.
struct DeviceNeeds {
  int64_t head_budget_elems = int64_t{8} << 20;  ///< local logits elements per head chunk
  int64_t workspace_bytes = 0;                   ///< attention workspace
  bool offload_optimizer = false;                ///< master weights and moments in pinned host memory
  bool offload_activations = false;              ///< inputs of all blocks but a stage's first likewise (recompute full)
  bool graphs = false;                           ///< layers are captured: positions and segments need memory of their own
  int message_slots = 0;                         ///< whole messages to keep room for, of each pp rank that sends here
};

/// Everything one rank allocates, in order, by category.
struct RankPlan {
  MeshShape mesh;
  MeshCoord coord;
  int64_t tokens = 0;                      ///< T of a micro-batch
  Recompute recompute = Recompute::kNone;
  NumericFormat format;
  int zero = 1;                            ///< 1: optimizer state cut over dp
  bool offload_optimizer = false, offload_activations = false;
  std::optional<RowTree> row_tree;         ///< --deterministic: how gradients are summed over rows
  [[nodiscard]] int gradient_slots() const { return row_tree ? row_tree->slots : 1; }
  [[nodiscard]] int shards() const { return zero == 0 ? 1 : mesh.dp; }
  struct Chunk {
    int stage = 0;
    int64_t param_elems = 0;               ///< of the flat parameter block, padding included
    int64_t tied_head_elems = 0;           ///< of a tied head's own gradient where this chunk is both ends (row tree only)
    int64_t state_elems = 0;               ///< of the flat optimizer state blocks: this dp rank's shard (see state_layout)
    int in_flight = 0;                     ///< activation slots
    int stash = 0;                         ///< weight-gradient stashes (split backward), 0 when the backward is whole
    std::vector<PlannedTensor> slot;       ///< tensors of one activation slot, see slot_layout
    std::vector<PlannedTensor> stash_slot; ///< tensors of one stash, see slot_layout
    std::vector<PlannedTensor> host_slot;  ///< the part of an activation slot in pinned host memory, see slot_layout
  };
  std::vector<Chunk> chunks;               ///< this rank's virtual stages, lowest first
  std::vector<PlannedTensor> scratch;      ///< shared by all layers and chunks; found by name
  /// What comes along the pipeline: [Ts, H] from each of `peers` (pp ranks, rising).
  struct Messages {
    std::vector<int> peers;
    int64_t bytes = 0;  ///< of one message
    int slots = 0;      ///< messages of each peer that there is room for
  };
  Messages messages;
  /// Bytes by category: weights, gradients, optimizer, activations, scratch. Each tensor rounded up to 256 bytes.
  struct Bytes {
    int64_t weights = 0, gradients = 0, optimizer = 0, activations = 0, scratch = 0;
    int64_t messages = 0;  ///< room for messages, which the communicator allocates
    int64_t host = 0;      ///< pinned memory beside the device: what is offloaded; not in total()
    [[nodiscard]] int64_t total() const { return weights + gradients + optimizer + activations + scratch + messages; }
  };
  [[nodiscard]] Bytes bytes() const;
};

/// Bytes of a list laid out one after the other, each rounded up to 256 bytes.
[[nodiscard]] int64_t laid_out_bytes(const std::vector<PlannedTensor>& tensors);

/// Offsets (elements) of a stage's parameters in its flat block, and the block's size. Blocks start at multiples of 128
/// elements; fused parameters follow each other without a gap.
struct ParamLayout {
  std::vector<int64_t> offsets;
  int64_t elems = 0;
};
[[nodiscard]] ParamLayout param_layout(const std::vector<ParamSpec>& params, int tp_rank);

/// The optimizer state that one dp rank holds: of each parameter the rows of dim 0 (of its local part) that ZeRO-1 gives it
/// (Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", stage 1). One shard holds
/// everything, laid out like the parameters themselves.
struct StateLayout {
  std::vector<Interval> rows;     ///< per parameter: rows of dim 0 of the local part
  std::vector<int64_t> offsets;   ///< per parameter: its shard in the flat state block, in elements
  int64_t elems = 0;
};
[[nodiscard]] StateLayout state_layout(const std::vector<ParamSpec>& params, int tp_rank, int shard, int shards);
/// Rows of dim 0 of a parameter's local part on tp_rank that `shard` of `shards` holds.
[[nodiscard]] Interval state_rows(const ParamSpec& param, int tp_rank, int shard, int shards);

/// Elements of a stage that several tp ranks hold: packed into one buffer for their sum.
[[nodiscard]] int64_t shared_gradient_elems(const std::vector<ParamSpec>& params);

/// What a training rank needs: parameters, gradients, optimizer state, activations at the schedule's peak, scratch. zero = 1:
/// the optimizer state is cut over dp, 0: every replica holds all of it. `row_tree`: gradients have its slots.
[[nodiscard]] RankPlan plan_rank(const ModelSpec& spec, const MeshShape& mesh, const MeshCoord& coord,
                                 const Schedule& schedule, int64_t tokens, Recompute recompute,
                                 const NumericFormat& format, const DeviceNeeds& needs, bool training = true,
                                 int zero = 1, std::optional<RowTree> row_tree = {});

/// Buffers on the device that offloaded block inputs pass through: one in use, two on their way.
inline constexpr int kOffloadRing = 3;

/// Index of tensors in Chunk::slot and Chunk::stash_slot; -1 where there is none.
struct SlotLayout {
  int input = -1;     ///< [Ts, H] the stage's input
  int gradient = -1;  ///< [Ts, H] gradient of the stage's output: received, or made by the head
  struct Layer {
    std::array<int, static_cast<size_t>(LayerSlot::kCount)> saved{};  ///< -1: not kept, use scratch
    int output = -1;  ///< [Ts, H]; -1: in host memory, see host_output
    int host_output = -1;  ///< index in the host slot; on the device it passes through a ring of kOffloadRing buffers
    // In a stash: what the weight gradient needs and no slot keeps.
    std::array<int, static_cast<size_t>(LayerSlot::kCount)> stashed{};
    int dy = -1, dmid = -1, dqkv = -1, dgate_up = -1;
  };
  std::vector<Layer> layers;
};
/// Describes chunk `stage`; appends its tensors to `slot` (and `stash_slot` when the backward is split). With `host_slot` the
/// outputs of all layers but the last go there.
[[nodiscard]] SlotLayout slot_layout(const ModelSpec& spec, int stage, int tp_rank, int64_t tokens, Recompute recompute,
                                     DType act, bool split_backward, std::vector<PlannedTensor>* slot,
                                     std::vector<PlannedTensor>* stash_slot,
                                     std::vector<PlannedTensor>* host_slot = nullptr);

}  // namespace r1::parallel
