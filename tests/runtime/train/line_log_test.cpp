#include "runtime/train/line_log.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>

#include <fstream>
#include <iterator>

#include "runtime/core/error.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"

namespace r1::train {
namespace {

std::string text_of(const std::filesystem::path& path) {
  std::ifstream in(path);
  return {std::istreambuf_iterator<char>(in), {}};
}

/// Files of this process may have so many bytes: a disk that is full, and then is not.
class Room {
 public:
  explicit Room(rlim_t bytes) {
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit now{bytes, before_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &now);
  }
  ~Room() { setrlimit(RLIMIT_FSIZE, &before_); }

 private:
  rlimit before_{};
};

TEST(LineLog, AppendsToWhatIsThere) {
  const test::TempDir dir;
  std::ofstream(dir / "m") << "old\n";
  LineLog log(dir / "m");
  log.append("new");
  EXPECT_EQ(text_of(dir / "m"), "old\nnew\n");
  EXPECT_EQ(log.waiting(), 0u);
}

TEST(LineLog, AFullDiskCostsNoLine) {
  const test::TempDir dir;
  LineLog log(dir / "m");
  {
    const Room room(8);
    log.append("first");   // 6 bytes
    log.append("second");  // 2 of 7
    log.append("third");
    EXPECT_EQ(text_of(dir / "m"), "first\nse");
    EXPECT_EQ(log.waiting(), 5u + 6u);
  }
  log.append("fourth");
  EXPECT_EQ(text_of(dir / "m"), "first\nsecond\nthird\nfourth\n");
}

TEST(LineLog, WhatWaitsIsBounded) {
  const test::TempDir dir;
  LineLog log(dir / "m");
  const std::string line(size_t{1} << 20, 'x');
  {
    const Room room(4);
    log.append("begun");
    for (int i = 0; i < 40; ++i) log.append(line);
    EXPECT_LE(log.waiting(), LineLog::kMostWaiting);
  }
  log.append("end");
  const std::string text = text_of(dir / "m");
  EXPECT_TRUE(text.starts_with("begun\nxxx"));
  EXPECT_TRUE(text.ends_with("x\nend\n"));
}

TEST(LineLog, AnUnwritableFileIsNamed) {
  EXPECT_ERROR(StorageError, LineLog("/nonexistent/m"), "/nonexistent/m: cannot be written");
}

}  // namespace
}  // namespace r1::train
