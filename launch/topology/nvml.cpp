// GPUs as NVML tells them. The library comes with the driver and is loaded when it is there, so
// that one binary runs on a login node too. Declarations follow nvml.h of CUDA 12 and 13, whose
// functions and structures keep their layout.
#include <dlfcn.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>

#include "launch/topology/import.h"
#include "launch/topology/live.h"
#include "launch/topology/nvml.h"
#include "launch/topology/paths.h"
#include "launch/topology/xml.h"

namespace r1::launch {
namespace {

using Device = struct nvmlDevice_st*;
using nvml::Memory, nvml::PciInfo;
constexpr int kSuccess = 0;
constexpr unsigned kMostLinks = 18, kNameBytes = 96;

struct Unload {
  void operator()(void* library) const { dlclose(library); }
};

/// The functions that are used; those that an older driver lacks stay null.
struct Nvml {
  std::unique_ptr<void, Unload> library;
  int (*init)() = nullptr;
  int (*shutdown)() = nullptr;
  const char* (*error)(int) = nullptr;
  int (*count)(unsigned*) = nullptr;
  int (*handle)(unsigned, Device*) = nullptr;
  int (*name)(Device, char*, unsigned) = nullptr;
  int (*uuid)(Device, char*, unsigned) = nullptr;
  int (*memory)(Device, Memory*) = nullptr;
  int (*pci)(Device, PciInfo*) = nullptr;
  int (*capability)(Device, int*, int*) = nullptr;
  int (*link_state)(Device, unsigned, unsigned*) = nullptr;
  int (*link_remote)(Device, unsigned, PciInfo*) = nullptr;
  int (*link_remote_type)(Device, unsigned, int*) = nullptr;
  int (*mig_mode)(Device, unsigned*, unsigned*) = nullptr;
  int (*mig_count)(Device, unsigned*) = nullptr;
  int (*mig_handle)(Device, unsigned, Device*) = nullptr;
  int (*ecc)(Device, unsigned*, unsigned*) = nullptr;
  int (*throttle)(Device, unsigned long long*) = nullptr;
  int (*pcie_generation)(Device, unsigned*) = nullptr;
  int (*pcie_width)(Device, unsigned*) = nullptr;

  template <class F>
  void load(F& function, const char* symbol) {
    function = reinterpret_cast<F>(dlsym(library.get(), symbol));
  }
  void load_all() {
    load(init, "nvmlInit_v2");
    load(shutdown, "nvmlShutdown");
    load(error, "nvmlErrorString");
    load(count, "nvmlDeviceGetCount_v2");
    load(handle, "nvmlDeviceGetHandleByIndex_v2");
    load(name, "nvmlDeviceGetName");
    load(uuid, "nvmlDeviceGetUUID");
    load(memory, "nvmlDeviceGetMemoryInfo");
    load(pci, "nvmlDeviceGetPciInfo_v3");
    load(capability, "nvmlDeviceGetCudaComputeCapability");
    load(link_state, "nvmlDeviceGetNvLinkState");
    load(link_remote, "nvmlDeviceGetNvLinkRemotePciInfo_v2");
    load(link_remote_type, "nvmlDeviceGetNvLinkRemoteDeviceType");
    load(mig_mode, "nvmlDeviceGetMigMode");
    load(mig_count, "nvmlDeviceGetMaxMigDeviceCount");
    load(mig_handle, "nvmlDeviceGetMigDeviceHandleByIndex");
    load(ecc, "nvmlDeviceGetEccMode");
    load(throttle, "nvmlDeviceGetCurrentClocksEventReasons");
    if (throttle == nullptr) load(throttle, "nvmlDeviceGetCurrentClocksThrottleReasons");
    load(pcie_generation, "nvmlDeviceGetMaxPcieLinkGeneration");
    load(pcie_width, "nvmlDeviceGetMaxPcieLinkWidth");
  }
};

std::string text_of(int (*get)(Device, char*, unsigned), Device device) {
  std::array<char, kNameBytes> buffer{};
  if (get == nullptr || get(device, buffer.data(), kNameBytes) != kSuccess) return "";
  return {buffer.data(), strnlen(buffer.data(), buffer.size())};
}

std::string busid_of(const PciInfo& info) {
  return pci_address({info.busid, strnlen(info.busid, sizeof(info.busid))});
}

std::vector<std::string> throttle_reasons(unsigned long long mask) {
  // Bits of nvmlClocksEventReason*; idle (0x1), application clocks (0x2) and synchronised boost
  // (0x10) slow nothing down.
  static constexpr std::array<std::pair<unsigned long long, const char*>, 6> kReasons = {
      {{0x4, "software power cap"},
       {0x8, "hardware slowdown"},
       {0x20, "software thermal slowdown"},
       {0x40, "hardware thermal slowdown"},
       {0x80, "hardware power brake"},
       {0x100, "display clocks"}}};
  std::vector<std::string> out;
  for (const auto& [bit, text] : kReasons)
    if ((mask & bit) != 0) out.emplace_back(text);
  return out;
}

/// One NVLink as a GPU reports it.
struct RemoteEnd {
  size_t gpu = 0;
  int type = 255;  // 0 GPU, 1 POWER CPU, 2 NVSwitch, 255 unknown
  std::string busid;
};

class NvmlReader {
 public:
  NvmlReader(Nvml& nvml, HostTopology& host) : nvml_(nvml), host_(host) {}

