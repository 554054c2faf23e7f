#include "launch/topology/render.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <set>

namespace r1::launch {

std::string label(const Gpu& gpu) { return fmt::format("GPU{}", gpu.index); }

std::string label(const Nic& nic) {
  if (nic.name.empty()) return nic.busid.empty() ? "NIC" : nic.busid;
  return nic.port > 1 ? fmt::format("{}:{}", nic.name, nic.port) : nic.name;
}

std::set<std::string> cells_between(const HostTopology& host, const std::vector<int>& gpus) {
  std::set<std::string> cells;
  for (const int a : gpus)
    for (const int b : gpus)
      if (a != b) cells.insert(cell(host.gpu_gpu[static_cast<size_t>(a)][static_cast<size_t>(b)]));
  return cells;
}

namespace {

std::string gigabytes(uint64_t bytes) {
  return fmt::format("{:.0f} GB", static_cast<double>(bytes) / 1e9);
}

std::string rate(const Nic& nic) {
  std::string out = nic.rate_mbit_per_s ? fmt::format("{:g} Gbit/s", *nic.rate_mbit_per_s / 1000)
                                        : "rate unknown";
  if (nic.link_layer)
    out += *nic.link_layer == LinkLayer::kInfiniBand ? " InfiniBand" : " Ethernet";
  if (nic.active == false) out += ", port down";
  return out;
}

std::string numa_text(const HostTopology& host, std::optional<int> numa) {
  if (!numa) return "N/A";
  const int id = host.numa_nodes[static_cast<size_t>(*numa)].os_index;
  return id < 0 ? "N/A" : std::to_string(id);
}

constexpr std::string_view kLegend =
    "Legend:\n\n"
    "  X    = itself\n"
    "  NV#  = # NVLinks, directly or through NVSwitches (NVL: their number is unknown)\n"
    "  NVB  = NVLink through another GPU\n"
    "  C2C  = chip-to-chip link;  P2C = C2C to the CPU, then PCI\n"
    "  PIX  = at most one PCI bridge or switch\n"
    "  PXB  = several PCI bridges, no host bridge\n"
    "  PHB  = a PCI host bridge (the CPU)\n"
    "  NODE = between host bridges of one NUMA node (PHB to NCCL)\n"
    "  SYS  = between NUMA nodes or sockets\n"
    "  ?    = unknown\n";

}  // namespace

std::string matrix_text(const HostTopology& host) {
  std::vector<std::string> names;
  for (const Gpu& gpu : host.gpus) names.push_back(label(gpu));
  for (size_t n = 0; n < host.nics.size(); ++n) names.push_back(fmt::format("NIC{}", n));
  std::string out = fmt::format("{:8}", "");
  for (const auto& column : names) out += fmt::format("{:8}", column);
  out += "CPU Affinity            NUMA Affinity\n";
  const size_t gpus = host.gpus.size();
  const auto padded = [](const Path& path) {
    const std::string text = cell(path);
    return fmt::format("{:8}", text == "X" ? " X" : text);
  };
  for (size_t a = 0; a < names.size(); ++a) {
    out += fmt::format("{:8}", names[a]);
    for (size_t b = 0; b < names.size(); ++b) {
      if (a < gpus)
        out += padded(b < gpus ? host.gpu_gpu[a][b] : host.gpu_nic[a][b - gpus]);
      else
        out += padded(b < gpus ? host.gpu_nic[b][a - gpus] : host.nic_nic[a - gpus][b - gpus]);
    }
    if (a < gpus) {
      const CpuSet near = host.cpus_near(static_cast<int>(a));
      out += fmt::format("{:24}{}", near.empty() ? "N/A" : near.list(),
                         numa_text(host, host.gpus[a].numa));
    }
    while (out.ends_with(' ')) out.pop_back();
    out += '\n';
  }
  out += "\n";
  out += kLegend;
  if (!host.nics.empty()) out += "\nNIC legend:\n\n";
  for (size_t n = 0; n < host.nics.size(); ++n)
    out += fmt::format("  NIC{}: {}  {}\n", n, label(host.nics[n]), rate(host.nics[n]));
  return out;
}

namespace {

/// Text with children, drawn with lines.
struct Branch {
  std::string text;
  std::vector<Branch> children;
};

void draw(const Branch& branch, const std::string& indent, std::string& out) {
  for (size_t i = 0; i < branch.children.size(); ++i) {
    const bool last = i + 1 == branch.children.size();
    out.append(indent).append(last ? "└─ " : "├─ ").append(branch.children[i].text).append("\n");
    draw(branch.children[i], indent + (last ? "   " : "│  "), out);
  }
}

std::string gpu_text(const HostTopology& host, size_t g) {
  const Gpu& gpu = host.gpus[g];
  std::vector<std::string> parts{label(gpu)};
  if (!gpu.name.empty())
    parts.push_back(gpu.name);
  else if (!gpu.pci_id.empty())
    parts.push_back(gpu.pci_id);
  if (gpu.memory_bytes) parts.push_back(gigabytes(*gpu.memory_bytes));
  if (!gpu.busid.empty()) parts.push_back(gpu.busid);
  if (gpu.pci_gbytes_per_s) parts.push_back(fmt::format("PCI {:g} GB/s", *gpu.pci_gbytes_per_s));
  if (gpu.ecc == false) parts.emplace_back("ECC off");
  if (gpu.mig_enabled == true) parts.push_back(fmt::format("MIG, {} instances", gpu.mig.size()));
  for (const auto& reason : gpu.throttle_reasons)
    parts.push_back(fmt::format("throttled: {}", reason));
  return fmt::format("{}", fmt::join(parts, "  "));
}

std::string nic_text(const Nic& nic) {
  std::vector<std::string> parts{label(nic)};
  if (!nic.netdev.empty() && nic.netdev != nic.name)
    parts.push_back(fmt::format("({})", nic.netdev));
  parts.push_back(rate(nic));
  if (!nic.busid.empty()) parts.push_back(nic.busid);
  return fmt::format("{}", fmt::join(parts, "  "));
}

/// Devices and switches below a parent (a PCI node, or a NUMA node when `parent` is absent).
void add_devices(const HostTopology& host, std::optional<int> parent, std::optional<int> numa,
                 Branch& into) {
  const auto here = [&](std::optional<int> device_parent, std::optional<int> device_numa) {
    return device_parent == parent && (parent || device_numa == numa);
  };
  for (size_t p = 0; p < host.pci.size(); ++p) {
    const PciSwitch& node = host.pci[p];
    if (!here(node.parent, node.numa)) continue;
    Branch branch;
    const bool bridge = node.kind == PciSwitch::Kind::kHostBridge;
    branch.text = fmt::format("{} {}", bridge ? "PCI host bridge" : "PCI switch", node.busid);
    if (node.gbytes_per_s) branch.text += fmt::format("  {:.4g} GB/s", *node.gbytes_per_s);
    add_devices(host, static_cast<int>(p), numa, branch);
    if (!branch.children.empty()) into.children.push_back(std::move(branch));
  }
  for (size_t g = 0; g < host.gpus.size(); ++g)
    if (here(host.gpus[g].pci_parent, host.gpus[g].numa))
      into.children.push_back({gpu_text(host, g), {}});
  for (const Nic& nic : host.nics)
    if (here(nic.pci_parent, nic.numa)) into.children.push_back({nic_text(nic), {}});
}

Branch numa_branch(const HostTopology& host, int n) {
  const NumaNode& node = host.numa_nodes[static_cast<size_t>(n)];
  Branch branch;
  branch.text =
      node.os_index < 0 ? "NUMA node (number unknown)" : fmt::format("NUMA node {}", node.os_index);
  if (node.device_memory) branch.text += " (memory of a GPU)";
  if (!node.cpus.empty()) branch.text += fmt::format("  CPUs {}", node.cpus.list());
  if (node.memory_bytes) branch.text += fmt::format("  {}", gigabytes(*node.memory_bytes));
  add_devices(host, std::nullopt, n, branch);
  return branch;
}

Branch host_tree(const HostTopology& host) {
  Branch root;
  std::set<int> shown;
  for (size_t p = 0; p < host.packages.size(); ++p) {
    Branch package;
    const auto cores =
        std::ranges::count(host.cores, std::optional(static_cast<int>(p)), &Core::package);
    package.text = fmt::format("package {}  {}", host.packages[p].os_index, host.packages[p].model);
    if (cores > 0) package.text += fmt::format("  {} cores", cores);
    for (size_t n = 0; n < host.numa_nodes.size(); ++n)
      if (host.numa_nodes[n].package == static_cast<int>(p)) {
        package.children.push_back(numa_branch(host, static_cast<int>(n)));
        shown.insert(static_cast<int>(n));
      }
    root.children.push_back(std::move(package));
  }
  for (size_t n = 0; n < host.numa_nodes.size(); ++n)
    if (!shown.contains(static_cast<int>(n)))
      root.children.push_back(numa_branch(host, static_cast<int>(n)));
  Branch nowhere{"place unknown", {}};
  add_devices(host, std::nullopt, std::nullopt, nowhere);
  if (!nowhere.children.empty()) root.children.push_back(std::move(nowhere));
  return root;
}

std::string nvlink_text(const HostTopology& host) {
  if (host.gpus.size() < 2) return "";
  if (!host.nvlink_known) return "NVLink: unknown (the sources do not speak of it)\n";
  std::string out;
  for (const auto& domain : host.nvlink_domains()) {
    if (domain.size() < 2) continue;
    const std::set<std::string> cells = cells_between(host, domain);
    std::vector<std::string> names;
    for (const int g : domain) names.push_back(label(host.gpus[static_cast<size_t>(g)]));
    const auto& first =
        host.gpu_gpu[static_cast<size_t>(domain[0])][static_cast<size_t>(domain[1])];
    out += fmt::format("NVLink: {}  {}", fmt::join(names, ","), fmt::join(cells, "/"));
    if (cells.size() == 1 && first.gbytes_per_s)
      out += fmt::format("  {:g} GB/s a pair", *first.gbytes_per_s);
    if (!host.nvswitches.empty())
      out += fmt::format("  through {} NVSwitches", host.nvswitches.size());
    out += '\n';
  }
  return out.empty() ? "NVLink: none\n" : out;
}

std::string near_text(const HostTopology& host) {
  std::string out;
  if (host.nics.empty())
    return host.nics_known ? "NICs: none\n" : "NICs: unknown (the sources do not speak of them)\n";
  for (size_t g = 0; g < host.gpus.size(); ++g) {
    std::vector<std::string> names;
    for (const int n : host.near_nics[g]) names.push_back(label(host.nics[static_cast<size_t>(n)]));
    if (names.empty()) {
      out += fmt::format("nearest NIC of {}: none nearer than SYS\n", label(host.gpus[g]));
      continue;
    }
    const Path& path = host.gpu_nic[g][static_cast<size_t>(host.near_nics[g][0])];
    out += fmt::format("nearest NIC of {}: {}  {}", label(host.gpus[g]), fmt::join(names, ","),
                       cell(path));
    if (names.size() > 1 && host.nccl_nic[g])
      out += fmt::format("  (NCCL begins with {})",
                         label(host.nics[static_cast<size_t>(*host.nccl_nic[g])]));
    out += '\n';
  }
  return out;
}

}  // namespace

std::string tree_text(const HostTopology& host, const std::string& title) {
  std::string out = title.empty() ? (host.hostname.empty() ? "host" : host.hostname) : title;
  if (!host.architecture.empty()) out += fmt::format("  {}", host.architecture);
  if (host.memory_bytes) out += fmt::format("  {}", gigabytes(*host.memory_bytes));
  if (!host.sources.empty()) out += fmt::format("  [{}]", fmt::join(host.sources, ", "));
  out += '\n';
  draw(host_tree(host), "", out);
  if (!host.gpus.empty()) out.append("\n").append(nvlink_text(host)).append(near_text(host));
  for (const auto& warning : host.warnings) out += fmt::format("warning: {}\n", warning);
  return out;
}

std::string fabric_text(const Fabric& fabric) {
  if (fabric.source.empty()) return "";
  std::string out = fmt::format("fabric [{}]: {} switches, {} adapters\n", fabric.source,
                                fabric.switches.size(), fabric.ports.size());
  std::map<int, std::set<std::string>> hosts;
  std::map<int, int> unnamed;
  for (const FabricPort& port : fabric.ports)
    port.host.empty() ? (void)++unnamed[port.leaf] : (void)hosts[port.leaf].insert(port.host);
  for (size_t s = 0; s < fabric.switches.size(); ++s) {
    const FabricSwitch& node = fabric.switches[s];
    const int index = static_cast<int>(s);
    out += fmt::format("{} {}", node.level == 0 ? "leaf" : fmt::format("level {}", node.level),
                       node.name);
    if (node.host_gbytes_per_s > 0)
      out += fmt::format("  {:g} GB/s of hosts", node.host_gbytes_per_s);
    if (node.oversubscription)
      out += fmt::format("  over-subscription {:.2f}", *node.oversubscription);
    else if (!node.up.empty())
      out += "  over-subscription unknown";
    if (!hosts[index].empty())
      out += fmt::format("  {} hosts: {}", hosts[index].size(), fmt::join(hosts[index], ","));
    if (unnamed[index] > 0) out += fmt::format("  {} adapters without a host name", unnamed[index]);
    out += '\n';
  }
  for (const auto& block : fabric.blocks)
    out += fmt::format("block {}  {} hosts: {}\n", block.name, block.hosts.size(),
                       fmt::join(block.hosts, ","));
  if (!fabric.block_sizes.empty())
    out += fmt::format("block sizes: {}\n", fmt::join(fabric.block_sizes, ","));
  for (const auto& warning : fabric.warnings) out += fmt::format("warning: {}\n", warning);
  return out;
}

std::string topology_text(const Topology& topology) {
  std::string out;
  std::vector<const HostTopology*> order;
  std::map<const HostTopology*, std::vector<std::string>> names;
  for (const auto& member : topology.hosts) {
    if (!member.host) {
      out += fmt::format("{}: unknown\n", member.name);
      continue;
    }
    auto& list = names[member.host.get()];
    if (list.empty()) order.push_back(member.host.get());
    list.push_back(member.name);
  }
  for (const HostTopology* host : order) {
    if (!out.empty()) out += "\n";
    const auto& list = names[host];
    out += tree_text(*host, fmt::format("{}", fmt::join(list, ",")));
    if (!host->gpus.empty() || !host->nics.empty()) out.append("\n").append(matrix_text(*host));
  }
  const std::string fabric = fabric_text(topology.fabric);
  if (!fabric.empty()) out.append(out.empty() ? "" : "\n").append(fabric);
  return out;
}

}  // namespace r1::launch
