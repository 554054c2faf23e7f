// The JSON form of a topology, written: what is unknown or at its default is left out.
#include <map>
#include <nlohmann/json.hpp>

#include "launch/topology/json.h"
#include "launch/topology/json_words.h"

namespace r1::launch {
namespace {

using Json = nlohmann::ordered_json;

template <class T>
void put(Json& out, const char* key, const std::optional<T>& value) {
  if (value) out[key] = *value;
}
void put(Json& out, const char* key, const std::string& value) {
  if (!value.empty()) out[key] = value;
}
void put(Json& out, const char* key, const CpuSet& value) {
  if (!value.empty()) out[key] = value.list();
}
template <class T>
void put(Json& out, const char* key, const std::vector<T>& value) {
  if (!value.empty()) out[key] = value;
}
template <class T, class Write>
void put_all(Json& out, const char* key, const std::vector<T>& values, Write write) {
  if (values.empty()) return;
  Json list = Json::array();
  for (const T& value : values) {
    Json item = Json::object();
    write(item, value);
    list.push_back(std::move(item));
  }
  out[key] = std::move(list);
}

void write_matrix(Json& out, const char* key, const std::vector<std::vector<Path>>& matrix) {
  if (matrix.empty()) return;
  Json rows = Json::array();
  for (const auto& row : matrix) {
    Json cells = Json::array();
    for (const Path& path : row) {
      Json item = Json::object();
      if (path.path_class) item["path"] = name(*path.path_class);
      if (path.nvlinks > 0) item["nvlinks"] = path.nvlinks;
      put(item, "gbytes_per_s", path.gbytes_per_s);
      cells.push_back(std::move(item));
    }
    rows.push_back(std::move(cells));
  }
  out[key] = std::move(rows);
}

/// How a GPU or adapter hangs on PCI.
template <class Card>
void write_pci(Json& out, const Card& card) {
  put(out, "pci_parent", card.pci_parent);
  put(out, "pci_gbytes_per_s", card.pci_gbytes_per_s);
  put(out, "gdr", card.gdr);
}

void write_gpu(Json& out, const Gpu& gpu) {
  out["index"] = gpu.index;
  put(out, "name", gpu.name);
  put(out, "uuid", gpu.uuid);
  put(out, "busid", gpu.busid);
  put(out, "pci_id", gpu.pci_id);
  put(out, "memory_bytes", gpu.memory_bytes);
  put(out, "sm", gpu.sm);
  put(out, "numa", gpu.numa);
  put(out, "cpu_affinity", gpu.cpu_affinity);
  write_pci(out, gpu);
  put(out, "mig_enabled", gpu.mig_enabled);
  put_all(out, "mig", gpu.mig, [](Json& o, const MigInstance& m) {
    put(o, "uuid", m.uuid);
    put(o, "profile", m.profile);
    put(o, "memory_bytes", m.memory_bytes);
  });
  put(out, "ecc", gpu.ecc);
  put(out, "throttle_reasons", gpu.throttle_reasons);
  put(out, "numa_id_of_memory", gpu.numa_id_of_memory);
  put(out, "nvswitch_board", gpu.nvswitch_board);
}

void write_nic(Json& out, const Nic& nic) {
  put(out, "name", nic.name);
  put(out, "netdev", nic.netdev);
  out["port"] = nic.port;
  put(out, "busid", nic.busid);
  put(out, "pci_id", nic.pci_id);
  put(out, "rate_mbit_per_s", nic.rate_mbit_per_s);
  if (nic.link_layer)
    out["link_layer"] = *nic.link_layer == LinkLayer::kInfiniBand ? "InfiniBand" : "Ethernet";
  out["rdma"] = nic.rdma;
  put(out, "active", nic.active);
  put(out, "guid", nic.guid);
  put(out, "port_guid", nic.port_guid);
  put(out, "numa", nic.numa);
  write_pci(out, nic);
}

void write_cpus(Json& out, const HostTopology& host) {
  put_all(out, "packages", host.packages, [](Json& o, const Package& p) {
    o["os_index"] = p.os_index;
    put(o, "cpus", p.cpus);
    put(o, "model", p.model);
  });
  put_all(out, "numa_nodes", host.numa_nodes, [](Json& o, const NumaNode& n) {
    o["os_index"] = n.os_index;
    put(o, "package", n.package);
    put(o, "cpus", n.cpus);
    put(o, "memory_bytes", n.memory_bytes);
    if (n.device_memory) o["device_memory"] = true;
  });
  put_all(out, "cores", host.cores, [](Json& o, const Core& c) {
    put(o, "package", c.package);
    put(o, "numa", c.numa);
    put(o, "cpus", c.cpus);
  });
  put_all(out, "pci", host.pci, [](Json& o, const PciSwitch& s) {
    o["kind"] = s.kind == PciSwitch::Kind::kHostBridge ? "host bridge" : "switch";
    put(o, "busid", s.busid);
    put(o, "parent", s.parent);
    put(o, "numa", s.numa);
    put(o, "gbytes_per_s", s.gbytes_per_s);
  });
}

void write_devices(Json& out, const HostTopology& host) {
  put_all(out, "gpus", host.gpus, write_gpu);
  put_all(out, "nics", host.nics, write_nic);
  put_all(out, "nvswitches", host.nvswitches, [](Json& o, const NvSwitch& s) {
    put(o, "busid", s.busid);
    put(o, "pci_parent", s.pci_parent);
  });
  put_all(out, "nvlinks", host.nvlinks, [](Json& o, const NvLink& l) {
    o["gpu"] = l.gpu;
    o["target"] = kLinkTargets[static_cast<size_t>(l.target)];
    o["target_index"] = l.target_index;
    o["count"] = l.count;
    if (l.c2c) o["c2c"] = true;
    put(o, "gbytes_per_s", l.gbytes_per_s);
  });
}

void write_paths(Json& out, const HostTopology& host) {
  out["nvlink_known"] = host.nvlink_known;
  out["nics_known"] = host.nics_known;
  write_matrix(out, "gpu_gpu", host.gpu_gpu);
  write_matrix(out, "gpu_nic", host.gpu_nic);
  write_matrix(out, "nic_nic", host.nic_nic);
  put(out, "near_nics", host.near_nics);
  if (!host.nccl_nic.empty()) {
    Json list = Json::array();
    for (const auto& nic : host.nccl_nic) list.push_back(nic ? Json(*nic) : Json());
    out["nccl_nic"] = std::move(list);
  }
}

Json write_host(const HostTopology& host) {
  Json out = Json::object();
  put(out, "hostname", host.hostname);
  put(out, "sources", host.sources);
  put(out, "architecture", host.architecture);
  put(out, "cpu_vendor", host.cpu_vendor);
  put(out, "cpu_family", host.cpu_family);
  put(out, "cpu_model", host.cpu_model);
  put(out, "memory_bytes", host.memory_bytes);
  write_cpus(out, host);
  write_devices(out, host);
  write_paths(out, host);
  put(out, "warnings", host.warnings);
  return out;
}

Json write_fabric(const Fabric& fabric) {
  Json out = Json::object();
  out["source"] = fabric.source;
  put_all(out, "switches", fabric.switches, [](Json& o, const FabricSwitch& s) {
    o["name"] = s.name;
    put(o, "guid", s.guid);
    o["level"] = s.level;
    put_all(o, "up", s.up, [](Json& l, const FabricSwitch::Link& link) {
      l["to"] = link.to;
      l["cables"] = link.cables;
      put(l, "gbytes_per_s", link.gbytes_per_s);
    });
    if (s.host_gbytes_per_s > 0) o["host_gbytes_per_s"] = s.host_gbytes_per_s;
    put(o, "oversubscription", s.oversubscription);
  });
  put_all(out, "ports", fabric.ports, [](Json& o, const FabricPort& p) {
    put(o, "host", p.host);
    put(o, "device", p.device);
    put(o, "guid", p.guid);
    o["leaf"] = p.leaf;
    put(o, "gbytes_per_s", p.gbytes_per_s);
  });
  put_all(out, "blocks", fabric.blocks, [](Json& o, const Fabric::Block& b) {
    o["name"] = b.name;
    o["hosts"] = b.hosts;
  });
  put(out, "block_sizes", fabric.block_sizes);
  put(out, "warnings", fabric.warnings);
  return out;
}

}  // namespace

std::string to_json(const HostTopology& host, int indent) {
  return write_host(host).dump(indent, ' ', false, Json::error_handler_t::replace);
}

std::string to_json(const Topology& topology, int indent) {
  Json out = Json::object(), kinds = Json::array(), hosts = Json::array();
  out["r1run_topology"] = kTopologyVersion;
  std::map<const HostTopology*, int> index;
  for (const Topology::Member& member : topology.hosts) {
    Json item = Json::object();
    item["name"] = member.name;
    if (member.host) {
      const auto [known, fresh] =
          index.try_emplace(member.host.get(), static_cast<int>(kinds.size()));
      if (fresh) kinds.push_back(write_host(*member.host));
      item["kind"] = known->second;
    }
    hosts.push_back(std::move(item));
  }
  out["hosts"] = std::move(hosts);
  out["kinds"] = std::move(kinds);
  if (!topology.fabric.source.empty()) out["fabric"] = write_fabric(topology.fabric);
  return out.dump(indent, ' ', false, Json::error_handler_t::replace);
}

}  // namespace r1::launch
