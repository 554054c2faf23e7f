// What the CUDA library offers beyond the seams DeviceBackend and KernelTable: devices, numerics,
// tuning. No CUDA header is needed to use it.
//
//     r1::cuda::Api& api = r1::cuda::api();  // runtime/device/cuda_library.h
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "runtime/device/device.h"

namespace r1::cuda {

/// What a plan and a start-up report need to know of a GPU.
struct DeviceInfo {
  std::string name;  ///< "NVIDIA H200"
  int multiprocessors = 0;
  int major = 0, minor = 0;  ///< compute capability
  size_t total_bytes = 0;    ///< device memory
  size_t free_bytes = 0;     ///< at the time of the call, all processes counted
  size_t l2_bytes = 0;
  size_t shared_bytes_per_block = 0;  ///< the opt-in limit
  std::string uuid;      ///< "GPU-xxxxxxxx-...", the same on every rank that uses this GPU
  std::string pci;       ///< "0000:17:00.0"
  int driver_cuda = 0;   ///< newest CUDA the driver offers, 13000 = 13.0
  int runtime_cuda = 0;  ///< of this build
  size_t cublaslt_version = 0;
};

/// How GEMM algorithms are chosen.
enum class Tuning : uint8_t {
  kTimed,      ///< time the leading candidates at a shape's first use; remembered on disk
  kHeuristic,  ///< the library's first answer: the same on every rank and every run
};

using r1::Event;
using r1::Graph;

/// The choice made for one GEMM shape, for reports.
struct GemmChoice {
  std::string shape;    ///< "TN bf16->bf16 m 1536 n 16384 k 8960 bias"
  int algo_rank = 0;    ///< position in the library's own order
  double first_us = 0;  ///< time of the library's first answer; 0 when it was not timed
  double best_us = 0;
};

class Api : public DeviceBackend {
 public:
  // ---- devices
  /// 0 when there is none; `why` then says so in words (no driver, driver too old, none visible).
  [[nodiscard]] virtual int device_count(std::string* why) = 0;
  [[nodiscard]] virtual DeviceInfo device_info(Device d) = 0;
  /// Device memory this library took for itself on `d` (GEMM workspaces, reduction scratch,
  /// staging), bytes.
  [[nodiscard]] virtual size_t own_bytes(Device d) = 0;
  /// Device allocations since start, by anybody who came through this library. Constant after step
  /// 0.
  [[nodiscard]] virtual int64_t allocation_count() const = 0;
  /// Takes GEMM workspace and at least `scratch_bytes` of reduction scratch for a stream now rather
  /// than at first use.
  virtual void reserve(const Stream& s, size_t scratch_bytes) = 0;

  // ---- numerics and tuning
  /// Bit-equal results from run to run: attention backward by the ordered algorithm. Other
  /// operations always are.
  virtual void set_deterministic(bool on) = 0;
  /// `cache_dir` empty: no file. The file is keyed by device and cuBLASLt version; a foreign or
  /// damaged one is ignored.
  virtual void set_tuning(Tuning mode, const std::string& cache_dir) = 0;
  /// Writes new choices to the cache file (merged with what other ranks wrote; renamed into place).
  virtual void save_tuning() = 0;
  [[nodiscard]] virtual std::vector<GemmChoice> gemm_choices() = 0;
  /// Attention shapes seen, as text, with cuDNN's workspace in bytes; -1: the own kernel runs
  /// (cuDNN has none).
  [[nodiscard]] virtual std::vector<std::pair<std::string, int64_t>> attention_plans() = 0;

  // ---- waiting
  /// Called every few milliseconds while the host waits for a stream or an event, with the time waited so far; what it
  /// throws ends the wait. A rank whose peer died would otherwise wait inside the driver for ever. Empty: wait there.
  virtual void set_wait_hook(std::function<void(std::chrono::nanoseconds waited)> hook) = 0;
};

}  // namespace r1::cuda
