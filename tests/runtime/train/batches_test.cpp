// Which samples every rank of every layout sees.
#include "runtime/train/batches.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace r1::train {
namespace {

constexpr int64_t kSamples = 200, kSeqLen = 64, kBatch = 12;

// Samples whose tokens are all their own number, so that a batch tells which samples are in it.
data::Dataset numbered() {
  std::mt19937 random(7);
  std::vector<data::TokenSample> samples;
  for (int32_t k = 0; k < kSamples; ++k) samples.push_back({.ids = std::vector<int32_t>(2 + random() % 40, k), .labels = {}});
  data::DataOptions options;
  options.seq_len = kSeqLen;
  options.seed = 5;
  return data::Dataset::from_tokens(std::move(samples), options, /*pad_id=*/kSamples);
}

// The samples of a step, in the order of the rows: all micro-batches of all data-parallel ranks.
std::vector<int32_t> samples_of_step(const data::Dataset& d, const BatchLayout& layout, int64_t first_row) {
  std::vector<int32_t> seen;
  for (int rank = 0; rank < layout.dp; ++rank)
    for (const models::HostBatch& b : make_batches(d, layout, first_row, rank)) {
      EXPECT_EQ(b.ids.size(), static_cast<size_t>(layout.tokens()));
      for (size_t s = 0; s + 1 < b.cu_seqlens.size(); ++s) {
        const auto begin = static_cast<size_t>(b.cu_seqlens[s]), end = static_cast<size_t>(b.cu_seqlens[s + 1]);
        const int32_t sample = b.ids[begin];
        if (sample == kSamples) continue;  // padding
        EXPECT_EQ(static_cast<int64_t>(end - begin), d.sample_length(sample)) << "whole samples only";
        for (size_t i = begin; i < end; ++i) {
          EXPECT_EQ(b.ids[i], sample);
          EXPECT_EQ(b.positions[i], static_cast<int32_t>(i - begin));
          EXPECT_EQ(b.targets[i], i + 1 < end ? sample : -1) << "no target crosses into the next sample";
        }
        seen.push_back(sample);
      }
    }
  return seen;
}

TEST(Batches, EveryLayoutSeesTheSameSamplesInTheSameSteps) {
  const data::Dataset d = numbered();
  const int64_t steps = 3 * d.rows_per_epoch() / kBatch;
  std::vector<std::vector<int32_t>> log;
  for (int64_t step = 0; step < steps; ++step)
    log.push_back(samples_of_step(d, {.batch = kBatch, .micro_batch = 1, .seq_len = kSeqLen, .dp = 1}, step * kBatch));
  // A batch that neither the ranks nor the micro-batches divide is filled with masked rows.
  for (const int dp : {1, 2, 3, 5, 8, 12})
    for (const int64_t micro_batch : {1, 2, 3, 4}) {
      SCOPED_TRACE(testing::Message() << "dp " << dp << ", micro-batch " << micro_batch);
      for (int64_t step = 0; step < steps; ++step)
        ASSERT_EQ(samples_of_step(d, {.batch = kBatch, .micro_batch = micro_batch, .seq_len = kSeqLen, .dp = dp}, step * kBatch),
                  log[static_cast<size_t>(step)])
            << "step " << step;
    }
  // Each sample once an epoch, in another order each.
  std::vector<std::vector<int32_t>> epochs(2);
  for (size_t e = 0; e < epochs.size(); ++e) {
    const auto rows = d.rows_per_epoch();
    epochs[e] = samples_of_step(d, {.batch = rows, .micro_batch = 1, .seq_len = kSeqLen, .dp = 1}, static_cast<int64_t>(e) * rows);
  }
  EXPECT_NE(epochs[0], epochs[1]);
  for (auto& epoch : epochs) {
    std::sort(epoch.begin(), epoch.end());
    ASSERT_EQ(epoch.size(), static_cast<size_t>(kSamples));
    for (int32_t k = 0; k < kSamples; ++k) EXPECT_EQ(epoch[static_cast<size_t>(k)], k);
  }
}

}  // namespace
}  // namespace r1::train
