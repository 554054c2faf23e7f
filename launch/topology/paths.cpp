#include "launch/topology/paths.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <limits>
#include <map>
#include <numeric>

#include "runtime/core/error.h"

namespace r1::launch {
namespace {

constexpr double kSameDevice = 5000;  // NCCL's loop-back
constexpr double kAssumedSlot = 12;   // NCCL's: PCI 3.0 x16
constexpr double kUnbounded = std::numeric_limits<double>::infinity();

}  // namespace

double nvlink_gbytes_per_s(std::optional<int> sm) {
  const int v = sm.value_or(0);
  if (v >= 100 && v < 120) return 40.1;
  if (v >= 90 && v < 100) return 20.6;
  if (v == 86) return 12;
  if (v >= 60 && v < 70) return 18;
  return 20;
}

double numa_gbytes_per_s(const HostTopology& host) {
  const std::string_view arch = host.architecture, vendor = host.cpu_vendor;
  if (arch.starts_with("ppc64")) return 32;
  if (arch == "arm64" || arch == "aarch64") return 6;
  if (vendor == "AuthenticAMD") return 16;
  if (vendor == "GenuineIntel") {
    const int model = host.cpu_family.value_or(0) == 6 ? host.cpu_model.value_or(0) : 0;
    if (model >= 0xCF) return 40;  // Emerald Rapids
    if (model >= 0x8F) return 22;  // Sapphire Rapids
    if (model >= 0x55) return 10;  // Skylake
    return 6;                      // Broadwell
  }
  if (vendor == "CentaurHauls" || vendor == "  Shanghai  ") return 6;
  return kSameDevice;
}

std::optional<double> pci_gbytes_per_s(std::string_view link_speed, int width) {
  double rate = 0;
  const auto [at, error] =
      std::from_chars(link_speed.data(), link_speed.data() + link_speed.size(), rate);
  if (error != std::errc{} || width <= 0 || width > 32) return std::nullopt;
  if (!std::string_view(at, link_speed.data() + link_speed.size()).starts_with(" GT/s"))
    return std::nullopt;
  // NCCL's payload rate of a lane, in units of 100 Mbit/s.
  static constexpr std::array<std::pair<double, int>, 6> kRates = {
      {{2.5, 15}, {5, 30}, {8, 60}, {16, 120}, {32, 240}, {64, 480}}};
  for (const auto& [speed, payload] : kRates)
    if (rate == speed) return width * payload / 80.0;
  return std::nullopt;
}

std::optional<int> sm_of_pci_id(std::string_view pci_id) {
  if (pci_id.size() != 9 || !pci_id.starts_with("10de:")) return std::nullopt;
  int device = 0;
  const auto [at, error] = std::from_chars(pci_id.data() + 5, pci_id.data() + 9, device, 16);
  if (error != std::errc{} || at != pci_id.data() + 9) return std::nullopt;
  // Ranges of the PCI id database by chip.
  struct Range {
    int first, last, sm;
  };
  static constexpr std::array<Range, 12> kChips = {{{0x15f0, 0x15ff, 60},     // GP100
                                                    {0x1b00, 0x1d7f, 61},     // GP10x
                                                    {0x1d80, 0x1dff, 70},     // GV100
                                                    {0x1e00, 0x1fff, 75},     // TU10x
                                                    {0x2080, 0x20ff, 80},     // GA100
                                                    {0x2180, 0x21ff, 75},     // TU11x
                                                    {0x2200, 0x22ff, 86},     // GA102
                                                    {0x2300, 0x23ff, 90},     // GH100
                                                    {0x2400, 0x25ff, 86},     // GA103 … GA107
                                                    {0x2680, 0x28ff, 89},     // AD10x
                                                    {0x2900, 0x29ff, 100},    // GB100
                                                    {0x2b80, 0x2dff, 120}}};  // GB20x
  for (const Range& chip : kChips)
    if (device >= chip.first && device <= chip.last) return chip.sm;
  return std::nullopt;
}

std::optional<double> infiniband_mbit_per_s(std::string_view text) {
  int width = 0;
  const auto [at, error] = std::from_chars(text.data(), text.data() + text.size(), width);
  if (error != std::errc{} || at == text.data() + text.size() || *at != 'x') return std::nullopt;
  static constexpr std::array<int, 5> kWidths = {1, 2, 4, 8, 12};
  if (std::ranges::find(kWidths, width) == kWidths.end()) return std::nullopt;
  std::string_view speed(at + 1, text.data() + text.size());
  while (!speed.empty() && speed.back() == ' ') speed.remove_suffix(1);
  static constexpr std::array<std::pair<std::string_view, double>, 9> kLanes = {{{"SDR", 2500},
                                                                                 {"DDR", 5000},
                                                                                 {"QDR", 10000},
                                                                                 {"FDR10", 10000},
                                                                                 {"FDR", 14000},
                                                                                 {"EDR", 25000},
                                                                                 {"HDR", 50000},
                                                                                 {"NDR", 100000},
                                                                                 {"XDR", 200000}}};
  for (const auto& [word, lane] : kLanes)
    if (speed == word) return width * lane;
  return std::nullopt;
}

namespace {

enum class Step : uint8_t { kNvl, kC2c, kPci, kSys };
enum class Kind : uint8_t { kGpu, kNic, kSwitch, kNvSwitch, kCpu };

struct Edge {
  int to = 0;
  Step step = Step::kPci;
  double gbytes_per_s = 0;
  bool assumed = false;  // the bandwidth is NCCL's assumption, not the source's
};

/// The host as NCCL sees it: ports of a switch fused, host bridges part of their NUMA node,
/// NVSwitches one node.
struct Graph {
  std::vector<Kind> kinds;
  std::vector<std::vector<Edge>> edges;

