#include "launch/topology/merge.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <optional>

#include "launch/topology/paths.h"

namespace r1::launch {
namespace {

std::string source_of(const HostTopology& host) {
  return host.sources.empty() ? "a source" : host.sources.front();
}

std::string name_of(const Nic& nic) {
  if (nic.name.empty()) return nic.busid;
  return nic.port > 1 ? fmt::format("{} port {}", nic.name, nic.port) : nic.name;
}

bool same_gpu(const Gpu& a, const Gpu& b) {
  if (!a.busid.empty() && !b.busid.empty()) return a.busid == b.busid;
  if (!a.uuid.empty() && !b.uuid.empty()) return a.uuid == b.uuid;
  return a.index == b.index;
}

bool same_nic(const Nic& a, const Nic& b) {
  const bool named = !a.name.empty() && !b.name.empty();
  if (named) return a.name == b.name && std::max(a.port, 1) == std::max(b.port, 1);
  return !a.busid.empty() && a.busid == b.busid;
}

/// For each device of `b` its index in `a`.
template <class T, class Same>
std::vector<std::optional<size_t>> matches(const std::vector<T>& a, const std::vector<T>& b,
                                           Same same) {
  std::vector<std::optional<size_t>> out;
  for (const T& device : b) {
    const auto found = std::ranges::find_if(a, [&](const T& other) { return same(other, device); });
    out.push_back(found == a.end() ? std::nullopt
                                   : std::optional(static_cast<size_t>(found - a.begin())));
  }
  return out;
}

/// The node's number for the operating system; nullopt: unknown.
std::optional<int> numa_id(const HostTopology& host, std::optional<int> index) {
  if (!index) return std::nullopt;
  const int id = host.numa_nodes[static_cast<size_t>(*index)].os_index;
  return id < 0 ? std::nullopt : std::optional(id);
}

bool is_nvlink(const Path& path) {
  return path.path_class == PathClass::kNvl || path.path_class == PathClass::kNvb;
}

/// What is wrong between two cells; "" when nothing is.
std::string contradiction(const Path& a, bool a_knows_nvlink, const Path& b, bool b_knows_nvlink) {
  if (!a.path_class || !b.path_class) return "";
  if ((is_nvlink(a) && !b_knows_nvlink) || (is_nvlink(b) && !a_knows_nvlink)) return "";
  // nvidia-smi shows what is direct; the way through a GPU between is NCCL's idea.
  if ((a.path_class == PathClass::kNvb) != (b.path_class == PathClass::kNvb)) return "";
  const bool links_differ = a.nvlinks > 0 && b.nvlinks > 0 && a.nvlinks != b.nvlinks;
  if (same_to_nccl(*a.path_class, *b.path_class) && !links_differ) return "";
  return fmt::format("{} against {}", cell(a), cell(b));
}

class Comparison {
 public:
  Comparison(const HostTopology& a, const HostTopology& b)
      : a_(a),
        b_(b),
        gpus_(matches(a.gpus, b.gpus, same_gpu)),
        nics_(matches(a.nics, b.nics, same_nic)) {}

  std::vector<std::string> run() {
    devices();
    for (size_t g = 0; g < gpus_.size(); ++g)
      if (gpus_[g]) gpu(*gpus_[g], g);
    for (size_t n = 0; n < nics_.size(); ++n)
      if (nics_[n]) nic(*nics_[n], n);
    return std::move(out_);
  }

 private:
  const HostTopology &a_, &b_;
  std::vector<std::optional<size_t>> gpus_, nics_;
  std::vector<std::string> out_;

  template <class... Args>
  void say(fmt::format_string<Args...> text, Args&&... args) {
    out_.push_back(fmt::format("{} and {}: {}", source_of(a_), source_of(b_),
                               fmt::format(text, std::forward<Args>(args)...)));
  }
  template <class T>
  void differ(const std::string& what, const std::optional<T>& a, const std::optional<T>& b) {
    if (a && b && *a != *b) say("{} {} against {}", what, *a, *b);
  }

