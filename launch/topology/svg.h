// The map as a picture: hosts with their sockets, switches, GPUs and NICs, NVLinks, leaf switches;
// links coloured by bandwidth. One or two hosts are drawn in full, more as compact boxes below
// their leaf switches. Pure.
#pragma once

#include <string>

#include "launch/topology.h"

namespace r1::launch {

[[nodiscard]] std::string to_svg(const Topology& topology);

}  // namespace r1::launch
