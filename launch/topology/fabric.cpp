#include "launch/topology/fabric.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "launch/topology/text.h"

namespace r1::launch {
namespace {

/// Sum of the links of one kind; nullopt when one of them is unknown or there is none.
struct Sum {
  double gbytes_per_s = 0;
  bool any = false, unknown = false;
  void add(std::optional<double> link) {
    any = true;
    unknown |= !link;
    gbytes_per_s += link.value_or(0);
  }
};

}  // namespace

namespace {

/// Links of each switch, as indices.
std::vector<std::vector<size_t>> links_at(const Fabric& fabric,
                                          const std::vector<SwitchLink>& links) {
  std::vector<std::vector<size_t>> at(fabric.switches.size());
  for (size_t l = 0; l < links.size(); ++l) {
    at[static_cast<size_t>(links[l].a)].push_back(l);
    at[static_cast<size_t>(links[l].b)].push_back(l);
  }
  return at;
}

/// Hops to the nearest switch with hosts.
void levels_by_hops(Fabric& fabric, const std::vector<SwitchLink>& links) {
  const auto at = links_at(fabric, links);
  for (FabricSwitch& s : fabric.switches) s.level = -1;
  std::vector<size_t> wave, next;
  for (const FabricPort& port : fabric.ports) {
    FabricSwitch& leaf = fabric.switches[static_cast<size_t>(port.leaf)];
    if (leaf.level == 0) continue;
    leaf.level = 0;
    wave.push_back(static_cast<size_t>(port.leaf));
  }
  for (int level = 1; !wave.empty(); ++level, wave.swap(next)) {
    next.clear();
    for (const size_t s : wave)
      for (const size_t l : at[s]) {
        const auto other = static_cast<size_t>(links[l].a) == s ? links[l].b : links[l].a;
        FabricSwitch& neighbour = fabric.switches[static_cast<size_t>(other)];
        if (neighbour.level >= 0) continue;
        neighbour.level = level;
        next.push_back(static_cast<size_t>(other));
      }
  }
  for (FabricSwitch& s : fabric.switches)
    s.level = std::max(s.level, 0);  // not connected to any host
}

/// Longest way down.
void levels_told(Fabric& fabric, const std::vector<SwitchLink>& links) {
  const auto at = links_at(fabric, links);
  std::vector<int> below(fabric.switches.size(), 0);
  for (const SwitchLink& link : links) ++below[static_cast<size_t>(link.b)];
  std::vector<size_t> ready;
  for (size_t s = 0; s < below.size(); ++s)
    if (below[s] == 0) ready.push_back(s);
  while (!ready.empty()) {
    const size_t s = ready.back();
    ready.pop_back();
    for (const size_t l : at[s]) {
      if (static_cast<size_t>(links[l].a) != s) continue;
      const auto up = static_cast<size_t>(links[l].b);
      fabric.switches[up].level = std::max(fabric.switches[up].level, fabric.switches[s].level + 1);
      if (--below[up] == 0) ready.push_back(up);
    }
  }
}

}  // namespace

void lay_out_fabric(Fabric& fabric, const std::vector<SwitchLink>& links, Directions directions) {
  const size_t n = fabric.switches.size();
  std::vector<Sum> below(n), above(n);
  for (const FabricPort& port : fabric.ports) {
    below[static_cast<size_t>(port.leaf)].add(port.gbytes_per_s);
    fabric.switches[static_cast<size_t>(port.leaf)].host_gbytes_per_s +=
        port.gbytes_per_s.value_or(0);
  }
  directions == Directions::kTold ? levels_told(fabric, links) : levels_by_hops(fabric, links);
  for (const SwitchLink& link : links) {
    int low = link.a, high = link.b;
    if (fabric.switches[static_cast<size_t>(low)].level >
        fabric.switches[static_cast<size_t>(high)].level)
      std::swap(low, high);
    FabricSwitch& from = fabric.switches[static_cast<size_t>(low)];
    from.up.push_back({.to = high, .cables = link.cables, .gbytes_per_s = link.gbytes_per_s});
    if (from.level == fabric.switches[static_cast<size_t>(high)].level) continue;  // sideways
    above[static_cast<size_t>(low)].add(link.gbytes_per_s);
    below[static_cast<size_t>(high)].add(link.gbytes_per_s);
  }
  for (size_t s = 0; s < n; ++s)
    if (above[s].any && !above[s].unknown && below[s].any && !below[s].unknown &&
        above[s].gbytes_per_s > 0)
      fabric.switches[s].oversubscription = below[s].gbytes_per_s / above[s].gbytes_per_s;
}

Fabric fabric_of_slurm_addresses(const std::vector<SlurmAddress>& addresses) {
  Fabric fabric;
  std::map<std::string, int> index;
  std::map<std::pair<int, int>, SwitchLink> links;
  const auto switch_named = [&](const std::string& switch_name) {
    const auto [found, fresh] =
        index.try_emplace(switch_name, static_cast<int>(fabric.switches.size()));
    if (fresh) fabric.switches.push_back({.name = switch_name});
    return found->second;
  };
  for (const SlurmAddress& entry : addresses) {
    const auto kinds = fields_of(entry.pattern, '.');
    if (entry.address.empty() || kinds.empty() || kinds.back() != "node" || kinds.size() < 2)
      continue;
    // From the core to the leaf. Names with dots of their own cannot be told apart: then the whole
    // is the leaf's name.
    std::vector<std::string> switches;
    const auto parts = fields_of(entry.address, '.');
    if (parts.size() == kinds.size()) {
      for (size_t i = 0; i + 1 < parts.size(); ++i) switches.emplace_back(parts[i]);
    } else {
      std::string_view leaf = entry.address;
      if (leaf.ends_with("." + entry.host)) leaf.remove_suffix(entry.host.size() + 1);
      switches.emplace_back(leaf);
    }
    for (size_t i = 0; i + 1 < switches.size(); ++i) {
      const int up = switch_named(switches[i]), down = switch_named(switches[i + 1]);
      if (up != down) links.try_emplace({down, up}, SwitchLink{.a = down, .b = up});
    }
    fabric.ports.push_back({.host = entry.host, .leaf = switch_named(switches.back())});
  }
  if (fabric.switches.empty()) return fabric;
  fabric.source = "SLURM_TOPOLOGY_ADDR";
  std::vector<SwitchLink> list;
  for (const auto& [pair, link] : links) list.push_back(link);
  lay_out_fabric(fabric, list, Directions::kByHops);  // hosts might contradict each other
  return fabric;
}

}  // namespace r1::launch
