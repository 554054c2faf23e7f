#include "launch/launch_job.h"

#include <hwloc.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>

#include "launch/process.h"
#include "launch/restart.h"
#include "launch/shim.h"
#include "launch/supervise.h"
#include "parallel/mesh/mesh.h"
#include "runtime/core/error.h"

namespace r1::launch {
namespace {

std::vector<std::string> single_rank(const Request& request) {
  std::vector<std::string> argv{sibling_program("r1run-rank")};
  argv.insert(argv.end(), request.for_ranks.begin(), request.for_ranks.end());
  return argv;
}

parallel::MeshShape mesh_of(const Request& request) {
  return {.pp = request.config.pp, .dp = request.config.dp, .tp = request.config.tp};
}

std::string program_for(const std::string& name, const Request& request, const Environment& env) {
  const auto path = find_in_path(name, env.get("PATH"));
  if (!path)
    throw UsageError(
        "{} needs {} ranks but there is no {} in $PATH: install Open MPI (Debian: openmpi-bin), or "
        "run "
        "a single rank (--pp 1 --dp 1 --tp 1)",
        mesh_of(request).str(), request.world(), name);
  return *path;
}

Command command_for(const Request& request, const Destination& destination,
                    const Environment& env) {
  const RankProgram program{.path = executable_dir() + "/r1run",
                            .arguments = request.for_ranks,
                            .ranks = request.world(),
                            .threads = request.config.threads};
  const Keepalive keepalive = keepalive_for(request.config.peer_timeout);
  switch (destination.kind) {
    case Destination::Kind::kThisMachine:
      return local_mpirun(program_for("mpirun", request, env), program, local_machine(), keepalive);
    case Destination::Kind::kMpirun:
      return cluster_mpirun(program_for("mpirun", request, env), program, destination.cluster,
                            mesh_of(request), keepalive, geteuid() == 0,
                            exported_variables(env.names()));
    case Destination::Kind::kSrun:
      return slurm_srun(program_for("srun", request, env), program, destination.cluster,
                        mesh_of(request));
  }
  throw InternalError("destination {}", static_cast<int>(destination.kind));
}

/// One rank on this machine needs no MPI launcher; its parent still has the last word when it dies.
bool is_alone(const Request& request, const Destination& destination) {
  return destination.kind == Destination::Kind::kThisMachine && request.world() == 1;
}

void warn(const Command& command) {
  for (const auto& w : command.warnings) std::fprintf(stderr, "r1run: warning: %s\n", w.c_str());
}

JobOutcome supervise_command(const Request& request, const Command& command,
                             const Destination& destination) {
  SuperviseOptions options;
  options.hosts = std::max(1, static_cast<int>(destination.cluster.hosts.size()));
  if (destination.kind == Destination::Kind::kSrun) options.start_failure = ExitCode::kTemporary;
  options.peer_timeout_s = request.config.peer_timeout;
  options.saves_on_request = request.config.command == "train";
  options.forward_stdin = request.config.command == "generate" || isatty(STDIN_FILENO) == 0;
  return supervise(command, options);
}

JobOutcome run_once(const Request& request, const Destination& destination, const Environment& env,
                    Announce announce) {
  Command command;
  if (is_alone(request, destination)) {
    // A process of its own as the parent of the rank, so that a fault comes back as a record.
    command.argv = {executable_dir() + "/r1run"};
    command.argv.insert(command.argv.end(), request.for_ranks.begin(), request.for_ranks.end());
    command.environment.emplace_back(kSupervisedVariable, "1");
  } else {
    command = command_for(request, destination, env);
  }
  if (announce == Announce::kYes) warn(command);
  return supervise_command(request, command, destination);
}

}  // namespace

LocalMachine local_machine() {
  LocalMachine m;
  m.root = geteuid() == 0;
  hwloc_topology_t topology = nullptr;
  R1_CHECK(hwloc_topology_init(&topology) == 0 && hwloc_topology_load(topology) == 0, "hwloc");
  m.cores = hwloc_get_nbobjs_by_type(topology, HWLOC_OBJ_CORE);
  if (m.cores <= 0)
    m.cores = hwloc_get_nbobjs_by_type(topology, HWLOC_OBJ_PU);  // some virtual machines hide cores
  if (m.cores <= 0) m.cores = 1;
  hwloc_topology_destroy(topology);
  return m;
}

Destination choose_destination(const JobConfig& config, const Whereabouts& where,
                               const Environment& env) {
  using Kind = Destination::Kind;
  if (!config.hostfile.empty()) return {Kind::kMpirun, read_hostfile(config.hostfile)};
  if (!config.host.empty()) return {Kind::kMpirun, parse_host_list(config.host, "--host")};
  switch (where.situation) {
    case Situation::kSlurmAllocation: {
      const auto nodes =
          env.get("SLURM_JOB_NODELIST") ? env.get("SLURM_JOB_NODELIST") : env.get("SLURM_NODELIST");
      if (!nodes)
        throw UsageError(
            "SLURM_JOB_ID is set but SLURM_JOB_NODELIST is not: not a usable Slurm allocation");
      return {Kind::kSrun, slurm_cluster(*nodes, env.get("SLURM_TASKS_PER_NODE").value_or(""))};
    }
    case Situation::kPbsAllocation:
      return {Kind::kMpirun, read_hostfile(*env.get("PBS_NODEFILE"), NodefileKind::kPbs)};
    case Situation::kDefaultHostfile:
      return {
          Kind::kMpirun,
          read_hostfile(env.get("OMPI_MCA_orte_default_hostfile").value_or("/etc/mpi/hostfile"))};
    default:
      return {Kind::kThisMachine, {}};
  }
}

int launch(const Request& request, const Destination& destination, const Environment& env,
           Announce announce) {
  const bool alone = is_alone(request, destination);
  if (request.config.dry_run) {
    const Command command =
        alone ? Command{.argv = single_rank(request), .environment = {}, .warnings = {}}
              : command_for(request, destination, env);
    warn(command);
    std::printf("%s\n", shell_line(command.argv).c_str());
    return 0;
  }
  if (request.config.max_restarts > 0) {
    Announce once = announce;
    return run_with_restarts(request, destination, [&](const Request& r, const Destination& d) {
      return run_once(r, d, env, std::exchange(once, Announce::kNo));
    });
  }
  if (alone) return run_shim(shim_options(env, Whereabouts{}, request.for_ranks));
  return run_once(request, destination, env, announce).code;
}

}  // namespace r1::launch
