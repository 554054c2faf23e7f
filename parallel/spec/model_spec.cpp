#include "parallel/spec/model_spec.h"

#include <algorithm>
#include <limits>
#include <set>

#include "runtime/core/comm_route.h"
#include "runtime/core/error.h"

namespace r1::parallel {
namespace {

/// Elements between the starts of two parameter blocks: 512 bytes in fp32, 256 in bf16.
constexpr int64_t kParamAlign = 128;
constexpr int64_t kStateAlign = 64;   ///< elements between the starts of two shards: the arena's alignment in fp32
constexpr int64_t kPlanAlign = 256;  ///< bytes; the arena's alignment

/// Parts of `total` cut evenly on multiples of `quantum` where there is enough of it: tile-sized shards for the GEMMs.
std::vector<Interval> even_parts(int64_t total, int n, int64_t quantum) {
  const int64_t q = total >= 4 * quantum * n ? quantum : 1;
  const int64_t units = (total + q - 1) / q;
  std::vector<Interval> parts;
  for (int i = 0; i < n; ++i) {
    const Interval u = even_part(units, i, n);
    parts.push_back({std::min(u.begin * q, total), std::min(u.end * q, total)});
  }
  return parts;
}

std::vector<Interval> scaled(const std::vector<Interval>& parts, int64_t factor) {
  std::vector<Interval> out;
  for (const Interval& p : parts) out.push_back({p.begin * factor, p.end * factor});
  return out;
}

std::vector<Interval> q_head_parts(const ModelConfig& c, int tp) { return even_parts(c.heads, tp, 1); }

/// The kv heads a rank's q heads read. Where the q split cuts inside a group, neighbours share a kv head.
std::vector<Interval> kv_head_parts(const ModelConfig& c, int tp) {
  const int64_t group = c.heads / c.kv_heads;
  std::vector<Interval> parts;
  int64_t last_end = 0;
  for (const Interval& q : q_head_parts(c, tp)) {
    if (q.size() == 0) {
      parts.push_back({last_end, last_end});
    } else {
      parts.push_back({q.begin / group, (q.end + group - 1) / group});
      last_end = parts.back().end;
    }
  }
  return parts;
}

std::vector<Interval> ffn_parts(const ModelConfig& c, int tp) { return even_parts(c.ffn, tp, 64); }
std::vector<Interval> vocab_parts(const ModelConfig& c, int tp) { return even_parts(c.vocab, tp, 64); }

ParamSpec replicated(std::string name, ParamRole role, int64_t layer, int64_t n, int tp) {
  const std::vector<int64_t> shape{n};
  return {.name = std::move(name), .role = role, .layer = layer, .shape = shape,
          .shard = ShardSpec::replicated(shape, tp)};
}

ParamSpec cut(std::string name, ParamRole role, int64_t layer, std::vector<int64_t> shape, int dim,
              std::vector<Interval> parts, bool fused = false) {
  ParamSpec p{.name = std::move(name), .role = role, .layer = layer, .shape = shape, .fused_with_previous = fused};
  p.shard = ShardSpec::cut(shape, dim, std::move(parts));
  return p;
}

}  // namespace

std::vector<int32_t> LocalShape::kv_of_q(int64_t group) const {
  std::vector<int32_t> map;
  for (int64_t q = q_heads.begin; q < q_heads.end; ++q) map.push_back(static_cast<int32_t>(q / group - kv_heads.begin));
  return map;
}

ModelSpec::ModelSpec(ModelConfig config, int tp, int stages)
    : config_(std::move(config)), tp_(tp), stages_(partition_stages(config_, stages)) {
  const auto q = q_head_parts(config_, tp), kv = kv_head_parts(config_, tp), ffn = ffn_parts(config_, tp),
             vocab = vocab_parts(config_, tp);
  for (size_t r = 0; r < q.size(); ++r) locals_.push_back({q[r], kv[r], ffn[r], vocab[r]});
}

std::vector<ParamSpec> ModelSpec::layer_params(int64_t l) const {
  const ModelConfig& c = config_;
  const std::string base = "model.layers." + std::to_string(l) + ".";
  const auto q = scaled(q_head_parts(c, tp_), c.head_dim), kv = scaled(kv_head_parts(c, tp_), c.head_dim);
  const auto f = ffn_parts(c, tp_);
  std::vector<ParamSpec> p;
  p.push_back(replicated(base + "input_layernorm.weight", ParamRole::kInputNorm, l, c.hidden, tp_));
  p.push_back(cut(base + "self_attn.q_proj.weight", ParamRole::kQ, l, {c.q_dim(), c.hidden}, 0, q));
  p.push_back(cut(base + "self_attn.k_proj.weight", ParamRole::kK, l, {c.kv_dim(), c.hidden}, 0, kv, true));
  p.push_back(cut(base + "self_attn.v_proj.weight", ParamRole::kV, l, {c.kv_dim(), c.hidden}, 0, kv, true));
  if (c.qkv_bias) {
    p.push_back(cut(base + "self_attn.q_proj.bias", ParamRole::kQBias, l, {c.q_dim()}, 0, q));
    p.push_back(cut(base + "self_attn.k_proj.bias", ParamRole::kKBias, l, {c.kv_dim()}, 0, kv, true));
    p.push_back(cut(base + "self_attn.v_proj.bias", ParamRole::kVBias, l, {c.kv_dim()}, 0, kv, true));
  }
  if (c.qk_norm) {
    p.push_back(replicated(base + "self_attn.q_norm.weight", ParamRole::kQNorm, l, c.head_dim, tp_));
    p.push_back(replicated(base + "self_attn.k_norm.weight", ParamRole::kKNorm, l, c.head_dim, tp_));
  }
  p.push_back(cut(base + "self_attn.o_proj.weight", ParamRole::kO, l, {c.hidden, c.q_dim()}, 1, q));
  p.push_back(replicated(base + "post_attention_layernorm.weight", ParamRole::kPostNorm, l, c.hidden, tp_));
  p.push_back(cut(base + "mlp.gate_proj.weight", ParamRole::kGate, l, {c.ffn, c.hidden}, 0, f));
  p.push_back(cut(base + "mlp.up_proj.weight", ParamRole::kUp, l, {c.ffn, c.hidden}, 0, f, true));
  p.push_back(cut(base + "mlp.down_proj.weight", ParamRole::kDown, l, {c.hidden, c.ffn}, 1, f));
  return p;
}

ParamSpec ModelSpec::embedding_param() const {
  return cut("model.embed_tokens.weight", ParamRole::kEmbedding, -1, {config_.vocab, config_.hidden}, 0,
             vocab_parts(config_, tp_));
}

std::vector<ParamSpec> ModelSpec::head_params() const {
  const ModelConfig& c = config_;
  std::vector<ParamSpec> p;
  p.push_back(replicated("model.norm.weight", ParamRole::kFinalNorm, c.layers, c.hidden, tp_));
  p.push_back(cut(c.tied_embeddings ? "model.embed_tokens.weight" : "lm_head.weight", ParamRole::kHead, c.layers,
                  {c.vocab, c.hidden}, 0, vocab_parts(c, tp_)));
  p.back().tied_copy = c.tied_embeddings;
  return p;
}

std::vector<ParamSpec> ModelSpec::stage_params(int stage) const {
  const StageSpec& st = stages_.at(static_cast<size_t>(stage));
  std::vector<ParamSpec> out;
  if (st.embedding) out.push_back(embedding_param());
  for (int64_t l = st.layer_begin; l < st.layer_end; ++l)
    for (ParamSpec& p : layer_params(l)) out.push_back(std::move(p));
  if (st.head)
    for (ParamSpec& p : head_params()) {
      // One stage with both ends shares the tied matrix itself.
      if (p.tied_copy && st.embedding) continue;
      out.push_back(std::move(p));
    }
  return out;
}

std::vector<ParamSpec> ModelSpec::all_params() const {
  std::vector<ParamSpec> out{embedding_param()};
  for (int64_t l = 0; l < config_.layers; ++l)
    for (ParamSpec& p : layer_params(l)) out.push_back(std::move(p));
  for (ParamSpec& p : head_params())
    if (!p.tied_copy) out.push_back(std::move(p));
  return out;
}

std::vector<StageSpec> partition_stages(const ModelConfig& c, int stages) {
  if (stages > c.layers)
    throw UsageError("--pp times --virtual-stages is {}, but the model has {} layers: at most {} stages, one layer each",
                     stages, c.layers, c.layers);
  const double layer = static_cast<double>(c.hidden * (c.q_dim() + 2 * c.kv_dim()) + c.q_dim() * c.hidden + 3 * c.hidden * c.ffn);
  const double head = static_cast<double>(c.vocab * c.hidden);
  // The embedding is a lookup; count its memory traffic as a small share so that ties favour fewer layers at the ends.
  const double embedding = 0.02 * layer;
  const auto cost = [&](int64_t begin, int64_t end, int s) {
    return layer * static_cast<double>(end - begin) + (s == 0 ? embedding : 0.0) + (s == stages - 1 ? head : 0.0);
  };
  // best[s][l]: smallest slowest-stage cost of the first s + 1 stages over the first l layers.
  const auto layers = static_cast<size_t>(c.layers);
  const auto count = static_cast<size_t>(stages);
  std::vector<std::vector<double>> best(count, std::vector<double>(layers + 1, std::numeric_limits<double>::infinity()));
  std::vector<std::vector<size_t>> from(count, std::vector<size_t>(layers + 1, 0));
  for (size_t s = 0; s < count; ++s)
    for (size_t l = s + 1; l <= layers; ++l)
      for (size_t b = s == 0 ? 0 : s; b < l; ++b) {
        if (s == 0 && b != 0) continue;
        const double before = s == 0 ? 0.0 : best[s - 1][b];
        const double here = std::max(before, cost(static_cast<int64_t>(b), static_cast<int64_t>(l), static_cast<int>(s)));
        if (here < best[s][l] - 1e-9) {
          best[s][l] = here;
          from[s][l] = b;
        }
      }
  std::vector<StageSpec> out(count);
  size_t end = layers;
  for (size_t s = count; s-- > 0;) {
    const size_t begin = from[s][end];
    out[s] = {.layer_begin = static_cast<int64_t>(begin), .layer_end = static_cast<int64_t>(end), .embedding = s == 0,
              .head = s == count - 1};
    end = begin;
  }
  return out;
}

Recompute parse_recompute(const std::string& name) {
  for (Recompute r : {Recompute::kNone, Recompute::kCheap, Recompute::kSelective, Recompute::kFull})
    if (recompute_name(r) == name) return r;
  throw UsageError("--recompute is '{}', allowed are none, cheap, selective, full", name);
}

std::string recompute_name(Recompute policy) {
  switch (policy) {
    case Recompute::kNone: return "none";
    case Recompute::kCheap: return "cheap";
    case Recompute::kSelective: return "selective";
    case Recompute::kFull: return "full";
  }
  return "?";
}

int64_t PlannedTensor::elems() const {
  int64_t n = 1;
  for (int64_t d : shape) n *= d;
  return n;
}

bool keeps(Recompute policy, LayerSlot slot) {
  switch (policy) {
    case Recompute::kNone: return true;
    case Recompute::kCheap: return slot != LayerSlot::kNorm1 && slot != LayerSlot::kNorm2 && slot != LayerSlot::kAct;
    case Recompute::kSelective:
      return keeps(Recompute::kCheap, slot) && slot != LayerSlot::kAttn && slot != LayerSlot::kLse;
    case Recompute::kFull: return false;
  }
  return true;
}

Interval token_part(int64_t tokens, int tp_rank, int tp) { return even_part(tokens, tp_rank, tp); }

PlannedTensor layer_slot(const ModelSpec& spec, int tp_rank, int64_t tokens, DType act, LayerSlot slot) {
  const ModelConfig& c = spec.config();
  const LocalShape& local = spec.local(tp_rank);
  const int64_t ts = token_part(tokens, tp_rank, spec.tp()).size();
  const int64_t nq = local.q_heads.size(), nkv = local.kv_heads.size(), f = local.ffn.size();
  const int64_t qkv = (nq + 2 * nkv) * c.head_dim;
  const int64_t norm_tokens = c.qk_norm ? tokens : 0;
  switch (slot) {
    case LayerSlot::kNorm1: return {"norm1", {ts, c.hidden}, act};
    case LayerSlot::kRstd1: return {"rstd1", {ts}, DType::kF32};
    case LayerSlot::kQkvRaw: return {"qkv_raw", {norm_tokens, qkv}, act};
    case LayerSlot::kQkRstd: return {"qk_rstd", {norm_tokens, nq + nkv}, DType::kF32};
    case LayerSlot::kQkv: return {"qkv", {tokens, qkv}, act};
    case LayerSlot::kAttn: return {"attention", {tokens, nq * c.head_dim}, act};
    case LayerSlot::kLse: return {"lse", {nq, tokens}, DType::kF32};
    case LayerSlot::kMid: return {"mid", {ts, c.hidden}, act};
    case LayerSlot::kNorm2: return {"norm2", {ts, c.hidden}, act};
    case LayerSlot::kRstd2: return {"rstd2", {ts}, DType::kF32};
    case LayerSlot::kGateUp: return {"gate_up", {tokens, 2 * f}, act};
    case LayerSlot::kAct: return {"swiglu", {tokens, f}, act};
    case LayerSlot::kCount: break;
  }
  throw InternalError("unknown layer slot {}", static_cast<int>(slot));
}

int64_t head_chunk_tokens(const ModelSpec& spec, int tp_rank, int64_t tokens, int64_t budget_elems) {
  const int64_t vocab = (spec.config().vocab + spec.tp() - 1) / spec.tp();  // the same chunk on every tp rank
  static_cast<void>(tp_rank);
  const int64_t most = std::clamp<int64_t>(budget_elems / std::max<int64_t>(vocab, 1), std::min<int64_t>(64, tokens), tokens);
  if (tokens == 0) return most;
  // Chunks as equal as can be, of whole tiles where that makes them equal too: a short last one is a product of its own shape,
  // and a slow one.
  constexpr int64_t kTile = 128;
  const int64_t chunks = (tokens + most - 1) / most, even = (tokens + chunks - 1) / chunks, tiles = (even + kTile - 1) / kTile * kTile;
  return tiles <= most && tokens % tiles == 0 ? tiles : even;
}

SlotLayout slot_layout(const ModelSpec& spec, int stage, int tp_rank, int64_t tokens, Recompute recompute, DType act,
                       bool split_backward, std::vector<PlannedTensor>* slot, std::vector<PlannedTensor>* stash_slot,
                       std::vector<PlannedTensor>* host_slot) {
  const ModelConfig& c = spec.config();
  const StageSpec& st = spec.stages().at(static_cast<size_t>(stage));
  const int64_t ts = token_part(tokens, tp_rank, spec.tp()).size();
  const auto add = [](std::vector<PlannedTensor>* list, PlannedTensor t) {
    list->push_back(std::move(t));
    return static_cast<int>(list->size()) - 1;
  };
  const auto stream = [&](const std::string& name) { return PlannedTensor{name, {ts, c.hidden}, act}; };

  SlotLayout out;
  out.input = add(slot, stream("stage input"));
  out.gradient = add(slot, stream("output gradient"));
  for (int64_t l = st.layer_begin; l < st.layer_end; ++l) {
    const std::string base = "layer " + std::to_string(l) + " ";
    SlotLayout::Layer layer;
    layer.saved.fill(-1);
    layer.stashed.fill(-1);
    for (size_t i = 0; i < layer.saved.size(); ++i) {
      const auto which = static_cast<LayerSlot>(i);
      PlannedTensor t = layer_slot(spec, tp_rank, tokens, act, which);
      t.name = base + t.name;
      if (keeps(recompute, which)) {
        layer.saved[i] = add(slot, std::move(t));
      } else if (split_backward && (which == LayerSlot::kNorm1 || which == LayerSlot::kAttn ||
                                    which == LayerSlot::kNorm2 || which == LayerSlot::kAct)) {
        layer.stashed[i] = add(stash_slot, std::move(t));
      }
    }
    if (host_slot != nullptr && l + 1 < st.layer_end) layer.host_output = add(host_slot, stream(base + "output"));
    else layer.output = add(slot, stream(base + "output"));
    if (split_backward) {
      PlannedTensor dqkv = layer_slot(spec, tp_rank, tokens, act, LayerSlot::kQkv);
      dqkv.name = base + "dqkv";
      layer.dqkv = add(stash_slot, std::move(dqkv));
      layer.dmid = add(stash_slot, stream(base + "dmid"));
      // The top layer's dy is the slot's gradient; the others' are written by the layer above.
      if (l + 1 < st.layer_end) layer.dy = add(stash_slot, stream(base + "dy"));
      if (!keeps(recompute, LayerSlot::kGateUp)) {
        PlannedTensor dgu = layer_slot(spec, tp_rank, tokens, act, LayerSlot::kGateUp);
        dgu.name = base + "dgate_up";
        layer.dgate_up = add(stash_slot, std::move(dgu));
      }
    }
    out.layers.push_back(layer);
  }
  return out;
}

ParamLayout param_layout(const std::vector<ParamSpec>& params, int tp_rank) {
  ParamLayout out;
  for (const ParamSpec& p : params) {
    if (!p.fused_with_previous) out.elems = (out.elems + kParamAlign - 1) / kParamAlign * kParamAlign;
    out.offsets.push_back(out.elems);
    out.elems += p.shard.local_elems(tp_rank);
  }
  out.elems = (out.elems + kParamAlign - 1) / kParamAlign * kParamAlign;
  return out;
}

Interval state_rows(const ParamSpec& p, int tp_rank, int shard, int shards) {
  return even_part(p.shard.local_shape(tp_rank).front(), shard, shards);
}

StateLayout state_layout(const std::vector<ParamSpec>& params, int tp_rank, int shard, int shards) {
  StateLayout out;
  if (shards == 1) {
    ParamLayout all = param_layout(params, tp_rank);
    for (const ParamSpec& p : params) out.rows.push_back(state_rows(p, tp_rank, 0, 1));
    out.offsets = std::move(all.offsets);
    out.elems = all.elems;
    return out;
  }
  for (const ParamSpec& p : params) {
    const std::vector<int64_t> shape = p.shard.local_shape(tp_rank);
    int64_t row = 1;
    for (size_t d = 1; d < shape.size(); ++d) row *= shape[d];
    out.rows.push_back(state_rows(p, tp_rank, shard, shards));
    out.offsets.push_back(out.elems);
    out.elems += (out.rows.back().size() * row + kStateAlign - 1) / kStateAlign * kStateAlign;
  }
  out.elems = (out.elems + kParamAlign - 1) / kParamAlign * kParamAlign;
  return out;
}

int64_t shared_gradient_elems(const std::vector<ParamSpec>& params) {
  int64_t n = 0;
  for (const ParamSpec& p : params) {
    int64_t row = 1;
    for (size_t d = 0; d < p.shape.size(); ++d)
      if (static_cast<int>(d) != p.shard.dim()) row *= p.shape[d];
    for (const Interval& i : p.shard.shared()) n += i.size() * row;
  }
  return n;
}

int64_t laid_out_bytes(const std::vector<PlannedTensor>& tensors) {
  int64_t n = 0;
  for (const PlannedTensor& t : tensors) n += (t.bytes() + kPlanAlign - 1) / kPlanAlign * kPlanAlign;
  return n;
}

RankPlan::Bytes RankPlan::bytes() const {
  Bytes b;
  for (const Chunk& c : chunks) {
    b.weights += c.param_elems * dtype_bytes(format.weights);
    b.gradients += (c.param_elems + c.tied_head_elems) * gradient_slots() * dtype_bytes(format.gradients);
    (offload_optimizer ? b.host : b.optimizer) += c.state_elems * (2 * dtype_bytes(format.moments) + (format.master ? 4 : 0));
    b.host += c.in_flight * laid_out_bytes(c.host_slot);
    b.activations += c.in_flight * laid_out_bytes(c.slot) + c.stash * laid_out_bytes(c.stash_slot);
  }
  b.scratch = laid_out_bytes(scratch);
  b.messages = static_cast<int64_t>(messages.peers.size()) * messages.slots *
               std::min((messages.bytes + kPlanAlign - 1) / kPlanAlign * kPlanAlign, static_cast<int64_t>(kMostMessageSlotBytes));
  return b;
}

namespace {

/// The pp ranks that this one receives from.
std::vector<int> senders_to(const Schedule& schedule, int pp_rank) {
  std::set<int> peers;
  for (const Action& a : schedule.ranks.at(static_cast<size_t>(pp_rank))) {
    if (a.kind == ActionKind::kRecvForward) peers.insert((a.stage - 1) % schedule.pp);
    if (a.kind == ActionKind::kRecvBackward) peers.insert((a.stage + 1) % schedule.pp);
  }
  return {peers.begin(), peers.end()};
}

}  // namespace

RankPlan plan_rank(const ModelSpec& spec, const MeshShape& mesh, const MeshCoord& coord, const Schedule& schedule,
                   int64_t tokens, Recompute recompute, const NumericFormat& format, const DeviceNeeds& needs,
                   bool training, int zero, std::optional<RowTree> row_tree) {
  const ModelConfig& c = spec.config();
  RankPlan plan{.mesh = mesh, .coord = coord, .tokens = tokens, .recompute = recompute, .format = format, .zero = zero,
                .offload_optimizer = needs.offload_optimizer, .offload_activations = needs.offload_activations, .row_tree = std::move(row_tree)};
  const int tp_rank = coord.tp;
  const DType act = format.weights;
  const Simulation sim = simulate(schedule, {});
  bool split = false;
  bool head = false;
  for (int stage = coord.pp; stage < schedule.stages(); stage += mesh.pp) {
    const auto s = static_cast<size_t>(stage);
    RankPlan::Chunk chunk;
    chunk.stage = stage;
    const std::vector<ParamSpec> params = spec.stage_params(stage);
    chunk.param_elems = param_layout(params, tp_rank).elems;
    chunk.state_elems = state_layout(params, tp_rank, plan.shards() == 1 ? 0 : coord.dp, plan.shards()).elems;
    if (plan.row_tree && c.tied_embeddings && spec.stages()[s].embedding && spec.stages()[s].head)
      chunk.tied_head_elems = params.front().shard.local_elems(tp_rank);
    chunk.in_flight = sim.peak_in_flight.at(s);
    chunk.stash = training ? sim.peak_stash.at(s) : 0;
    split = split || chunk.stash > 0;
    head = head || spec.stages()[s].head;
    static_cast<void>(slot_layout(spec, stage, tp_rank, tokens, recompute, act, chunk.stash > 0, &chunk.slot,
                                  &chunk.stash_slot, needs.offload_activations ? &chunk.host_slot : nullptr));
    plan.chunks.push_back(std::move(chunk));
  }

  const LocalShape& local = spec.local(tp_rank);
  const int64_t ts = token_part(tokens, tp_rank, spec.tp()).size();
  plan.messages = {.peers = senders_to(schedule, coord.pp), .bytes = ts * c.hidden * dtype_bytes(act), .slots = needs.message_slots};
  auto& scratch = plan.scratch;
  const auto add = [&](const char* name, std::vector<int64_t> shape, DType dtype) {
    scratch.push_back({name, std::move(shape), dtype});
  };
  for (size_t i = 0; i < static_cast<size_t>(LayerSlot::kCount); ++i) {
    const auto which = static_cast<LayerSlot>(i);
    if (keeps(recompute, which)) continue;
    PlannedTensor t = layer_slot(spec, tp_rank, tokens, act, which);
    scratch.push_back(std::move(t));
  }
  add("partial", {tokens, c.hidden}, act);  // output of a row-parallel product before the sum over tp
  if (mesh.tp > 1) {
    add("gathered", {tokens, c.hidden}, act);
    add("gathered gradient", {tokens, c.hidden}, act);
    add("summed", {ts, c.hidden}, act);
  }
  if (training) {
    const PlannedTensor qkv = layer_slot(spec, tp_rank, tokens, act, LayerSlot::kQkv);
    const PlannedTensor attn = layer_slot(spec, tp_rank, tokens, act, LayerSlot::kAttn);
    const PlannedTensor act_grad = layer_slot(spec, tp_rank, tokens, act, LayerSlot::kAct);
    add("d_attention", attn.shape, act);
    add("d_swiglu", act_grad.shape, act);
    if (!split) {
      add("d_qkv", qkv.shape, act);
      add("d_mid", {ts, c.hidden}, act);
      add("gradient 0", {ts, c.hidden}, act);
      add("gradient 1", {ts, c.hidden}, act);
    }
    int64_t shared = 0;
    if (mesh.tp > 1)
      for (const RankPlan::Chunk& ch : plan.chunks) shared = std::max(shared, shared_gradient_elems(spec.stage_params(ch.stage)));
    add("shared gradients", {shared}, format.gradients);
    for (int i = 0; i < kGradientSendRing; ++i)
      scratch.push_back({"input gradient " + std::to_string(i), {ts, c.hidden}, act});
  }
  if (head) {
    const int64_t chunk = head_chunk_tokens(spec, tp_rank, tokens, needs.head_budget_elems);
    add("head norm", {ts, c.hidden}, act);
    add("head rstd", {ts}, DType::kF32);
    add("logits", {chunk, local.vocab.size()}, act);
    add("head stats", {3, chunk}, DType::kF32);
    add("head all stats", {mesh.tp, 3, chunk}, DType::kF32);
    add("head lse", {chunk}, DType::kF32);
    add("token loss", {tokens}, DType::kF32);
  }
  if (needs.workspace_bytes > 0) add("workspace", {needs.workspace_bytes}, DType::kU8);
  // All micro-batches of a step: the backward reads positions and segments again.
  const int64_t m = schedule.microbatches;
  add("token ids", {m, tokens}, DType::kI32);
  add("targets", {m, tokens}, DType::kI32);
  add("positions", {m, tokens}, DType::kI32);
  add("cu_seqlens", {m, tokens + 1}, DType::kI32);
  if (needs.offload_activations)
    for (int i = 0; i < kOffloadRing; ++i) scratch.push_back({"offload ring " + std::to_string(i), {ts, c.hidden}, act});
  if (needs.graphs) {
    add("graph positions", {tokens}, DType::kI32);
    add("graph segments", {tokens + 1}, DType::kI32);
  }
  add("rope table", {c.max_positions < tokens ? c.max_positions : tokens, c.head_dim}, DType::kF32);
  return plan;
}

}  // namespace r1::parallel
