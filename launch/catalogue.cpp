#include "launch/catalogue.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "runtime/core/error.h"
#include "runtime/core/json.h"
#include "runtime/core/options.h"
#include "runtime/core/text.h"

// Made from catalogue/*.json at build time (CMakeLists.txt).
extern const unsigned char r1_hardware_catalogue[];
extern const unsigned long r1_hardware_catalogue_bytes;
extern const unsigned char r1_model_catalogue[];
extern const unsigned long r1_model_catalogue_bytes;

namespace r1::launch {
namespace {

using nlohmann::json;

constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;
/// What a GPU rank takes beside the plan's tensors. One H200, CUDA 13.0, cuDNN 9, one rank without NCCL: 1.47 GiB (1.5B) and 1.61 GiB
/// (7B) over the plan, with graphs and without the same to 10 MiB (benchmarks/results/2026-11-25-h200-profile.md); the GEMM
/// workspace is 64 MiB of it. The rest is the context, the libraries' code and what allocations are rounded up to.
constexpr int64_t kGpuBeside = int64_t{1610} << 20, kGemmWorkspace = int64_t{64} << 20, kGraphs = int64_t{10} << 20;
/// NCCL's buffers of one communicator: an estimate (4 MiB a channel and direction, some ten of them), not measured.
constexpr int64_t kNcclCommunicator = int64_t{256} << 20;
/// Code, libraries, MPI and data reading of a CPU rank, and of the host's own programs.
constexpr int64_t kCpuRankReserve = int64_t{96} << 20, kHostReserve = int64_t{2} << 30;
/// Context, libraries, staging buffers and data reading of a GPU rank in host memory: an estimate.
constexpr int64_t kGpuRankHostReserve = int64_t{2} << 30;
/// Least time of a kernel: launch on a GPU, a parallel loop on a CPU.
constexpr double kGpuKernel = 3e-6, kCpuKernel = 5e-6;

/// One entry of the catalogue; errors name source and entry.
class Entry {
 public:
  Entry(const json& object, std::string where) : object_(object), where_(std::move(where)) {
    if (!object.is_object()) throw DataError("{}: expected an object", where_);
  }
  [[nodiscard]] bool has(const char* key) const { return object_.contains(key); }
  [[nodiscard]] double number(const char* key, std::optional<double> fallback = {}) const {
    if (!has(key)) {
      if (fallback) return *fallback;
      throw DataError("{}: '{}' is missing", where_, key);
    }
    const json& v = object_[key];
    if (!v.is_number() || !(v.get<double>() >= 0) || v.get<double>() > 1e9)
      throw DataError("{}: '{}' is {}, expected a number from 0 to 1e9", where_, key, v.dump());
    return v.get<double>();
  }
  [[nodiscard]] int whole(const char* key, int fallback) const {
    return static_cast<int>(number(key, static_cast<double>(fallback)));
  }
  [[nodiscard]] std::string text(const char* key, std::optional<std::string> fallback = {}) const {
    if (!has(key)) {
      if (fallback) return *fallback;
      throw DataError("{}: '{}' is missing", where_, key);
    }
    if (!object_[key].is_string()) throw DataError("{}: '{}' is {}, expected a string", where_, key, object_[key].dump());
    return object_[key].get<std::string>();
  }
  [[nodiscard]] std::vector<double> numbers(const char* key, size_t count) const {
    if (!has(key) || !object_[key].is_array() || object_[key].size() != count)
      throw DataError("{}: '{}' must be an array of {} numbers", where_, key, count);
    std::vector<double> out;
    for (const json& v : object_[key]) {
      if (!v.is_number()) throw DataError("{}: '{}' holds {}, expected a number", where_, key, v.dump());
      out.push_back(v.get<double>());
    }
    return out;
  }
  [[nodiscard]] std::vector<std::string> texts(const char* key) const {
    std::vector<std::string> out;
    if (!has(key)) return out;
    if (!object_[key].is_array()) throw DataError("{}: '{}' must be an array of strings", where_, key);
    for (const json& v : object_[key]) {
      if (!v.is_string()) throw DataError("{}: '{}' holds {}, expected a string", where_, key, v.dump());
      out.push_back(v.get<std::string>());
    }
    return out;
  }
  [[nodiscard]] const json& object() const { return object_; }
  [[nodiscard]] const std::string& where() const { return where_; }

