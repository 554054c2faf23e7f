// What is planned is what is used: planned bytes are the arenas' bytes on every rank, and a process takes little more.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "tests/e2e/support.h"

namespace r1::test {
namespace {

struct Layout {
  int pp, dp, tp;
  std::vector<std::string> more;
};

/// The last line of a type in metrics.jsonl; null when there is none.
nlohmann::json metrics_of(const std::filesystem::path& output, const std::string& type) {
  std::ifstream in(output / "metrics.jsonl");
  nlohmann::json found;
  for (std::string line; std::getline(in, line);) {
    nlohmann::json j = nlohmann::json::parse(line);
    if (j["type"] == type) found = std::move(j);
  }
  return found;
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
    const nlohmann::json memory = metrics_of(output, "memory");
    ASSERT_EQ(memory["ranks"].size(), static_cast<size_t>(l.pp * l.dp * l.tp));
    for (const auto& rank : memory["ranks"]) {
      const double planned = rank["planned_bytes"], allocated = rank["allocated_bytes"], rss = rank["peak_rss_bytes"];
      EXPECT_EQ(planned, allocated) << rank;
      EXPECT_LE(rss, 1.1 * planned + (64 << 20)) << rank;
      EXPECT_GE(rss, 0.9 * planned - (64 << 20)) << rank;
    }
  }
}

/// A control group with so much memory, v1 or v2; gone with this object.
class MemoryGroup {
 public:
  explicit MemoryGroup(int64_t bytes) {
    namespace fs = std::filesystem;
    const fs::path v1 = "/sys/fs/cgroup/memory", v2 = "/sys/fs/cgroup";
    const bool old = fs::exists(v1 / "memory.limit_in_bytes");
    dir_ = (old ? v1 : v2) / ("r1run-test-" + std::to_string(getpid()));
    std::error_code failed;
    fs::create_directory(dir_, failed);
    good_ = !failed && static_cast<bool>((std::ofstream(dir_ / (old ? "memory.limit_in_bytes" : "memory.max")) << bytes).flush());
  }
  ~MemoryGroup() {
    std::error_code ignored;
    for (int i = 0; i < 50 && !std::filesystem::remove(dir_, ignored); ++i) usleep(20'000);
  }
  MemoryGroup(const MemoryGroup&) = delete;
  MemoryGroup& operator=(const MemoryGroup&) = delete;
  [[nodiscard]] explicit operator bool() const { return good_; }
  /// `argv`, run in the group.
  [[nodiscard]] std::vector<std::string> inside(const std::vector<std::string>& argv) const {
    std::vector<std::string> out{"/bin/sh", "-c", "echo $$ >" + (dir_ / "cgroup.procs").string() + " && exec \"$@\"", "sh"};
    out.insert(out.end(), argv.begin(), argv.end());
    return out;
  }

 private:
  std::filesystem::path dir_;
  bool good_ = false;
};

// --recompute auto takes what the memory that is there allows: nothing with room, something where it is tight.
TEST(Memory, AutoRecomputesWhereMemoryIsTight) {
  const auto policy = [](const std::filesystem::path& output) {
    const nlohmann::json start = metrics_of(output, "start");
    return start.is_object() ? start["recompute"].get<std::string>() : std::string("no start line");
  };
  const TempDir dir;
  const auto train = [&](const char* output) {
    return front_door({"train", "--steps", "1", "--batch", "16", "--micro-batch", "8", "--seq-len", "1024", "--pp", "2", "--recompute", "auto",
                       "--save-every", "0", "--output", (dir / output).string()});
  };
  const Result room = run(train("room"), 120);
  ASSERT_EQ(room.code, 0) << room.output;
  EXPECT_EQ(policy(dir / "room"), "none");
  EXPECT_EQ(count(room.output, "recompute none (auto)"), 1) << room.output;
  // None takes 1.1 GiB on both ranks, full 0.5; the processes themselves take 0.1.
  const MemoryGroup group(int64_t{900} << 20);
  if (!group) GTEST_SKIP() << "no control group for memory may be made here";
  const Result tight = run(group.inside(train("tight")), 120);
  ASSERT_EQ(tight.code, 0) << tight.output;
  EXPECT_NE(policy(dir / "tight").find("full"), std::string::npos) << tight.output;
}

}  // namespace
}  // namespace r1::test
