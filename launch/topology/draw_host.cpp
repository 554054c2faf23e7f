// The picture of one host in full: its NUMA nodes, switches, devices and NVLinks.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <set>

#include "launch/topology/canvas.h"
#include "launch/topology/drawings.h"
#include "launch/topology/render.h"

namespace r1::launch {
namespace {

constexpr double kDeviceW = 92, kDeviceH = 48;
constexpr double kGap = kDrawingGap, kPad = kDrawingPad;

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

}  // namespace

double draw_host(Canvas& canvas, const HostTopology& host, const std::string& title, double x,
                 double y) {
  return HostDrawing(canvas, host, title, x, y).draw();
}

}  // namespace r1::launch
