// The plan's figures about kernels and the built-in model are those of the kernels and the model.
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "parallel/cost/job_shape.h"
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

TEST(ModelCatalogue, HasTheBuiltInModel) {
  std::ifstream in(std::string(R1RUN_SOURCE_DIR) + "/launch/catalogue/models.json");
  const auto facts = nlohmann::json::parse(in)["models"]["built-in"];
  const auto config = nlohmann::json::parse(data::default_config_json());
  for (const auto& [key, value] : facts.items()) EXPECT_EQ(config.at(key), value) << key;
}

}  // namespace
}  // namespace r1::train
