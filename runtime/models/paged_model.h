// The part of a model that one rank holds, for generation: its stages with a paged key/value cache. Parameters are
// borrowed (a training engine's can be used as they are); everything else is allocated from the plan at construction.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "parallel/exec/process_groups.h"
#include "parallel/spec/inference_plan.h"
#include "runtime/models/parameters.h"
#include "runtime/nn/paged_layer.h"

namespace r1::models {

/// The tokens of a pass on the host; see nn::PagedBatch.
struct HostPass {
  std::vector<int32_t> ids, positions, context_lens;
  std::vector<int64_t> slots;
  std::vector<int32_t> block_table;  ///< [T, table_width]
  int64_t table_width = 0;
  [[nodiscard]] int64_t tokens() const { return static_cast<int64_t>(ids.size()); }
};

class PagedModel {
 public:
  /// `params`: this rank's stages in the order of plan.chunks; they and `groups` must outlive the model. `plan` from
  /// parallel::plan_inference for this rank. Throws MemoryError.
  PagedModel(const parallel::ModelSpec& spec, const parallel::InferencePlan& plan, parallel::ProcessGroups& groups,
             std::span<const StageParameters> params, Device device, const Stream& s);
  ~PagedModel();

  [[nodiscard]] const parallel::ModelSpec& spec() const { return spec_; }
  [[nodiscard]] const parallel::InferencePlan& plan() const { return plan_; }
  [[nodiscard]] const Stream& stream() const { return stream_; }
  /// A planned tensor by name.
  [[nodiscard]] Tensor scratch(const std::string& name) const;
  /// Bytes allocated beside the parameters, by the plan's categories (weights: those borrowed).
  [[nodiscard]] parallel::InferencePlan::Bytes allocated() const;

  /// Runs the pass through this rank's stages: receives from and sends to its neighbours in the pipeline. Keys and
  /// values of its tokens are in the cache afterwards. Collective over tp and, in the same order of passes on every
  /// rank, over pp.
  void forward(const HostPass& pass);
  /// Logits of tokens `rows` of the last pass, a chunk at a time: `use(first, logits [C, V local])` sees rows
  /// [first, first + C) of the list. Only on the last stage. Collective over tp.
  void logits(std::span<const int64_t> rows, const std::function<void(int64_t first, const Tensor& logits)>& use);
  /// Waits until nothing of this rank is on its way to another.
  void drain();

 private:
  struct Chunk {
    int stage = 0;
    parallel::StageSpec spec;
    const StageParameters* params = nullptr;
    std::vector<nn::PagedLayer> layers;
  };
  [[nodiscard]] nn::PagedBatch upload(const HostPass& pass);
  void run_chunk(const Chunk& c, const nn::PagedBatch& batch);
  void embed(const Chunk& c, const nn::PagedBatch& batch, const Tensor& x);

  const parallel::ModelSpec& spec_;
  parallel::InferencePlan plan_;
  parallel::ProcessGroups& groups_;
  Device device_;
  Stream stream_;
  Arena scratch_, cache_;
  std::map<std::string, size_t> index_;
  nn::PagedShared shared_;
  std::vector<Chunk> chunks_;
  std::array<std::unique_ptr<comm::Pending>, 2> sends_;
  size_t next_send_ = 0;
  HostPass held_;  ///< uploads read host memory until the stream has run them
};

}  // namespace r1::models
