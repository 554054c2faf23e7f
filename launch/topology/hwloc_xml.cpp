// hwloc's XML (lstopo machine.xml, formats 1.x and 2.x; the live map comes this way too): object >
// object …
//
// PCI is told as NCCL sees it: its walk up from a device takes two steps of the kernel's path at a
// time (a switch is an upstream and a downstream port), so a root port is no switch, and devices
// below one switch are PIX.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <map>
#include <string>

#include "launch/topology/import.h"
#include "launch/topology/paths.h"
#include "launch/topology/xml.h"
#include "runtime/core/error.h"

namespace r1::launch {
namespace {

using pugi::xml_node;

std::string_view info(const xml_node& object, std::string_view key) {
  for (const xml_node& node : object.children("info"))
    if (key == node.attribute("name").value()) return node.attribute("value").value();
  return {};
}

bool is(const xml_node& object, std::string_view type) {
  return type == object.attribute("type").value();
}

/// "0302 [10de:20b2] [10de:1463] a1"
struct PciType {
  std::string class_id, id;
};
PciType pci_type(const xml_node& object) {
  const std::string_view text = object.attribute("pci_type").value();
  PciType out{std::string(text.substr(0, 4)), ""};
  const auto open = text.find('['), close = text.find(']');
  if (open != std::string_view::npos && close == open + 10) out.id = text.substr(open + 1, 9);
  if (out.id == "0000:0000") out.id.clear();
  return out;
}

/// hwloc counts what is left after 8b/10b or 128b/130b line coding, NCCL three quarters of the raw
/// rate: the slot whose hwloc figure is nearest.
std::optional<double> slot_of(const xml_node& object) {
  const std::string_view text = object.attribute("pci_link_speed").value();
  double speed = 0;
  const auto [at, error] = std::from_chars(text.data(), text.data() + text.size(), speed);
  if (error != std::errc{} || !(speed > 0) || speed > 1e4) return std::nullopt;
  struct Lane {
    double hwloc, nccl;
  };
  static constexpr std::array<Lane, 6> kLanes = {{{0.25, 0.1875},
                                                  {0.5, 0.375},
                                                  {0.984615, 0.75},
                                                  {1.969231, 1.5},
                                                  {3.938462, 3},
                                                  {7.5625, 6}}};
  std::optional<double> best;
  double least = 0.05;  // of the speed
  for (const Lane& lane : kLanes)
    for (int width = 1; width <= 32; width *= 2) {
      const double off = std::abs(lane.hwloc * width - speed) / speed;
      if (off >= least) continue;
      least = off;
      best = lane.nccl * width;
    }
  return best;
}

/// A number at the end of "nvml3", "cuda0"; nullopt when the name is not of that kind.
std::optional<int> numbered(std::string_view text, std::string_view prefix) {
  if (!text.starts_with(prefix)) return std::nullopt;
  const auto value = integer(text.substr(prefix.size()));
  return value && *value >= 0 && *value < 4096 ? std::optional(static_cast<int>(*value))
                                               : std::nullopt;
}

bool virtual_interface(std::string_view netdev) {
  for (const char* prefix : {"lo", "docker", "veth", "virbr", "br-", "cni", "flannel", "cali",
                             "tun", "tap", "dummy", "bond"})
    if (netdev.starts_with(prefix) && !(std::string_view(prefix) == "lo" && netdev != "lo"))
      return true;
  return false;
}

class HwlocReader {
 public:
  HwlocReader(std::string_view text, const std::string& source) : text_(text), source_(source) {}

