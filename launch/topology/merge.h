// Several sources of one host become one map, and what they disagree about is said.
#pragma once

#include <string>
#include <vector>

#include "launch/topology.h"

namespace r1::launch {

/// What two maps of one host contradict each other about, a sentence each. Unknown contradicts
/// nothing, PHB and NODE are one (NCCL does not split them), and a source that is silent about
/// NVLink does not contradict one that is not. Devices are matched by PCI address, else by UUID or
/// name, else by index.
[[nodiscard]] std::vector<std::string> disagreements(const HostTopology& a, const HostTopology& b);

/// The first source is the base; what it does not know is taken from the others in order.
/// Contradictions keep the base's word and are added to `conflicts`.
[[nodiscard]] HostTopology merge(const std::vector<HostTopology>& sources,
                                 std::vector<std::string>& conflicts);

/// How two hosts that should be alike differ, a few words each ("3 GPUs instead of 4"): what probe
/// compares. Identities (UUIDs, GUIDs, host names) are not compared.
[[nodiscard]] std::vector<std::string> differences(const HostTopology& reference,
                                                   const HostTopology& host);

}  // namespace r1::launch
