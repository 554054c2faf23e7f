// The flight recorder: what is written is read, while it goes on, after SIGKILL, and when the ring has come round.
#include "runtime/core/flight_recorder.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <memory>
#include <thread>

#include "runtime/core/rank_status.h"

namespace r1 {
namespace {

struct Memory {
  Memory() : bytes(static_cast<char*>(std::aligned_alloc(4096, kFlightBytes))) { std::fill_n(bytes.get(), kFlightBytes, '\0'); }
  struct Free {
    void operator()(char* p) const { std::free(p); }
  };
  std::unique_ptr<char, Free> bytes;
};

TEST(FlightRecorder, BeforeTheFirstStepThereIsNone) {
  alignas(64) static std::array<std::byte, kFlightBytes> memory{};
  FlightRecorder recorder(memory.data());
  recorder.action(Operation::kOther, -1, -1);
  FlightData d = read_flight(memory.data(), 8);
  EXPECT_EQ(d.step, -1);
  ASSERT_TRUE(d.action);
  EXPECT_EQ(d.action->step, -1);
  recorder.begin_step(0);
  EXPECT_EQ(read_flight(memory.data(), 8).step, 0);
}

TEST(FlightRecorder, TellsWhatARankIsIn) {
  const Memory m;
  FlightRecorder r(m.bytes.get());
  const uint32_t world = r.add_group("world"), tp = r.add_group("tp (pp 0 dp 1)");
  r.begin_step(41);
  r.begin(Operation::kBarrier, world, 0);
  r.end();
  r.action(Operation::kForward, 1, 3);
  r.begin(Operation::kAllReduce, tp, 4096);
  r.end();
  r.begin(Operation::kAllReduce, tp, 8192);
  FlightData d = read_flight(m.bytes.get());
  ASSERT_TRUE(d.action && d.operation);
  EXPECT_EQ(describe(*d.action, d), "forward stage 1 micro-batch 3");
  EXPECT_EQ(describe(*d.operation, d), "all-reduce #2 of tp (pp 0 dp 1), 8.00 KiB");
  EXPECT_EQ(d.operation->step, 41);
  EXPECT_EQ(d.count, 4u);
  EXPECT_EQ(d.step, 41);
  ASSERT_EQ(d.groups.size(), 2u);
  EXPECT_EQ(d.groups[0].sequence, 1u);
  EXPECT_EQ(d.groups[1].sequence, 2u);
  ASSERT_EQ(d.recent.size(), 4u);
  EXPECT_NE(d.recent[2].end_ns, 0);
  EXPECT_EQ(d.recent[3].end_ns, 0);
  r.end();
  r.begin(Operation::kRecv, world, 64, 7);
  d = read_flight(m.bytes.get(), 1);
  EXPECT_EQ(describe(*d.operation, d), "receive of world with rank 7, 64 B");
  EXPECT_EQ(d.recent.size(), 1u);
  r.end();
  r.end_action();
  d = read_flight(m.bytes.get());
  EXPECT_FALSE(d.action || d.operation);
  EXPECT_GT(d.waited_ns, 0);
  EXPECT_EQ(count_if(d.recent.begin(), d.recent.end(), [](const FlightRecord& f) { return f.end_ns == 0; }), 0);
  EXPECT_NE(flight_text(d, 3).find("all-reduce #2"), std::string::npos);
}

TEST(FlightRecorder, KeepsTheNewestRecords) {
  const Memory m;
  FlightRecorder r(m.bytes.get());
  const uint32_t g = r.add_group("world");
  r.action(Operation::kForward, 0, 0);  // stays open while the ring comes round
  const auto n = static_cast<uint64_t>(detail::kFlightRecords) * 2 + 17;
  for (uint64_t i = 1; i <= n; ++i) {
    r.begin(Operation::kBarrier, g, i);
    r.end();
  }
  const FlightData d = read_flight(m.bytes.get());
  ASSERT_EQ(d.recent.size(), detail::kFlightRecords);
  EXPECT_EQ(d.recent.back().bytes, n);
  EXPECT_EQ(d.recent.front().bytes, n - detail::kFlightRecords + 1);
  EXPECT_FALSE(d.action) << "overwritten";
  r.end_action();  // must not close a stranger
  for (const FlightRecord& f : read_flight(m.bytes.get()).recent) EXPECT_EQ(f.op, Operation::kBarrier);
}

TEST(FlightRecorder, NamesAndGroupsAreBounded) {
  const Memory m;
  FlightRecorder r(m.bytes.get());
  for (int i = 0; i < 100; ++i) r.begin(Operation::kBarrier, r.add_group(std::string(100, 'n')), 0);
  const FlightData d = read_flight(m.bytes.get());
  EXPECT_EQ(d.groups.size(), detail::kFlightGroups);
  EXPECT_EQ(d.groups[0].name, std::string(detail::kFlightNameBytes - 1, 'n'));
}

TEST(FlightRecorder, ReadersSeeWholeRecordsOnly) {
  const Memory m;
  FlightRecorder r(m.bytes.get());
  const uint32_t g = r.add_group("world");
  std::atomic<bool> stop{false};
  std::thread writer([&] {
    for (uint64_t i = 1; !stop; ++i) {
      r.begin(Operation::kSend, g, i * 3, static_cast<int>(i % 1000));
      r.end();
    }
  });
  for (int i = 0; i < 200; ++i)
    for (const FlightRecord& f : read_flight(m.bytes.get()).recent) ASSERT_EQ(f.bytes, f.number * 3);
  stop = true;
  writer.join();
}

TEST(FlightRecorder, SurvivesSigkillInTheStatusPage) {
  const RankStatusReader reader;
  const pid_t child = fork();
  if (child == 0) {
    RankStatusWriter writer(reader.fd());
    FlightRecorder& flight = writer.flight();
    const uint32_t tp = flight.add_group("tp (pp 0 dp 0)");
    flight.begin_step(7);
    flight.action(Operation::kBackward, 0, 2);
    flight.begin(Operation::kReduceScatter, tp, 1 << 20);
    kill(getpid(), SIGKILL);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  const FlightData d = reader.flight();
  ASSERT_TRUE(d.action && d.operation);
  EXPECT_EQ(describe(*d.action, d), "backward stage 0 micro-batch 2");
  EXPECT_EQ(describe(*d.operation, d), "reduce-scatter #1 of tp (pp 0 dp 0), 1.00 MiB");
  EXPECT_EQ(d.recent.size(), 2u);
}

}  // namespace
}  // namespace r1