  HostTopology read() {
    pugi::xml_document document;
    parse_xml(document, text_, source_);
    const xml_node root = document.document_element();
    if (std::string_view(root.name()) != "topology" && std::string_view(root.name()) != "root")
      throw DataError("{}: root element \"{}\"; hwloc's XML has \"topology\"",
                      place(root, text_, source_), std::string_view(root.name()).substr(0, 40));
    const std::string_view version = root.attribute("version").value();
    const auto major = integer(version.substr(0, version.find('.')));
    if (!version.empty() && (!major || *major > 2))
      throw DataError(
          "{}: hwloc XML format {}; this reader knows 1.x and 2.x (hwloc 3 writes the older one "
          "with "
          "lstopo --export-xml-flags v2)",
          place(root, text_, source_), version.substr(0, 20));
    const xml_node machine = root.child("object");
    if (!machine)
      throw DataError("{}: no object in it: nothing to read", place(root, text_, source_));
    host_.sources = {source_ + " (hwloc)"};
    read_machine(machine);
    collect_numa(machine, std::nullopt);
    walk(machine, {});
    if (host_.packages.empty() && host_.numa_nodes.empty() && host_.cores.empty())
      throw DataError("{}: no package, NUMA node or core in it: not a machine",
                      place(machine, text_, source_));
    for (const char* kind : {"distances2", "distances2hetero"})
      for (const xml_node& matrix : root.children(kind)) read_links(matrix);
    finish();
    return std::move(host_);
  }

 private:
  /// What a walk down the tree carries.
  struct Context {
    std::optional<int> package, numa;
    std::optional<int> host_bridge;  // index into pci
    std::vector<xml_node> bridges;   // below the host bridge, root port first
  };

  std::string_view text_;
  const std::string& source_;
  HostTopology host_;
  std::map<std::string, int> switches_;  // busid → index into pci
  std::map<long long, std::pair<char, int>>
      by_gp_;  // gp_index → 'g' GPU, 's' NVSwitch, 'c' CPU; its index
  std::vector<std::pair<CpuSet, int>> numa_by_set_;  // node set → index

  void read_machine(const xml_node& machine) {
    host_.hostname = info(machine, "HostName");
    host_.architecture = info(machine, "Architecture");
    const auto memory = integer(machine.attribute("local_memory"));
    if (memory && *memory > 0) host_.memory_bytes = static_cast<uint64_t>(*memory);
    read_cpu_info(machine);
  }
  void read_cpu_info(const xml_node& object) {
    if (host_.cpu_vendor.empty()) host_.cpu_vendor = info(object, "CPUVendor");
    const auto number = [&](std::string_view key) -> std::optional<int> {
      const auto value = integer(info(object, key));
      return value && *value >= 0 && *value < 0xffff ? std::optional(static_cast<int>(*value))
                                                     : std::nullopt;
    };
    if (!host_.cpu_family) host_.cpu_family = number("CPUFamilyNumber");
    if (!host_.cpu_model) host_.cpu_model = number("CPUModelNumber");
  }

  CpuSet mask(const xml_node& object, const char* key) const {
    const std::string_view text = object.attribute(key).value();
    // "0xf...f" stands for an endless set.
    return text.empty() || text.find("...") != std::string_view::npos
               ? CpuSet{}
               : CpuSet::from_mask(text, source_);
  }

  /// NUMA nodes and packages first: devices refer to both.
  void collect_numa(const xml_node& object, std::optional<int> package) {
    if (is(object, "Package") || is(object, "Socket")) {
      const auto id = integer(object.attribute("os_index"));
      if (host_.packages.size() >= kMostNuma)
        throw DataError("{}: more than {} packages", source_, kMostNuma);
      package = static_cast<int>(host_.packages.size());
      host_.packages.push_back(
          {.os_index = id && *id >= 0 && *id < CpuSet::kMost ? static_cast<int>(*id) : *package,
           .cpus = mask(object, "cpuset"),
           .model = std::string(info(object, "CPUModel"))});
      read_cpu_info(object);
      remember(object, 'c', 0);
    }
    if (is(object, "NUMANode") || is(object, "Node")) add_numa(object, package);
    for (const xml_node& child : object.children("object")) collect_numa(child, package);
  }

  void add_numa(const xml_node& object, std::optional<int> package) {
    if (host_.numa_nodes.size() >= kMostNuma)
      throw DataError("{}: more than {} NUMA nodes", source_, kMostNuma);
    const auto id = integer(object.attribute("os_index"));
    const auto memory = integer(object.attribute("local_memory"));
    NumaNode node{.os_index = id && *id >= 0 && *id < CpuSet::kMost ? static_cast<int>(*id) : -1,
                  .package = package,
                  .cpus = mask(object, "cpuset")};
    if (memory && *memory > 0) node.memory_bytes = static_cast<uint64_t>(*memory);
    node.device_memory = std::string_view(object.attribute("subtype").value()) == "GPUMemory";
    const int index = static_cast<int>(host_.numa_nodes.size());
    if (!node.device_memory) {
      auto set = mask(object, "nodeset");
      if (set.empty() && node.os_index >= 0) set.insert(node.os_index, node.os_index);
      numa_by_set_.emplace_back(std::move(set), index);
    }
    remember(object, 'c', index);
    host_.numa_nodes.push_back(std::move(node));
  }

