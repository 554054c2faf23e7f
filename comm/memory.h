// The memory that a group's tensors live in, as composed collectives need it: host memory, or a
// GPU's behind the CUDA library.
#pragma once

#include <span>

#include "comm/communicator.h"

namespace r1::comm {

class Memory {
 public:
  virtual ~Memory() = default;
  [[nodiscard]] virtual DeviceKind kind() const = 0;
  /// 256-byte aligned. Throws MemoryError.
  [[nodiscard]] virtual void* allocate(size_t bytes) = 0;
  virtual void release(void* p) noexcept = 0;
  /// Enqueues on s; host memory is copied at once. Zero bytes and null pointers are fine. Either
  /// side may be host memory.
  virtual void copy(void* dst, const void* src, size_t bytes, const Stream& s) = 0;
  /// out[i] = sources[0][i] op sources[1][i] ..., in the order of `sources` (see reduce_in_order).
  /// Enqueues on s.
  virtual void reduce(DType dtype, ReduceOp op, std::span<const void* const> sources, void* out,
                      int64_t numel, const Stream& s) = 0;
  /// Waits on the host until what is enqueued on s is done.
  virtual void synchronize(const Stream& s) = 0;
};

[[nodiscard]] Memory& host_memory();

}  // namespace r1::comm
