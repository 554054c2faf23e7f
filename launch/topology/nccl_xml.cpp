// NCCL's topology XML (NCCL_TOPO_FILE, NCCL_TOPO_DUMP_FILE): system > cpu > pci … > gpu > nvlink,
// nic > net.
//
// Two kinds are about. A dump is complete: every GPU has its `gpu` element, with its NVLinks. A
// template (clouds ship them) lists places only: NVLink is absent because the driver is expected to
// say, so it is unknown.
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <string>

#include "launch/topology/import.h"
#include "launch/topology/paths.h"
#include "launch/topology/xml.h"
#include "runtime/core/error.h"

namespace r1::launch {
namespace {

using pugi::xml_node;

/// Broadcom switches that show two levels: 4 or 5 (their PCI generation) for the level asked for,
/// 0: another device.
int broadcom(const xml_node& pci, int level) {
  const auto id = [&](const char* key) {
    return integer(std::string_view(pci.attribute(key).value()), 16);
  };
  if (id("vendor") != 0x1000) return 0;
  const auto device = id("device"), sub_vendor = id("subsystem_vendor"),
             sub = id("subsystem_device");
  if (!device || !sub || !sub_vendor) return 0;
  if (*device == 0xc010 && *sub_vendor == 0x1000 && (*sub & 0xf000) == 0xa000) return 4;
  if (*device == 0xc030 && *sub_vendor == 0x1000 && (*sub & 0xf000) == level * 0x1000) return 5;
  return 0;
}

class NcclReader {
 public:
  NcclReader(std::string_view text, const std::string& source) : text_(text), source_(source) {}

  HostTopology read() {
    pugi::xml_document document;
    parse_xml(document, text_, source_);
    const xml_node root = document.document_element();
    const std::string_view kind = root.name();
    if (kind == "graphs")
      throw DataError(
          "{}: an NCCL graph file (root element \"graphs\": rings and trees over a topology, for "
          "NCCL_GRAPH_FILE), not "
          "a topology; NCCL_TOPO_DUMP_FILE writes the topology",
          place(root, text_, source_));
    if (kind != "system")
      throw DataError("{}: root element \"{}\"; an NCCL topology has \"system\"",
                      place(root, text_, source_), kind.substr(0, 40));
    if (root.attribute("version") && integer(root.attribute("version")) != 1)
      throw DataError("{}: NCCL topology version \"{}\"; this reader knows version 1",
                      place(root, text_, source_), root.attribute("version").value());
    host_.sources = {source_ + " (NCCL)"};
    for (const xml_node& cpu : root.children("cpu")) read_cpu(cpu);
    if (host_.numa_nodes.empty())
      throw DataError("{}: no \"cpu\" element below \"system\": nothing to read",
                      place(root, text_, source_));
    finish();
    return std::move(host_);
  }

 private:
  struct RawLink {
    size_t gpu;
    std::string target, target_class;
    int count;
    bool c2c;
    double gbytes_per_s;
  };

  std::string_view text_;
  const std::string& source_;
  HostTopology host_;
  std::vector<RawLink> links_;
  std::vector<std::optional<long long>> net_devs_;
  std::string host_hash_;
  bool template_ = false;

  [[nodiscard]] std::string at(const xml_node& node) const { return place(node, text_, source_); }
  void warn(const xml_node& node, const std::string& what) {
    if (host_.warnings.size() < 100)
      host_.warnings.push_back(fmt::format("{}: {}", at(node), what));
  }