  void remember(const xml_node& object, char kind, int index) {
    const auto gp = integer(object.attribute("gp_index"));
    if (gp) by_gp_.insert_or_assign(*gp, std::pair(kind, index));
  }

  /// The NUMA node of an object's place: the only one of its node set, or the lowest of those with
  /// its very CPUs (high bandwidth and plain memory side by side).
  std::optional<int> numa_of(const xml_node& object, std::optional<int> inherited) const {
    const CpuSet nodes = mask(object, "nodeset");
    if (nodes.empty()) return inherited;
    std::vector<int> inside;
    for (const auto& [set, index] : numa_by_set_)
      if (nodes.intersects(set)) inside.push_back(index);
    if (inside.empty()) return inherited;
    const auto& first = host_.numa_nodes[static_cast<size_t>(inside.front())];
    for (const int index : inside)
      if (host_.numa_nodes[static_cast<size_t>(index)].cpus != first.cpus) return std::nullopt;
    return inside.front();
  }

  void walk(const xml_node& object, Context context) {
    const std::string_view type = object.attribute("type").value();
    const bool io = type == "Bridge" || type == "PCIDev" || type == "OSDev" || type == "Misc";
    if (!io && type.find("Cache") == std::string_view::npos && type != "PU")
      context.numa = numa_of(object, context.numa);
    if (type == "Package" || type == "Socket")
      for (size_t p = 0; p < host_.packages.size(); ++p)
        if (host_.packages[p].os_index == integer(object.attribute("os_index")))
          context.package = static_cast<int>(p);
    if (type == "Core") {
      if (host_.cores.size() >= static_cast<size_t>(CpuSet::kMost))
        throw DataError("{}: too many cores", source_);
      host_.cores.push_back(
          {.package = context.package, .numa = context.numa, .cpus = mask(object, "cpuset")});
    }
    if (type == "PU") return;
    if (type == "Bridge") enter_bridge(object, context);
    if (type == "PCIDev") {
      read_device(object, context);
      return;
    }
    if (type == "OSDev") {
      lone_interface(object, context);
      return;
    }
    for (const xml_node& child : object.children("object")) walk(child, context);
  }

  void enter_bridge(const xml_node& object, Context& context) {
    if (std::string_view(object.attribute("bridge_type").value()).starts_with("0-")) {
      if (host_.pci.size() >= kMostPci)
        throw DataError("{}: more than {} PCI bridges", source_, kMostPci);
      std::string id(object.attribute("bridge_pci").value());
      host_.pci.push_back(
          {.kind = PciSwitch::Kind::kHostBridge, .busid = id.substr(0, 24), .numa = context.numa});
      context.host_bridge = static_cast<int>(host_.pci.size()) - 1;
      context.bridges.clear();
    } else {
      context.bridges.push_back(object);
    }
  }

  /// The switch that a device hangs on: every second bridge counts, from the device upwards.
  std::optional<int> parent_of(const Context& context) {
    std::optional<int> parent = context.host_bridge;
    const size_t n = context.bridges.size();
    for (size_t i = n % 2; i + 2 <= n; i += 2) {
      const xml_node& upstream = context.bridges[i];
      const std::string busid = pci_address(upstream.attribute("pci_busid").value());
      const auto [known, fresh] = switches_.try_emplace(busid, static_cast<int>(host_.pci.size()));
      if (fresh) {
        if (host_.pci.size() >= kMostPci)
          throw DataError("{}: more than {} PCI bridges", source_, kMostPci);
        host_.pci.push_back({.busid = busid,
                             .parent = parent,
                             .numa = context.numa,
                             .gbytes_per_s = slot_of(upstream)});
      }
      parent = known->second;
    }
    return parent;
  }

