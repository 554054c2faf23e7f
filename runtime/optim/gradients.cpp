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

void ShardExchange::add(std::vector<Bucket>& buckets, const ParamSpec& p, int tp_rank, const Tensor& whole, int dp) {
  const int64_t row = row_elems(p, tp_rank), bytes = static_cast<int64_t>(whole.bytes());
  if (bytes == 0) return;
  const int64_t most = bucket_bytes(whole.device);
  const auto pieces = static_cast<int>((bytes + most - 1) / most);
  for (int k = 0; k < pieces; ++k) {
    comm::ShardedTensor x;
    for (int d = 0; d < dp; ++d) {
      const Interval rows = state_rows(p, tp_rank, d, dp), cut = parallel::even_part(rows.size(), k, pieces);
      x.parts.push_back(whole.rows((rows.begin + cut.begin) * row, (rows.begin + cut.end) * row));
    }
    int64_t filled = 0;
    if (!buckets.empty())
      for (const comm::ShardedTensor& before : buckets.back())
        for (const Tensor& part : before.parts) filled += static_cast<int64_t>(part.bytes());
    if (buckets.empty() || (filled > 0 && filled + bytes / pieces > most)) buckets.emplace_back();
    buckets.back().push_back(std::move(x));
  }
}

std::vector<ShardExchange::Bucket> ShardExchange::buckets(const ParamBlock& b, const Tensor& block, const Unit& unit, int dp) {
  std::vector<Bucket> out;
  for (size_t i = unit.first; i < unit.last; ++i) add(out, (*b.specs)[i], b.tp_rank, b.part(block, i), dp);
  return out;
}

void ShardExchange::finish(size_t keep) {
  while (pending_.size() > keep) {
    pending_.front()->wait();
    pending_.pop_front();
  }
}

void ShardExchange::reduce_scatter(const std::vector<Bucket>& buckets, comm::SumOrder order, const Stream& s) {
  for (const Bucket& bucket : buckets) {
    finish(kInFlight - 1);
    pending_.push_back(dp_.start_reduce_scatter(bucket, order, s));
  }
}

void ShardExchange::all_gather(const std::vector<Bucket>& buckets, const Stream& s) {
  for (const Bucket& bucket : buckets) {
    finish(kInFlight - 1);
    pending_.push_back(dp_.start_all_gather(bucket, s));
  }
}

GradientSync::GradientSync(std::vector<ParamBlock> blocks, parallel::ProcessGroups& groups, Tensor packed, comm::SumOrder order)
    : blocks_(std::move(blocks)), groups_(groups), packed_(packed), order_(order), exchange_(groups.dp()) {
  const int dp = groups.dp().size();
  for (const Unit& unit : units_of(blocks_)) {
    const ParamBlock& b = blocks_[unit.block];
    Part part{unit};
    part.buckets = ShardExchange::buckets(b, b.gradients, unit, dp);
    if (const int e = find(b, ParamRole::kEmbedding); unit.layer < 0 && b.tied_head_gradients.data != nullptr)
      ShardExchange::add(part.buckets, (*b.specs)[static_cast<size_t>(e)], b.tp_rank, b.tied_head_gradients, dp);
    parts_.push_back(std::move(part));
  }
  for (const ParamBlock& b : blocks_) shared_.push_back(shared_of(b));
}

GradientSync::Shared GradientSync::shared_of(const ParamBlock& b) const {
  Shared out;
  for (size_t i = 0; i < b.specs->size(); ++i) {
    const ParamSpec& p = (*b.specs)[i];
    const std::vector<Interval> shared = p.shard.shared();
    for (const Interval& interval : shared) {
      // Shared elements are packed in the tensor's global order, so that each rank finds them at the same place.
      int64_t row = 1;
      for (size_t d = 0; d < p.shape.size(); ++d)
        if (static_cast<int>(d) != p.shard.dim()) row *= p.shape[d];
      R1_CHECK(p.shard.dim() == 0, "{}: shared along dim {}", p.name, p.shard.dim());
      const Interval held = intersect(interval, p.shard.part(b.tp_rank));
      if (held.size() > 0)
        out.runs.push_back({.packed = out.packed_elems + (held.begin - interval.begin) * row,
                            .offset = b.layout->offsets[i] + (held.begin - p.shard.part(b.tp_rank).begin) * row,
                            .count = held.size() * row});
      out.packed_elems += interval.size() * row;
    }
    if (!shared.empty()) ShardExchange::add(out.buckets, p, b.tp_rank, b.part(b.gradients, i), groups_.dp().size());
  }
  R1_CHECK(groups_.tp().size() == 1 || out.packed_elems <= packed_.numel(), "{} shared elements, planned {}", out.packed_elems,
           packed_.numel());
  return out;
}

