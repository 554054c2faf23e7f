// From files to tensors of a device: in bands, read by all threads of the CPU pool into pinned memory, each band on its way to
// the device while the next is read.
#pragma once

#include <array>
#include <functional>

#include "runtime/checkpoint/slice.h"
#include "runtime/device/device.h"

namespace r1::train {

/// Reads a box of a stored tensor, dense, as `dtype` into `dst`. Called by several threads at once.
using ReadBox = std::function<void(const checkpoint::Box& box, DType dtype, void* dst)>;

class Uploader {
 public:
  struct Bands {
    int64_t copy_bytes = int64_t{64} << 20;  ///< copied to a device at once; a row at least
    int64_t read_bytes = int64_t{2} << 20;   ///< read by a thread at once; a row at least
    bool always_staged = false;              ///< also on the CPU, for tests
  };
  explicit Uploader(const Stream& s) : Uploader(s, Bands()) {}
  Uploader(const Stream& s, const Bands& bands);
  ~Uploader();
  Uploader(const Uploader&) = delete;
  Uploader& operator=(const Uploader&) = delete;

  /// Fills `to` (contiguous, as many elements as `box`) with what `read` gives for it. On the CPU device it is full on return;
  /// on a GPU when the stream has come there. What `read` throws is thrown on.
  void fill(const Tensor& to, const checkpoint::Box& box, const ReadBox& read);

 private:
  struct Staging {
    PinnedBuffer memory;
    Event copied{};
  };
  Staging& next(size_t bytes);

  Stream stream_;
  Bands bands_;
  DeviceBackend& backend_;
  std::array<Staging, 2> staging_;
  size_t turn_ = 0;
};

}  // namespace r1::train
