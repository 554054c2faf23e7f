#include "launch/topology/topo_command.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "launch/launch_job.h"
#include "launch/topology/cluster_topology.h"
#include "launch/topology/json.h"
#include "launch/topology/live.h"
#include "launch/topology/render.h"
#include "launch/topology/svg.h"
#include "launch/topology/text.h"
#include "runtime/core/error.h"

namespace r1::launch {
namespace fs = std::filesystem;

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
  } else if (!config.hostfile.empty() || !config.host.empty()) {
    topology = cluster_topology(given_hosts(config));
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