void GradientSync::sum_over_tp(const Stream& s) {
  // The rows of a replicated kv head lie in other shards on one tp rank than on the next: the sums over dp of what is shared
  // are brought together first.
  for (const Shared& shared : shared_) exchange_.all_gather(shared.buckets, s);
  exchange_.finish();
  DeviceBackend& backend = backend_of(s.device.kind);
  for (size_t b = 0; b < blocks_.size(); ++b) {
    const Tensor packed = packed_.rows(0, shared_[b].packed_elems);
    const Tensor& g = blocks_[b].gradients;
    backend.fill_zero(packed.data, packed.bytes(), s);
    for (const SharedRun& r : shared_[b].runs) {
      const Tensor from = g.rows(r.offset, r.offset + r.count);
      backend.copy(packed.rows(r.packed, r.packed + r.count).data, from.data, from.bytes(), s);
    }
    groups_.tp().all_reduce(packed, comm::ReduceOp::kSum, s);
    for (const SharedRun& r : shared_[b].runs) {
      const Tensor to = g.rows(r.offset, r.offset + r.count);
      backend.copy(to.data, packed.rows(r.packed, r.packed + r.count).data, to.bytes(), s);
    }
  }
}

void GradientSync::ready(int stage, int64_t layer, const Stream& s) {
  for (Part& part : parts_)
    if (blocks_[part.block].stage == stage && part.layer == layer && !part.done) {
      part.done = true;
      if (groups_.dp().size() > 1) exchange_.reduce_scatter(part.buckets, order_, s);
    }
}

void GradientSync::add_tied_ends(const Stream& s) const {
  // The embedding's gradient and the head's are parts of one sum: embedding + head, in this order wherever they are. A rank
  // adds the rows whose sums over dp it has.
  DeviceBackend& backend = backend_of(s.device.kind);
  const int dp = groups_.dp().size(), mine = groups_.dp().rank();
  const auto own_rows = [&](const ParamBlock& b, size_t i, const Tensor& whole) {
    const int64_t row = row_elems((*b.specs)[i], b.tp_rank);
    const Interval rows = state_rows((*b.specs)[i], b.tp_rank, mine, dp);
    return whole.rows(rows.begin * row, rows.end * row);
  };
  Tensor embedding, head;
  for (const ParamBlock& b : blocks_) {
    if (const int e = find(b, ParamRole::kEmbedding); e >= 0) {
      const auto i = static_cast<size_t>(e);
      embedding = own_rows(b, i, b.part(b.gradients, i));
      if (b.tied_head_gradients.data != nullptr) kernels::add_into(embedding, own_rows(b, i, b.tied_head_gradients), s);
    }
    if (const int h = find(b, ParamRole::kHead); h >= 0 && (*b.specs)[static_cast<size_t>(h)].tied_copy)
      head = own_rows(b, static_cast<size_t>(h), b.part(b.gradients, static_cast<size_t>(h)));
  }
  if (comm::Communicator* ends = groups_.ends(); ends != nullptr) {
    ends->all_reduce(groups_.coord().pp == 0 ? embedding : head, comm::ReduceOp::kSum, s);
  } else if (embedding.data != nullptr && head.data != nullptr) {  // both ends on this rank, in two virtual stages
    kernels::add_into(embedding, head, s);
    backend.copy(head.data, embedding.data, head.bytes(), s);
  }
}

void GradientSync::finish(const Stream& s) {
  for (const Part& part : parts_) ready(blocks_[part.block].stage, part.layer, s);
  exchange_.finish();
  if (groups_.tp().size() > 1) sum_over_tp(s);
  add_tied_ends(s);
  // Every replica holds all of the optimizer: each needs all the sums.
  if (groups_.dp().size() > 1 && blocks_.front().shards == 1) {
    for (const Part& part : parts_) exchange_.all_gather(part.buckets, s);
    exchange_.finish();
  }
  for (Part& part : parts_) part.done = false;
}

GradientNorm::GradientNorm(const std::vector<ParamBlock>& blocks, parallel::ProcessGroups& groups, Device device)
    : group_(blocks.front().shards > 1 ? groups.world() : groups.replica()),
      words_(device, kernels::kExactWords * sizeof(int64_t)) {
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

void GradientNorm::run(const Tensor& sum_squares, const Stream& s) const {
  DeviceBackend& backend = backend_of(s.device.kind);
  const Tensor words{.data = words_.data(), .dtype = DType::kI64, .shape = {kernels::kExactWords}, .device = words_.device()};
  backend.fill_zero(words.data, words.bytes(), s);
  kernels::sum_of_squares(owned_, words, s);
  group_.all_reduce(words, comm::ReduceOp::kSum, s);
  kernels::exact_total(words, sum_squares, s);
}

}  // namespace r1::optim