  int add(Kind kind) {
    kinds.push_back(kind);
    edges.emplace_back();
    return static_cast<int>(kinds.size()) - 1;
  }
  void connect(int a, int b, Step step, double gbytes_per_s, bool assumed) {
    edges[static_cast<size_t>(a)].push_back({b, step, gbytes_per_s, assumed});
    edges[static_cast<size_t>(b)].push_back({a, step, gbytes_per_s, assumed});
  }
};

struct Builder {
  const HostTopology& host;
  Graph graph;
  std::vector<int> gpus, nics, pci;  // node of each
  std::map<int, int> cpus;           // node by NUMA index; -1: devices whose node is unknown
  int nvswitch = -1;

  int cpu(std::optional<int> numa) {
    const auto [at, fresh] = cpus.try_emplace(numa.value_or(-1), 0);
    if (fresh) at->second = graph.add(Kind::kCpu);
    return at->second;
  }
  /// Whatever a device below `parent` hangs on.
  int upstream(std::optional<int> parent, std::optional<int> numa) {
    if (!parent) return cpu(numa);
    const PciSwitch& up = host.pci[static_cast<size_t>(*parent)];
    if (up.kind == PciSwitch::Kind::kHostBridge) return cpu(up.numa ? up.numa : numa);
    return pci[static_cast<size_t>(*parent)];
  }
  void connect_pci(int node, std::optional<int> parent, std::optional<int> numa,
                   std::optional<double> slot, double most) {
    graph.connect(node, upstream(parent, numa), Step::kPci,
                  std::min(slot.value_or(kAssumedSlot), most), !slot);
  }

