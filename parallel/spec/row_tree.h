// The fixed tree in which --deterministic sums weight gradients over the rows of a step. Pure.
//
// Node (k, i) of the tree over B rows covers rows [B*i/2^k, B*(i+1)/2^k), rounded down; a node with more than one row is the sum
// of its halves (k+1, 2i) and (k+1, 2i+1). The rows of dp rank d of 2^k ranks are node (k, d), so the tree is the same for
// every power-of-two dp: inside a rank over its rows, above that over ranks (comm::SumOrder::kTree).
#pragma once

#include <cstdint>
#include <vector>

namespace r1::parallel {

/// How one rank forms its node from its rows, taken in order, with few partial sums at once.
struct RowTree {
  /// A row's own gradient goes to `slot`; then, `merges` times from there downwards, slot s is added to slot s - 1.
  struct Step {
    int slot = 0, merges = 0;
  };
  std::vector<Step> steps;  ///< per row of this rank; the sum of all ends in slot 0
  int slots = 1;            ///< partial sums held at once: about log2(rows) + 1; one more may be needed for rows that do not count
};

/// The tree of dp rank `dp_rank` for a step of `batch` rows. Where dp is no power of two each rank sums its own rows in a tree of
/// their own: the same from run to run, but not the same for another dp.
[[nodiscard]] RowTree row_tree(int64_t batch, int dp, int dp_rank);

/// The tree of a rank whose schedule has `microbatches` of one row each: a slot to spare where micro-batches of filling follow
/// its rows.
[[nodiscard]] RowTree rank_row_tree(int64_t batch, int dp, int dp_rank, int microbatches);

}  // namespace r1::parallel
