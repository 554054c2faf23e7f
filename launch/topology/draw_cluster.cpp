// The picture of many hosts: the switches above, the hosts below by the leaf switches they hang on.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <set>

#include "launch/topology/canvas.h"
#include "launch/topology/drawings.h"

namespace r1::launch {
namespace {

constexpr double kGap = kDrawingGap, kPad = kDrawingPad;

struct Cell {
  std::string name;
  const HostTopology* host = nullptr;
};

/// Hosts by the leaf switches they hang on, in the order of the fabric; the last group: no leaf
/// known.
struct LeafGroup {
  std::vector<int> leaves;
  std::vector<Cell> hosts;
};

std::vector<LeafGroup> groups_of(const Topology& topology) {
  std::vector<Cell> cells;
  for (const auto& member : topology.hosts) cells.push_back({member.name, member.host.get()});
  if (cells.empty()) {  // a fabric alone names its hosts
    std::set<std::string> seen;
    for (const FabricPort& port : topology.fabric.ports)
      if (!port.host.empty() && seen.insert(port.host).second)
        cells.push_back({port.host, nullptr});
  }
  std::vector<std::string> names;
  for (const Cell& c : cells) names.push_back(c.name);
  const auto leaves = topology.fabric.leaves_of(names);
  std::map<std::vector<int>, LeafGroup> groups;
  for (size_t i = 0; i < cells.size(); ++i) {
    LeafGroup& group = groups[leaves[i]];
    group.leaves = leaves[i];
    group.hosts.push_back(cells[i]);
  }
  std::vector<LeafGroup> out;
  for (auto& [key, group] : groups)
    if (!key.empty()) out.push_back(std::move(group));
  if (const auto none = groups.find({}); none != groups.end())
    out.push_back(std::move(none->second));
  return out;
}

class ClusterDrawing {
 public:
  ClusterDrawing(Canvas& canvas, const Topology& topology)
      : canvas_(canvas), topology_(topology), fabric_(topology.fabric) {}

  void draw() {
    const auto groups = groups_of(topology_);
    const double spines_y = 60;
    const double leaves_y = fabric_.switches.empty() ? 60 : spine_rows() * 90.0 + 60;
    const double hosts_y = fabric_.switches.empty() ? 60 : leaves_y + 110;
    // All groups side by side, so that no line from a leaf crosses a host; the more groups, the
    // narrower each.
    const double step = kHostW + kGap;
    const auto leaves = std::ranges::count(fabric_.switches, 0, &FabricSwitch::level);
    const double limit = std::max(1500.0, static_cast<double>(leaves) * (kLeafW + kGap));
    const auto most = static_cast<size_t>(
        std::clamp(limit / step / std::max(1.0, static_cast<double>(groups.size())), 1.0, 8.0));
    double x = kPad;
    std::map<int, std::vector<double>> above;  // middles of the groups below each leaf
    std::vector<std::pair<double, double>> places;
    for (const LeafGroup& group : groups) {
      const size_t columns = std::min(group.hosts.size(), most);
      const double w = static_cast<double>(columns) * step + kGap;
      const double h = static_cast<double>((group.hosts.size() + columns - 1) / columns) *
                           (host_height(group) + kGap) +
                       30;
      draw_group(group, x, hosts_y, w, h, columns);
      for (const int leaf : group.leaves) above[leaf].push_back(x + w / 2);
      places.emplace_back(x + w / 2, hosts_y);
      x += w + kPad;
    }
    const auto leaf_at = place_leaves(above, leaves_y);
    for (size_t g = 0; g < groups.size(); ++g)
      for (const int leaf : groups[g].leaves) {
        const auto at = leaf_at.find(leaf);
        if (at != leaf_at.end())
          canvas_.line(at->second.first, at->second.second + 40, places[g].first, places[g].second,
                       port_rate(leaf));
      }
    draw_switches(leaf_at, spines_y);
  }

 private:
  static constexpr double kHostW = 168, kLeafW = 150;
  Canvas& canvas_;
  const Topology& topology_;
  const Fabric& fabric_;

  /// Leaves in the order of the hosts below them, none upon another.
  std::map<int, std::pair<double, double>> place_leaves(
      const std::map<int, std::vector<double>>& above, double y) const {
    std::vector<std::pair<double, int>> order;
    for (size_t s = 0; s < fabric_.switches.size(); ++s) {
      if (fabric_.switches[s].level != 0) continue;
      const auto hosts = above.find(static_cast<int>(s));
      double sum = 0;
      if (hosts != above.end())
        for (const double x : hosts->second) sum += x;
      order.emplace_back(
          hosts == above.end() ? 1e9 : sum / static_cast<double>(hosts->second.size()),
          static_cast<int>(s));
    }
    std::ranges::sort(order);
    std::map<int, std::pair<double, double>> out;
    double next = kPad + kLeafW / 2;
    for (const auto& [wanted, leaf] : order) {
      const double x = wanted < 1e9 ? std::max(next, wanted) : next;
      out[leaf] = {x, y};
      next = x + kLeafW + kGap;
    }
    return out;
  }

  int spine_rows() const {
    int most = 0;
    for (const FabricSwitch& s : fabric_.switches) most = std::max(most, s.level);
    return std::min(most, 6);
  }

  static double host_height(const LeafGroup& group) {
    size_t rows = 0;
    for (const Cell& c : group.hosts)
      if (c.host != nullptr)
        rows = std::max(rows, (c.host->gpus.size() + 3) / 4 + (rdma_nics(*c.host).size() + 3) / 4);
    return 30 + 26.0 * static_cast<double>(rows);
  }
  static std::vector<const Nic*> rdma_nics(const HostTopology& host) {
    std::vector<const Nic*> out;
    const bool any = std::ranges::any_of(host.nics, &Nic::rdma);
    for (const Nic& nic : host.nics)
      if (nic.rdma || !any) out.push_back(&nic);
    return out;
  }

