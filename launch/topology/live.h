// The map of the machine this process runs on: hwloc (CPUs, NUMA, PCI), NVML (loaded if it is
// there), sysfs (InfiniBand and RoCE devices, network interfaces).
#pragma once

#include <string>

#include "launch/topology.h"

namespace r1::launch {

/// Where the parts are read from; the defaults are this machine.
struct LiveSources {
  std::string sysfs = "/sys";
  std::string nvml = "libnvidia-ml.so.1";  ///< "": not tried
  bool hwloc = true;  ///< honours HWLOC_XMLFILE, HWLOC_FSROOT and the like, as hwloc does
};
/// Parts that cannot be had are absent from the map, with a warning that says why. Throws
/// InternalError when hwloc itself does not work.
[[nodiscard]] HostTopology live_topology(const LiveSources& sources = {});

/// Adds what NVML knows of the GPUs: names, UUIDs, memory, NVLinks, MIG, ECC, throttle reasons.
/// False when the library is not there or does not start (why is in the warnings).
bool add_nvml(HostTopology& host, const std::string& library);
/// Adds InfiniBand and RoCE devices (rate, state, link layer, GUIDs) and network interfaces from
/// sysfs.
void add_sysfs_nics(HostTopology& host, const std::string& sysfs);

}  // namespace r1::launch
