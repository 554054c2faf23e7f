#include "runtime/models/rank_model.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "runtime/kernels/attention_class.h"
#include "runtime/kernels/exact_sum.h"
#include "runtime/kernels/ops.h"
#include "runtime/models/rope_table.h"

namespace r1::models {

using parallel::ActionKind;
using parallel::LayerSlot;
using parallel::ParamRole;

static_assert(kArenaAlign == 256, "parallel::laid_out_bytes counts with the arena's alignment");

RankModel::RankModel(const parallel::ModelSpec& spec, const parallel::RankPlan& plan, parallel::ProcessGroups& groups,
                     const parallel::Schedule& schedule, Device device, const Stream& s, bool training)
    : spec_(spec), plan_(plan), device_(device), stream_(s),
      region_(groups.tp(), plan.tokens, spec.config().hidden) {
  // Batches of a step stay on the device together: backward reads the positions of every micro-batch in flight.
  for (parallel::PlannedTensor& t : plan_.scratch)
    if (t.name == "token ids" || t.name == "targets" || t.name == "positions" || t.name == "cu_seqlens")
      R1_CHECK(t.shape.size() == 2 && t.shape[0] == schedule.microbatches, "{} of {} micro-batches", t.name,
               schedule.microbatches);
  scratch_ = Arena(device, arena_specs(plan_.scratch));
  for (size_t i = 0; i < plan_.scratch.size(); ++i) scratch_index_[plan_.scratch[i].name] = i;
  fill_rope_table(spec.config(), scratch("rope table"), s);
  graphs_ = GraphCache(device, scratch_index_.contains("graph positions"));
  loss_buffer_ = Buffer(device, kernels::kExactWords * sizeof(int64_t));
  loss_words_ = {.data = loss_buffer_.data(), .dtype = DType::kI64, .shape = {kernels::kExactWords}, .device = device};

  const int tp_rank = plan.coord.tp;
  shared_.config = &spec.config();
  shared_.local = spec.local(tp_rank);
  shared_.kv_of_q = shared_.local.kv_of_q(spec.config().heads / spec.config().kv_heads);
  shared_.region = &region_;
  shared_.cos_sin = scratch("rope table");
  shared_.recompute = plan.recompute;
  const auto optional = [&](const char* name) { return scratch_index_.contains(name) ? scratch(name) : Tensor{}; };
  shared_.scratch = {.partial = scratch("partial"),
                     .gathered = optional("gathered"),
                     .gathered_gradient = optional("gathered gradient"),
                     .summed = spec.tp() > 1 ? scratch("summed") : scratch("partial"),
                     .d_attention = optional("d_attention"),
                     .d_swiglu = optional("d_swiglu"),
                     .workspace = optional("workspace")};

  if (plan_.offload_activations) {
    BlockInputOffload::Ring ring;
    for (size_t i = 0; i < ring.size(); ++i) ring[i] = scratch("offload ring " + std::to_string(i));
    offload_ = std::make_unique<BlockInputOffload>(device, ring);
  }
  params_.reserve(plan_.chunks.size());
  chunks_.reserve(plan_.chunks.size());
  for (const auto& planned : plan_.chunks) {
    params_.emplace_back(spec, planned.stage, tp_rank, plan_.format, device,
                         StageParameters::Holds{.training = training,
                                                .shard = plan.shards() == 1 ? 0 : plan.coord.dp,
                                                .shards = plan.shards(),
                                                .gradient_slots = plan.gradient_slots(),
                                                .tied_head = planned.tied_head_elems > 0,
                                                .offload = plan.offload_optimizer},
                         s);
    StageParameters& params = params_.back();
    R1_CHECK(params.elems() == planned.param_elems, "stage {}: {} elements, planned {}", planned.stage, params.elems(),
             planned.param_elems);
    Chunk c;
    c.stage = planned.stage;
    c.spec = spec.stages()[static_cast<size_t>(planned.stage)];
    c.params = params_.size() - 1;
    std::vector<parallel::PlannedTensor> slot, stash, host;
    c.layout = slot_layout(spec, planned.stage, tp_rank, plan_.tokens, plan_.recompute, plan_.format.weights,
                           planned.stash > 0, &slot, &stash, plan_.offload_activations ? &host : nullptr);
    c.gradients = std::make_unique<GradientSlots>(params, training ? plan_.row_tree : std::nullopt);
    const size_t slots = std::max<size_t>(1, params.gradient_slots());
    for (size_t k = 0; k < slots; ++k) {
      c.layers.emplace_back();
      for (int64_t l = c.spec.layer_begin; l < c.spec.layer_end; ++l)
        c.layers.back().emplace_back(shared_, params.layer(params.weights(), l), params.layer(params.gradient_slot(k), l));
    }
    for (int i = 0; i < planned.in_flight; ++i) c.slots.emplace_back(device, arena_specs(slot));
    if (!host.empty())
      for (int i = 0; i < planned.in_flight; ++i) c.host_slots.emplace_back(device.kind, host);
    for (int i = 0; i < planned.stash; ++i) c.stashes.emplace_back(device, arena_specs(stash));
    if (c.spec.head) {
      const int64_t last = spec.config().layers;
      const auto head_of = [&](const Tensor& block) {
        const bool own = params.holds(ParamRole::kHead, last);
        return nn::LmHead::Weights{
            .norm = params.part(block, params.index(ParamRole::kFinalNorm, last)),
            .head = params.part(block, own ? params.index(ParamRole::kHead, last) : params.index(ParamRole::kEmbedding, -1))};
      };
      const nn::LmHeadScratch scratch_of_head{.norm = scratch("head norm"), .rstd = scratch("head rstd"), .gathered = optional("gathered"),
                            .partial = scratch("partial"), .logits = scratch("logits"), .stats = scratch("head stats"),
                            .all_stats = scratch("head all stats"), .lse = scratch("head lse"),
                            .loss = scratch("token loss")};
      for (size_t k = 0; k < slots; ++k) {
        nn::LmHead::Weights gradients = head_of(params.gradient_slot(k));
        if (const Tensor tied = params.tied_head_gradient(k); tied.data != nullptr) gradients.head = tied;
        c.heads.emplace_back(head_of(params.weights()), gradients, shared_.local.vocab.begin,
                             static_cast<float>(spec.config().rms_eps), region_, scratch_of_head);
      }
    }
    chunks_.push_back(std::move(c));
  }
  zero_loss(s);
}

RankModel::~RankModel() { backend_of(device_.kind).destroy_event(staged_); }

parallel::RankPlan::Bytes RankModel::allocated() const {
  parallel::RankPlan::Bytes b;
  for (const StageParameters& p : params_) {
    b.weights += static_cast<int64_t>(p.weights().bytes());
    for (size_t k = 0; k < p.gradient_slots(); ++k)
      for (const Tensor& t : {p.gradient_slot(k), p.tied_head_gradient(k)})
        if (t.data != nullptr) b.gradients += static_cast<int64_t>(t.bytes());
    for (const Tensor& t : {p.exp_avg(), p.exp_avg_sq(), p.master()})
      if (t.data != nullptr) (plan_.offload_optimizer ? b.host : b.optimizer) += static_cast<int64_t>(t.bytes());
  }
  for (const Chunk& c : chunks_)
    for (const auto* list : {&c.slots, &c.stashes})
      for (const Arena& a : *list) b.activations += static_cast<int64_t>(a.bytes());
  for (const Chunk& c : chunks_)
    for (const HostSlot& h : c.host_slots) b.host += static_cast<int64_t>(h.bytes());
  b.scratch = static_cast<int64_t>(scratch_.bytes());
  return b;
}

Tensor RankModel::scratch(const std::string& name) const {
  const auto it = scratch_index_.find(name);
  R1_CHECK(it != scratch_index_.end(), "no scratch tensor '{}'", name);
  return scratch_.at(it->second);
}

RankModel::Chunk& RankModel::chunk(int stage) {
  for (Chunk& c : chunks_)
    if (c.stage == stage) return c;
  throw InternalError("stage {} is not on this rank", stage);
}

void RankModel::load(std::span<const HostBatch> host, float loss_scale, bool want_gradients, const Stream& s) {
  DeviceBackend& backend = backend_of(device_.kind);
  const int64_t tokens = plan_.tokens;
  R1_CHECK(static_cast<int64_t>(host.size()) <= scratch("token ids").dim(0), "{} micro-batches", host.size());
  loss_scale_ = loss_scale;
  want_gradients_ = want_gradients;
  batches_.clear();
  // From pinned memory the host goes on at once; the last step's copies are over long since.
  const auto row_bytes = static_cast<size_t>(4 * tokens + 1) * sizeof(int32_t);
  char* staged = nullptr;
  if (device_.kind != DeviceKind::kCpu) {
    if (staging_.bytes() == 0) {
      staging_ = PinnedBuffer(device_.kind, row_bytes * static_cast<size_t>(scratch("token ids").dim(0)));
      staged_ = backend.create_event(device_, false);
    } else {
      backend.synchronize(staged_);
    }
    staged = static_cast<char*>(staging_.data());
  }
  for (size_t i = 0; i < host.size(); ++i) {
    const HostBatch& h = host[i];
    const auto m = static_cast<int64_t>(i);
    const auto upload = [&](const char* name, const std::vector<int32_t>& values) {
      const Tensor all = scratch(name);
      Tensor t = all.rows(m, m + 1).view({all.dim(1)});
      t.shape = {static_cast<int64_t>(values.size())};
      const void* from = values.data();
      if (staged != nullptr) {
        from = std::memcpy(staged, values.data(), t.bytes());
        staged += t.bytes();
      }
      backend.copy(t.data, from, t.bytes(), s);
      return t;
    };
    R1_CHECK(static_cast<int64_t>(h.ids.size()) == tokens, "{} tokens, planned {}", h.ids.size(), tokens);
    nn::Batch b;
    b.tokens = tokens;
    b.ids = upload("token ids", h.ids);
    b.targets = upload("targets", h.targets);
    b.positions = upload("positions", h.positions);
    b.host_cu = h.cu_seqlens;
    // Empty segments at the end bring the batch to its class's number: then one graph serves the whole class.
    if (graphs_.enabled()) {
      const int64_t segments = kernels::attention_class(h.cu_seqlens, tokens, tokens).segments;
      b.host_cu.resize(static_cast<size_t>(std::min(segments, tokens)) + 1, b.host_cu.back());
    }
    b.cu_seqlens = upload("cu_seqlens", b.host_cu);
    b.host_targets = h.targets;
    for (size_t k = 1; k < h.cu_seqlens.size(); ++k)
      b.max_segment = std::max<int64_t>(b.max_segment, h.cu_seqlens[k] - h.cu_seqlens[k - 1]);
    batches_.push_back(std::move(b));
  }
  if (staged != nullptr) backend.record(staged_, s);
}

const nn::Batch& RankModel::batch(int microbatch) const { return batches_.at(static_cast<size_t>(microbatch)); }

nn::Batch RankModel::layer_batch(int microbatch) const {
  nn::Batch b = batch(microbatch);
  if (!graphs_.enabled()) return b;
  const auto fixed = [&](const char* name, const Tensor& values) {
    Tensor t = scratch(name);
    t.shape = values.shape;
    backend_of(device_.kind).copy(t.data, values.data, values.bytes(), stream_);
    return t;
  };
  b.positions = fixed("graph positions", b.positions);
  b.cu_seqlens = fixed("graph segments", b.cu_seqlens);
  return b;
}

GraphCache::Key RankModel::graph_key(Chunk& c, ActionKind kind, int microbatch, const nn::Batch& b) const {
  const auto entry = [&](const std::map<int, size_t>& map) {
    const auto it = map.find(microbatch);
    return it == map.end() ? int64_t{-1} : static_cast<int64_t>(it->second);
  };
  const kernels::AttentionClass k = kernels::attention_class(b.host_cu, b.max_segment, b.tokens);
  const int64_t work = 8 * static_cast<int64_t>(kind) +
                       (kind == ActionKind::kForward ? 0 : static_cast<int64_t>(matrix_gradients(c, kind, microbatch)));
  return {c.stage, work, entry(c.slot_of), entry(c.stash_of),
          kind == ActionKind::kForward ? -1 : entry(c.ring_of), int64_t{k.equal}, k.segments, k.longest};
}

void RankModel::open_gradients(const Chunk& c) {
  if (after_update_.gradients) after_update_.gradients();
  c.gradients->clear(stream_);
}

void RankModel::weights_needed(int stage, int64_t layer) const {
  if (after_update_.weights) after_update_.weights(stage, layer);
}

nn::MatrixGradients RankModel::matrix_gradients(const Chunk& c, ActionKind kind, int microbatch) {
  if (kind == ActionKind::kBackwardInput) return nn::MatrixGradients::kLater;
  return c.gradients->writes(microbatch) ? nn::MatrixGradients::kWrite : nn::MatrixGradients::kAccumulate;
}

void RankModel::zero_loss(const Stream& s) { backend_of(device_.kind).fill_zero(loss_words_.data, loss_words_.bytes(), s); }

void RankModel::acquire(int stage, int microbatch) {
  Chunk& c = chunk(stage);
  for (size_t i = 0; i < c.slots.size(); ++i)
    if (std::none_of(c.slot_of.begin(), c.slot_of.end(), [&](const auto& e) { return e.second == i; })) {
      c.slot_of[microbatch] = i;
      return;
    }
  throw InternalError("stage {}: more than {} micro-batches in flight", stage, c.slots.size());
}

void RankModel::release(int stage, int microbatch) {
  Chunk& c = chunk(stage);
  c.slot_of.erase(microbatch);
  c.stash_of.erase(microbatch);  // the gradient ring's entry stays: its send comes after the release
}

Arena& RankModel::slot(Chunk& c, int microbatch) {
  const auto it = c.slot_of.find(microbatch);
  R1_CHECK(it != c.slot_of.end(), "stage {} micro-batch {} holds no slot", c.stage, microbatch);
  return c.slots[it->second];
}

Tensor RankModel::input(int stage, int microbatch) {
  Chunk& c = chunk(stage);
  return slot(c, microbatch).at(static_cast<size_t>(c.layout.input));
}

Tensor RankModel::output(int stage, int microbatch) {
  Chunk& c = chunk(stage);
  return layer_input(c, microbatch, c.depth());
}

Tensor RankModel::output_gradient(int stage, int microbatch) {
  Chunk& c = chunk(stage);
  return slot(c, microbatch).at(static_cast<size_t>(c.layout.gradient));
}

Tensor RankModel::input_gradient(int stage, int microbatch) {
  Chunk& c = chunk(stage);
  const auto it = c.ring_of.find(microbatch);
  R1_CHECK(it != c.ring_of.end(), "stage {} micro-batch {}: no input gradient yet", stage, microbatch);
  return scratch("input gradient " + std::to_string(it->second));
}

/// Input of layer i of the chunk: the stage's input, or the output of the layer before. i = layers: the stage's output.
Tensor RankModel::layer_input(Chunk& c, int microbatch, size_t layer) {
  Arena& a = slot(c, microbatch);
  if (layer == 0) return a.at(static_cast<size_t>(c.layout.input));
  const parallel::SlotLayout::Layer& before = c.layout.layers[layer - 1];
  return before.host_output >= 0 ? offload_->at(layer) : a.at(static_cast<size_t>(before.output));
}

nn::LayerActs RankModel::acts(Chunk& c, int microbatch, size_t layer, bool backward) {
  nn::LayerActs out;
  Arena& a = slot(c, microbatch);
  const parallel::SlotLayout::Layer& l = c.layout.layers[layer];
  for (size_t i = 0; i < out.slots.size(); ++i) {
    if (l.saved[i] >= 0) {
      out.slots[i] = a.at(static_cast<size_t>(l.saved[i]));
    } else if (backward && l.stashed[i] >= 0) {
      out.slots[i] = c.stashes[c.stash_of.at(microbatch)].at(static_cast<size_t>(l.stashed[i]));
    } else {
      out.slots[i] = scratch(layer_slot(spec_, plan_.coord.tp, plan_.tokens, plan_.format.weights,
                                        static_cast<LayerSlot>(i)).name);
    }
  }
  return out;
}

nn::LayerGrads RankModel::grads(Chunk& c, int microbatch, size_t layer, bool split) {
  const parallel::SlotLayout::Layer& l = c.layout.layers[layer];
  nn::LayerGrads g;
  const Tensor gate_up = acts(c, microbatch, layer, true)[LayerSlot::kGateUp];
  if (!split) {
    g.dmid = scratch("d_mid");
    g.dqkv = scratch("d_qkv");
    g.dgate_up = gate_up;  // in place: the activation is not read again
    return g;
  }
  Arena& stash = c.stashes[c.stash_of.at(microbatch)];
  g.dy = l.dy >= 0 ? stash.at(static_cast<size_t>(l.dy)) : slot(c, microbatch).at(static_cast<size_t>(c.layout.gradient));
  g.dmid = stash.at(static_cast<size_t>(l.dmid));
  g.dqkv = stash.at(static_cast<size_t>(l.dqkv));
  g.dgate_up = l.dgate_up >= 0 ? stash.at(static_cast<size_t>(l.dgate_up)) : gate_up;
  return g;
}

void* RankModel::host_input(Chunk& c, int microbatch, size_t layer) {
  if (layer == 0 || layer >= c.depth()) return nullptr;
  const int index = c.layout.layers[layer - 1].host_output;
  return index < 0 ? nullptr : c.host_slots[c.slot_of.at(microbatch)].at(static_cast<size_t>(index));
}

void RankModel::forward_layers(Chunk& c, int microbatch, const nn::Batch& b) {
  if (offload_) offload_->begin(stream_);
  for (size_t i = 0; i < c.depth(); ++i) {
    void* host = host_input(c, microbatch, i + 1);
    if (host != nullptr) offload_->before_write(i + 1, stream_);
    weights_needed(c.stage, c.spec.layer_begin + static_cast<int64_t>(i));
    c.layers.front()[i].forward(layer_input(c, microbatch, i), b, acts(c, microbatch, i, false), layer_input(c, microbatch, i + 1),
                        stream_);
    if (host != nullptr && want_gradients_) offload_->store(i + 1, host, stream_);
  }
  if (offload_) offload_->end(stream_);
}

void RankModel::backward_layers(Chunk& c, int microbatch, const nn::Batch& b, nn::MatrixGradients matrices, const Tensor& out) {
  const bool split = matrices == nn::MatrixGradients::kLater;
  const auto prefetch = [&](size_t layer) {
    if (void* host = host_input(c, microbatch, layer); host != nullptr) offload_->load(layer, host);
  };
  const GradientSlots& gradients = *c.gradients;
  const std::vector<nn::DecoderLayer>& layers = c.layers[gradients.slot(microbatch)];
  const GradientGroup group = split ? GradientGroup::kNorms : GradientGroup::kAll;
  if (offload_) {
    offload_->begin(stream_);
    for (size_t i = layers.size(); i-- > 0 && layers.size() - i <= parallel::kOffloadRing;) prefetch(i);
  }
  Tensor dy = output_gradient(c.stage, microbatch);
  for (size_t i = layers.size(); i-- > 0;) {
    const int64_t layer = c.spec.layer_begin + static_cast<int64_t>(i);
    const nn::LayerActs a = acts(c, microbatch, i, true);
    const Tensor x = layer_input(c, microbatch, i);
    const bool offloaded = host_input(c, microbatch, i) != nullptr;
    if (offloaded) offload_->before_read(i, stream_);
    layers[i].rematerialise(x, b, a, stream_);
    nn::LayerGrads g = grads(c, microbatch, i, split);
    if (!split) g.dy = dy;
    Tensor dx = out;
    if (i > 0) dx = split ? grads(c, microbatch, i - 1, true).dy : scratch(i % 2 == 0 ? "gradient 0" : "gradient 1");
    gradients.begin(layer, group, microbatch, stream_);
    layers[i].backward_input(x, b, a, g, dx, matrices, stream_);
    gradients.end(layer, group, microbatch, stream_);
    if (offloaded) {
      offload_->release(i, stream_);
      if (i >= parallel::kOffloadRing) prefetch(i - parallel::kOffloadRing);
    }
    if (!split) gradients_ready(c.stage, layer, microbatch);
    dy = dx;
  }
  if (offload_) offload_->end(stream_);
}

void RankModel::forward(int stage, int microbatch) {
  Chunk& c = chunk(stage);
  const nn::Batch& b = batch(microbatch);
  if (c.spec.embedding) {
    weights_needed(stage, -1);
    const Tensor x = layer_input(c, microbatch, 0);
    const Tensor partial = region_.partial(scratch("partial"), x);
    const StageParameters& p = params_[c.params];
    kernels::embedding_forward(b.ids, p.part(p.weights(), p.index(ParamRole::kEmbedding, -1)), shared_.local.vocab.begin,
                               partial, stream_);
    region_.scatter_sum(partial, x, stream_);
  }
  const nn::Batch lb = layer_batch(microbatch);
  graphs_.run(graph_key(c, ActionKind::kForward, microbatch, lb), stream_, [&] { forward_layers(c, microbatch, lb); });
  if (!c.heads.empty()) {
    const int64_t last = spec_.config().layers;
    weights_needed(stage, last);
    if (want_gradients_ && microbatch == 0) open_gradients(c);
    const Tensor gradient = want_gradients_ ? output_gradient(stage, microbatch) : Tensor{};
    nn::LogitsSink sink;
    if (sink_) sink = [this, microbatch](int64_t first, const Tensor& logits) { sink_(microbatch, first, logits); };
    if (want_gradients_) c.gradients->begin(last, GradientGroup::kAll, microbatch, stream_);
    c.heads[want_gradients_ ? c.gradients->slot(microbatch) : 0].forward(layer_input(c, microbatch, c.depth()), b, loss_scale_, loss_words_, want_gradients_, gradient,
                    !c.gradients->writes(microbatch), sink, stream_);
    if (!want_gradients_) return;
    c.gradients->end(last, GradientGroup::kAll, microbatch, stream_);
    gradients_ready(stage, last, microbatch);
  }
}

void RankModel::run_layers(const GraphCache::Key& key, int microbatch, const std::function<void()>& work) {
  // A graph cannot say when a single layer is done, which is what the last micro-batch is asked for; and with a tree over
  // rows every micro-batch adds to other gradients.
  if (plan_.row_tree || (ready_ && microbatch + 1 == static_cast<int>(batches_.size()))) work();
  else graphs_.run(key, stream_, work);
}

void RankModel::gradients_ready(int stage, int64_t layer, int microbatch) const {
  if (ready_ && microbatch + 1 == static_cast<int>(batches_.size())) ready_(stage, layer);
}

void RankModel::backward(int stage, int microbatch, ActionKind kind) {
  Chunk& c = chunk(stage);
  const nn::Batch& b = batch(microbatch);
  const bool split = kind != ActionKind::kBackward;
  const GradientSlots& gradients = *c.gradients;
  const std::vector<nn::DecoderLayer>& layers = c.layers[gradients.slot(microbatch)];
  const nn::MatrixGradients matrices = matrix_gradients(c, kind, microbatch);
  // Where there is a head, its forward came first; a weight gradient comes after the input's.
  if (microbatch == 0 && c.heads.empty() && kind != ActionKind::kBackwardWeight) open_gradients(c);
  if (kind == ActionKind::kBackwardWeight) {
    run_layers(graph_key(c, kind, microbatch, b), microbatch, [&] {
      for (size_t i = layers.size(); i-- > 0;) {
        const int64_t layer = c.spec.layer_begin + static_cast<int64_t>(i);
        gradients.begin(layer, GradientGroup::kMatrices, microbatch, stream_);
        layers[i].backward_weight(acts(c, microbatch, i, true), grads(c, microbatch, i, true), matrices, stream_);
        gradients.end(layer, GradientGroup::kMatrices, microbatch, stream_);
        gradients_ready(stage, layer, microbatch);
      }
    });
    return;
  }
  if (split)
    for (size_t i = 0; i < c.stashes.size() && !c.stash_of.contains(microbatch); ++i)
      if (std::none_of(c.stash_of.begin(), c.stash_of.end(), [&](const auto& e) { return e.second == i; }))
        c.stash_of[microbatch] = i;
  R1_CHECK(!split || c.stash_of.contains(microbatch), "stage {}: no stash left", stage);

  // The executor keeps the buffer that comes next free of pending sends. Only a gradient that is sent uses it up: the first
  // stage's is consumed below, and counting it would hand out a buffer that is still on its way.
  const size_t ring = ring_next_;
  if (!c.spec.embedding) ring_next_ = (ring_next_ + 1) % parallel::kGradientSendRing;
  c.ring_of[microbatch] = ring;
  const Tensor out = scratch("input gradient " + std::to_string(ring));
  const nn::Batch lb = layer_batch(microbatch);
  run_layers(graph_key(c, kind, microbatch, lb), microbatch, [&] { backward_layers(c, microbatch, lb, matrices, out); });
  if (c.spec.embedding) {
    const StageParameters& p = params_[c.params];
    gradients.begin(-1, GradientGroup::kAll, microbatch, stream_);
    kernels::embedding_backward(b.ids, region_.gather(out, shared_.scratch.gathered_gradient, stream_), shared_.local.vocab.begin,
                                p.part(p.gradient_slot(gradients.slot(microbatch)), p.index(ParamRole::kEmbedding, -1)),
                                stream_);
    gradients.end(-1, GradientGroup::kAll, microbatch, stream_);
    gradients_ready(stage, -1, microbatch);
  }
}

}  // namespace r1::models
