// The CUDA side of the device seam, and the library's entry points.
#include <cuda_runtime.h>
#include <nvtx3/nvToolsExt.h>
#include <sched.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <map>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "runtime/core/error.h"
#include "runtime/device/cuda/attention_plans.h"
#include "runtime/device/cuda/check.h"
#include "runtime/device/cuda/context.h"
#include "runtime/device/cuda/gemm_plans.h"
#include "runtime/device/device.h"

namespace r1::cuda {
namespace {

class Backend final : public Api {
 public:
  // ---- DeviceBackend
  void* allocate(Device d, size_t bytes) override {
    context(d.index);  // names a missing driver or GPU before the allocation can
    const DeviceScope scope(d.index);
    void* p = nullptr;
    const cudaError_t e = cudaMalloc(&p, bytes);
    if (e == cudaErrorMemoryAllocation) {
      (void)cudaGetLastError();
      size_t free_bytes = 0, total_bytes = 0;
      CUDA_CHECK(cudaMemGetInfo(&free_bytes, &total_bytes));
      throw MemoryError(
          "cuda:{} ({}): {:.2f} GiB wanted, {:.2f} of {:.2f} GiB free; see nvidia-smi for other "
          "processes on this GPU, "
          "or use more ranks, a smaller micro-batch, --recompute or --state-dtype bf16",
          d.index, context(d.index).info().name, gib(bytes), gib(free_bytes), gib(total_bytes));
    }
    CUDA_CHECK(e);
    allocations_.fetch_add(1, std::memory_order_relaxed);
    return p;
  }
  void release(Device d, void* p) noexcept override {
    int before = -1;
    (void)cudaGetDevice(&before);
    (void)cudaSetDevice(d.index);
    (void)cudaFree(p);
    if (before >= 0) (void)cudaSetDevice(before);
  }
  void copy(void* dst, const void* src, size_t bytes, const Stream& s) override {
    if (bytes == 0) return;
    const DeviceScope scope(s.device.index);
    // A copy to pageable memory waits for the stream inside the driver, where nothing can end the wait.
    if (wait_hook_ && is_pageable(dst)) synchronize(s);
    CUDA_CHECK(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDefault, handle_of(s)));
  }
  void fill_zero(void* dst, size_t bytes, const Stream& s) override {
    if (bytes == 0) return;
    const DeviceScope scope(s.device.index);
    CUDA_CHECK(cudaMemsetAsync(dst, 0, bytes, handle_of(s)));
  }
  void synchronize(const Stream& s) override {
    const DeviceScope scope(s.device.index);
    if (wait_hook_) poll([&] { return cudaStreamQuery(handle_of(s)); });
    else CUDA_CHECK(cudaStreamSynchronize(handle_of(s)));
  }
  void destroy_stream(const Stream& s) noexcept override {
    int before = -1;
    (void)cudaGetDevice(&before);
    (void)cudaSetDevice(s.device.index);
    (void)cudaStreamSynchronize(handle_of(s));  // its scratch is freed below
    {
      const std::scoped_lock lock(mutex_);
      const auto it = contexts_.find(s.device.index);
      if (it != contexts_.end()) it->second->forget_stream(handle_of(s));
    }
    (void)cudaStreamDestroy(handle_of(s));
    if (before >= 0) (void)cudaSetDevice(before);
  }

