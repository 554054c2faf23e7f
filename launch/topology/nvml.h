// The structures of NVIDIA's management library that we read, as nvml.h of CUDA 12 and 13 lays them out: its header need not
// be installed.
#pragma once

namespace r1::launch::nvml {

/// nvmlPciInfo_t
struct PciInfo {
  char busid_legacy[16];
  unsigned domain, bus, device, pci_device_id, pci_subsystem_id;
  char busid[32];
};
/// nvmlMemory_t, bytes
struct Memory {
  unsigned long long total, free, used;
};

}  // namespace r1::launch::nvml
