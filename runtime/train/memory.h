// Whether a job fits the memory its ranks found: the check before anything is allocated, the policies of --recompute auto,
// and what was planned against what was used at the end. The arithmetic is parallel/cost, as in `r1run plan`.
#pragma once

#include <vector>

#include "parallel/cost/fit.h"
#include "runtime/train/context.h"
#include "runtime/train/engine.h"

namespace r1::train {

/// Memory that ranks share, as they found it: a host's for CPU ranks, or a GPU's free memory, less what processes take beside
/// their plans. The same list on every rank. Collective over the world.
[[nodiscard]] std::vector<parallel::MemoryDomain> memory_domains(const RankContext& ctx, const Device& device, const EngineOptions& options);

/// The job as the plan sees it.
[[nodiscard]] parallel::JobShape job_shape(const JobConfig& cfg, const EngineOptions& options);

/// Sets options->stage_recompute for --recompute auto: for each stage the cheapest policy with which all ranks fit. Leaves
/// `full` everywhere when none fits; check_memory then refuses. Collective over the world.
void choose_recompute(const RankContext& ctx, const parallel::ModelConfig& config, EngineOptions* options);

/// Refuses when the ranks of a host (or GPU) together do not fit into its memory, naming the cheapest changes that would and
/// their price in step time. Collective over the world. Throws MemoryError.
void check_memory(const RankContext& ctx, const parallel::ModelConfig& config, const EngineOptions& options);

/// What one rank planned and used, bytes.
struct RankMemory {
  int64_t planned = 0, allocated = 0, peak_rss = 0;
  int64_t late_allocations = 0;  ///< device allocations after the first step; 0 on the CPU
};
/// Of every rank, in order. Collective over the world.
[[nodiscard]] std::vector<RankMemory> gather_memory(const RankContext& ctx, Engine& engine, int64_t late_allocations);

}  // namespace r1::train
