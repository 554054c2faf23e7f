#include "runtime/optim/optimizer.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "runtime/kernels/ops.h"

namespace r1::optim {

using parallel::Interval;
using parallel::ParamRole;
using parallel::ParamSpec;

namespace {

Tensor slice(const Tensor& block, int64_t begin, int64_t end) { return block.rows(begin, end); }

Interval intersect(Interval a, Interval b) { return {std::max(a.begin, b.begin), std::min(a.end, b.end)}; }

/// Index of the parameter of a role, -1 when the block has none.
int find(const ParamBlock& b, ParamRole role) {
  for (size_t i = 0; i < b.specs->size(); ++i)
    if ((*b.specs)[i].role == role) return static_cast<int>(i);
  return -1;
}

Tensor part(const ParamBlock& b, const Tensor& block, size_t i) {
  const int64_t begin = b.layout->offsets[i];
  return slice(block, begin, begin + (*b.specs)[i].shard.local_elems(b.tp_rank));
}

}  // namespace

GradientSync::GradientSync(std::vector<ParamBlock> blocks, parallel::ProcessGroups& groups, Tensor packed)
    : blocks_(std::move(blocks)), groups_(groups), packed_(packed) {
  for (const ParamBlock& b : blocks_) {
    std::vector<SharedRun> runs;
    int64_t elems = 0;
    for (size_t i = 0; i < b.specs->size(); ++i) {
      const ParamSpec& p = (*b.specs)[i];
      for (const Interval& shared : p.shard.shared()) {
        // Shared elements are packed in the tensor's global order, so that each rank finds them at the same place.
        int64_t row = 1;
        for (size_t d = 0; d < p.shape.size(); ++d)
          if (static_cast<int>(d) != p.shard.dim()) row *= p.shape[d];
        R1_CHECK(p.shard.dim() == 0, "{}: shared along dim {}", p.name, p.shard.dim());
        const Interval held = intersect(shared, p.shard.part(b.tp_rank));
        if (held.size() > 0)
          runs.push_back({.packed = elems + (held.begin - shared.begin) * row,
                          .offset = b.layout->offsets[i] + (held.begin - p.shard.part(b.tp_rank).begin) * row,
                          .count = held.size() * row});
        elems += shared.size() * row;
      }
    }
    shared_.push_back(std::move(runs));
    packed_elems_.push_back(elems);
    R1_CHECK(elems <= packed_.numel(), "{} shared elements, planned {}", elems, packed_.numel());
  }
}

void GradientSync::run(const Stream& s) const {
  DeviceBackend& backend = backend_of(s.device.kind);
  if (groups_.tp().size() > 1)
    for (size_t b = 0; b < blocks_.size(); ++b) {
      const Tensor packed = slice(packed_, 0, packed_elems_[b]);
      const Tensor& g = blocks_[b].gradients;
      backend.fill_zero(packed.data, packed.bytes(), s);
      for (const SharedRun& r : shared_[b]) {
        const Tensor from = slice(g, r.offset, r.offset + r.count);
        backend.copy(slice(packed, r.packed, r.packed + r.count).data, from.data, from.bytes(), s);
      }
      groups_.tp().all_reduce(packed, comm::ReduceOp::kSum, s);
      for (const SharedRun& r : shared_[b]) {
        const Tensor to = slice(g, r.offset, r.offset + r.count);
        backend.copy(to.data, slice(packed, r.packed, r.packed + r.count).data, to.bytes(), s);
      }
    }

  // Tied embeddings: the embedding's gradient and the head's are parts of one sum.
  Tensor embedding, head;
  for (const ParamBlock& b : blocks_) {
    if (const int i = find(b, ParamRole::kEmbedding); i >= 0) embedding = part(b, b.gradients, static_cast<size_t>(i));
    if (const int i = find(b, ParamRole::kHead); i >= 0 && (*b.specs)[static_cast<size_t>(i)].tied_copy)
      head = part(b, b.gradients, static_cast<size_t>(i));
  }
  if (comm::Communicator* ends = groups_.ends(); ends != nullptr) {
    if (groups_.coord().pp == 0) ends->all_reduce(embedding, comm::ReduceOp::kSum, s);
    else ends->all_reduce(head, comm::ReduceOp::kSum, s);
  } else if (embedding.data != nullptr && head.data != nullptr) {  // both ends on this rank, in two virtual stages
    kernels::add_into(embedding, head, s);
    backend.copy(head.data, embedding.data, head.bytes(), s);
  }

  for (const ParamBlock& b : blocks_) groups_.dp().all_reduce(b.gradients, comm::ReduceOp::kSum, s);
}

GradientNorm::GradientNorm(std::vector<ParamBlock> blocks, parallel::ProcessGroups& groups, Device device)
    : groups_(groups), buffer_(device, sizeof(double)) {
  for (const ParamBlock& b : blocks) {
    // Without tp everything is this rank's own: one sum over the block (its gaps are zeros).
    const bool tied = std::any_of(b.specs->begin(), b.specs->end(), [](const ParamSpec& p) { return p.tied_copy; });
    if (groups.tp().size() == 1 && !tied) {
      owned_.push_back(b.gradients);
      continue;
    }
    for (size_t i = 0; i < b.specs->size(); ++i) {
      const ParamSpec& p = (*b.specs)[i];
      if (p.tied_copy) continue;  // counted by the first stage
      for (const Interval& owned : p.shard.owned(b.tp_rank))
        for (const parallel::Run& run : runs_of(p.shard, b.tp_rank, owned)) {
          const int64_t begin = b.layout->offsets[i] + run.local;
          // Rows of a column-cut matrix are neighbours in the local shard: join them.
          if (!owned_.empty()) {
            Tensor& last = owned_.back();
            const char* end = static_cast<const char*>(last.data) + last.bytes();
            if (end == static_cast<const char*>(b.gradients.data) + begin * dtype_bytes(b.gradients.dtype) &&
                run.local > 0) {
              last.shape[0] += run.count;
              continue;
            }
          }
          owned_.push_back(slice(b.gradients, begin, begin + run.count));
        }
    }
  }
}

Tensor GradientNorm::run(const Stream& s) const {
  DeviceBackend& backend = backend_of(s.device.kind);
  const Tensor sum{.data = buffer_.data(), .dtype = DType::kF64, .shape = {1}, .device = buffer_.device()};
  backend.fill_zero(sum.data, sizeof(double), s);
  for (const Tensor& t : owned_) kernels::sum_of_squares(t, sum, s);
  groups_.replica().all_reduce(sum, comm::ReduceOp::kSum, s);
  return sum;
}

AdamW::AdamW(std::vector<ParamBlock> blocks, AdamWOptions options, Device device)
    : blocks_(std::move(blocks)), options_(std::move(options)), factor_(device, sizeof(float)) {
  const auto exempt = [&](const char* kind) {
    return std::find(options_.no_decay.begin(), options_.no_decay.end(), kind) != options_.no_decay.end();
  };
  const auto decays = [&](ParamRole role) {
    switch (role) {
      case ParamRole::kInputNorm: case ParamRole::kPostNorm: case ParamRole::kFinalNorm: case ParamRole::kQNorm:
      case ParamRole::kKNorm: return !exempt("norm");
      case ParamRole::kQBias: case ParamRole::kKBias: case ParamRole::kVBias: return !exempt("bias");
      case ParamRole::kEmbedding: return !exempt("embedding");
      default: return true;
    }
  };
  for (size_t b = 0; b < blocks_.size(); ++b)
    for (size_t i = 0; i < blocks_[b].specs->size(); ++i) {
      const ParamSpec& p = (*blocks_[b].specs)[i];
      const int64_t begin = blocks_[b].layout->offsets[i];
      const int64_t end = begin + p.shard.local_elems(blocks_[b].tp_rank);
      // A tied head is the embedding: the same rule on both ends keeps the copies equal.
      const bool decay = decays(p.tied_copy ? ParamRole::kEmbedding : p.role);
      // The gaps between blocks hold zeros, so a range may run across them.
      if (!ranges_.empty() && ranges_.back().block == b && ranges_.back().decay == decay) ranges_.back().end = end;
      else ranges_.push_back({b, begin, end, decay});
    }
}

void AdamW::step(double lr, int64_t step, const Tensor& sum_squares, const Stream& s) const {
  const Tensor factor{.data = factor_.data(), .dtype = DType::kF32, .shape = {1}, .device = factor_.device()};
  kernels::clip_factor(sum_squares, static_cast<float>(options_.clip), factor, s);
  kernels::AdamWArgs args;
  args.lr = decltype(args.lr)(lr);
  args.beta1 = decltype(args.beta1)(options_.beta1);
  args.beta2 = decltype(args.beta2)(options_.beta2);
  args.eps = decltype(args.eps)(options_.eps);
  args.step = step;
  args.seed = options_.seed;
  for (const Range& r : ranges_) {
    const ParamBlock& b = blocks_[r.block];
    const auto cut = [&](const Tensor& t) { return t.data == nullptr ? Tensor{} : slice(t, r.begin, r.end); };
    args.weight_decay = decltype(args.weight_decay)(r.decay ? options_.weight_decay : 0.0);
    kernels::adamw_step(cut(b.weights), cut(b.master), cut(b.gradients), cut(b.exp_avg), cut(b.exp_avg_sq), factor, args, s);
  }
}

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
