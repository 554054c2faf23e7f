// Which backend carries each process group of a planned job, as the ranks will choose it. Pure.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "parallel/mesh/mesh.h"
#include "runtime/core/comm_route.h"

namespace r1::launch {

/// Groups of one kind that are carried alike: "tp", "pp", "dp", "replica" (pp x tp), "ends" (tied embeddings).
struct PlannedGroup {
  std::string kind;
  int count = 0;               ///< groups
  std::vector<int> ranks;      ///< of the first one
  int hosts = 1;               ///< it spans
  int most_ranks_a_gpu = 0;    ///< of the group; 0: on CPUs
  CommRoute route;
};

/// Where a world rank is: index of its host; and of its GPU on that host, -1 for CPU ranks.
struct RankSpot {
  int host = 0, gpu = -1;
};

/// Groups of more than one rank, kinds in the order above. Throws UsageError where the choice (--comm) cannot carry one.
[[nodiscard]] std::vector<PlannedGroup> planned_groups(const parallel::MeshShape& mesh, bool tied_embeddings, CommChoice choice,
                                                       const std::function<RankSpot(int)>& spot);

}  // namespace r1::launch
