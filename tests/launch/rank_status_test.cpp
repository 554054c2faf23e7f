// The page between a rank and its parent: what is written is read, across a fork, also after
// SIGKILL, and while it is being written.
#include "runtime/core/rank_status.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <string>
#include <thread>

namespace r1 {
namespace {

TEST(RankStatus, FreshPageSaysNothing) {
  const RankStatusReader reader;
  const RankStatus s = reader.read();
  EXPECT_EQ(s.world_rank, -1);
  EXPECT_EQ(s.step, -1);
  EXPECT_EQ(s.checkpoint_step, -1);
  EXPECT_EQ(s.report, ReportKind::kNone);
  EXPECT_TRUE(s.phase.empty());
}

TEST(RankStatus, SurvivesTheWritersDeath) {
  const RankStatusReader reader;
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    setenv(kRankStatusFdVariable, std::to_string(reader.fd()).c_str(), 1);
    const auto writer = RankStatusWriter::from_environment();
    if (!writer->has_parent() || getenv(kRankStatusFdVariable) != nullptr) _exit(1);
    writer->set_identity(3, 8, "pp 0 dp 0 tp 3");
    writer->set_checkpoint(40);
    writer->set_step(41);
    writer->set_phase("forward micro-batch 2");
    writer->report(ReportKind::kSecondary, ExitCode::kTemporary, "peer gone");
    kill(getpid(), SIGKILL);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status)) << WEXITSTATUS(status);
  const RankStatus s = reader.read();
  EXPECT_EQ(s.world_rank, 3);
  EXPECT_EQ(s.world_size, 8);
  EXPECT_EQ(s.coordinates, "pp 0 dp 0 tp 3");
  EXPECT_EQ(s.step, 41);
  EXPECT_EQ(s.checkpoint_step, 40);
  EXPECT_EQ(s.phase, "forward micro-batch 2");
  EXPECT_EQ(s.report, ReportKind::kSecondary);
  EXPECT_EQ(s.exit_code, 75);
  EXPECT_EQ(s.message, "peer gone");
  EXPECT_GT(s.updated_ns, 0);
}

TEST(RankStatus, PrimaryIsNeverReplaced) {
  const RankStatusReader reader;
  RankStatusWriter writer(reader.fd());
  writer.report(ReportKind::kSecondary, ExitCode::kTemporary, "peer gone");
  writer.report(ReportKind::kFinished, ExitCode::kOk, "");
  EXPECT_EQ(reader.read().message, "peer gone");
  writer.report(ReportKind::kPrimary, ExitCode::kBadInput, "bad shard");
  writer.report(ReportKind::kPrimary, ExitCode::kInternal, "later");
  EXPECT_EQ(reader.read().message, "bad shard");
  EXPECT_EQ(reader.read().exit_code, 65);
}

TEST(RankStatus, LongTextIsCut) {
  const RankStatusReader reader;
  RankStatusWriter writer(reader.fd());
  writer.set_phase(std::string(5000, 'p'));
  writer.set_identity(0, 1, std::string(5000, 'c'));
  writer.report(ReportKind::kPrimary, ExitCode::kInternal, std::string(50000, 'm'));
  const RankStatus s = reader.read();
  EXPECT_EQ(s.phase, std::string(199, 'p'));
  EXPECT_EQ(s.coordinates, std::string(115, 'c'));
  EXPECT_EQ(s.message, std::string(3060, 'm'));
}

TEST(RankStatus, WithoutParentWritesNowhere) {
  unsetenv(kRankStatusFdVariable);
  const auto writer = RankStatusWriter::from_environment();
  EXPECT_FALSE(writer->has_parent());
  writer->set_step(1);
  writer->report(ReportKind::kPrimary, ExitCode::kInternal, "x");
}

TEST(RankStatus, RefusesADescriptorThatIsNoPage) {
  int fds[2];
  ASSERT_EQ(pipe(fds), 0);
  EXPECT_THROW(RankStatusWriter{fds[0]}, InternalError);
  close(fds[0]);
  close(fds[1]);
  EXPECT_THROW(RankStatusWriter{fds[0]}, InternalError);
}

// Phase and step are written together: a reader must never see a mixture.
TEST(RankStatus, ReadersNeverSeeAMixture) {
  const RankStatusReader reader;
  RankStatusWriter writer(reader.fd());
  std::atomic<bool> stop{false};
  std::thread writing([&] {
    for (int i = 0; !stop; ++i) writer.set_phase(std::string(150, static_cast<char>('a' + i % 26)));
  });
  int seen = 0;
  for (int i = 0; i < 20000; ++i) {
    const RankStatus s = reader.read();
    if (s.phase.empty()) continue;
    ++seen;
    ASSERT_EQ(s.phase, std::string(150, s.phase[0])) << "read " << i;
  }
  stop = true;
  writing.join();
  EXPECT_GT(seen, 0);
}

}  // namespace
}  // namespace r1
