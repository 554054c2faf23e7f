// Inputs of a stage's blocks on their way between the device and pinned host memory, on a stream of their own beside the
// computation (`--offload activations`). The device holds a ring of buffers: one in use, two on their way.
#pragma once

#include <array>
#include <vector>

#include "parallel/spec/model_spec.h"
#include "runtime/device/device.h"

namespace r1::models {

/// One forward or backward of a stage at a time: begin, the calls of each layer, end. Layer i's input is buffer i of the
/// ring, modulo its size. Every call enqueues and returns; all of it can be captured as a part of a graph.
class BlockInputOffload {
 public:
  using Ring = std::array<Tensor, parallel::kOffloadRing>;
  BlockInputOffload(Device device, const Ring& ring);
  ~BlockInputOffload();
  BlockInputOffload(const BlockInputOffload&) = delete;
  BlockInputOffload& operator=(const BlockInputOffload&) = delete;

  [[nodiscard]] const Tensor& at(size_t layer) const { return ring_[layer % ring_.size()]; }

  void begin(const Stream& compute);
  /// Forward: `compute` waits until the buffer of layer's input may be written.
  void before_write(size_t layer, const Stream& compute);
  /// Forward: copies the input of `layer`, written by what is enqueued on `compute`, to `host`.
  void store(size_t layer, void* host, const Stream& compute);
  /// Backward: copies the input of `layer` back as soon as its buffer is free.
  void load(size_t layer, const void* host);
  /// Backward: `compute` waits until the input of `layer` is there.
  void before_read(size_t layer, const Stream& compute);
  /// Backward: what is enqueued on `compute` was the last to read the buffer of `layer`'s input.
  void release(size_t layer, const Stream& compute);
  /// `compute` waits for all copies.
  void end(const Stream& compute);

 private:
  struct Buffer {
    Event copied, used;
    bool copying = false, in_use = false;  ///< the event was recorded in this forward or backward
  };
  Buffer& buffer(size_t layer) { return buffers_[layer % buffers_.size()]; }

  DeviceBackend& backend_;
  Ring ring_;
  Stream copies_;
  Event forked_, joined_;
  std::array<Buffer, parallel::kOffloadRing> buffers_;
};

/// The offloaded tensors of one activation slot: one block of pinned memory.
class HostSlot {
 public:
  HostSlot(DeviceKind kind, const std::vector<parallel::PlannedTensor>& tensors);
  [[nodiscard]] void* at(size_t i) const { return static_cast<char*>(memory_.data()) + offsets_.at(i); }
  [[nodiscard]] size_t bytes() const { return memory_.bytes(); }

 private:
  PinnedBuffer memory_;
  std::vector<size_t> offsets_;
};

}  // namespace r1::models
