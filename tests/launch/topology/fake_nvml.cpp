// A stand-in for NVIDIA's library, for machines without a GPU: answers like a node of 4 A100 with
// four NVLinks a pair, or, with R1RUN_FAKE_NVML=hidden, like a virtual machine whose links lead
// back to their own GPU; =mig: GPU 0 is cut in two.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "launch/topology/nvml.h"

namespace {

using r1::launch::nvml::Memory, r1::launch::nvml::PciInfo;
constexpr int kSuccess = 0, kNotSupported = 3;

int devices[8];  // 0-3: GPUs, 4-5: MIG instances of GPU 0
int index_of(const void* device) {
  return static_cast<int>(static_cast<const int*>(device) - devices);
}
bool mode(const char* name) {
  const char* value = std::getenv("R1RUN_FAKE_NVML");
  return value != nullptr && std::strcmp(value, name) == 0;
}
void place(int gpu, PciInfo* out) {
  std::snprintf(out->busid, sizeof(out->busid), "0000000%d:0%d:00.0", 0, gpu + 1);
  out->pci_device_id = 0x20b210de;
}

}  // namespace

extern "C" {
int nvmlInit_v2() { return mode("broken") ? 9 : kSuccess; }
int nvmlShutdown() { return kSuccess; }
const char* nvmlErrorString(int) { return "Driver Not Loaded"; }
int nvmlDeviceGetCount_v2(unsigned* count) {
  *count = 4;
  return kSuccess;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void** device) {
  *device = &devices[index];
  return kSuccess;
}
int nvmlDeviceGetName(void* device, char* text, unsigned length) {
  std::snprintf(
      text, length, "%s",
      index_of(device) < 4 ? "NVIDIA A100-SXM4-80GB" : "NVIDIA A100-SXM4-80GB MIG 3g.40gb");
  return kSuccess;
}
int nvmlDeviceGetUUID(void* device, char* text, unsigned length) {
  std::snprintf(text, length, "%s-%d", index_of(device) < 4 ? "GPU" : "MIG", index_of(device));
  return kSuccess;
}
int nvmlDeviceGetMemoryInfo(void* device, Memory* out) {
  out->total = index_of(device) < 4 ? 85899345920ULL : 42949672960ULL;
  return kSuccess;
}
int nvmlDeviceGetPciInfo_v3(void* device, PciInfo* out) {
  place(index_of(device), out);
  return kSuccess;
}
int nvmlDeviceGetCudaComputeCapability(void*, int* major, int* minor) {
  *major = 8;
  *minor = 0;
  return kSuccess;
}
int nvmlDeviceGetNvLinkState(void*, unsigned link, unsigned* active) {
  *active = link < 12 ? 1 : 0;
  return kSuccess;
}
int nvmlDeviceGetNvLinkRemotePciInfo_v2(void* device, unsigned link, PciInfo* out) {
  const int self = index_of(device);
  const int peer = (self + 1 + static_cast<int>(link) / 4) % 4;  // four links to each of the others
  place(mode("hidden") ? self : peer, out);
  return kSuccess;
}
int nvmlDeviceGetNvLinkRemoteDeviceType(void*, unsigned, int* type) {
  *type = 0;
  return kSuccess;
}
int nvmlDeviceGetMigMode(void* device, unsigned* current, unsigned* pending) {
  *current = *pending = mode("mig") && index_of(device) == 0 ? 1 : 0;
  return kSuccess;
}
int nvmlDeviceGetMaxMigDeviceCount(void*, unsigned* count) {
  *count = 7;
  return kSuccess;
}
int nvmlDeviceGetMigDeviceHandleByIndex(void*, unsigned index, void** device) {
  if (index >= 2) return 6;
  *device = &devices[4 + index];
  return kSuccess;
}
int nvmlDeviceGetEccMode(void* device, unsigned* current, unsigned* pending) {
  if (index_of(device) == 3) return kNotSupported;
  *current = *pending = 1;
  return kSuccess;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(void* device, unsigned long long* mask) {
  *mask = index_of(device) == 2 ? 0x40 | 0x1 : 0x1;
  return kSuccess;
}
}
