// How a global tensor is cut over the ranks of one axis: for each rank a list of intervals along one dim.
// Uneven is allowed; intervals of different ranks may overlap: those elements form a replica set, whose gradients are summed.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace r1::parallel {

/// Half-open [begin, end).
struct Interval {
  int64_t begin = 0, end = 0;
  [[nodiscard]] int64_t size() const { return end - begin; }
  friend bool operator==(const Interval&, const Interval&) = default;
};

/// Part i of n cut evenly: sizes differ by at most one, part i is [total*i/n, total*(i+1)/n).
[[nodiscard]] Interval even_part(int64_t total, int i, int n);

/// The cut of one tensor over one axis.
class ShardSpec {
 public:
  ShardSpec() = default;
  /// Every rank holds everything.
  [[nodiscard]] static ShardSpec replicated(std::span<const int64_t> shape, int ranks);
  /// parts[r]: interval of dim `dim` held by rank r (may be empty, may overlap others). Their union must cover the dim.
  [[nodiscard]] static ShardSpec cut(std::span<const int64_t> shape, int dim, std::vector<Interval> parts);

  [[nodiscard]] int ranks() const { return static_cast<int>(parts_.size()); }
  [[nodiscard]] int dim() const { return dim_; }
  [[nodiscard]] const std::vector<int64_t>& global_shape() const { return shape_; }
  [[nodiscard]] Interval part(int rank) const { return parts_.at(static_cast<size_t>(rank)); }
  [[nodiscard]] std::vector<int64_t> local_shape(int rank) const;
  [[nodiscard]] int64_t local_elems(int rank) const;
  /// Ranks whose part contains all of `interval`, in order.
  [[nodiscard]] std::vector<int> holders(Interval interval) const;
  /// Sub-intervals of the dim held by two ranks or more, in order: those whose gradients must be summed over the axis.
  /// Cut so that the holders are the same all over one sub-interval: a rank's part contains all of it or none.
  [[nodiscard]] std::vector<Interval> shared() const;
  /// The sub-intervals of the dim for which `rank` is the first holder: each element of the tensor has one owner. Used
  /// to count an element once in norms and to write it once in checkpoints.
  [[nodiscard]] std::vector<Interval> owned(int rank) const;

 private:
  std::vector<int64_t> shape_;
  int dim_ = 0;
  std::vector<Interval> parts_;
};

/// A contiguous run of elements: `count` elements at `local` of the shard are those at `global` of the whole tensor.
struct Run {
  int64_t global = 0, local = 0, count = 0;
};
/// The runs that make up the rows/columns `interval` (within rank's part) of dim `spec.dim()`, in element offsets.
[[nodiscard]] std::vector<Run> runs_of(const ShardSpec& spec, int rank, Interval interval);

}  // namespace r1::parallel
