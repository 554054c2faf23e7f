#include "launch/topology/svg.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <map>
#include <set>

#include "launch/topology/render.h"
#include "runtime/core/text.h"

namespace r1::launch {
namespace {

constexpr double kDeviceW = 92, kDeviceH = 48, kGap = 10, kPad = 14;

/// At most `chars` characters, the middle left out.
std::string fitted(const std::string& text, size_t chars) {
  if (text.size() <= chars || chars < 4) return text.substr(0, chars);
  const size_t head = (chars - 1) / 2, tail = chars - 1 - head;
  return text.substr(0, head) + "…" + text.substr(text.size() - tail);
}

struct Colour {
  double at_least;  // GB/s
  const char* colour;
  const char* text;
};
constexpr std::array<Colour, 5> kColours = {{{200, "#1a7f37", "200 GB/s and more"},
                                             {40, "#4ac26b", "40 to 200"},
                                             {20, "#0969da", "20 to 40"},
                                             {8, "#bf8700", "8 to 20"},
                                             {0, "#cf222e", "less than 8"}}};
constexpr const char* kUnknownColour = "#8c959f";

const char* colour_of(std::optional<double> gbytes_per_s) {
  if (!gbytes_per_s) return kUnknownColour;
  for (const Colour& c : kColours)
    if (*gbytes_per_s >= c.at_least) return c.colour;
  return kUnknownColour;
}
double width_of(std::optional<double> gbytes_per_s) {
  const double v = gbytes_per_s.value_or(0);
  return v >= 200 ? 5 : v >= 40 ? 3.5 : v >= 20 ? 2.5 : 1.8;
}

class Canvas {
 public:
  double width = 0, height = 0;

  void box(double x, double y, double w, double h, const char* fill, const char* stroke,
           double radius = 6) {
    grow(x + w, y + h);
    body_ += fmt::format(
        "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" rx=\"{}\" fill=\"{}\" "
        "stroke=\"{}\"/>\n",
        x, y, w, h, radius, fill, stroke);
  }
  void text(double x, double y, const std::string& words, const char* style) {
    body_ += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" class=\"{}\">{}</text>\n", x, y, style,
                         xml_escaped(words));
    grow(x, y);
  }
  void line(double x1, double y1, double x2, double y2, std::optional<double> gbytes_per_s) {
    under_ += fmt::format(
        "<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"{}\" "
        "stroke-width=\"{}\"/>\n",
        x1, y1, x2, y2, colour_of(gbytes_per_s), width_of(gbytes_per_s));
  }
  /// A bow below a row of devices.
  void bow(double x1, double x2, double y, double depth, std::optional<double> gbytes_per_s) {
    body_ += fmt::format(
        "<path d=\"M{:.1f} {:.1f} C{:.1f} {:.1f} {:.1f} {:.1f} {:.1f} {:.1f}\" fill=\"none\" "
        "stroke=\"{}\" stroke-width=\"{}\"/>\n",
        x1, y, x1, y + depth, x2, y + depth, x2, y, colour_of(gbytes_per_s),
        width_of(gbytes_per_s));
    grow(std::max(x1, x2), y + depth * 0.8);
  }
  void grow(double x, double y) {
    width = std::max(width, x);
    height = std::max(height, y);
  }
  [[nodiscard]] std::string finish() const {
    return fmt::format(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:.0f}\" height=\"{1:.0f}\" "
        "viewBox=\"0 0 {0:.0f} {1:.0f}\">\n"
        "<style>text{{font-family:DejaVu Sans,Helvetica,Arial,sans-serif;fill:#1f2328}}"
        ".title{{font-size:16px;font-weight:bold}}.head{{font-size:12px;font-weight:bold}}.small{{"
        "font-size:10px}}"
        ".mid{{font-size:11px;text-anchor:middle}}.midsmall{{font-size:9.5px;text-anchor:middle;"
        "fill:#57606a}}"
        ".note{{font-size:11px;fill:#57606a}}</style>\n"
        "<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n{2}{3}</svg>\n",
        width + kPad, height + kPad, under_, body_);
  }
  /// Lines go under the boxes that are drawn after this.
  void flush_lines() {
    body_ += under_;
    under_.clear();
  }

 private:
  std::string body_, under_;
};

void draw_legend(Canvas& canvas, double x, double y) {
  canvas.text(x, y, "link bandwidth in one direction:", "note");
  double at = x + 200;
  const auto entry = [&](const char* colour, const std::string& words) {
    canvas.box(at, y - 8, 22, 8, colour, "none", 2);
    canvas.text(at + 27, y, words, "note");
    at += 40 + 6.4 * static_cast<double>(words.size());
  };
  for (const Colour& c : kColours) entry(c.colour, c.text);
  entry(kUnknownColour, "unknown");
  canvas.grow(at, y);
}

