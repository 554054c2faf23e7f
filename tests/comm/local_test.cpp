// What the local backend adds for tests: nothing hangs, and the cause is named.
#include "comm/local/local.h"

#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <thread>

namespace r1::comm {
namespace {

Tensor view(std::vector<float>& v) {
  return {.data = v.data(),
          .dtype = DType::kF32,
          .shape = {static_cast<int64_t>(v.size())},
          .device = {}};
}

// The message with which run_ranks(fn) ends.
template <class Fn>
std::string failure(int ranks, Fn fn) {
  try {
    run_ranks(ranks, fn);
  } catch (const std::exception& e) {
    return e.what();
  }
  return "";
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(Local, FirstExceptionIsRethrownAndTheOthersAreWoken) {
  std::atomic<int> woken{0};
  const auto body = [&](Communicator& c) {
    if (c.rank() == 1) throw std::out_of_range("the cause");
    try {
      c.barrier();
    } catch (const CommError& e) {
      EXPECT_TRUE(contains(e.what(), "rank 1: the cause")) << e.what();
      ++woken;
      throw;
    }
  };
  EXPECT_THROW(run_ranks(4, body), std::out_of_range);
  EXPECT_EQ(woken, 3);
}

TEST(Local, PoisonReachesWaitsInSubgroupsAndMessages) {
  const std::string text = failure(4, [](Communicator& c) {
    const auto pair = c.split(c.rank() / 2, 0, "pair");
    std::vector<float> x(4);
    if (c.rank() == 0) throw std::runtime_error("the cause");
    if (c.rank() == 1) pair->all_reduce(view(x), ReduceOp::kSum, {});  // waits for rank 0
    if (c.rank() == 2) pair->recv(view(x), 1, {});                     // waits for rank 3
    if (c.rank() == 3) c.send(view(x), 0, {});                         // waits for rank 0
  });
  EXPECT_EQ(text, "the cause");
}

TEST(Local, ARankThatLeavesEarlyIsNamed) {
  const std::string text = failure(3, [](Communicator& c) {
    if (c.rank() != 2) c.barrier();
  });
  EXPECT_TRUE(contains(text, "world rank 2, which has left")) << text;
}

TEST(Local, ADeadlockIsFoundAndEveryWaitIsNamed) {
  const std::string text = failure(3, [](Communicator& c) {
    std::vector<float> x(1);
    if (c.rank() == 0) c.barrier();
    if (c.rank() == 1) c.recv(view(x), 2, {});
    if (c.rank() == 2) c.recv(view(x), 1, {});
  });
  EXPECT_TRUE(contains(text, "deadlock")) << text;
  EXPECT_TRUE(contains(text, "rank 0 waits in barrier")) << text;
  EXPECT_TRUE(contains(text, "rank 1 waits in recv")) << text;
}

TEST(Local, ASlowRankIsNoDeadlock) {
  EXPECT_EQ(failure(3,
                    [](Communicator& c) {
                      if (c.rank() == 1) std::this_thread::sleep_for(std::chrono::milliseconds(60));
                      c.barrier();
                    }),
            "");
}

// Two blocking sends towards each other would hang on a network as soon as the messages are large.
TEST(Local, SendsTowardsEachOtherAreADeadlock) {
  const std::string text = failure(2, [](Communicator& c) {
    std::vector<float> x(1);
    c.send(view(x), 1 - c.rank(), {});
    c.recv(view(x), 1 - c.rank(), {});
  });
  EXPECT_TRUE(contains(text, "deadlock")) << text;
}

TEST(Local, RanksThatCallDifferentCollectivesAreTold) {
  std::string text = failure(2, [](Communicator& c) {
    std::vector<float> x(2);
    if (c.rank() == 0)
      c.barrier();
    else
      c.all_reduce(view(x), ReduceOp::kSum, {});
  });
  EXPECT_TRUE(contains(text, "rank 0 calls barrier") &&
              contains(text, "rank 1 calls all_reduce (2 fp32"))
      << text;
  text = failure(2, [](Communicator& c) {
    std::vector<float> x(c.rank() == 0 ? 2 : 3);
    c.all_reduce(view(x), ReduceOp::kSum, {});
  });
  EXPECT_TRUE(contains(text, "2 fp32") && contains(text, "3 fp32")) << text;
}

TEST(Local, SizesThatDifferBetweenSenderAndReceiverAreTold) {
  const std::string text = failure(2, [](Communicator& c) {
    std::vector<float> x(c.rank() == 0 ? 2 : 3);
    if (c.rank() == 0)
      c.send(view(x), 1, {});
    else
      c.recv(view(x), 0, {});
  });
  EXPECT_TRUE((contains(text, "12 bytes") && contains(text, "sends 8")) ||
              (contains(text, "8 bytes") && contains(text, "expects 12")))
      << text;
}

TEST(Local, AllToAllCountsThatDifferAreTold) {
  const std::string text = failure(2, [](Communicator& c) {
    std::vector<float> in(2), out(c.rank() == 0 ? 2 : 3);
    const int64_t sends[] = {1, 1}, receives[] = {1, c.rank() == 0 ? 1 : 2};
    c.all_to_all(view(in), sends, view(out), receives, {});
  });
  EXPECT_TRUE(contains(text, "rank 1 sends 1 elements to rank 1, which expects 2")) << text;
}

// A pending receive that is dropped leaves no pointer behind: the message goes to the next receive.
TEST(Local, ADroppedPendingIsWithdrawn) {
  EXPECT_EQ(failure(2,
                    [](Communicator& c) {
                      std::vector<float> x{1};
                      if (c.rank() == 0) {
                        {
                          std::vector<float> gone(1);
                          const Transfer t[] = {{Transfer::Kind::kRecv, view(gone), 1}};
                          const auto dropped = c.start(t, {});
                        }
                        c.barrier();
                        x[0] = 0;
                        c.recv(view(x), 1, {});
                        EXPECT_EQ(x[0], 1);
                      } else {
                        c.barrier();
                        c.send(view(x), 0, {});
                      }
                    }),
            "");
}

TEST(Local, NamesTellTheWorldRanks) {
  run_ranks(8, [](Communicator& c) {
    EXPECT_EQ(c.name(), "local[0,1,2,3,4,5,6,7]");
    const auto tp = c.split(c.rank() / 4, c.rank(), "tp");
    EXPECT_EQ(tp->name(), c.rank() < 4 ? "tp[0,1,2,3]" : "tp[4,5,6,7]");
    EXPECT_EQ(
        tp->split(tp->rank() % 2, 0, "dp")->name(),
        (std::vector<std::string>{"dp[0,2]", "dp[1,3]", "dp[0,2]", "dp[1,3]", "dp[4,6]", "dp[5,7]",
                                  "dp[4,6]", "dp[5,7]"}[static_cast<size_t>(c.rank())]));
    EXPECT_EQ(c.split(0, 0, "given[x]")->name(), "given[x]");
  });
  run_ranks(17, [](Communicator& c) { EXPECT_EQ(c.name(), "local[0-16]"); });
}

TEST(Local, CommunicatorsCanBeUsedByThreadsOfTheCaller) {
  auto comms = make_local(2);
  std::thread other([&] {
    std::vector<float> x{2};
    comms[1]->all_reduce(view(x), ReduceOp::kSum, {});
    EXPECT_EQ(x[0], 5);
    EXPECT_THROW(comms[1]->barrier(), CommError);
  });
  std::vector<float> x{3};
  comms[0]->all_reduce(view(x), ReduceOp::kSum, {});
  EXPECT_EQ(x[0], 5);
  poison_local(*comms[0], "enough");
  other.join();
}

}  // namespace
}  // namespace r1::comm
