// A training job as plan and ranks see it: what decides bytes and times, without files, devices or MPI. Pure.
//
// The front door's plan and each rank's allocation go through the functions here, so that what is planned is what is
// allocated.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/mesh/mesh.h"
#include "parallel/schedule/schedule.h"
#include "parallel/spec/model_spec.h"

namespace r1::parallel {

/// Rows of a step over dp replicas in micro-batches: ceil(ceil(batch / dp) / micro_batch) for every replica.
[[nodiscard]] int microbatches_of(int64_t batch, int64_t micro_batch, int dp);

/// Dtypes of --dtype and --state-dtype ("auto", "fp32", "bf16") on a GPU or a CPU. Throws UsageError naming the option.
[[nodiscard]] NumericFormat numeric_format(bool gpu, const std::string& dtype, const std::string& state_dtype);

/// What the device side adds to the arithmetic of a rank: head chunk, attention workspace. Equal to the kernels' own
/// figures (a test compares them).
[[nodiscard]] DeviceNeeds device_needs(bool gpu, const ModelConfig& model, int tp, int64_t tokens);

struct JobShape {
  MeshShape mesh;
  std::string schedule = "1f1b";
  int virtual_stages = 1;
  int64_t batch = 8, micro_batch = 1, seq_len = 1024;  ///< rows, rows, tokens
  std::vector<Recompute> recompute{Recompute::kNone};  ///< one for all, or one for each pipeline rank
  NumericFormat format;
  int zero = 1;                                        ///< 1: optimizer state cut over dp, 0: not
  int64_t tree_rows = 0;  ///< --deterministic: rows of a step whose gradients are summed in a tree; 0: not. micro_batch is 1 then
  bool gpu = true;
  int ipc_ranks_a_host = 0;  ///< ranks of a host, whose messages to each other go through ipc; 0: no messages do
  bool training = true;
  bool offload_optimizer = false;    ///< master weights and moments in pinned host memory
  bool offload_activations = false;  ///< inputs of the blocks likewise; recompute is full then

  [[nodiscard]] int microbatches() const { return microbatches_of(batch, micro_batch, mesh.dp); }
  [[nodiscard]] int64_t tokens() const { return micro_batch * seq_len; }  ///< T of a micro-batch
  [[nodiscard]] int stages() const { return mesh.pp * virtual_stages; }
  [[nodiscard]] Recompute recompute_of(int pp_rank) const {
    return recompute.size() == 1 ? recompute.front() : recompute.at(static_cast<size_t>(pp_rank));
  }
  [[nodiscard]] bool offloads() const { return offload_optimizer || offload_activations; }
  /// "optimizer,activations": the value of --offload; "" when nothing is.
  [[nodiscard]] std::string offload_text() const;
  /// "none", or a policy a stage: "full|cheap|none|none".
  [[nodiscard]] std::string recompute_text() const;
};

/// Generates and validates the job's schedule. Throws UsageError.
[[nodiscard]] Schedule schedule_of(const JobShape& job);

/// The plan of one rank of the job.
[[nodiscard]] RankPlan plan_rank(const ModelSpec& spec, const JobShape& job, const Schedule& schedule,
                                 const MeshCoord& coord);

/// One line of a rank's memory table.
struct MemoryItem {
  std::string category;  ///< weights, gradients, optimizer, activations, communication, head, recompute, workspaces, batch
  std::string name;      ///< "swiglu", "logits"; activations of all layers under one name
  int64_t bytes = 0;     ///< of all copies together, laid out as the arenas do
  int copies = 1;        ///< micro-batches in flight; 1 for what exists once
};
/// Everything a rank allocates by category and name; the sum is plan.bytes().total().
[[nodiscard]] std::vector<MemoryItem> memory_items(const RankPlan& plan);
/// What a rank keeps in pinned host memory, likewise; the sum is plan.bytes().host.
[[nodiscard]] std::vector<MemoryItem> host_items(const RankPlan& plan);
/// The categories in the order in which they are shown.
[[nodiscard]] const std::vector<std::string>& memory_categories();
/// Sum of one category.
[[nodiscard]] int64_t category_bytes(const std::vector<MemoryItem>& items, const std::string& category);

}  // namespace r1::parallel
