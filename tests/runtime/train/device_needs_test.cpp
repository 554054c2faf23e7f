// The plan's figures about kernels and the built-in model are those of the kernels and the model.
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "parallel/cost/job_shape.h"
#include "runtime/core/comm_route.h"
#include "runtime/data/default/default_job.h"
#include "runtime/kernels/ops.h"

namespace r1::train {
namespace {

TEST(DeviceNeeds, WorkspaceIsTheKernels) {
  parallel::ModelConfig c;
  c.head_dim = 128;
  for (const int64_t heads : {1, 12, 28, 64})
    for (const int64_t kv : {1, 4}) {
      if (heads % kv != 0) continue;
      c.heads = heads;
      c.kv_heads = kv;
      for (const int tp : {1, 2, 3, 8})
        for (const int64_t tokens : {1, 77, 4096}) {
          const int64_t q = (heads + tp - 1) / tp, k = std::min(q, (kv + tp - 1) / tp + 1);
          EXPECT_EQ(parallel::device_needs(true, c, tp, tokens).workspace_bytes,
                    static_cast<int64_t>(kernels::attention_workspace_bytes(DeviceKind::kCuda, tokens, q, k, c.head_dim)));
          EXPECT_EQ(parallel::device_needs(false, c, tp, tokens).workspace_bytes,
                    static_cast<int64_t>(kernels::attention_workspace_bytes(DeviceKind::kCpu, tokens, q, k, c.head_dim)));
        }
    }
}

// Room for whole messages of the neighbours that send to a rank, where they go through ipc, up to the largest that travels in one piece.
TEST(DeviceNeeds, RoomForTheMessagesOfAPipeline) {
  parallel::ModelConfig c;
  c.layers = 8;
  c.hidden = 512;
  c.heads = c.kv_heads = 8;
  c.head_dim = 64;
  c.ffn = 1024;
  c.vocab = 1000;
  const auto messages = [&](int pp, int tp, const char* schedule, int v, int64_t seq_len, int ipc_ranks_a_host, int rank) {
    const bool gpu = ipc_ranks_a_host >= 0;
    parallel::JobShape job;
    job.mesh = {pp, 1, tp};
    job.schedule = schedule;
    job.virtual_stages = v;
    job.batch = 8;
    job.seq_len = seq_len;
    job.gpu = gpu;
    job.ipc_ranks_a_host = std::max(0, ipc_ranks_a_host);
    job.format = parallel::numeric_format(gpu, "", gpu ? "bf16" : "fp32");
    const parallel::ModelSpec spec(c, tp, job.stages());
    const auto plan = parallel::plan_rank(spec, job, parallel::schedule_of(job), {.pp = rank, .dp = 0, .tp = 0});
    EXPECT_EQ(plan.messages.bytes, seq_len / tp * c.hidden * (gpu ? 2 : 4));
    return std::pair(plan.messages.peers, plan.bytes().messages);
  };
  using Peers = std::vector<int>;
  const int64_t one = 1024 * 512 * 2 * static_cast<int64_t>(kMessageSlots);
  EXPECT_EQ(messages(1, 1, "1f1b", 1, 1024, 8, 0), std::pair(Peers{}, int64_t{0}));
  EXPECT_EQ(messages(2, 1, "1f1b", 1, 1024, 8, 0), std::pair(Peers{1}, one));
  EXPECT_EQ(messages(2, 2, "1f1b", 1, 1024, 4, 1), std::pair(Peers{0}, one / 2));
  EXPECT_EQ(messages(4, 1, "1f1b", 1, 1024, 4, 0), std::pair(Peers{1}, one));
  EXPECT_EQ(messages(4, 1, "1f1b", 1, 1024, 4, 2), std::pair((Peers{1, 3}), 2 * one));
  EXPECT_EQ(messages(4, 1, "interleaved", 2, 1024, 4, 0), std::pair((Peers{1, 3}), 2 * one));
  EXPECT_EQ(messages(2, 1, "1f1b", 1, 77, 2, 0), std::pair(Peers{1}, 77 * 512 * 2 * static_cast<int64_t>(kMessageSlots)));
  EXPECT_EQ(messages(2, 1, "1f1b", 1, 1024, -1, 0), std::pair(Peers{1}, int64_t{0}));            // on CPUs
  EXPECT_EQ(messages(2, 1, "1f1b", 1, 1024, 0, 0), std::pair(Peers{1}, int64_t{0}));             // over NCCL
  EXPECT_EQ(messages(2, 2, "1f1b", 1, 1024, 2, 1), std::pair(Peers{0}, int64_t{0}));             // the stages on two hosts
  EXPECT_EQ(messages(4, 1, "1f1b", 1, 1024, 3, 1), std::pair((Peers{0, 2}), int64_t{0}));        // one of four stages elsewhere
  EXPECT_EQ(messages(2, 1, "1f1b", 1, 1 << 20, 8, 0), std::pair(Peers{1}, static_cast<int64_t>(kMessageSlots * kMostMessageSlotBytes)));
}

TEST(ModelCatalogue, HasTheBuiltInModel) {
  std::ifstream in(std::string(R1RUN_SOURCE_DIR) + "/launch/catalogue/models.json");
  const auto facts = nlohmann::json::parse(in)["models"]["built-in"];
  const auto config = nlohmann::json::parse(data::default_config_json());
  for (const auto& [key, value] : facts.items()) EXPECT_EQ(config.at(key), value) << key;
}

}  // namespace
}  // namespace r1::train