  void build() {
    for (const PciSwitch& bridge : host.pci) {
      const bool is_switch = bridge.kind != PciSwitch::Kind::kHostBridge;
      pci.push_back(is_switch ? graph.add(Kind::kSwitch) : -1);
      if (is_switch)
        connect_pci(pci.back(), bridge.parent, bridge.numa, bridge.gbytes_per_s, kUnbounded);
    }
    for (const Gpu& gpu : host.gpus) {
      gpus.push_back(graph.add(Kind::kGpu));
      connect_pci(gpus.back(), gpu.pci_parent, gpu.numa, gpu.pci_gbytes_per_s, kUnbounded);
    }
    for (const Nic& nic : host.nics) {
      nics.push_back(graph.add(Kind::kNic));
      const double wire = nic.rate_mbit_per_s ? *nic.rate_mbit_per_s / 8000 : kUnbounded;
      connect_pci(nics.back(), nic.pci_parent, nic.numa, nic.pci_gbytes_per_s, wire);
    }
    for (const NvLink& link : host.nvlinks) connect_nvlink(link);
    // Nodes without devices matter to no path.
    const double between = numa_gbytes_per_s(host);
    for (auto a = cpus.begin(); a != cpus.end(); ++a)
      for (auto b = std::next(a); b != cpus.end(); ++b)
        graph.connect(a->second, b->second, Step::kSys, between, between == kSameDevice);
  }

  void connect_nvlink(const NvLink& link) {
    const int gpu = gpus[static_cast<size_t>(link.gpu)];
    const double rate = link.gbytes_per_s.value_or(20);
    const bool assumed = !link.gbytes_per_s;
    switch (link.target) {
      case NvLink::Target::kGpu: {
        // Both ends report a link: one direction each.
        const int other = gpus[static_cast<size_t>(link.target_index)];
        graph.edges[static_cast<size_t>(gpu)].push_back({other, Step::kNvl, rate, assumed});
        break;
      }
      case NvLink::Target::kSwitch: {
        if (nvswitch < 0) nvswitch = graph.add(Kind::kNvSwitch);
        auto& from = graph.edges[static_cast<size_t>(gpu)];
        const auto known = std::ranges::find(from, nvswitch, &Edge::to);
        if (known == from.end()) {
          graph.connect(gpu, nvswitch, Step::kNvl, rate, assumed);
        } else {  // links to further switches add up
          known->gbytes_per_s += rate;
          const auto back =
              std::ranges::find(graph.edges[static_cast<size_t>(nvswitch)], gpu, &Edge::to);
          back->gbytes_per_s += rate;
        }
        break;
      }
      case NvLink::Target::kCpu:
        graph.connect(gpu,
                      cpu(link.target_index < 0 ? std::nullopt : std::optional(link.target_index)),
                      link.c2c ? Step::kC2c : Step::kNvl, rate, assumed);
        break;
    }
  }
};

struct Found {
  PathClass path_class = PathClass::kSys;
  double gbytes_per_s = 0;
  int hops = -1;  // -1: not reached
  bool assumed = false;
};

PathClass class_of(const Graph& graph, const Edge& edge, int from, const Found& so_far) {
  const Kind a = graph.kinds[static_cast<size_t>(from)],
             b = graph.kinds[static_cast<size_t>(edge.to)];
  switch (edge.step) {
    case Step::kNvl:
      return a == Kind::kGpu && so_far.path_class == PathClass::kNvl && so_far.hops == 1
                 ? PathClass::kNvb
                 : PathClass::kNvl;
    case Step::kC2c:
      return PathClass::kC2c;
    case Step::kSys:
      return PathClass::kSys;
    case Step::kPci:
      break;
  }
  if (a == Kind::kCpu || b == Kind::kCpu) return PathClass::kPhb;
  if (a == Kind::kSwitch && b == Kind::kSwitch) return PathClass::kPxb;
  return PathClass::kPix;
}

/// Best paths from one device to every node.
std::vector<Found> search(const Graph& graph, int base) {
  std::vector<Found> found(graph.kinds.size());
  found[static_cast<size_t>(base)] = {PathClass::kLoc, kSameDevice, 0, false};
  std::vector<int> level{base}, next;
  std::vector<int> queued(graph.kinds.size(), 0);  // in which round a node was put into `next`
  for (int round = 1; !level.empty(); ++round) {
    next.clear();
    for (const int node : level) {
      const Found here = found[static_cast<size_t>(node)];
      const Kind kind = graph.kinds[static_cast<size_t>(node)];
      if (kind == Kind::kNic && node != base) continue;
      for (const Edge& edge : graph.edges[static_cast<size_t>(node)]) {
        // Through another GPU only over NVLink, to a GPU, and one of them.
        if (kind == Kind::kGpu && node != base &&
            (edge.step != Step::kNvl || graph.kinds[static_cast<size_t>(edge.to)] != Kind::kGpu ||
             here.hops > 1))
          continue;
        const Found candidate{std::max(here.path_class, class_of(graph, edge, node, here)),
                              std::min(here.gbytes_per_s, edge.gbytes_per_s), here.hops + 1,
                              here.assumed || edge.assumed};
        Found& known = found[static_cast<size_t>(edge.to)];
        const bool better =
            known.hops < 0 || candidate.path_class < known.path_class ||
            (candidate.path_class == known.path_class &&
             (candidate.gbytes_per_s > known.gbytes_per_s ||
              (candidate.gbytes_per_s == known.gbytes_per_s && candidate.hops < known.hops)));
        if (!better) continue;
        known = candidate;
        if (queued[static_cast<size_t>(edge.to)] != round) {
          queued[static_cast<size_t>(edge.to)] = round;
          next.push_back(edge.to);
        }
      }
    }
    level.swap(next);
  }
  return found;
}

Path as_path(const Found& found) {
  if (found.hops < 0) return {};
  Path path{.path_class = found.path_class};
  if (!found.assumed && found.gbytes_per_s < kUnbounded) path.gbytes_per_s = found.gbytes_per_s;
  return path;
}

/// Links that GPUs have towards each other, directly or through switches.
class LinkCounts {
 public:
  explicit LinkCounts(const HostTopology& host)
      : direct_(host.gpus.size(), std::vector<int>(host.gpus.size(), 0)),
        to_switch_(host.gpus.size(), 0) {
    for (const NvLink& link : host.nvlinks) {
      const auto gpu = static_cast<size_t>(link.gpu);
      if (link.target == NvLink::Target::kGpu)
        direct_[gpu][static_cast<size_t>(link.target_index)] += link.count;
      else if (link.target == NvLink::Target::kSwitch)
        to_switch_[gpu] += link.count;
    }
  }
  [[nodiscard]] int between(size_t a, size_t b) const {
    return direct_[a][b] > 0 ? direct_[a][b] : std::min(to_switch_[a], to_switch_[b]);
  }

