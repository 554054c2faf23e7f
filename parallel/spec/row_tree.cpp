#include "parallel/spec/row_tree.h"

#include <algorithm>
#include <bit>

#include "parallel/shard/shard.h"
#include "runtime/core/error.h"

namespace r1::parallel {
namespace {

struct Node {
  int64_t parts = 1, part = 0;  ///< this node is part `part` of `parts` of the rows
};

void add(RowTree& tree, int64_t rows, const Node& node, int slot) {
  const auto size = [&](const Node& n) {
    // rows * part / parts, rounded down; even_part's cut, which takes int parts only.
    const auto cut = [&](int64_t k) { return rows / n.parts * k + rows % n.parts * k / n.parts; };
    return cut(n.part + 1) - cut(n.part);
  };
  if (size(node) == 0) return;
  if (size(node) == 1) {
    tree.steps.push_back({slot, 0});
    tree.slots = std::max(tree.slots, slot + 1);
    return;
  }
  const Node left{2 * node.parts, 2 * node.part}, right{2 * node.parts, 2 * node.part + 1};
  add(tree, rows, left, slot);
  if (size(left) == 0 || size(right) == 0) return add(tree, rows, right, slot);
  add(tree, rows, right, slot + 1);
  ++tree.steps.back().merges;
}

}  // namespace

RowTree row_tree(int64_t batch, int dp, int dp_rank) {
  R1_CHECK(batch >= 1 && dp >= 1 && dp_rank >= 0 && dp_rank < dp, "row {} of {} over rank {} of {}", batch, batch, dp_rank, dp);
  RowTree tree;
  if (std::has_single_bit(static_cast<unsigned>(dp))) {
    add(tree, batch, {dp, dp_rank}, 0);
  } else if (const int64_t rows = even_part(batch, dp_rank, dp).size(); rows > 0) {
    add(tree, rows, {1, 0}, 0);
  }
  return tree;
}

RowTree rank_row_tree(int64_t batch, int dp, int dp_rank, int microbatches) {
  RowTree tree = row_tree(batch, dp, dp_rank);
  const auto rows = static_cast<int>(tree.steps.size());
  R1_CHECK(rows <= microbatches, "{} rows in {} micro-batches", rows, microbatches);
  if (rows < microbatches) ++tree.slots;
  return tree;
}

}  // namespace r1::parallel
