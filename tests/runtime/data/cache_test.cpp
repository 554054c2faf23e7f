#include "runtime/data/cache.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <string>
#include <vector>

#include "tests/runtime/data/support.h"

namespace r1::data {
namespace {

namespace fs = std::filesystem;
constexpr Hash128 kKey{.lo = 1, .hi = 2};

EncodedSample sample(std::vector<int32_t> ids, std::vector<uint8_t> trained,
                     std::vector<int32_t> labels = {}) {
  EncodedSample s;
  s.ids = std::move(ids);
  s.trained = std::move(trained);
  s.labels = std::move(labels);
  return s;
}

std::shared_ptr<const CacheFile> write_example(CacheWriter::Place place, const fs::path& file) {
  CacheWriter writer(place, file, kKey);
  writer.add(sample({5, 6, 7}, {0, 0, 1}), 1);
  writer.add(sample({8, 9}, {1, 1}, {-100, 70000}), 3);
  writer.add(sample({3}, {1}), 9);
  writer.add_bad_row({"x", 2, "because"});
  return writer.finish(Format::kInputIds);
}

void expect_example(const CacheFile& cache) {
  EXPECT_EQ(cache.totals().samples, 3u);
  EXPECT_EQ(cache.totals().tokens, 6u);
  EXPECT_EQ(cache.totals().trained_tokens, 2u) << "the first token of a sample is no target";
  EXPECT_EQ(cache.totals().longest, 3u);
  EXPECT_EQ(cache.totals().max_id, 70000);
  EXPECT_EQ(cache.totals().max_id_line, 3);
  std::vector<int32_t> lengths;
  cache.lengths(lengths);
  EXPECT_EQ(lengths, (std::vector<int32_t>{3, 2, 1}));
  const auto first = cache.sample(0), second = cache.sample(1);
  EXPECT_EQ(std::vector<uint32_t>(first.words.begin(), first.words.end()),
            (std::vector<uint32_t>{5, 6, 7u | 0x80000000u}));
  EXPECT_TRUE(first.labels.empty());
  ASSERT_EQ(second.labels.size(), 2u);
  EXPECT_EQ(second.labels[1], 70000u);
  EXPECT_EQ(cache.line(2), 9);
  ASSERT_EQ(cache.bad_rows().size(), 1u);
  EXPECT_EQ(cache.bad_rows()[0].line, 2);
  EXPECT_EQ(cache.bad_rows()[0].reason, "because");
}

TEST(Cache, ReadsBackWhatWasWritten) {
  const test::TempDir dir;
  expect_example(*write_example(CacheWriter::Place::kMemory, {}));
  expect_example(*write_example(CacheWriter::Place::kUnnamed, {}));
  const fs::path file = dir.path() / "sub" / "a.r1data";
  expect_example(*write_example(CacheWriter::Place::kNamed, file));
  std::string damage;
  const auto again = CacheFile::open(file, kKey, &damage);
  ASSERT_NE(again, nullptr) << damage;
  expect_example(*again);
  EXPECT_EQ(std::distance(fs::directory_iterator(file.parent_path()), {}), 1)
      << "nothing else is left behind";
  EXPECT_EQ(CacheFile::open(dir.path() / "none", kKey, &damage), nullptr);
  EXPECT_EQ(damage, "");
}

TEST(Cache, AnUnfinishedWriterLeavesNothing) {
  const test::TempDir dir;
  {
    CacheWriter writer(CacheWriter::Place::kNamed, dir.path() / "a.r1data", kKey);
    writer.add(sample({1, 2}, {0, 1}), 1);
    EXPECT_FALSE(fs::is_empty(dir.path()));
  }
  EXPECT_TRUE(fs::is_empty(dir.path()));
}

TEST(Cache, EveryFlippedBitAndEveryCutIsSeen) {
  const test::TempDir dir;
  const fs::path file = dir.path() / "a.r1data";
  (void)write_example(CacheWriter::Place::kNamed, file);
  const std::string good = test::slurp(file);
  std::string damage;
  for (size_t at = 0; at < good.size(); ++at) {
    if (at >= 512 && at < 4000) at = 4000;  // the empty part of the header
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ (1 << (at % 8)));
    dir.write("a.r1data", bad);
    damage.clear();
    const auto cache = CacheFile::open(file, kKey, &damage);
    if (cache != nullptr) {
      expect_example(*cache);  // padding between sections carries nothing
    } else {
      EXPECT_NE(damage, "") << at;
    }
    if (at < 4096 + 4) {
      EXPECT_EQ(cache, nullptr) << at;
    }
  }
  for (const size_t keep : {size_t{0}, size_t{100}, size_t{4096}, good.size() - 1}) {
    dir.write("a.r1data", good.substr(0, keep));
    damage.clear();
    EXPECT_EQ(CacheFile::open(file, kKey, &damage), nullptr);
    EXPECT_NE(damage, "") << keep;
  }
  dir.write("a.r1data", good);
  EXPECT_EQ(CacheFile::open(file, Hash128{.lo = 1, .hi = 3}, &damage), nullptr) << "another key";
}

TEST(Cache, LockIsHeldByOneAndFreedByDeath) {
  const test::TempDir dir;
  const fs::path file = dir.path() / "a.r1data";
  int pipe_fds[2];
  ASSERT_EQ(::pipe(pipe_fds), 0);
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const auto lock = CacheLock::try_acquire(file);
    const char ok = lock ? '1' : '0';
    (void)!::write(pipe_fds[1], &ok, 1);
    ::pause();
    ::_exit(0);
  }
  char ok = 0;
  ASSERT_EQ(::read(pipe_fds[0], &ok, 1), 1);
  EXPECT_EQ(ok, '1');
  EXPECT_FALSE(CacheLock::try_acquire(file));
  ASSERT_EQ(::kill(child, SIGKILL), 0);
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  {
    const auto lock = CacheLock::try_acquire(file);
    EXPECT_TRUE(lock) << "the kernel drops the lock of a dead process";
    EXPECT_FALSE(CacheLock::try_acquire(file));
  }
  EXPECT_TRUE(CacheLock::try_acquire(file));
  EXPECT_TRUE(fs::is_empty(dir.path())) << "the lock file goes with the lock";
  ::close(pipe_fds[0]);
  ::close(pipe_fds[1]);
}

TEST(Cache, UnwritableDirectoryIsAStorageError) {
  const test::TempDir dir;
  const fs::path blocker = dir.write("file", "x");
  EXPECT_NE(
      test::message_of(
          ExitCode::kCannotWrite,
          [&] { CacheWriter w(CacheWriter::Place::kNamed, blocker / "c" / "a.r1data", kKey); })
          .find("cache directory"),
      std::string::npos);
  EXPECT_NE(test::message_of(ExitCode::kCannotWrite,
                             [&] { (void)CacheLock::try_acquire(blocker / "c" / "a.r1data"); }),
            "");
}

TEST(Cache, ContentHashFollowsTheContent) {
  const test::TempDir dir;
  const fs::path file = dir.write("data", "one"), cache = dir.path() / "cache";
  const Hash128 one = content_hash(file, cache, {});
  EXPECT_EQ(content_hash(file, cache, {}), one);
  EXPECT_EQ(content_hash(file, {}, {}), one);
  dir.write("data", "two");
  EXPECT_NE(content_hash(file, cache, {}), one) << "same size, written at once";
  const fs::path copy = dir.write("copy", "one");
  EXPECT_EQ(content_hash(copy, cache, {}), one);
}

}  // namespace
}  // namespace r1::data
