// Boxes of a global tensor (what a rank wants, what a file holds), and moving elements between
// them.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "parallel/shard/shard.h"
#include "runtime/core/dtype.h"

namespace r1::checkpoint {

/// An axis-aligned part of a tensor: `size[i]` elements from `start[i]` in each dim. Rank 0 holds
/// one element.
struct Box {
  std::vector<int64_t> start, size;
  [[nodiscard]] int64_t elems() const;
  [[nodiscard]] std::string str() const;  ///< "[0:4, 16:32]"
  friend bool operator==(const Box&, const Box&) = default;
};
[[nodiscard]] Box whole_box(std::span<const int64_t> shape);
/// The part of `rank`: dense, in the shape spec.local_shape(rank).
[[nodiscard]] Box box_of(const parallel::ShardSpec& spec, int rank);
/// Part `[begin, end)` of `dim`, all of the others.
[[nodiscard]] Box slice_box(std::span<const int64_t> shape, int dim, int64_t begin, int64_t end);
/// What both hold (size 0 in some dim when nothing).
[[nodiscard]] Box intersect(const Box& a, const Box& b);

/// One contiguous run: `elems` elements at element `from` of the box `outer_from` (dense row-major)
/// are those at `to` of the box `outer_to`.
struct BoxRun {
  int64_t from = 0, to = 0, elems = 0;
};
/// The runs of `part`, which lies within both boxes, in order of both. Calls `take` for each.
void for_each_run(const Box& part, const Box& from, const Box& to,
                  const std::function<void(const BoxRun&)>& take);

/// Converts `n` elements; src and dst must not overlap unless the dtypes are equal. Widening is
/// exact, narrowing rounds once to nearest even (also fp64 to bf16). Only between floating types,
/// or between equal types. Neither pointer needs alignment.
void convert_elements(DType from, const void* src, DType to, void* dst, size_t n);
[[nodiscard]] bool convertible(DType from, DType to);

}  // namespace r1::checkpoint
