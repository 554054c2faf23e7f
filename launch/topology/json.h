// The map as JSON: what `r1run topo --json` and `r1run probe --json` print, and read again.
#pragma once

#include <string>
#include <string_view>

#include "launch/topology.h"

namespace r1::launch {

/// Hosts that share a HostTopology share an entry of "kinds". Unknown values are left out.
[[nodiscard]] std::string to_json(const Topology& topology, int indent = 1);
/// Throws DataError, naming `source` and the place, when the text is not such a map or contradicts
/// itself (an index that leads nowhere).
[[nodiscard]] Topology topology_from_json(std::string_view text, const std::string& source);
[[nodiscard]] std::string to_json(const HostTopology& host, int indent = -1);
[[nodiscard]] HostTopology host_from_json(std::string_view text, const std::string& source);

}  // namespace r1::launch
