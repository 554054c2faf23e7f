#include "launch/placement/slots.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <map>
#include <unordered_map>

namespace r1::launch::placement {
namespace {

// What an ordinary machine has where the topology is silent. Bytes per second, one direction, as NCCL counts them.
constexpr double kPcie = 12e9;           // PCI 3.0 x16, NCCL's own assumption for an unknown width
constexpr double kBetweenSockets = 10e9; // Intel Skylake; AMD 16, Sapphire Rapids 22
constexpr double kHostMemory = 8e9, kHostMemoryFar = 6e9;
constexpr double kNetwork = 1.25e9;      // 10 Gbit/s, NCCL's assumption for an unknown port
constexpr double kAcrossHost = 0.7;      // of a NIC reached over the other socket
constexpr double kUnknownOversubscription = 0.9;
constexpr double kNvlinkLatency = 10e-6, kPcieLatency = 20e-6, kMemoryLatency = 5e-6, kNetworkLatency = 15e-6, kHopLatency = 3e-6;
constexpr int kMostLinksOfAGpu = 18;     // Hopper: more over all pairs means that a switch is counted for each pair

double bytes_of(const std::optional<double>& gbytes, double otherwise) { return gbytes && *gbytes > 0 ? *gbytes * 1e9 : otherwise; }

bool is_nvlink(const Path& p) { return p.path_class && (*p.path_class == PathClass::kNvl || *p.path_class == PathClass::kNvb); }

double path_bytes_per_s(const Path& p) {
  if (!p.path_class) return bytes_of(p.gbytes_per_s, kPcie * 0.8);
  switch (*p.path_class) {
    case PathClass::kLoc: return 200e9;  // two ranks on one GPU: its own memory
    case PathClass::kNvl: return bytes_of(p.gbytes_per_s, 20e9 * std::max(1, p.nvlinks));
    case PathClass::kNvb: return bytes_of(p.gbytes_per_s, 20e9) * 0.5;
    case PathClass::kC2c: return bytes_of(p.gbytes_per_s, 100e9);
    case PathClass::kPix: return bytes_of(p.gbytes_per_s, kPcie);
    case PathClass::kPxb: return bytes_of(p.gbytes_per_s, kPcie) * 0.98;
    case PathClass::kP2c: return bytes_of(p.gbytes_per_s, kPcie) * 0.97;
    case PathClass::kPhb: return bytes_of(p.gbytes_per_s, kPcie) * 0.95;
    case PathClass::kNode: return bytes_of(p.gbytes_per_s, kPcie) * 0.9;
    case PathClass::kSys: return std::min(bytes_of(p.gbytes_per_s, kBetweenSockets), kPcie) * 0.8;
  }
  return kPcie;
}

/// NUMA nodes that CPUs can be bound to.
std::vector<int> cpu_numa_nodes(const HostTopology& t) {
  std::vector<int> out;
  for (size_t i = 0; i < t.numa_nodes.size(); ++i)
    if (!t.numa_nodes[i].device_memory && !t.numa_nodes[i].cpus.empty()) out.push_back(static_cast<int>(i));
  return out;
}

/// The NUMA node a GPU is near: its own, or the one its CPU affinity lies in.
int numa_of_gpu(const HostTopology& t, int gpu) {
  const Gpu& g = t.gpus[static_cast<size_t>(gpu)];
  if (g.numa && !t.numa_nodes[static_cast<size_t>(*g.numa)].device_memory) return *g.numa;
  if (!g.cpu_affinity.empty())
    for (const int n : cpu_numa_nodes(t))
      if (t.numa_nodes[static_cast<size_t>(n)].cpus.intersects(g.cpu_affinity)) return n;
  return -1;
}

/// Cores of a set of CPUs, whole: their hardware threads. Where the map has no cores: a set of several ranges of one length
/// ("0-63,128-191") is what a NUMA node with hardware threads looks like, the threads of a core one from each range.
std::vector<CpuSet> cores_in(const HostTopology& t, const CpuSet& cpus) {
  std::vector<CpuSet> out;
  for (const Core& c : t.cores)
    if (!c.cpus.empty() && cpus.contains(c.cpus)) out.push_back(c.cpus);
  if (!out.empty() || !t.cores.empty() || cpus.empty()) return out;
  const auto length = [](const std::pair<int, int>& r) { return r.second - r.first; };
  const std::vector<std::pair<int, int>>& ranges = cpus.ranges();
  if (std::ranges::all_of(ranges, [&](const auto& r) { return length(r) == length(ranges.front()); })) {
    for (int i = 0; i <= length(ranges.front()); ++i) {
      out.emplace_back();
      for (const auto& r : ranges) out.back().insert(r.first + i, r.first + i);
    }
    return out;
  }
  for (const int cpu : cpus.members()) out.push_back(CpuSet::range(cpu, cpu));
  return out;
}

/// Gives each slot its share of the cores near it.
void share_cores(HostClass& h) {
  const HostTopology& t = *h.topology;
  std::map<std::string, std::vector<int>> near;  // CPU list -> slots there
  std::map<std::string, CpuSet> sets;
  CpuSet whole;
  for (const int n : cpu_numa_nodes(t)) whole.insert(t.numa_nodes[static_cast<size_t>(n)].cpus);
  for (int s = 0; s < h.slots; ++s) {
    CpuSet cpus;
    if (h.gpu[static_cast<size_t>(s)] >= 0) cpus = t.cpus_near(h.gpu[static_cast<size_t>(s)]);
    if (cpus.empty() && h.numa[static_cast<size_t>(s)] >= 0) cpus = t.numa_nodes[static_cast<size_t>(h.numa[static_cast<size_t>(s)])].cpus;
    if (cpus.empty()) cpus = whole;
    near[cpus.list()].push_back(s);
    sets.emplace(cpus.list(), cpus);
  }
  for (const auto& [list, slots] : near) {
    const std::vector<CpuSet> cores = cores_in(t, sets.at(list));
    const size_t each = cores.size() / slots.size();
    if (each == 0) continue;  // fewer cores than ranks: they share, unbound
    for (size_t i = 0; i < slots.size(); ++i)
      for (size_t c = i * each; c < (i + 1) * each; ++c) h.cpus[static_cast<size_t>(slots[i])].insert(cores[c]);
  }
}

void find_nics(HostClass& h) {
  const HostTopology& t = *h.topology;
  std::vector<int> users(t.nics.size(), 0);
  const auto usable = [&](int nic) {
    const Nic& n = t.nics[static_cast<size_t>(nic)];
    return n.active.value_or(true) && !n.name.empty();
  };
  std::vector<int> fabric;  // RDMA devices; where there are none, plain interfaces
  for (const bool rdma : {true, false}) {
    for (size_t i = 0; i < t.nics.size(); ++i)
      if (t.nics[i].rdma == rdma && usable(static_cast<int>(i))) fabric.push_back(static_cast<int>(i));
    if (!fabric.empty()) break;
  }
  for (int s = 0; s < h.slots; ++s) {
    const auto at = static_cast<size_t>(s);
    std::vector<int>& mine = h.nics[at];
    const int gpu = h.gpu[at];
    if (gpu >= 0 && static_cast<size_t>(gpu) < t.near_nics.size()) {
      // NCCL's own choice leads; the others that are as near follow.
      if (static_cast<size_t>(gpu) < t.nccl_nic.size() && t.nccl_nic[static_cast<size_t>(gpu)] &&
          std::ranges::find(t.near_nics[static_cast<size_t>(gpu)], *t.nccl_nic[static_cast<size_t>(gpu)]) != t.near_nics[static_cast<size_t>(gpu)].end())
        mine.push_back(*t.nccl_nic[static_cast<size_t>(gpu)]);
      for (const int nic : t.near_nics[static_cast<size_t>(gpu)])
        if (std::ranges::find(mine, nic) == mine.end()) mine.push_back(nic);
    } else if (gpu < 0 && h.numa[at] >= 0) {
      for (const int nic : fabric)
        if (t.nics[static_cast<size_t>(nic)].numa == h.numa[at]) mine.push_back(nic);
    }
    std::erase_if(mine, [&](int nic) { return !usable(nic) || std::ranges::find(fabric, nic) == fabric.end(); });
    if (mine.empty() && !fabric.empty()) {
      h.far_nic[at] = t.nics_known && gpu >= 0;
      mine.push_back(fabric[at % fabric.size()]);
    }
    if (!mine.empty()) ++users[static_cast<size_t>(mine.front())];
  }
  for (int s = 0; s < h.slots; ++s) {
    const auto at = static_cast<size_t>(s);
    if (h.nics[at].empty()) {
      h.network_bytes_per_s[at] = kNetwork / h.slots;
      continue;
    }
    const auto nic = static_cast<size_t>(h.nics[at].front());
    const double rate = t.nics[nic].rate_mbit_per_s ? *t.nics[nic].rate_mbit_per_s / 8 * 1e6 : kNetwork;
    h.network_bytes_per_s[at] = rate / users[nic] * (h.far_nic[at] ? kAcrossHost : 1.0);
  }
}

void find_pairs(HostClass& h) {
  const HostTopology* t = h.topology;
  int most_links = 0;
  if (t != nullptr)
    for (size_t a = 0; a < t->gpus.size() && a < t->gpu_gpu.size(); ++a) {
      int links = 0;
      for (size_t b = 0; b < t->gpu_gpu[a].size(); ++b)
        if (a != b && is_nvlink(t->gpu_gpu[a][b])) links += t->gpu_gpu[a][b].nvlinks;
      most_links = std::max(most_links, links);
    }
  h.nvlink_mesh = most_links > 0 && most_links <= kMostLinksOfAGpu && (t == nullptr || t->nvswitches.empty());
  for (int a = 0; a < h.slots; ++a)
    for (int b = 0; b < h.slots; ++b) {
      const int ga = h.gpu[static_cast<size_t>(a)], gb = h.gpu[static_cast<size_t>(b)];
      const size_t at = h.at(a, b);
      if (ga >= 0 && gb >= 0) {
        Path path;
        if (t != nullptr && static_cast<size_t>(ga) < t->gpu_gpu.size() && static_cast<size_t>(gb) < t->gpu_gpu[static_cast<size_t>(ga)].size())
          path = t->gpu_gpu[static_cast<size_t>(ga)][static_cast<size_t>(gb)];
        if (ga == gb) path.path_class = PathClass::kLoc;
        h.pair_bytes_per_s[at] = path_bytes_per_s(path);
        h.pair_nvlink[at] = is_nvlink(path);
        h.pair_latency_s[at] = is_nvlink(path) || ga == gb ? kNvlinkLatency : kPcieLatency;
        continue;
      }
      const int na = h.numa[static_cast<size_t>(a)], nb = h.numa[static_cast<size_t>(b)];
      const int pa = h.package[static_cast<size_t>(a)], pb = h.package[static_cast<size_t>(b)];
      h.pair_bytes_per_s[at] = pa != pb ? kHostMemoryFar : na != nb ? 0.9 * kHostMemory : kHostMemory;
      h.pair_latency_s[at] = kMemoryLatency;
    }
}

std::shared_ptr<const HostClass> make_class(const HostTopology* t, int slots, bool kind_only) {
  auto h = std::make_shared<HostClass>();
  h->kind_only = kind_only;
  h->topology = t;
  h->slots = slots;
  const auto n = static_cast<size_t>(slots);
  h->gpu.assign(n, -1);
  h->numa.assign(n, -1);
  h->package.assign(n, -1);
  h->cpus.resize(n);
  h->nics.resize(n);
  h->far_nic.assign(n, false);
  h->network_bytes_per_s.assign(n, kNetwork / slots);
  h->pair_bytes_per_s.assign(n * n, 0);
  h->pair_latency_s.assign(n * n, 0);
  h->pair_nvlink.assign(n * n, false);
  if (t != nullptr) {
    const std::vector<int> nodes = cpu_numa_nodes(*t);
    for (size_t s = 0; s < n; ++s) {
      if (!t->gpus.empty()) {
        h->gpu[s] = static_cast<int>(s % t->gpus.size());
        h->numa[s] = numa_of_gpu(*t, h->gpu[s]);
      } else if (!nodes.empty()) {
        // CPU ranks: neighbours share a NUMA node.
        h->numa[s] = nodes[s * nodes.size() / n];
      }
      if (h->numa[s] >= 0) h->package[s] = t->numa_nodes[static_cast<size_t>(h->numa[s])].package.value_or(-1);
    }
    share_cores(*h);
    find_nics(*h);
  }
  find_pairs(*h);
  return h;
}

/// Leaf switch by host and adapter.
class Leaves {
 public:
  explicit Leaves(const Fabric& fabric) {
    for (const FabricPort& p : fabric.ports)
      if (!p.host.empty()) by_host_[p.host].push_back(&p);
    for (size_t b = 0; b < fabric.blocks.size() && fabric.ports.empty(); ++b)
      for (const std::string& host : fabric.blocks[b].hosts) block_[host] = static_cast<int>(b);
  }
  /// -1: unknown.
  [[nodiscard]] int of(const std::string& host, const HostTopology* t, const std::vector<int>& nics) const {
    auto it = by_host_.find(host);
    if (it == by_host_.end()) it = by_host_.find(host.substr(0, host.find('.')));
    if (it == by_host_.end()) {
      const auto b = block_.find(host);
      return b == block_.end() ? -1 : b->second;
    }
    if (t != nullptr && !nics.empty()) {
      const Nic& nic = t->nics[static_cast<size_t>(nics.front())];
      const std::string ordinal = fmt::format("HCA-{}", rdma_ordinal(*t, nics.front()) + 1);
      for (const FabricPort* p : it->second)
        if ((!p->guid.empty() && (p->guid == nic.guid || p->guid == nic.port_guid)) || p->device == nic.name || p->device == ordinal)
          return p->leaf;
    }
    return it->second.front()->leaf;
  }

