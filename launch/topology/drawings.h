// The two pictures of a topology.
#pragma once

#include <string>

#include "launch/topology.h"
#include "launch/topology/canvas.h"

namespace r1::launch {

/// One host in full, its upper left corner at (x, y). Returns the height used.
double draw_host(Canvas& canvas, const HostTopology& host, const std::string& title, double x,
                 double y);
/// All hosts, small, and the switches between them.
void draw_cluster(Canvas& canvas, const Topology& topology);

}  // namespace r1::launch