 private:
  const json& object_;
  std::string where_;
};

LinkKind read_link(const std::string& name, const Entry& e) {
  LinkKind link{.name = name, .title = e.text("title", name)};
  link.device_bytes_per_s = e.number("gbytes_per_s", 0) * 1e9;
  link.pair_bytes_per_s = e.number("pair_gbytes_per_s", 0) * 1e9;
  if (link.device_bytes_per_s <= 0 && link.pair_bytes_per_s <= 0)
    throw DataError("{}: needs 'gbytes_per_s' or 'pair_gbytes_per_s' above 0", e.where());
  link.share = e.number("share", 1);
  link.latency_s = e.number("latency_us", 10) * 1e-6;
  link.network = e.has("network") && e.object()["network"] == true;
  return link;
}

DeviceKind read_device(const Entry& e, bool gpu) {
  DeviceKind d{.name = e.text("name"), .title = e.text("title"), .gpu = gpu};
  d.sm = gpu ? e.whole("sm", 0) : 0;
  d.cores = e.whole("cores", 0);
  d.numa = e.whole("numa", 1);
  d.memory_bytes = static_cast<int64_t>(e.number("memory_gib") * kGiB);
  d.bytes_per_s = e.number("memory_gbytes_per_s") * 1e9;
  d.bf16_flops = gpu ? e.number("bf16_tflops") * 1e12 : 0;
  d.fp32_flops = e.number("fp32_tflops") * 1e12;
  d.gemm = e.number("gemm");
  const std::vector<double> attention = e.numbers("attention", 2);
  d.attention_forward = attention[0];
  d.attention_backward = attention[1];
  d.copy = e.number("copy");
  d.basis = e.text("basis");
  d.peer = gpu ? e.text("peer") : "shared-memory";
  d.peer_many = e.text("peer_many", d.peer);
  d.network = e.text("network");
  if (gpu) d.host = e.text("host", d.sm >= 90 ? "PCIe5" : d.sm >= 80 ? "PCIe4" : "PCIe3");
  d.most = e.whole("most", 8);
  if (d.gemm <= 0 || d.copy <= 0 || d.fp32_flops <= 0 || d.bytes_per_s <= 0 || d.memory_bytes <= 0)
    throw DataError("{}: gemm, copy, fp32_tflops, memory_gbytes_per_s and memory_gib must be above 0", e.where());
  if (e.has("mig")) {
    for (const auto& [profile, v] : e.object()["mig"].items()) {
      const Entry holder(e.object()["mig"], e.where() + ": mig");
      const std::vector<double> n = holder.numbers(profile.c_str(), 3);
      d.mig[profile] = {n[0], n[1], static_cast<int64_t>(n[2] * kGiB)};
    }
  }
  return d;
}

ShapeKind read_shape(const Entry& e) {
  ShapeKind s{.name = e.text("name"), .title = e.text("title"), .provider = e.text("provider", ""), .device = e.text("device", ""),
              .cpu = e.text("cpu", ""), .network = e.text("network")};
  s.count = e.whole("count", 0);
  s.sockets = e.whole("sockets", 1);
  s.cpu_cores = e.whole("cpu_cores", 0);
  s.numa = e.whole("numa", 0);
  s.nics = std::max(1, e.whole("nics", 1));
  s.memory_bytes = static_cast<int64_t>(e.number("memory_gib") * kGiB);
  if (e.has("usd_per_hour")) s.usd_per_hour = e.number("usd_per_hour");
  s.price_source = e.text("price_source", "");
  return s;
}

template <class T>
void put(std::vector<T>& list, T item) {
  const auto it = std::ranges::find(list, item.name, &T::name);
  if (it == list.end()) list.push_back(std::move(item));
  else *it = std::move(item);
}

template <class T>
const T* find_named(const std::vector<T>& list, const std::string& name) {
  const auto it = std::ranges::find_if(list, [&](const T& t) { return lower(t.name) == lower(name); });
  return it == list.end() ? nullptr : &*it;
}

std::string_view embedded(const unsigned char* data, unsigned long bytes) {
  return {reinterpret_cast<const char*>(data), bytes};
}

}  // namespace

double LinkKind::collective_bytes_per_s(int ranks) const {
  if (device_bytes_per_s > 0) return device_bytes_per_s * share;
  return pair_bytes_per_s * std::max(1, ranks - 1) * share;
}

// -- the cluster

int PlannedCluster::ranks_per_device(const parallel::MeshShape& mesh) const {
  const int devices = hosts * devices_per_host;
  return std::max(1, (mesh.world() + devices - 1) / devices);
}

int PlannedCluster::ranks_per_host(const parallel::MeshShape& mesh) const {
  return gpu() ? devices_per_host * ranks_per_device(mesh) : ranks_per_device(mesh);
}

RankSpot PlannedCluster::spot(const parallel::MeshShape& mesh, int r) const {
  const int here = ranks_per_host(mesh);
  return {.host = r / here, .gpu = gpu() ? r % here % devices_per_host : -1};
}

std::vector<parallel::MemoryItem> PlannedCluster::beside_plan(const parallel::MeshShape& mesh) const {
  if (!gpu()) return {{"code and libraries", "MPI, data reading", kCpuRankReserve, 1}};
  std::vector<parallel::MemoryItem> out{
      {"context", "CUDA context, library code, rounding", kGpuBeside - kGemmWorkspace - kGraphs, 1},
      {"workspace", "of cuBLAS", kGemmWorkspace, 1},
      {"graphs", "CUDA graphs of the layers", kGraphs, 1}};
  if (comm != CommChoice::kAuto && comm != CommChoice::kNccl) return out;
  std::set<std::string> kinds;  // a rank is in one group of each
  for (const PlannedGroup& g : planned_groups(mesh, false, comm, [&](int r) { return spot(mesh, r); }))
    if (g.kind != "replica" && (g.route.collectives == CommBackend::kNccl || g.route.messages == CommBackend::kNccl))
      kinds.insert(g.kind);
  if (!kinds.empty())
    out.push_back({"NCCL buffers", fmt::format("of {}, estimated", fmt::join(kinds, ", ")),
                   kNcclCommunicator * static_cast<int64_t>(kinds.size()), 1});
  return out;
}

int64_t PlannedCluster::capacity_bytes(const parallel::MeshShape& mesh) const {
  int64_t beside = 0;
  for (const parallel::MemoryItem& i : beside_plan(mesh)) beside += i.bytes;
  const int ranks = ranks_per_device(mesh);
  return (gpu() ? device.memory_bytes : host_memory_bytes - kHostReserve) - ranks * beside;
}

int PlannedCluster::most_ranks() const { return gpu() ? hosts * devices_per_host : hosts * numa; }

parallel::DeviceRates PlannedCluster::rates(const parallel::MeshShape& mesh, const parallel::NumericFormat& format) const {
  // Ranks on one device take turns; CPU ranks share the sockets of a host.
  const double share = (gpu() ? 1.0 : sockets) / ranks_per_device(mesh);
  const bool bf16 = format.weights == DType::kBF16;
  const double peak = (bf16 ? device.bf16_flops : device.fp32_flops) * share;
  return {.gemm = peak * device.gemm, .attention_forward = peak * device.attention_forward,
          .attention_backward = peak * device.attention_backward, .bytes_per_s = device.bytes_per_s * device.copy * share,
          .overhead = 1.05, .kernel_s = gpu() ? kGpuKernel : kCpuKernel,
          .host_bytes_per_s = gpu() ? host_link.pair() * share : 0, .host_link = host_link.title};
}

parallel::MeshLinks PlannedCluster::links(const parallel::MeshShape& mesh) const {
  const int here = ranks_per_host(mesh), sharing = gpu() ? ranks_per_device(mesh) : 1;
  const double nic = network.device_bytes_per_s * network.share;
  // `crossing` ranks of a host send to other hosts at once: over one NIC each at most, sharing them when there are more.
  const auto over_network = [&](int crossing) {
    return parallel::GroupLink{std::min(nic, nic * nics / std::max(1, crossing)), network.latency_s, network.title};
  };
  const auto within = [&](double bytes_per_s) {
    return parallel::GroupLink{bytes_per_s / sharing, peer.latency_s, peer.title};
  };
  parallel::MeshLinks out;
  const bool tp_inside = mesh.tp <= here && here % mesh.tp == 0;
  out.tp = tp_inside ? within(peer.collective_bytes_per_s(mesh.tp)) : over_network(here);
  const int stage = mesh.dp * mesh.tp;
  out.pp = mesh.world() <= here ? within(peer.pair()) : over_network(std::min(here, stage));
  const bool dp_inside = stage <= here && here % stage == 0;
  out.dp = dp_inside ? within(peer.collective_bytes_per_s(mesh.dp)) : over_network(std::min(here, mesh.tp));
  return out;
}

std::vector<parallel::MemoryDomain> PlannedCluster::domains(const parallel::MeshShape& mesh) const {
  // Ranks of a host take its devices in turn, as the ranks themselves do.
  const int here = ranks_per_host(mesh), devices = gpu() ? devices_per_host : 1;
  const int64_t capacity = capacity_bytes(mesh);
  std::vector<parallel::MemoryDomain> out;
  for (int r = 0; r < mesh.world(); ++r) {
    const auto at = static_cast<size_t>(r / here * devices + r % here % devices);
    while (out.size() <= at)
      out.push_back({.name = fmt::format("{} {}", gpu() ? device.name : "host", out.size()), .capacity_bytes = capacity, .ranks = {}});
    out[at].ranks.push_back(r);
  }
  return out;
}

std::vector<parallel::MemoryDomain> PlannedCluster::host_domains(const parallel::MeshShape& mesh) const {
  if (!gpu()) return {};  // their plan is in host memory as it is
  const int here = ranks_per_host(mesh);
  std::vector<parallel::MemoryDomain> out;
  for (int r = 0; r < mesh.world(); ++r) {
    if (r % here == 0)
      out.push_back({.name = fmt::format("host {}", out.size()), .capacity_bytes = host_memory_bytes - kHostReserve, .ranks = {}});
    out.back().ranks.push_back(r);
    out.back().capacity_bytes -= kGpuRankHostReserve;
  }
  for (parallel::MemoryDomain& h : out) h.capacity_bytes = std::max<int64_t>(0, h.capacity_bytes);
  return out;
}

// -- the catalogue

Catalogue Catalogue::built_in() {
  Catalogue c;
  c.add(embedded(r1_hardware_catalogue, r1_hardware_catalogue_bytes), "built-in catalogue");
  return c;
}

void Catalogue::add(std::string_view text, const std::string& source) {
  const json root = parse_json_object(text, source);
  for (const auto& [key, value] : root.items()) {
    if (key == "about") continue;
    if (key == "links") {
      const Entry links(value, source + ": links");
      for (const auto& [name, link] : value.items()) links_[name] = read_link(name, Entry(link, fmt::format("{}: links: {}", source, name)));
    } else if (key == "comparisons") {
      const Entry all(value, source + ": comparisons");
      for (const auto& [name, list] : value.items()) comparisons_[name] = all.texts(name.c_str());
    } else if (key == "devices" || key == "cpus" || key == "shapes") {
      if (!value.is_array()) throw DataError("{}: '{}' must be an array", source, key);
      for (size_t i = 0; i < value.size(); ++i) {
        const Entry e(value[i], fmt::format("{}: {}[{}]", source, key, i));
        const std::string name = e.text("name");
        for (const std::string& alias : e.texts("aliases")) aliases_[lower(alias)] = name;
        if (key == "shapes") put(shapes_, read_shape(e));
        else if (key == "devices") put(devices_, read_device(e, true));
        else put(cpus_, read_device(e, false));
      }
    } else {
      throw DataError("{}: unknown key '{}' (about, links, devices, cpus, shapes, comparisons are known)", source, key);
    }
  }
  for (const auto* list : {&devices_, &cpus_})
    for (const DeviceKind& d : *list)
      for (const std::string& name : {d.peer, d.peer_many, d.network, d.host})
        if (!name.empty()) static_cast<void>(link(name, fmt::format("{}: {}", source, d.name)));
  for (const ShapeKind& s : shapes_) static_cast<void>(link(s.network, fmt::format("{}: {}", source, s.name)));
}

const LinkKind& Catalogue::link(const std::string& name, const std::string& where) const {
  const auto it = std::ranges::find_if(links_, [&](const auto& l) { return lower(l.first) == lower(name); });
  if (it == links_.end()) {
    std::string known;
    for (const auto& [n, l] : links_) known += (known.empty() ? "" : ", ") + n;
    throw UsageError("{}: no link is called \"{}\"; there are {}", where, name, known);
  }
  return it->second;
}

namespace {

/// "2x4xA100-80/3g.40gb+NDR" taken apart.
struct ClusterText {
  std::vector<int> counts;
  std::string name, mig, network;
};

ClusterText take_apart(const std::string& text) {
  ClusterText out;
  std::string rest = text;
  if (const size_t plus = rest.rfind('+'); plus != std::string::npos) {
    out.network = rest.substr(plus + 1);
    rest.resize(plus);
  }
  if (const size_t slash = rest.find('/'); slash != std::string::npos) {
    out.mig = rest.substr(slash + 1);
    rest.resize(slash);
  }
  for (;;) {
    size_t digits = 0;
    while (digits < rest.size() && std::isdigit(static_cast<unsigned char>(rest[digits])) != 0) ++digits;
    if (digits == 0 || digits >= rest.size() || (rest[digits] != 'x' && rest[digits] != 'X') || digits > 6) break;
    out.counts.push_back(std::stoi(rest.substr(0, digits)));
    rest.erase(0, digits + 1);
  }
  out.name = rest;
  if (out.counts.size() > 2 || out.name.empty() || std::ranges::find(out.counts, 0) != out.counts.end())
    throw UsageError("--cluster {}: expected [HOSTSx][COUNTx]NAME[/MIG][+NETWORK], such as 4xA100-80, 2x4xA100-80+NDR, "
                     "2xproduction or A100-80/3g.40gb", text);
  return out;
}

}  // namespace

PlannedCluster Catalogue::cluster(const std::string& text) const {
  const ClusterText parts = take_apart(text);
  std::string name = parts.name;
  if (const auto it = aliases_.find(lower(name)); it != aliases_.end()) name = it->second;
  const std::string where = "--cluster " + text;
  PlannedCluster c;
  c.text = text;

  if (const ShapeKind* s = find_named(shapes_, name)) {
    if (parts.counts.size() > 1)
      throw UsageError("{}: {} is a whole host: one count, the number of hosts", where, s->name);
    c.hosts = parts.counts.empty() ? 1 : parts.counts[0];
    c.sockets = s->sockets;
    c.nics = s->nics;
    c.host_memory_bytes = s->memory_bytes;
    const DeviceKind* cpu = s->cpu.empty() ? nullptr : find_named(cpus_, s->cpu);
    c.cores = s->cpu_cores > 0 ? s->cpu_cores : (cpu != nullptr ? cpu->cores * s->sockets : 0);
    c.numa = s->numa > 0 ? s->numa : (cpu != nullptr ? cpu->numa * s->sockets : 1);
    const DeviceKind* device = s->count > 0 ? find_named(devices_, s->device) : cpu;
    if (device == nullptr) throw DataError("catalogue: shape {} names device \"{}{}\", which is not there", s->name, s->device, s->cpu);
    c.device = *device;
    c.devices_per_host = std::max(1, s->count);
    c.network = link(parts.network.empty() ? s->network : parts.network, where);
    if (s->usd_per_hour) {
      c.usd_per_hour = *s->usd_per_hour * c.hosts;
      c.price_note = s->price_source.empty() ? fmt::format("of {}, not sourced: set your own with --price", s->provider)
                                             : fmt::format("{}, {}", s->provider, s->price_source);
    }
    c.title = fmt::format("{}{}", c.hosts > 1 ? fmt::format("{} x ", c.hosts) : "", s->title);
  } else if (const DeviceKind* d = find_named(devices_, name)) {
    int count = parts.counts.empty() ? 1 : parts.counts.back();
    c.hosts = parts.counts.size() == 2 ? parts.counts[0] : 1;
    if (parts.counts.size() == 1 && parts.mig.empty() && count > d->most) {
      if (count % d->most != 0)
        throw UsageError("{}: a host takes at most {} {}: say how many hosts, such as {}x{}x{}", where, d->most, d->name,
                         (count + d->most - 1) / d->most, d->most, d->name);
      c.hosts = count / d->most;
      count = d->most;
    }
    c.device = *d;
    c.devices_per_host = count;
    c.network = link(parts.network.empty() ? d->network : parts.network, where);
    c.nics = std::max(1, d->network == "HDR" || d->network == "NDR" ? (count >= 8 ? 8 : (count + 1) / 2) : 1);
    // A plausible host around the cards: what a plan of GPUs needs to know of it is little.
    c.sockets = count > 1 ? 2 : 1;
    c.cores = 64 * c.sockets;
    c.numa = c.sockets * 4;
    c.host_memory_bytes = std::max<int64_t>(int64_t{64} << 30, 2 * count * d->memory_bytes);
    c.host_assumed = true;
    c.title = fmt::format("{}{} x {}", c.hosts > 1 ? fmt::format("{} hosts of ", c.hosts) : "", count, d->title);
  } else if (const DeviceKind* cpu = find_named(cpus_, name)) {
    c.sockets = parts.counts.empty() ? 1 : parts.counts.back();
    c.hosts = parts.counts.size() == 2 ? parts.counts[0] : 1;
    if (c.sockets > 8) throw UsageError("{}: {} sockets in a host; give HOSTSxSOCKETSx{}", where, c.sockets, cpu->name);
    c.device = *cpu;
    c.devices_per_host = 1;
    c.cores = cpu->cores * c.sockets;
    c.numa = cpu->numa * c.sockets;
    c.host_memory_bytes = cpu->memory_bytes * c.sockets;
    c.network = link(parts.network.empty() ? cpu->network : parts.network, where);
    c.title = fmt::format("{}{} x {}", c.hosts > 1 ? fmt::format("{} hosts of ", c.hosts) : "", c.sockets, cpu->title);
  } else {
    std::vector<std::string> names;
    for (const auto* list : {&devices_, &cpus_})
      for (const DeviceKind& k : *list) names.push_back(k.name);
    for (const ShapeKind& k : shapes_) names.push_back(k.name);
    for (const auto& [n, list] : comparisons_) names.push_back(n);
    std::string known;
    for (const std::string& n : names) known += (known.empty() ? "" : ", ") + n;
    const std::string near = nearest(name, names);
    throw UsageError("{}: nothing is called \"{}\"{}; known are {} (--catalogue FILE adds others)", where, parts.name,
                     near.empty() ? "" : fmt::format(", did you mean {}?", near), known);
  }

  c.peer = link(c.device.gpu && c.devices_per_host > 4 ? c.device.peer_many : c.device.peer, where);
  if (c.device.gpu) c.host_link = link(c.device.host, where);
  if (!parts.mig.empty()) {
    const auto it = c.device.mig.find(parts.mig);
    if (it == c.device.mig.end()) {
      std::string known;
      for (const auto& [profile, m] : c.device.mig) known += (known.empty() ? "" : ", ") + profile;
      throw UsageError("{}: {} has no MIG profile \"{}\"{}{}", where, c.device.name, parts.mig,
                       known.empty() ? " (it has none)" : "; its profiles are ", known);
    }
    const MigProfile& m = it->second;
    c.mig = parts.mig;
    for (double* rate : {&c.device.bf16_flops, &c.device.fp32_flops}) *rate *= m.compute_sevenths / 7;
    c.device.bytes_per_s *= m.memory_eighths / 8;
    c.device.memory_bytes = m.memory_bytes;
    c.host_link.device_bytes_per_s *= m.memory_eighths / 8;  // instances share the card's
    c.device.name += "/" + parts.mig;
    c.title += ", MIG instances " + parts.mig;
    // Instances reach each other neither over NVLink nor as PCIe peers.
    c.peer = link("PCIe4-host", where);
  }
  return c;
}

std::vector<PlannedCluster> Catalogue::clusters(const std::string& text) const {
  std::vector<std::string> words;
  if (const auto it = comparisons_.find(lower(text)); it != comparisons_.end()) {
    words = it->second;
  } else {
    size_t begin = 0;
    for (;;) {
      const size_t comma = text.find(',', begin);
      words.push_back(text.substr(begin, comma - begin));
      if (comma == std::string::npos) break;
      begin = comma + 1;
    }
  }
  std::vector<PlannedCluster> out;
  for (const std::string& w : words) out.push_back(cluster(w));
  return out;
}

// -- models

namespace {

const json& models() {
  static const json root = json::parse(embedded(r1_model_catalogue, r1_model_catalogue_bytes))["models"];
  return root;
}

/// Without organisation, the leading "DeepSeek-" and a trailing slash, in lower case.
std::string plain_name(std::string_view name) {
  std::string n = lower(name);
  while (!n.empty() && n.back() == '/') n.pop_back();
  if (const size_t slash = n.rfind('/'); slash != std::string::npos) n.erase(0, slash + 1);
  if (n.starts_with("deepseek-")) n.erase(0, 9);
  if (n.ends_with("-instruct")) n.resize(n.size() - 9);
  return n;
}

}  // namespace

std::optional<parallel::ModelConfig> model_by_name(std::string_view name) {
  for (const auto& [known, config] : models().items())
    if (plain_name(known) == plain_name(name)) return parallel::parse_model_config(config.dump(), "model catalogue: " + known);
  return std::nullopt;
}

std::vector<std::string> model_names() {
  std::vector<std::string> out;
  for (const auto& [name, config] : models().items()) out.push_back(name);
  return out;
}

}  // namespace r1::launch