  void devices() {
    if (!a_.gpus.empty() && !b_.gpus.empty() && a_.gpus.size() != b_.gpus.size())
      say("{} GPUs against {}", a_.gpus.size(), b_.gpus.size());
    else if (std::ranges::any_of(gpus_, [](const auto& m) { return !m; }) && !a_.gpus.empty())
      say("their GPUs have other PCI addresses");
  }

  void gpu(size_t at_a, size_t at_b) {
    const Gpu &a = a_.gpus[at_a], &b = b_.gpus[at_b];
    const std::string who = fmt::format("GPU{}", a.index);
    if (!a.pci_id.empty() && !b.pci_id.empty() && a.pci_id != b.pci_id)
      say("{} is a {} against {}", who, a.pci_id, b.pci_id);
    differ(who + " on NUMA node", numa_id(a_, a.numa), numa_id(b_, b.numa));
    differ(who + " has compute capability", a.sm, b.sm);
    for (size_t other = 0; other < at_b; ++other) {
      if (!gpus_[other]) continue;
      const auto what = contradiction(a_.gpu_gpu[at_a][*gpus_[other]], a_.nvlink_known,
                                      b_.gpu_gpu[at_b][other], b_.nvlink_known);
      if (!what.empty()) say("{} to GPU{}: {}", who, a_.gpus[*gpus_[other]].index, what);
    }
    for (size_t n = 0; n < nics_.size(); ++n) {
      if (!nics_[n]) continue;
      const auto what = contradiction(a_.gpu_nic[at_a][*nics_[n]], true, b_.gpu_nic[at_b][n], true);
      if (!what.empty()) say("{} to {}: {}", who, name_of(b_.nics[n]), what);
    }
  }

