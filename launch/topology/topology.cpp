#include "launch/topology.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <set>

namespace r1::launch {

std::string_view name(PathClass path) {
  switch (path) {
    case PathClass::kLoc:
      return "LOC";
    case PathClass::kNvl:
      return "NVL";
    case PathClass::kNvb:
      return "NVB";
    case PathClass::kC2c:
      return "C2C";
    case PathClass::kPix:
      return "PIX";
    case PathClass::kPxb:
      return "PXB";
    case PathClass::kP2c:
      return "P2C";
    case PathClass::kPhb:
      return "PHB";
    case PathClass::kNode:
      return "NODE";
    case PathClass::kSys:
      return "SYS";
  }
  return "?";
}

PathClass as_nccl(PathClass path) { return path == PathClass::kNode ? PathClass::kPhb : path; }

std::string cell(const Path& path) {
  if (!path.path_class) return "?";
  if (*path.path_class == PathClass::kLoc) return "X";
  if (*path.path_class == PathClass::kNvl && path.nvlinks > 0)
    return fmt::format("NV{}", path.nvlinks);
  return std::string(name(*path.path_class));
}

std::vector<std::vector<int>> HostTopology::nvlink_domains() const {
  std::vector<int> group(gpus.size());
  std::iota(group.begin(), group.end(), 0);
  for (size_t a = 0; a < gpus.size() && a < gpu_gpu.size(); ++a) {
    for (size_t b = 0; b < a && b < gpu_gpu[a].size(); ++b) {
      const auto& path = gpu_gpu[a][b].path_class;
      if (!path || (*path != PathClass::kNvl && *path != PathClass::kNvb)) continue;
      const int from = std::max(group[a], group[b]), to = std::min(group[a], group[b]);
      std::ranges::replace(group, from, to);
    }
  }
  std::vector<std::vector<int>> out;
  std::vector<int> place(gpus.size(), -1);
  for (size_t g = 0; g < gpus.size(); ++g) {
    int& at = place[static_cast<size_t>(group[g])];
    if (at < 0) {
      at = static_cast<int>(out.size());
      out.emplace_back();
    }
    out[static_cast<size_t>(at)].push_back(static_cast<int>(g));
  }
  return out;
}

CpuSet HostTopology::cpus_near(int gpu) const {
  const Gpu& g = gpus.at(static_cast<size_t>(gpu));
  if (!g.cpu_affinity.empty()) return g.cpu_affinity;
  return g.numa ? numa_nodes.at(static_cast<size_t>(*g.numa)).cpus : CpuSet{};
}

namespace {

std::string_view first_label(std::string_view host) { return host.substr(0, host.find('.')); }

}  // namespace

std::vector<std::vector<int>> Fabric::leaves_of(const std::vector<std::string>& many) const {
  std::map<std::string_view, std::set<int>> exact;
  std::map<std::string_view, std::set<std::string_view>> by_label;
  for (const FabricPort& port : ports) {
    if (port.host.empty()) continue;
    exact[port.host].insert(port.leaf);
    by_label[first_label(port.host)].insert(port.host);
  }
  std::vector<std::vector<int>> out;
  out.reserve(many.size());
  for (const std::string& host : many) {
    auto found = exact.find(host);
    if (found == exact.end()) {
      // "node1" and "node1.cluster" are one host unless several share the label.
      const auto label = by_label.find(first_label(host));
      if (label != by_label.end() && label->second.size() == 1) {
        const auto only = *label->second.begin();
        if (only == label->first || host == label->first) found = exact.find(only);
      }
    }
    out.emplace_back();
    if (found != exact.end()) out.back().assign(found->second.begin(), found->second.end());
  }
  return out;
}

std::vector<int> Fabric::leaves_of(std::string_view host) const {
  return leaves_of(std::vector<std::string>{std::string(host)}).front();
}

std::optional<bool> Fabric::share_leaf(std::string_view a, std::string_view b) const {
  const auto of_a = leaves_of(a), of_b = leaves_of(b);
  if (!of_a.empty() && !of_b.empty()) return std::ranges::find_first_of(of_a, of_b) != of_a.end();
  const auto block = [&](std::string_view host) -> const Block* {
    for (const Block& candidate : blocks)
      if (std::ranges::find(candidate.hosts, host) != candidate.hosts.end()) return &candidate;
    return nullptr;
  };
  const Block* in_a = block(a);
  const Block* in_b = block(b);
  if (in_a == nullptr || in_b == nullptr) return std::nullopt;
  return in_a == in_b;
}

const HostTopology* Topology::find(std::string_view host) const {
  for (const Member& member : hosts)
    if (member.name == host) return member.host.get();
  return nullptr;
}

}  // namespace r1::launch
