#include "launch/batch.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>

#include "launch/command.h"
#include "launch/launch_job.h"
#include "launch/process.h"
#include "launch/restart.h"
#include "launch/topology/cluster_topology.h"
#include "launch/topology/text.h"
#include "runtime/core/error.h"

namespace r1::launch {
namespace {

constexpr int kUsualGpusPerNode = 8;

Cluster named_hosts(const JobConfig& config) {
  return config.hostfile.empty() && config.host.empty() ? Cluster{} : given_hosts(config);
}

/// The job has no hostfile: the maps that its hosts' annotations name go with it as --topology, which says one thing of all hosts.
void carry_topology(const Cluster& cluster, NodeRequest* r) {
  std::set<std::string> maps, fabrics;
  for (int i = 0; i < r->nodes; ++i)
    for (const auto& [name, value] : cluster.hosts[static_cast<size_t>(i)].annotations) {
      if (name != "topology" && name != "fabric") continue;
      std::vector<std::string> files;
      for (const std::string_view file : fields_of(value, ','))
        files.push_back(std::filesystem::absolute(beside_hostfile(cluster, file)).lexically_normal().string());
      (name == "topology" ? maps : fabrics).insert(fmt::format("{}", fmt::join(files, ",")));
    }
  if (maps.size() > 1) {
    r->warnings.push_back(fmt::format("{}: its hosts have {} different topologies, and the job has no hostfile: its ranks are placed in Slurm's "
                                      "order (one map of all hosts, made by `r1run probe --hostfile F --json MAP`, would go as --topology MAP)",
                                      cluster.source, maps.size()));
    return;
  }
  maps.merge(fabrics);
  r->topology = fmt::format("{}", fmt::join(maps, ","));
}

/// Takes the first hosts that hold the ranks; all must offer the same number of slots.
void from_hosts(const Cluster& cluster, NodeRequest* r) {
  r->warnings = cluster.warnings;
  r->per_node = cluster.hosts.front().slots;
  for (const Host& h : cluster.hosts)
    if (h.slots != r->per_node)
      throw UsageError(
          "{}: host \"{}\" has {} slots and the first host {}: a batch job asks for nodes of "
          "equal "
          "size",
          place_of(cluster, h), h.name, h.slots, r->per_node);
  r->nodes = (r->ranks + r->per_node - 1) / r->per_node;
  if (r->nodes > static_cast<int>(cluster.hosts.size()))
    throw UsageError("the layout needs {} ranks but {} offers {} slots", r->ranks, cluster.source,
                     cluster.total_slots());
  for (int i = 0; i < r->nodes; ++i)
    r->node_names.push_back(cluster.hosts[static_cast<size_t>(i)].name);
  carry_topology(cluster, r);
}

bool wants_gpus(const JobConfig& config) { return config.device != "cpu"; }

std::string single_quoted(const std::string& word) { return shell_line({word}); }

/// What `r1run train` gets, without those that the script decides itself.
std::vector<std::string> train_flags(const JobConfig& config) {
  std::vector<std::string> out;
  for (std::string& flag : given_flags(config, "train")) {
    const std::string name = flag.substr(0, flag.find('='));
    if (name != "--output" && name != "--resume" && name != "--hostfile" && name != "--host")
      out.push_back(std::move(flag));
  }
  return out;
}

std::string layout_text(const JobConfig& c, const NodeRequest& r) {
  return fmt::format("pp {} x dp {} x tp {}: {} rank{} on {} node{}, {} a node", c.pp, c.dp, c.tp,
                     r.ranks, r.ranks == 1 ? "" : "s", r.nodes, r.nodes == 1 ? "" : "s",
                     std::min(r.per_node, r.ranks));
}

constexpr std::string_view kScriptIntroduction = R"sh(#
# What happens when something comes between:
#   time limit      {save_before} s before it Slurm sends USR1 to this script, which hands it on; the job saves at the next
#                   step boundary and goes back into the queue under the same id.
#   a fault         (exit code 75: a rank, a node or a link was lost) back into the queue, from the newest checkpoint.
#                   After 3 in a row without a new checkpoint the script gives up.
#   preemption      the notice (USR1 or TERM) makes the job save; Slurm itself puts it back into the queue.
#   scancel         ends it; the newest checkpoint stays.
# Anything else (a mistake in the options, bad data, divergence) ends the job with its exit code.
#
)sh";

constexpr std::string_view kScriptEnd = R"sh(
newest_checkpoint() { # prints the highest step with a complete checkpoint, or -1
  local best=-1 manifest step
  for manifest in "$output"/step-*/r1run/manifest.json; do
    [ -e "$manifest" ] || continue
    step=${manifest%/r1run/manifest.json}
    step=$((10#${step##*/step-}))
    [ "$step" -gt "$best" ] && best=$step
  done
  echo "$best"
}

[ -x "$r1run" ] || { echo "r1run sbatch: $r1run is not there on $(hostname)" >&2; exit 64; }
echo "r1run sbatch: job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, start $((${SLURM_RESTART_COUNT:-0} + 1)), newest checkpoint: step $(newest_checkpoint)"

# In the background, so that this shell can hear signals while it waits.
ended_by_slurm=0
"$r1run" train "${arguments[@]}" --output="$output" "${resume[@]}" &
job=$!
trap 'kill -USR1 "$job" 2>/dev/null' USR1
trap 'ended_by_slurm=1; kill -TERM "$job" 2>/dev/null' TERM
while kill -0 "$job" 2>/dev/null; do # a signal interrupts the wait, not the job
  wait "$job"
done
wait "$job" # bash remembers
code=$?
[ "$code" -gt 125 ] && code=75 # r1run itself was killed

if [ "$code" = 75 ] && [ "$ended_by_slurm" = 0 ]; then
  # The count of fruitless starts lies beside the checkpoints, where the next start finds it.
  state=$output/requeue.state
  seen=-1 fruitless=0
  [ -r "$state" ] && read -r seen fruitless <"$state"
  now=$(newest_checkpoint)
  [ "$now" -gt "$seen" ] && fruitless=0
  if [ "$fruitless" -ge 3 ]; then
    echo "r1run sbatch: giving up: 3 starts without a new checkpoint (newest: step $now)" >&2
    rm -f "$state"
    exit 75
  fi
  mkdir -p "$output" && echo "$now $((fruitless + 1))" >"$state"
  echo "r1run sbatch: back into the queue, newest checkpoint: step $now"
  scontrol requeue "$SLURM_JOB_ID" && sleep 60 # Slurm ends this script meanwhile
fi
[ "$code" = 0 ] && rm -f "$output/requeue.state"
exit "$code"
)sh";

std::string replaced(std::string_view text, std::string_view what, const std::string& with) {
  std::string out(text);
  for (size_t at = out.find(what); at != std::string::npos; at = out.find(what, at + with.size()))
    out.replace(at, what.size(), with);
  return out;
}

std::string sbatch_lines(const JobConfig& c, const NodeRequest& r) {
  std::string out;
  const auto line = [&](const std::string& option, const std::string& why = "") {
    out += fmt::format("{:<48}{}\n", "#SBATCH " + option, why.empty() ? "" : "# " + why);
    while (out.size() > 1 && out[out.size() - 2] == ' ') out.erase(out.size() - 2, 1);
  };
  line("--job-name=" + c.job_name);
  line(fmt::format("--nodes={}", r.nodes));
  if (!r.node_names.empty()) {
    std::string names;
    for (const auto& n : r.node_names) names += (names.empty() ? "" : ",") + n;
    line("--nodelist=" + names);
  }
  line(fmt::format("--ntasks={}", r.ranks));
  line(fmt::format("--ntasks-per-node={}", std::min(r.per_node, r.ranks)), "one task a rank");
  if (wants_gpus(c))
    line(fmt::format("--gpus-per-node={}", std::min(r.per_node, r.ranks)),
         "all visible to every rank of the node: peers need to see each other");
  if (c.threads > 0) line(fmt::format("--cpus-per-task={}", c.threads), "--threads");
  if (!c.time_limit.empty()) line("--time=" + c.time_limit);
  if (!c.partition.empty()) line("--partition=" + c.partition);
  if (!c.account.empty()) line("--account=" + c.account);
  if (!c.qos.empty()) line("--qos=" + c.qos);
  line(fmt::format("--signal=B:USR1@{:.0f}", c.save_before), "seconds before the time limit");
  line("--requeue", "allowed to go back into the queue");
  line("--open-mode=append", "one log over all starts");
  line("--output=%x-%j.log");
  for (const auto& option : c.sbatch_option)
    line(option.starts_with("-") ? option : "--" + option, "--sbatch-option");
  return out;
}

std::string yaml_quoted(const std::string& text) {
  std::string out = "\"";
  for (const char ch : text) {
    if (ch == '"' || ch == '\\') out += '\\';
    if (static_cast<unsigned char>(ch) < 0x20) {
      out += fmt::format("\\x{:02x}", static_cast<unsigned char>(ch));
    } else {
      out += ch;
    }
  }
  return out + "\"";
}

/// Mounts of the --volume options and shared memory for the container at `indent`, and the volumes
/// of its pod.
std::string yaml_mounts(const JobConfig& c, const std::string& indent) {
  std::string out = indent + "volumeMounts:\n" + indent + "- name: shared-memory\n" + indent +
                    "  mountPath: /dev/shm\n";
  for (size_t i = 0; i < c.volume.size(); ++i)
    out += fmt::format("{0}- name: volume-{1}\n{0}  mountPath: {2}\n", indent, i,
                       yaml_quoted(c.volume[i].substr(c.volume[i].find(':') + 1)));
  return out;
}

std::string yaml_volumes(const JobConfig& c, const std::string& indent) {
  // The default of a container is 64 MiB; Open MPI and NCCL keep their buffers there.
  std::string out = indent + "volumes:\n" + indent + "- name: shared-memory\n" + indent +
                    "  emptyDir:\n" + indent + "    medium: Memory\n";
  for (size_t i = 0; i < c.volume.size(); ++i)
    out +=
        fmt::format("{0}- name: volume-{1}\n{0}  persistentVolumeClaim:\n{0}    claimName: {2}\n",
                    indent, i, c.volume[i].substr(0, c.volume[i].find(':')));
  return out;
}

void write_text(const std::string& path, const std::string& text) {
  if (path.empty()) {
    std::fwrite(text.data(), 1, text.size(), stdout);
    return;
  }
  std::ofstream out(path, std::ios::binary);
  if (!(out << text).flush()) throw StorageError("--write {}: {}", path, std::strerror(errno));
}

void say_warnings(const NodeRequest& r) {
  for (const auto& w : r.warnings) std::fprintf(stderr, "r1run: warning: %s\n", w.c_str());
}

/// Runs sbatch on the script, which it reads from standard input. Returns its exit code.
int submit(const std::string& script) {
  const auto sbatch = find_in_path("sbatch", std::getenv("PATH") == nullptr
                                                 ? std::nullopt
                                                 : std::optional<std::string>(std::getenv("PATH")));
  if (!sbatch)
    throw UnavailableError(
        "--submit: there is no sbatch in $PATH: run this on a login node of the cluster, or write "
        "the script with --write FILE and submit it there with `sbatch FILE`; on Debian the package "
        "slurm-client has it");
  int fds[2];
  if (pipe2(fds, O_CLOEXEC) != 0) throw InternalError("pipe: {}", std::strerror(errno));
  Fd in(fds[0]), out(fds[1]);
  SpawnOptions options;
  options.stdin_fd = in.get();
  const pid_t child = spawn({*sbatch}, options);
  in.reset();
  std::string_view left = script;
  while (!left.empty()) {
    const ssize_t n = write(out.get(), left.data(), left.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;  // its exit code says why
    left.remove_prefix(static_cast<size_t>(n));
  }
  out.reset();
  int status = 0;
  while (waitpid(child, &status, 0) < 0)
    if (errno != EINTR) throw InternalError("waitpid: {}", std::strerror(errno));
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return 0;
  throw UsageError("sbatch refused the script (its message is above)");
}

}  // namespace

NodeRequest node_request(const JobConfig& config) {
  NodeRequest r;
  r.ranks = config.pp * config.dp * config.tp;
  const Cluster cluster = named_hosts(config);
  if (!cluster.hosts.empty()) {
    if (config.nodes > 0 || config.gpus_per_node > 0)
      throw UsageError(
          "--nodes and --gpus-per-node do not go with --hostfile or --host: {} says both",
          cluster.source);
    from_hosts(cluster, &r);
    return r;
  }
  r.nodes = config.nodes;
  r.per_node = config.gpus_per_node;
  if (r.nodes == 0 && r.per_node == 0) {
    r.per_node = std::min(r.ranks, kUsualGpusPerNode);
    if (r.ranks > kUsualGpusPerNode)
      r.warnings.push_back(
          fmt::format("nodes of {} GPUs are assumed: say --gpus-per-node or --nodes when they have "
                      "another number",
                      kUsualGpusPerNode));
  }
  if (r.per_node == 0) r.per_node = (r.ranks + r.nodes - 1) / r.nodes;
  if (r.nodes == 0) r.nodes = (r.ranks + r.per_node - 1) / r.per_node;
  if (r.nodes > r.ranks)
    throw UsageError("--nodes {}: the layout has {} ranks only", r.nodes, r.ranks);
  if (r.nodes * r.per_node < r.ranks)
    throw UsageError("the layout needs {} ranks but --nodes {} of --gpus-per-node {} hold {}",
                     r.ranks, r.nodes, r.per_node, r.nodes * r.per_node);
  if (r.ranks % r.nodes != 0)
    r.warnings.push_back(fmt::format(
        "{} ranks on {} nodes: the last node gets fewer than the others", r.ranks, r.nodes));
  if (std::min(r.per_node, r.ranks) % config.tp != 0 && config.tp > 1 && r.nodes > 1)
    r.warnings.push_back(
        fmt::format("--tp {} does not divide the {} ranks of a node: tensor-parallel groups cross "
                    "nodes, and each layer waits for the network",
                    config.tp, r.per_node));
  return r;
}

std::string slurm_script(const JobConfig& c, const NodeRequest& r, const std::string& r1run) {
  std::string out = fmt::format(
      "#!/bin/bash\n# Slurm job written by r1run {}; submit it with: sbatch FILE\n# {}.\n",
      R1RUN_VERSION, layout_text(c, r));
  out += replaced(kScriptIntroduction, "{save_before}", fmt::format("{:.0f}", c.save_before));
  out += sbatch_lines(c, r);
  out += "set -u\n";
  if (!c.setup.empty()) out += "\n# --setup\n";
  for (const auto& line : c.setup) out += line + "\n";
  out += "\nr1run=" + single_quoted(r1run) + "\n";
  out += c.is_set("output") ? "output=" + single_quoted(c.output) + "\n"
                            : "output=" + single_quoted(c.output) + "-$SLURM_JOB_ID\n";
  out += "arguments=( # of r1run train\n";
  for (const auto& flag : train_flags(c)) out += "  " + single_quoted(flag) + "\n";
  if (c.topology.empty() && !r.topology.empty()) out += fmt::format("  {}\n", single_quoted("--topology=" + r.topology));
  out += ")\nresume=(--resume=auto)\n";
  std::string_view end = kScriptEnd;
  if (!c.resume.empty() && c.resume != "auto") {
    // Only until the job has a checkpoint of its own.
    const size_t at = end.find("\n[ -x ");
    out += end.substr(0, at);
    out += "\n[ \"$(newest_checkpoint)\" = -1 ] && resume=(--resume=" + single_quoted(c.resume) +
           ")\n";
    end.remove_prefix(at);
  }
  out += end;
  return out;
}

std::string mpijob_manifest(const JobConfig& c, const NodeRequest& r) {
  if (c.image.empty())
    throw UsageError(
        "mpijob needs --image: a container image that holds r1run, Open MPI and an sshd, such as "
        "one "
        "built from mpioperator/base");
  const int per_node = std::min(r.per_node, r.ranks);
  std::string out = fmt::format(
      "# Kubernetes job written by r1run {}; start it with: kubectl apply -f FILE\n# {}.\n",
      R1RUN_VERSION, layout_text(c, r));
  out +=
      "# Needs the MPI operator (https://github.com/kubeflow/mpi-operator) of the v2beta1 API.\n";
  out += "apiVersion: kubeflow.org/v2beta1\nkind: MPIJob\nmetadata:\n";
  out += fmt::format("  name: {}\n", c.job_name);
  if (!c.kube_namespace.empty()) out += fmt::format("  namespace: {}\n", c.kube_namespace);
  out += fmt::format("spec:\n  slotsPerWorker: {}  # ranks of a worker pod\n", per_node);
  out += "  mpiImplementation: OpenMPI\n";
  out +=
      "  launcherCreationPolicy: WaitForWorkersReady  # mpirun would fail on pods that are not "
      "there yet\n";
  out += "  runPolicy:\n    cleanPodPolicy: Running\n";
  out +=
      "    backoffLimit: 10  # starts after a fault (exit code 75); each goes on from the newest "
      "checkpoint\n";
  out += "  sshAuthMountPath: /root/.ssh\n";
  out += "  mpiReplicaSpecs:\n    Launcher:\n      replicas: 1\n      restartPolicy: OnFailure\n";
  out += "      template:\n        spec:\n          containers:\n          - name: launcher\n";
  out += fmt::format("            image: {}\n", yaml_quoted(c.image));
  out +=
      "            env:\n            - name: OMPI_ALLOW_RUN_AS_ROOT  # the user of the pod is "
      "root\n              value: \"1\"\n";
  out += "            - name: OMPI_ALLOW_RUN_AS_ROOT_CONFIRM\n              value: \"1\"\n";
  out += "            command:\n            - r1run\n            - train\n            args:\n";
  for (const auto& flag : train_flags(c)) out += "            - " + yaml_quoted(flag) + "\n";
  out += "            - " + yaml_quoted("--output=" + c.output) + "\n";
  out +=
      "            - " + yaml_quoted("--resume=" + (c.resume.empty() ? "auto" : c.resume)) + "\n";
  out += yaml_mounts(c, "            ") + yaml_volumes(c, "          ");
  out += fmt::format("    Worker:\n      replicas: {}\n      restartPolicy: Never\n", r.nodes);
  out += "      template:\n        spec:\n          containers:\n          - name: worker\n";
  out += fmt::format("            image: {}\n", yaml_quoted(c.image));
  out +=
      "            command:\n            - /usr/sbin/sshd\n            args:\n            - -De\n";
  if (wants_gpus(c) || c.threads > 0) {
    out += "            resources:\n              limits:\n";
    if (wants_gpus(c)) out += fmt::format("                nvidia.com/gpu: {}\n", per_node);
    if (c.threads > 0) out += fmt::format("                cpu: {}\n", per_node * c.threads);
  }
  out += yaml_mounts(c, "            ") + yaml_volumes(c, "          ");
  return out;
}

int run_sbatch(const JobConfig& config) {
  const NodeRequest request = node_request(config);
  const std::string script = slurm_script(config, request, executable_dir() + "/r1run");
  say_warnings(request);
  if (!config.submit || !config.write.empty()) write_text(config.write, script);
  return config.submit ? submit(script) : 0;
}

int run_mpijob(const JobConfig& config) {
  const NodeRequest request = node_request(config);
  const std::string manifest = mpijob_manifest(config, request);
  say_warnings(request);
  if (!config.is_set("output"))
    std::fprintf(
        stderr,
        "r1run: warning: --output %s lies in the pod and goes with it: name a directory on a "
        "--volume\n",
        config.output.c_str());
  write_text(config.write, manifest);
  return 0;
}

}  // namespace r1::launch