 private:
  std::vector<std::vector<int>> direct_;
  std::vector<int> to_switch_;
};

/// Groups of GPUs whose NVSwitches are joined only by links that the source does not show (the two
/// base boards of a DGX-2). Empty unless there are several.
std::vector<int> switch_boards(const HostTopology& host) {
  std::vector<int> parent(host.gpus.size() + host.nvswitches.size());
  std::iota(parent.begin(), parent.end(), 0);
  const auto root = [&](int x) {
    while (parent[static_cast<size_t>(x)] != x) x = parent[static_cast<size_t>(x)];
    return x;
  };
  std::vector<bool> switched(host.gpus.size(), false);
  for (const NvLink& link : host.nvlinks) {
    if (link.target != NvLink::Target::kSwitch) continue;
    switched[static_cast<size_t>(link.gpu)] = true;
    const int a = root(link.gpu), b = root(static_cast<int>(host.gpus.size()) + link.target_index);
    parent[static_cast<size_t>(std::max(a, b))] = std::min(a, b);
  }
  std::vector<int> board(host.gpus.size(), -1);
  int boards = 0;
  std::map<int, int> number;
  for (size_t g = 0; g < board.size(); ++g) {
    if (!switched[g]) continue;
    const auto [at, fresh] = number.try_emplace(root(static_cast<int>(g)), boards);
    if (fresh) ++boards;
    board[g] = at->second;
  }
  return boards > 1 ? board : std::vector<int>{};
}

bool same_card(const Nic& a, const Nic& b) {
  const auto card = [](const std::string& busid) { return busid.substr(0, busid.rfind('.')); };
  return !a.busid.empty() && card(a.busid) == card(b.busid);
}

/// C2C machines: a GPU reaches the NICs of its own CPU without a PCI switch of its own.
void mark_p2c(const HostTopology& host, std::vector<std::vector<Path>>& gpu_nic) {
  for (const NvLink& link : host.nvlinks) {
    if (!link.c2c || link.target != NvLink::Target::kCpu) continue;
    for (size_t n = 0; n < host.nics.size(); ++n) {
      auto& path = gpu_nic[static_cast<size_t>(link.gpu)][n].path_class;
      if (path && *path == PathClass::kPhb && host.nics[n].numa == std::optional(link.target_index))
        path = PathClass::kP2c;
    }
  }
}

}  // namespace

void resolve_paths(HostTopology& host) {
  Builder builder{.host = host};
  builder.build();
  const size_t gpus = host.gpus.size(), nics = host.nics.size();
  host.gpu_gpu.assign(gpus, std::vector<Path>(gpus));
  host.gpu_nic.assign(gpus, std::vector<Path>(nics));
  host.nic_nic.assign(nics, std::vector<Path>(nics));
  const std::vector<int> board = switch_boards(host);
  const LinkCounts links(host);
  for (size_t g = 0; g < gpus; ++g) {
    if (!board.empty() && board[g] >= 0) host.gpus[g].nvswitch_board = board[g];
    const auto found = search(builder.graph, builder.gpus[g]);
    for (size_t other = 0; other < gpus; ++other) {
      Path& path = host.gpu_gpu[g][other] =
          as_path(found[static_cast<size_t>(builder.gpus[other])]);
      if (path.path_class != PathClass::kNvl) continue;
      const bool other_board = !board.empty() && board[g] != board[other];
      if (other_board)
        path.gbytes_per_s.reset();
      else
        path.nvlinks = links.between(g, other);
    }
    for (size_t n = 0; n < nics; ++n) {
      host.gpu_nic[g][n] = as_path(found[static_cast<size_t>(builder.nics[n])]);
      if (!host.nics[n].rate_mbit_per_s) host.gpu_nic[g][n].gbytes_per_s.reset();
    }
  }
  for (size_t n = 0; n < nics; ++n) {
    const auto found = search(builder.graph, builder.nics[n]);
    for (size_t other = 0; other < nics; ++other) {
      host.nic_nic[n][other] = as_path(found[static_cast<size_t>(builder.nics[other])]);
      if (n != other && same_card(host.nics[n], host.nics[other]))
        host.nic_nic[n][other].path_class = PathClass::kPix;
    }
  }
  mark_p2c(host, host.gpu_nic);
  choose_nics(host);
}

void number_gpus(HostTopology& host) {
  std::vector<int> indices;
  for (const Gpu& gpu : host.gpus) indices.push_back(gpu.index);
  std::ranges::sort(indices);
  const bool numbered = (indices.empty() || indices.front() >= 0) &&
                        std::ranges::adjacent_find(indices) == indices.end();
  std::vector<size_t> order(host.gpus.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::ranges::stable_sort(order, [&](size_t a, size_t b) {
    const Gpu &x = host.gpus[a], &y = host.gpus[b];
    return numbered ? x.index < y.index : x.busid < y.busid;
  });
  std::vector<Gpu> gpus;
  std::vector<int> place(order.size());
  for (size_t i = 0; i < order.size(); ++i) {
    place[order[i]] = static_cast<int>(i);
    gpus.push_back(std::move(host.gpus[order[i]]));
    if (!numbered) gpus.back().index = static_cast<int>(i);
  }
  host.gpus = std::move(gpus);
  for (NvLink& link : host.nvlinks) {
    link.gpu = place[static_cast<size_t>(link.gpu)];
    if (link.target == NvLink::Target::kGpu)
      link.target_index = place[static_cast<size_t>(link.target_index)];
  }
}

namespace {

/// What NCCL compares: bandwidth first, then class. Unknown bandwidths compare equal.
struct Nearness {
  double gbytes_per_s = 0;
  int path_class = std::numeric_limits<int>::max();
  friend bool operator==(const Nearness&, const Nearness&) = default;
  [[nodiscard]] bool nearer_than(const Nearness& other) const {
    return gbytes_per_s > other.gbytes_per_s ||
           (gbytes_per_s == other.gbytes_per_s && path_class < other.path_class);
  }
};

Nearness nearness(const Path& path, bool by_bandwidth) {
  if (!path.path_class) return {};
  return {by_bandwidth ? path.gbytes_per_s.value_or(0) : 1,
          static_cast<int>(as_nccl(*path.path_class))};
}

/// NICs that NCCL would use at all: RDMA ports where there are any (else sockets over plain
/// interfaces), and no port that is down.
std::vector<int> usable_nics(const HostTopology& host) {
  const auto up = [](const Nic& nic) { return nic.active.value_or(true); };
  const bool any_rdma =
      std::ranges::any_of(host.nics, [&](const Nic& nic) { return nic.rdma && up(nic); });
  std::vector<int> out;
  for (size_t n = 0; n < host.nics.size(); ++n)
    if (up(host.nics[n]) && (host.nics[n].rdma || !any_rdma)) out.push_back(static_cast<int>(n));
  return out;
}

int mirrored(int value, int power_of_two) {
  int out = 0;
  for (int bit = 1, mirror = power_of_two / 2; bit < power_of_two; bit *= 2, mirror /= 2)
    if ((value & bit) != 0) out |= mirror;
  return out;
}

}  // namespace

void choose_nics(HostTopology& host) {
  host.near_nics.assign(host.gpus.size(), {});
  host.nccl_nic.assign(host.gpus.size(), std::nullopt);
  const std::vector<int> usable = usable_nics(host);
  if (usable.empty()) return;
  for (size_t g = 0; g < host.gpus.size(); ++g) {
    const auto& row = host.gpu_nic[g];
    const bool by_bandwidth = std::ranges::all_of(
        usable, [&](int n) { return row[static_cast<size_t>(n)].gbytes_per_s.has_value(); });
    Nearness best;
    std::vector<int> locals;
    for (const int n : usable) {
      const Nearness here = nearness(row[static_cast<size_t>(n)], by_bandwidth);
      if (!row[static_cast<size_t>(n)].path_class) continue;
      if (here.nearer_than(best)) {
        best = here;
        locals.clear();
      }
      if (here == best) locals.push_back(n);
    }
    if (locals.empty()) continue;
    // GPUs that have the first of them as their nearest share these NICs.
    int sharing = 0;
    Nearness nearest;
    for (const auto& other : host.gpu_nic) {
      const Nearness there = nearness(other[static_cast<size_t>(locals.front())], by_bandwidth);
      if (there.nearer_than(nearest)) {
        nearest = there;
        sharing = 0;
      }
      if (there == nearest) ++sharing;
    }
    const int count = static_cast<int>(locals.size());
    int at = host.gpus[g].index % std::max(sharing, 1);
    if ((count & (count - 1)) == 0) at = mirrored(at, count);
    host.nccl_nic[g] = locals[static_cast<size_t>(at % count)];
    if (best.path_class != static_cast<int>(PathClass::kSys)) host.near_nics[g] = std::move(locals);
  }
}

}  // namespace r1::launch
