// Training jobs for batch systems: a Slurm script (`r1run sbatch`) and a Kubernetes MPIJob
// (`r1run mpijob`). The texts are pure functions of the options.
#pragma once

#include <string>
#include <vector>

#include "launch/hostfile.h"
#include "runtime/core/options.h"

namespace r1::launch {

/// How the ranks of a job are spread over nodes of equal size.
struct NodeRequest {
  int ranks = 1, nodes = 1, per_node = 1;
  std::vector<std::string> node_names;  ///< from --hostfile or --host; empty: any
  std::string topology;                 ///< what the hostfile's annotations say of all of them, as --topology takes it
  std::vector<std::string> warnings;    ///< for people
};
/// From --nodes, --gpus-per-node, --hostfile and --host. Throws UsageError when they contradict
/// each other or the mesh.
[[nodiscard]] NodeRequest node_request(const JobConfig& config);

/// A complete script for sbatch. The job resumes by itself: saved 75 (time limit, preemption
/// notice, fault) puts it back into the queue under the same job id, until three times in a row no
/// new checkpoint was made. `r1run`: full path of the program on the nodes. Throws UsageError.
[[nodiscard]] std::string slurm_script(const JobConfig& config, const NodeRequest& request,
                                       const std::string& r1run);

/// A kubeflow.org/v2beta1 MPIJob as YAML: one launcher that runs `r1run train`, one worker a node.
/// Throws UsageError without --image.
[[nodiscard]] std::string mpijob_manifest(const JobConfig& config, const NodeRequest& request);

/// `r1run sbatch`: writes the script to --write or standard output, and with --submit hands it to
/// sbatch. Returns the exit code. Throws UsageError, StorageError.
[[nodiscard]] int run_sbatch(const JobConfig& config);
/// `r1run mpijob`.
[[nodiscard]] int run_mpijob(const JobConfig& config);

}  // namespace r1::launch
