// Timings that need one host only: memory, and copies between GPUs.
#include <dlfcn.h>
#include <fmt/format.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <thread>

#include "launch/process.h"
#include "launch/topology/probe.h"
#include "launch/topology/render.h"
#include "launch/topology/xml.h"

namespace r1::launch {
namespace {

size_t usable_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return static_cast<size_t>(std::max(1, CPU_COUNT(&set)));
}

}  // namespace

double memory_gbytes_per_s() {
  // Larger than the caches together, small beside any host's memory: 64 MB a thread, at most 32
  // threads.
  constexpr size_t kBytes = size_t{64} << 20;
  const size_t threads = std::min<size_t>(usable_cpus(), 32);
  std::vector<std::unique_ptr<char[]>> from(threads), to(threads);
  double best = 0;
  for (int round = 0; round < 4; ++round) {  // the first one touches the pages
    std::vector<std::thread> workers;
    const double start = monotonic_s();
    for (size_t t = 0; t < threads; ++t)
      workers.emplace_back([&, t] {
        if (!from[t]) {  // by the thread that uses it, so that it lies on its node
          from[t] = std::make_unique<char[]>(kBytes);
          to[t] = std::make_unique<char[]>(kBytes);
        }
        std::memcpy(to[t].get(), from[t].get(), kBytes);
      });
    for (auto& worker : workers) worker.join();
    const double seconds = monotonic_s() - start;
    if (round > 0)
      best = std::max(best, 2.0 * static_cast<double>(kBytes * threads) / seconds / 1e9);
  }
  return best;
}

namespace {

using CudaDevice = int;
using CudaContext = struct CUctx_st*;
using CudaStream = struct CUstream_st*;
using CudaPointer = unsigned long long;

/// The few functions of the CUDA driver that copies need; declarations follow cuda.h of CUDA 12
/// and 13.
struct Driver {
  int (*init)(unsigned) = nullptr;
  int (*count)(int*) = nullptr;
  int (*device)(CudaDevice*, int) = nullptr;
  int (*busid)(char*, int, CudaDevice) = nullptr;
  int (*retain)(CudaContext*, CudaDevice) = nullptr;
  int (*release)(CudaDevice) = nullptr;
  int (*set)(CudaContext) = nullptr;
  int (*enable_peer)(CudaContext, unsigned) = nullptr;
  int (*allocate)(CudaPointer*, size_t) = nullptr;
  int (*free)(CudaPointer) = nullptr;
  int (*copy_peer)(CudaPointer, CudaContext, CudaPointer, CudaContext, size_t,
                   CudaStream) = nullptr;
  int (*copy_up)(CudaPointer, const void*, size_t, CudaStream) = nullptr;
  int (*host_allocate)(void**, size_t, unsigned) = nullptr;
  int (*host_free)(void*) = nullptr;
  int (*synchronize)() = nullptr;

  [[nodiscard]] bool load(void* library) {
    bool whole = true;
    const auto get = [&](auto& function, const char* symbol) {
      function =
          reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, symbol));
      whole = whole && function != nullptr;
    };
    get(init, "cuInit");
    get(count, "cuDeviceGetCount");
    get(device, "cuDeviceGet");
    get(busid, "cuDeviceGetPCIBusId");
    get(retain, "cuDevicePrimaryCtxRetain");
    get(release, "cuDevicePrimaryCtxRelease_v2");
    get(set, "cuCtxSetCurrent");
    get(enable_peer, "cuCtxEnablePeerAccess");
    get(allocate, "cuMemAlloc_v2");
    get(free, "cuMemFree_v2");
    get(copy_peer, "cuMemcpyPeerAsync");
    get(copy_up, "cuMemcpyHtoDAsync_v2");
    get(host_allocate, "cuMemHostAlloc");
    get(host_free, "cuMemFreeHost");
    get(synchronize, "cuCtxSynchronize");
    return whole;
  }
};

/// One GPU that CUDA shows, with a buffer on it.
struct Site {
  CudaDevice device = 0;
  CudaContext context = nullptr;
  CudaPointer buffer = 0;
  size_t gpu = 0;  // index into HostTopology::gpus
};

