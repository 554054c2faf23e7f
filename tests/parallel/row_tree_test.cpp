// The tree of --deterministic: what ranks form and add up is one tree, whatever dp is.
#include "parallel/spec/row_tree.h"

#include <gtest/gtest.h>

#include <string>

#include "parallel/shard/shard.h"

namespace r1::parallel {
namespace {

/// The sum a rank forms, as text: "((0+1)+2)". Rows carry their global number.
std::string formed(int64_t batch, int dp, int rank) {
  const RowTree tree = row_tree(batch, dp, rank);
  std::vector<std::string> slots(static_cast<size_t>(tree.slots));
  int64_t row = even_part(batch, rank, dp).begin;
  for (const RowTree::Step& step : tree.steps) {
    slots.at(static_cast<size_t>(step.slot)) = std::to_string(row++);
    for (int s = step.slot; s > step.slot - step.merges; --s)
      slots.at(static_cast<size_t>(s - 1)) = "(" + slots.at(static_cast<size_t>(s - 1)) + "+" + slots.at(static_cast<size_t>(s)) + ")";
  }
  EXPECT_EQ(row, even_part(batch, rank, dp).end);
  return slots.at(0);
}

/// The tree's sum over ranks [begin, end): empty sums are zeros and change nothing.
std::string over_ranks(int64_t batch, int dp, int begin, int end) {
  if (end - begin == 1) return formed(batch, dp, begin);
  const int half = begin + (end - begin) / 2;
  const std::string left = over_ranks(batch, dp, begin, half), right = over_ranks(batch, dp, half, end);
  if (left.empty() || right.empty()) return left + right;
  return "(" + left + "+" + right + ")";
}

TEST(RowTree, IsTheSameForEveryPowerOfTwo) {
  EXPECT_EQ(formed(1, 1, 0), "0");
  EXPECT_EQ(formed(8, 1, 0), "(((0+1)+(2+3))+((4+5)+(6+7)))");
  EXPECT_EQ(formed(3, 1, 0), "(0+(1+2))");
  for (int64_t batch = 1; batch <= 40; ++batch)
    for (const int dp : {2, 4, 8, 16, 64}) EXPECT_EQ(over_ranks(batch, dp, 0, dp), formed(batch, 1, 0)) << batch << " rows, dp " << dp;
}

TEST(RowTree, HoldsFewPartialSums) {
  for (int64_t batch = 1; batch <= 1000; ++batch) {
    int levels = 1;
    while ((int64_t{1} << (levels - 1)) < batch) ++levels;
    EXPECT_LE(row_tree(batch, 1, 0).slots, levels) << batch;
  }
  EXPECT_EQ(row_tree(1024, 1, 0).slots, 11);
}

TEST(RowTree, OtherReplicaCountsSumTheirOwnRows) {
  EXPECT_EQ(formed(9, 3, 1), "(3+(4+5))");
  EXPECT_TRUE(row_tree(2, 3, 0).steps.empty()) << "two rows over three ranks";
}

}  // namespace
}  // namespace r1::parallel
