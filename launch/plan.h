// `r1run plan`: what a job will take, on paper. No GPU, no MPI: a job's options and a machine (described, imported or this
// one) become one PlanReport, which is printed as text, JSON or a web page.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "launch/catalogue.h"
#include "launch/comm_groups.h"
#include "launch/placement.h"
#include "parallel/cost/fit.h"
#include "parallel/cost/search.h"
#include "runtime/core/options.h"

namespace r1::launch {

/// One rank of the mesh; dp replicas of it are equal.
struct PlannedRank {
  parallel::MeshCoord coord;
  parallel::RankPlan plan;
  std::vector<parallel::MemoryItem> memory;
  std::vector<parallel::MemoryItem> host;  ///< pinned on its host
  parallel::LocalShape shard;
  int64_t parameters = 0;
};

struct PlanReport {
  std::string model_name;
  parallel::ModelConfig model;
  PlannedCluster cluster;
  parallel::Candidate chosen;
  bool searched = false;
  std::vector<parallel::Candidate> ranking;  ///< of the search, best first; empty when nothing was searched
  parallel::Schedule schedule;
  parallel::Simulation simulation;           ///< with the step's seconds
  std::vector<parallel::StageSpec> stages;
  std::vector<PlannedRank> ranks;            ///< (pp, tp), tp innermost
  int64_t capacity_bytes = 0;                ///< of a device, for all its ranks
  int64_t host_capacity_bytes = 0;           ///< of a host, that its ranks may pin (--offload); 0 on CPUs
  std::vector<parallel::MemoryItem> beside;  ///< what a rank takes beside the plan's tensors; not in capacity_bytes
  std::vector<PlannedGroup> groups;          ///< which backend carries each process group, as placed
  int ranks_per_device = 1;
  std::vector<parallel::Remedy> remedies;    ///< when it does not fit
  std::vector<std::string> warnings, assumptions;
  std::optional<double> usd_per_hour, usd_per_million_tokens;
  std::string flags;                         ///< the layout as options of r1run train
  Cluster hosts;                             ///< with the slots that the layout uses
  Placement placement;

  [[nodiscard]] bool fits() const { return chosen.fits; }
  /// The sentence of a refusal: what is needed, what there is, and the cheapest changes.
  [[nodiscard]] std::string refusal() const;
};

/// The model of --model: a directory with config.json, a config.json, a known name, or the built-in model when it is not
/// given. Throws UsageError, DataError.
[[nodiscard]] parallel::ModelConfig planned_model(const std::string& model, std::string* name);

/// Plans one job on one machine. `hosts` and `topology` are known where a hostfile and its topologies are; otherwise they
/// follow from the machine's description. Throws UsageError.
[[nodiscard]] PlanReport make_plan(const JobConfig& config, const std::string& model_name, const parallel::ModelConfig& model,
                                   const PlannedCluster& cluster, const Cluster* hosts = nullptr, const Topology* topology = nullptr);

/// The layout as options.
[[nodiscard]] std::string layout_flags(const parallel::JobShape& job);
/// "2 groups of 4 ranks [0,1,2,3] and so on, on one host: nccl, small collectives and messages ipc".
[[nodiscard]] std::string group_text(const PlannedGroup& group);
[[nodiscard]] std::string plan_text(const PlanReport& report);
[[nodiscard]] std::string plan_json(const PlanReport& report);
/// One self-contained page.
[[nodiscard]] std::string plan_html(const PlanReport& report);
/// Several machines side by side.
[[nodiscard]] std::string comparison_text(const std::vector<PlanReport>& reports);
[[nodiscard]] std::string comparison_json(const std::vector<PlanReport>& reports);
[[nodiscard]] std::string comparison_html(const std::vector<PlanReport>& reports);

/// The subcommand: prints the plan, writes --json and --html. Returns the exit code: 69 when it does not fit.
[[nodiscard]] int run_plan(const JobConfig& config);

/// Bytes of a step of a job that is about to start, for placing it; where the model cannot be read, those of a model of a
/// few billion parameters: proportions are what counts.
[[nodiscard]] parallel::StepTraffic planned_traffic(const JobConfig& config);

}  // namespace r1::launch
