// From a host's tree to its paths: NCCL's rules (breadth-first from each device; the class of a
// path is its worst step; better class first, then bandwidth, then fewer hops) and NCCL's
// bandwidths. Pure.
#pragma once

#include <optional>
#include <string_view>

#include "launch/topology.h"

namespace r1::launch {

/// Bandwidth of one NVLink in one direction, GB/s, by compute capability x 10; unknown capability:
/// as NCCL, 20.
[[nodiscard]] double nvlink_gbytes_per_s(std::optional<int> sm);
/// Between NUMA nodes, GB/s, by the CPU's architecture, vendor and model.
[[nodiscard]] double numa_gbytes_per_s(const HostTopology& host);
/// A slot as the kernel words it ("16.0 GT/s PCIe", width 16): width x rate. nullopt: unknown speed
/// or width 0 (NCCL then takes 8 GT/s and 16).
[[nodiscard]] std::optional<double> pci_gbytes_per_s(std::string_view link_speed, int width);
/// Compute capability x 10 from a PCI id ("10de:20b2"); nullopt: not in the table.
[[nodiscard]] std::optional<int> sm_of_pci_id(std::string_view pci_id);
/// Data rate of an InfiniBand link, Mbit/s: a width and a speed as ibnetdiscover words them
/// ("4xHDR").
[[nodiscard]] std::optional<double> infiniband_mbit_per_s(std::string_view width_and_speed);

/// Fills gpu_gpu, gpu_nic, nic_nic, near_nics and nccl_nic from the tree and the links.
void resolve_paths(HostTopology& host);
/// Sorts GPUs by the index that the source gave them; where any has none (-1), by PCI address, as
/// the driver numbers them.
void number_gpus(HostTopology& host);
/// Fills near_nics and nccl_nic from gpu_nic.
void choose_nics(HostTopology& host);

}  // namespace r1::launch
