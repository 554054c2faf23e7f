#include "comm/memory.h"

#include <new>

#include "comm/arguments.h"
#include "comm/reduce.h"

namespace r1::comm {
namespace {

constexpr std::align_val_t kAlign{256};

class HostMemory final : public Memory {
 public:
  DeviceKind kind() const override { return DeviceKind::kCpu; }
  void* allocate(size_t bytes) override { return ::operator new(bytes, kAlign); }
  void release(void* p) noexcept override { ::operator delete(p, kAlign); }
  void copy(void* dst, const void* src, size_t bytes, const Stream&) override {
    copy_bytes(dst, src, bytes);
  }
  void reduce(DType dtype, ReduceOp op, std::span<const void* const> sources, void* out,
              int64_t numel, const Stream&) override {
    reduce_in_order(dtype, op, sources, out, numel);
  }
  void synchronize(const Stream&) override {}
};

}  // namespace

Memory& host_memory() {
  static HostMemory memory;  // no state
  return memory;
}

}  // namespace r1::comm
