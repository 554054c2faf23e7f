// Memory and streams of a device, behind one seam: the CPU backend is built in, the CUDA backend is a shared library
// that a rank loads only when it uses a GPU (a CPU job loads no CUDA library).
#pragma once

#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "runtime/device/tensor.h"

namespace r1 {

/// A point in a stream's work. Opaque; created and destroyed through the backend. CPU streams have run when a call
/// returns, so their events are empty and nothing waits.
struct Event {
  void* handle = nullptr;
};

/// Recorded work that can be launched again. Opaque; GPUs only.
struct Graph {
  void* handle = nullptr;
};

/// What a device offers to its owners (Buffer, Arena) and to staging code. One instance a device kind. All inline: the CUDA
/// library derives from it and links nothing of the program.
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
  /// `priority`: of streams that compete for the device the one with the lower number goes first; 0 is the computation's.
  /// The nearest that the device has is taken.
  [[nodiscard]] virtual Stream create_stream(Device d, int priority = 0) = 0;
  virtual void destroy_stream(const Stream& s) noexcept = 0;

  // ---- order between streams; the defaults serve devices whose streams run each call at once
  [[nodiscard]] virtual Event create_event(Device, bool /*timing*/) { return {}; }
  virtual void destroy_event(const Event&) noexcept {}
  virtual void record(const Event&, const Stream&) {}
  /// Work enqueued on the stream after this call waits for the event.
  virtual void wait(const Stream&, const Event&) {}
  /// The same for an event that is recorded outside of any capture, while the stream may capture: then each launch of the graph
  /// waits for the record that came last before it.
  virtual void wait_outside(const Stream&, const Event&) {}
  /// True when all work before the record has finished; throws when the device failed.
  [[nodiscard]] virtual bool done(const Event&) { return true; }
  /// Waits on the host.
  virtual void synchronize(const Event&) {}
  /// Between two timing events that are done.
  [[nodiscard]] virtual double elapsed_us(const Event&, const Event&) { return 0; }

  // ---- graphs, where captures() says so
  [[nodiscard]] virtual bool captures() const { return false; }
  /// What is enqueued on `s` (and on streams joined to it by events) until end_capture becomes a graph and does not run.
  virtual void begin_capture(const Stream&) { throw InternalError("this device has no graphs"); }
  [[nodiscard]] virtual Graph end_capture(const Stream&) { throw InternalError("this device has no graphs"); }
  /// Ends a capture that went wrong; never throws.
  virtual void abandon_capture(const Stream&) noexcept {}
  virtual void launch(const Graph&, const Stream&) { throw InternalError("this device has no graphs"); }
  virtual void destroy_graph(const Graph&) noexcept {}

  // ---- host memory that the device copies from and to at full rate, without a host thread waiting
  [[nodiscard]] virtual void* allocate_pinned(size_t bytes) {
    void* p = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
    if (p == nullptr) throw MemoryError("{} bytes of host memory are not to be had", bytes);
    return p;
  }
  virtual void release_pinned(void* p) noexcept { std::free(p); }

  // ---- profiler ranges (NVTX)
  virtual void range_push(const char* /*name*/) {}
  virtual void range_pop() {}
};

/// A profiler range for a scope.
class ProfilerRange {
 public:
  ProfilerRange(DeviceBackend& backend, const char* name) : backend_(backend) { backend_.range_push(name); }
  ~ProfilerRange() { backend_.range_pop(); }
  ProfilerRange(const ProfilerRange&) = delete;
  ProfilerRange& operator=(const ProfilerRange&) = delete;

 private:
  DeviceBackend& backend_;
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

/// Owns a block of pinned host memory of a device kind. Move-only.
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  /// Throws MemoryError when the host cannot give (or lock) them.
  PinnedBuffer(DeviceKind kind, size_t bytes);
  PinnedBuffer(PinnedBuffer&& o) noexcept;
  PinnedBuffer& operator=(PinnedBuffer&& o) noexcept;
  ~PinnedBuffer();
  [[nodiscard]] void* data() const { return data_; }
  [[nodiscard]] size_t bytes() const { return bytes_; }

 private:
  DeviceKind kind_ = DeviceKind::kCpu;
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
