// One job at a time in an output directory: on one host, on another host that lives, after a death.
#include "runtime/checkpoint/output_lock.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "runtime/core/error.h"
#include "tests/support/temp_dir.h"

namespace r1::checkpoint {
namespace {

using namespace std::chrono_literals;
using test::TempDir;

constexpr LockTimes kQuick{.beat = 20ms, .watch = 300ms};

std::string refusal(const TempDir& dir) {
  try {
    const OutputLock lock(dir.path(), "second", kQuick);
  } catch (const StorageError& e) {
    EXPECT_EQ(e.code(), ExitCode::kCannotWrite);
    return e.what();
  }
  return "";
}

TEST(OutputLock, TheSecondJobIsToldWhoHoldsIt) {
  const TempDir dir;
  char host[256] = {};
  gethostname(host, sizeof host - 1);
  {
    const OutputLock lock(dir.path(), "first", kQuick);
    const std::string why = refusal(dir);
    EXPECT_NE(why.find(host), std::string::npos) << why;
    EXPECT_NE(why.find("pid " + std::to_string(getpid())), std::string::npos) << why;
    EXPECT_NE(why.find("since 20"), std::string::npos) << why;
    EXPECT_NE(why.find(dir.path().string()), std::string::npos) << why;
  }
  const OutputLock again(dir.path(), "second", kQuick);
  EXPECT_EQ(again.dead_run_id(), "") << "it was released";
}

TEST(OutputLock, EndsWithAKilledProcessAndNamesItsRun) {
  const TempDir dir;
  const pid_t child = fork();
  if (child == 0) {
    const OutputLock lock(dir.path(), "killed", kQuick);
    raise(SIGKILL);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  const OutputLock lock(dir.path(), "next", kQuick);
  EXPECT_EQ(lock.dead_run_id(), "killed");
}

/// A record as another host would leave it; without the kernel's lock, as on file systems that keep locks to one host.
void write_foreign(const TempDir& dir, int beat, bool released) {
  const nlohmann::json j{{"host", "elsewhere"}, {"pid", 7},     {"since", "2026-01-01T00:00:00Z"}, {"run_id", "foreign"},
                         {"start", "1"},        {"beat", beat}, {"released", released}};
  test::write_file(dir / ".r1run-lock", j.dump() + "\n");
}

TEST(OutputLock, AHolderOnAnotherHostIsKnownByItsBeat) {
  const TempDir dir;
  write_foreign(dir, 1, false);
  std::thread beat([&] {
    for (int i = 2; i < 12; ++i) {
      std::this_thread::sleep_for(20ms);
      write_foreign(dir, i, false);
    }
  });
  const std::string why = refusal(dir);
  beat.join();
  EXPECT_NE(why.find("host elsewhere, pid 7"), std::string::npos) << why;
  // It beats no more: it is dead, and what its run left is known.
  const OutputLock lock(dir.path(), "mine", kQuick);
  EXPECT_EQ(lock.dead_run_id(), "foreign");
}

TEST(OutputLock, AReleasedOrBrokenRecordIsNoHolder) {
  for (const std::string& text : {std::string(), std::string("{\"host\":"), std::string("garbage\n"), std::string(5000, '{')}) {
    const TempDir dir;
    test::write_file(dir / ".r1run-lock", text);
    const OutputLock lock(dir.path(), "mine", kQuick);
    EXPECT_EQ(lock.dead_run_id(), "");
  }
  const TempDir dir;
  write_foreign(dir, 3, true);
  const auto start = std::chrono::steady_clock::now();
  const OutputLock lock(dir.path(), "mine", LockTimes{});
  EXPECT_LT(std::chrono::steady_clock::now() - start, 2s) << "nothing to wait for";
  EXPECT_EQ(lock.dead_run_id(), "");
}

TEST(OutputLock, IsNotTakenThroughALink) {
  const TempDir dir;
  test::write_file(dir / "victim", "precious");
  std::filesystem::create_symlink(dir / "victim", dir / ".r1run-lock");
  EXPECT_NE(refusal(dir).find(".r1run-lock"), std::string::npos);
  EXPECT_EQ(test::read_file(dir / "victim"), "precious");
}

}  // namespace
}  // namespace r1::checkpoint
