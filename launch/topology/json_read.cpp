// The JSON form of a topology, read: every value checked for type and range.
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "launch/topology/import.h"
#include "launch/topology/json.h"
#include "launch/topology/json_words.h"
#include "runtime/core/error.h"

namespace r1::launch {
namespace {

using Json = nlohmann::ordered_json;

class Reader {
 public:
  explicit Reader(const std::string& source) : source_(source) {}

  template <class... Args>
  [[noreturn]] void refuse(fmt::format_string<Args...> text, Args&&... args) const {
    throw DataError("{}: {}", source_, fmt::format(text, std::forward<Args>(args)...));
  }

  const Json& object(const Json& value, const char* what) const {
    if (!value.is_object()) refuse("{} is not an object", what);
    return value;
  }
  /// The array under a key; empty when there is none.
  const Json& list(const Json& from, const char* key, size_t most) const {
    static const Json kNone = Json::array();
    const auto found = from.find(key);
    if (found == from.end()) return kNone;
    if (!found->is_array()) refuse("\"{}\" is not a list", key);
    if (found->size() > most) refuse("\"{}\" has more than {} entries", key, most);
    return *found;
  }
  void get(const Json& from, const char* key, std::string& out) const {
    const auto found = from.find(key);
    if (found == from.end()) return;
    if (!found->is_string()) refuse("\"{}\" is not text", key);
    out = found->get<std::string>();
  }
  void get(const Json& from, const char* key, bool& out) const {
    const auto found = from.find(key);
    if (found == from.end()) return;
    if (!found->is_boolean()) refuse("\"{}\" is neither true nor false", key);
    out = found->get<bool>();
  }
  void get(const Json& from, const char* key, std::optional<bool>& out) const {
    bool value = false;
    if (!from.contains(key)) return;
    get(from, key, value);
    out = value;
  }
  void get(const Json& from, const char* key, int& out, int least, int most) const {
    const auto found = from.find(key);
    if (found == from.end()) return;
    out = number(*found, key, least, most);
  }
  void get(const Json& from, const char* key, std::optional<int>& out, int least, int most) const {
    const auto found = from.find(key);
    if (found != from.end()) out = number(*found, key, least, most);
  }
  void get(const Json& from, const char* key, std::optional<uint64_t>& out) const {
    const auto found = from.find(key);
    if (found == from.end()) return;
    if (!found->is_number_unsigned()) refuse("\"{}\" is not a whole number of at least 0", key);
    out = found->get<uint64_t>();
  }
  void get(const Json& from, const char* key, std::optional<double>& out) const {
    const auto found = from.find(key);
    if (found == from.end()) return;
    if (!found->is_number()) refuse("\"{}\" is not a number", key);
    const double value = found->get<double>();
    if (!(value >= 0 && value < 1e12)) refuse("\"{}\" is {}; allowed: 0 to 1e12", key, value);
    out = value;
  }
  void get(const Json& from, const char* key, CpuSet& out) const {
    std::string text;
    get(from, key, text);
    out = CpuSet::from_list(text, source_);
  }
  void get(const Json& from, const char* key, std::vector<std::string>& out) const {
    for (const Json& item : list(from, key, 400'000)) {
      if (!item.is_string()) refuse("an entry of \"{}\" is not text", key);
      out.push_back(item.get<std::string>());
    }
  }
  int number(const Json& value, const char* key, int least, int most) const {
    if (!value.is_number_integer()) refuse("\"{}\" is not a whole number", key);
    const auto big = value.is_number_unsigned() && value.get<uint64_t>() > INT32_MAX
                         ? int64_t{INT32_MAX} + 1
                         : value.get<int64_t>();
    if (big < least || big > most) refuse("\"{}\" is {}; allowed: {} to {}", key, big, least, most);
    return static_cast<int>(big);
  }

  HostTopology host(const Json& from) const;
  Fabric fabric(const Json& from) const;

 private:
  static int last(size_t size) { return static_cast<int>(size) - 1; }
  void matrix(const Json& from, const char* key, size_t rows, size_t columns,
              std::vector<std::vector<Path>>& out) const;
  Gpu gpu(const Json& from, const HostTopology& host) const;
  Nic nic(const Json& from, const HostTopology& host) const;
  void cpus(const Json& from, HostTopology& out) const;
  void pci(const Json& from, HostTopology& out) const;
  void links(const Json& from, HostTopology& host) const;
  void paths(const Json& from, HostTopology& out) const;
  void switches(const Json& from, Fabric& out) const;

  const std::string& source_;
};

void Reader::matrix(const Json& from, const char* key, size_t rows, size_t columns,
                    std::vector<std::vector<Path>>& out) const {
  static const auto kWords = [] {
    std::map<std::string_view, PathClass> words;
    for (int c = 0; c <= static_cast<int>(PathClass::kSys); ++c)
      words.emplace(name(static_cast<PathClass>(c)), static_cast<PathClass>(c));
    return words;
  }();
  const Json& list_of_rows = list(from, key, rows);
  if (list_of_rows.size() != rows)
    refuse("\"{}\" has {} rows; expected {}", key, list_of_rows.size(), rows);
  for (const Json& row : list_of_rows) {
    if (!row.is_array() || row.size() != columns)
      refuse("a row of \"{}\" is not a list of {} cells", key, columns);
    out.emplace_back();
    for (const Json& cell_value : row) {
      object(cell_value, key);
      Path path;
      std::string word;
      get(cell_value, "path", word);
      if (!word.empty()) {
        const auto known = kWords.find(word);
        if (known == kWords.end()) refuse("\"{}\" has a path \"{}\"", key, word.substr(0, 20));
        path.path_class = known->second;
      }
      get(cell_value, "nvlinks", path.nvlinks, 0, 4096);
      get(cell_value, "gbytes_per_s", path.gbytes_per_s);
      out.back().push_back(path);
    }
  }
}

Gpu Reader::gpu(const Json& from, const HostTopology& host) const {
  object(from, "a GPU");
  Gpu out;
  get(from, "index", out.index, 0, 1 << 20);
  get(from, "name", out.name);
  get(from, "uuid", out.uuid);
  get(from, "busid", out.busid);
  get(from, "pci_id", out.pci_id);
  get(from, "memory_bytes", out.memory_bytes);
  get(from, "sm", out.sm, 0, 10'000);
  get(from, "numa", out.numa, 0, last(host.numa_nodes.size()));
  get(from, "cpu_affinity", out.cpu_affinity);
  get(from, "pci_parent", out.pci_parent, 0, last(host.pci.size()));
  get(from, "pci_gbytes_per_s", out.pci_gbytes_per_s);
  get(from, "gdr", out.gdr);
  get(from, "mig_enabled", out.mig_enabled);
  for (const Json& item : list(from, "mig", 64)) {
    MigInstance mig;
    object(item, "a MIG instance");
    get(item, "uuid", mig.uuid);
    get(item, "profile", mig.profile);
    get(item, "memory_bytes", mig.memory_bytes);
    out.mig.push_back(std::move(mig));
  }
  get(from, "ecc", out.ecc);
  get(from, "throttle_reasons", out.throttle_reasons);
  std::optional<int> memory_node;
  get(from, "numa_id_of_memory", memory_node, 0, CpuSet::kMost);
  if (memory_node) out.numa_id_of_memory = static_cast<uint32_t>(*memory_node);
  get(from, "nvswitch_board", out.nvswitch_board, 0, 1 << 16);
  return out;
}

Nic Reader::nic(const Json& from, const HostTopology& host) const {
  object(from, "a NIC");
  Nic out;
  get(from, "name", out.name);
  get(from, "netdev", out.netdev);
  get(from, "port", out.port, 0, 1 << 16);
  get(from, "busid", out.busid);
  get(from, "pci_id", out.pci_id);
  get(from, "rate_mbit_per_s", out.rate_mbit_per_s);
  std::string layer;
  get(from, "link_layer", layer);
  if (layer == "InfiniBand")
    out.link_layer = LinkLayer::kInfiniBand;
  else if (layer == "Ethernet")
    out.link_layer = LinkLayer::kEthernet;
  else if (!layer.empty())
    refuse("link_layer \"{}\"; allowed: InfiniBand, Ethernet", layer.substr(0, 20));
  get(from, "rdma", out.rdma);
  get(from, "active", out.active);
  get(from, "guid", out.guid);
  get(from, "port_guid", out.port_guid);
  get(from, "numa", out.numa, 0, last(host.numa_nodes.size()));
  get(from, "pci_parent", out.pci_parent, 0, last(host.pci.size()));
  get(from, "pci_gbytes_per_s", out.pci_gbytes_per_s);
  get(from, "gdr", out.gdr);
  return out;
}

void Reader::links(const Json& from, HostTopology& host) const {
  for (const Json& item : list(from, "nvswitches", kMostGpus)) {
    object(item, "an NVSwitch");
    NvSwitch out;
    get(item, "busid", out.busid);
    get(item, "pci_parent", out.pci_parent, 0, last(host.pci.size()));
    host.nvswitches.push_back(std::move(out));
  }
  for (const Json& item : list(from, "nvlinks", 1 << 18)) {
    object(item, "an NVLink");
    NvLink out;
    get(item, "gpu", out.gpu, 0, last(host.gpus.size()));
    std::string target = "gpu";
    get(item, "target", target);
    const auto known = std::ranges::find(kLinkTargets, target);
    if (known == kLinkTargets.end())
      refuse("an NVLink's target \"{}\"; allowed: gpu, switch, cpu", target.substr(0, 20));
    out.target = static_cast<NvLink::Target>(known - kLinkTargets.begin());
    const size_t most = out.target == NvLink::Target::kGpu      ? host.gpus.size()
                        : out.target == NvLink::Target::kSwitch ? host.nvswitches.size()
                                                                : host.numa_nodes.size();
    get(item, "target_index", out.target_index, out.target == NvLink::Target::kCpu ? -1 : 0,
        last(most));
    if (out.target_index >= static_cast<int>(most))
      refuse("an NVLink leads to a {} that is not there", target);
    get(item, "count", out.count, 0, 4096);
    get(item, "c2c", out.c2c);
    get(item, "gbytes_per_s", out.gbytes_per_s);
    if (out.gpu >= static_cast<int>(host.gpus.size()))
      refuse("an NVLink of a GPU that is not there");
    host.nvlinks.push_back(out);
  }
}

void Reader::cpus(const Json& from, HostTopology& out) const {
  for (const Json& item : list(from, "packages", kMostNuma)) {
    object(item, "a package");
    Package package;
    get(item, "os_index", package.os_index, 0, CpuSet::kMost);
    get(item, "cpus", package.cpus);
    get(item, "model", package.model);
    out.packages.push_back(std::move(package));
  }
  for (const Json& item : list(from, "numa_nodes", kMostNuma)) {
    object(item, "a NUMA node");
    NumaNode node;
    get(item, "os_index", node.os_index, -1, CpuSet::kMost);
    get(item, "package", node.package, 0, last(out.packages.size()));
    get(item, "cpus", node.cpus);
    get(item, "memory_bytes", node.memory_bytes);
    get(item, "device_memory", node.device_memory);
    out.numa_nodes.push_back(std::move(node));
  }
  for (const Json& item : list(from, "cores", CpuSet::kMost)) {
    object(item, "a core");
    Core core;
    get(item, "package", core.package, 0, last(out.packages.size()));
    get(item, "numa", core.numa, 0, last(out.numa_nodes.size()));
    get(item, "cpus", core.cpus);
    out.cores.push_back(std::move(core));
  }
}

void Reader::pci(const Json& from, HostTopology& out) const {
  for (const Json& item : list(from, "pci", kMostPci)) {
    object(item, "a PCI switch");
    PciSwitch node;
    std::string kind = "switch";
    get(item, "kind", kind);
    if (kind == "host bridge")
      node.kind = PciSwitch::Kind::kHostBridge;
    else if (kind != "switch")
      refuse("a PCI switch of kind \"{}\"; allowed: switch, host bridge", kind.substr(0, 20));
    get(item, "busid", node.busid);
    get(item, "parent", node.parent, 0, last(out.pci.size()));  // parents come first
    get(item, "numa", node.numa, 0, last(out.numa_nodes.size()));
    get(item, "gbytes_per_s", node.gbytes_per_s);
    out.pci.push_back(std::move(node));
  }
}

void Reader::paths(const Json& from, HostTopology& out) const {
  get(from, "nvlink_known", out.nvlink_known);
  get(from, "nics_known", out.nics_known);
  const size_t gpus = out.gpus.size(), nics = out.nics.size();
  matrix(from, "gpu_gpu", gpus, gpus, out.gpu_gpu);
  matrix(from, "gpu_nic", gpus, nics, out.gpu_nic);
  matrix(from, "nic_nic", nics, nics, out.nic_nic);
  for (const Json& row : list(from, "near_nics", gpus)) {
    out.near_nics.emplace_back();
    if (!row.is_array() || row.size() > nics)
      refuse("a row of \"near_nics\" is not a list of NICs");
    for (const Json& item : row)
      out.near_nics.back().push_back(number(item, "near_nics", 0, last(nics)));
  }
  for (const Json& item : list(from, "nccl_nic", gpus))
    out.nccl_nic.push_back(item.is_null() ? std::nullopt
                                          : std::optional(number(item, "nccl_nic", 0, last(nics))));
  out.near_nics.resize(gpus);
  out.nccl_nic.resize(gpus);
}

HostTopology Reader::host(const Json& from) const {
  object(from, "a host");
  HostTopology out;
  get(from, "hostname", out.hostname);
  get(from, "sources", out.sources);
  get(from, "architecture", out.architecture);
  get(from, "cpu_vendor", out.cpu_vendor);
  get(from, "cpu_family", out.cpu_family, 0, 1 << 20);
  get(from, "cpu_model", out.cpu_model, 0, 1 << 20);
  get(from, "memory_bytes", out.memory_bytes);
  cpus(from, out);
  pci(from, out);
  for (const Json& item : list(from, "gpus", kMostGpus)) out.gpus.push_back(gpu(item, out));
  for (const Json& item : list(from, "nics", kMostNics)) out.nics.push_back(nic(item, out));
  links(from, out);
  paths(from, out);
  get(from, "warnings", out.warnings);
  return out;
}

void Reader::switches(const Json& from, Fabric& out) const {
  const Json& all = list(from, "switches", 400'000);
  for (const Json& item : all) {
    object(item, "a switch");
    FabricSwitch node;
    get(item, "name", node.name);
    get(item, "guid", node.guid);
    get(item, "level", node.level, 0, 1 << 16);
    for (const Json& link : list(item, "up", 1 << 16)) {
      object(link, "a link");
      FabricSwitch::Link up;
      get(link, "to", up.to, 0, last(all.size()));
      get(link, "cables", up.cables, 1, 1 << 20);
      get(link, "gbytes_per_s", up.gbytes_per_s);
      node.up.push_back(up);
    }
    std::optional<double> hosts;
    get(item, "host_gbytes_per_s", hosts);
    node.host_gbytes_per_s = hosts.value_or(0);
    get(item, "oversubscription", node.oversubscription);
    out.switches.push_back(std::move(node));
  }
}

Fabric Reader::fabric(const Json& from) const {
  object(from, "the fabric");
  Fabric out;
  get(from, "source", out.source);
  switches(from, out);
  for (const Json& item : list(from, "ports", 4'000'000)) {
    object(item, "a port");
    FabricPort port;
    get(item, "host", port.host);
    get(item, "device", port.device);
    get(item, "guid", port.guid);
    if (out.switches.empty()) refuse("ports without switches");
    get(item, "leaf", port.leaf, 0, last(out.switches.size()));
    get(item, "gbytes_per_s", port.gbytes_per_s);
    out.ports.push_back(std::move(port));
  }
  for (const Json& item : list(from, "blocks", 20'000)) {
    object(item, "a block");
    Fabric::Block block;
    get(item, "name", block.name);
    get(item, "hosts", block.hosts);
    out.blocks.push_back(std::move(block));
  }
  for (const Json& item : list(from, "block_sizes", 64))
    out.block_sizes.push_back(number(item, "block_sizes", 1, 1'000'000));
  get(from, "warnings", out.warnings);
  return out;
}

Json parsed(std::string_view text, const std::string& source) {
  if (text.size() > kMostBytes)
    throw DataError("{}: {} bytes; a topology takes at most {}", source, text.size(), kMostBytes);
  try {
    return Json::parse(text);
  } catch (const Json::exception& e) {
    throw DataError("{}: not JSON: {}", source, e.what());
  }
}

}  // namespace

HostTopology host_from_json(std::string_view text, const std::string& source) {
  const Json json = parsed(text, source);
  return Reader(source).host(json);
}

Topology topology_from_json(std::string_view text, const std::string& source) {
  const Json json = parsed(text, source);
  const Reader reader(source);
  if (!json.is_object() || !json.contains("r1run_topology"))
    reader.refuse("JSON without \"r1run_topology\": not the output of r1run topo --json");
  int version = 0;
  reader.get(json, "r1run_topology", version, 0, 1 << 20);
  if (version != kTopologyVersion)
    reader.refuse("topology version {}; this program knows {}", version, kTopologyVersion);
  std::vector<std::shared_ptr<const HostTopology>> kinds;
  for (const Json& kind : reader.list(json, "kinds", 100'000))
    kinds.push_back(std::make_shared<const HostTopology>(reader.host(kind)));
  Topology out;
  for (const Json& item : reader.list(json, "hosts", 400'000)) {
    Topology::Member member;
    reader.get(reader.object(item, "a host"), "name", member.name);
    std::optional<int> kind;
    reader.get(item, "kind", kind, 0, static_cast<int>(kinds.size()) - 1);
    if (kind) member.host = kinds[static_cast<size_t>(*kind)];
    out.hosts.push_back(std::move(member));
  }
  if (json.contains("fabric")) out.fabric = reader.fabric(json["fabric"]);
  return out;
}

}  // namespace r1::launch
