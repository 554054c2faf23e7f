#include "runtime/train/engine.h"

#include <array>
#include <cmath>

#include "runtime/kernels/exact_sum.h"
#include "runtime/kernels/ops.h"

namespace r1::train {

namespace {

parallel::Schedule schedule_of(const EngineOptions& o, int microbatches) {
  return parallel::make_schedule(o.schedule, o.mesh.pp, o.virtual_stages, microbatches);
}

std::optional<parallel::RowTree> tree_of(const EngineOptions& o, const parallel::MeshCoord& coord) {
  if (o.tree_rows == 0 || !o.training) return std::nullopt;
  return parallel::rank_row_tree(o.tree_rows, o.mesh.dp, coord.dp, o.microbatches);
}

parallel::RankPlan plan_of(const parallel::ModelSpec& spec, const EngineOptions& o, const parallel::MeshCoord& coord,
                           const parallel::Schedule& schedule) {
  return parallel::plan_rank(spec, o.mesh, coord, schedule, o.tokens, o.recompute_of(coord.pp), o.format, o.needs, o.training, o.zero,
                             tree_of(o, coord));
}

}  // namespace

parallel::RankPlan plan_for(const parallel::ModelConfig& config, const EngineOptions& o, int world_rank) {
  const parallel::ModelSpec spec(config, o.mesh.tp, o.mesh.pp * o.virtual_stages);
  return plan_of(spec, o, parallel::coord_of(o.mesh, world_rank), schedule_of(o, o.microbatches));
}

Engine::Engine(const parallel::ModelConfig& config, const EngineOptions& o, comm::Communicator& world)
    : options_(o), spec_(config, o.mesh.tp, o.mesh.pp * o.virtual_stages),
      router_(std::make_unique<comm::Router>(world, o.comm, o.device, o.stop)),
      comm_clock_(o.time_comm ? std::make_unique<comm::CommClock>(o.device.kind) : nullptr),
      timed_(comm_clock_ ? comm::make_timed(router_->world(), *comm_clock_) : nullptr),
      groups_(std::make_unique<parallel::ProcessGroups>(timed_ ? *timed_ : router_->world(), o.mesh, config.tied_embeddings && o.mesh.pp > 1)),
      schedule_(schedule_of(o, o.microbatches)), single_schedule_(schedule_of(o, 1)),
      plan_(plan_of(spec_, o, groups_->coord(), schedule_)),
      stream_(backend_of(o.device.kind).create_stream(o.device)) {
  model_ = std::make_unique<models::RankModel>(spec_, plan_, *groups_, schedule_, o.device, stream_, o.training);
  std::vector<comm::ExpectedMessage> expected;
  for (const int peer : plan_.messages.peers) expected.push_back({peer, static_cast<size_t>(plan_.messages.bytes)});
  message_bytes_ = groups_->pp().expect_messages(expected);
  executor_ = std::make_unique<parallel::PipelineExecutor>(groups_->pp(), schedule_, parallel::kGradientSendRing);
  single_executor_ =
      std::make_unique<parallel::PipelineExecutor>(groups_->pp(), single_schedule_, parallel::kGradientSendRing);
  if (!o.training) return;
  std::vector<optim::ParamBlock> blocks;
  for (const models::StageParameters& p : model_->parameters())
    blocks.push_back({.stage = p.stage(), .specs = &p.specs(), .layout = &p.layout(), .state = &p.state_layout(),
                      .tp_rank = p.tp_rank(), .shards = p.shards(), .weights = p.weights(), .gradients = p.gradients(),
                      .master = p.master(), .exp_avg = p.exp_avg(), .exp_avg_sq = p.exp_avg_sq(),
                      .tied_head_gradients = p.tied_head_gradient(0).data == nullptr
                                                 ? Tensor{}
                                                 : p.tied_head_gradient(0).view({p.tied_head_gradient(0).numel()})});
  sync_ = std::make_unique<optim::GradientSync>(blocks, *groups_, model_->scratch("shared gradients"),
                                               plan_.row_tree ? comm::SumOrder::kTree : comm::SumOrder::kRank);
  norm_ = std::make_unique<optim::GradientNorm>(blocks, *groups_, o.device);
  adamw_ = std::make_unique<optim::AdamW>(blocks, o.adamw, *groups_, o.device);
  scalars_ = Buffer(o.device, 2 * sizeof(double));
  model_->set_after_update({.weights = [this](int stage, int64_t layer) { adamw_->wait(stage, layer, stream_); },
                            .gradients = [this] { adamw_->wait(stream_); }});
  // Alone in its dp group a rank has nothing to overlap, and its last backward may be a graph too.
  if (groups_->dp().size() > 1)
    model_->set_gradients_ready([this](int stage, int64_t layer) { sync_->ready(stage, layer, stream_); });
}

parallel::RankPlan::Bytes Engine::allocated() const {
  parallel::RankPlan::Bytes b = model_->allocated();
  b.messages = message_bytes_;
  return b;
}

Engine::~Engine() { backend_of(options_.device.kind).destroy_stream(stream_); }

/// The loss lives on the last stage, equal on its tp ranks, and is zero elsewhere: sum over dp and over pp, of integers.
void Engine::reduce_loss() {
  const Tensor words = model_->loss_words();
  groups_->dp().all_reduce(words, comm::ReduceOp::kSum, stream_);
  groups_->pp().all_reduce(words, comm::ReduceOp::kSum, stream_);
}

double Engine::loss_sum() const {
  const Tensor words = model_->loss_words();
  std::array<int64_t, kernels::kExactWords> host{};
  DeviceBackend& backend = backend_of(options_.device.kind);
  backend.copy(host.data(), words.data, sizeof host, stream_);
  backend.synchronize(stream_);
  return kernels::exact_value(host.data());
}

double Engine::enqueue_gradients(std::span<const models::HostBatch> batches, int64_t global_tokens,
                                 const parallel::ActionObserver& observe) {
  R1_CHECK(static_cast<int>(batches.size()) == schedule_.microbatches, "{} micro-batches, planned {}", batches.size(),
           schedule_.microbatches);
  // A step without a single trained token has loss 0 and no gradient.
  const double scale = global_tokens > 0 ? 1.0 / static_cast<double>(global_tokens) : 0.0;
  model_->zero_loss(stream_);
  model_->load(batches, static_cast<float>(scale), true, stream_);
  executor_->run(*model_, stream_, false, observe);
  sync_->finish(stream_);
  reduce_loss();
  return scale;
}

double Engine::forward_backward(std::span<const models::HostBatch> batches, int64_t global_tokens,
                                const parallel::ActionObserver& observe) {
  const double scale = enqueue_gradients(batches, global_tokens, observe);
  return loss_sum() * scale;
}

Engine::StepResult Engine::train_step(std::span<const models::HostBatch> batches, int64_t global_tokens, double lr, int64_t step,
                                      const parallel::ActionObserver& observe, const std::function<void(StepPart)>& part) {
  const double scale = enqueue_gradients(batches, global_tokens, observe);
  if (part) part(StepPart::kUpdate);
  DeviceBackend& backend = backend_of(options_.device.kind);
  const auto scalar = [&](int i) {
    return Tensor{.data = static_cast<double*>(scalars_.data()) + i, .dtype = DType::kF64, .shape = {1}, .device = options_.device};
  };
  kernels::exact_total(model_->loss_words(), scalar(0), stream_);
  norm_->run(scalar(1), stream_);
  adamw_->step(lr, step, scalar(1), scalar(0), stream_);
  if (part && options_.device.kind != DeviceKind::kCpu) part(StepPart::kWait);
  std::array<double, 2> host{};
  backend.copy(host.data(), scalars_.data(), sizeof host, stream_);
  backend.synchronize(stream_);
  return {.loss = host[0] * scale, .norm = std::sqrt(host[1])};
}

double Engine::forward_only(std::span<const models::HostBatch> batches, bool single) {
  model_->zero_loss(stream_);
  model_->load(batches, 0.0F, false, stream_);
  (single ? *single_executor_ : *executor_).run(*model_, stream_, true, {});
  reduce_loss();
  return loss_sum();
}

void Engine::finish_update() {
  if (adamw_) adamw_->wait(stream_);
}

void Engine::set_overlap(bool on) {
  model_->graphs().suspend(!on);
  if (adamw_) adamw_->set_beside(on);
}

void Engine::close() { groups_->close(); }

}  // namespace r1::train
