// What is planned is what is used: planned bytes are the arenas' bytes on every rank, and a process takes little more.
#include <gtest/gtest.h>

#include "tests/e2e/support.h"

namespace r1::test {
namespace {

struct Layout {
  int pp, dp, tp;
  std::vector<std::string> more;
};

nlohmann::json memory_of(const std::filesystem::path& output) {
  std::ifstream in(output / "metrics.jsonl");
  nlohmann::json memory;
  for (std::string line; std::getline(in, line);) {
    nlohmann::json j = nlohmann::json::parse(line);
    if (j["type"] == "memory") memory = std::move(j);
  }
  return memory;
}

TEST(Memory, PlannedIsAllocatedAndTheProcessTakesLittleMore) {
  const std::vector<Layout> layouts{
      {1, 1, 1, {}},
      {1, 1, 1, {"--recompute", "full", "--micro-batch", "4"}},
      {1, 1, 1, {"--micro-batch", "8"}},
      {1, 1, 2, {}},
      {1, 1, 3, {"--recompute", "cheap"}},
      {1, 1, 4, {"--recompute", "selective"}},
      {1, 2, 1, {}},
      {1, 2, 2, {"--micro-batch", "2"}},
      {1, 4, 1, {"--recompute", "full"}},
      {2, 1, 1, {}},
      {2, 1, 1, {"--schedule", "gpipe"}},
      {2, 1, 1, {"--schedule", "zb-h1"}},
      {2, 1, 1, {"--schedule", "interleaved", "--virtual-stages", "3"}},
      {2, 1, 2, {"--schedule", "zb-h1", "--recompute", "full"}},
      {2, 2, 1, {"--recompute", "auto"}},
      {3, 1, 1, {"--schedule", "interleaved", "--virtual-stages", "2"}},
      {4, 1, 1, {}},
      {2, 1, 3, {"--recompute", "cheap"}},
      {2, 1, 4, {}},
      {6, 1, 1, {"--seq-len", "288"}},
  };
  const TempDir dir;
  int n = 0;
  for (const Layout& l : layouts) {
    const std::filesystem::path output = dir.path() / std::to_string(n++);
    std::vector<std::string> args{"train", "--steps", "1", "--output", output.string(), "--pp", std::to_string(l.pp),
                                  "--dp", std::to_string(l.dp), "--tp", std::to_string(l.tp)};
    args.insert(args.end(), l.more.begin(), l.more.end());
    const Result o = run(front_door(args), 120);
    SCOPED_TRACE(::testing::PrintToString(args));
    ASSERT_EQ(o.code, 0) << o.output;
    const nlohmann::json memory = memory_of(output);
    ASSERT_EQ(memory["ranks"].size(), static_cast<size_t>(l.pp * l.dp * l.tp));
    for (const auto& rank : memory["ranks"]) {
      const double planned = rank["planned_bytes"], allocated = rank["allocated_bytes"], rss = rank["peak_rss_bytes"];
      EXPECT_EQ(planned, allocated) << rank;
      EXPECT_LE(rss, 1.1 * planned + (64 << 20)) << rank;
      EXPECT_GE(rss, 0.9 * planned - (64 << 20)) << rank;
    }
  }
}

}  // namespace
}  // namespace r1::test
