// Files of tests/data/topology, and words for what the readers make of them.
#pragma once

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "launch/topology/import.h"

namespace r1::launch::testing {

inline std::string data_file(const std::string& name) {
  std::ifstream in(std::string(R1RUN_TEST_DATA) + "/topology/" + name, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}
inline HostTopology host_of(const std::string& name) {
  const Topology topology = read_topology(data_file(name), name);
  return topology.hosts.empty() || !topology.hosts[0].host ? HostTopology{}
                                                           : *topology.hosts[0].host;
}
/// A row of a matrix: "X NV4 SYS".
inline std::string row(const std::vector<Path>& paths) {
  std::vector<std::string> cells;
  for (const Path& path : paths) cells.push_back(cell(path));
  return fmt::format("{}", fmt::join(cells, " "));
}
/// Names (or PCI addresses) of the nearest NICs of a GPU: "mlx5_0 mlx5_1".
inline std::string near(const HostTopology& host, size_t gpu) {
  std::vector<std::string> names;
  for (const int n : host.near_nics.at(gpu)) {
    const Nic& nic = host.nics.at(static_cast<size_t>(n));
    names.push_back(nic.name.empty() ? nic.busid : nic.name);
  }
  return fmt::format("{}", fmt::join(names, " "));
}
inline int numa_id(const HostTopology& host, size_t gpu) {
  const auto& numa = host.gpus.at(gpu).numa;
  return numa ? host.numa_nodes.at(static_cast<size_t>(*numa)).os_index : -1;
}

}  // namespace r1::launch::testing
