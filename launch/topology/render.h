// The map as text for people: the matrix that users of nvidia-smi topo know, a tree, the fabric.
// Pure.
#pragma once

#include <set>
#include <string>
#include <vector>

#include "launch/topology.h"

namespace r1::launch {

/// GPU x GPU, GPU x NIC, NIC x NIC, affinity columns and legends.
[[nodiscard]] std::string matrix_text(const HostTopology& host);
/// Packages, NUMA nodes, switches, devices; NVLinks; nearest NICs; what is unknown; warnings.
[[nodiscard]] std::string tree_text(const HostTopology& host, const std::string& title);
/// Leaf switches with their hosts and over-subscription.
[[nodiscard]] std::string fabric_text(const Fabric& fabric);
/// All of a topology; hosts that look alike are drawn once.
[[nodiscard]] std::string topology_text(const Topology& topology);

/// "GPU3" and "mlx5_0", "mlx5_0:2" for a second port, the PCI address for a nameless one.
[[nodiscard]] std::string label(const Gpu& gpu);
[[nodiscard]] std::string label(const Nic& nic);
/// The different cells of the matrix between these GPUs: one where all pairs are linked alike.
[[nodiscard]] std::set<std::string> cells_between(const HostTopology& host, const std::vector<int>& gpus);

}  // namespace r1::launch