  // ---- Api
  int device_count(std::string* why) override {
    int count = 0, driver = 0, runtime = 0;
    (void)cudaDriverGetVersion(&driver);
    (void)cudaRuntimeGetVersion(&runtime);
    const cudaError_t e = cudaGetDeviceCount(&count);
    if (e == cudaSuccess && count > 0) return count;
    (void)cudaGetLastError();
    if (why != nullptr) {
      if (driver == 0)
        *why = "no NVIDIA driver is loaded on this host";
      else if (e == cudaErrorInsufficientDriver || driver / 1000 < runtime / 1000)
        *why = fmt::format(
            "the NVIDIA driver offers CUDA {}.{}, this build needs {}.{}: install driver 580 or "
            "newer",
            driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
      else
        *why = fmt::format("{} ({}); check nvidia-smi and CUDA_VISIBLE_DEVICES",
                           cudaGetErrorString(e), cudaGetErrorName(e));
    }
    return 0;
  }
  DeviceInfo device_info(Device d) override {
    DeviceInfo info = context(d.index).info();
    const DeviceScope scope(d.index);
    CUDA_CHECK(cudaMemGetInfo(&info.free_bytes, &info.total_bytes));
    return info;
  }
  size_t own_bytes(Device d) override { return context(d.index).owned_bytes(); }
  int64_t allocation_count() const override { return allocations_.load(std::memory_order_relaxed); }
  void reserve(const Stream& s, size_t scratch_bytes) override {
    const Launch l(s);
    (void)l.ctx.gemm_workspace(l.stream);
    (void)l.ctx.scratch(scratch_bytes, l.stream);
  }
  void set_deterministic(bool on) override { settings_.deterministic = on; }
  void set_tuning(Tuning mode, const std::string& cache_dir) override {
    const std::scoped_lock lock(mutex_);
    settings_.tuning = mode;
    settings_.cache_dir = cache_dir;
  }
  void save_tuning() override {
    const std::scoped_lock lock(mutex_);
    for (auto& [index, ctx] : contexts_)
      if (ctx->has_gemm()) ctx->gemm().save();
  }
  std::vector<GemmChoice> gemm_choices() override {
    const std::scoped_lock lock(mutex_);
    std::vector<GemmChoice> all;
    for (auto& [index, ctx] : contexts_) {
      if (!ctx->has_gemm()) continue;
      const auto some = ctx->gemm().choices();
      all.insert(all.end(), some.begin(), some.end());
    }
    return all;
  }
  std::vector<std::pair<std::string, int64_t>> attention_plans() override {
    const std::scoped_lock lock(mutex_);
    std::vector<std::pair<std::string, int64_t>> all;
    for (auto& [index, ctx] : contexts_) {
      if (!ctx->has_attention()) continue;
      const auto some = ctx->attention().plans();
      all.insert(all.end(), some.begin(), some.end());
    }
    return all;
  }
  Stream create_stream(Device d, int priority) override {
    context(d.index);
    const DeviceScope scope(d.index);
    cudaStream_t stream = nullptr;
    // The driver counts from 0, its last, to a negative number, its first: what goes behind the computation takes 0.
    CUDA_CHECK(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, std::min(priority - 1, 0)));
    return {.device = d, .handle = stream};
  }
  Event create_event(Device d, bool timing) override {
    context(d.index);
    const DeviceScope scope(d.index);
    cudaEvent_t e = nullptr;
    CUDA_CHECK(cudaEventCreateWithFlags(&e, timing ? cudaEventDefault : cudaEventDisableTiming));
    return {e};
  }
  void destroy_event(const Event& e) noexcept override {
    if (e.handle != nullptr) (void)cudaEventDestroy(event(e));
  }
  void record(const Event& e, const Stream& s) override {
    const DeviceScope scope(s.device.index);
    CUDA_CHECK(cudaEventRecord(event(e), handle_of(s)));
  }
  void wait(const Stream& s, const Event& e) override {
    const DeviceScope scope(s.device.index);
    CUDA_CHECK(cudaStreamWaitEvent(handle_of(s), event(e), 0));
  }
  void wait_outside(const Stream& s, const Event& e) override {
    const DeviceScope scope(s.device.index);
    cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
    CUDA_CHECK(cudaStreamIsCapturing(handle_of(s), &capturing));
    CUDA_CHECK(cudaStreamWaitEvent(handle_of(s), event(e),
                                   capturing == cudaStreamCaptureStatusNone ? cudaEventWaitDefault : cudaEventWaitExternal));
  }
  bool done(const Event& e) override {
    const cudaError_t status = cudaEventQuery(event(e));
    if (status == cudaErrorNotReady) {
      (void)cudaGetLastError();
      return false;
    }
    CUDA_CHECK(status);
    return true;
  }
  void synchronize(const Event& e) override {
    if (wait_hook_) poll([&] { return cudaEventQuery(event(e)); });
    else CUDA_CHECK(cudaEventSynchronize(event(e)));
  }
  double elapsed_us(const Event& begin, const Event& end) override {
    float ms = 0;
    CUDA_CHECK(cudaEventElapsedTime(&ms, event(begin), event(end)));
    return static_cast<double>(ms) * 1e3;
  }
  bool captures() const override { return true; }
  void begin_capture(const Stream& s) override {
    const DeviceScope scope(s.device.index);
    CUDA_CHECK(cudaStreamBeginCapture(handle_of(s), cudaStreamCaptureModeThreadLocal));
  }
  Graph end_capture(const Stream& s) override {
    const DeviceScope scope(s.device.index);
    cudaGraph_t graph = nullptr;
    CUDA_CHECK(cudaStreamEndCapture(handle_of(s), &graph));
    cudaGraphExec_t exec = nullptr;
    const cudaError_t e = cudaGraphInstantiate(&exec, graph, 0);
    (void)cudaGraphDestroy(graph);
    CUDA_CHECK(e);
    return {exec};
  }
  void abandon_capture(const Stream& s) noexcept override {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    if (cudaStreamIsCapturing(handle_of(s), &status) != cudaSuccess)
      status = cudaStreamCaptureStatusInvalidated;
    if (status != cudaStreamCaptureStatusNone) {
      cudaGraph_t graph = nullptr;
      (void)cudaStreamEndCapture(handle_of(s), &graph);
      if (graph != nullptr) (void)cudaGraphDestroy(graph);
    }
    (void)cudaGetLastError();
  }
  void launch(const Graph& g, const Stream& s) override {
    const DeviceScope scope(s.device.index);
    CUDA_CHECK(cudaGraphLaunch(static_cast<cudaGraphExec_t>(g.handle), handle_of(s)));
  }
  void destroy_graph(const Graph& g) noexcept override {
    if (g.handle != nullptr) (void)cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(g.handle));
  }
  void* allocate_pinned(size_t bytes) override {
    void* p = bytes >= kLargePinned ? register_touched(bytes) : nullptr;
    if (p != nullptr) return p;
    const cudaError_t e = cudaHostAlloc(&p, bytes, cudaHostAllocPortable);
    if (e == cudaErrorMemoryAllocation) {
      (void)cudaGetLastError();
      throw MemoryError("{:.2f} GiB of pinned host memory are not to be had: free memory, or raise "
                        "the limit of locked memory (ulimit -l)", gib(bytes));
    }
    CUDA_CHECK(e);
    return p;
  }
  void release_pinned(void* p) noexcept override {
    decltype(registered_)::node_type own;
    {
      const std::scoped_lock lock(mutex_);
      own = registered_.extract(p);
    }
    if (own.empty()) {
      (void)cudaFreeHost(p);
      return;
    }
    (void)cudaHostUnregister(p);
    (void)munmap(p, own.mapped());
  }
  void set_wait_hook(std::function<void(std::chrono::nanoseconds)> hook) override { wait_hook_ = std::move(hook); }
  void range_push(const char* name) override { nvtxRangePushA(name); }
  void range_pop() override { nvtxRangePop(); }

