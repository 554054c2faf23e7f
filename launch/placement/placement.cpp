#include "launch/placement.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <set>

#include "launch/placement/slots.h"
#include "runtime/core/error.h"

namespace r1::launch {

using placement::HostClass;
using placement::Slot;
using placement::Slots;

namespace {

std::string nic_text(const Nic& nic) { return nic.rdma ? fmt::format("{}:{}", nic.name, nic.port) : nic.name; }

/// Ranks of each host in order of world rank.
std::map<int, std::vector<int>> ranks_by_host(const std::vector<RankPlace>& ranks) {
  std::map<int, std::vector<int>> out;
  for (size_t r = 0; r < ranks.size(); ++r) out[ranks[r].host].push_back(static_cast<int>(r));
  return out;
}

/// CUDA_VISIBLE_DEVICES of a host: its GPUs in the order of the local ranks, all of them, so that peers stay reachable and
/// "device = local rank" is the placed one. "" when every local rank already is on the GPU of its number.
std::string visible_devices(const std::vector<const RankPlace*>& here, const HostTopology& t) {
  std::vector<int> order;
  bool plain = true;
  for (size_t local = 0; local < here.size(); ++local) {
    const int gpu = here[local]->gpu;
    if (gpu < 0) return "";
    if (std::ranges::find(order, gpu) == order.end()) order.push_back(gpu);
    plain = plain && gpu == static_cast<int>(local % t.gpus.size());
  }
  if (plain) return "";
  for (size_t g = 0; g < t.gpus.size(); ++g)
    if (std::ranges::find(order, static_cast<int>(g)) == order.end()) order.push_back(static_cast<int>(g));
  std::string text;
  for (const int g : order) {
    const Gpu& gpu = t.gpus[static_cast<size_t>(g)];
    text += fmt::format("{}{}", text.empty() ? "" : ",", gpu.uuid.empty() ? std::to_string(gpu.index) : gpu.uuid);
  }
  return text;
}

/// Cores, not hardware threads: two threads of a core share its arithmetic. 0: the map has no cores.
int cores_of(const HostTopology* t, const CpuSet& cpus) {
  int n = 0;
  if (t != nullptr)
    for (const Core& core : t->cores) n += !core.cpus.empty() && cpus.contains(core.cpus) ? 1 : 0;
  return n;
}

void set_environment(std::vector<RankPlace>& ranks, const Slots& slots, const std::vector<int>& slot_of_rank) {
  const std::map<int, std::vector<int>> by_host = ranks_by_host(ranks);
  const bool several = by_host.size() > 1;
  for (const auto& [host, members] : by_host) {
    const HostClass& c = slots.class_of(slot_of_rank[static_cast<size_t>(members.front())]);
    if (c.kind_only) continue;
    const HostTopology* t = c.topology;
    std::vector<const RankPlace*> here;
    std::set<std::string> rdma;
    for (const int r : members) {
      here.push_back(&ranks[static_cast<size_t>(r)]);
      for (const std::string& nic : here.back()->nics)
        if (nic.find(':') != std::string::npos) rdma.insert(nic);
    }
    const std::string devices = t != nullptr && !t->gpus.empty() ? visible_devices(here, *t) : "";
    std::string hca;
    for (const std::string& nic : rdma) hca += (hca.empty() ? "=" : ",") + nic;
    for (const int r : members) {
      RankPlace& place = ranks[static_cast<size_t>(r)];
      auto& env = place.environment;
      if (place.gpu_uuid.starts_with("MIG-")) env.emplace_back("CUDA_VISIBLE_DEVICES", place.gpu_uuid);
      else if (!devices.empty()) env.emplace_back("CUDA_VISIBLE_DEVICES", devices);
      if (!hca.empty() && several) {  // within one host nothing goes over an adapter
        env.emplace_back("NCCL_IB_HCA", hca);
        std::string mine;
        for (const std::string& nic : place.nics) mine += (mine.empty() ? "" : ",") + nic;
        if (!mine.empty()) env.emplace_back("UCX_NET_DEVICES", mine);  // without one near: UCX's own choice
      }
      if (place.cpus.empty()) continue;
      if (const int cores = cores_of(t, place.cpus); cores > 0) env.emplace_back("OMP_NUM_THREADS", std::to_string(cores));
      env.emplace_back(kCpusVariable, place.cpus.list());
    }
  }
}

}  // namespace

PlacementCost placement_cost(const Cluster& cluster, const Topology& topology, const parallel::MeshShape& mesh,
                             const parallel::StepTraffic& traffic, const std::vector<int>& slot_of_rank) {
  return placement::cost_of(Slots(cluster, topology), mesh, traffic, slot_of_rank);
}

Placement place(const Cluster& cluster, const Topology& topology, const parallel::MeshShape& mesh,
                const parallel::StepTraffic& traffic, const PlacementOptions& options) {
  if (mesh.world() > cluster.total_slots())
    throw UsageError("{} needs {} ranks but {} offers {} slots", mesh.str(), mesh.world(), cluster.source, cluster.total_slots());
  const Slots slots(cluster, topology);
  const std::vector<int> slot_of_rank = placement::search(slots, mesh, traffic, options);
  Placement out{.mesh = mesh, .ranks = {}, .cost = placement::cost_of(slots, mesh, traffic, slot_of_rank), .default_cost = {}, .warnings = {}};
  std::vector<int> in_order(slot_of_rank.size());
  std::iota(in_order.begin(), in_order.end(), 0);
  out.default_cost = placement::cost_of(slots, mesh, traffic, in_order);
  out.default_order = slot_of_rank == in_order;
  std::vector<int> used(cluster.hosts.size(), 0);
  for (const int s : slot_of_rank) {
    const Slot& slot = slots.all()[static_cast<size_t>(s)];
    const HostClass& c = slots.class_of(s);
    const auto local = static_cast<size_t>(slot.local);
    RankPlace place{.host = slot.host, .local_rank = used[static_cast<size_t>(slot.host)]++, .gpu = c.gpu[local], .numa = c.numa[local]};
    if (place.numa >= 0) place.numa_os = c.topology->numa_nodes[static_cast<size_t>(place.numa)].os_index;
    if (place.gpu >= 0) {
      const Gpu& gpu = c.topology->gpus[static_cast<size_t>(place.gpu)];
      place.gpu_uuid = gpu.uuid;
      // Instances of a partitioned GPU are devices of their own: one a rank, in turn.
      if (!gpu.mig.empty()) place.gpu_uuid = gpu.mig[local / c.topology->gpus.size() % gpu.mig.size()].uuid;
    }
    if (!c.kind_only) place.cpus = c.cpus[local];
    if (!c.kind_only && c.topology != nullptr && !c.far_nic[local])
      for (const int nic : c.nics[local]) place.nics.push_back(nic_text(c.topology->nics[static_cast<size_t>(nic)]));
    out.ranks.push_back(std::move(place));
  }
  set_environment(out.ranks, slots, slot_of_rank);
  out.warnings = placement::warnings_of(slots, cluster, mesh, slot_of_rank);
  return out;
}

std::string openmpi_rankfile(const Placement& placement, const Cluster& cluster, const Topology& topology) {
  std::string out;
  for (size_t r = 0; r < placement.ranks.size(); ++r) {
    const RankPlace& p = placement.ranks[r];
    const std::string& host = cluster.hosts[static_cast<size_t>(p.host)].name;
    const HostTopology* t = topology.find(host);
    // Open MPI counts logical cores, in the order of the map.
    std::string list;
    if (t != nullptr && !p.cpus.empty()) {
      int begin = -1;
      const auto flush = [&](int end) {
        if (begin >= 0) list += fmt::format("{}{}{}", list.empty() ? "" : ",", begin, end > begin ? fmt::format("-{}", end) : "");
        begin = -1;
      };
      for (size_t c = 0; c < t->cores.size(); ++c) {
        const bool mine = !t->cores[c].cpus.empty() && p.cpus.contains(t->cores[c].cpus);
        if (mine && begin < 0) begin = static_cast<int>(c);
        if (!mine) flush(static_cast<int>(c) - 1);
      }
      flush(static_cast<int>(t->cores.size()) - 1);
    }
    if (list.empty()) list = t != nullptr && !t->cores.empty() ? fmt::format("0-{}", t->cores.size() - 1) : "0:*";
    out += fmt::format("rank {}={} slot={}\n", r, host, list);
  }
  return out;
}

std::string slurm_hostfile(const Placement& placement, const Cluster& cluster) {
  std::string out;
  for (const RankPlace& p : placement.ranks) out += cluster.hosts[static_cast<size_t>(p.host)].name + "\n";
  return out;
}

std::string placement_table(const Placement& placement, const Cluster& cluster) {
  // Equal hosts share one table; the commonest is the one for "*".
  std::map<std::string, std::vector<std::string>> hosts_of;
  for (const auto& [host, members] : ranks_by_host(placement.ranks)) {
    std::string table;
    for (size_t local = 0; local < members.size(); ++local) {
      table += fmt::format("|{}", local);
      for (const auto& [name, value] : placement.ranks[static_cast<size_t>(members[local])].environment)
        table += fmt::format(";{}={}", name, value);
    }
    hosts_of[table].push_back(cluster.hosts[static_cast<size_t>(host)].name);
  }
  const auto commonest = std::ranges::max_element(hosts_of, {}, [](const auto& e) { return e.second.size(); });
  std::string out;
  for (auto it = hosts_of.begin(); it != hosts_of.end(); ++it) {
    if (it == commonest) continue;
    std::string names;
    for (const std::string& n : it->second) names += (names.empty() ? "" : "+") + n;
    out += fmt::format("{}{}\n", names, it->first);
  }
  if (commonest != hosts_of.end()) out += fmt::format("*{}", commonest->first);
  return out;
}

std::vector<std::pair<std::string, std::string>> placement_environment(std::string_view table, std::string_view host, int local_rank) {
  const auto split = [](std::string_view text, char by) {
    std::vector<std::string_view> out;
    for (;;) {
      const size_t at = text.find(by);
      out.push_back(text.substr(0, at));
      if (at == std::string_view::npos) return out;
      text.remove_prefix(at + 1);
    }
  };
  const std::string_view label = host.substr(0, host.find('.'));
  std::vector<std::pair<std::string, std::string>> out;
  for (const std::string_view line : split(table, '\n')) {
    const std::vector<std::string_view> entries = split(line, '|');
    const std::vector<std::string_view> names = split(entries.front(), '+');
    const bool ours = std::ranges::any_of(names, [&](std::string_view n) {
      return n == "*" || n == host || n.substr(0, n.find('.')) == label;
    });
    if (!ours) continue;
    for (size_t i = 1; i < entries.size(); ++i) {
      const std::vector<std::string_view> fields = split(entries[i], ';');
      if (fields.front() != std::to_string(local_rank)) continue;
      for (size_t f = 1; f < fields.size(); ++f) {
        const size_t equals = fields[f].find('=');
        if (equals == 0 || equals == std::string_view::npos)
          throw UsageError("{}: \"{}\" is no NAME=value", kPlacementVariable, fields[f]);
        out.emplace_back(fields[f].substr(0, equals), fields[f].substr(equals + 1));
      }
      return out;
    }
    return out;
  }
  return out;
}

}  // namespace r1::launch
