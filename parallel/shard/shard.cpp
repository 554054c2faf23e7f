#include "parallel/shard/shard.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <numeric>

#include "runtime/core/error.h"

namespace r1::parallel {
namespace {

int64_t extent_of(const std::vector<int64_t>& shape, int dim) {
  return shape.empty() ? 1 : shape[static_cast<size_t>(dim)];  // a scalar is one row of one element
}

/// All bounds of the non-empty parts, sorted: between two neighbours the set of holders is
/// constant.
std::vector<int64_t> bounds_of(const std::vector<Interval>& parts) {
  std::vector<int64_t> bounds;
  for (const auto& p : parts) {
    if (p.size() == 0) continue;
    bounds.push_back(p.begin);
    bounds.push_back(p.end);
  }
  std::ranges::sort(bounds);
  bounds.erase(std::unique(bounds.begin(), bounds.end()), bounds.end());
  return bounds;
}

bool holds(const Interval& part, const Interval& i) {
  return part.begin <= i.begin && i.end <= part.end;
}

std::string show(const std::vector<Interval>& parts) {
  std::string out;
  for (const auto& p : parts) out += fmt::format(" [{},{})", p.begin, p.end);
  return out;
}

}  // namespace

Interval even_part(int64_t total, int i, int n) {
  R1_CHECK(total >= 0 && n > 0 && i >= 0 && i < n, "part {} of {} of {}", i, n, total);
  // total * k / n without the product, which could overflow.
  const int64_t quotient = total / n, rest = total % n;
  const auto cut = [&](int64_t k) { return quotient * k + rest * k / n; };
  return {cut(i), cut(i + 1)};
}

ShardSpec ShardSpec::replicated(std::span<const int64_t> shape, int ranks) {
  R1_CHECK(ranks > 0, "{} ranks", ranks);
  const std::vector<int64_t> s(shape.begin(), shape.end());
  return cut(shape, 0, std::vector<Interval>(static_cast<size_t>(ranks), {0, extent_of(s, 0)}));
}

ShardSpec ShardSpec::cut(std::span<const int64_t> shape, int dim, std::vector<Interval> parts) {
  ShardSpec spec;
  spec.shape_.assign(shape.begin(), shape.end());
  spec.dim_ = dim;
  spec.parts_ = std::move(parts);
  R1_CHECK(dim >= 0 && dim < std::max<int>(1, static_cast<int>(shape.size())),
           "dim {} of shape [{}]", dim, fmt::join(shape, ","));
  R1_CHECK(std::ranges::all_of(shape, [](int64_t n) { return n >= 0; }), "shape [{}]",
           fmt::join(shape, ","));
  R1_CHECK(!spec.parts_.empty(), "no parts");
  const int64_t extent = extent_of(spec.shape_, dim);
  for (const auto& p : spec.parts_) {
    R1_CHECK(0 <= p.begin && p.begin <= p.end && p.end <= extent, "part [{},{}) of dim {} of [{}]",
             p.begin, p.end, dim, fmt::join(shape, ","));
  }
  // Cover: going up by begin, no part may start beyond what the parts before it reach.
  auto sorted = spec.parts_;
  std::ranges::sort(sorted, {}, &Interval::begin);
  int64_t reached = 0;
  for (const auto& p : sorted) {
    if (p.size() == 0) continue;
    R1_CHECK(p.begin <= reached, "nobody holds [{},{}) of dim {} of [{}]; parts{}", reached,
             p.begin, dim, fmt::join(shape, ","), show(spec.parts_));
    reached = std::max(reached, p.end);
  }
  R1_CHECK(reached == extent, "nobody holds [{},{}) of dim {} of [{}]; parts{}", reached, extent,
           dim, fmt::join(shape, ","), show(spec.parts_));
  return spec;
}

std::vector<int64_t> ShardSpec::local_shape(int rank) const {
  const Interval p = part(rank);
  auto shape = shape_;
  if (!shape.empty()) shape[static_cast<size_t>(dim_)] = p.size();
  return shape;
}

int64_t ShardSpec::local_elems(int rank) const {
  if (shape_.empty()) return part(rank).size();
  const auto shape = local_shape(rank);
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}

std::vector<int> ShardSpec::holders(Interval interval) const {
  std::vector<int> out;
  for (int r = 0; r < ranks(); ++r) {
    if (holds(part(r), interval)) out.push_back(r);
  }
  return out;
}

std::vector<Interval> ShardSpec::shared() const {
  std::vector<Interval> out;
  const auto bounds = bounds_of(parts_);
  for (size_t i = 0; i + 1 < bounds.size(); ++i) {
    const Interval piece{bounds[i], bounds[i + 1]};
    if (holders(piece).size() >= 2) out.push_back(piece);
  }
  return out;
}

std::vector<Interval> ShardSpec::owned(int rank) const {
  const Interval mine = part(rank);
  std::vector<Interval> out;
  const auto bounds = bounds_of(parts_);
  for (size_t i = 0; i + 1 < bounds.size(); ++i) {
    const Interval piece{bounds[i], bounds[i + 1]};
    if (mine.size() == 0 || !holds(mine, piece)) continue;
    const auto end = parts_.begin() + rank;
    if (std::any_of(parts_.begin(), end, [&](const Interval& p) { return holds(p, piece); }))
      continue;
    if (!out.empty() && out.back().end == piece.begin) {
      out.back().end = piece.end;
    } else {
      out.push_back(piece);
    }
  }
  return out;
}

std::vector<Run> runs_of(const ShardSpec& spec, int rank, Interval interval) {
  const Interval part = spec.part(rank);
  R1_CHECK(
      part.begin <= interval.begin && interval.begin <= interval.end && interval.end <= part.end,
      "interval [{},{}) outside of the part [{},{}) of rank {}", interval.begin, interval.end,
      part.begin, part.end, rank);
  const auto& shape = spec.global_shape();
  const auto dim = static_cast<size_t>(spec.dim());
  const int64_t extent = extent_of(shape, spec.dim());
  int64_t outer = 1, inner = 1;
  for (size_t d = 0; d < shape.size(); ++d) {
    if (d < dim) outer *= shape[d];
    if (d > dim) inner *= shape[d];
  }
  const int64_t count = interval.size() * inner;
  if (count == 0 || outer == 0) return {};
  // A shard that is the whole tensor is one run; otherwise the part's rows of each outer index are
  // apart.
  if (interval.size() == extent) return {{0, 0, outer * count}};
  std::vector<Run> runs;
  runs.reserve(static_cast<size_t>(outer));
  for (int64_t o = 0; o < outer; ++o) {
    runs.push_back({.global = (o * extent + interval.begin) * inner,
                    .local = (o * part.size() + interval.begin - part.begin) * inner,
                    .count = count});
  }
  return runs;
}

}  // namespace r1::parallel
