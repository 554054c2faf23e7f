// Clusters described in a few characters: "4xA100-80", "2xproduction", "8xH100+NDR".
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>

#include "launch/catalogue.h"
#include "runtime/core/error.h"
#include "runtime/core/options.h"
#include "runtime/core/text.h"

namespace r1::launch {
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

template <class T>
const T* find_named(const std::vector<T>& list, const std::string& name) {
  const auto it = std::ranges::find_if(list, [&](const T& t) { return lower(t.name) == lower(name); });
  return it == list.end() ? nullptr : &*it;
}

/// One cluster on its way from its text; `where` begins every error.
struct Making {
  const Catalogue& catalogue;
  const ClusterText& parts;
  std::string where;

  [[nodiscard]] const LinkKind& network(const std::string& usual) const {
    return catalogue.link(parts.network.empty() ? usual : parts.network, where);
  }
  /// The last count: of GPUs or sockets in a host.
  [[nodiscard]] int count() const { return parts.counts.empty() ? 1 : parts.counts.back(); }
  [[nodiscard]] int hosts() const { return parts.counts.size() == 2 ? parts.counts[0] : 1; }

  void hosts_of(const ShapeKind& s, PlannedCluster* c) const;
  void cards_of(const DeviceKind& d, PlannedCluster* c) const;
  void sockets_of(const DeviceKind& cpu, PlannedCluster* c) const;
  void cut_into_instances(PlannedCluster* c) const;
};

std::string title(int hosts, const char* of, const std::string& rest) {
  return hosts > 1 ? fmt::format("{} {} {}", hosts, of, rest) : rest;
}

/// Whole hosts that one can buy or rent.
void Making::hosts_of(const ShapeKind& s, PlannedCluster* c) const {
  if (parts.counts.size() > 1) throw UsageError("{}: {} is a whole host: one count, the number of hosts", where, s.name);
  c->hosts = count();
  c->sockets = s.sockets;
  c->nics = s.nics;
  c->host_memory_bytes = s.memory_bytes;
  const DeviceKind* cpu = s.cpu.empty() ? nullptr : find_named(catalogue.cpus(), s.cpu);
  c->cores = s.cpu_cores > 0 ? s.cpu_cores : (cpu != nullptr ? cpu->cores * s.sockets : 0);
  c->numa = s.numa > 0 ? s.numa : (cpu != nullptr ? cpu->numa * s.sockets : 1);
  const DeviceKind* device = s.count > 0 ? find_named(catalogue.devices(), s.device) : cpu;
  if (device == nullptr) throw DataError("catalogue: shape {} names device \"{}{}\", which is not there", s.name, s.device, s.cpu);
  c->device = *device;
  c->devices_per_host = std::max(1, s.count);
  c->network = network(s.network);
  if (s.usd_per_hour) {
    c->usd_per_hour = *s.usd_per_hour * c->hosts;
    c->price_note = s.price_source.empty() ? fmt::format("of {}, not sourced: set your own with --price", s.provider)
                                           : fmt::format("{}, {}", s.provider, s.price_source);
  }
  c->title = title(c->hosts, "x", s.title);
}

/// Cards, with a plausible host around them: what a plan of GPUs needs to know of it is little.
void Making::cards_of(const DeviceKind& d, PlannedCluster* c) const {
  int cards = count();
  c->hosts = hosts();
  if (parts.counts.size() == 1 && parts.mig.empty() && cards > d.most) {
    if (cards % d.most != 0)
      throw UsageError("{}: a host takes at most {} {}: say how many hosts, such as {}x{}x{}", where, d.most, d.name,
                       (cards + d.most - 1) / d.most, d.most, d.name);
    c->hosts = cards / d.most;
    cards = d.most;
  }
  c->device = d;
  c->devices_per_host = cards;
  c->network = network(d.network);
  c->nics = std::max(1, d.network == "HDR" || d.network == "NDR" ? (cards >= 8 ? 8 : (cards + 1) / 2) : 1);
  c->sockets = cards > 1 ? 2 : 1;
  c->cores = 64 * c->sockets;
  c->numa = c->sockets * 4;
  c->host_memory_bytes = std::max<int64_t>(int64_t{64} << 30, 2 * cards * d.memory_bytes);
  c->host_assumed = true;
  c->title = title(c->hosts, "hosts of", fmt::format("{} x {}", cards, d.title));
}

/// Hosts without GPUs.
void Making::sockets_of(const DeviceKind& cpu, PlannedCluster* c) const {
  c->sockets = count();
  c->hosts = hosts();
  if (c->sockets > 8) throw UsageError("{}: {} sockets in a host; give HOSTSxSOCKETSx{}", where, c->sockets, cpu.name);
  c->device = cpu;
  c->devices_per_host = 1;
  c->cores = cpu.cores * c->sockets;
  c->numa = cpu.numa * c->sockets;
  c->host_memory_bytes = cpu.memory_bytes * c->sockets;
  c->network = network(cpu.network);
  c->title = title(c->hosts, "hosts of", fmt::format("{} x {}", c->sockets, cpu.title));
}

/// /MIG: every device becomes an instance, with its share of the card.
void Making::cut_into_instances(PlannedCluster* c) const {
  DeviceKind& d = c->device;
  const auto it = d.mig.find(parts.mig);
  if (it == d.mig.end()) {
    std::string known;
    for (const auto& [profile, m] : d.mig) known += (known.empty() ? "" : ", ") + profile;
    throw UsageError("{}: {} has no MIG profile \"{}\"{}{}", where, d.name, parts.mig,
                     known.empty() ? " (it has none)" : "; its profiles are ", known);
  }
  const MigProfile& m = it->second;
  c->mig = parts.mig;
  for (double* rate : {&d.bf16_flops, &d.fp32_flops}) *rate *= m.compute_sevenths / 7;
  d.bytes_per_s *= m.memory_eighths / 8;
  d.memory_bytes = m.memory_bytes;
  c->host_link.device_bytes_per_s *= m.memory_eighths / 8;  // instances share the card's
  d.name += "/" + parts.mig;
  c->title += ", MIG instances " + parts.mig;
  // Instances reach each other neither over NVLink nor as PCIe peers.
  c->peer = catalogue.link("PCIe4-host", where);
}

}  // namespace

