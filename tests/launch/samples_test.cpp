// The samples in hostfiles/ are read as their README says.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "launch/hostfile.h"

namespace r1::launch {
namespace {

Cluster sample(const std::string& name, NodefileKind kind = NodefileKind::kHostfile) {
  std::ifstream in(std::filesystem::path(R1RUN_SOURCE_DIR) / "hostfiles" / "samples" / name);
  EXPECT_TRUE(in) << name;
  const Cluster c = parse_hostfile(std::string(std::istreambuf_iterator<char>(in), {}), name, kind);
  EXPECT_TRUE(c.warnings.empty()) << name;
  return c;
}

TEST(Samples, AreReadAsTheReadmeSays) {
  const Cluster production = sample("production-2-nodes.hosts");
  EXPECT_EQ(production.total_slots(), 8);
  EXPECT_EQ(production.widest(), 4);
  EXPECT_EQ(production.hosts.at(1).annotations.at("tier"), "production");
  EXPECT_EQ(sample("production-1-node.hosts").total_slots(), 4);
  EXPECT_EQ(sample("production-1-node-8-ranks.hosts").total_slots(), 8);
  EXPECT_EQ(sample("ndv4.hosts").total_slots(), 16);
  const Cluster racks = sample("cluster-16-nodes.hosts");
  EXPECT_EQ(racks.hosts.size(), 16u);
  EXPECT_EQ(racks.hosts.at(7).annotations.at("rack"), "r1");
  EXPECT_EQ(racks.hosts.at(8).annotations.at("rack"), "r2");
  EXPECT_EQ(sample("deepspeed.hosts").total_slots(), 8);
  EXPECT_EQ(sample("pbs.nodefile", NodefileKind::kPbs).total_slots(), 4);
}

}  // namespace
}  // namespace r1::launch