  void read_device(const xml_node& object, const Context& context) {
    const PciType type = pci_type(object);
    std::vector<xml_node> os_devices;
    gather_os_devices(object, os_devices, 0);
    if (is_gpu(type, os_devices))
      add_gpu(object, type, context, os_devices);
    else if (std::string_view(object.attribute("subtype").value()) == "NVSwitch" ||
             (type.class_id == "0680" && type.id.starts_with("10de")))
      add_nvswitch(object, context);
    else if (type.class_id.starts_with("02") || type.class_id == "0c06" || has_network(os_devices))
      add_nics(object, type, context, os_devices);
  }

  static void gather_os_devices(const xml_node& object, std::vector<xml_node>& out, int depth) {
    for (const xml_node& child : object.children("object")) {
      if (is(child, "OSDev") && out.size() < 64) out.push_back(child);
      if (depth < 4) gather_os_devices(child, out, depth + 1);
    }
  }
  static bool has_network(const std::vector<xml_node>& os_devices) {
    return std::ranges::any_of(os_devices, [](const xml_node& d) {
      const auto kind = integer(d.attribute("osdev_type"));
      return kind == 2 || kind == 3;
    });
  }
  static bool is_gpu(const PciType& type, const std::vector<xml_node>& os_devices) {
    for (const xml_node& device : os_devices) {
      const std::string_view name = device.attribute("name").value();
      for (const char* prefix : {"nvml", "cuda", "rsmi", "ze"})
        if (numbered(name, prefix)) return true;
      if (name.starts_with("opencl") && type.class_id.starts_with("03") &&
          info(device, "OpenCLDeviceType") == "GPU")
        return true;
    }
    // A dump without PCI ids: a display is all that is known, and no VGA console hides its vendor.
    if (type.id.empty()) return type.class_id.starts_with("03");
    if (type.id.starts_with("10de")) return type.class_id.starts_with("03");
    // AMD: display controllers and accelerators; plain VGA (0300) is the console unless a compute
    // device says otherwise.
    return type.id.starts_with("1002") && (type.class_id == "0380" || type.class_id == "1200");
  }

  void add_gpu(const xml_node& object, const PciType& type, const Context& context,
               const std::vector<xml_node>& os_devices) {
    if (host_.gpus.size() >= kMostGpus)
      throw DataError("{}: more than {} GPUs", source_, kMostGpus);
    Gpu gpu{.index = -1,
            .busid = pci_address(object.attribute("pci_busid").value()),
            .pci_id = type.id,
            .sm = sm_of_pci_id(type.id),
            .numa = context.numa,
            .pci_parent = parent_of(context),
            .pci_gbytes_per_s = slot_of(object)};
    const int index = static_cast<int>(host_.gpus.size());
    for (const xml_node& device : os_devices) {
      const std::string_view os_name = device.attribute("name").value();
      for (const char* prefix : {"cuda", "rsmi", "ze", "nvml"})  // the last one counts
        if (const auto number = numbered(os_name, prefix)) gpu.index = *number;
      if (!info(device, "GPUModel").empty()) gpu.name = info(device, "GPUModel");
      if (!info(device, "NVIDIAUUID").empty()) gpu.uuid = info(device, "NVIDIAUUID");
      if (!info(device, "AMDUUID").empty()) gpu.uuid = info(device, "AMDUUID");
      for (const char* key : {"CUDAGlobalMemorySize", "OpenCLGlobalMemorySize", "RSMIVRAMSize"}) {
        const auto kib = integer(info(device, key));
        if (kib && *kib > 0 && *kib < (1LL << 40))
          gpu.memory_bytes = static_cast<uint64_t>(*kib) * 1024;
      }
      remember(device, 'g', index);
    }
    if (gpu.name.empty()) gpu.name = info(object, "PCIDevice");
    remember(object, 'g', index);
    host_.gpus.push_back(std::move(gpu));
  }

  void add_nvswitch(const xml_node& object, const Context& context) {
    if (host_.nvswitches.size() >= kMostGpus)
      throw DataError("{}: more than {} NVSwitches", source_, kMostGpus);
    remember(object, 's', static_cast<int>(host_.nvswitches.size()));
    host_.nvswitches.push_back({.busid = pci_address(object.attribute("pci_busid").value()),
                                .pci_parent = parent_of(context)});
  }