  void read() {
    unsigned count = 0;
    if (nvml_.count == nullptr || nvml_.handle == nullptr || nvml_.count(&count) != kSuccess)
      return;
    for (unsigned i = 0; i < std::min<unsigned>(count, kMostGpus); ++i) {
      Device device = nullptr;
      if (nvml_.handle(i, &device) == kSuccess) read_gpu(i, device);
    }
    resolve_links();
    number_gpus(host_);
  }

 private:
  Nvml& nvml_;
  HostTopology& host_;
  std::vector<RemoteEnd> ends_;
  size_t asked_ = 0, hidden_ = 0;

  Gpu& entry(const std::string& busid) {
    for (Gpu& gpu : host_.gpus)
      if (!busid.empty() && gpu.busid == busid) return gpu;
    host_.gpus.push_back({.busid = busid});
    return host_.gpus.back();
  }

  void read_gpu(unsigned index, Device device) {
    PciInfo pci{};
    const bool placed = nvml_.pci != nullptr && nvml_.pci(device, &pci) == kSuccess;
    Gpu& gpu = entry(placed ? busid_of(pci) : "");
    gpu.index = static_cast<int>(index);
    if (placed)
      gpu.pci_id =
          fmt::format("{:04x}:{:04x}", pci.pci_device_id & 0xffff, pci.pci_device_id >> 16);
    if (const auto text = text_of(nvml_.name, device); !text.empty()) gpu.name = text;
    if (const auto text = text_of(nvml_.uuid, device); !text.empty()) gpu.uuid = text;
    Memory memory{};
    if (nvml_.memory != nullptr && nvml_.memory(device, &memory) == kSuccess)
      gpu.memory_bytes = memory.total;
    int major = 0, minor = 0;
    if (nvml_.capability != nullptr && nvml_.capability(device, &major, &minor) == kSuccess)
      gpu.sm = 10 * major + minor;
    unsigned generation = 0, width = 0;
    if (!gpu.pci_gbytes_per_s && nvml_.pcie_generation != nullptr && nvml_.pcie_width != nullptr &&
        nvml_.pcie_generation(device, &generation) == kSuccess &&
        nvml_.pcie_width(device, &width) == kSuccess) {
      static constexpr std::array<const char*, 7> kSpeeds = {
          "", "2.5 GT/s", "5 GT/s", "8 GT/s", "16 GT/s", "32 GT/s", "64.0 GT/s"};
      if (generation < kSpeeds.size())
        gpu.pci_gbytes_per_s = pci_gbytes_per_s(kSpeeds[generation], static_cast<int>(width));
    }
    unsigned current = 0, pending = 0;
    if (nvml_.ecc != nullptr && nvml_.ecc(device, &current, &pending) == kSuccess)
      gpu.ecc = current == 1;
    unsigned long long reasons = 0;
    if (nvml_.throttle != nullptr && nvml_.throttle(device, &reasons) == kSuccess)
      gpu.throttle_reasons = throttle_reasons(reasons);
    read_mig(gpu, device);
    read_links(static_cast<size_t>(&gpu - host_.gpus.data()), device);
  }

