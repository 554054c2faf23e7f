// Views of device memory. A Tensor owns nothing; owners are Buffer and Arena.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>

#include "runtime/core/dtype.h"

namespace r1 {

enum class DeviceKind : uint8_t { kCpu, kCuda };

/// A device by value: kind and index (always 0 on CPU).
struct Device {
  DeviceKind kind = DeviceKind::kCpu;
  int index = 0;
  friend bool operator==(const Device&, const Device&) = default;
};

/// View of a stream: work enqueued on it runs in order. The CPU stream runs each call at once, so one text serves
/// both devices. `handle` is a cudaStream_t on CUDA.
struct Stream {
  Device device;
  void* handle = nullptr;
};

/// Up to four dims, int64, row-major. A dim may be 0 (a rank without heads): such tensors have no elements.
class Shape {
 public:
  Shape() = default;
  Shape(std::initializer_list<int64_t> dims) : rank_(static_cast<int>(dims.size())) {
    R1_CHECK(dims.size() <= 4, "rank {} > 4", dims.size());
    int i = 0;
    for (int64_t d : dims) dims_[static_cast<size_t>(i++)] = d;
  }
  explicit Shape(std::span<const int64_t> dims) : rank_(static_cast<int>(dims.size())) {
    R1_CHECK(dims.size() <= 4, "rank {} > 4", dims.size());
    for (size_t i = 0; i < dims.size(); ++i) dims_[i] = dims[i];
  }
  [[nodiscard]] int rank() const { return rank_; }
  [[nodiscard]] int64_t operator[](int i) const { return dims_[static_cast<size_t>(i)]; }
  int64_t& operator[](int i) { return dims_[static_cast<size_t>(i)]; }
  [[nodiscard]] int64_t numel() const {
    int64_t n = 1;
    for (int i = 0; i < rank_; ++i) n *= dims_[static_cast<size_t>(i)];
    return n;
  }
  [[nodiscard]] std::string str() const;
  friend bool operator==(const Shape& a, const Shape& b) {
    if (a.rank_ != b.rank_) return false;
    for (int i = 0; i < a.rank_; ++i)
      if (a[i] != b[i]) return false;
    return true;
  }

 private:
  std::array<int64_t, 4> dims_{};
  int rank_ = 0;
};

/// A small copyable view: pointer, dtype, shape, device; contiguous row-major.
struct Tensor {
  void* data = nullptr;
  DType dtype = DType::kF32;
  Shape shape;
  Device device;

  [[nodiscard]] int64_t numel() const { return shape.numel(); }
  [[nodiscard]] size_t bytes() const { return static_cast<size_t>(numel() * dtype_bytes(dtype)); }
  [[nodiscard]] bool empty() const { return data == nullptr || numel() == 0; }
  [[nodiscard]] int64_t dim(int i) const { return shape[i]; }

  template <class T>
  [[nodiscard]] T* ptr() const {
    return static_cast<T*>(data);
  }
  /// Rows [begin, end) of dim 0.
  [[nodiscard]] Tensor rows(int64_t begin, int64_t end) const {
    R1_CHECK(shape.rank() >= 1 && 0 <= begin && begin <= end && end <= shape[0], "rows [{}, {}) of {}", begin, end,
             shape.str());
    Tensor t = *this;
    t.shape[0] = end - begin;
    const int64_t row = shape[0] == 0 ? 0 : numel() / shape[0];
    t.data = static_cast<char*>(data) + begin * row * dtype_bytes(dtype);
    return t;
  }
  /// Same elements under another shape.
  [[nodiscard]] Tensor view(Shape s) const {
    R1_CHECK(s.numel() == numel(), "view of {} as {}", shape.str(), s.str());
    Tensor t = *this;
    t.shape = s;
    return t;
  }
};

}  // namespace r1