// ---- one host in full

/// A row of devices below one parent.
struct Group {
  std::optional<int> pci;                     // the switch; nullopt: directly on the CPU
  std::vector<std::pair<bool, int>> devices;  // (is a GPU, index)
  [[nodiscard]] double width() const {
    return std::max(1.0, static_cast<double>(devices.size())) * (kDeviceW + kGap) + kGap;
  }
};

/// Everything that hangs on one NUMA node.
struct Column {
  std::optional<int> numa;
  std::vector<Group> groups;
  [[nodiscard]] double width() const {
    double w = 150;
    double sum = kGap;
    for (const Group& group : groups) sum += group.width() + kGap;
    return std::max(w, sum);
  }
};

/// The switch that counts for the drawing: the device's own parent unless that is the host bridge.
std::optional<int> own_switch(const HostTopology& host, std::optional<int> parent) {
  if (!parent || host.pci[static_cast<size_t>(*parent)].kind == PciSwitch::Kind::kHostBridge)
    return std::nullopt;
  return parent;
}

std::vector<Column> columns_of(const HostTopology& host) {
  std::map<int, Column> by_numa;  // -1: unknown
  for (size_t n = 0; n < host.numa_nodes.size(); ++n)
    if (!host.numa_nodes[n].device_memory) by_numa[static_cast<int>(n)].numa = static_cast<int>(n);
  const auto add = [&](bool gpu, int index, std::optional<int> parent, std::optional<int> numa) {
    Column& column = by_numa[numa.value_or(-1)];
    const auto own = own_switch(host, parent);
    auto group = std::ranges::find(column.groups, own, &Group::pci);
    if (group == column.groups.end())
      group = column.groups.insert(column.groups.end(), Group{.pci = own});
    group->devices.emplace_back(gpu, index);
  };
  for (size_t g = 0; g < host.gpus.size(); ++g)
    add(true, static_cast<int>(g), host.gpus[g].pci_parent, host.gpus[g].numa);
  for (size_t n = 0; n < host.nics.size(); ++n)
    add(false, static_cast<int>(n), host.nics[n].pci_parent, host.nics[n].numa);
  std::vector<Column> out;
  for (auto& [numa, column] : by_numa) out.push_back(std::move(column));
  // Nodes of one package side by side.
  std::ranges::stable_sort(out, {}, [&](const Column& c) {
    return c.numa ? host.numa_nodes[static_cast<size_t>(*c.numa)].package.value_or(1 << 20)
                  : 1 << 21;
  });
  return out;
}

class HostDrawing {
 public:
  HostDrawing(Canvas& canvas, const HostTopology& host, const std::string& title, double x,
              double y)
      : canvas_(canvas), host_(host), title_(title), x_(x), y_(y), gpu_at_(host.gpus.size()) {}

  /// Returns the height used.
  double draw() {
    const auto columns = columns_of(host_);
    double width = kPad;
    for (const Column& column : columns) width += column.width() + kPad;
    canvas_.box(x_, y_, std::max(width, 420.0), 10, "none", "none");
    std::string head = title_;
    if (!host_.architecture.empty()) head += "  ·  " + host_.architecture;
    canvas_.text(x_ + kPad, y_ + 22, head, "title");
    const double top = y_ + 36;
    double at = x_ + kPad;
    for (const Column& column : columns) {
      draw_column(column, at, top);
      at += column.width() + kPad;
    }
    const double links = draw_nvlinks(top + kColumnHeight + 6);
    const double bottom = std::max(top + kColumnHeight + kPad, links + 8);
    double note = bottom + 12;
    for (const std::string& line : notes()) {
      canvas_.text(x_ + kPad, note, line, "note");
      note += 15;
    }
    canvas_.box(x_, y_, std::max(width, 420.0), note - y_, "none", "#57606a", 10);
    return note - y_;
  }

 private:
  static constexpr double kColumnHeight = 230;
  Canvas& canvas_;
  const HostTopology& host_;
  const std::string& title_;
  double x_, y_;
  std::vector<std::pair<double, double>> gpu_at_;  // middle of the lower edge

