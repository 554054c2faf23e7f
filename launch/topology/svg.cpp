#include "launch/topology/svg.h"

#include <algorithm>

#include "launch/topology/canvas.h"
#include "launch/topology/drawings.h"

namespace r1::launch {

std::string to_svg(const Topology& topology) {
  Canvas canvas;
  const size_t hosts = static_cast<size_t>(
      std::ranges::count_if(topology.hosts, [](const auto& m) { return m.host != nullptr; }));
  draw_legend(canvas, kDrawingPad, 22);
  if (hosts > 0 && hosts <= 2 && topology.hosts.size() <= 2 && topology.fabric.switches.empty()) {
    double y = 40;
    for (const auto& member : topology.hosts) {
      if (!member.host) continue;
      const std::string title = member.name.empty() ? "host" : member.name;
      y += draw_host(canvas, *member.host, title, kDrawingPad, y) + 20;
    }
  } else {
    draw_cluster(canvas, topology);
  }
  return canvas.finish();
}

}  // namespace r1::launch
