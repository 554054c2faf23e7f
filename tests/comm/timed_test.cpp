// The timed communicator: the same results, and what each operation of each group took while the clock was on.
#include "comm/timed/timed.h"

#include <gtest/gtest.h>

#include <chrono>
#include <map>
#include <thread>

namespace r1::comm {
namespace {

using namespace std::chrono_literals;

std::map<std::string, CommTime> by_name(const std::vector<CommTime>& times) {
  std::map<std::string, CommTime> out;
  for (const CommTime& t : times) out[std::string(name_of(t.op))] = t;
  return out;
}

TEST(Timed, TellsWaitingFromWorking) {
  auto locals = make_local(2);
  std::vector<std::vector<CommTime>> times(2);
  std::vector<std::thread> threads;
  for (int r = 0; r < 2; ++r)
    threads.emplace_back([&, r] {
      CommClock clock(DeviceKind::kCpu);
      auto world = make_timed(*locals[static_cast<size_t>(r)], clock);
      auto pair = world->split(0, r, "pp (dp 0 tp 0)"), alone = world->split(r, 0, "dp");
      float x = 1;
      const Tensor t{.data = &x, .dtype = DType::kF32, .shape = {1}, .device = {}};
      pair->all_reduce(t, ReduceOp::kSum, {});  // not timed yet
      clock.start();
      if (r == 0) std::this_thread::sleep_for(200ms);
      pair->all_reduce(t, ReduceOp::kSum, {});
      alone->all_reduce(t, ReduceOp::kSum, {});  // of one rank: nobody to wait for
      const Transfer transfer{r == 0 ? Transfer::Kind::kSend : Transfer::Kind::kRecv, t, 1 - r};
      pair->start({&transfer, 1}, {})->wait();
      times[static_cast<size_t>(r)] = clock.stop();
      pair->all_reduce(t, ReduceOp::kSum, {});  // no more
      EXPECT_EQ(x, 8.0F);
      EXPECT_TRUE(clock.stop().empty());
      alone->close();
      pair->close();
    });
  for (std::thread& t : threads) t.join();
  const auto quick = by_name(times[1]), slow = by_name(times[0]);
  ASSERT_EQ(quick.size(), 3U);
  EXPECT_EQ(quick.at("all-reduce").calls, 1);
  EXPECT_EQ(quick.at("all-reduce").bytes, 4);
  EXPECT_TRUE(quick.at("all-reduce").group.starts_with("pp (dp 0 tp 0)"));
  EXPECT_GT(quick.at("all-reduce").seconds, 0.15) << "it waited for the one that came late";
  EXPECT_LT(slow.at("all-reduce").seconds, quick.at("all-reduce").seconds);
  EXPECT_EQ(quick.at("receive").calls, 1);
  EXPECT_EQ(slow.at("send").calls, 1);
  EXPECT_EQ(slow.at("wait").calls, 1);
  EXPECT_EQ(times[1].front().op, Operation::kAllReduce) << "longest first";
}

TEST(Timed, ASumUnderWayCountsAtItsStartAndItsWait) {
  auto locals = make_local(2);
  std::vector<std::thread> threads;
  for (int r = 0; r < 2; ++r)
    threads.emplace_back([&, r] {
      CommClock clock(DeviceKind::kCpu);
      auto world = make_timed(*locals[static_cast<size_t>(r)], clock);
      clock.start();
      float x[2] = {1, 2};
      const auto part = [&](int i) { return Tensor{.data = &x[i], .dtype = DType::kF32, .shape = {1}, .device = {}}; };
      const ShardedTensor xs{{part(0), part(1)}};
      world->start_reduce_scatter({&xs, 1}, SumOrder::kRank, {})->wait();
      world->start_all_gather({&xs, 1}, {})->wait();
      EXPECT_EQ(x[0], 2.0F);
      EXPECT_EQ(x[1], 4.0F);
      const auto times = by_name(clock.stop());
      EXPECT_EQ(times.at("reduce-scatter").calls, 1);
      EXPECT_EQ(times.at("reduce-scatter").bytes, 0) << "its time is that of the start alone";
      EXPECT_EQ(times.at("all-gather").calls, 1);
      EXPECT_EQ(times.at("wait").calls, 2);
    });
  for (std::thread& t : threads) t.join();
}

}  // namespace
}  // namespace r1::comm
