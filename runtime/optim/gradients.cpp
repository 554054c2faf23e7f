#include "runtime/optim/gradients.h"

#include <algorithm>

#include "runtime/kernels/exact_sum.h"
#include "runtime/kernels/ops.h"

namespace r1::optim {

using parallel::Interval;
using parallel::ParamRole;
using parallel::ParamSpec;

namespace {

Interval intersect(Interval a, Interval b) { return {std::max(a.begin, b.begin), std::min(a.end, b.end)}; }

int64_t row_elems(const ParamSpec& p, int tp_rank) {
  const std::vector<int64_t> shape = p.shard.local_shape(tp_rank);
  int64_t n = 1;
  for (size_t d = 1; d < shape.size(); ++d) n *= shape[d];
  return n;
}

/// Index of the parameter of a role, -1 when the block has none.
int find(const ParamBlock& b, ParamRole role) {
  for (size_t i = 0; i < b.specs->size(); ++i)
    if ((*b.specs)[i].role == role) return static_cast<int>(i);
  return -1;
}

}  // namespace

Tensor ParamBlock::part(const Tensor& block, size_t i) const {
  const int64_t begin = layout->offsets[i];
  return block.rows(begin, begin + (*specs)[i].shard.local_elems(tp_rank));
}

Tensor ParamBlock::shard(const Tensor& block, size_t i) const {
  const int64_t row = row_elems((*specs)[i], tp_rank), begin = layout->offsets[i];
  const Interval rows = state->rows[i];
  return block.rows(begin + rows.begin * row, begin + rows.end * row).view({rows.size(), row});
}

Tensor ParamBlock::state_shard(const Tensor& block, size_t i) const {
  if (block.data == nullptr) return {};
  const int64_t begin = state->offsets[i];
  return block.rows(begin, begin + state->rows[i].size() * row_elems((*specs)[i], tp_rank));
}

std::vector<Unit> units_of(const std::vector<ParamBlock>& blocks) {
  std::vector<Unit> units;
  for (size_t b = 0; b < blocks.size(); ++b)
    for (size_t i = 0; i < blocks[b].specs->size(); ++i) {
      const int64_t layer = (*blocks[b].specs)[i].layer;
      if (units.empty() || units.back().block != b || units.back().layer != layer)
        units.push_back({.block = b, .first = i, .last = i, .layer = layer});
      units.back().last = i + 1;
    }
  return units;
}

std::vector<ShardExchange::Bucket> ShardExchange::buckets(const ParamBlock& b, const Tensor& block, const Unit& unit, int dp) {
  std::vector<Bucket> out(1);
  int64_t filled = 0;
  for (size_t i = unit.first; i < unit.last; ++i) {
    const ParamSpec& p = (*b.specs)[i];
    const Tensor whole = b.part(block, i);
    const int64_t row = row_elems(p, b.tp_rank), bytes = static_cast<int64_t>(whole.bytes());
    if (bytes == 0) continue;
    const auto pieces = static_cast<int>((bytes + kBucketBytes - 1) / kBucketBytes);
    for (int k = 0; k < pieces; ++k) {
      comm::ShardedTensor x;
      for (int d = 0; d < dp; ++d) {
        const Interval rows = state_rows(p, b.tp_rank, d, dp), cut = parallel::even_part(rows.size(), k, pieces);
        x.parts.push_back(whole.rows((rows.begin + cut.begin) * row, (rows.begin + cut.end) * row));
      }
      if (filled > 0 && filled + bytes / pieces > kBucketBytes) {
        out.emplace_back();
        filled = 0;
      }
      out.back().push_back(std::move(x));
      filled += bytes / pieces;
    }
  }
  return out;
}

void ShardExchange::limit(size_t keep) {
  while (pending_.size() > keep) {
    pending_.front()->wait();
    pending_.pop_front();
  }
}

void ShardExchange::reduce_scatter(const std::vector<Bucket>& buckets, comm::SumOrder order, const Stream& s) {
  for (const Bucket& bucket : buckets) {
    limit(kInFlight - 1);
    pending_.push_back(dp_.start_reduce_scatter(bucket, order, s));
  }
}

void ShardExchange::all_gather(const std::vector<Bucket>& buckets, const Stream& s) {
  for (const Bucket& bucket : buckets) {
    limit(kInFlight - 1);
    pending_.push_back(dp_.start_all_gather(bucket, s));
  }
}

void ShardExchange::finish() { limit(0); }

GradientSync::GradientSync(std::vector<ParamBlock> blocks, parallel::ProcessGroups& groups, Tensor packed, comm::SumOrder order)
    : blocks_(std::move(blocks)), groups_(groups), packed_(packed), order_(order), exchange_(groups.dp()) {
  bool embedding = false, tied_head = false;
  for (const ParamBlock& b : blocks_) {
    embedding = embedding || find(b, ParamRole::kEmbedding) >= 0;
    const int head = find(b, ParamRole::kHead);
    tied_head = tied_head || (head >= 0 && (*b.specs)[static_cast<size_t>(head)].tied_copy) || b.tied_head_gradients.data != nullptr;
  }
  const bool both_here = embedding && tied_head, ends = groups.ends() != nullptr;
  for (const Unit& unit : units_of(blocks_)) {
    const ParamBlock& b = blocks_[unit.block];
    Part part{unit};
    for (size_t i = unit.first; i < unit.last; ++i) {
      const ParamSpec& p = (*b.specs)[i];
      part.tied = part.tied || ((both_here || ends) && (p.role == ParamRole::kEmbedding || p.tied_copy));
      for (const Interval& shared : p.shard.shared()) {
        // Shared elements are packed in the tensor's global order, so that each rank finds them at the same place.
        int64_t row = 1;
        for (size_t d = 0; d < p.shape.size(); ++d)
          if (static_cast<int>(d) != p.shard.dim()) row *= p.shape[d];
        R1_CHECK(p.shard.dim() == 0, "{}: shared along dim {}", p.name, p.shard.dim());
        const Interval held = intersect(shared, p.shard.part(b.tp_rank));
        if (held.size() > 0)
          part.shared.push_back({.packed = part.packed_elems + (held.begin - shared.begin) * row,
                                 .offset = b.layout->offsets[i] + (held.begin - p.shard.part(b.tp_rank).begin) * row,
                                 .count = held.size() * row});
        part.packed_elems += shared.size() * row;
      }
    }
    R1_CHECK(part.packed_elems <= packed_.numel() || groups.tp().size() == 1, "{} shared elements, planned {}", part.packed_elems,
             packed_.numel());
    if (groups.dp().size() > 1) part.buckets = ShardExchange::buckets(b, b.gradients, unit, groups.dp().size());
    parts_.push_back(std::move(part));
  }
}

void GradientSync::sum_over_tp(const Part& part, const Stream& s) const {
  if (groups_.tp().size() == 1 || part.packed_elems == 0) return;
  DeviceBackend& backend = backend_of(s.device.kind);
  const Tensor packed = packed_.rows(0, part.packed_elems);
  const Tensor& g = blocks_[part.block].gradients;
  backend.fill_zero(packed.data, packed.bytes(), s);
  for (const SharedRun& r : part.shared) {
    const Tensor from = g.rows(r.offset, r.offset + r.count);
    backend.copy(packed.rows(r.packed, r.packed + r.count).data, from.data, from.bytes(), s);
  }
  groups_.tp().all_reduce(packed, comm::ReduceOp::kSum, s);
  for (const SharedRun& r : part.shared) {
    const Tensor to = g.rows(r.offset, r.offset + r.count);
    backend.copy(to.data, packed.rows(r.packed, r.packed + r.count).data, to.bytes(), s);
  }
}

void GradientSync::sum_over_dp(Part& part, const Stream& s) {
  part.done = true;
  if (groups_.dp().size() == 1) return;
  exchange_.reduce_scatter(part.buckets, order_, s);
}

void GradientSync::ready(int stage, int64_t layer, const Stream& s) {
  for (Part& part : parts_)
    if (blocks_[part.block].stage == stage && part.layer == layer && !part.done && !part.tied) {
      sum_over_tp(part, s);
      sum_over_dp(part, s);
    }
}

void GradientSync::add_tied_ends(const Stream& s) const {
  // The embedding's gradient and the head's are parts of one sum: embedding + head, in this order wherever they are.
  DeviceBackend& backend = backend_of(s.device.kind);
  Tensor embedding, head;
  for (const ParamBlock& b : blocks_) {
    if (const int i = find(b, ParamRole::kEmbedding); i >= 0) embedding = b.part(b.gradients, static_cast<size_t>(i));
    if (const int i = find(b, ParamRole::kHead); i >= 0 && (*b.specs)[static_cast<size_t>(i)].tied_copy)
      head = b.part(b.gradients, static_cast<size_t>(i));
    if (b.tied_head_gradients.data != nullptr) kernels::add_into(embedding, b.tied_head_gradients, s);
  }
  if (comm::Communicator* ends = groups_.ends(); ends != nullptr) {
    ends->all_reduce(groups_.coord().pp == 0 ? embedding : head, comm::ReduceOp::kSum, s);
  } else if (embedding.data != nullptr && head.data != nullptr) {  // both ends on this rank, in two virtual stages
    kernels::add_into(embedding, head, s);
    backend.copy(head.data, embedding.data, head.bytes(), s);
  }
}

void GradientSync::finish(const Stream& s) {
  for (Part& part : parts_)
    if (!part.done) sum_over_tp(part, s);
  add_tied_ends(s);
  for (Part& part : parts_)
    if (!part.done) sum_over_dp(part, s);
  exchange_.finish();
  // Every replica holds all of the optimizer: each needs all the sums.
  if (groups_.dp().size() > 1 && blocks_.front().shards == 1) {
    for (const Part& part : parts_) exchange_.all_gather(part.buckets, s);
    exchange_.finish();
  }
  for (Part& part : parts_) part.done = false;
}

GradientNorm::GradientNorm(const std::vector<ParamBlock>& blocks, parallel::ProcessGroups& groups, Device device)
    : group_(blocks.front().shards > 1 ? groups.world() : groups.replica()),
      words_(device, kernels::kExactWords * sizeof(int64_t)), total_(device, sizeof(double)) {
  for (const ParamBlock& b : blocks)
    for (size_t i = 0; i < b.specs->size(); ++i) {
      const ParamSpec& p = (*b.specs)[i];
      if (p.tied_copy) continue;  // counted by the first stage
      const Tensor shard = b.shard(b.gradients, i);
      if (shard.numel() == 0) continue;
      for (const Interval& owned : p.shard.owned(b.tp_rank)) {
        const Interval part = p.shard.part(b.tp_rank);
        if (p.shard.dim() != 0) {
          R1_CHECK(owned == part, "{}: shared along dim {}", p.name, p.shard.dim());
          owned_.push_back(shard);
          continue;
        }
        const Interval rows = intersect({owned.begin - part.begin, owned.end - part.begin}, b.state->rows[i]);
        if (rows.size() > 0)
          owned_.push_back(shard.rows(rows.begin - b.state->rows[i].begin, rows.end - b.state->rows[i].begin));
      }
    }
}

Tensor GradientNorm::run(const Stream& s) const {
  DeviceBackend& backend = backend_of(s.device.kind);
  const Tensor words{.data = words_.data(), .dtype = DType::kI64, .shape = {kernels::kExactWords}, .device = words_.device()};
  const Tensor total{.data = total_.data(), .dtype = DType::kF64, .shape = {1}, .device = total_.device()};
  backend.fill_zero(words.data, words.bytes(), s);
  for (const Tensor& t : owned_) kernels::sum_of_squares(t, words, s);
  group_.all_reduce(words, comm::ReduceOp::kSum, s);
  kernels::exact_total(words, total, s);
  return total;
}

}  // namespace r1::optim