  void read_cpu(const xml_node& cpu) {
    const std::string hash = cpu.attribute("host_hash").value();
    if (host_.numa_nodes.empty()) host_hash_ = hash;
    if (hash != host_hash_) {
      warn(cpu, "a further host (host_hash " + hash.substr(0, 32) +
                    "): left out, the map is of the first");
      return;
    }
    if (host_.numa_nodes.size() >= kMostNuma)
      throw DataError("{}: more than {} NUMA nodes", at(cpu), kMostNuma);
    NumaNode node;
    const auto id = integer(cpu.attribute("numaid"));
    node.os_index = id && *id >= 0 && *id < CpuSet::kMost ? static_cast<int>(*id) : -1;
    if (cpu.attribute("affinity"))
      node.cpus = CpuSet::from_mask(cpu.attribute("affinity").value(), source_);
    host_.numa_nodes.push_back(std::move(node));
    const auto number = [&](const char* key) -> std::optional<int> {
      const auto value = integer(cpu.attribute(key));
      return value && *value >= 0 && *value < 0xffff ? std::optional(static_cast<int>(*value))
                                                     : std::nullopt;
    };
    if (host_.architecture.empty()) {
      host_.architecture = cpu.attribute("arch").value();
      host_.cpu_vendor = cpu.attribute("vendor").value();
      host_.cpu_family = number("familyid");
      host_.cpu_model = number("modelid");
    }
    const int numa = static_cast<int>(host_.numa_nodes.size()) - 1;
    for (const xml_node& child : cpu.children()) {
      if (std::string_view(child.name()) == "pci") read_pci(child, std::nullopt, numa, 0);
      if (std::string_view(child.name()) == "nic") read_nic(child, {}, std::nullopt, numa);
    }
  }

  std::optional<double> slot_of(const xml_node& pci) {
    const auto width = integer(pci.attribute("link_width"));
    return pci_gbytes_per_s(pci.attribute("link_speed").value(),
                            width && *width > 0 && *width <= 32 ? static_cast<int>(*width) : 0);
  }

  /// `fused`: the Broadcom generation of the switch above whose second level is to be part of it.
  void read_pci(const xml_node& pci, std::optional<int> parent, int numa, int fused) {
    const std::string busid = pci_address(pci.attribute("busid").value());
    if (busid.empty()) {
      warn(pci, fmt::format("\"{}\" is no PCI address such as 0000:c1:00.0",
                            std::string_view(pci.attribute("busid").value()).substr(0, 40)));
    }
    const std::string_view class_id = pci.attribute("class").value();
    if (pci.child("gpu") || class_id.starts_with("0x03"))
      read_gpu(pci, busid, parent, numa);
    else if (pci.child("nic") || class_id.starts_with("0x02") || class_id.starts_with("0x0c06"))
      read_nic(pci, busid, parent, numa);
    else if (class_id.starts_with("0x068000"))
      host_.nvswitches.push_back({.busid = busid, .pci_parent = parent});
    else
      read_switch(pci, busid, parent, numa, fused);
  }

  void read_switch(const xml_node& pci, const std::string& busid, std::optional<int> parent,
                   int numa, int fused) {
    if (fused == 0 || broadcom(pci, 1) != fused) {
      if (host_.pci.size() >= kMostPci)
        throw DataError("{}: more than {} PCI switches", at(pci), kMostPci);
      host_.pci.push_back(
          {.busid = busid, .parent = parent, .numa = numa, .gbytes_per_s = slot_of(pci)});
      parent = static_cast<int>(host_.pci.size()) - 1;
      fused = broadcom(pci, 0);
    } else {
      fused = 0;  // merged once, not again
    }
    for (const xml_node& child : pci.children("pci")) read_pci(child, parent, numa, fused);
  }

