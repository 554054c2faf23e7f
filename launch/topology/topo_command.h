// `r1run topo [FILE | --hostfile F]`: shows a map.
#pragma once

#include <string>
#include <vector>

#include "launch/hostfile.h"
#include "launch/topology.h"
#include "runtime/core/options.h"

namespace r1::launch {

/// The map of a cluster as its hostfile's annotations name it: "topology=FILE[,FILE...]" of each
/// host (relative to the hostfile's folder), "fabric=FILE" of any. Hosts without one have no map.
/// Throws UsageError or DataError naming file:line.
[[nodiscard]] Topology cluster_topology(const Cluster& cluster);

/// One file; or several, which describe one host between them and become one map, what they
/// disagree about among its warnings. Throws UsageError or DataError.
[[nodiscard]] Topology read_sources(const std::vector<std::string>& paths);

/// Prints matrix, tree and fabric; writes --json and --svg. Returns the exit code.
[[nodiscard]] int run_topo(const JobConfig& config);

/// Writes text to a file, or to standard output for "-". Throws StorageError.
void write_output(const std::string& path, const std::string& text);

}  // namespace r1::launch