  void read_mig(Gpu& gpu, Device device) const {
    unsigned current = 0, pending = 0, most = 0;
    if (nvml_.mig_mode == nullptr || nvml_.mig_mode(device, &current, &pending) != kSuccess) return;
    gpu.mig_enabled = current == 1;
    if (current != 1 || nvml_.mig_count == nullptr || nvml_.mig_handle == nullptr ||
        nvml_.mig_count(device, &most) != kSuccess)
      return;
    for (unsigned i = 0; i < std::min(most, 64u); ++i) {
      Device instance = nullptr;
      if (nvml_.mig_handle(device, i, &instance) != kSuccess) continue;
      MigInstance mig{.uuid = text_of(nvml_.uuid, instance)};
      // "NVIDIA A100-SXM4-80GB MIG 1g.10gb"
      const std::string name = text_of(nvml_.name, instance);
      if (const auto at = name.find("MIG "); at != std::string::npos)
        mig.profile = name.substr(at + 4);
      Memory memory{};
      if (nvml_.memory != nullptr && nvml_.memory(instance, &memory) == kSuccess)
        mig.memory_bytes = memory.total;
      gpu.mig.push_back(std::move(mig));
    }
  }

  void read_links(size_t gpu, Device device) {
    if (nvml_.link_state == nullptr || nvml_.link_remote == nullptr) return;
    ++asked_;
    for (unsigned link = 0; link < kMostLinks; ++link) {
      unsigned active = 0;
      if (nvml_.link_state(device, link, &active) != kSuccess || active != 1) continue;
      RemoteEnd end{.gpu = gpu};
      PciInfo remote{};
      if (nvml_.link_remote(device, link, &remote) == kSuccess) end.busid = busid_of(remote);
      if (nvml_.link_remote_type != nullptr) nvml_.link_remote_type(device, link, &end.type);
      ends_.push_back(std::move(end));
    }
  }

  std::optional<int> gpu_at(const std::string& busid) const {
    for (size_t g = 0; g < host_.gpus.size(); ++g)
      if (!busid.empty() && host_.gpus[g].busid == busid) return static_cast<int>(g);
    return std::nullopt;
  }

  int switch_at(const std::string& busid) {
    for (size_t s = 0; s < host_.nvswitches.size(); ++s)
      if (host_.nvswitches[s].busid == busid) return static_cast<int>(s);
    host_.nvswitches.push_back({.busid = busid});
    return static_cast<int>(host_.nvswitches.size()) - 1;
  }

  void resolve_links() {
    host_.nvlinks.clear();
    for (const RemoteEnd& end : ends_) {
      NvLink link{.gpu = static_cast<int>(end.gpu), .count = 1};
      const auto peer = gpu_at(end.busid);
      if (peer && *peer != link.gpu) {
        link.target_index = *peer;
      } else if (end.type == 2) {
        link.target = NvLink::Target::kSwitch;
        link.target_index = switch_at(end.busid);
      } else if (end.type == 1) {
        link.target = NvLink::Target::kCpu;
        link.target_index = host_.gpus[end.gpu].numa.value_or(-1);
      } else {  // to itself, or to something that a virtual machine does not show
        ++hidden_;
        continue;
      }
      const double each = nvlink_gbytes_per_s(host_.gpus[end.gpu].sm);
      auto same = std::ranges::find_if(host_.nvlinks, [&](const NvLink& other) {
        return other.gpu == link.gpu && other.target == link.target &&
               other.target_index == link.target_index;
      });
      const bool fresh = same == host_.nvlinks.end();
      NvLink& entry = fresh ? host_.nvlinks.emplace_back(link) : *same;
      if (!fresh) ++entry.count;
      entry.gbytes_per_s = entry.count * each;
    }
    host_.nvlink_known = asked_ > 0 && hidden_ == 0;
    if (hidden_ > 0)
      host_.warnings.push_back(
          fmt::format("{} active NVLinks lead to devices that this (virtual) machine does not "
                      "show: what they connect is unknown",
                      hidden_));
  }
};

}  // namespace

bool add_nvml(HostTopology& host, const std::string& library) {
  Nvml nvml;
  nvml.library.reset(dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL));
  if (!nvml.library) {
    if (!host.gpus.empty())
      host.warnings.push_back(
          fmt::format("{} cannot be loaded: what only the driver knows of the GPUs (names, memory, "
                      "NVLink, MIG) is unknown",
                      library));
    return false;
  }
  nvml.load_all();
  const int code = nvml.init == nullptr ? -1 : nvml.init();
  if (code != kSuccess) {
    const char* why = code > 0 && nvml.error != nullptr ? nvml.error(code) : "it is no NVML";
    host.warnings.push_back(fmt::format("{} does not start: {}", library, why));
    return false;
  }
  NvmlReader(nvml, host).read();
  if (nvml.shutdown != nullptr) nvml.shutdown();
  host.sources.emplace_back("live: NVML");
  return true;
}

}  // namespace r1::launch
