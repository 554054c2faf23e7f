// What is bad about a placement, said before anything starts.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <set>

#include "launch/placement/slots.h"

namespace r1::launch::placement {
namespace {

/// "gpu-1 (and 14 more)": who a warning is about.
std::string some(const std::vector<std::string>& who) {
  if (who.size() <= 2) return fmt::format("{}{}", who.front(), who.size() == 2 ? " and " + who[1] : "");
  return fmt::format("{} and {} more", who.front(), who.size() - 1);
}

/// Problems by text, with those they concern.
class Findings {
 public:
  void add(const std::string& problem, const std::string& who) {
    auto& list = who_[problem];
    if (list.empty()) order_.push_back(problem);
    if (std::ranges::find(list, who) == list.end()) list.push_back(who);
  }
  [[nodiscard]] std::vector<std::string> text() const {
    std::vector<std::string> out;
    for (const std::string& p : order_) out.push_back(fmt::format("{}: {}", some(who_.at(p)), p));
    return out;
  }

 private:
  std::map<std::string, std::vector<std::string>> who_;
  std::vector<std::string> order_;
};

void check_group(const Slots& slots, const Cluster& cluster, const int* members, int count, const std::string& who, Findings& out) {
  const auto slot = [&](int i) -> const Slot& { return slots.all()[static_cast<size_t>(members[i])]; };
  std::set<int> hosts, packages;
  bool nvlink = true, unknown = false, gpus = true, shared = false;
  for (int i = 0; i < count; ++i) {
    hosts.insert(slot(i).host);
    const HostClass& c = slots.class_of(members[i]);
    const auto local = static_cast<size_t>(slot(i).local);
    packages.insert(c.package[local]);
    gpus = gpus && c.gpu[local] >= 0;
    for (int j = 0; j < i; ++j) {
      if (slot(i).host != slot(j).host) continue;
      const bool same = gpus && c.gpu[local] == c.gpu[static_cast<size_t>(slot(j).local)];
      shared = shared || same;
      if (!same) nvlink = nvlink && c.pair_nvlink[c.at(slot(i).local, slot(j).local)];
    }
    unknown = unknown || (c.topology != nullptr && gpus && !c.topology->nvlink_known);
  }
  if (hosts.size() > 1) {
    out.add(fmt::format("a tensor-parallel group crosses {} hosts ({}, {}, ...): each layer then waits for the network; use a --tp "
                        "that divides the slots of every host",
                        hosts.size(), cluster.hosts[static_cast<size_t>(*hosts.begin())].name,
                        cluster.hosts[static_cast<size_t>(*std::next(hosts.begin()))].name), who);
    return;
  }
  packages.erase(-1);
  if (!gpus) {
    if (packages.size() > 1) out.add("a tensor-parallel group lies on two sockets: its sums go between them", who);
    return;
  }
  if (shared) out.add("ranks of a tensor-parallel group share a GPU: correct, but slower than one rank a GPU", who);
  if (!nvlink && unknown)
    out.add("NVLink between the GPUs of a tensor-parallel group is unknown, not none: the topology (a template, or one of a virtual "
            "machine) does not speak of it; `r1run probe --measure` tells", who);
  else if (!nvlink)
    out.add(packages.size() > 1 ? "a tensor-parallel group has no NVLink and lies on two sockets: its sums go between them"
                                : "a tensor-parallel group has no NVLink: its sums go over PCIe", who);
}

}  // namespace

std::vector<std::string> warnings_of(const Slots& slots, const Cluster& cluster, const parallel::MeshShape& mesh,
                                     const std::vector<int>& slot_of_rank) {
  Findings out;
  std::map<int, int> used;
  for (const int s : slot_of_rank) ++used[slots.all()[static_cast<size_t>(s)].host];
  if (mesh.tp > 1)
    for (int g = 0; g < mesh.world(); g += mesh.tp)
      check_group(slots, cluster, slot_of_rank.data() + g, mesh.tp, fmt::format("ranks {}-{}", g, g + mesh.tp - 1), out);
  std::set<int> counts;
  for (const auto& [host, n] : used) counts.insert(n);
  if (counts.size() > 1)
    out.add(fmt::format("ranks are spread unevenly: between {} and {} on a host", *counts.begin(), *counts.rbegin()), cluster.source);
  std::map<std::string, std::set<int>> far;  // GPUs of a host without a near adapter
  for (const int s : slot_of_rank) {
    const Slot& slot = slots.all()[static_cast<size_t>(s)];
    const HostClass& c = slots.class_of(s);
    const auto local = static_cast<size_t>(slot.local);
    const std::string& host = cluster.hosts[static_cast<size_t>(slot.host)].name;
    if (c.topology == nullptr) continue;
    if (used.size() > 1 && c.gpu[local] >= 0) {
      if (!c.topology->nics_known)
        out.add("what network adapters there are is unknown to the topology", host);
      else if (c.nics[local].empty())
        out.add("no network adapter is known", host);
      else if (c.far_nic[local])
        far[host].insert(c.gpu[local]);
    }
    if (!c.topology->gpus.empty() && c.slots > static_cast<int>(c.topology->gpus.size()))
      out.add(fmt::format("{} slots on {} GPUs: ranks share them", c.slots, c.topology->gpus.size()), host);
    if (c.cpus[local].empty() && !c.topology->cores.empty())
      out.add(c.gpu[local] >= 0 ? "fewer cores near a GPU than ranks there: these are not bound"
                                : fmt::format("{} cores for {} slots: ranks are not bound to cores", c.topology->cores.size(), c.slots),
              host);
  }
  for (const auto& [host, gpus] : far)
    out.add(gpus.size() == 1 ? fmt::format("GPU {} has no adapter near it: what it sends to other hosts crosses the sockets", *gpus.begin())
                             : fmt::format("GPUs {} have no adapter near them: what they send to other hosts crosses the sockets",
                                           fmt::join(gpus, ", ")),
            host);
  return out.text();
}

}  // namespace r1::launch::placement
