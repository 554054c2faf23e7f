#include "launch/launch_job.h"

#include <fmt/format.h>
#include <hwloc.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <optional>
#include <utility>

#include "launch/control.h"
#include "launch/placement.h"
#include "launch/plan.h"
#include "launch/process.h"
#include "launch/restart.h"
#include "launch/shim.h"
#include "launch/supervise.h"
#include "launch/topology/live.h"
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
    throw UnavailableError(
        "{} needs {} ranks but there is no {} in $PATH: install Open MPI (Debian: openmpi-bin), or "
        "run "
        "a single rank (--pp 1 --dp 1 --tp 1)",
        mesh_of(request).str(), request.world(), name);
  return *path;
}

/// Whether a Slurm allocation has every CPU of its nodes, as far as their maps say.
bool has_whole_nodes(const Cluster& cluster, const Topology& topology, const Environment& env) {
  const auto given = env.get("SLURM_JOB_CPUS_PER_NODE");
  if (!given) return false;
  const std::vector<int> cpus = expand_counts(*given, "SLURM_JOB_CPUS_PER_NODE");
  for (size_t h = 0; h < cluster.hosts.size(); ++h) {
    const HostTopology* t = topology.find(cluster.hosts[h].name);
    if (t == nullptr || h >= cpus.size()) return false;
    int there = 0;
    for (const NumaNode& n : t->numa_nodes) there += n.cpus.count();
    if (there == 0 || cpus[h] < there) return false;
  }
  return true;
}

/// Puts ranks where the topologies of the hosts say they belong; without any, the launcher's order
/// stands.
void place_ranks(const Request& request, const Destination& destination, const Environment& env,
                 Command* command) {
  const bool slurm = destination.kind == Destination::Kind::kSrun;
  if (!request.config.rankfile.empty()) {
    if (slurm) throw UsageError("--rankfile is mpirun's: in a Slurm allocation give --hostfile or --host too, or --topology instead");
    use_rankfile(command, read_rankfile(request.config.rankfile), request.config.rankfile, destination.cluster,
                 annotated_topology(destination.cluster, Catalogue::built_in(), request.config.topology), request.world());
    return;
  }
  const Cluster cluster =
      slurm ? slurm_ranks(destination.cluster, request.world()) : destination.cluster;
  const Topology topology =
      annotated_topology(cluster, Catalogue::built_in(), request.config.topology);
  if (!placeable(cluster, topology)) return;
  const Placement placement =
      place(cluster, topology, mesh_of(request), planned_traffic(request.config));
  for (const Topology::Member& m : topology.hosts)
    for (const std::string& w : m.host->warnings) {
      const std::string text = fmt::format("topology of {}: {}", m.name, w);
      if (w.starts_with("sources disagree") &&
          std::ranges::find(command->warnings, text) == command->warnings.end())
        command->warnings.push_back(text);
    }
  if (slurm)
    use_srun_placement(command, placement, cluster, has_whole_nodes(cluster, topology, env));
  else
    use_placement(command, placement, cluster, topology);
}

/// What is known of this machine: --topology, else what it says itself where it has GPUs to choose from. GPUs that the user or a
/// scheduler has chosen (CUDA_VISIBLE_DEVICES) are not chosen again.
Topology topology_here(const Request& request, const Cluster& here, const Environment& env) {
  if (!request.config.topology.empty()) return annotated_topology(here, Catalogue::built_in(), request.config.topology);
  if (request.config.device == "cpu" || env.has("CUDA_VISIBLE_DEVICES")) return {};
  auto host = std::make_shared<HostTopology>(live_topology());
  if (host->gpus.empty()) return {};
  return {.hosts = {{.name = here.hosts.front().name, .host = std::move(host)}}, .fabric = {}};
}

