// What --profile takes for the pipeline's bubble, for exposed communication and for products.
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

TEST(StepProfile, ProductsAreToldFromTheRest) {
  const std::vector<kernels::OpProfile> ops{{.name = "linear_forward", .calls = 2, .seconds = 2, .flops = 6e12},
                                            {.name = "linear_backward_weight", .calls = 2, .seconds = 1, .flops = 3e12},
                                            {.name = "attention_forward", .calls = 2, .seconds = 0.5, .flops = 1e12},
                                            {.name = "rmsnorm_forward", .calls = 4, .seconds = 0.25, .bytes = 1e9}};
  const ComputeTime c = compute_time(ops);
  EXPECT_DOUBLE_EQ(c.products, 3);
  EXPECT_DOUBLE_EQ(c.product_flops, 9e12);
  EXPECT_DOUBLE_EQ(c.others, 0.75);
}

}  // namespace
}  // namespace r1::train
