// Which rank runs where: (Cluster, Topology, mesh, bytes of a step) → for each world rank its host, GPU, cores, NICs and
// environment. Pure.
//
// The search minimises seconds of communication per step: the slowest tensor-parallel group, plus the slowest edge between
// stages, plus the slowest data-parallel ring, each from bytes and the bandwidth of the slowest link it uses. Among equal
// ones the smaller mean decides. The launcher's own order (hosts filled one after the other) is always a candidate, so the
// result is never worse than it; few ranks are searched exhaustively.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "launch/cpu_set.h"
#include "launch/hostfile.h"
#include "launch/topology.h"
#include "parallel/cost/step_time.h"
#include "parallel/mesh/mesh.h"

namespace r1::launch {

/// Where one rank runs.
struct RankPlace {
  int host = 0;           ///< index into Cluster::hosts
  int local_rank = 0;     ///< among the ranks of its host, in order of world rank: what mpirun and srun call it, too
  int gpu = -1;           ///< index into HostTopology::gpus; -1: a CPU rank, or GPUs are unknown
  std::string gpu_uuid;   ///< "GPU-…", "MIG-…"; "" unknown
  int numa = -1;          ///< index into HostTopology::numa_nodes; -1: unknown
  int numa_os = -1;       ///< the same node as numactl numbers it; -1: unknown
  CpuSet cpus;            ///< logical CPUs of its own; empty: unknown, not to be bound
  std::vector<std::string> nics;  ///< nearest first, "mlx5_0:1"; empty: none near, or unknown
  /// That makes the libraries follow, and the rank's parent bind it (kCpusVariable).
  std::vector<std::pair<std::string, std::string>> environment;
};

struct PlacementCost {
  double tp = 0, pp = 0, dp = 0;  ///< seconds per step: slowest group, edge, ring
  double mean = 0;                ///< mean over groups, edges and rings: decides among equal ones
  [[nodiscard]] double seconds() const { return tp + pp + dp; }
};
/// Less time, or the same (within 1e-9) and a smaller mean.
[[nodiscard]] bool cheaper(const PlacementCost& a, const PlacementCost& b);

struct Placement {
  parallel::MeshShape mesh;
  std::vector<RankPlace> ranks;      ///< by world rank
  PlacementCost cost, default_cost;  ///< of this placement, and of the launcher's order
  bool default_order = true;         ///< ranks fill the hosts in order
  std::vector<std::string> warnings; ///< what is bad about it, for people, before the start
};

struct PlacementOptions {
  /// At most so many arrangements are all tried; more are searched by construction and exchange.
  int64_t exhaustive = 50'000;
};

/// Throws UsageError when the mesh has more ranks than the cluster has slots. `topology` may know fewer hosts than the
/// cluster, or none: what is unknown is not bound and costs what an ordinary machine of its kind would.
[[nodiscard]] Placement place(const Cluster& cluster, const Topology& topology, const parallel::MeshShape& mesh,
                              const parallel::StepTraffic& traffic, const PlacementOptions& options = {});

class PlannedCluster;
/// Hosts of a described machine ("host-0", ...) with so many slots each, and the topology that its description promises.
[[nodiscard]] Cluster planned_hosts(const PlannedCluster& machine, int slots);
[[nodiscard]] Topology planned_topology(const PlannedCluster& machine, const Cluster& hosts);
class Catalogue;
/// What is said about the hosts of a job: a hostfile's `topology=FILE` (beside the hostfile), else the files of --topology, else
/// `tier=NAME` of the catalogue (kind_only). Hosts without any of them are not in it. Throws UsageError, DataError.
[[nodiscard]] Topology annotated_topology(const Cluster& hosts, const Catalogue& catalogue, const std::string& files = "");
/// Whether a placement has anything to go by: a map of a host, a fabric, or racks.
[[nodiscard]] bool placeable(const Cluster& hosts, const Topology& topology);

/// Cost of a given assignment: slot of each world rank, slots numbered host by host in file order.
[[nodiscard]] PlacementCost placement_cost(const Cluster& cluster, const Topology& topology, const parallel::MeshShape& mesh,
                                           const parallel::StepTraffic& traffic, const std::vector<int>& slot_of_rank);

/// Open MPI rankfile: a host and logical cores for each rank; ranks without known cores get the whole host.
[[nodiscard]] std::string openmpi_rankfile(const Placement& placement, const Cluster& cluster, const Topology& topology);
/// One host name a rank, for SLURM_HOSTFILE with --distribution=arbitrary.
[[nodiscard]] std::string slurm_hostfile(const Placement& placement, const Cluster& cluster);

/// The CPUs a rank gets ("0-15,128-143"), in its environment: its parent binds it to them whatever the launcher did. (Open MPI 4.1
/// says nothing where a rankfile names cores that do not exist, and a map without cores cannot be a rankfile.)
inline constexpr const char* kCpusVariable = "R1RUN_CPUS";
/// What the ranks' parents need to set, as one variable (kPlacementVariable): tables by local rank, equal hosts sharing one.
///     *|0,gpu=..;NAME=value;...|1,...   or   host-a+host-b|...
inline constexpr const char* kPlacementVariable = "R1RUN_PLACEMENT";
[[nodiscard]] std::string placement_table(const Placement& placement, const Cluster& cluster);
/// The variables of one rank from such a table; empty when the table does not speak of it. Throws UsageError on a table
/// that is none.
[[nodiscard]] std::vector<std::pair<std::string, std::string>> placement_environment(std::string_view table, std::string_view host,
                                                                                     int local_rank);

}  // namespace r1::launch