PlannedCluster Catalogue::cluster(const std::string& text) const {
  const ClusterText parts = take_apart(text);
  const Making making{*this, parts, "--cluster " + text};
  const auto alias = aliases_.find(lower(parts.name));
  const std::string& name = alias != aliases_.end() ? alias->second : parts.name;
  PlannedCluster c;
  c.text = text;
  if (const ShapeKind* s = find_named(shapes_, name)) making.hosts_of(*s, &c);
  else if (const DeviceKind* d = find_named(devices_, name)) making.cards_of(*d, &c);
  else if (const DeviceKind* cpu = find_named(cpus_, name)) making.sockets_of(*cpu, &c);
  else refuse_name(making.where, parts.name, name);
  c.peer = link(c.device.gpu && c.devices_per_host > 4 ? c.device.peer_many : c.device.peer, making.where);
  if (c.device.gpu) c.host_link = link(c.device.host, making.where);
  if (!parts.mig.empty()) making.cut_into_instances(&c);
  return c;
}

void Catalogue::refuse_name(const std::string& where, const std::string& given, const std::string& name) const {
  std::vector<std::string> names;
  for (const auto* list : {&devices_, &cpus_})
    for (const DeviceKind& k : *list) names.push_back(k.name);
  for (const ShapeKind& k : shapes_) names.push_back(k.name);
  for (const auto& [n, list] : comparisons_) names.push_back(n);
  const std::string near = nearest(name, names);
  throw UsageError("{}: nothing is called \"{}\"{}; known are {} (--catalogue FILE adds others)", where, given,
                   near.empty() ? "" : fmt::format(", did you mean {}?", near), fmt::join(names, ", "));
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

}  // namespace r1::launch
