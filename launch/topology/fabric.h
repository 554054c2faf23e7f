// What readers of fabric descriptions share. Pure.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "launch/topology.h"

namespace r1::launch {

/// A link between two switches, any number of cables. Where a source tells directions, `a` is below
/// `b`.
struct SwitchLink {
  int a = 0, b = 0;
  int cables = 1;
  std::optional<double> gbytes_per_s;  ///< of all cables together
};

enum class Directions : uint8_t {
  kTold,    ///< the source says which switch is above which, without circles
  kByHops,  ///< it does not: a switch's level is its distance from the nearest switch with hosts
};
/// Fills levels, links towards the core and over-subscription. `fabric.switches`
/// and `fabric.ports` are there already, host_gbytes_per_s is summed from the ports unless it is
/// set.
void lay_out_fabric(Fabric& fabric, const std::vector<SwitchLink>& links, Directions directions);

/// What one host's Slurm says of its place: SLURM_TOPOLOGY_ADDR ("spine.leaf1.node7") and _PATTERN
/// ("switch.switch.node").
struct SlurmAddress {
  std::string host, address, pattern;
};
/// The tree that the addresses of all hosts make. Hosts without an address are left out.
[[nodiscard]] Fabric fabric_of_slurm_addresses(const std::vector<SlurmAddress>& addresses);

}  // namespace r1::launch