Command placed_here(const Request& request, Command command, const Environment& env) {
  const Cluster here{.hosts = {{.name = host_name(), .slots = request.world(), .slots_given = true}}, .source = "this machine"};
  const Topology topology = topology_here(request, here, env);
  if (placeable(here, topology))
    use_local_placement(&command, place(here, topology, mesh_of(request), planned_traffic(request.config)), here);
  return command;
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
      return placed_here(request, local_mpirun(program_for("mpirun", request, env), program, local_machine(), keepalive), env);
    case Destination::Kind::kMpirun: {
      Command command = cluster_mpirun(program_for("mpirun", request, env), program,
                                       destination.cluster, mesh_of(request), keepalive,
                                       geteuid() == 0, exported_variables(env.names()));
      place_ranks(request, destination, env, &command);
      return command;
    }
    case Destination::Kind::kSrun: {
      Command command = slurm_srun(program_for("srun", request, env), program, destination.cluster,
                                   mesh_of(request), srun_variables(env.names()));
      place_ranks(request, destination, env, &command);
      return command;
    }
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

/// A file without a name that lives as long as this process: the launcher reads it at its start.
class UnnamedFile {
 public:
  explicit UnnamedFile(const std::string& text) : fd_(memfd_create("r1run", MFD_CLOEXEC)) {
    if (fd_ < 0 || ::write(fd_, text.data(), text.size()) != static_cast<ssize_t>(text.size()))
      throw StorageError("a file for the launcher cannot be made: {}", std::strerror(errno));
  }
  UnnamedFile(const UnnamedFile&) = delete;
  UnnamedFile& operator=(const UnnamedFile&) = delete;
  ~UnnamedFile() { ::close(fd_); }
  [[nodiscard]] std::string path() const { return fmt::format("/proc/{}/fd/{}", getpid(), fd_); }

 private:
  int fd_;
};

void name_file(Command* command, const std::string& path) {
  std::ranges::replace(command->argv, std::string(kFileInArguments), path);
  for (auto& [name, value] : command->environment)
    if (value == kFileInArguments) value = path;
}

JobOutcome supervise_command(const Request& request, Command command,
                             const Destination& destination) {
  std::optional<UnnamedFile> file;
  if (!command.file.empty()) {
    file.emplace(command.file);
    name_file(&command, file->path());
  }
  SuperviseOptions options;
  options.hosts = std::max(1, static_cast<int>(destination.cluster.hosts.size()));
  if (destination.kind == Destination::Kind::kSrun) {
    options.start_failure = ExitCode::kTemporary;
    options.tells_ranks_to_end = true;
  }
  options.peer_timeout_s = request.config.peer_timeout;
  options.saves_on_request = request.config.command == "train";
  options.forward_stdin = request.config.command == "generate" || isatty(STDIN_FILENO) == 0;
  return supervise(command, options);
}

/// "R1RUN_CONTROL_PORT, R1RUN_CONTROL_TOKEN": variables in a command whose values exist only once it is started from here.
std::string handed_on(const Command& command) {
  std::string names;
  for (const char* name : {kControlAddressVariable, kControlPortVariable, kControlTokenVariable})
    for (const std::string& word : command.argv)
      if (word == name || word.find(std::string(",") + name) != std::string::npos) {
        names += (names.empty() ? "" : ", ") + std::string(name);
        break;
      }
  return names;
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

Cluster given_hosts(const JobConfig& config) {
  if (config.hostfile.empty()) return parse_host_list(config.host, "--host");
  Cluster hosts = read_hostfile(config.hostfile);
  return config.host.empty() ? hosts : filtered(hosts, config.host);
}

Destination choose_destination(const JobConfig& config, const Whereabouts& where,
                               const Environment& env) {
  using Kind = Destination::Kind;
  if (!config.hostfile.empty() || !config.host.empty()) return {Kind::kMpirun, given_hosts(config)};
  if (!config.rankfile.empty() && where.situation != Situation::kSlurmAllocation)
    return {Kind::kMpirun, rankfile_cluster(read_rankfile(config.rankfile), config.rankfile)};
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
    Command command =
        alone ? Command{.argv = single_rank(request), .environment = {}, .warnings = {}}
              : command_for(request, destination, env);
    warn(command);
    std::printf("%s", command.placement.c_str());
    if (!command.file.empty()) {
      // As lines that can be run as they are.
      std::printf("cat > r1run.hosts <<'END'\n%sEND\n", command.file.c_str());
      name_file(&command, "r1run.hosts");
    }
    for (const auto& [name, value] : command.environment)
      if (name == kPlacementVariable || name == "SLURM_HOSTFILE")
        std::printf("%s\n", shell_line({"export", fmt::format("{}={}", name, value)}).c_str());
    if (const std::string names = handed_on(command); !names.empty())
      std::printf("# a variable named without a value is passed on; r1run makes those of %s when it starts this command itself\n", names.c_str());
    std::printf("%s\n", shell_line(command.argv).c_str());
    return 0;
  }
  if (request.config.max_restarts > 0) {
    Announce once = announce;
    return run_with_restarts(request, destination, [&](const Request& r, const Destination& d) {
      return run_once(r, d, env, std::exchange(once, Announce::kNo));
    });
  }
  // Training has something to save when it is asked to end: it is supervised like a job of many ranks.
  if (alone && (request.config.command != "train" || env.has(kSupervisedVariable))) return run_shim(shim_options(env, Whereabouts{}, request.for_ranks));
  return run_once(request, destination, env, announce).code;
}

}  // namespace r1::launch