  DeviceContext& context(int index) {
    const std::scoped_lock lock(mutex_);
    auto& entry = contexts_[index];
    if (!entry) {
      std::string why;
      const int count = device_count(&why);
      if (count == 0) throw DeviceError("no GPU can be used: {}; or run with --device cpu", why);
      if (index < 0 || index >= count)
        throw UsageError(
            "cuda:{} does not exist: {} GPU(s) are visible to this process (CUDA_VISIBLE_DEVICES)",
            index, count);
      const DeviceScope scope(index);
      entry = std::make_unique<DeviceContext>(index, settings_, allocations_);
    }
    return *entry;
  }

 private:
  // From here on the driver's own allocation, which clears the pages with one thread, takes seconds.
  static constexpr size_t kLargePinned = size_t{256} << 20;
  // Pinned memory whose pages all CPUs of this process have made, in large pages where the system gives them; nullptr: not to
  // be had in this way.
  void* register_touched(size_t bytes) {
    int device = 0, at_its_address = 0;
    CUDA_CHECK(cudaGetDevice(&device));
    CUDA_CHECK(cudaDeviceGetAttribute(&at_its_address, cudaDevAttrCanUseHostPointerForRegisteredMem, device));
    if (at_its_address == 0) return nullptr;
    void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return nullptr;
    (void)madvise(p, bytes, MADV_HUGEPAGE);
    constexpr size_t kPiece = size_t{64} << 20, kPage = 4096;
    constexpr int kMostThreads = 16;
    std::atomic<size_t> next{0};
    const auto touch = [&] {
      for (size_t begin; (begin = next.fetch_add(kPiece)) < bytes;)
        for (size_t i = begin; i < std::min(bytes, begin + kPiece); i += kPage) static_cast<volatile char*>(p)[i] = 0;
    };
    cpu_set_t cpus;
    const int mine = sched_getaffinity(0, sizeof cpus, &cpus) == 0 ? CPU_COUNT(&cpus) : 1;
    {
      std::vector<std::jthread> threads;
      try {
        for (int i = 1; i < std::min(mine, kMostThreads); ++i) threads.emplace_back(touch);
      } catch (const std::system_error&) {
        // Fewer threads then.
      }
      touch();
    }
    if (cudaHostRegister(p, bytes, cudaHostRegisterPortable | cudaHostRegisterMapped) != cudaSuccess) {
      (void)cudaGetLastError();
      (void)munmap(p, bytes);
      return nullptr;
    }
    const std::scoped_lock lock(mutex_);
    registered_[p] = bytes;
    return p;
  }
  // Until `query` no longer says that work is under way. Yields: ranks may share cores.
  template <class Query>
  void poll(Query query) {
    using Clock = std::chrono::steady_clock;
    constexpr auto kInterval = std::chrono::milliseconds(2);
    Clock::time_point begin{}, next{};
    for (;;) {
      const cudaError_t status = query();
      if (status != cudaErrorNotReady) {
        CUDA_CHECK(status);
        return;
      }
      (void)cudaGetLastError();
      const auto now = Clock::now();
      if (begin == Clock::time_point{}) {
        begin = now;
        next = now + kInterval;
      }
      if (now - begin > std::chrono::microseconds(100)) sched_yield();
      if (now < next) continue;
      next = now + kInterval;
      wait_hook_(now - begin);
    }
  }
  static bool is_pageable(const void* p) {
    cudaPointerAttributes a{};
    const cudaError_t e = cudaPointerGetAttributes(&a, p);
    if (e != cudaSuccess) (void)cudaGetLastError();
    return e != cudaSuccess || a.type == cudaMemoryTypeUnregistered;
  }
  static cudaEvent_t event(const Event& e) { return static_cast<cudaEvent_t>(e.handle); }
  static double gib(size_t bytes) { return static_cast<double>(bytes) / 0x1p30; }

  std::function<void(std::chrono::nanoseconds)> wait_hook_;
  std::mutex mutex_;
  Settings settings_;
  std::atomic<int64_t> allocations_{0};
  std::map<void*, size_t> registered_;  // pinned memory that is not the driver's own
  std::map<int, std::unique_ptr<DeviceContext>> contexts_;
};

// One instance a process, never destroyed: the driver may be gone before static destructors run.
Backend& backend() {
  static Backend& instance = *new Backend;
  return instance;
}

}  // namespace

DeviceContext& context_of(const Stream& s) { return backend().context(s.device.index); }

}  // namespace r1::cuda

extern "C" r1::DeviceBackend* r1run_cuda_backend() { return &r1::cuda::backend(); }
extern "C" r1::cuda::Api* r1run_cuda_api() { return &r1::cuda::backend(); }
