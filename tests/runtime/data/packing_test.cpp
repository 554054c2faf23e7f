#include "runtime/data/packing.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <fstream>
#include <map>
#include <numeric>
#include <set>
#include <vector>

#include "runtime/core/error.h"
#include "runtime/core/rng.h"
#include "runtime/data/permutation.h"

namespace r1::data {
namespace {

std::vector<int32_t> random_lengths(uint64_t seed, size_t n, int32_t longest) {
  const Rng rng(seed, "test:lengths");
  std::vector<int32_t> out(n);
  for (size_t i = 0; i < n; ++i)
    out[i] = 1 + static_cast<int32_t>(rng.below(i, static_cast<uint64_t>(longest)));
  return out;
}

std::vector<int32_t> gsm8k_lengths() {
  std::ifstream in(std::string(R1RUN_TEST_DATA) + "/sft/gsm8k_lengths.txt");
  std::vector<int32_t> out;
  for (int32_t n = 0; in >> n;) out.push_back(n);
  return out;
}

double fill(const std::vector<int32_t>& lengths, int64_t rows, int64_t seq_len) {
  return static_cast<double>(std::accumulate(lengths.begin(), lengths.end(), int64_t{0})) /
         static_cast<double>(rows * seq_len);
}

/// Best fit, longest first, as the textbook has it: every open row is looked at. Returns the rooms
/// left, sorted.
std::vector<int64_t> textbook_rooms(std::vector<int32_t> lengths, int64_t seq_len) {
  std::sort(lengths.rbegin(), lengths.rend());
  std::vector<int64_t> rooms;
  for (const int32_t n : lengths) {
    auto best = rooms.end();
    for (auto it = rooms.begin(); it != rooms.end(); ++it)
      if (*it >= n && (best == rooms.end() || *it < *best)) best = it;
    if (best == rooms.end())
      rooms.push_back(seq_len - n);
    else
      *best -= n;
  }
  std::sort(rooms.begin(), rooms.end());
  return rooms;
}

std::vector<int64_t> rooms_of(const PackedRows& packed, const std::vector<int32_t>& lengths,
                              int64_t seq_len) {
  std::vector<int64_t> rooms;
  std::vector<int> seen(lengths.size(), 0);
  for (int64_t r = 0; r < packed.rows(); ++r) {
    int64_t room = seq_len;
    EXPECT_LT(packed.begin[r], packed.begin[r + 1]) << "empty row " << r;
    for (uint32_t i = packed.begin[r]; i < packed.begin[r + 1]; ++i) {
      room -= lengths[packed.slots[i]];
      ++seen[packed.slots[i]];
    }
    EXPECT_GE(room, 0) << "row " << r;
    rooms.push_back(room);
  }
  EXPECT_TRUE(std::all_of(seen.begin(), seen.end(), [](int n) { return n == 1; }))
      << "a slot is missing or twice";
  return rooms;
}

TEST(Permutation, IsABijectionOfEverySize) {
  for (const uint64_t n :
       {1u, 2u, 3u, 5u, 31u, 32u, 33u, 63u, 64u, 65u, 100u, 1000u, 4096u, 4097u}) {
    const Permutation p(7, "test", 1, 2, n);
    std::vector<bool> hit(n, false);
    for (uint64_t i = 0; i < n; ++i) {
      ASSERT_LT(p(i), n);
      EXPECT_FALSE(hit[p(i)]) << n << " " << i;
      hit[p(i)] = true;
    }
  }
}

TEST(Permutation, EveryPlaceIsEquallyLikely) {
  // Chi-squared over (index -> place) counts; 99.99 % quantiles of the distribution.
  for (const uint64_t n : {4u, 40u}) {
    constexpr int kTrials = 8000;
    std::vector<int> count(n * n, 0);
    for (uint64_t t = 0; t < kTrials; ++t) {
      const Permutation p(t, "test", 0, 0, n);
      for (uint64_t i = 0; i < n; ++i) ++count[i * n + p(i)];
    }
    const double expected = static_cast<double>(kTrials) / static_cast<double>(n);
    double chi = 0.0;
    for (const int c : count) chi += (c - expected) * (c - expected) / expected;
    const double freedom = static_cast<double>((n - 1) * (n - 1));
    EXPECT_LT(chi, freedom + 3.8 * std::sqrt(2.0 * freedom) + 8.0) << n;
  }
}

TEST(Packing, BestFitEqualsTheTextbook) {
  for (uint64_t seed = 0; seed < 30; ++seed) {
    const int32_t seq_len = seed % 3 == 0 ? 64 : seed % 3 == 1 ? 100 : 5000;
    const auto lengths =
        random_lengths(seed, 200 + seed * 7, seed % 2 == 0 ? seq_len : seq_len / 3);
    auto rooms = rooms_of(pack_best_fit(lengths, seq_len), lengths, seq_len);
    std::sort(rooms.begin(), rooms.end());
    EXPECT_EQ(rooms, textbook_rooms(lengths, seq_len)) << "seed " << seed;
  }
}

TEST(Packing, NothingIsLostAtTheEdges) {
  EXPECT_EQ(pack_best_fit({}, 8).rows(), 0);
  const std::vector<int32_t> full(5, 8), ones(17, 1);
  EXPECT_EQ(pack_best_fit(full, 8).rows(), 5);
  EXPECT_EQ(pack_best_fit(ones, 8).rows(), 3);
  EXPECT_THROW((void)pack_best_fit(std::vector<int32_t>{9}, 8), InternalError);
  EXPECT_THROW((void)pack_best_fit(std::vector<int32_t>{0}, 8), InternalError);
}

TEST(Packing, Gsm8kIsNearlyFull) {
  const auto lengths = gsm8k_lengths();
  ASSERT_EQ(lengths.size(), 7473u);
  for (const int64_t seq_len : {1024, 2048, 4096}) {
    EXPECT_GE(fill(lengths, pack_best_fit(lengths, seq_len).rows(), seq_len), 0.985) << seq_len;
    EXPECT_GE(fill(lengths, pack_in_order(lengths, seq_len, 16).rows(), seq_len), 0.97) << seq_len;
  }
}

TEST(Packing, InOrderKeepsTheOrderUpToItsWindow) {
  const auto lengths = random_lengths(3, 2000, 400);
  for (const size_t window : {1u, 4u, 64u}) {
    const PackedRows packed = pack_in_order(lengths, 1000, window);
    (void)rooms_of(packed, lengths, 1000);
    for (int64_t r = 0; r < packed.rows(); ++r) {
      for (uint32_t i = packed.begin[r] + 1; i < packed.begin[r + 1]; ++i)
        EXPECT_LT(packed.slots[i - 1], packed.slots[i]);
      if (r > 0) {
        EXPECT_LT(packed.slots[packed.begin[r - 1]], packed.slots[packed.begin[r]]);
      }
    }
  }
  // A window of one is the plain cut: rows hold consecutive slots.
  const PackedRows plain = pack_in_order(lengths, 1000, 1);
  for (size_t i = 0; i < plain.slots.size(); ++i) EXPECT_EQ(plain.slots[i], i);
}

std::vector<std::vector<uint32_t>> epoch_rows(const RowPlan& plan, int64_t epoch) {
  std::vector<std::vector<uint32_t>> rows;
  for (int64_t r = 0; r < plan.rows(); ++r) rows.push_back(plan.samples(epoch * plan.rows() + r));
  return rows;
}

std::map<uint32_t, int> counts(const std::vector<std::vector<uint32_t>>& rows) {
  std::map<uint32_t, int> out;
  for (const auto& row : rows)
    for (const uint32_t s : row) ++out[s];
  return out;
}

TEST(RowPlan, EverySampleOnceAnEpochWhateverTheSettings) {
  const auto lengths = random_lengths(1, 500, 100);
  const std::vector<PlanSource> sources = {{1.0, 0, 200}, {1.0, 200, 300}};
  for (const bool pack : {true, false})
    for (const bool shuffle : {true, false}) {
      const RowPlan plan(lengths, sources,
                         {.seq_len = 128, .pack = pack, .shuffle = shuffle, .seed = 5});
      for (const int64_t epoch : {0, 1, 7}) {
        const auto rows = epoch_rows(plan, epoch);
        const auto seen = counts(rows);
        EXPECT_EQ(seen.size(), 500u);
        for (const auto& [sample, n] : seen) EXPECT_EQ(n, 1) << sample;
        for (const auto& row : rows) {
          int64_t sum = 0;
          for (const uint32_t s : row) sum += lengths[s];
          EXPECT_LE(sum, 128);
          if (!pack) {
            EXPECT_EQ(row.size(), 1u);
          }
        }
      }
    }
}

TEST(RowPlan, EpochsAreFormedAnew) {
  const auto lengths = random_lengths(2, 2000, 60);
  const std::vector<PlanSource> sources = {{1.0, 0, 2000}};
  const RowPlan plan(lengths, sources, {.seq_len = 256, .pack = true, .shuffle = true, .seed = 9});
  const auto first = epoch_rows(plan, 0), second = epoch_rows(plan, 1);
  int same_place = 0;
  std::set<std::set<uint32_t>> groups;
  for (const auto& row : first) groups.insert({row.begin(), row.end()});
  int same_group = 0;
  for (size_t r = 0; r < first.size(); ++r) {
    same_place += first[r] == second[r];
    same_group += static_cast<int>(groups.count({second[r].begin(), second[r].end()}));
  }
  EXPECT_LE(same_place, 3);
  EXPECT_LE(same_group, static_cast<int>(first.size()) / 10)
      << "rows are regrouped, not only reordered";
  // Another seed, another order; the same seed, the same.
  const RowPlan other(lengths, sources,
                      {.seq_len = 256, .pack = true, .shuffle = true, .seed = 10});
  EXPECT_NE(epoch_rows(other, 0), first);
  const RowPlan again(lengths, sources, {.seq_len = 256, .pack = true, .shuffle = true, .seed = 9});
  EXPECT_EQ(epoch_rows(again, 0), first);
}

TEST(RowPlan, FileOrderWithoutShuffleAndPack) {
  const auto lengths = random_lengths(2, 50, 60);
  const RowPlan plan(lengths, std::vector<PlanSource>{{1.0, 0, 50}},
                     {.seq_len = 64, .pack = false, .shuffle = false, .seed = 1});
  ASSERT_EQ(plan.rows(), 50);
  for (int64_t i = 0; i < 150; ++i)
    EXPECT_EQ(plan.samples(i), std::vector<uint32_t>{static_cast<uint32_t>(i % 50)});
}

TEST(RowPlan, WeightsHoldInEveryEpochAndCoverEverySample) {
  const auto lengths = random_lengths(4, 900, 100);
  for (const bool pack : {true, false}) {
    const std::vector<PlanSource> sources = {{2.0, 0, 300}, {0.25, 300, 400}, {1.5, 700, 200}};
    const RowPlan plan(lengths, sources,
                       {.seq_len = 128, .pack = pack, .shuffle = true, .seed = 3});
    std::map<uint32_t, int> all;
    constexpr int kEpochs = 12;
    for (int64_t epoch = 0; epoch < kEpochs; ++epoch) {
      std::array<int, 3> n{};
      for (const auto& [sample, count] : counts(epoch_rows(plan, epoch))) {
        n[sample < 300 ? 0 : sample < 700 ? 1 : 2] += count;
        all[sample] += count;
        if (sample < 300) {
          EXPECT_EQ(count, 2);
        }
      }
      EXPECT_EQ(n[0], 600);
      EXPECT_NEAR(n[1], 100, 1);
      EXPECT_NEAR(n[2], 300, 1);
    }
    EXPECT_EQ(all.size(), 900u) << "every sample of a source with a fraction comes in time";
    for (const auto& [sample, count] : all)
      if (sample >= 300 && sample < 700) {
        EXPECT_LE(count, 7) << sample;
      }
  }
}

TEST(RowPlan, DroppedSamplesAreNowhere) {
  auto lengths = random_lengths(6, 100, 50);
  for (size_t i = 0; i < lengths.size(); i += 3) lengths[i] = 0;
  for (const bool shuffle : {true, false}) {
    const RowPlan plan(lengths, std::vector<PlanSource>{{1.0, 0, 100}},
                       {.seq_len = 64, .pack = true, .shuffle = shuffle, .seed = 1});
    const auto seen = counts(epoch_rows(plan, 0));
    EXPECT_EQ(seen.size(), 66u);
    for (const auto& [sample, n] : seen) EXPECT_NE(sample % 3, 0u);
  }
}

}  // namespace
}  // namespace r1::data
