// One rank's training engine: model part, schedule, executor and optimizer behind one call a step. Knows no files.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "comm/routed/routed.h"
#include "comm/timed/timed.h"
#include "parallel/exec/pipeline.h"
#include "parallel/exec/process_groups.h"
#include "parallel/spec/model_spec.h"
#include "runtime/models/rank_model.h"
#include "runtime/optim/optimizer.h"

namespace r1::train {

struct EngineOptions {
  parallel::MeshShape mesh;
  std::string schedule = "1f1b";
  int virtual_stages = 1;
  int microbatches = 1;         ///< per step and dp rank
  int64_t tokens = 0;           ///< T of a micro-batch: rows * seq_len
  parallel::Recompute recompute = parallel::Recompute::kNone;
  std::vector<parallel::Recompute> stage_recompute;  ///< a policy for each pipeline rank; empty: `recompute` for all
  [[nodiscard]] parallel::Recompute recompute_of(int pp_rank) const {
    return stage_recompute.empty() ? recompute : stage_recompute.at(static_cast<size_t>(pp_rank));
  }
  parallel::NumericFormat format;
  parallel::DeviceNeeds needs;
  Device device;
  bool training = true;
  int zero = 1;                 ///< 1: the optimizer state is cut over dp (ZeRO-1)
  /// Rows of a step over all ranks, each a micro-batch of its own: gradients are summed in a fixed tree over them
  /// (--deterministic); 0: over micro-batches as they come.
  int64_t tree_rows = 0;
  optim::AdamWOptions adamw;
  CommChoice comm = CommChoice::kAuto;
  comm::StopCheck stop;  ///< called while the rank waits for others or for its device
  bool time_comm = false;       ///< groups can be timed: Engine::comm_clock()
};

class Engine {
 public:
  /// Collective over `world`, which must outlive the engine. Allocates everything the plan lists.
  Engine(const parallel::ModelConfig& config, const EngineOptions& options, comm::Communicator& world);
  ~Engine();

  /// Forward and backward of this dp rank's micro-batches, and the sums over replicas: afterwards the gradients of the mean
  /// loss over `global_tokens` trained tokens are complete (with zero = 1 and dp > 1: those of this rank's shard). Returns that mean loss (the same on every rank). Collective.
  double forward_backward(std::span<const models::HostBatch> batches, int64_t global_tokens,
                          const parallel::ActionObserver& observe = {});
  struct StepResult {
    double loss = 0;  ///< as forward_backward returns it
    double norm = 0;  ///< of the gradient, global, before clipping
  };
  /// What the host does beside the actions of the schedule.
  enum class StepPart : uint8_t { kUpdate, kWait };
  /// forward_backward, then the update of the weights, unless the loss or the norm is not finite: then they stay as they are on
  /// every rank. `step` counts from 1. The host waits once, when all is enqueued (kWait, on a GPU only); the update may still run
  /// on a GPU when this returns: see finish_update. Collective.
  StepResult train_step(std::span<const models::HostBatch> batches, int64_t global_tokens, double lr, int64_t step,
                        const parallel::ActionObserver& observe = {}, const std::function<void(StepPart)>& part = {});
  /// Sum of token losses over all dp ranks without gradients. Collective. `single`: one micro-batch instead of a step's.
  double forward_only(std::span<const models::HostBatch> batches, bool single = false);
  /// What is enqueued on stream() from here on sees the newest weights and optimizer state. The engine's own passes need no such
  /// call.
  void finish_update();
  /// Off: graphs are suspended and updates run on stream(), so that operations can be timed one by one.
  void set_overlap(bool on);

  [[nodiscard]] models::RankModel& model() { return *model_; }
  [[nodiscard]] parallel::ProcessGroups& groups() { return *groups_; }
  /// The groups of several ranks and what carries their tensors.
  [[nodiscard]] const std::vector<comm::RoutedGroup>& routes() const { return router_->groups(); }
  [[nodiscard]] const parallel::ModelSpec& spec() const { return spec_; }
  [[nodiscard]] const parallel::RankPlan& plan() const { return plan_; }
  /// What was allocated, by the plan's categories.
  [[nodiscard]] parallel::RankPlan::Bytes allocated() const;
  [[nodiscard]] const parallel::Schedule& schedule() const { return schedule_; }
  [[nodiscard]] const Stream& stream() const { return stream_; }
  /// Times what passes between ranks; null without EngineOptions::time_comm.
  [[nodiscard]] comm::CommClock* comm_clock() { return comm_clock_.get(); }
  [[nodiscard]] const Device& device() const { return options_.device; }
  /// Collective end.
  void close();

 private:
  /// Enqueues all of forward_backward and returns what the sum of losses is to be multiplied with.
  double enqueue_gradients(std::span<const models::HostBatch> batches, int64_t global_tokens, const parallel::ActionObserver& observe);
  void reduce_loss();
  [[nodiscard]] double loss_sum() const;

  EngineOptions options_;
  parallel::ModelSpec spec_;
  std::unique_ptr<comm::Router> router_;  // outlives the groups
  std::unique_ptr<comm::CommClock> comm_clock_;
  std::unique_ptr<comm::Communicator> timed_;  // over the router's world
  std::unique_ptr<parallel::ProcessGroups> groups_;
  parallel::Schedule schedule_, single_schedule_;
  parallel::RankPlan plan_;
  int64_t message_bytes_ = 0;  ///< of the pipeline's communicator, for whole messages
  Stream stream_;
  std::unique_ptr<models::RankModel> model_;
  std::unique_ptr<parallel::PipelineExecutor> executor_, single_executor_;
  std::unique_ptr<optim::GradientSync> sync_;
  std::unique_ptr<optim::GradientNorm> norm_;
  std::unique_ptr<optim::AdamW> adamw_;
  Buffer scalars_;  ///< [2] fp64: a step's sum of losses, sum of squares
};

/// The plan of one rank for these options, without allocating anything. Pure.
[[nodiscard]] parallel::RankPlan plan_for(const parallel::ModelConfig& config, const EngineOptions& options, int world_rank);

}  // namespace r1::train
