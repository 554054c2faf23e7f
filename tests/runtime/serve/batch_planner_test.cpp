// The batch planner as plain data: every token computed once and in order, blocks never shared, nothing starves.
#include "runtime/serve/batch_planner.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <map>
#include <set>

#include "runtime/core/error.h"
#include "runtime/core/rng.h"

namespace r1::serve {
namespace {

TEST(BlockManager, HandsOutEachBlockOnce) {
  BlockManager m(5);
  std::vector<int32_t> a, b;
  EXPECT_TRUE(m.grow(a, 3));
  EXPECT_TRUE(m.grow(a, 2)) << "has them already";
  EXPECT_FALSE(m.grow(b, 3));
  EXPECT_TRUE(b.empty()) << "nothing changes when too few are free";
  EXPECT_TRUE(m.grow(b, 2));
  std::set<int32_t> all(a.begin(), a.end());
  all.insert(b.begin(), b.end());
  EXPECT_EQ(all.size(), 5u);
  EXPECT_EQ(m.free_blocks(), 0);
  std::vector<int32_t> twice = a;
  m.release(a);
  EXPECT_EQ(m.free_blocks(), 3);
  EXPECT_THROW(m.release(twice), InternalError);
}

struct Job {
  int64_t prompt, longest;
};

/// What was computed of a sequence after its last start, and all its pieces.
struct Trace {
  std::vector<Piece> pieces;
  int64_t known = 0;
  int preempted = 0;
};

/// Runs jobs to the end with `depth` passes under way, checking what must hold after each step.
std::map<int64_t, Trace> simulate(const PlannerLimits& limits, const std::vector<Job>& jobs) {
  BatchPlanner planner(limits);
  std::map<int64_t, Trace> traces;
  std::map<int64_t, int64_t> longest, computed;
  for (const Job& j : jobs) {
    const int64_t id = planner.add(j.prompt, j.longest);
    traces[id].known = j.prompt;
    longest[id] = j.longest;
  }
  std::deque<Pass> under_way;
  int64_t steps = 0;
  while (!planner.idle() && ++steps < 100000) {
    const Pass pass = planner.next();
    if (pass.empty() && under_way.empty()) {
      ADD_FAILURE() << "stuck with " << planner.running() << " running";
      break;
    }
    EXPECT_LE(pass.tokens(), limits.pass_tokens);
    EXPECT_LE(planner.running(), limits.sequences);
    std::set<int64_t> in_pass;
    std::map<int32_t, int64_t> owner;
    for (const Piece& p : pass.pieces) {
      Trace& t = traces[p.sequence];
      EXPECT_TRUE(in_pass.insert(p.sequence).second) << "two pieces of one sequence";
      for (const Pass& other : under_way)
        for (const Piece& q : other.pieces)
          EXPECT_FALSE(q.sequence == p.sequence && q.sample) << "the token to compute is not known yet";
      if (p.begin == 0 && computed[p.sequence] > 0) ++t.preempted, computed[p.sequence] = 0;
      EXPECT_EQ(p.begin, computed[p.sequence]);
      EXPECT_GT(p.count, 0);
      computed[p.sequence] += p.count;
      EXPECT_LE(computed[p.sequence], t.known);
      EXPECT_EQ(p.sample, computed[p.sequence] == t.known);
      t.pieces.push_back(p);
      const auto& blocks = planner.blocks(p.sequence);
      EXPECT_GE(static_cast<int64_t>(blocks.size()) * limits.block_size, computed[p.sequence]);
      for (const int32_t b : blocks)
        EXPECT_TRUE(owner.emplace(b, p.sequence).second) << "block " << b << " has two owners";
    }
    if (!pass.empty()) under_way.push_back(pass);
    if (pass.empty() || static_cast<int>(under_way.size()) >= limits.depth) {
      const Pass done = under_way.front();
      under_way.pop_front();
      planner.commit(done);
      for (const Piece& p : done.pieces)
        if (p.sample && ++traces[p.sequence].known > longest[p.sequence]) planner.finish(p.sequence);
    }
  }
  EXPECT_TRUE(planner.idle());
  EXPECT_EQ(planner.free_blocks(), limits.blocks) << "all blocks came back";
  for (const auto& [id, t] : traces) EXPECT_EQ(t.known, longest[id] + 1);
  return traces;
}

std::vector<Job> random_jobs(uint64_t seed, int64_t count, int64_t most_prompt, int64_t most_new) {
  const Rng rng(seed, "jobs");
  std::vector<Job> jobs;
  for (uint64_t i = 0; i < static_cast<uint64_t>(count); ++i) {
    const auto prompt = static_cast<int64_t>(1 + rng.below(2 * i, static_cast<uint64_t>(most_prompt)));
    jobs.push_back({prompt, prompt + static_cast<int64_t>(rng.below(2 * i + 1, static_cast<uint64_t>(most_new)))});
  }
  return jobs;
}

TEST(BatchPlanner, ComputesEverythingOnceAndInOrder) {
  for (const bool exact : {true, false})
    for (const int depth : {1, 2, 5})
      for (const int64_t blocks : {20, 33, 1000})
        for (uint64_t seed = 1; seed <= 6; ++seed) {
          SCOPED_TRACE(testing::Message()
                       << "exact " << exact << " depth " << depth << " blocks " << blocks << " seed " << seed);
          simulate({.sequences = 6,
                    .pass_tokens = 32,
                    .prefill_chunk = 16,
                    .block_size = 4,
                    .blocks = blocks,
                    .depth = depth,
                    .exact = exact,
                    .exact_rows = 4},
                   random_jobs(seed, 25, 40, 40));
        }
}

TEST(BatchPlanner, PreemptsWhenTheCacheIsFullAndStartsOver) {
  // Each takes 12 of 20 blocks in the end: two cannot both finish without one giving way.
  const PlannerLimits limits{
      .sequences = 8, .pass_tokens = 32, .prefill_chunk = 32, .block_size = 4, .blocks = 20, .depth = 1};
  const auto traces = simulate(limits, std::vector<Job>(4, Job{4, 48}));
  int preempted = 0;
  for (const auto& [id, t] : traces) preempted += t.preempted;
  EXPECT_GT(preempted, 0);
  EXPECT_EQ(traces.at(0).preempted, 0) << "the oldest never gives way";
}

TEST(BatchPlanner, ExactPiecesDoNotDependOnTheOthers) {
  // Which tokens of a prompt are computed together decides the bits: alone or in a crowd it must be the same cut.
  const PlannerLimits limits{.sequences = 6,
                             .pass_tokens = 64,
                             .prefill_chunk = 16,
                             .block_size = 4,
                             .blocks = 60,
                             .depth = 2,
                             .exact_rows = 4};
  const std::vector<Job> jobs = random_jobs(3, 20, 70, 30);
  const auto crowd = simulate(limits, jobs);
  for (size_t i = 0; i < jobs.size(); ++i) {
    const auto alone = simulate(limits, {jobs[i]});
    std::map<int64_t, int64_t> cut_alone, cut_crowd;  // begin -> count, of the prompt
    for (const Piece& p : alone.at(0).pieces)
      if (p.begin < jobs[i].prompt) cut_alone[p.begin] = p.count;
    for (const Piece& p : crowd.at(static_cast<int64_t>(i)).pieces) {
      if (p.begin < jobs[i].prompt)
        cut_crowd[p.begin] = p.count;
      else
        EXPECT_LE(p.count, limits.exact_rows);
    }
    EXPECT_EQ(cut_alone, cut_crowd) << "sequence " << i;
  }
}

TEST(BatchPlanner, FillsThePipeline) {
  // Four stages and eight sequences that decode: passes of two, four under way.
  BatchPlanner planner(
      {.sequences = 8, .pass_tokens = 64, .prefill_chunk = 64, .block_size = 4, .blocks = 100, .depth = 4});
  for (int i = 0; i < 8; ++i) static_cast<void>(planner.add(1, 20));
  std::set<int64_t> seen;
  for (int i = 0; i < 4; ++i) {
    const Pass p = planner.next();
    EXPECT_EQ(p.pieces.size(), 2u);
    for (const Piece& piece : p.pieces) seen.insert(piece.sequence);
  }
  EXPECT_EQ(seen.size(), 8u);
  EXPECT_TRUE(planner.next().empty());
  // A long prompt alone: its pieces follow each other through the stages.
  BatchPlanner alone({.sequences = 8,
                      .pass_tokens = 32,
                      .prefill_chunk = 16,
                      .block_size = 4,
                      .blocks = 100,
                      .depth = 4,
                      .exact_rows = 4});
  static_cast<void>(alone.add(60, 70));
  for (const int64_t count : {16, 16, 16, 12}) EXPECT_EQ(alone.next().tokens(), count);
  EXPECT_TRUE(alone.next().empty());
}

TEST(BatchPlanner, RefusesWhatNeverFits) {
  BatchPlanner planner({.sequences = 2, .pass_tokens = 64, .prefill_chunk = 64, .block_size = 4, .blocks = 3});
  EXPECT_THROW(static_cast<void>(planner.add(4, 13)), InternalError);
  EXPECT_EQ(planner.add(4, 12), 0);
}

}  // namespace
}  // namespace r1::serve
