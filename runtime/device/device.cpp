#include "runtime/device/device.h"

#include <utility>

#include "runtime/core/error.h"
#include "runtime/device/cpu/cpu_backend.h"
#include "runtime/device/cuda_library.h"

namespace r1 {
namespace {

DeviceBackend& load_cuda_backend() {
  using Getter = DeviceBackend* (*)();
  const auto get = reinterpret_cast<Getter>(cuda_library_symbol("r1run_cuda_backend"));
  DeviceBackend* backend = get();
  if (backend == nullptr) throw DeviceError("libr1run_cuda.so gave no backend");
  return *backend;
}

}  // namespace

DeviceBackend& backend_of(DeviceKind kind) {
  if (kind == DeviceKind::kCpu) return cpu_backend();
  static DeviceBackend& cuda =
      load_cuda_backend();  // a throw leaves it unset: the next call tries again
  return cuda;
}

PinnedBuffer::PinnedBuffer(DeviceKind kind, size_t bytes) : kind_(kind), bytes_(bytes) {
  if (bytes > 0) data_ = backend_of(kind).allocate_pinned(bytes);
}

PinnedBuffer::PinnedBuffer(PinnedBuffer&& o) noexcept
    : kind_(o.kind_), data_(std::exchange(o.data_, nullptr)), bytes_(std::exchange(o.bytes_, 0)) {}

PinnedBuffer& PinnedBuffer::operator=(PinnedBuffer&& o) noexcept {
  std::swap(kind_, o.kind_);
  std::swap(data_, o.data_);
  std::swap(bytes_, o.bytes_);
  return *this;
}

PinnedBuffer::~PinnedBuffer() {
  if (data_ != nullptr) backend_of(kind_).release_pinned(data_);
}

Buffer::Buffer(Device d, size_t bytes) : device_(d), bytes_(bytes) {
  if (bytes > 0) data_ = backend_of(d.kind).allocate(d, bytes);
}

Buffer::Buffer(Buffer&& o) noexcept
    : device_(o.device_),
      data_(std::exchange(o.data_, nullptr)),
      bytes_(std::exchange(o.bytes_, 0)) {}

Buffer& Buffer::operator=(Buffer&& o) noexcept {
  std::swap(device_, o.device_);
  std::swap(data_, o.data_);
  std::swap(bytes_, o.bytes_);
  return *this;
}

Buffer::~Buffer() {
  if (data_ != nullptr) backend_of(device_.kind).release(device_, data_);
}

size_t arena_bytes(const std::vector<TensorSpec>& specs) {
  size_t total = 0;
  for (const TensorSpec& spec : specs) total += align_up(spec.bytes());
  return total;
}

Arena::Arena(Device d, std::vector<TensorSpec> specs)
    : specs_(std::move(specs)), buffer_(d, arena_bytes(specs_)) {
  tensors_.reserve(specs_.size());
  size_t offset = 0;
  for (const TensorSpec& spec : specs_) {
    // A tensor without elements has no memory: its address would be another tensor's.
    void* data = spec.bytes() == 0 ? nullptr : static_cast<char*>(buffer_.data()) + offset;
    tensors_.push_back({.data = data, .dtype = spec.dtype, .shape = spec.shape, .device = d});
    offset += align_up(spec.bytes());
  }
}

}  // namespace r1
