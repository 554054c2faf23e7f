// What --profile takes for the pipeline's bubble and what for exposed communication.
#include "runtime/train/step_profile.h"

#include <gtest/gtest.h>

namespace r1::train {
namespace {

TEST(StepProfile, WaitingAlongThePipelineIsTheBubble) {
  const std::vector<comm::CommTime> times{
      {.group = "pp (dp 0 tp 1)[1,3]", .op = Operation::kRecv, .calls = 4, .seconds = 2},
      {.group = "ends (dp 0 tp 1)[1,3]", .op = Operation::kAllReduce, .calls = 1, .seconds = 1},
      {.group = "tp (pp 0 dp 0)[0,1]", .op = Operation::kAllGather, .calls = 9, .seconds = 0.5},
      {.group = "dp (pp 0 tp 1)[1,5]", .op = Operation::kWait, .calls = 9, .seconds = 0.25},
      {.group = "replica (dp 0)[0,1]", .op = Operation::kAllReduce, .calls = 1, .seconds = 0.125}};
  const WaitingTime w = waiting_time(times);
  EXPECT_DOUBLE_EQ(w.bubble, 3);
  EXPECT_DOUBLE_EQ(w.exposed, 0.875);
}

}  // namespace
}  // namespace r1::train
