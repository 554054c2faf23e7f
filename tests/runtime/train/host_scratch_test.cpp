// A directory that the ranks of a host share while they evaluate.
#include "runtime/train/host_scratch.h"

#include <gtest/gtest.h>

#include <atomic>
#include <fstream>
#include <mutex>
#include <set>

#include "comm/local/local.h"
#include "runtime/data/dataset.h"
#include "runtime/tokenizer/byte_level.h"
#include "runtime/tokenizer/tokenizer.h"
#include "tests/support/temp_dir.h"

namespace r1::train {
namespace {

namespace fs = std::filesystem;

TEST(HostScratch, OneDirectoryForAllRanksAndNoneAfterwards) {
  std::mutex mutex;
  std::set<fs::path> paths;
  comm::run_ranks(4, [&](comm::Communicator& world) {
    HostScratch scratch(world);
    EXPECT_TRUE(fs::is_directory(scratch.path()));
    {
      const std::lock_guard lock(mutex);
      paths.insert(scratch.path());
    }
    scratch.remove();
  });
  ASSERT_EQ(paths.size(), 1u);
  EXPECT_FALSE(fs::exists(*paths.begin()));
}

TEST(HostScratch, DataIsTokenisedByOneRankAndReadByAll) {
  const test::TempDir dir;
  std::string rows;
  for (int i = 0; i < 400; ++i) rows += "{\"text\": \"row " + std::to_string(i) + "\"}\n";
  test::write_file(dir / "rows.jsonl", rows);
  const auto tokenizer = text::Tokenizer::from_json(text::byte_level_tokenizer_json(), "bytes");
  std::atomic<int> tokenised{0};
  fs::path path;
  comm::run_ranks(4, [&](comm::Communicator& world) {
    HostScratch scratch(world);
    data::DataOptions options;
    options.sources = {{dir / "rows.jsonl", 1.0}};
    options.seq_len = 64;
    options.cache_dir = scratch.path();
    const auto set = data::Dataset::open(options, tokenizer);
    if (!set.stats().sources[0].cached) ++tokenised;
    scratch.remove();
    if (world.rank() == 0) path = scratch.path();
    // The files are gone, their mapping is not.
    EXPECT_EQ(set.samples(), 400);
    EXPECT_EQ(set.sample(399).ids.size(), set.sample(398).ids.size());
  });
  EXPECT_EQ(tokenised, 1);
  EXPECT_FALSE(fs::exists(path));
}

}  // namespace
}  // namespace r1::train
