// A GPU's memory and events shared between the processes of a host, for comm/ipc.
#include "comm/ipc/ipc_memory.h"

#include <cuda_runtime_api.h>

#include <cstring>

#include "comm/cuda/comm_kernels.h"
#include "runtime/device/cuda/check.h"
#include "runtime/device/cuda/context.h"
#include "runtime/device/cuda/cuda_api.h"
#include "runtime/device/device.h"

extern "C" r1::cuda::Api* r1run_cuda_api();  // of this library (runtime/device/cuda/backend.cpp)

namespace r1::comm {
namespace {

using r1::cuda::DeviceScope;
using r1::cuda::handle_of;

static_assert(sizeof(cudaIpcMemHandle_t) == sizeof(IpcHandle) &&
              sizeof(cudaIpcEventHandle_t) == sizeof(IpcHandle));

class CudaIpcMemory final : public IpcMemory {
 public:
  explicit CudaIpcMemory(int index)
      : device_{DeviceKind::kCuda, index}, backend_(*r1run_cuda_api()) {
    uuid_ = r1::cuda::context_of({.device = device_, .handle = nullptr}).info().uuid;
  }
  DeviceKind kind() const override { return DeviceKind::kCuda; }
  Device device() const override { return device_; }
  std::string device_id() const override { return uuid_; }

  void* allocate(size_t bytes) override { return backend_.allocate(device_, bytes); }
  void release(void* p) noexcept override { backend_.release(device_, p); }
  void copy(void* dst, const void* src, size_t bytes, const Stream& s) override {
    if (bytes != 0 && dst != src) backend_.copy(dst, src, bytes, on(s));
  }
  void reduce(DType dtype, ReduceOp op, std::span<const void* const> sources, void* out,
              int64_t numel, const Stream& s) override {
    if (numel == 0) return;
    const DeviceScope scope(device_.index);
    cuda::reduce_in_order(dtype, op, sources, out, numel, handle_of(s));
  }
  void synchronize(const Stream& s) override { backend_.synchronize(on(s)); }

  void* allocate_shared(size_t bytes, IpcHandle& handle) override {
    const DeviceScope scope(device_.index);
    void* p = backend_.allocate(device_, bytes);
    CUDA_CHECK(cudaMemset(p, 0, bytes));
    CUDA_CHECK(cudaDeviceSynchronize());
    cudaIpcMemHandle_t h;
    CUDA_CHECK(cudaIpcGetMemHandle(&h, p));
    std::memcpy(handle.data(), &h, sizeof h);
    return p;
  }
  void release_shared(void* p, size_t) noexcept override { backend_.release(device_, p); }
  void forget(const IpcHandle&) noexcept override {}
  void* open(const IpcHandle& handle, size_t) override {
    const DeviceScope scope(device_.index);
    cudaIpcMemHandle_t h;
    std::memcpy(&h, handle.data(), sizeof h);
    void* p = nullptr;
    CUDA_CHECK(cudaIpcOpenMemHandle(&p, h, cudaIpcMemLazyEnablePeerAccess));
    return p;
  }
  void close(void* p, size_t) noexcept override { (void)cudaIpcCloseMemHandle(p); }

  void* create_event(IpcHandle* handle) override {
    const DeviceScope scope(device_.index);
    cudaEvent_t e = nullptr;
    const unsigned flags =
        cudaEventDisableTiming | (handle != nullptr ? cudaEventInterprocess : 0U);
    CUDA_CHECK(cudaEventCreateWithFlags(&e, flags));
    if (handle != nullptr) {
      cudaIpcEventHandle_t h;
      CUDA_CHECK(cudaIpcGetEventHandle(&h, e));
      std::memcpy(handle->data(), &h, sizeof h);
    }
    return e;
  }
  void* open_event(const IpcHandle& handle) override {
    const DeviceScope scope(device_.index);
    cudaIpcEventHandle_t h;
    std::memcpy(&h, handle.data(), sizeof h);
    cudaEvent_t e = nullptr;
    CUDA_CHECK(cudaIpcOpenEventHandle(&e, h));
    return e;
  }
  void destroy_event(void* event) noexcept override {
    (void)cudaEventDestroy(static_cast<cudaEvent_t>(event));
  }
  void record(void* event, const Stream& s) override {
    const DeviceScope scope(device_.index);
    CUDA_CHECK(cudaEventRecord(static_cast<cudaEvent_t>(event), handle_of(s)));
  }
  void wait(const Stream& s, void* event) override {
    const DeviceScope scope(device_.index);
    CUDA_CHECK(cudaStreamWaitEvent(handle_of(s), static_cast<cudaEvent_t>(event), 0));
  }
  // What these streams carry another rank waits for: its blocks go before those of the products. The
  // driver takes the nearest priority it has.
  Stream create_stream() override { return backend_.create_stream(device_, -4); }
  void destroy_stream(const Stream& s) noexcept override { backend_.destroy_stream(s); }

  size_t kernel_bytes(int ranks) const override {
    return ranks <= cuda::kMaxPeers ? ipc_kernel_bytes(ranks) : 0;
  }
  std::unique_ptr<PeerKernels> make_kernels(int rank, const std::vector<void*>& areas) override {
    return cuda::make_peer_kernels(device_.index, rank, areas);
  }

 private:
  // Callers outside a training step may pass the default stream without a device.
  [[nodiscard]] Stream on(const Stream& s) const { return {.device = device_, .handle = s.handle}; }

  Device device_;
  r1::cuda::Api& backend_;
  std::string uuid_;
};

}  // namespace
}  // namespace r1::comm

extern "C" r1::comm::IpcMemory* r1run_ipc_memory(int device) {
  return new r1::comm::CudaIpcMemory(device);
}
