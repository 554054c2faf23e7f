// The map's own values: CPU sets, path classes, NVLink domains, leaf sharing.
#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>
#include <set>

#include "launch/topology.h"
#include "launch/topology/import.h"
#include "runtime/core/error.h"
#include "runtime/core/rng.h"

namespace r1::launch {
namespace {

TEST(CpuSet, ReadsListsAndMasks) {
  EXPECT_EQ(CpuSet::from_list("48-63,176-191", "t").count(), 32);
  EXPECT_EQ(CpuSet::from_list(" 0 , 2-3,1 ", "t").list(), "0-3");
  EXPECT_TRUE(CpuSet::from_list("", "t").empty());
  EXPECT_EQ(CpuSet::from_mask("00000000,0000ffff,ff000000", "t").list(), "24-47");
  EXPECT_EQ(CpuSet::from_mask("0x00000010,0x0", "t").list(), "36");
  EXPECT_EQ(CpuSet::from_mask("ff", "t").list(), "0-7");
  for (const char* bad : {"3-1", "x", "1-", "-1", "65536", "0-99999999999", "1 2"})
    EXPECT_THROW((void)CpuSet::from_list(bad, "t"), DataError) << bad;
  for (const char* bad : {"g", "123456789,0", "-1"})
    EXPECT_THROW((void)CpuSet::from_mask(bad, "t"), DataError) << bad;
}

TEST(Import, AnEmptyFileIsSaidToBeEmpty) {
  for (const char* text : {"", "\n \t\n", "\xef\xbb\xbf"}) {
    try {
      (void)read_topology(text, "node.xml");
      ADD_FAILURE() << "accepted";
    } catch (const DataError& e) {
      EXPECT_STREQ(e.what(), "node.xml: empty: no topology in it");
    }
  }
}

TEST(CpuSet, IsASet) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    const Rng rng(seed, "cpu sets");
    CpuSet a, b;
    std::set<int> plain_a, plain_b;
    for (uint64_t i = 0; i < 24; ++i) {
      const int first = static_cast<int>(rng.below(3 * i, 60));
      const int last = first + static_cast<int>(rng.below(3 * i + 1, 5));
      const bool to_a = rng.below(3 * i + 2, 2) == 0;
      (to_a ? a : b).insert(first, last);
      for (int cpu = first; cpu <= last; ++cpu) (to_a ? plain_a : plain_b).insert(cpu);
    }
    EXPECT_EQ(a.members(), std::vector<int>(plain_a.begin(), plain_a.end())) << seed;
    EXPECT_EQ(CpuSet::from_list(a.list(), "t"), a) << seed;
    std::vector<int> both;
    std::ranges::set_intersection(plain_a, plain_b, std::back_inserter(both));
    EXPECT_EQ(a.intersection(b).members(), both) << seed;
    for (int cpu = 0; cpu < 70; ++cpu) EXPECT_EQ(a.contains(cpu), plain_a.contains(cpu)) << seed;
    CpuSet all = a;
    all.insert(b);
    EXPECT_TRUE(all.contains(a) && all.contains(b)) << seed;
  }
}

TEST(Topology, NodeIsPhbToNccl) {
  EXPECT_TRUE(same_to_nccl(PathClass::kNode, PathClass::kPhb));
  EXPECT_FALSE(same_to_nccl(PathClass::kNode, PathClass::kSys));
  EXPECT_EQ(cell({.path_class = PathClass::kNvl, .nvlinks = 12}), "NV12");
  EXPECT_EQ(cell({}), "?");
}

TEST(Fabric, FindsLeavesByFullAndShortName) {
  Fabric fabric;
  fabric.switches.resize(2);
  fabric.ports = {{.host = "a.x", .leaf = 0},
                  {.host = "a.x", .leaf = 1},
                  {.host = "b", .leaf = 1},
                  {.host = "c.x", .leaf = 0},
                  {.host = "c.y", .leaf = 1}};
  EXPECT_EQ(fabric.leaves_of("a"), (std::vector<int>{0, 1}));
  EXPECT_EQ(fabric.leaves_of("b.y"), (std::vector<int>{1}));
  EXPECT_TRUE(fabric.leaves_of("c").empty()) << "two hosts share the label";
  EXPECT_TRUE(fabric.leaves_of("a.y").empty()) << "another domain is another host";
  EXPECT_EQ(fabric.share_leaf("a", "b"), true);
  EXPECT_EQ(fabric.share_leaf("c.x", "b"), false);
  EXPECT_EQ(fabric.share_leaf("b", "nowhere"), std::nullopt);
}

}  // namespace
}  // namespace r1::launch