  void read_gpu(const xml_node& pci, const std::string& busid, std::optional<int> parent,
                int numa) {
    if (host_.gpus.size() >= kMostGpus)
      throw DataError("{}: more than {} GPUs", at(pci), kMostGpus);
    Gpu gpu{.index = -1,
            .busid = busid,
            .numa = numa,
            .pci_parent = parent,
            .pci_gbytes_per_s = slot_of(pci)};
    const std::string vendor = hex4(pci.attribute("vendor").value()),
                      device = hex4(pci.attribute("device").value());
    if (!vendor.empty() && !device.empty() && vendor != "ffff") gpu.pci_id = vendor + ":" + device;
    const xml_node element = pci.child("gpu");
    if (!element) {
      template_ = true;
    } else {
      const auto dev = integer(element.attribute("dev")), sm = integer(element.attribute("sm"));
      if (dev && *dev >= 0 && *dev < 4096) gpu.index = static_cast<int>(*dev);
      if (sm && *sm > 0 && *sm < 1000) gpu.sm = static_cast<int>(*sm);
      if (element.attribute("gdr")) gpu.gdr = integer(element.attribute("gdr")) == 1;
    }
    if (!gpu.sm) gpu.sm = sm_of_pci_id(gpu.pci_id);
    for (const xml_node& link : element.children()) {
      const std::string_view kind = link.name();
      if (kind != "nvlink" && kind != "c2c") continue;
      const auto count = integer(link.attribute("count"));
      const auto bw = integer(link.attribute("bw"));
      if (links_.size() >= 16 * kMostGpus) throw DataError("{}: too many NVLinks", at(link));
      if (!count || *count < 1 || *count > 1024 ||
          (kind == "c2c" && (!bw || *bw < 0 || *bw > 10'000'000))) {
        warn(link, fmt::format(
                       "a {} element without a count within 1-1024 (or, c2c, a bandwidth): ignored",
                       kind));
        continue;
      }
      links_.push_back({host_.gpus.size(), pci_address(link.attribute("target").value()),
                        link.attribute("tclass").value(), static_cast<int>(*count), kind == "c2c",
                        kind == "c2c" ? static_cast<double>(*bw * *count) / 1000.0 : 0});
    }
    host_.gpus.push_back(std::move(gpu));
  }

  /// `element`: a pci of class 0x02 (its `nic` may be missing: a template), or a nic that hangs on
  /// a CPU.
  void read_nic(const xml_node& element, const std::string& busid, std::optional<int> parent,
                int numa) {
    const bool on_cpu = std::string_view(element.name()) == "nic";
    Nic nic{.busid = busid, .numa = numa, .pci_parent = parent};
    // A NIC that hangs on the CPU itself has no slot: only its wire limits it.
    nic.pci_gbytes_per_s = on_cpu ? std::optional(5000.0) : slot_of(element);
    const std::string vendor = hex4(element.attribute("vendor").value()),
                      device = hex4(element.attribute("device").value());
    if (!vendor.empty() && !device.empty()) nic.pci_id = vendor + ":" + device;
    const std::string_view class_id = element.attribute("class").value();
    if (class_id.starts_with("0x0207") || class_id.starts_with("0x0c06")) {
      nic.rdma = true;
      nic.link_layer = LinkLayer::kInfiniBand;
    }
    if (vendor == "1d0f" && device.starts_with("efa")) nic.rdma = true;
    bool any = false;
    for (const xml_node& inner : element.children("nic")) any |= read_nets(inner, nic);
    if (on_cpu) any |= read_nets(element, nic);
    if (!any && !on_cpu) add_nic(element, nic, std::nullopt);
  }

  bool read_nets(const xml_node& element, const Nic& device) {
    bool any = false;
    for (const xml_node& net : element.children("net")) {
      Nic nic = device;
      nic.name = net.attribute("name").value();
      const auto speed = integer(net.attribute("speed")), port = integer(net.attribute("port"));
      if (speed && *speed > 0 && *speed < 100'000'000)
        nic.rate_mbit_per_s = static_cast<double>(*speed);
      if (port && *port > 0 && *port < 256) nic.port = static_cast<int>(*port);
      std::string guid = net.attribute("guid").value();
      if (guid.starts_with("0x")) guid.erase(0, 2);
      if (guid.find_first_not_of('0') != std::string::npos && guid.size() <= 16)
        nic.guid = std::string(16 - guid.size(), '0') + guid;
      if (net.attribute("gdr")) nic.gdr = integer(net.attribute("gdr")) == 1;
      nic.rdma = nic.rdma || !nic.guid.empty() || nic.gdr.value_or(false);
      add_nic(net, nic, integer(net.attribute("dev")));
      any = true;
    }
    return any;
  }