  void add_nics(const xml_node& object, const PciType& type, const Context& context,
                const std::vector<xml_node>& os_devices) {
    Nic base{.busid = pci_address(object.attribute("pci_busid").value()),
             .pci_id = type.id,
             .numa = context.numa,
             .pci_parent = parent_of(context),
             .pci_gbytes_per_s = slot_of(object)};
    if (type.class_id == "0207" || type.class_id == "0c06")
      base.link_layer = LinkLayer::kInfiniBand;
    std::vector<xml_node> interfaces, rdma;
    for (const xml_node& device : os_devices) {
      const auto kind = integer(device.attribute("osdev_type"));
      if (kind == 2) interfaces.push_back(device);
      if (kind == 3) rdma.push_back(device);
    }
    for (const xml_node& device : rdma) add_ports(base, device, interfaces);
    if (rdma.empty())
      for (const xml_node& interface : interfaces) {
        Nic nic = base;
        nic.name = interface.attribute("name").value();
        nic.netdev = nic.name;
        push(std::move(nic));
      }
    if (os_devices.empty() && type.class_id.starts_with("02")) push(base);
  }

  /// A NIC for each port that the device tells about, at least one.
  void add_ports(Nic base, const xml_node& device, const std::vector<xml_node>& interfaces) {
    base.name = device.attribute("name").value();
    base.rdma = true;
    base.guid = info(device, "NodeGUID");
    std::erase(base.guid, ':');
    // An InfiniBand device's interface is ib*, next to the Ethernet one of a dual-personality card.
    for (const xml_node& interface : interfaces) {
      const std::string_view netdev = interface.attribute("name").value();
      if (base.netdev.empty() || netdev.starts_with("ib")) base.netdev = netdev;
    }
    bool any = false;
    for (int port = 1; port <= 16; ++port) {
      const auto state = integer(info(device, fmt::format("Port{}State", port)));
      if (!state) continue;
      Nic nic = base;
      nic.port = port;
      nic.active = *state == 4;
      push(std::move(nic));
      any = true;
    }
    if (!any) push(std::move(base));
  }

  void push(Nic nic) {
    if (host_.nics.size() >= kMostNics)
      throw DataError("{}: more than {} NICs", source_, kMostNics);
    host_.nics.push_back(std::move(nic));
  }

  /// An interface without a PCI device (a paravirtual one).
  void lone_interface(const xml_node& object, const Context& context) {
    const auto kind = integer(object.attribute("osdev_type"));
    const std::string name = object.attribute("name").value();
    if ((kind != 2 && kind != 3) || virtual_interface(name)) return;
    push({.name = name, .netdev = kind == 2 ? name : "", .rdma = kind == 3, .numa = context.numa});
  }

  void read_links(const xml_node& matrix) {
    if (std::string_view(matrix.attribute("name").value()) != "NVLinkBandwidth") return;
    const auto words = [&](const char* key) {
      std::vector<std::string_view> out;
      for (const xml_node& node : matrix.children(key)) {
        std::string_view text = node.child_value();
        while (!text.empty()) {
          const auto begin = text.find_first_not_of(" \n\t\r");
          if (begin == std::string_view::npos) break;
          text.remove_prefix(begin);
          const auto end = std::min(text.find_first_of(" \n\t\r"), text.size());
          if (out.size() > (1u << 20))
            throw DataError("{}: an NVLink matrix beyond all machines", source_);
          out.push_back(text.substr(0, end));
          text.remove_prefix(end);
        }
      }
      return out;
    };
    const auto indexes = words("indexes"), values = words("u64values");
    const size_t n = indexes.size();
    if (n == 0 || values.size() != n * n) {
      host_.warnings.push_back(fmt::format(
          "{}: NVLink matrix of {} objects with {} values: ignored", source_, n, values.size()));
      return;
    }
    host_.nvlink_known = true;
    std::vector<std::pair<char, int>> objects;
    for (const std::string_view index : indexes) {
      const auto colon = index.find(':');  // "OSDev:120", "PCIDev:77", or the number alone
      const auto gp = integer(colon == std::string_view::npos ? index : index.substr(colon + 1));
      const auto known = gp ? by_gp_.find(*gp) : by_gp_.end();
      objects.push_back(known == by_gp_.end() ? std::pair('?', 0) : known->second);
    }
    for (size_t a = 0; a < n; ++a)
      for (size_t b = 0; b < n; ++b) {
        const auto value = integer(values[a * n + b]);
        if (a != b && objects[a].first == 'g' && value && *value > 0 && *value < 100'000'000)
          add_link(objects[a].second, objects[b], static_cast<double>(*value));
      }
  }

