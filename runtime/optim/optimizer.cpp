#include "runtime/optim/optimizer.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "runtime/kernels/ops.h"

namespace r1::optim {

using parallel::ParamRole;
using parallel::ParamSpec;

AdamW::AdamW(std::vector<ParamBlock> blocks, AdamWOptions options, parallel::ProcessGroups& groups, Device device)
    : blocks_(std::move(blocks)), options_(std::move(options)), exchange_(groups.dp()), factor_(device, sizeof(float)),
      backend_(backend_of(device.kind)), side_(backend_.create_stream(device, 1)), begun_(backend_.create_event(device, false)),
      ended_(backend_.create_event(device, false)) {
  for (const Unit& unit : units_of(blocks_)) {
    const ParamBlock& b = blocks_[unit.block];
    Work work{.block = unit.block, .layer = unit.layer, .updated = backend_.create_event(device, false)};
    add_ranges(work, unit.first, unit.last);
    if (b.shards > 1) work.buckets = ShardExchange::buckets(b, b.weights, unit, b.shards);
    work_.push_back(std::move(work));
  }
}

AdamW::~AdamW() {
  backend_.destroy_stream(side_);
  backend_.destroy_event(begun_);
  backend_.destroy_event(ended_);
  for (const Work& work : work_) backend_.destroy_event(work.updated);
}

bool AdamW::decays(const ParamSpec& p) const {
  const auto exempt = [&](const char* kind) {
    return std::find(options_.no_decay.begin(), options_.no_decay.end(), kind) != options_.no_decay.end();
  };
  // A tied head is the embedding: the same rule on both ends keeps the copies equal.
  switch (p.tied_copy ? ParamRole::kEmbedding : p.role) {
    case ParamRole::kInputNorm: case ParamRole::kPostNorm: case ParamRole::kFinalNorm: case ParamRole::kQNorm:
    case ParamRole::kKNorm: return !exempt("norm");
    case ParamRole::kQBias: case ParamRole::kKBias: case ParamRole::kVBias: return !exempt("bias");
    case ParamRole::kEmbedding: return !exempt("embedding");
    default: return true;
  }
}

void AdamW::add_ranges(Work& work, size_t first, size_t last) const {
  const ParamBlock& b = blocks_[work.block];
  for (size_t i = first; i < last; ++i) {
    const Tensor shard = b.shard(b.weights, i);
    if (shard.numel() == 0) continue;
    const int64_t begin = (static_cast<const char*>(shard.data) - static_cast<const char*>(b.weights.data)) /
                          dtype_bytes(b.weights.dtype);
    const Range r{.begin = begin, .end = begin + shard.numel(), .state_begin = b.state->offsets[i],
                  .decay = options_.weight_decay != 0 && decays((*b.specs)[i])};
    // The gaps between whole parameters hold zeros, so a range may run across them.
    Range* before = work.ranges.empty() ? nullptr : &work.ranges.back();
    if (before != nullptr && before->decay == r.decay && r.begin - before->begin == r.state_begin - before->state_begin &&
        (b.shards == 1 || before->end == r.begin))
      before->end = r.end;
    else work.ranges.push_back(r);
  }
}

void AdamW::step(double lr, int64_t step, const Tensor& sum_squares, const Tensor& loss, const Stream& s) {
  const Tensor factor{.data = factor_.data(), .dtype = DType::kF32, .shape = {1}, .device = factor_.device()};
  kernels::clip_factor(sum_squares, loss, static_cast<float>(options_.clip), factor, s);
  const Stream& u = beside_ ? side_ : s;
  if (beside_) {
    backend_.record(begun_, s);
    backend_.wait(side_, begun_);
  }
  kernels::AdamWArgs args;
  args.lr = lr;
  args.beta1 = options_.beta1;
  args.beta2 = options_.beta2;
  args.eps = options_.eps;
  args.step = step;
  args.seed = options_.seed;
  const Work* on_its_way = nullptr;  // to the other replicas, while the next unit is computed
  for (const Work& work : work_) {
    const ParamBlock& b = blocks_[work.block];
    for (const Range& r : work.ranges) {
      const auto state = [&](const Tensor& t) {
        return t.data == nullptr ? Tensor{} : t.rows(r.state_begin, r.state_begin + r.end - r.begin);
      };
      args.weight_decay = r.decay ? options_.weight_decay : 0.0;
      args.first_element = r.begin;
      kernels::adamw_step(b.weights.rows(r.begin, r.end), state(b.master), b.gradients.rows(r.begin, r.end), state(b.exp_avg),
                          state(b.exp_avg_sq), factor, args, u);
    }
    if (work.buckets.empty()) {
      backend_.record(work.updated, u);
      continue;
    }
    exchange_.all_gather(work.buckets, u);
    exchange_.finish(work.buckets.size());
    if (on_its_way != nullptr) backend_.record(on_its_way->updated, u);
    on_its_way = &work;
  }
  exchange_.finish();
  if (on_its_way != nullptr) backend_.record(on_its_way->updated, u);
  backend_.record(ended_, u);
}

void AdamW::wait(int stage, int64_t layer, const Stream& s) const {
  for (const Work& work : work_)
    if (work.layer == layer && blocks_[work.block].stage == stage) backend_.wait_outside(s, work.updated);
}

void AdamW::wait(const Stream& s) const { backend_.wait_outside(s, ended_); }

double LrSchedule::at(int64_t step) const {
  if (step < warmup_steps) return lr * static_cast<double>(step + 1) / static_cast<double>(warmup_steps);
  if (kind == Kind::kConstant) return lr;
  const int64_t span = std::max<int64_t>(total_steps - warmup_steps, 1);
  const double t = std::clamp(static_cast<double>(step - warmup_steps) / static_cast<double>(span), 0.0, 1.0);
  if (kind == Kind::kLinear) return min_lr + (lr - min_lr) * (1.0 - t);
  return min_lr + (lr - min_lr) * 0.5 * (1.0 + std::cos(std::numbers::pi * t));
}

LrSchedule::Kind parse_lr_schedule(const std::string& name) {
  if (name == "constant") return LrSchedule::Kind::kConstant;
  if (name == "linear") return LrSchedule::Kind::kLinear;
  if (name == "cosine") return LrSchedule::Kind::kCosine;
  throw UsageError("--lr-schedule is '{}', allowed are constant, linear, cosine", name);
}

}  // namespace r1::optim
