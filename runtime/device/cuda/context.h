// What the CUDA library keeps per device: library handles, workspaces, plan caches. Owned by the
// backend.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "runtime/device/cuda/cuda_api.h"
#include "runtime/device/tensor.h"

namespace r1::cuda {

class GemmPlans;       // runtime/device/cuda/gemm_plans.h
class AttentionPlans;  // runtime/device/cuda/attention_plans.h

/// Choices made for the whole process before the first operation.
struct Settings {
  std::atomic<bool> deterministic{false};
  Tuning tuning = Tuning::kTimed;
  std::string cache_dir;
};

/// Makes `device` current for a scope.
class DeviceScope {
 public:
  explicit DeviceScope(int device);
  ~DeviceScope();
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  int before_ = -1;
};

/// Temporary device memory of one stream. Grows, never shrinks, and keeps what it handed out before
/// (a captured graph may still name it), so work on the stream needs no synchronisation.
class Scratch {
 public:
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  explicit Scratch(std::atomic<int64_t>& allocations) : allocations_(allocations) {}
  ~Scratch();
  /// At least `bytes`, 256-byte aligned; valid for work enqueued on the stream until the next call
  /// of get(). Throws InternalError while the stream captures and more is needed than there is: run
  /// the step once, or reserve.
  [[nodiscard]] void* get(size_t bytes, cudaStream_t stream);
  [[nodiscard]] size_t owned_bytes() const { return owned_; }

 private:
  std::atomic<int64_t>& allocations_;
  std::vector<void*> blocks_;
  size_t current_ = 0;  // bytes of blocks_.back()
  size_t owned_ = 0;
};

/// Temporary memory of one stream: reductions and attention offsets in one, the GEMM library's in
/// the other.
struct StreamMemory {
  explicit StreamMemory(std::atomic<int64_t>& allocations)
      : scratch(allocations), gemm(allocations) {}
  Scratch scratch, gemm;
};

class DeviceContext {
 public:
  DeviceContext(int index, const Settings& settings, std::atomic<int64_t>& allocations);
  ~DeviceContext();
  DeviceContext(const DeviceContext&) = delete;
  DeviceContext& operator=(const DeviceContext&) = delete;

  [[nodiscard]] int index() const { return index_; }
  [[nodiscard]] int multiprocessors() const { return info_.multiprocessors; }
  [[nodiscard]] const DeviceInfo& info() const { return info_; }
  [[nodiscard]] const Settings& settings() const { return settings_; }
  [[nodiscard]] cublasLtHandle_t cublaslt();
  [[nodiscard]] GemmPlans& gemm();
  [[nodiscard]] AttentionPlans& attention();
  /// Reduction scratch of a stream.
  [[nodiscard]] void* scratch(size_t bytes, cudaStream_t stream);
  [[nodiscard]] void* gemm_workspace(cudaStream_t stream);
  /// Bytes of the GEMM workspace: what cuBLASLt may use for split-K and stream-K partial sums.
  static constexpr size_t kGemmWorkspaceBytes = size_t{64} << 20;
  void forget_stream(cudaStream_t stream) noexcept;
  [[nodiscard]] size_t owned_bytes();
  [[nodiscard]] bool has_gemm() const { return gemm_ != nullptr; }
  [[nodiscard]] bool has_attention() const { return attention_ != nullptr; }

 private:
  StreamMemory& memory_of(cudaStream_t stream);

  int index_;
  const Settings& settings_;
  std::atomic<int64_t>& allocations_;
  DeviceInfo info_;
  std::mutex mutex_;
  cublasLtHandle_t lt_ = nullptr;
  std::unique_ptr<GemmPlans> gemm_;
  std::unique_ptr<AttentionPlans> attention_;
  std::map<cudaStream_t, std::unique_ptr<StreamMemory>> streams_;
};

/// The context of the device a stream belongs to.
[[nodiscard]] DeviceContext& context_of(const Stream& s);
[[nodiscard]] inline cudaStream_t handle_of(const Stream& s) {
  return static_cast<cudaStream_t>(s.handle);
}

/// One operation's view: its device is current, `stream` its stream.
class Launch {
 public:
  explicit Launch(const Stream& s)
      : scope_(s.device.index), stream(handle_of(s)), ctx(context_of(s)) {}

 private:
  DeviceScope scope_;

 public:
  cudaStream_t stream;
  DeviceContext& ctx;
};

}  // namespace r1::cuda