 private:
  static int rdma_ordinal(const HostTopology& t, int nic) {
    int n = 0;
    for (int i = 0; i < nic; ++i) n += t.nics[static_cast<size_t>(i)].rdma ? 1 : 0;
    return n;
  }
  std::unordered_map<std::string, std::vector<const FabricPort*>> by_host_;
  std::unordered_map<std::string, int> block_;
};

}  // namespace

Slots::Slots(const Cluster& cluster, const Topology& topology) {
  std::unordered_map<std::string, const Topology::Member*> known;
  for (const Topology::Member& m : topology.hosts) known.emplace(m.name, &m);
  const Leaves leaves(topology.fabric);
  for (const FabricSwitch& s : topology.fabric.switches)
    leaf_share_.push_back(s.oversubscription && *s.oversubscription > 1 ? 1 / *s.oversubscription
                          : s.oversubscription                         ? 1.0
                                                                       : kUnknownOversubscription);
  std::map<std::string, int> racks;  // of the hostfile's annotations: where the fabric is unknown, a rack is a leaf
  std::map<std::pair<const HostTopology*, int>, int> class_index;
  for (size_t h = 0; h < cluster.hosts.size(); ++h) {
    const Host& host = cluster.hosts[h];
    const auto it = known.find(host.name);
    const HostTopology* t = it == known.end() ? nullptr : it->second->host.get();
    const bool kind_only = t != nullptr && it->second->kind_only;
    const auto [entry, fresh] = class_index.emplace(std::pair{t, host.slots}, static_cast<int>(classes_.size()));
    if (fresh) classes_.push_back(make_class(t, host.slots, kind_only));
    int rack = -1;
    if (const auto a = host.annotations.find("rack"); a != host.annotations.end())
      rack = racks.emplace(a->second, static_cast<int>(topology.fabric.switches.size() + racks.size())).first->second;
    first_.push_back(static_cast<int>(slots_.size()));
    const HostClass& c = *classes_[static_cast<size_t>(entry->second)];
    for (int s = 0; s < host.slots; ++s) {
      const int leaf = leaves.of(host.name, t, c.nics[static_cast<size_t>(s)]);
      slots_.push_back({.host = static_cast<int>(h), .local = s, .host_class = entry->second, .leaf = leaf >= 0 ? leaf : rack});
    }
  }
  first_.push_back(static_cast<int>(slots_.size()));
}

Slots::Link Slots::link(int a, int b) const {
  const Slot& x = slots_[static_cast<size_t>(a)];
  const Slot& y = slots_[static_cast<size_t>(b)];
  const HostClass& cx = *classes_[static_cast<size_t>(x.host_class)];
  if (x.host == y.host) {
    const size_t at = cx.at(x.local, y.local);
    return {cx.pair_bytes_per_s[at], cx.pair_latency_s[at]};
  }
  const HostClass& cy = *classes_[static_cast<size_t>(y.host_class)];
  double rate = std::min(cx.network_bytes_per_s[static_cast<size_t>(x.local)], cy.network_bytes_per_s[static_cast<size_t>(y.local)]);
  double latency = kNetworkLatency;
  if (x.leaf != y.leaf || x.leaf < 0) {
    const auto share = [&](int leaf) {
      return leaf >= 0 && static_cast<size_t>(leaf) < leaf_share_.size() ? leaf_share_[static_cast<size_t>(leaf)] : kUnknownOversubscription;
    };
    rate *= std::min(share(x.leaf), share(y.leaf));
    latency += kHopLatency;
  }
  return {rate, latency};
}

double Slots::message_s(int a, int b, double bytes, double operations) const {
  const Link l = link(a, b);
  return operations * l.latency_s + bytes / l.bytes_per_s;
}

double Slots::group_s(const int* members, int count, double bytes, double operations) const {
  if (count <= 1) return 0;
  double slowest = std::numeric_limits<double>::infinity(), latency = 0;
  bool nvlink = true;
  const Slot& first = slots_[static_cast<size_t>(members[0])];
  const HostClass& c = *classes_[static_cast<size_t>(first.host_class)];
  for (int i = 0; i < count; ++i)
    for (int j = 0; j < i; ++j) {
      const Link l = link(members[i], members[j]);
      slowest = std::min(slowest, l.bytes_per_s);
      latency = std::max(latency, l.latency_s);
      const Slot& x = slots_[static_cast<size_t>(members[i])];
      const Slot& y = slots_[static_cast<size_t>(members[j])];
      nvlink = nvlink && x.host == first.host && y.host == first.host && c.pair_nvlink[c.at(x.local, y.local)];
    }
  // In a mesh every pair has links of its own, and a collective uses them all at once.
  if (nvlink && c.nvlink_mesh) slowest *= count - 1;
  return operations * latency + bytes / slowest;
}

}  // namespace r1::launch::placement
