#include "parallel/cost/step_time.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "runtime/core/human.h"

namespace r1::parallel {
namespace {

constexpr double kTile = 96;  ///< see the header
double d(int64_t n) { return static_cast<double>(n); }

/// Everything about one rank's stage that the formulas below need. Lengths in elements.
struct Sizes {
  double tokens, part;      ///< T, and this rank's part of it between blocks
  double h, q, kv, f, v;    ///< hidden (whole), local q, kv, ffn, vocabulary
  double segment;
  double act;               ///< bytes of an activation element
  int tp;
};

/// The largest shard of each kind over the tp ranks: the group waits for its slowest member.
Sizes sizes_of(const ModelSpec& spec, const JobShape& job, double segment) {
  const ModelConfig& c = spec.config();
  Sizes s{.tokens = d(job.tokens()), .part = std::ceil(d(job.tokens()) / job.mesh.tp), .h = d(c.hidden), .q = 0, .kv = 0,
          .f = 0, .v = 0, .segment = segment > 0 ? segment : d(job.seq_len),
          .act = d(dtype_bytes(job.format.weights)), .tp = job.mesh.tp};
  for (int r = 0; r < job.mesh.tp; ++r) {
    const LocalShape local = spec.local(r);
    s.q = std::max(s.q, d(local.q_heads.size() * c.head_dim));
    s.kv = std::max(s.kv, d(local.kv_heads.size() * c.head_dim));
    s.f = std::max(s.f, d(local.ffn.size()));
    s.v = std::max(s.v, d(local.vocab.size()));
  }
  return s;
}

double gemm_s(double m, double n, double k, const DeviceRates& r) {
  if (m * n * k == 0) return 0;
  const double rate = r.gemm * m / (m + kTile) * n / (n + kTile);
  return std::max(2 * m * n * k / rate, r.kernel_s);
}
double copy_s(double bytes, const DeviceRates& r) { return bytes / r.bytes_per_s; }

/// Seconds of one layer and micro-batch.
struct LayerTime {
  double gemm_forward = 0, gemm_input = 0, gemm_weight = 0;
  double down_forward = 0;  ///< of gemm_forward: the product that full recompute need not repeat
  double attention_forward = 0, attention_backward = 0;
  double elementwise_forward = 0, elementwise_backward = 0;
  double norm_and_swiglu = 0;  ///< of elementwise_forward: what the cheap policy repeats
  double tp_operation = 0;     ///< one all-gather or reduce-scatter of a block edge
};

double collective_s(double bytes_each, int ranks, const GroupLink& link) {
  if (ranks <= 1) return 0;
  return link.latency_s + bytes_each * (ranks - 1) / ranks / link.bytes_per_s;
}

LayerTime layer_time(const Sizes& s, const DeviceRates& r, const MeshLinks& links) {
  LayerTime t;
  const double t_all = s.tokens;
  const struct { double n, k; } products[] = {{s.q + 2 * s.kv, s.h}, {s.h, s.q}, {2 * s.f, s.h}, {s.h, s.f}};
  for (const auto& p : products) {
    t.gemm_forward += gemm_s(t_all, p.n, p.k, r);
    t.gemm_input += gemm_s(t_all, p.k, p.n, r);
    t.gemm_weight += gemm_s(p.n, p.k, t_all, r);
  }
  t.down_forward = gemm_s(t_all, s.h, s.f, r);
  const double pairs = s.q * s.segment / 2 * t_all;
  t.attention_forward = std::max(4 * pairs / r.attention_forward, r.kernel_s);
  t.attention_backward = std::max(10 * pairs / r.attention_backward, r.kernel_s);
  const double stream = 8 * s.h * s.part, heads = 2 * (s.q + 2 * s.kv) * t_all, ffn = s.f * t_all;
  t.elementwise_forward = copy_s(s.act * (stream + heads + 3 * ffn), r) + 6 * r.kernel_s;
  t.elementwise_backward = copy_s(s.act * (stream + heads + 5 * ffn), r) + 7 * r.kernel_s;
  t.norm_and_swiglu = copy_s(s.act * (4 * s.h * s.part + 3 * ffn), r) + 3 * r.kernel_s;
  t.tp_operation = collective_s(s.act * t_all * s.h, s.tp, links.tp);
  return t;
}

/// What a policy repeats of one layer: computation, and collectives (an input gathered again, a sum done again).
struct Repeated {
  double compute = 0, comm = 0;
};
Repeated repeated(const LayerTime& t, Recompute policy) {
  switch (policy) {
    case Recompute::kNone: return {};
    case Recompute::kCheap: return {t.norm_and_swiglu, 0};
    case Recompute::kSelective: return {t.norm_and_swiglu + t.attention_forward, 0};
    case Recompute::kFull:
      return {t.gemm_forward - t.down_forward + t.attention_forward + t.elementwise_forward, 3 * t.tp_operation};
  }
  return {};
}

/// Busy seconds of one stage for one micro-batch, by part.
struct StageTime {
  double gemm = 0, attention = 0, elementwise = 0, head = 0, recompute = 0, tp_comm = 0;
  double offload = 0;  ///< the part of the three below in which only block inputs travel
  double forward = 0, backward_input = 0, backward_weight = 0;
};

/// Seconds over the host link; 0 where its rate is not known.
double host_s(double bytes, const DeviceRates& r) { return r.host_bytes_per_s > 0 ? bytes / r.host_bytes_per_s : 0; }

/// Block inputs travel beside the computation of their blocks: the longer of the two decides.
void add_offload(StageTime* t, double bytes, bool split, const DeviceRates& r) {
  const double forward = std::max(0.0, host_s(bytes, r) - t->forward);
  // They are read by the first half of a split backward.
  const double backward = std::max(0.0, host_s(bytes, r) - t->backward_input - (split ? 0 : t->backward_weight));
  t->forward += forward;
  t->backward_input += backward;
  t->offload = forward + backward;
}

StageTime stage_time(const ModelSpec& spec, const JobShape& job, int stage, const Sizes& s, const DeviceRates& r,
                     const MeshLinks& links) {
  const StageSpec& st = spec.stages().at(static_cast<size_t>(stage));
  const double layers = d(st.layer_end - st.layer_begin);
  const LayerTime t = layer_time(s, r, links);
  const Repeated again = repeated(t, job.recompute_of(stage % job.mesh.pp));
  StageTime out;
  out.gemm = layers * (t.gemm_forward + t.gemm_input + t.gemm_weight);
  out.attention = layers * (t.attention_forward + t.attention_backward);
  out.elementwise = layers * (t.elementwise_forward + t.elementwise_backward);
  out.recompute = layers * again.compute;
  double ends = 0, embedding = 0;  // collectives of both ends, all counted to the forward
  if (st.embedding) {
    embedding = copy_s(s.act * 3 * s.h * s.tokens, r);  // rows read and written, their gradient added
    out.elementwise += embedding;
    ends += t.tp_operation;
  }
  if (st.head) {
    // The head's three products and the cross-entropy all belong to the forward: the loss's gradient is made there.
    out.head = gemm_s(s.tokens, s.v, s.h, r) + gemm_s(s.tokens, s.h, s.v, r) + gemm_s(s.v, s.h, s.tokens, r) +
               copy_s(2 * s.act * s.v * s.tokens, r);
    ends += 3 * t.tp_operation;
  }
  const double forward_comm = layers * 4 * t.tp_operation + ends;
  // Four in the backward, and the input of each column-parallel product gathered again for its weight gradient.
  const double backward_comm = layers * (6 * t.tp_operation + again.comm);
  out.tp_comm = forward_comm + backward_comm;
  const double gaps = r.overhead;
  out.forward = gaps * (layers * (t.gemm_forward + t.attention_forward + t.elementwise_forward) + out.head + embedding) +
                forward_comm;
  out.backward_weight = gaps * layers * t.gemm_weight;
  out.backward_input = gaps * (layers * (t.gemm_input + t.attention_backward + t.elementwise_backward) + out.recompute) +
                       backward_comm;
  if (job.offload_activations) add_offload(&out, (layers - 1) * s.act * s.part * s.h, job.schedule == "zb-h1", r);
  return out;
}

/// Parameters of a rank's chunks: the tp rank with most.
double rank_params(const ModelSpec& spec, const JobShape& job, int pp_rank) {
  int64_t most = 0;
  for (const int r : {0, job.mesh.tp - 1}) {
    int64_t n = 0;
    for (int stage = pp_rank; stage < job.stages(); stage += job.mesh.pp)
      n += param_layout(spec.stage_params(stage), r).elems;
    most = std::max(most, n);
  }
  return d(most);
}

}  // namespace

StepTraffic step_traffic(const ModelSpec& spec, const JobShape& job) {
  StepTraffic t;
  const double act = d(dtype_bytes(job.format.weights)), m = job.microbatches();
  const double block = act * d(job.tokens()) * d(spec.config().hidden);
  const double layers = std::ceil(d(spec.config().layers) / job.mesh.pp);
  if (job.mesh.tp > 1) {
    t.tp_operations = m * layers * 10;
    t.tp_bytes = t.tp_operations * block * (job.mesh.tp - 1) / job.mesh.tp;
  }
  if (job.mesh.pp > 1) {
    t.pp_operations = m * job.virtual_stages;
    t.pp_bytes = t.pp_operations * block / job.mesh.tp;
  }
  if (job.mesh.dp > 1)
    t.dp_bytes = rank_params(spec, job, 0) * (job.mesh.dp - 1) / job.mesh.dp *
                 (job.zero > 0 ? d(dtype_bytes(job.format.gradients)) + act : 2 * d(dtype_bytes(job.format.gradients)));
  return t;
}

StepTime step_time(const ModelSpec& spec, const JobShape& job, const Schedule& schedule, const DeviceRates& rates,
                   const MeshLinks& links, double segment_tokens) {
  const Sizes s = sizes_of(spec, job, segment_tokens);
  const int stages = job.stages();
  StepTime out;
  std::vector<StageTime> by_stage;
  out.costs.forward.clear();
  out.costs.backward_input.clear();
  out.costs.backward_weight.clear();
  for (int i = 0; i < stages; ++i) {
    by_stage.push_back(stage_time(spec, job, i, s, rates, links));
    out.costs.forward.push_back(by_stage.back().forward);
    out.costs.backward_input.push_back(by_stage.back().backward_input);
    out.costs.backward_weight.push_back(by_stage.back().backward_weight);
  }
  const double hidden_none = simulate(schedule, out.costs).makespan;
  if (job.mesh.pp > 1)
    out.costs.transfer = links.pp.latency_s + s.act * s.part * s.h / links.pp.bytes_per_s;
  const Simulation sim = simulate(schedule, out.costs);
  out.bubble_fraction = sim.bubble_fraction;

  const double m = job.microbatches();
  double busiest = -1;
  for (int rank = 0; rank < job.mesh.pp; ++rank) {
    StageTime sum;
    for (int i = rank; i < stages; i += job.mesh.pp) {
      const StageTime& t = by_stage[static_cast<size_t>(i)];
      sum.gemm += t.gemm;
      sum.attention += t.attention;
      sum.elementwise += t.elementwise;
      sum.head += t.head;
      sum.recompute += t.recompute;
      sum.tp_comm += t.tp_comm;
      sum.offload += t.offload;
      sum.forward += t.forward + t.backward_input + t.backward_weight;
    }
    if (m * sum.forward <= busiest) continue;
    busiest = m * sum.forward;
    out.gemm = m * sum.gemm;
    out.attention = m * sum.attention;
    out.elementwise = m * sum.elementwise;
    out.head = m * sum.head;
    out.recompute = m * sum.recompute;
    out.tp_comm = m * sum.tp_comm;
    out.offload = m * sum.offload;
  }
  out.overhead = busiest - (out.gemm + out.attention + out.elementwise + out.head + out.recompute + out.tp_comm + out.offload);
  out.bubble = hidden_none - busiest;
  out.pp_comm = sim.makespan - hidden_none;

  // After the last backward: sum over dp, norm, update. The rank with most parameters decides.
  double params = 0;
  for (const int rank : {0, job.mesh.pp - 1}) params = std::max(params, rank_params(spec, job, rank));
  const double g = d(dtype_bytes(job.format.gradients)), w = d(dtype_bytes(job.format.weights));
  const double state = 4 * d(dtype_bytes(job.format.moments)) + (job.format.master ? 8 : 0);
  // Gradients: read for the norm, read by the update (written by the first backward; cleared before only for a tree over rows);
  // weights written (and read where there is no master copy). What a GPU hides of the update under the next forward is not
  // taken off: both want the memory.
  const double passes = job.tree_rows > 0 ? 2 : 1;
  const double share = job.zero > 0 ? 1.0 / job.mesh.dp : 1.0;
  const double update = share * (g + w + (job.format.master ? 0 : w));
  double waiting = 0;  // of the update for its state
  if (job.offload_optimizer) {
    // The update reads and writes its state where it lies: half of the bytes in each direction.
    out.optimizer = copy_s(params * (update + passes * g), rates);
    waiting = std::max(0.0, host_s(params * share * state / 2, rates) - copy_s(params * update, rates));
    out.offload += waiting;
  } else {
    out.optimizer = copy_s(params * (update + share * state + passes * g), rates);
  }
  if (job.mesh.dp > 1) {
    const double part = (job.mesh.dp - 1.0) / job.mesh.dp;
    out.dp_comm = 2 * links.dp.latency_s +
                  params * part * (job.zero > 0 ? g + w : 2 * g) / links.dp.bytes_per_s;
  }
  if (job.tree_rows > 0) {
    // Each merge reads two and writes one gradient; each row that begins a partial sum clears one.
    double moved = 0;
    for (const RowTree::Step& step : row_tree(job.tree_rows, job.mesh.dp, job.mesh.dp - 1).steps)
      moved += 3.0 * step.merges + (step.slot > 0 ? 1.0 : 0.0);
    out.row_sums = copy_s(params * g * moved, rates);
  }
  out.total = sim.makespan + out.dp_comm + out.optimizer + waiting + out.row_sums;
  const double tokens = d(job.batch) * d(job.seq_len);
  out.tokens_per_s = tokens / out.total;
  out.model_flops_per_s = out.tokens_per_s * spec.config().train_flops_per_token(s.segment) / job.mesh.world();
  return out;
}

std::vector<std::string> assumptions(const JobShape& job, const DeviceRates& rates, const MeshLinks& links) {
  std::vector<std::string> out;
  out.push_back(fmt::format("a rank's device sustains {} in large {} products, {} / {} in attention forward / backward, {} of copies",
                            human_si(rates.gemm, "FLOP/s"), dtype_name(job.format.weights),
                            human_si(rates.attention_forward, "FLOP/s"), human_si(rates.attention_backward, "FLOP/s"),
                            human_si(rates.bytes_per_s, "B/s")));
  out.push_back(fmt::format("every row is {} tokens of one sample (attention sees all of it); {:.0f} % for launches and gaps",
                            job.seq_len, 100 * (rates.overhead - 1)));
  if (job.mesh.tp > 1)
    out.push_back(fmt::format("tensor-parallel sums and gathers over {} at {}, {} each, not overlapped", links.tp.name,
                              human_si(links.tp.bytes_per_s, "B/s"), human_duration(links.tp.latency_s)));
  if (job.mesh.pp > 1)
    out.push_back(fmt::format("stages exchange over {} at {}; what the schedule hides costs nothing", links.pp.name,
                              human_si(links.pp.bytes_per_s, "B/s")));
  if (job.mesh.dp > 1)
    out.push_back(fmt::format("gradients are summed over {} at {} after the last backward", links.dp.name,
                              human_si(links.dp.bytes_per_s, "B/s")));
  if (job.offloads())
    out.push_back(rates.host_bytes_per_s > 0
                      ? fmt::format("what --offload {} moves crosses {} at {} in each direction, both at once, beside the computation: the longer "
                                    "of the two decides (an estimate)",
                                    job.offload_text(), rates.host_link, human_si(rates.host_bytes_per_s, "B/s"))
                      : fmt::format("what --offload {} moves is not counted: the host link is not known", job.offload_text()));
  return out;
}

}  // namespace r1::parallel