  void draw_column(const Column& column, double x, double y) {
    const double w = column.width();
    canvas_.box(x, y, w, kColumnHeight, "#f6f8fa", "#afb8c1");
    std::string head = "place unknown", below;
    if (column.numa) {
      const NumaNode& node = host_.numa_nodes[static_cast<size_t>(*column.numa)];
      head = node.os_index < 0 ? "NUMA node ?" : fmt::format("NUMA node {}", node.os_index);
      if (node.package)
        head = fmt::format("package {} · {}",
                           host_.packages[static_cast<size_t>(*node.package)].os_index, head);
      if (!node.cpus.empty())
        below = "CPUs " + fitted(node.cpus.list(), static_cast<size_t>(w / 6.2) - 6);
      if (node.memory_bytes)
        below += fmt::format("  {:.0f} GB", static_cast<double>(*node.memory_bytes) / 1e9);
    }
    canvas_.text(x + kGap, y + 18, fitted(head, static_cast<size_t>(w / 7)), "head");
    canvas_.text(x + kGap, y + 33, fitted(below, static_cast<size_t>(w / 5.6)), "small");
    double at = x + kGap;
    for (const Group& group : column.groups) {
      draw_group(group, at, y + 50);
      at += group.width() + kGap;
    }
  }

  void draw_group(const Group& group, double x, double y) {
    const double w = group.width(), bar = y + 44;
    if (group.pci) {
      const PciSwitch& node = host_.pci[static_cast<size_t>(*group.pci)];
      canvas_.line(x + w / 2, y - 6, x + w / 2, bar, node.gbytes_per_s);
      canvas_.flush_lines();
      canvas_.box(x, bar, w, 24, "#ddf4ff", "#54aeff", 4);
      canvas_.text(x + w / 2, bar + 16,
                   fitted("switch " + node.busid, static_cast<size_t>(w / 6.4)), "mid");
    }
    double at = x + kGap;
    const double device_y = y + 110;
    for (const auto& [is_gpu, index] : group.devices) {
      const auto i = static_cast<size_t>(index);
      const auto slot = is_gpu ? host_.gpus[i].pci_gbytes_per_s : host_.nics[i].pci_gbytes_per_s;
      canvas_.line(at + kDeviceW / 2, group.pci ? bar + 24 : y - 6, at + kDeviceW / 2, device_y,
                   slot && *slot >= 5000 ? std::nullopt : slot);
      canvas_.flush_lines();
      is_gpu ? draw_gpu(i, at, device_y) : draw_nic(host_.nics[i], at, device_y);
      at += kDeviceW + kGap;
    }
  }

  void draw_gpu(size_t g, double x, double y) {
    const Gpu& gpu = host_.gpus[g];
    canvas_.box(x, y, kDeviceW, kDeviceH, "#dafbe1", "#2da44e");
    canvas_.text(x + kDeviceW / 2, y + 16, label(gpu), "mid");
    std::string kind = gpu.name.empty() ? gpu.pci_id : gpu.name;
    if (kind.starts_with("NVIDIA ")) kind.erase(0, 7);
    canvas_.text(x + kDeviceW / 2, y + 29, fitted(kind, 15), "midsmall");
    canvas_.text(x + kDeviceW / 2, y + 41, fitted(gpu.busid, 17), "midsmall");
    gpu_at_[g] = {x + kDeviceW / 2, y + kDeviceH};
  }

  void draw_nic(const Nic& nic, double x, double y) {
    canvas_.box(x, y, kDeviceW, kDeviceH, nic.rdma ? "#fff8c5" : "#eaeef2",
                nic.rdma ? "#d4a72c" : "#8c959f");
    canvas_.text(x + kDeviceW / 2, y + 16, fitted(label(nic), 13), "mid");
    canvas_.text(x + kDeviceW / 2, y + 29,
                 nic.rate_mbit_per_s ? fmt::format("{:g} Gbit/s", *nic.rate_mbit_per_s / 1000)
                                     : "rate unknown",
                 "midsmall");
    canvas_.text(x + kDeviceW / 2, y + 41, fitted(nic.busid, 17), "midsmall");
  }

  /// All pairs of a domain alike: one bar that they hang on; else a bow a pair. Returns the lowest
  /// point.
  double draw_nvlinks(double y) {
    double bottom = y;
    int bars = 0;
    for (const auto& domain : nvlink_groups()) {
      if (domain.size() < 2) continue;
      const std::set<std::string> cells = cells_between(host_, domain);
      bottom = std::max(bottom, cells.size() == 1 && domain.size() > 2
                                    ? draw_bar(domain, *cells.begin(), y + 34.0 * bars++)
                                    : draw_bows(domain));
    }
    return bottom;
  }

