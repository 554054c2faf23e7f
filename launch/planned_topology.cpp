// The topology map of a machine from the catalogue: what its description promises, so that a job can be placed on it.
#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "launch/catalogue.h"
#include "runtime/core/error.h"
#include "launch/placement.h"
#include "launch/topology/cluster_topology.h"

namespace r1::launch {
namespace {

constexpr double kGb = 1e9;

Path path_between(const PlannedCluster& c, int a, int b) {
  if (a == b) return {.path_class = PathClass::kLoc};
  const bool near = a * c.sockets / c.devices_per_host == b * c.sockets / c.devices_per_host;
  if (!c.peer.name.starts_with("NVLink"))
    return {.path_class = near ? PathClass::kPhb : PathClass::kSys, .gbytes_per_s = c.peer.device_bytes_per_s / kGb};
  const bool mesh = c.peer.device_bytes_per_s <= 0;
  const double bytes_per_s = mesh ? c.peer.pair_bytes_per_s : c.peer.device_bytes_per_s;
  // Links of 20 GB/s and more; a switch gives a pair all links of a GPU.
  return {.path_class = PathClass::kNvl, .nvlinks = std::max(1, static_cast<int>(bytes_per_s / (20 * kGb))), .gbytes_per_s = bytes_per_s / kGb};
}

std::shared_ptr<const HostTopology> host_of(const PlannedCluster& c) {
  auto t = std::make_shared<HostTopology>();
  t->sources = {"catalogue: " + c.text};
  t->memory_bytes = static_cast<uint64_t>(std::max<int64_t>(0, c.host_memory_bytes));
  const int sockets = std::max(1, c.sockets), numa = std::max(sockets, c.numa), cores = std::max(numa, c.cores);
  for (int s = 0; s < sockets; ++s) t->packages.push_back({.os_index = s, .cpus = {}, .model = ""});
  for (int n = 0; n < numa; ++n) {
    const int first = static_cast<int>(int64_t{cores} * n / numa), end = static_cast<int>(int64_t{cores} * (n + 1) / numa);
    const CpuSet cpus = CpuSet::range(first, end - 1);
    const int package = n * sockets / numa;
    t->packages[static_cast<size_t>(package)].cpus.insert(cpus);
    t->numa_nodes.push_back({.os_index = n, .package = package, .cpus = cpus});
    for (int core = first; core < end; ++core) t->cores.push_back({.package = package, .numa = n, .cpus = CpuSet::range(core, core)});
  }
  t->nics_known = true;
  const bool rdma = c.network.name.ends_with("DR") || c.network.name.starts_with("EFA");
  for (int n = 0; n < c.nics; ++n)
    t->nics.push_back({.name = fmt::format("{}{}", rdma ? "nic" : "eth", n), .rate_mbit_per_s = c.network.device_bytes_per_s * 8 / 1e6,
                       .link_layer = rdma ? LinkLayer::kInfiniBand : LinkLayer::kEthernet, .rdma = rdma, .numa = n * numa / c.nics});
  if (!c.gpu()) return t;
  t->nvlink_known = true;
  for (int g = 0; g < c.devices_per_host; ++g) {
    t->gpus.push_back({.index = g, .name = c.device.title, .memory_bytes = static_cast<uint64_t>(c.device.memory_bytes), .sm = c.device.sm,
                       .numa = g * numa / c.devices_per_host});
    t->gpu_gpu.emplace_back();
    for (int o = 0; o < c.devices_per_host; ++o) t->gpu_gpu.back().push_back(path_between(c, g, o));
    // Adapters are spread over the GPUs, or GPUs over the adapters.
    const int nic = g * c.nics / c.devices_per_host;
    t->near_nics.push_back({nic});
    t->nccl_nic.emplace_back(nic);
  }
  return t;
}

}  // namespace

namespace {

PlannedCluster tier_of(const Cluster& hosts, const Host& host, const Catalogue& catalogue) {
  const std::string where = fmt::format("{}:{}: tier of {}", hosts.source, host.line, host.name);
  try {
    PlannedCluster c = catalogue.cluster(host.annotations.at("tier"));
    if (c.hosts == 1) return c;
    throw UsageError("{}: names {} hosts, where it should say what one host is", c.text, c.hosts);
  } catch (const UsageError& e) {
    std::string_view what = e.what();
    if (const std::string_view option = "--cluster "; what.starts_with(option)) what.remove_prefix(option.size());
    throw UsageError("{}: {}", where, what);
  }
}

}  // namespace

Cluster planned_hosts(const PlannedCluster& c, int slots) {
  Cluster out{.hosts = {}, .source = c.text};
  for (int h = 0; h < c.hosts; ++h)
    out.hosts.push_back({.name = fmt::format("host-{}", h), .slots = slots, .slots_given = true});
  return out;
}

Topology planned_topology(const PlannedCluster& c, const Cluster& hosts) {
  const auto host = host_of(c);
  Topology out;
  for (const Host& h : hosts.hosts) out.hosts.push_back({h.name, host});
  return out;
}

Topology annotated_topology(const Cluster& hosts, const Catalogue& catalogue, const std::string& files) {
  Topology out = cluster_topology(hosts, files);
  std::map<std::string, std::shared_ptr<const HostTopology>> known;  // by annotation: equal hosts share one
  for (size_t i = 0; i < hosts.hosts.size(); ++i) {
    const Host& h = hosts.hosts[i];
    const auto tier = h.annotations.find("tier");
    if (out.hosts[i].host != nullptr || tier == h.annotations.end()) continue;
    auto it = known.find(tier->second);
    if (it == known.end()) it = known.emplace(tier->second, host_of(tier_of(hosts, h, catalogue))).first;
    out.hosts[i] = {h.name, it->second, true};
  }
  std::erase_if(out.hosts, [](const Topology::Member& m) { return m.host == nullptr; });
  return out;
}

bool placeable(const Cluster& hosts, const Topology& topology) {
  return !topology.hosts.empty() || !topology.fabric.source.empty() ||
         std::ranges::any_of(hosts.hosts, [](const Host& h) { return h.annotations.contains("rack"); });
}

}  // namespace r1::launch
