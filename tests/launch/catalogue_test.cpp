// The catalogue: what the deployment tiers need is there, cluster texts are read as documented, models by name are the
// published ones.
#include "launch/catalogue.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "tests/support/expect_error.h"

namespace r1::launch {
namespace {

const Catalogue kCatalogue = Catalogue::built_in();

TEST(Catalogue, HasTheMachinesPeopleStartFrom) {
  for (const char* name : {"T4", "RTX3090", "rtx-4090", "A4000", "V100", "A100-40", "A100-80", "L40S", "H100", "H200", "B200"}) {
    const PlannedCluster c = kCatalogue.cluster(name);
    EXPECT_TRUE(c.gpu()) << name;
    EXPECT_EQ(c.most_ranks(), 1) << name;
    EXPECT_GT(c.capacity_bytes({}), int64_t{10} << 30) << name;
  }
  for (const char* name : {"entry", "entry-a4000", "production", "cpu-only", "g4dn.xlarge", "ndv4", "NDv4", "ND96asr_v4"})
    EXPECT_EQ(kCatalogue.cluster(name).hosts, 1) << name;
  EXPECT_TRUE(kCatalogue.cluster("g4dn.xlarge").usd_per_hour.has_value());
  EXPECT_TRUE(kCatalogue.cluster("ndv4").usd_per_hour.has_value());
  for (const char* name : {"tiers", "upgrade", "mig"}) EXPECT_GE(kCatalogue.clusters(name).size(), 4U) << name;
  for (const ShapeKind& s : kCatalogue.shapes()) EXPECT_NO_THROW(static_cast<void>(kCatalogue.cluster(s.name))) << s.name;
}

TEST(Catalogue, ReadsClusters) {
  const PlannedCluster four = kCatalogue.cluster("4xA100-80");
  EXPECT_EQ(four.hosts, 1);
  EXPECT_EQ(four.devices_per_host, 4);
  EXPECT_EQ(four.peer.name, "NVLink3-mesh");
  const PlannedCluster sixteen = kCatalogue.cluster("16xH100");
  EXPECT_EQ(sixteen.hosts, 2);
  EXPECT_EQ(sixteen.devices_per_host, 8);
  EXPECT_EQ(sixteen.peer.name, "NVLink4-switch");
  EXPECT_EQ(sixteen.network.name, "NDR");
  const PlannedCluster hosts = kCatalogue.cluster("3x2xA4000+25GbE");
  EXPECT_EQ(hosts.hosts, 3);
  EXPECT_EQ(hosts.devices_per_host, 2);
  EXPECT_EQ(hosts.network.name, "25GbE");
  const PlannedCluster two = kCatalogue.cluster("2xproduction");
  EXPECT_EQ(two.hosts, 2);
  EXPECT_EQ(two.most_ranks(), 8);
  EXPECT_EQ(two.nics, 2);
  const PlannedCluster slice = kCatalogue.cluster("2xA100-80/3g.40gb");
  EXPECT_NEAR(slice.device.bf16_flops, 312e12 * 3 / 7, 1e9);
  EXPECT_NEAR(slice.device.bytes_per_s, 2039e9 / 2, 1e6);
  EXPECT_FALSE(slice.peer.name.starts_with("NVLink"));
  const PlannedCluster cpus = kCatalogue.cluster("2xEPYC-7763");
  EXPECT_FALSE(cpus.gpu());
  EXPECT_EQ(cpus.cores, 128);
  EXPECT_EQ(cpus.most_ranks(), 8);
}

TEST(Catalogue, RefusesWhatItDoesNotKnow) {
  EXPECT_ERROR(UsageError, kCatalogue.cluster("4xA100-8O"), "A100-80", "--catalogue");
  EXPECT_ERROR(UsageError, kCatalogue.cluster("0xH100"), "HOSTSx");
  EXPECT_ERROR(UsageError, kCatalogue.cluster("2x2x2xH100"), "HOSTSx");
  EXPECT_ERROR(UsageError, kCatalogue.cluster(""), "HOSTSx");
  EXPECT_ERROR(UsageError, kCatalogue.cluster("9xH100"), "2x8xH100");
  EXPECT_ERROR(UsageError, kCatalogue.cluster("2x2xproduction"), "one count");
  EXPECT_ERROR(UsageError, kCatalogue.cluster("H100/9g.9gb"), "3g.40gb");
  EXPECT_ERROR(UsageError, kCatalogue.cluster("T4/1g.5gb"), "has none");
  EXPECT_ERROR(UsageError, kCatalogue.cluster("H100+token-ring"), "HDR");
  Catalogue mine = Catalogue::built_in();
  EXPECT_ERROR(DataError, mine.add("{\"devices\": [{\"name\": \"X\"}]}", "mine.json"), "mine.json", "devices[0]", "title");
  EXPECT_ERROR(DataError, mine.add("[]", "mine.json"), "object");
  EXPECT_ERROR(DataError, mine.add("{\"gpus\": []}", "mine.json"), "unknown key 'gpus'");
  EXPECT_ERROR(DataError, mine.add("{\"links\": {\"L\": {\"gbytes_per_s\": -1}}}", "mine.json"), "gbytes_per_s");
}

TEST(Catalogue, TakesMachinesOfOnesOwn) {
  Catalogue mine = Catalogue::built_in();
  mine.add(R"({"shapes": [{"name": "ours", "title": "our host", "device": "L40S", "count": 2, "memory_gib": 256,
                           "network": "100GbE", "nics": 1, "usd_per_hour": 1.5}]})", "mine.json");
  const PlannedCluster c = mine.cluster("4xours");
  EXPECT_EQ(c.most_ranks(), 8);
  EXPECT_DOUBLE_EQ(*c.usd_per_hour, 6.0);
}