class GpuTimer {
 public:
  GpuTimer(Driver& driver, const HostTopology& host, std::vector<Measurement>& out)
      : d_(driver), host_(host), out_(out) {}
  ~GpuTimer() {
    for (const Site& site : sites_) {
      d_.set(site.context);
      if (site.buffer != 0) d_.free(site.buffer);
      d_.release(site.device);
    }
  }
  GpuTimer(const GpuTimer&) = delete;
  GpuTimer& operator=(const GpuTimer&) = delete;

  void run() {
    int count = 0;
    if (d_.init(0) != 0 || d_.count(&count) != 0) return;
    for (int i = 0; i < count; ++i) open(i);
    for (const Site& from : sites_) host_to_gpu(from);
    for (const Site& from : sites_)
      for (const Site& to : sites_)
        if (&from != &to) gpu_to_gpu(from, to);
  }

 private:
  static constexpr size_t kBytes = size_t{256} << 20;
  static constexpr int kCopies = 8;
  Driver& d_;
  const HostTopology& host_;
  std::vector<Measurement>& out_;
  std::vector<Site> sites_;

  void open(int index) {
    Site site;
    char text[64] = {};
    if (d_.device(&site.device, index) != 0 || d_.busid(text, sizeof(text), site.device) != 0)
      return;
    const std::string busid = pci_address(text);
    const auto known = std::ranges::find(host_.gpus, busid, &Gpu::busid);
    if (known == host_.gpus.end() || d_.retain(&site.context, site.device) != 0) return;
    site.gpu = static_cast<size_t>(known - host_.gpus.begin());
    if (d_.set(site.context) != 0 || d_.allocate(&site.buffer, kBytes) != 0) site.buffer = 0;
    sites_.push_back(site);
  }

  /// Seconds for kCopies of `copy`; nullopt when it fails.
  template <class Copy>
  std::optional<double> timed(Copy copy) {
    if (copy() != 0 || d_.synchronize() != 0) return std::nullopt;  // warm
    const double start = monotonic_s();
    for (int i = 0; i < kCopies; ++i)
      if (copy() != 0) return std::nullopt;
    if (d_.synchronize() != 0) return std::nullopt;
    return monotonic_s() - start;
  }

  void host_to_gpu(const Site& to) {
    if (to.buffer == 0 || d_.set(to.context) != 0) return;
    void* pinned = nullptr;
    if (d_.host_allocate(&pinned, kBytes, 0) != 0) return;
    const auto seconds = timed([&] { return d_.copy_up(to.buffer, pinned, kBytes, nullptr); });
    d_.host_free(pinned);
    if (seconds)
      out_.push_back({.kind = "gpu-host",
                      .a = label(host_.gpus[to.gpu]),
                      .b = "host memory",
                      .gbytes_per_s = kCopies * static_cast<double>(kBytes) / *seconds / 1e9,
                      .promise_gbytes_per_s = host_.gpus[to.gpu].pci_gbytes_per_s});
  }

  void gpu_to_gpu(const Site& from, const Site& to) {
    if (from.buffer == 0 || to.buffer == 0 || d_.set(from.context) != 0) return;
    d_.enable_peer(to.context,
                   0);  // refused where there is none: the driver then goes through memory
    const auto seconds = timed([&] {
      return d_.copy_peer(to.buffer, to.context, from.buffer, from.context, kBytes, nullptr);
    });
    if (seconds)
      out_.push_back({.kind = "gpu-gpu",
                      .a = label(host_.gpus[from.gpu]),
                      .b = label(host_.gpus[to.gpu]),
                      .gbytes_per_s = kCopies * static_cast<double>(kBytes) / *seconds / 1e9,
                      .promise_gbytes_per_s = host_.gpu_gpu[from.gpu][to.gpu].gbytes_per_s});
  }
};

struct Unload {
  void operator()(void* library) const { dlclose(library); }
};

}  // namespace

void measure_gpu_links(const HostTopology& host, const std::string& library,
                       std::vector<Measurement>& out) {
  if (host.gpus.empty()) return;
  const std::unique_ptr<void, Unload> handle(dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL));
  Driver driver;
  if (!handle || !driver.load(handle.get())) return;
  GpuTimer(driver, host, out).run();
}

}  // namespace r1::launch