  void add_nic(const xml_node& where, Nic nic, std::optional<long long> dev) {
    // The same port for another kind of traffic; but NCCL lists an interface without a PCI place
    // under every CPU.
    const auto known = [&](const Nic& other) {
      return !nic.name.empty() && other.name == nic.name && other.port == nic.port &&
             (other.numa == nic.numa || !nic.busid.empty());
    };
    if (std::ranges::any_of(host_.nics, known)) return;
    if (host_.nics.size() >= kMostNics)
      throw DataError("{}: more than {} NICs", at(where), kMostNics);
    host_.nics.push_back(std::move(nic));
    net_devs_.push_back(dev);
  }

  void finish() {
    resolve_links();
    sort_nics();
    for (const Gpu& gpu : host_.gpus)
      if (gpu.pci_gbytes_per_s == std::nullopt) {
        host_.warnings.push_back(
            fmt::format("{}: the PCI link of some GPUs has no speed or width: bandwidths over it "
                        "are unknown (NCCL assumes 12 GB/s)",
                        source_));
        break;
      }
    host_.nics_known = !host_.nics.empty();
    number_gpus(host_);
    resolve_paths(host_);
  }

  void resolve_links() {
    bool loops = false;
    std::map<std::string, int> gpu_at, switch_at;
    for (size_t g = 0; g < host_.gpus.size(); ++g)
      gpu_at.emplace(host_.gpus[g].busid, static_cast<int>(g));
    for (size_t s = 0; s < host_.nvswitches.size(); ++s)
      switch_at.emplace(host_.nvswitches[s].busid, static_cast<int>(s));
    for (const RawLink& raw : links_) {
      const Gpu& gpu = host_.gpus[raw.gpu];
      NvLink link{.gpu = static_cast<int>(raw.gpu), .count = raw.count, .c2c = raw.c2c};
      link.gbytes_per_s = raw.c2c ? raw.gbytes_per_s : raw.count * nvlink_gbytes_per_s(gpu.sm);
      if (raw.c2c || raw.target_class.starts_with("0x068001")) {
        link.target = NvLink::Target::kCpu;
        link.target_index = *gpu.numa;
      } else if (raw.target_class.starts_with("0x03")) {
        const auto target = gpu_at.find(raw.target);
        if (target == gpu_at.end()) continue;  // a GPU that this process does not see
        if (target->second == static_cast<int>(raw.gpu)) {
          loops = true;
          continue;
        }
        link.target_index = target->second;
      } else {
        link.target = NvLink::Target::kSwitch;
        const auto [target, fresh] =
            switch_at.try_emplace(raw.target, static_cast<int>(host_.nvswitches.size()));
        if (fresh) host_.nvswitches.push_back({.busid = raw.target});
        link.target_index = target->second;
      }
      host_.nvlinks.push_back(link);
    }
    if (loops)
      host_.warnings.push_back(
          fmt::format("{}: NVLinks that lead back to their own GPU (a virtual machine that hides "
                      "the peers): not counted as links "
                      "between GPUs, which remain unknown",
                      source_));
    host_.nvlink_known = !host_.gpus.empty() && !template_ && !loops;
  }

  void sort_nics() {
    std::vector<size_t> order(host_.nics.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::ranges::stable_sort(order, [&](size_t a, size_t b) {
      if (net_devs_[a] && net_devs_[b]) return *net_devs_[a] < *net_devs_[b];
      if (net_devs_[a].has_value() != net_devs_[b].has_value()) return net_devs_[a].has_value();
      return host_.nics[a].busid < host_.nics[b].busid;
    });
    std::vector<Nic> nics;
    for (const size_t i : order) nics.push_back(std::move(host_.nics[i]));
    host_.nics = std::move(nics);
  }
};

}  // namespace

HostTopology read_nccl_xml(std::string_view text, const std::string& source) {
  return NcclReader(text, source).read();
}

}  // namespace r1::launch