  void nic(size_t at_a, size_t at_b) {
    const Nic &a = a_.nics[at_a], &b = b_.nics[at_b];
    if (a.rate_mbit_per_s && b.rate_mbit_per_s && *a.rate_mbit_per_s != *b.rate_mbit_per_s)
      say("{} at {} against {} Mbit/s", name_of(a), *a.rate_mbit_per_s, *b.rate_mbit_per_s);
    differ(name_of(a) + " on NUMA node", numa_id(a_, a.numa), numa_id(b_, b.numa));
    if (!a.busid.empty() && !b.busid.empty() && a.busid != b.busid)
      say("{} at PCI address {} against {}", name_of(a), a.busid, b.busid);
  }
};

template <class T>
void fill(std::optional<T>& into, const std::optional<T>& from) {
  if (!into) into = from;
}
void fill(std::string& into, const std::string& from) {
  if (into.empty()) into = from;
}

/// A NUMA node of another source, in terms of the base; added where the base knows none of that
/// number.
std::optional<int> numa_in(HostTopology& base, const HostTopology& from, std::optional<int> index) {
  const auto id = numa_id(from, index);
  if (!id) return std::nullopt;
  for (size_t n = 0; n < base.numa_nodes.size(); ++n)
    if (base.numa_nodes[n].os_index == *id) return static_cast<int>(n);
  NumaNode node = from.numa_nodes[static_cast<size_t>(*index)];
  node.package.reset();
  base.numa_nodes.push_back(std::move(node));
  return static_cast<int>(base.numa_nodes.size()) - 1;
}

void fill_gpu(HostTopology& base, Gpu& into, const HostTopology& other, const Gpu& from) {
  fill(into.name, from.name);
  fill(into.uuid, from.uuid);
  fill(into.busid, from.busid);
  fill(into.pci_id, from.pci_id);
  fill(into.memory_bytes, from.memory_bytes);
  fill(into.sm, from.sm);
  fill(into.pci_gbytes_per_s, from.pci_gbytes_per_s);
  fill(into.gdr, from.gdr);
  fill(into.mig_enabled, from.mig_enabled);
  fill(into.ecc, from.ecc);
  fill(into.numa_id_of_memory, from.numa_id_of_memory);
  if (into.cpu_affinity.empty()) into.cpu_affinity = from.cpu_affinity;
  if (!numa_id(base, into.numa))
    if (const auto numa = numa_in(base, other, from.numa)) into.numa = numa;
}

void fill_nic(HostTopology& base, Nic& into, const HostTopology& other, const Nic& from) {
  fill(into.name, from.name);
  fill(into.netdev, from.netdev);
  fill(into.busid, from.busid);
  fill(into.pci_id, from.pci_id);
  fill(into.guid, from.guid);
  fill(into.port_guid, from.port_guid);
  fill(into.rate_mbit_per_s, from.rate_mbit_per_s);
  fill(into.link_layer, from.link_layer);
  fill(into.active, from.active);
  fill(into.pci_gbytes_per_s, from.pci_gbytes_per_s);
  fill(into.gdr, from.gdr);
  into.rdma = into.rdma || from.rdma;
  if (!numa_id(base, into.numa))
    if (const auto numa = numa_in(base, other, from.numa)) into.numa = numa;
}

/// Cells of the base: unknown ones are filled, NVLink is added, NODE is more than PHB.
void fill_cell(Path& into, bool& knows, const Path& from, bool from_knows) {
  if (!from.path_class) return;
  const bool better = !into.path_class ||
                      (is_nvlink(from) && from_knows && !is_nvlink(into) && !knows) ||
                      (into.path_class == PathClass::kPhb && from.path_class == PathClass::kNode);
  if (better) {
    const auto known = into.path_class == PathClass::kPhb ? into.gbytes_per_s : std::nullopt;
    into = from;
    if (!into.gbytes_per_s) into.gbytes_per_s = known;
  } else if (into.path_class == from.path_class) {
    if (into.nvlinks == 0) into.nvlinks = from.nvlinks;
    fill(into.gbytes_per_s, from.gbytes_per_s);
  }
}

void absorb(HostTopology& base, const HostTopology& other) {
  const bool had_gpus = !base.gpus.empty();
  const auto gpus = matches(base.gpus, other.gpus, same_gpu);
  const auto nics = matches(base.nics, other.nics, same_nic);
  base.sources.insert(base.sources.end(), other.sources.begin(), other.sources.end());
  fill(base.hostname, other.hostname);
  fill(base.architecture, other.architecture);
  fill(base.cpu_vendor, other.cpu_vendor);
  fill(base.cpu_family, other.cpu_family);
  fill(base.cpu_model, other.cpu_model);
  fill(base.memory_bytes, other.memory_bytes);
  for (size_t g = 0; g < gpus.size(); ++g)
    if (gpus[g]) fill_gpu(base, base.gpus[*gpus[g]], other, other.gpus[g]);
  for (size_t n = 0; n < nics.size(); ++n)
    if (nics[n]) fill_nic(base, base.nics[*nics[n]], other, other.nics[n]);
  if (!had_gpus) return;
  bool knows_nvlink = base.nvlink_known, yes = true;
  for (size_t g = 0; g < gpus.size(); ++g) {
    if (!gpus[g]) continue;
    for (size_t o = 0; o < gpus.size(); ++o)
      if (gpus[o])
        fill_cell(base.gpu_gpu[*gpus[g]][*gpus[o]], knows_nvlink, other.gpu_gpu[g][o],
                  other.nvlink_known);
    for (size_t n = 0; n < nics.size(); ++n)
      if (nics[n]) fill_cell(base.gpu_nic[*gpus[g]][*nics[n]], yes, other.gpu_nic[g][n], true);
  }
  if (!base.nvlink_known && other.nvlink_known) base.nvlink_known = true;
  base.nics_known = base.nics_known || other.nics_known;
  base.warnings.insert(base.warnings.end(), other.warnings.begin(), other.warnings.end());
}

}  // namespace

std::vector<std::string> disagreements(const HostTopology& a, const HostTopology& b) {
  return Comparison(a, b).run();
}

HostTopology merge(const std::vector<HostTopology>& sources, std::vector<std::string>& conflicts) {
  HostTopology base = sources.empty() ? HostTopology{} : sources.front();
  for (size_t s = 1; s < sources.size(); ++s) {
    for (std::string& conflict : disagreements(base, sources[s]))
      conflicts.push_back(std::move(conflict));
    absorb(base, sources[s]);
  }
  choose_nics(base);
  return base;
}

namespace {

std::string size_text(std::optional<uint64_t> bytes) {
  return bytes ? fmt::format("{:.0f} GB", static_cast<double>(*bytes) / 1e9) : "unknown";
}

/// "2 x NVIDIA A100-SXM4-80GB, 2 x …"
template <class T, class Word>
std::string inventory(const std::vector<T>& items, Word word) {
  std::map<std::string, int> counts;
  for (const T& item : items) ++counts[word(item)];
  std::string out;
  for (const auto& [what, count] : counts) {
    if (!out.empty()) out += ", ";
    out += fmt::format("{} x {}", count, what);
  }
  return out.empty() ? "none" : out;
}

/// Paths as text, so that one differing pair shows.
std::string pairs(const std::vector<std::vector<Path>>& matrix) {
  std::string out;
  for (const auto& row : matrix) {
    for (const Path& path : row) out.append(cell(path)).append(" ");
    out.append("/ ");
  }
  return out;
}

}  // namespace

std::vector<std::string> differences(const HostTopology& reference, const HostTopology& host) {
  std::vector<std::string> out;
  const auto compare = [&](const std::string& what, const std::string& expected,
                           const std::string& found) {
    if (expected != found)
      out.push_back(fmt::format("{}: {} instead of {}", what, found, expected));
  };
  const auto gpu_word = [](const Gpu& g) {
    return fmt::format("{} {}", g.name.empty() ? (g.pci_id.empty() ? "GPU" : g.pci_id) : g.name,
                       size_text(g.memory_bytes));
  };
  const auto nic_word = [](const Nic& n) {
    const std::string rate =
        n.rate_mbit_per_s ? fmt::format("{:g} Gbit/s", *n.rate_mbit_per_s / 1000) : "unknown rate";
    return fmt::format("{} {}{}{}", n.rdma ? "RDMA" : "Ethernet", rate,
                       n.active == false ? ", port down" : "",
                       n.link_layer == LinkLayer::kInfiniBand ? ", InfiniBand" : "");
  };
  compare("packages", std::to_string(reference.packages.size()),
          std::to_string(host.packages.size()));
  compare("NUMA nodes", std::to_string(reference.numa_nodes.size()),
          std::to_string(host.numa_nodes.size()));
  compare("cores", std::to_string(reference.cores.size()), std::to_string(host.cores.size()));
  if (!reference.packages.empty() && !host.packages.empty())
    compare("CPU", reference.packages[0].model, host.packages[0].model);
  // Firmware reserves a little more here and there.
  if (reference.memory_bytes && host.memory_bytes) {
    const double ratio =
        static_cast<double>(*host.memory_bytes) / static_cast<double>(*reference.memory_bytes);
    if (ratio < 0.98 || ratio > 1.02)
      compare("memory", size_text(reference.memory_bytes), size_text(host.memory_bytes));
  }
  compare("GPUs", inventory(reference.gpus, gpu_word), inventory(host.gpus, gpu_word));
  compare("NICs", inventory(reference.nics, nic_word), inventory(host.nics, nic_word));
  const size_t before = out.size();
  if (reference.gpus.size() == host.gpus.size() && pairs(reference.gpu_gpu) != pairs(host.gpu_gpu))
    out.push_back("paths between GPUs differ");
  if (reference.gpus.size() == host.gpus.size() && reference.nics.size() == host.nics.size() &&
      pairs(reference.gpu_nic) != pairs(host.gpu_nic))
    out.push_back("paths between GPUs and NICs differ");
  if (out.size() > before && before > 0) out.resize(before);  // the inventory explains it
  const auto modes = [](const std::vector<Gpu>& gpus) {
    int mig = 0, no_ecc = 0;
    for (const Gpu& g : gpus) {
      mig += g.mig_enabled.value_or(false) ? 1 : 0;
      no_ecc += g.ecc == false ? 1 : 0;
    }
    return fmt::format("MIG on {} GPUs, ECC off on {}", mig, no_ecc);
  };
  if (reference.gpus.size() == host.gpus.size())
    compare("GPU modes", modes(reference.gpus), modes(host.gpus));
  return out;
}

}  // namespace r1::launch
