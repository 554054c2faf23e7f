// Memory and events that processes of one host share, behind one seam: POSIX shared memory for CPU
// tensors (what tests run everywhere), CUDA IPC for a GPU's.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "comm/memory.h"

namespace r1::comm {

/// What one process gives another so that it can open a region or an event: a cudaIpc*Handle_t, or
/// a name.
using IpcHandle = std::array<char, 64>;

/// Collectives in one kernel a rank, which writes into the peers' memory and waits for flags there:
/// for ranks that all have a GPU of their own (kernels of ranks that share one would wait for each
/// other's time slices). Sums are formed in rank order, in fp32 for 16-bit types. All enqueue on s
/// and can be captured into a graph: the sequence numbers live on the device. Every call is made by
/// all ranks in the same order and, because the buffers are shared, on streams that are ordered
/// with each other.
class PeerKernels {
 public:
  virtual ~PeerKernels() = default;
  virtual void all_reduce(const Tensor& x, ReduceOp op, const Stream& s) = 0;
  virtual void all_gather(const Tensor& in, const Tensor& out, std::span<const int64_t> counts,
                          const Stream& s) = 0;
  virtual void reduce_scatter(const Tensor& in, const Tensor& out, std::span<const int64_t> counts,
                              const Stream& s) = 0;
};

class IpcMemory : public Memory {
 public:
  [[nodiscard]] virtual Device device() const = 0;
  /// The same text on every rank that uses this device, another on every other: a GPU's UUID.
  /// Empty: no matter.
  [[nodiscard]] virtual std::string device_id() const = 0;

  /// Zeroed memory that processes of this host can open with `handle`.
  [[nodiscard]] virtual void* allocate_shared(size_t bytes, IpcHandle& handle) = 0;
  virtual void release_shared(void* p, size_t bytes) noexcept = 0;
  /// Everybody has opened it: a name that would outlive the processes can go.
  virtual void forget(const IpcHandle& handle) noexcept = 0;
  /// Another process's region. Throws CommError with the system's or driver's text.
  [[nodiscard]] virtual void* open(const IpcHandle& handle, size_t bytes) = 0;
  virtual void close(void* p, size_t bytes) noexcept = 0;

  /// Events; a null `handle`: for this process alone. An event that was never recorded is over.
  [[nodiscard]] virtual void* create_event(IpcHandle* handle) = 0;
  [[nodiscard]] virtual void* open_event(const IpcHandle& handle) = 0;
  virtual void destroy_event(void* event) noexcept = 0;
  virtual void record(void* event, const Stream& s) = 0;
  /// What is enqueued on s from now on waits for the last record of `event`.
  virtual void wait(const Stream& s, void* event) = 0;

  [[nodiscard]] virtual Stream create_stream() = 0;
  virtual void destroy_stream(const Stream& s) noexcept = 0;

  /// Bytes a group of `ranks` needs at the start of a shared region for its kernels; 0: this device
  /// has none.
  [[nodiscard]] virtual size_t kernel_bytes(int ranks) const = 0;
  /// `areas[r]`: the kernels' bytes of rank r as seen from here.
  [[nodiscard]] virtual std::unique_ptr<PeerKernels> make_kernels(
      int rank, const std::vector<void*>& areas) = 0;
};

/// CPU memory, shared as POSIX shared memory. Copies are made at once and events are always over.
[[nodiscard]] std::unique_ptr<IpcMemory> make_shm_memory();
/// The memory of a GPU; opens the CUDA library. Throws DeviceError when that cannot be loaded.
[[nodiscard]] std::unique_ptr<IpcMemory> make_cuda_memory(Device device);

}  // namespace r1::comm
