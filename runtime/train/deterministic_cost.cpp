#include "runtime/train/deterministic_cost.h"

#include <algorithm>
#include <chrono>

#include "runtime/core/human.h"
#include "runtime/kernels/ops.h"

namespace r1::train {
namespace {

/// Seconds of `work`, the fastest of three after one to warm up.
template <class Work>
double timed(const Stream& s, const Work& work) {
  DeviceBackend& backend = backend_of(s.device.kind);
  double best = 1e300;
  for (int i = 0; i < 4; ++i) {
    backend.synchronize(s);
    const auto start = std::chrono::steady_clock::now();
    work();
    backend.synchronize(s);
    if (i > 0) best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

/// How much slower a token of the gate and up product is in tiles of `tile` tokens than in one product of `tokens`.
double tile_slowdown(Engine& engine, int64_t tile, int64_t tokens) {
  const parallel::ModelConfig& c = engine.spec().config();
  const Stream& s = engine.stream();
  const DType dtype = engine.plan().format.weights;
  const int64_t out = 2 * engine.spec().local(engine.groups().coord().tp).ffn.size();
  if (out == 0) return 0;
  Buffer memory(s.device, static_cast<size_t>((tokens * c.hidden + out * c.hidden + tokens * out) * dtype_bytes(dtype)));
  backend_of(s.device.kind).fill_zero(memory.data(), memory.bytes(), s);
  const auto matrix = [&](int64_t begin, int64_t rows, int64_t columns) {
    return Tensor{.data = static_cast<char*>(memory.data()) + begin * dtype_bytes(dtype), .dtype = dtype,
                  .shape = {rows, columns}, .device = s.device};
  };
  const Tensor x = matrix(0, tokens, c.hidden), w = matrix(tokens * c.hidden, out, c.hidden),
               y = matrix((tokens + out) * c.hidden, tokens, out);
  const double whole = timed(s, [&] { kernels::linear_forward(x, w, {}, y, s); });
  const double tiles = timed(s, [&] {
    for (int64_t t = 0; t < tokens; t += tile) kernels::linear_forward(x.rows(t, t + tile), w, {}, y.rows(t, t + tile), s);
  });
  return std::max(0.0, tiles / whole - 1.0);
}

}  // namespace

DeterministicCost measure_deterministic_cost(Engine& engine, int64_t seq_len, int64_t micro_batch) {
  DeterministicCost cost;
  const parallel::RankPlan& plan = engine.plan();
  R1_CHECK(plan.row_tree.has_value(), "the job is not deterministic");
  int64_t cleared = 0, added = 0;
  for (const parallel::RowTree::Step& step : plan.row_tree->steps) {
    cleared += step.slot > 0 ? 1 : 0;
    added += step.merges;
  }
  const Stream& s = engine.stream();
  for (const models::StageParameters& p : engine.model().parameters()) {
    for (size_t k = 1; k < p.gradient_slots(); ++k)
      cost.more_gradient_bytes += static_cast<int64_t>(p.gradient_slot(k).bytes());
    for (size_t k = 0; k < p.gradient_slots(); ++k)
      if (const Tensor t = p.tied_head_gradient(k); t.data != nullptr) cost.more_gradient_bytes += static_cast<int64_t>(t.bytes());
    if (p.gradient_slots() < 2) continue;
    const Tensor to = p.gradient_slot(0), from = p.gradient_slot(1);
    cost.tree_seconds += static_cast<double>(added) * timed(s, [&] { kernels::add_into(to, from, s); });
    cost.tree_seconds +=
        static_cast<double>(cleared) * timed(s, [&] { backend_of(s.device.kind).fill_zero(from.data, from.bytes(), s); });
  }
  if (micro_batch > 1) cost.tile_slowdown = tile_slowdown(engine, seq_len, seq_len * micro_batch);
  return cost;
}

std::string DeterministicCost::str(int64_t seq_len, int64_t micro_batch) const {
  std::string text = fmt::format("rows one by one; {} for partial sums of gradients, {:.1f} ms a step to add them up",
                                 human_bytes(static_cast<double>(more_gradient_bytes)), 1e3 * tree_seconds);
  if (micro_batch > 1)
    text += fmt::format("; products on {} tokens take {:.1f} % longer than on the {} of --micro-batch {}", seq_len,
                        100 * tile_slowdown, seq_len * micro_batch, micro_batch);
  return text;
}

}  // namespace r1::train
