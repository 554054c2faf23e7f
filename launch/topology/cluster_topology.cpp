#include "launch/topology/cluster_topology.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <map>

#include "launch/topology/import.h"
#include "launch/topology/merge.h"
#include "launch/topology/text.h"
#include "runtime/core/error.h"

namespace r1::launch {
namespace {

namespace fs = std::filesystem;

/// Machines call themselves by their first label, a hostfile may use the whole name.
bool same_host(std::string_view a, std::string_view b) {
  if (a == b) return true;
  const bool whole = a.find('.') != std::string_view::npos && b.find('.') != std::string_view::npos;
  return !whole && a.substr(0, a.find('.')) == b.substr(0, b.find('.'));
}

/// A map that serves as the kind of many hosts: without what belongs to the one it was taken on.
std::shared_ptr<const HostTopology> without_identity(const HostTopology& host) {
  auto out = std::make_shared<HostTopology>(host);
  out->hostname.clear();
  for (Gpu& g : out->gpus) {
    g.uuid.clear();
    g.mig.clear();
  }
  for (Nic& n : out->nics) {
    n.guid.clear();
    n.port_guid.clear();
  }
  return out;
}

/// The map of a host in what was read: the entry of its name; the only entry is the host's kind.
class Kinds {
 public:
  std::shared_ptr<const HostTopology> find(const Topology& read, const std::string& host, bool only_host) {
    for (const Topology::Member& m : read.hosts)
      if (same_host(m.name, host)) return m.host;
    if (read.hosts.size() != 1 || read.hosts.front().host == nullptr) return nullptr;
    const std::shared_ptr<const HostTopology>& one = read.hosts.front().host;
    if (only_host && one->hostname.empty()) return one;
    auto& kind = kinds_[one.get()];
    if (kind == nullptr) kind = without_identity(*one);
    return kind;
  }

 private:
  std::map<const HostTopology*, std::shared_ptr<const HostTopology>> kinds_;  // equal hosts share one
};

/// Reads each file once. "a.xml,b.txt" are several sources of one host: they become one map.
class Files {
 public:
  const Topology& get(const std::string& list, const Host& host, const Cluster& cluster) {
    const auto known = read_.find(list);
    if (known != read_.end()) return known->second;
    std::vector<std::string> paths;
    for (const auto field : fields_of(list, ','))
      paths.push_back(beside_hostfile(cluster, field));
    try {
      return read_.emplace(list, read_sources(paths)).first->second;
    } catch (const UsageError& e) {
      throw UsageError("{}:{}: host {}: {}", cluster.source, host.line, host.name, e.what());
    }
  }

 private:
  std::map<std::string, Topology> read_;
};

}  // namespace

Topology read_sources(const std::vector<std::string>& paths) {
  if (paths.size() == 1) return read_topology_file(paths.front());
  Topology out;
  std::vector<Topology> of_hosts;
  for (const std::string& path : paths) {
    Topology one = read_topology_file(path);
    if (!one.fabric.source.empty()) out.fabric = std::move(one.fabric);
    if (one.hosts.empty()) continue;
    of_hosts.push_back(std::move(one));
    if (of_hosts.size() > 1 && std::max(of_hosts.front().hosts.size(), of_hosts.back().hosts.size()) > 1)
      throw UsageError("{}: of {} host{}; several files together describe one host", path,
                       of_hosts.back().hosts.size(), of_hosts.back().hosts.size() == 1 ? "" : "s");
  }
  if (of_hosts.empty()) return out;
  if (of_hosts.size() == 1) {
    out.hosts = std::move(of_hosts.front().hosts);
    return out;
  }
  std::vector<HostTopology> hosts;
  for (const Topology& one : of_hosts)
    if (one.hosts.front().host) hosts.push_back(*one.hosts.front().host);
  if (hosts.empty()) return out;
  std::vector<std::string> conflicts;
  HostTopology merged = merge(hosts, conflicts);
  for (const std::string& conflict : conflicts)
    merged.warnings.push_back(fmt::format("sources disagree: {}", conflict));
  std::string hostname = merged.hostname;
  out.hosts.push_back(
      {std::move(hostname), std::make_shared<const HostTopology>(std::move(merged))});
  return out;
}

std::string beside_hostfile(const Cluster& cluster, std::string_view file) {
  return (fs::path(cluster.source).parent_path() / file).string();  // an absolute file replaces the folder
}

Topology cluster_topology(const Cluster& cluster, const std::string& for_all) {
  Files files;
  Kinds kinds;
  Topology out;
  Topology common;
  if (!for_all.empty()) {
    std::vector<std::string> paths;
    for (const auto field : fields_of(for_all, ',')) paths.emplace_back(field);
    try {
      common = read_sources(paths);
    } catch (const UsageError& e) {
      throw UsageError("--topology {}", e.what());
    }
    out.fabric = common.fabric;
  }
  for (const Host& host : cluster.hosts) {
    Topology::Member member{host.name, nullptr};
    member.host = kinds.find(common, host.name, cluster.hosts.size() == 1);
    if (const auto file = host.annotations.find("topology"); file != host.annotations.end()) {
      const Topology& found = files.get(file->second, host, cluster);
      member.host = kinds.find(found, host.name, cluster.hosts.size() == 1);
      if (!member.host)
        throw UsageError("{}:{}: {} describes no host {}", cluster.source, host.line, file->second,
                         host.name);
      if (out.fabric.source.empty()) out.fabric = found.fabric;
    }
    if (const auto file = host.annotations.find("fabric"); file != host.annotations.end()) {
      const Topology& found = files.get(file->second, host, cluster);
      if (found.fabric.source.empty())
        throw UsageError(
            "{}:{}: {} describes no fabric (ibnetdiscover's output or Slurm's topology.conf does)",
            cluster.source, host.line, file->second);
      out.fabric = found.fabric;
    }
    out.hosts.push_back(std::move(member));
  }
  return out;
}

}  // namespace r1::launch