  /// Domains, cut into the boards of NVSwitches where there are several.
  std::vector<std::vector<int>> nvlink_groups() const {
    std::vector<std::vector<int>> out;
    for (const auto& domain : host_.nvlink_domains()) {
      std::map<int, std::vector<int>> boards;
      for (const int g : domain)
        boards[host_.gpus[static_cast<size_t>(g)].nvswitch_board.value_or(-1)].push_back(g);
      for (auto& [board, gpus] : boards) out.push_back(std::move(gpus));
    }
    return out;
  }

  double draw_bar(const std::vector<int>& domain, const std::string& word, double y) {
    const Path& pair =
        host_.gpu_gpu[static_cast<size_t>(domain[0])][static_cast<size_t>(domain[1])];
    double left = 1e9, right = 0;
    for (const int g : domain) {
      const auto [x, from] = gpu_at_[static_cast<size_t>(g)];
      canvas_.line(x, from, x, y + 4, pair.gbytes_per_s);
      left = std::min(left, x);
      right = std::max(right, x);
    }
    canvas_.flush_lines();
    canvas_.box(left - 30, y + 4, right - left + 60, 24, "#e6ffec", colour_of(pair.gbytes_per_s),
                4);
    std::set<int> switches;
    for (const NvLink& link : host_.nvlinks)
      if (link.target == NvLink::Target::kSwitch &&
          std::ranges::find(domain, link.gpu) != domain.end())
        switches.insert(link.target_index);
    std::string words = switches.empty()
                            ? fmt::format("NVLink, every pair {}", word)
                            : fmt::format("{} NVSwitch{}, every pair {}", switches.size(),
                                          switches.size() == 1 ? "" : "es", word);
    if (pair.gbytes_per_s) words += fmt::format(", {:g} GB/s", *pair.gbytes_per_s);
    canvas_.text((left + right) / 2, y + 20, words, "mid");
    return y + 34;
  }

  double draw_bows(const std::vector<int>& domain) {
    double bottom = 0;
    for (const int a : domain)
      for (const int b : domain) {
        const Path& path = host_.gpu_gpu[static_cast<size_t>(a)][static_cast<size_t>(b)];
        if (b <= a || path.path_class != PathClass::kNvl) continue;
        const auto [x1, y1] = gpu_at_[static_cast<size_t>(a)];
        const auto [x2, y2] = gpu_at_[static_cast<size_t>(b)];
        const double depth = 30 + std::min(150.0, std::abs(x2 - x1) * 0.16);
        canvas_.bow(x1, x2, y1, depth, path.gbytes_per_s);
        canvas_.text((x1 + x2) / 2, y1 + depth * 0.75 + 10, cell(path), "midsmall");
        bottom = std::max(bottom, y1 + depth);
      }
    return bottom;
  }

  std::vector<std::string> notes() const {
    std::vector<std::string> out;
    for (size_t g = 0; g < host_.gpus.size(); ++g) {
      if (host_.nics.empty()) break;
      std::vector<std::string> names;
      for (const int n : host_.near_nics[g])
        names.push_back(label(host_.nics[static_cast<size_t>(n)]));
      std::string line = fmt::format(
          "{}: nearest NIC {}", label(host_.gpus[g]),
          names.empty() ? "none nearer than SYS" : fmt::format("{}", fmt::join(names, ", ")));
      if (!names.empty())
        line += fmt::format(" ({})",
                            cell(host_.gpu_nic[g][static_cast<size_t>(host_.near_nics[g][0])]));
      out.push_back(std::move(line));
    }
    if (std::ranges::any_of(host_.gpus, [](const Gpu& gpu) { return gpu.nvswitch_board > 0; }))
      out.emplace_back(
          "links between the boards of NVSwitches: not in the source, bandwidth unknown");
    if (host_.gpus.size() > 1 && !host_.nvlink_known)
      out.emplace_back("NVLink: unknown (the sources do not speak of it)");
    return out;
  }
};

// ---- many hosts

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

std::string to_svg(const Topology& topology) {
  Canvas canvas;
  const size_t hosts = static_cast<size_t>(
      std::ranges::count_if(topology.hosts, [](const auto& m) { return m.host != nullptr; }));
  draw_legend(canvas, kPad, 22);
  if (hosts > 0 && hosts <= 2 && topology.hosts.size() <= 2 && topology.fabric.switches.empty()) {
    double y = 40;
    for (const auto& member : topology.hosts) {
      if (!member.host) continue;
      const std::string title = member.name.empty() ? "host" : member.name;
      y += HostDrawing(canvas, *member.host, title, kPad, y).draw() + 20;
    }
  } else {
    ClusterDrawing(canvas, topology).draw();
  }
  return canvas.finish();
}

}  // namespace r1::launch