  void draw_group(const LeafGroup& group, double x, double y, double w, double h, size_t columns) {
    canvas_.box(x, y, w, h, "#f6f8fa", "#afb8c1", 8);
    std::vector<std::string> names;
    for (const int leaf : group.leaves)
      names.push_back(fabric_.switches[static_cast<size_t>(leaf)].name);
    std::string head = group.leaves.empty()
                           ? (fabric_.switches.empty() ? "hosts" : "leaf switch unknown")
                           : fmt::format("on {}", fmt::join(names, ", "));
    canvas_.text(x + kGap, y + 17, fitted(head, static_cast<size_t>(w / 6.6)), "head");
    const double host_h = host_height(group);
    for (size_t i = 0; i < group.hosts.size(); ++i)
      draw_host(group.hosts[i], x + kGap + static_cast<double>(i % columns) * (kHostW + kGap),
                y + 26 + static_cast<double>(i / columns) * (host_h + kGap), host_h);
  }

  std::optional<double> port_rate(int leaf) const {
    for (const FabricPort& port : fabric_.ports)
      if (port.leaf == leaf) return port.gbytes_per_s;
    return std::nullopt;
  }

  void draw_host(const Cell& c, double x, double y, double h) {
    canvas_.box(x, y, kHostW, h, "#ffffff", "#57606a", 5);
    canvas_.text(x + 6, y + 16, fitted(c.name, 23), "head");
    if (c.host == nullptr) return;
    double at = y + 24;
    const auto& gpus = c.host->gpus;
    // GPUs of one NVLink domain share a frame's colour.
    for (size_t g = 0; g < gpus.size(); ++g) {
      const double gx = x + 6 + static_cast<double>(g % 4) * 40,
                   gy = at + static_cast<double>(g / 4) * 26;
      std::optional<double> best;
      for (const Path& path : c.host->gpu_gpu[g])
        if (path.path_class == PathClass::kNvl)
          best = std::max(best.value_or(0), path.gbytes_per_s.value_or(0));
      canvas_.box(gx, gy, 36, 20, "#dafbe1",
                  best ? colour_of(*best > 0 ? best : std::nullopt) : "#2da44e", 3);
      canvas_.text(gx + 18, gy + 14, fmt::format("G{}", gpus[g].index), "mid");
    }
    at += static_cast<double>((gpus.size() + 3) / 4) * 26;
    const auto nics = rdma_nics(*c.host);
    for (size_t n = 0; n < nics.size(); ++n) {
      const double nx = x + 6 + static_cast<double>(n % 4) * 40,
                   ny = at + static_cast<double>(n / 4) * 26;
      const auto rate =
          nics[n]->rate_mbit_per_s ? std::optional(*nics[n]->rate_mbit_per_s / 8000) : std::nullopt;
      canvas_.box(nx, ny, 36, 20, "#fff8c5", colour_of(rate), 3);
      canvas_.text(
          nx + 18, ny + 14,
          nics[n]->rate_mbit_per_s ? fmt::format("{:g}G", *nics[n]->rate_mbit_per_s / 1000) : "NIC",
          "mid");
    }
  }

  void draw_switches(const std::map<int, std::pair<double, double>>& leaf_at, double spines_y) {
    std::map<int, std::pair<double, double>> at = leaf_at;
    std::map<int, double> next_x;
    const int rows = spine_rows();
    double full = std::max(canvas_.width, 600.0);
    for (const auto& [leaf, place] : leaf_at) full = std::max(full, place.first + kLeafW / 2);
    std::map<int, int> counts;
    for (const FabricSwitch& s : fabric_.switches) ++counts[std::min(s.level, 6)];
    for (size_t s = 0; s < fabric_.switches.size(); ++s) {
      const int level = std::min(fabric_.switches[s].level, 6);
      if (level == 0) continue;
      const double step = std::max(kLeafW + kGap, full / (counts[level] + 1));
      const double x = (next_x[level] += step) - kLeafW / 2;
      at[static_cast<int>(s)] = {x, spines_y + (rows - level) * 90.0};
    }
    for (size_t s = 0; s < fabric_.switches.size(); ++s)
      for (const auto& link : fabric_.switches[s].up) {
        const auto from = at.find(static_cast<int>(s)), to = at.find(link.to);
        if (from != at.end() && to != at.end())
          canvas_.line(from->second.first, from->second.second, to->second.first,
                       to->second.second + 40, link.gbytes_per_s);
      }
    canvas_.flush_lines();
    for (const auto& [index, place] : at) {
      const FabricSwitch& node = fabric_.switches[static_cast<size_t>(index)];
      canvas_.box(place.first - kLeafW / 2, place.second, kLeafW, 40,
                  node.level == 0 ? "#ddf4ff" : "#fbefff", node.level == 0 ? "#54aeff" : "#c297ff",
                  5);
      canvas_.text(place.first, place.second + 17, fitted(node.name, 21), "mid");
      if (node.oversubscription)
        canvas_.text(place.first, place.second + 32,
                     fmt::format("over-subscription {:.2f}", *node.oversubscription), "midsmall");
    }
  }
};

}  // namespace

void draw_cluster(Canvas& canvas, const Topology& topology) {
  ClusterDrawing(canvas, topology).draw();
}

}  // namespace r1::launch
