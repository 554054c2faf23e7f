// The map of a cluster from the files that its hostfile (or --topology) names.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "launch/hostfile.h"
#include "launch/topology.h"

namespace r1::launch {

/// The map of a cluster as its hostfile's annotations name it: "topology=FILE[,FILE...]" of each
/// host (relative to the hostfile's folder), "fabric=FILE" of any; hosts without one as `files` of
/// --topology ("FILE[,FILE...]", relative to the working directory; "" none) describe them. Others
/// have no map. Throws UsageError or DataError naming file:line or the option.
[[nodiscard]] Topology cluster_topology(const Cluster& cluster, const std::string& files = "");

/// Where the file of an annotation lies: beside the hostfile unless it is absolute.
[[nodiscard]] std::string beside_hostfile(const Cluster& cluster, std::string_view file);

/// One file; or several, which describe one host between them and become one map, what they
/// disagree about among its warnings; a file of several hosts goes with files of the fabric alone.
/// Throws UsageError or DataError.
[[nodiscard]] Topology read_sources(const std::vector<std::string>& paths);

}  // namespace r1::launch
