// InfiniBand and RoCE devices and network interfaces, as the kernel shows them below /sys/class.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <optional>
#include <set>

#include "launch/topology/live.h"
#include "launch/topology/text.h"
#include "launch/topology/xml.h"

namespace r1::launch {
namespace {

namespace fs = std::filesystem;

std::string first_line(const fs::path& file) {
  std::ifstream in(file);
  std::string line;
  std::getline(in, line);
  return std::string(trimmed(line.substr(0, 4096)));
}

std::vector<fs::path> entries(const fs::path& folder) {
  std::vector<fs::path> out;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error))
    out.push_back(it->path());
  std::ranges::sort(out);
  return out;
}

/// PCI address of the device behind a class entry; "" when it is not a PCI device.
std::string pci_of(const fs::path& entry) {
  std::error_code error;
  const fs::path device = fs::canonical(entry / "device", error);
  return error ? "" : pci_address(device.filename().string());
}

std::string without(std::string text, char c) {
  std::erase(text, c);
  return text;
}

/// "200 Gb/sec (4X HDR)" → 200000.
std::optional<double> rate_of(const std::string& text) {
  double value = 0;
  const auto [at, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || !(value > 0) || value > 1e5) return std::nullopt;
  return std::string_view(at, text.data() + text.size()).starts_with(" Gb/sec")
             ? std::optional(value * 1000)
             : std::nullopt;
}

/// The NUMA node that the kernel names for a device; nullopt where it does not know (-1).
std::optional<int> numa_of(const HostTopology& host, const fs::path& entry) {
  const auto id = integer(first_line(entry / "device" / "numa_node"));
  if (!id || *id < 0) return std::nullopt;
  for (size_t n = 0; n < host.numa_nodes.size(); ++n)
    if (host.numa_nodes[n].os_index == *id) return static_cast<int>(n);
  return std::nullopt;
}

Nic& entry_of(HostTopology& host, const std::string& name, int port, const std::string& busid) {
  for (Nic& nic : host.nics)
    if (nic.name == name && nic.port == port) return nic;
  Nic fresh{.name = name, .port = port, .busid = busid};
  // Another port of a known device hangs where that one does.
  for (const Nic& nic : host.nics)
    if (!busid.empty() && nic.busid == busid) {
      fresh = nic;
      fresh.name = name;
      fresh.port = port;
      break;
    }
  host.nics.push_back(std::move(fresh));
  return host.nics.back();
}

void read_rdma(HostTopology& host, const fs::path& device, std::set<std::string>& netdevs) {
  const std::string name = device.filename().string(), busid = pci_of(device);
  std::string netdev;
  for (const auto& entry : entries(device / "device" / "net")) {
    netdevs.insert(entry.filename().string());
    if (netdev.empty() || entry.filename().string().starts_with("ib"))
      netdev = entry.filename().string();
  }
  for (const auto& folder : entries(device / "ports")) {
    const auto port = integer(folder.filename().string());
    if (!port || *port < 1 || *port > 255) continue;
    Nic& nic = entry_of(host, name, static_cast<int>(*port), busid);
    nic.rdma = true;
    if (nic.busid.empty()) nic.busid = busid;
    if (nic.netdev.empty()) nic.netdev = netdev;
    if (!nic.numa) nic.numa = numa_of(host, device);
    nic.rate_mbit_per_s = rate_of(first_line(folder / "rate"));
    const std::string state = first_line(folder / "state"),
                      layer = first_line(folder / "link_layer");
    if (!state.empty()) nic.active = state.starts_with("4:");
    if (layer == "InfiniBand") nic.link_layer = LinkLayer::kInfiniBand;
    if (layer == "Ethernet") nic.link_layer = LinkLayer::kEthernet;
    const std::string guid = without(first_line(device / "node_guid"), ':');
    if (guid.size() == 16) nic.guid = guid;
    // The lower half of the first GID is the port's GUID on InfiniBand.
    const std::string gid = without(first_line(folder / "gids" / "0"), ':');
    if (gid.size() == 32 && nic.link_layer == LinkLayer::kInfiniBand)
      nic.port_guid = gid.substr(16);
  }
}

void read_interface(HostTopology& host, const fs::path& entry) {
  const std::string name = entry.filename().string(), busid = pci_of(entry);
  std::error_code error;
  if (name == "lo" || !fs::exists(entry / "device", error)) {
    // Bridges, tunnels and the like; but an interface called eth* is what a container or a virtual
    // machine has.
    if (!name.starts_with("eth") && !name.starts_with("en")) return;
  }
  Nic& nic = entry_of(host, name, 1, busid);
  if (nic.rdma) return;  // an RDMA device has the same name
  nic.netdev = name;
  if (!nic.numa) nic.numa = numa_of(host, entry);
  const auto speed = integer(first_line(entry / "speed"));
  if (speed && *speed > 0 && *speed < 100'000'000)
    nic.rate_mbit_per_s = static_cast<double>(*speed);
  const auto type = integer(first_line(entry / "type"));
  if (type == 32) nic.link_layer = LinkLayer::kInfiniBand;
  if (type == 1) nic.link_layer = LinkLayer::kEthernet;
  const std::string state = first_line(entry / "operstate");
  if (state == "up" || state == "down") nic.active = state == "up";
}

}  // namespace

void add_sysfs_nics(HostTopology& host, const std::string& sysfs) {
  const fs::path root(sysfs);
  std::error_code error;
  std::set<std::string> netdevs;  // of RDMA devices: not listed a second time
  for (const auto& device : entries(root / "class" / "infiniband"))
    read_rdma(host, device, netdevs);
  if (fs::is_directory(root / "class" / "net", error)) {
    host.nics_known = true;
    for (const auto& entry : entries(root / "class" / "net"))
      if (!netdevs.contains(entry.filename().string())) read_interface(host, entry);
  } else {
    host.warnings.push_back(
        fmt::format("{}/class/net is not there: network interfaces are unknown", sysfs));
  }
  std::erase_if(host.nics, [&](const Nic& nic) { return !nic.rdma && netdevs.contains(nic.name); });
  host.sources.emplace_back("live: sysfs");
}

}  // namespace r1::launch
