#include "launch/command.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "launch/control.h"
#include "launch/shim.h"
#include "runtime/core/error.h"

namespace r1::launch {
namespace {

void add_mca(std::vector<std::string>& argv, const std::string& name, const std::string& value) {
  argv.insert(argv.end(), {"--mca", name, value});
}

void add_common(Command* c, const Keepalive& keepalive, bool root) {
  if (root) {
    c->argv.emplace_back("--allow-run-as-root");
    c->warnings.emplace_back(
        "running as root: a fault in any rank then has root's rights; a user of its own is safer");
  }
  add_mca(c->argv, "mpi_yield_when_idle", "1");
  add_mca(c->argv, "oob_tcp_keepalive_time", std::to_string(keepalive.time_s));
  add_mca(c->argv, "oob_tcp_keepalive_intvl", std::to_string(keepalive.interval_s));
  add_mca(c->argv, "oob_tcp_keepalive_probes", std::to_string(keepalive.probes));
  c->argv.insert(c->argv.end(), {"-x", fmt::format("{}=1", kSupervisedVariable)});
}

void add_program(Command* c, const RankProgram& program) {
  c->argv.push_back(program.path);
  c->argv.insert(c->argv.end(), program.arguments.begin(), program.arguments.end());
}

/// Factorisations of a number of ranks that the user may have meant.
std::string layouts_for(int ranks, int per_host) {
  std::string text;
  int shown = 0;
  for (const auto& m : parallel::factorisations(ranks, per_host)) {
    if (++shown > 4) break;
    text += fmt::format("{}--pp {} --dp {} --tp {}", shown > 1 ? ", " : "", m.pp, m.dp, m.tp);
  }
  return text;
}

void check_fit(const Cluster& cluster, const parallel::MeshShape& mesh) {
  if (mesh.world() <= cluster.total_slots()) return;
  throw UsageError("{} needs {} ranks but {} offers {} slots on {} host{}. Layouts of {} ranks: {}",
                   mesh.str(), mesh.world(), cluster.source, cluster.total_slots(),
                   cluster.hosts.size(), cluster.hosts.size() == 1 ? "" : "s",
                   cluster.total_slots(), layouts_for(cluster.total_slots(), cluster.widest()));
}

}  // namespace

Keepalive keepalive_for(double peer_timeout_s) {
  Keepalive k;
  // Two probes one second apart after the idle time; the idle time takes what is left of the
  // time-out.
  k.probes = peer_timeout_s >= 4 ? 2 : 1;
  k.interval_s = std::max(1, static_cast<int>(peer_timeout_s / 5));
  k.time_s = std::max(1, static_cast<int>(std::floor(peer_timeout_s)) - k.probes * k.interval_s);
  return k;
}

Command local_mpirun(const std::string& mpirun, const RankProgram& program,
                     const LocalMachine& machine, const Keepalive& keepalive) {
  Command c;
  // -q: the launcher's closing paragraphs would bury the one line that names the cause; the exit
  // code stays.
  c.argv = {mpirun, "-q", "-np", std::to_string(program.ranks)};
  if (program.ranks > machine.cores) {
    add_mca(c.argv, "rmaps_base_oversubscribe", "1");
    c.warnings.push_back(
        fmt::format("{} ranks share {} core{}: fine for trying things out, slow for training",
                    program.ranks, machine.cores, machine.cores == 1 ? "" : "s"));
  }
  // Open MPI binds each of at most two ranks to one core, and more to a socket: a rank's threads
  // would share that core.
  const int cores_each = machine.cores / std::max(1, program.ranks);
  if (cores_each >= 1 && program.threads <= cores_each) {
    const int pe = program.threads > 0 ? program.threads : cores_each;
    c.argv.insert(c.argv.end(), {"--map-by", fmt::format("slot:PE={}", pe), "--bind-to", "core"});
  } else {
    c.argv.insert(c.argv.end(), {"--bind-to", "none"});
  }
  add_common(&c, keepalive, machine.root);
  add_program(&c, program);
  return c;
}

std::vector<std::string> exported_variables(const std::vector<std::string>& names) {
  static constexpr const char* kPrefixes[] = {"NCCL_", "NVSHMEM_", "TORCH_", "UCX_", "CUDA_", "OMP_",
                                              "GOMP_", "OPENBLAS_", "MKL_",  "R1RUN_"};
  static constexpr const char* kNames[] = {"LD_LIBRARY_PATH", "TZ", "LANG", "LC_ALL", "HF_HOME"};
  static constexpr const char* kSecret[] = {"TOKEN", "SECRET", "PASS", "KEY", "CREDENTIAL", "AUTH"};
  std::vector<std::string> out;
  for (const auto& n : names) {
    const bool wanted =
        std::any_of(std::begin(kPrefixes), std::end(kPrefixes),
                    [&](const char* p) { return n.starts_with(p); }) ||
        std::any_of(std::begin(kNames), std::end(kNames), [&](const char* p) { return n == p; });
    const bool secret = std::any_of(std::begin(kSecret), std::end(kSecret),
                                    [&](const char* p) { return n.find(p) != std::string::npos; });
    if (wanted && !secret && n != kSupervisedVariable && n != kRankStatusFdVariable)
      out.push_back(n);
  }
  return out;
}

std::vector<int> block_fill(const Cluster& cluster, int ranks) {
  std::vector<int> host_of;
  host_of.reserve(static_cast<size_t>(ranks));
  for (size_t h = 0; h < cluster.hosts.size(); ++h)
    for (int s = 0; s < cluster.hosts[h].slots && static_cast<int>(host_of.size()) < ranks; ++s)
      host_of.push_back(static_cast<int>(h));
  return host_of;
}

std::vector<std::string> layout_warnings(const Cluster& cluster, const parallel::MeshShape& mesh) {
  const std::vector<int> host_of = block_fill(cluster, mesh.world());
  std::vector<std::string> out;
  int crossing = 0, first = -1;
  for (int group = 0; group + mesh.tp <= static_cast<int>(host_of.size()); group += mesh.tp)
    if (host_of[static_cast<size_t>(group)] != host_of[static_cast<size_t>(group + mesh.tp - 1)]) {
      ++crossing;
      if (first < 0) first = group;
    }
  if (crossing > 0) {
    const auto name = [&](int rank) {
      return cluster.hosts[static_cast<size_t>(host_of[static_cast<size_t>(rank)])].name;
    };
    out.push_back(
        fmt::format("{} of {} tensor-parallel groups cross hosts (ranks {}-{}: {} to {}): each "
                    "layer then waits for the network. Use "
                    "a --tp that divides the slots of every host, or hosts with equal slots",
                    crossing, mesh.pp * mesh.dp, first, first + mesh.tp - 1, name(first),
                    name(first + mesh.tp - 1)));
  }
  return out;
}

Command cluster_mpirun(const std::string& mpirun, const RankProgram& program,
                       const Cluster& cluster, const parallel::MeshShape& mesh,
                       const Keepalive& keepalive, bool root,
                       const std::vector<std::string>& exported) {
  check_fit(cluster, mesh);
  Command c;
  c.argv = {mpirun, "-q", "-np", std::to_string(program.ranks)};
  // Hosts and counts on the command line: no file of ours has to outlive anything.
  std::string hosts;
  bool ssh = false;
  for (const Host& h : cluster.hosts) {
    ssh = ssh || !h.user.empty() || h.port != 0;
    if (h.name.find(':') != std::string::npos)
      throw UsageError(
          "{}: \"{}\": Open MPI 4.1 cannot start hosts named by IPv6 address; use a host name",
          place_of(cluster, h), h.name);
    hosts += fmt::format("{}{}:{}", hosts.empty() ? "" : ",", h.name, h.slots);
  }
  // Users and ports have no place in --host.
  if (ssh) c.file = openmpi_hostfile(cluster);
  c.argv.insert(c.argv.end(), {ssh ? "--hostfile" : "--host", ssh ? kFileInArguments : hosts, "--map-by", "slot", "--bind-to", "none"});
  if (cluster.keep_fqdn) add_mca(c.argv, "orte_keep_fqdn_hostnames", "1");
  c.warnings = cluster.warnings;
  for (auto& w : layout_warnings(cluster, mesh)) c.warnings.push_back(std::move(w));
  add_common(&c, keepalive, root);
  // By name only: values in arguments could be read by everybody on the host.
  c.argv.insert(c.argv.end(), {"-x", kControlPortVariable, "-x", kControlTokenVariable});
  for (const auto& name : exported) c.argv.insert(c.argv.end(), {"-x", name});
  add_program(&c, program);
  return c;
}

namespace {

void add_warnings(Command* command, const Placement& placement) {
  for (const std::string& w : placement.warnings)
    if (w.find("group crosses") == std::string::npos) command->warnings.push_back(w);  // said already
}

/// Gives the launcher's environment the table for the ranks' parents. False: it would be empty.
bool add_table(Command* command, const Placement& placement, const Cluster& cluster) {
  command->placement = placement_lines(placement, cluster);
  if (std::ranges::all_of(placement.ranks, [](const RankPlace& r) { return r.environment.empty(); }))
    return false;
  command->environment.emplace_back(kPlacementVariable, placement_table(placement, cluster));
  return true;
}

/// Hexadecimal mask of CPUs, as --cpu-bind=mask_cpu takes it.
std::string mask_of(const CpuSet& cpus) {
  std::string digits;
  for (int low = 0; low <= cpus.ranges().back().second; low += 4) {
    int digit = 0;
    for (int bit = 0; bit < 4; ++bit) digit |= cpus.contains(low + bit) ? 1 << bit : 0;
    digits += "0123456789abcdef"[digit];
  }
  std::ranges::reverse(digits);
  return "0x" + digits;
}

/// Masks by local rank, where all hosts agree about them; empty otherwise: srun knows one list for
/// all nodes.
std::vector<std::string> common_masks(const Placement& placement) {
  std::vector<std::string> masks;
  for (const RankPlace& r : placement.ranks) {
    if (r.cpus.empty()) return {};
    const auto local = static_cast<size_t>(r.local_rank);
    if (masks.size() <= local) masks.resize(local + 1);
    const std::string mask = mask_of(r.cpus);
    if (!masks[local].empty() && masks[local] != mask) return {};
    masks[local] = mask;
  }
  return masks;
}

}  // namespace

void use_local_placement(Command* command, const Placement& placement, const Cluster& this_machine) {
  add_warnings(command, placement);
  if (add_table(command, placement, this_machine))
    command->argv.insert(command->argv.begin() + 1, {"-x", kPlacementVariable});
}

namespace {

/// What is wrong with the cores of one line, "" nothing.
std::string core_fault(const RankfileEntry& e, const HostTopology& t) {
  for (const RankfileEntry::Part& p : e.parts) {
    if (p.socket >= static_cast<int>(t.packages.size()))
      return fmt::format("socket {} of {}, which has {}", p.socket, e.host, t.packages.size());
    const auto cores = std::ranges::count_if(
        t.cores, [&](const Core& c) { return p.socket < 0 || c.package == p.socket; });
    for (const auto& [first, last] : p.cores)
      if (last >= cores)
        return fmt::format("core {}{} of {}, which has {} (0-{})", last,
                           p.socket < 0 ? "" : fmt::format(" of socket {}", p.socket), e.host, cores, cores - 1);
  }
  return "";
}

}  // namespace

void use_rankfile(Command* command, const std::vector<RankfileEntry>& entries, const std::string& source, const Cluster& cluster,
                  const Topology& topology, int ranks) {
  if (static_cast<int>(entries.size()) != ranks)
    throw UsageError("{} places {} ranks, the job has {}", source, entries.size(), ranks);
  std::map<std::string, int> used;
  std::vector<std::string> unknown;
  for (const RankfileEntry& e : entries) {
    const auto host = std::ranges::find(cluster.hosts, e.host, &Host::name);
    if (host == cluster.hosts.end()) throw UsageError("{}:{}: rank {}: {} has no host {}", source, e.line, e.rank, cluster.source, e.host);
    if (++used[e.host] > host->slots)
      throw UsageError("{}:{}: rank {}: {} gives {} {} slots, which are taken", source, e.line, e.rank, cluster.source, e.host, host->slots);
    const HostTopology* t = topology.find(e.host);
    if (t == nullptr || t->cores.empty()) {
      if (std::ranges::find(unknown, e.host) == unknown.end()) unknown.push_back(e.host);
    } else if (const std::string fault = core_fault(e, *t); !fault.empty()) {
      throw UsageError("{}:{}: rank {} is given {}; mpirun would say nothing and not bind it", source, e.line, e.rank, fault);
    }
  }
  if (!unknown.empty())
    command->warnings.push_back(fmt::format("{}: the cores of {}{} are not known, and mpirun says nothing where one does not exist: "
                                            "--topology (r1run probe --json) tells",
                                            source, unknown.front(), unknown.size() > 1 ? fmt::format(" and {} more", unknown.size() - 1) : ""));
  if (!command->file.empty())
    throw UsageError("{}: hosts with users or ports of their own do not go with --rankfile: put them into ~/.ssh/config", cluster.source);
  std::vector<std::string>& argv = command->argv;
  const auto at = std::ranges::find(argv, "--map-by");
  R1_CHECK(at != argv.end() && argv.end() - at >= 4, "no mapping to replace in {}", argv.front());
  command->file = rankfile_text(entries);
  argv.insert(argv.erase(at, at + 4), {"--rankfile", kFileInArguments});
}

std::string placement_lines(const Placement& placement, const Cluster& cluster) {
  std::string out;
  for (size_t i = 0; i < placement.ranks.size(); ++i) {
    const RankPlace& r = placement.ranks[i];
    out += fmt::format("# rank {} ({}): {}", i, parallel::coord_of(placement.mesh, static_cast<int>(i)).str(),
                       cluster.hosts[static_cast<size_t>(r.host)].name);
    if (r.gpu >= 0) out += fmt::format(", GPU {}{}", r.gpu, r.gpu_uuid.empty() ? "" : " " + r.gpu_uuid);
    if (r.numa_os >= 0) out += fmt::format(", NUMA node {}", r.numa_os);
    out += r.cpus.empty() ? ", not bound" : fmt::format(", CPUs {}", r.cpus.list());
    if (!r.nics.empty()) out += fmt::format(", adapters {}", fmt::join(r.nics, ","));
    out += '\n';
  }
  return out;
}

void use_placement(Command* command, const Placement& placement, const Cluster& cluster,
                   const Topology& topology) {
  std::vector<std::string>& argv = command->argv;
  const bool has_hostfile = !command->file.empty();
  if (has_hostfile && !placement.default_order) {
    command->warnings.push_back(cluster.source + ": hosts have users or ports of their own: ranks keep the launcher's order");
    return;
  }
  add_warnings(command, placement);
  if (add_table(command, placement, cluster)) argv.insert(argv.begin() + 1, {"-x", kPlacementVariable});
  if (has_hostfile) return;  // the ranks' parents bind
  // Open MPI counts the cores of a host; a map that only lists CPUs cannot be told to it.
  const bool bound = std::ranges::all_of(placement.ranks, [&](const RankPlace& r) {
    const HostTopology* t = topology.find(cluster.hosts[static_cast<size_t>(r.host)].name);
    return !r.cpus.empty() && t != nullptr && !t->cores.empty();
  });
  if (!bound && placement.default_order) return;
  const auto at = std::ranges::find(argv, "--map-by");
  R1_CHECK(at != argv.end() && argv.end() - at >= 4, "no mapping to replace in {}", argv.front());
  if (bound) {
    command->file = openmpi_rankfile(placement, cluster, topology);
    argv.insert(argv.erase(at, at + 4), {"--rankfile", kFileInArguments});
    return;
  }
  // Hosts one a line in rank order: mpirun's sequential mapper takes them as they come.
  for (const RankPlace& r : placement.ranks)
    command->file += cluster.hosts[static_cast<size_t>(r.host)].name + "\n";
  *(at + 1) = "seq";
  const auto hosts = std::ranges::find(argv, "--host");
  R1_CHECK(hosts != argv.end(), "no hosts in {}", argv.front());
  *hosts = "--hostfile";
  *(hosts + 1) = kFileInArguments;
}

Cluster slurm_ranks(const Cluster& allocation, int ranks) {
  // Slurm fills 8 tasks on 2 nodes as 7 + 1 unless it is told how many a node gets.
  const int nodes = static_cast<int>(allocation.hosts.size());
  const bool fits = ranks <= allocation.total_slots();
  const bool even = allocation.total_slots() == nodes * allocation.widest();
  const int per_node =
      fits && even ? std::min(ranks, allocation.widest()) : (ranks + nodes - 1) / nodes;
  Cluster out = allocation;
  out.hosts.resize(static_cast<size_t>((ranks + per_node - 1) / per_node));
  for (Host& h : out.hosts) h.slots = per_node;
  return out;
}

std::vector<std::string> srun_variables(const std::vector<std::string>& names) {
  static constexpr std::string_view kNames[] = {"PATH",   "HOME", "USER",     "LOGNAME",
                                                "SHELL",  "TMPDIR", "HOSTNAME", "XDG_RUNTIME_DIR"};
  static constexpr std::string_view kPrefixes[] = {"OMPI_", "PMIX_", "OPAL_", "PRTE_"};
  std::vector<std::string> out = exported_variables(names);
  for (const std::string& n : names)
    if (std::ranges::find(kNames, n) != std::end(kNames) ||
        std::ranges::any_of(kPrefixes, [&](std::string_view p) { return n.starts_with(p); }))
      out.push_back(n);
  return out;
}

Command slurm_srun(const std::string& srun, const RankProgram& program, const Cluster& allocation,
                   const parallel::MeshShape& mesh, const std::vector<std::string>& exported) {
  const int world = mesh.world();
  const Cluster placed = slurm_ranks(allocation, world);
  const int per_node = placed.hosts.front().slots;
  // By name, so that no value stands among arguments that everybody on the host can read; the one
  // value here is no secret.
  std::string names = fmt::format("{}=1", kSupervisedVariable);
  for (const char* own : {kControlAddressVariable, kControlPortVariable, kControlTokenVariable})
    names += fmt::format(",{}", own);
  for (const std::string& name : exported) names += "," + name;
  Command c;
  c.argv = {srun,
            "--mpi=pmix",
            "--kill-on-bad-exit=1",
            fmt::format("--nodes={}", placed.hosts.size()),
            fmt::format("--ntasks={}", world),
            fmt::format("--ntasks-per-node={}", per_node),
            "--distribution=block:block",
            "--export=" + names};
  if (program.threads > 0) c.argv.push_back(fmt::format("--cpus-per-task={}", program.threads));
  if (world > allocation.total_slots())
    c.warnings.push_back(
        fmt::format("{} ranks in an allocation of {} task{}: asking srun for {} a node", world,
                    allocation.total_slots(), allocation.total_slots() == 1 ? "" : "s", per_node));
  for (auto& w : layout_warnings(placed, mesh)) c.warnings.push_back(std::move(w));
  add_program(&c, program);
  return c;
}

void use_srun_placement(Command* command, const Placement& placement, const Cluster& cluster,
                        bool whole_nodes) {
  add_warnings(command, placement);
  std::vector<std::string>& argv = command->argv;
  const auto option = [&](std::string_view start) {
    return std::ranges::find_if(argv, [&](const std::string& a) { return a.starts_with(start); });
  };
  if (add_table(command, placement, cluster)) {
    const auto exported = option("--export=");
    R1_CHECK(exported != argv.end(), "no --export in {}", argv.front());
    *exported += fmt::format(",{}", kPlacementVariable);
  }
  if (!placement.default_order) {
    const auto order = option("--distribution=");
    R1_CHECK(order != argv.end(), "no --distribution in {}", argv.front());
    *order = "--distribution=arbitrary";
    const auto per_node = option("--ntasks-per-node=");
    if (per_node != argv.end()) argv.erase(per_node);
    command->file = slurm_hostfile(placement, cluster);
    command->environment.emplace_back("SLURM_HOSTFILE", kFileInArguments);
  }
  if (std::ranges::all_of(placement.ranks, [](const RankPlace& r) { return r.cpus.empty(); })) return;
  const std::vector<std::string> masks = whole_nodes ? common_masks(placement) : std::vector<std::string>{};
  argv.insert(argv.begin() + 1, masks.empty() ? std::string("--cpu-bind=none")
                                              : fmt::format("--cpu-bind=mask_cpu:{}", fmt::join(masks, ",")));
}

std::string shell_line(const std::vector<std::string>& argv) {
  std::string line;
  for (const auto& word : argv) {
    if (!line.empty()) line += ' ';
    const bool plain = !word.empty() && word.find_first_not_of(
                                            "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
                                            "0123456789_-+=./:,@%") == std::string::npos;
    if (plain) {
      line += word;
      continue;
    }
    line += '\'';
    for (const char ch : word) {
      if (ch == '\'') {
        line += "'\\''";
      } else {
        line += ch;
      }
    }
    line += '\'';
  }
  return line;
}

}  // namespace r1::launch
