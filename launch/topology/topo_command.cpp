#include "launch/topology/topo_command.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>

#include "launch/topology/import.h"
#include "launch/topology/json.h"
#include "launch/topology/live.h"
#include "launch/topology/merge.h"
#include "launch/topology/render.h"
#include "launch/topology/svg.h"
#include "launch/topology/text.h"
#include "runtime/core/error.h"

namespace r1::launch {
namespace {

namespace fs = std::filesystem;

/// Where an annotation's file lies: beside the hostfile unless it is absolute.
std::string beside(const Cluster& cluster, const std::string& file) {
  const fs::path path(file);
  return path.is_absolute() ? file : (fs::path(cluster.source).parent_path() / path).string();
}

/// Reads each file once. "a.xml,b.txt" are several sources of one host: they become one map.
class Files {
 public:
  const Topology& get(const std::string& list, const Host& host, const Cluster& cluster) {
    const auto known = read_.find(list);
    if (known != read_.end()) return known->second;
    std::vector<std::string> paths;
    for (const auto field : fields_of(list, ','))
      paths.push_back(beside(cluster, std::string(field)));
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
  std::vector<HostTopology> hosts;
  for (const std::string& path : paths) {
    Topology one = read_topology_file(path);
    if (one.hosts.size() > 1)
      throw UsageError("{}: of {} hosts; several files together describe one host", path,
                       one.hosts.size());
    for (const auto& member : one.hosts)
      if (member.host) hosts.push_back(*member.host);
    if (!one.fabric.source.empty()) out.fabric = std::move(one.fabric);
  }
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

Topology cluster_topology(const Cluster& cluster) {
  Files files;
  Topology out;
  for (const Host& host : cluster.hosts) {
    Topology::Member member{host.name, nullptr};
    if (const auto file = host.annotations.find("topology"); file != host.annotations.end()) {
      const Topology& found = files.get(file->second, host, cluster);
      // A file of several hosts (probe's) is asked by name; one of a single host is that host's
      // kind.
      for (const auto& candidate : found.hosts)
        if (candidate.name == host.name || found.hosts.size() == 1) member.host = candidate.host;
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

void write_output(const std::string& path, const std::string& text) {
  if (path == "-") {
    std::fwrite(text.data(), 1, text.size(), stdout);
    if (!text.ends_with('\n')) std::fputc('\n', stdout);
    if (std::fflush(stdout) != 0) throw StorageError("standard output: {}", std::strerror(errno));
    return;
  }
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out << text;
  if (!text.ends_with('\n')) out << '\n';
  out.close();
  if (!out) throw StorageError("{}: cannot be written: {}", path, std::strerror(errno));
}

int run_topo(const JobConfig& config) {
  Topology topology;
  if (!config.input.empty()) {
    if (!config.hostfile.empty())
      throw UsageError("topo takes a file or --hostfile, not both ({} and {})", config.input,
                       config.hostfile);
    std::vector<std::string> paths{config.input};
    if (!fs::exists(config.input) && config.input.find(',') != std::string::npos) {
      paths.clear();
      for (const auto field : fields_of(config.input, ',')) paths.emplace_back(field);
    }
    topology = read_sources(paths);
  } else if (!config.hostfile.empty()) {
    topology = cluster_topology(read_hostfile(config.hostfile));
  } else {
    auto host = std::make_shared<const HostTopology>(live_topology());
    topology.hosts.push_back({host->hostname, host});
  }
  if (!config.json.empty()) write_output(config.json, to_json(topology));
  if (!config.svg.empty()) write_output(config.svg, to_svg(topology));
  if (config.json != "-" && config.svg != "-") write_output("-", topology_text(topology));
  return 0;
}

}  // namespace r1::launch
