// Memory and streams of a device, behind one seam: the CPU backend is built in, the CUDA backend is a shared library
// that a rank loads only when it uses a GPU (a CPU job loads no CUDA library).
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "runtime/device/tensor.h"

namespace r1 {

/// What a device offers to its owners (Buffer, Arena) and to staging code. One instance a device kind.
class DeviceBackend {
 public:
  virtual ~DeviceBackend() = default;
  /// Throws MemoryError (wanted and free bytes) when the device cannot give them. 256-byte aligned.
  virtual void* allocate(Device d, size_t bytes) = 0;
  virtual void release(Device d, void* p) noexcept = 0;
  /// Enqueues a copy of `bytes` between any two of host and this device's memory; on CPU it runs at once.
  virtual void copy(void* dst, const void* src, size_t bytes, const Stream& s) = 0;
  virtual void fill_zero(void* dst, size_t bytes, const Stream& s) = 0;
  /// Waits on the host until all work enqueued on `s` is done.
  virtual void synchronize(const Stream& s) = 0;
  [[nodiscard]] virtual Stream create_stream(Device d) = 0;
  virtual void destroy_stream(const Stream& s) noexcept = 0;
};

/// The backend of a device kind. CUDA: loads libr1run_cuda.so beside the executable on first use; throws DeviceError
/// with the loader's message when it is missing or cannot start.
[[nodiscard]] DeviceBackend& backend_of(DeviceKind kind);

/// Owns a block of device memory. Move-only.
class Buffer {
 public:
  Buffer() = default;
  Buffer(Device d, size_t bytes);
  Buffer(Buffer&& o) noexcept;
  Buffer& operator=(Buffer&& o) noexcept;
  ~Buffer();
  [[nodiscard]] void* data() const { return data_; }
  [[nodiscard]] size_t bytes() const { return bytes_; }
  [[nodiscard]] Device device() const { return device_; }

 private:
  Device device_;
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

/// A declared tensor: what a plan lists and an arena lays out.
struct TensorSpec {
  std::string name;
  Shape shape;
  DType dtype = DType::kF32;
  [[nodiscard]] size_t bytes() const { return static_cast<size_t>(shape.numel() * dtype_bytes(dtype)); }
};

/// Alignment of every tensor in an arena, in bytes (a GEMM's and a vector load's needs on both devices).
inline constexpr size_t kArenaAlign = 256;
[[nodiscard]] constexpr size_t align_up(size_t n, size_t a = kArenaAlign) { return (n + a - 1) / a * a; }

/// Bytes an arena of these specs takes: each tensor rounded up to kArenaAlign.
[[nodiscard]] size_t arena_bytes(const std::vector<TensorSpec>& specs);

/// One allocation that holds the declared tensors one after the other.
class Arena {
 public:
  Arena() = default;
  Arena(Device d, std::vector<TensorSpec> specs);
  [[nodiscard]] Tensor at(size_t i) const { return tensors_.at(i); }
  [[nodiscard]] const std::vector<TensorSpec>& specs() const { return specs_; }
  [[nodiscard]] size_t bytes() const { return buffer_.bytes(); }

 private:
  std::vector<TensorSpec> specs_;
  std::vector<Tensor> tensors_;
  Buffer buffer_;
};

}  // namespace r1
