// The step-time model against measured training rates, and what must hold of it everywhere.
#include <gtest/gtest.h>

#include <algorithm>

#include "parallel/cost/step_time.h"

namespace r1::parallel {
namespace {

ModelConfig qwen(int64_t hidden, int64_t layers, int64_t heads, int64_t kv, int64_t ffn, int64_t vocab, bool tied = false) {
  ModelConfig c;
  c.hidden = hidden;
  c.layers = layers;
  c.heads = heads;
  c.kv_heads = kv;
  c.head_dim = hidden / heads;
  c.ffn = ffn;
  c.vocab = vocab;
  c.max_positions = 131072;
  c.tied_embeddings = tied;
  c.qkv_bias = true;
  return c;
}
const ModelConfig kQwen15B = qwen(1536, 28, 12, 2, 8960, 151936), kQwen7B = qwen(3584, 28, 28, 4, 18944, 152064);

DeviceRates rates(double peak, double gemm, double fwd, double bwd, double bytes) {
  return {.gemm = peak * gemm, .attention_forward = peak * fwd, .attention_backward = peak * bwd,
          .bytes_per_s = bytes * 0.88, .overhead = 1.05, .kernel_s = 3e-6};
}
const DeviceRates kH200 = rates(989.4e12, 0.71, 0.47, 0.48, 4800e9);
const DeviceRates kH100 = rates(989.4e12, 0.71, 0.47, 0.48, 3352e9);
const DeviceRates kRtx4090 = rates(165.2e12, 1.0, 0.8, 0.7, 1008e9);
const DeviceRates kA100 = rates(312e12, 0.82, 0.6, 0.5, 2039e9);

double tokens_per_s(const ModelConfig& c, int64_t batch, int64_t micro, int64_t seq, bool bf16_state, Recompute recompute,
                    const DeviceRates& r, MeshShape mesh = {}, MeshLinks links = {}) {
  JobShape job{.mesh = mesh, .batch = batch, .micro_batch = micro, .seq_len = seq, .recompute = {recompute},
               .format = numeric_format(true, "auto", bf16_state ? "bf16" : "fp32")};
  const ModelSpec spec(c, mesh.tp, job.stages());
  return step_time(spec, job, schedule_of(job), r, links).tokens_per_s;
}

struct Measured {
  const char* what;
  double measured, modelled, tolerance;
};
void expect_near(const Measured& m) {
  std::printf("%-60s measured %7.0f modelled %7.0f (%+.1f %%)\n", m.what, m.measured, m.modelled,
              100 * (m.modelled / m.measured - 1));
  EXPECT_NEAR(m.modelled / m.measured, 1.0, m.tolerance) << m.what;
}

// r1run itself on one H200: benchmarks/results/2026-11-23-h200-training.md.
TEST(HeadChunk, CoversTheTokensInAsFewAndEqualChunksAsCanBe) {
  for (const int tp : {1, 4})
    for (const int64_t budget : {int64_t{1} << 20, int64_t{8} << 20, int64_t{320} << 20}) {
      const ModelSpec spec(kQwen15B, tp, 1);
      const int64_t vocab = (kQwen15B.vocab + tp - 1) / tp;
      for (const int64_t tokens : {1, 11, 63, 64, 100, 512, 1000, 2048, 4096, 5000, 8192, 16384, 32768}) {
        SCOPED_TRACE(fmt::format("tp {} budget {} tokens {}", tp, budget, tokens));
        const int64_t chunk = head_chunk_tokens(spec, 0, tokens, budget);
        const int64_t most = std::max(budget / vocab, std::min<int64_t>(64, tokens)), chunks = (tokens + chunk - 1) / chunk;
        EXPECT_GE(chunk, 1);
        EXPECT_LE(chunk, std::min(most, tokens));
        EXPECT_EQ(chunks, (tokens + most - 1) / most);
        EXPECT_GT(tokens - chunk * (chunks - 1), chunk - chunks) << "the last one";
      }
    }
  // 16k tokens of the 1.5B, as on a GPU: whole tiles.
  EXPECT_EQ(head_chunk_tokens(ModelSpec(kQwen15B, 1, 1), 0, 16384, int64_t{320} << 20), 2048);
}

TEST(StepTime, AgreesWithMeasuredStepsOnOneH200) {
  const Recompute none = Recompute::kNone, full = Recompute::kFull;
  for (const Measured& m : {
           Measured{"1.5B T4096 16k fp32 state", 51348, tokens_per_s(kQwen15B, 4, 4, 4096, false, none, kH200), 0.05},
           Measured{"1.5B T4096 128k bf16 state", 53663, tokens_per_s(kQwen15B, 32, 4, 4096, true, none, kH200), 0.05},
           Measured{"1.5B T4096 32k bf16 state full", 43875, tokens_per_s(kQwen15B, 8, 8, 4096, true, full, kH200), 0.05},
           Measured{"7B T4096 32k bf16 state", 13108, tokens_per_s(kQwen7B, 8, 2, 4096, true, none, kH200), 0.05},
           Measured{"7B T4096 16k bf16 state full", 10820, tokens_per_s(kQwen7B, 4, 4, 4096, true, full, kH200), 0.05},
           Measured{"7B T1024 64k bf16 state", 14222, tokens_per_s(kQwen7B, 64, 8, 1024, true, none, kH200), 0.05},
       })
    expect_near(m);
}

// Rates that others published for engines that are near the hardware: LLM.Q b77d969 (H100, RTX 4090), llm-foundry (A100).
TEST(StepTime, IsNearThePublishedRatesOfOtherDevices) {
  const Recompute none = Recompute::kNone;
  const ModelConfig tied = qwen(1536, 28, 12, 2, 8960, 151936, true), half = qwen(896, 24, 14, 2, 4864, 151936, true);
  // MPT-7B as a gated model of the same matrix work: 2 matrices of 4h as 3 of 8h/3.
  const ModelConfig mpt = qwen(4096, 32, 32, 32, 10923, 50432, true);
  for (const Measured& m : {
           Measured{"LLM.Q, 1 x H100, Qwen2.5-7B T1024", 13860, tokens_per_s(kQwen7B, 512, 8, 1024, true, none, kH100), 0.1},
           Measured{"LLM.Q, 1 x H100, Qwen2.5-1.5B T1024", 58900, tokens_per_s(tied, 512, 16, 1024, true, none, kH100), 0.1},
           Measured{"LLM.Q, 1 x RTX 4090, Qwen2.5-1.5B T1024", 14070, tokens_per_s(tied, 512, 4, 1024, true, none, kRtx4090), 0.1},
           Measured{"LLM.Q, 1 x RTX 4090, Qwen2.5-0.5B T1024", 39840, tokens_per_s(half, 512, 16, 1024, true, none, kRtx4090), 0.1},
           Measured{"llm-foundry, A100-80, MPT-7B T2048, no recompute", 4641, tokens_per_s(mpt, 256, 8, 2048, true, none, kA100), 0.2},
       })
    expect_near(m);
}

}  // namespace
}  // namespace r1::parallel