  void add_link(int gpu, const std::pair<char, int>& to, double mbytes_per_s) {
    if (to.first == '?') return;
    NvLink link{.gpu = gpu, .target_index = to.second};
    link.target = to.first == 'g'   ? NvLink::Target::kGpu
                  : to.first == 's' ? NvLink::Target::kSwitch
                                    : NvLink::Target::kCpu;
    // hwloc adds 20 GB/s a link for NVLink 1 and 25 for all later ones.
    const auto sm = host_.gpus[static_cast<size_t>(gpu)].sm;
    const double per_link = sm && *sm < 70 ? 20000 : 25000;
    const double count = mbytes_per_s / per_link;
    if (std::abs(count - std::round(count)) < 1e-6 && count < 1024)
      link.count = static_cast<int>(std::round(count));
    link.gbytes_per_s =
        link.count > 0 && sm ? link.count * nvlink_gbytes_per_s(sm) : mbytes_per_s / 1000;
    host_.nvlinks.push_back(link);
  }

  void finish() {
    number_gpus(host_);
    host_.nics_known = !host_.nics.empty();
    settle_numa();
    if (!host_.memory_bytes) {
      uint64_t sum = 0;
      for (const NumaNode& node : host_.numa_nodes)
        if (!node.device_memory) sum += node.memory_bytes.value_or(0);
      if (sum > 0) host_.memory_bytes = sum;
    }
    // With one node there is no question where a device is.
    if (numa_by_set_.size() == 1) {
      for (Gpu& gpu : host_.gpus) gpu.numa = numa_by_set_.front().second;
      for (Nic& nic : host_.nics) nic.numa = numa_by_set_.front().second;
      for (PciSwitch& bridge : host_.pci) bridge.numa = numa_by_set_.front().second;
    }
    std::ranges::stable_sort(
        host_.nics, {}, [](const Nic& nic) { return std::pair(!nic.rdma, natural(nic.name)); });
    resolve_paths(host_);
    describe_boards();
  }

  /// Format 1.x puts packages into NUMA nodes: which is in which shows in their CPUs. And on POWER9
  /// a node without CPUs is a GPU's memory, which newer hwloc says itself.
  void settle_numa() {
    for (NumaNode& node : host_.numa_nodes) {
      if (node.cpus.empty() && !host_.gpus.empty() && host_.architecture.starts_with("ppc64"))
        node.device_memory = true;
      if (node.package || node.cpus.empty()) continue;
      for (size_t p = 0; p < host_.packages.size() && !node.package; ++p)
        if (host_.packages[p].cpus.contains(node.cpus)) node.package = static_cast<int>(p);
    }
  }

  /// mlx5_2 before mlx5_10.
  static std::pair<std::string, long long> natural(const std::string& name) {
    const auto digits = name.find_last_not_of("0123456789") + 1;
    return {name.substr(0, digits), integer(std::string_view(name).substr(digits)).value_or(-1)};
  }

  void describe_boards() {
    std::map<int, std::string> boards;
    for (const Gpu& gpu : host_.gpus)
      if (gpu.nvswitch_board) {
        auto& list = boards[*gpu.nvswitch_board];
        list += (list.empty() ? "" : ",") + std::to_string(gpu.index);
      }
    if (boards.size() < 2) return;
    std::string text;
    for (const auto& [board, list] : boards)
      text += fmt::format("{}GPUs {}", text.empty() ? "" : " and ", list);
    host_.warnings.push_back(
        fmt::format("{}: NVSwitches form {} boards ({}); links between boards are not in the file: "
                    "pairs on other boards are NVL as "
                    "NCCL takes them, of unknown bandwidth",
                    source_, boards.size(), text));
  }
};

}  // namespace

HostTopology read_hwloc_xml(std::string_view text, const std::string& source) {
  return HwlocReader(text, source).read();
}

}  // namespace r1::launch