TEST(Catalogue, MemoryIsPerDeviceAndLinksFollowTheMesh) {
  const PlannedCluster two = kCatalogue.cluster("2xproduction");
  EXPECT_EQ(two.ranks_per_device({.pp = 2, .dp = 1, .tp = 4}), 1);
  EXPECT_EQ(two.ranks_per_device({.pp = 4, .dp = 1, .tp = 4}), 2);
  EXPECT_LT(two.capacity_bytes({.pp = 4, .dp = 1, .tp = 4}), two.capacity_bytes({.pp = 2, .dp = 1, .tp = 4}));
  // tp inside a host: NVLink; pp over the network; tp 8 over both hosts: the network.
  const auto inside = two.links({.pp = 2, .dp = 1, .tp = 4}), across = two.links({.pp = 1, .dp = 1, .tp = 8});
  EXPECT_GT(inside.tp.bytes_per_s, 150e9);
  EXPECT_LT(inside.pp.bytes_per_s, 25e9);
  EXPECT_LT(across.tp.bytes_per_s, 25e9);
  EXPECT_GT(two.links({.pp = 1, .dp = 4, .tp = 1}).dp.bytes_per_s, 150e9);
  EXPECT_LT(two.links({.pp = 1, .dp = 8, .tp = 1}).dp.bytes_per_s, 25e9);
}

TEST(ModelCatalogue, SaysWhatThePublishedConfigsSay) {
  namespace fs = std::filesystem;
  int compared = 0;
  for (const auto& entry : fs::directory_iterator(fs::path(R1RUN_TEST_DATA) / "configs")) {
    if (entry.path().extension() != ".json") continue;
    std::ifstream in(entry.path());
    const auto real = parallel::parse_model_config(std::string(std::istreambuf_iterator<char>(in), {}), entry.path().string());
    const auto ours = model_by_name("deepseek-ai/" + entry.path().stem().string());
    ASSERT_TRUE(ours.has_value()) << entry.path();
    EXPECT_EQ(ours->architecture, real.architecture) << entry.path();
    EXPECT_EQ(ours->parameters(), real.parameters()) << entry.path();
    EXPECT_EQ(ours->heads, real.heads) << entry.path();
    EXPECT_EQ(ours->kv_heads, real.kv_heads) << entry.path();
    EXPECT_EQ(ours->head_dim, real.head_dim) << entry.path();
    EXPECT_EQ(ours->layers, real.layers) << entry.path();
    EXPECT_EQ(ours->hidden, real.hidden) << entry.path();
    EXPECT_EQ(ours->max_positions, real.max_positions) << entry.path();
    EXPECT_EQ(ours->tied_embeddings, real.tied_embeddings) << entry.path();
    EXPECT_EQ(ours->rope.theta, real.rope.theta) << entry.path();
    EXPECT_EQ(ours->rope.llama3, real.rope.llama3) << entry.path();
    EXPECT_EQ(ours->storage, real.storage) << entry.path();
    ++compared;
  }
  EXPECT_EQ(compared, 8);
  // The published size of R1-0528-Qwen3-8B: 8.19B.
  EXPECT_NEAR(static_cast<double>(model_by_name("DeepSeek-R1-0528-Qwen3-8B")->parameters()), 8.19e9, 1e7);
  EXPECT_FALSE(model_by_name("R1-Distill-Qwen-8B").has_value());
}

}  // namespace
}  // namespace r1::launch
