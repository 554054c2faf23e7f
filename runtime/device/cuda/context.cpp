#include "runtime/device/cuda/context.h"

#include <cuda_runtime.h>

#include <algorithm>

#include "runtime/core/error.h"
#include "runtime/device/cuda/attention_plans.h"
#include "runtime/device/cuda/check.h"
#include "runtime/device/cuda/gemm_plans.h"

namespace r1::cuda {
namespace {

DeviceInfo read_info(int index) {
  cudaDeviceProp p{};
  CUDA_CHECK(cudaGetDeviceProperties(&p, index));
  DeviceInfo info;
  info.name = p.name;
  info.multiprocessors = p.multiProcessorCount;
  info.major = p.major;
  info.minor = p.minor;
  info.total_bytes = p.totalGlobalMem;
  info.l2_bytes = static_cast<size_t>(p.l2CacheSize);
  info.shared_bytes_per_block = p.sharedMemPerBlockOptin;
  const auto* u = reinterpret_cast<const unsigned char*>(p.uuid.bytes);
  info.uuid = "GPU-";
  for (int i = 0; i < 16; ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) info.uuid += '-';
    info.uuid += fmt::format("{:02x}", u[i]);
  }
  char pci[32] = {};
  if (cudaDeviceGetPCIBusId(pci, sizeof(pci), index) == cudaSuccess) info.pci = pci;
  CUDA_CHECK(cudaDriverGetVersion(&info.driver_cuda));
  CUDA_CHECK(cudaRuntimeGetVersion(&info.runtime_cuda));
  info.cublaslt_version = cublasLtGetVersion();
  return info;
}

}  // namespace

DeviceScope::DeviceScope(int device) {
  int current = -1;
  CUDA_CHECK(cudaGetDevice(&current));
  if (current == device) return;
  CUDA_CHECK(cudaSetDevice(device));
  before_ = current;
}

DeviceScope::~DeviceScope() {
  if (before_ >= 0) (void)cudaSetDevice(before_);
}

Scratch::~Scratch() {
  for (void* p : blocks_) (void)cudaFree(p);
}

void* Scratch::get(size_t bytes, cudaStream_t stream) {
  if (bytes <= current_) return blocks_.empty() ? nullptr : blocks_.back();
  cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
  CUDA_CHECK(cudaStreamIsCapturing(stream, &capturing));
  R1_CHECK(capturing == cudaStreamCaptureStatusNone,
           "a captured stream needs {} bytes of scratch and has {}: run the step once before "
           "capture, or reserve",
           bytes, current_);
  const size_t wanted = std::max(bytes, 2 * current_);
  void* p = nullptr;
  CUDA_CHECK(cudaMalloc(&p, wanted));
  allocations_.fetch_add(1, std::memory_order_relaxed);
  blocks_.push_back(p);
  current_ = wanted;
  owned_ += wanted;
  return p;
}

DeviceContext::DeviceContext(int index, const Settings& settings, std::atomic<int64_t>& allocations)
    : index_(index), settings_(settings), allocations_(allocations), info_(read_info(index)) {
  if (info_.major < 8)
    throw DeviceError(
        "cuda:{} is {} with compute capability {}.{}; this build needs 8.0 (A100) or newer", index,
        info_.name, info_.major, info_.minor);
}

DeviceContext::~DeviceContext() {
  if (lt_ != nullptr) (void)cublasLtDestroy(lt_);
}

cublasLtHandle_t DeviceContext::cublaslt() {
  const std::scoped_lock lock(mutex_);
  if (lt_ == nullptr) CUBLAS_CHECK(cublasLtCreate(&lt_));
  return lt_;
}

GemmPlans& DeviceContext::gemm() {
  const std::scoped_lock lock(mutex_);
  if (!gemm_) gemm_ = std::make_unique<GemmPlans>(*this);
  return *gemm_;
}

AttentionPlans& DeviceContext::attention() {
  const std::scoped_lock lock(mutex_);
  if (!attention_) attention_ = std::make_unique<AttentionPlans>(index_, settings_);
  return *attention_;
}

StreamMemory& DeviceContext::memory_of(cudaStream_t stream) {
  const std::scoped_lock lock(mutex_);
  auto& entry = streams_[stream];
  if (!entry) entry = std::make_unique<StreamMemory>(allocations_);
  return *entry;
}

void* DeviceContext::scratch(size_t bytes, cudaStream_t stream) {
  return memory_of(stream).scratch.get(bytes, stream);
}

void* DeviceContext::gemm_workspace(cudaStream_t stream) {
  return memory_of(stream).gemm.get(kGemmWorkspaceBytes, stream);
}

void DeviceContext::forget_stream(cudaStream_t stream) noexcept {
  const std::scoped_lock lock(mutex_);
  streams_.erase(stream);
}

size_t DeviceContext::owned_bytes() {
  const std::scoped_lock lock(mutex_);
  size_t total = 0;
  for (const auto& [stream, memory] : streams_)
    total += memory->scratch.owned_bytes() + memory->gemm.owned_bytes();
  return total;
}

}  // namespace r1::cuda
