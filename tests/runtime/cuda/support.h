// Shared by the CUDA tests: a tensor twice, fp32 on the CPU and fp32 or bf16 on the GPU, with the
// same values.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "runtime/core/rng.h"
#include "runtime/device/cuda/cuda_api.h"
#include "runtime/device/cuda_library.h"
#include "runtime/device/device.h"
#include "runtime/kernels/ops.h"

namespace r1::cuda::test {

inline Api* try_api(std::string* why) {
  try {
    Api& api = cuda::api();
    return api.device_count(why) > 0 ? &api : nullptr;
  } catch (const Error& e) {
    *why = e.what();
    return nullptr;
  }
}

/// Skips with the reason where there is no GPU (or no CUDA library).
class CudaTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string why;
    api_ = try_api(&why);
    if (api_ == nullptr) GTEST_SKIP() << why;
    stream_ = backend_of(DeviceKind::kCuda).create_stream(gpu_device());
  }
  void TearDown() override {
    if (api_ == nullptr) return;
    backend_of(DeviceKind::kCuda).synchronize(stream_);
    backend_of(DeviceKind::kCuda).destroy_stream(stream_);
  }
  static Device gpu_device() { return {.kind = DeviceKind::kCuda, .index = 0}; }

  Api* api_ = nullptr;
  Stream stream_;
};

/// The two sides of a comparison.
enum class Side { kCpu, kGpu };

inline float round_to(DType t, float x) {
  return t == DType::kBF16 ? bf16_to_float(float_to_bf16(x)) : x;
}

/// Values on both sides. GPU memory stands between two guards and starts as NaN where it is an
/// output, so that an element nobody writes and a write outside are seen.
class Both {
 public:
  Both() = default;
  /// Floats: `values` are rounded to `gpu_type` on both sides; the CPU side is fp32 (fp64 for
  /// kF64).
  Both(Shape shape, DType gpu_type, std::vector<float> values)
      : shape_(shape), type_(gpu_type), host_(std::move(values)) {
    EXPECT_EQ(static_cast<int64_t>(host_.size()), shape.numel());
    for (float& x : host_) x = round_to(gpu_type, x);
    upload();
  }
  static Both normal(std::string_view name, Shape shape, DType t, double deviation = 1.0) {
    const Rng rng(20250601, name);
    std::vector<float> v(static_cast<size_t>(shape.numel()));
    for (size_t i = 0; i < v.size(); ++i) v[i] = static_cast<float>(deviation * rng.normal(i));
    return {shape, t, std::move(v)};
  }
  static Both output(Shape shape, DType t) {
    return {shape, t, std::vector<float>(static_cast<size_t>(shape.numel()), std::nanf(""))};
  }
  static Both ints(Shape shape, const std::vector<int32_t>& values) {
    Both b;
    b.shape_ = shape;
    b.type_ = DType::kI32;
    b.ints_ = values;
    b.upload();
    return b;
  }
  static Both longs(Shape shape, const std::vector<int64_t>& values) {
    Both b;
    b.shape_ = shape;
    b.type_ = DType::kI64;
    b.longs_ = values;
    b.upload();
    return b;
  }
  static Both doubles(Shape shape, std::vector<double> values) {
    Both b;
    b.shape_ = shape;
    b.type_ = DType::kF64;
    b.doubles_ = std::move(values);
    b.upload();
    return b;
  }

  [[nodiscard]] Tensor operator()(Side side) const {
    if (side == Side::kGpu)
      return {.data = shape_.numel() == 0 ? nullptr : static_cast<char*>(buffer_.data()) + kGuard,
              .dtype = type_,
              .shape = shape_,
              .device = buffer_.device()};
    Tensor t{.data = nullptr, .dtype = type_, .shape = shape_, .device = {}};
    if (shape_.numel() == 0) {
      if (type_ == DType::kBF16) t.dtype = DType::kF32;
      return t;
    }
    switch (type_) {
      case DType::kI32:
        t.data = const_cast<int32_t*>(ints_.data());
        break;
      case DType::kI64:
        t.data = const_cast<int64_t*>(longs_.data());
        break;
      case DType::kF64:
        t.data = const_cast<double*>(doubles_.data());
        break;
      default:
        t.data = const_cast<float*>(host_.data());
        t.dtype = DType::kF32;
    }
    return t;
  }
  [[nodiscard]] const Shape& shape() const { return shape_; }
  [[nodiscard]] DType type() const { return type_; }
  [[nodiscard]] const std::vector<float>& cpu() const { return host_; }

  /// Bytes of the GPU side; checks the guards.
  [[nodiscard]] std::vector<uint8_t> bytes() const {
    DeviceBackend& backend = backend_of(DeviceKind::kCuda);
    const Stream s = backend.create_stream(buffer_.device());
    std::vector<uint8_t> all(buffer_.bytes());
    backend.copy(all.data(), buffer_.data(), all.size(), s);
    backend.synchronize(s);
    backend.destroy_stream(s);
    const auto intact = [](uint8_t b) { return b == 0xA5; };
    EXPECT_TRUE(std::all_of(all.begin(), all.begin() + kGuard, intact))
        << "written before the tensor";
    EXPECT_TRUE(std::all_of(all.end() - kGuard, all.end(), intact)) << "written past the tensor";
    return {all.begin() + kGuard, all.end() - kGuard};
  }
  [[nodiscard]] std::vector<double> gpu() const {
    const std::vector<uint8_t> raw = bytes();
    std::vector<double> v(static_cast<size_t>(shape_.numel()));
    for (size_t i = 0; i < v.size(); ++i) {
      if (type_ == DType::kBF16) {
        uint16_t b;
        std::memcpy(&b, raw.data() + 2 * i, 2);
        v[i] = static_cast<double>(bf16_to_float(b));
      } else if (type_ == DType::kF64) {
        std::memcpy(&v[i], raw.data() + 8 * i, 8);
      } else if (type_ == DType::kF32) {
        float f;
        std::memcpy(&f, raw.data() + 4 * i, 4);
        v[i] = static_cast<double>(f);
      }
    }
    return v;
  }

 private:
  static constexpr ptrdiff_t kGuard = 256;

  void upload() {
    const auto n = static_cast<size_t>(shape_.numel());
    const size_t bytes = n * static_cast<size_t>(dtype_bytes(type_));
    std::vector<uint8_t> raw(bytes + 2 * kGuard, uint8_t{0xA5});
    uint8_t* at = raw.data() + kGuard;
    if (n > 0) {
      if (type_ == DType::kBF16)
        for (size_t i = 0; i < n; ++i) {
          const uint16_t b = float_to_bf16(host_[i]);
          std::memcpy(at + 2 * i, &b, 2);
        }
      else if (type_ == DType::kF32)
        std::memcpy(at, host_.data(), bytes);
      else if (type_ == DType::kI32)
        std::memcpy(at, ints_.data(), bytes);
      else if (type_ == DType::kI64)
        std::memcpy(at, longs_.data(), bytes);
      else
        std::memcpy(at, doubles_.data(), bytes);
    }
    buffer_ = Buffer({.kind = DeviceKind::kCuda, .index = 0}, raw.size());
    DeviceBackend& backend = backend_of(DeviceKind::kCuda);
    const Stream s = backend.create_stream(buffer_.device());
    backend.copy(buffer_.data(), raw.data(), raw.size(), s);
    backend.synchronize(s);
    backend.destroy_stream(s);
  }

  Shape shape_;
  DType type_ = DType::kF32;
  std::vector<float> host_;
  std::vector<int32_t> ints_;
  std::vector<int64_t> longs_;
  std::vector<double> doubles_;
  Buffer buffer_;
};

/// Allowed error: of the whole relative to its norm, of an element relative to the largest one; `floor` is absolute (values
/// that cancel). The norm's bound is statistical: fewer than 1,000 elements are held to the element's bound.
struct Tolerance {
  double l2, element, floor = 0;
};
/// bf16 keeps 8 bits: rounding once moves an element by up to 2^-8 of its binade (3.9e-3) and the norm by 2^-8 / sqrt(3) times
/// the mean of binade over value, 1.6e-3; fp32 sums in another order by some 1e-7.
inline Tolerance one_rounding(DType t) {
  return t == DType::kBF16 ? Tolerance{1.9e-3, 4.2e-3} : Tolerance{3e-6, 2e-5};
}
/// A product that is rounded to bf16 before it is added to a bf16 sum, which is rounded again.
inline Tolerance two_roundings(DType t) {
  return t == DType::kBF16 ? Tolerance{2.7e-3, 8.4e-3} : one_rounding(t);
}
/// Products whose inputs pass through bf16 in between (attention's probabilities, gradients of
/// them).
inline Tolerance inner_rounding(DType t) {
  return t == DType::kBF16 ? Tolerance{8e-3, 2e-2} : Tolerance{1e-5, 5e-5};
}

inline void expect_close(const std::vector<double>& got, const std::vector<double>& want,
                         const std::string& what, Tolerance tol) {
  ASSERT_EQ(got.size(), want.size()) << what;
  double diff2 = 0, norm2 = 0, largest = 0, largest_diff = 0;
  size_t worst = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    if (std::isinf(want[i]) && got[i] == want[i]) continue;
    ASSERT_FALSE(std::isnan(got[i]))
        << what << ": element " << i << " is NaN (never written?), expected " << want[i];
    ASSERT_FALSE(std::isnan(want[i]))
        << what << ": element " << i << " of the reference is NaN, got " << got[i];
    const double d = std::abs(got[i] - want[i]);
    diff2 += d * d;
    norm2 += want[i] * want[i];
    largest = std::max(largest, std::abs(want[i]));
    if (d > largest_diff) largest_diff = d, worst = i;
  }
  if (got.empty()) return;
  const double l2 = got.size() < 1000 ? tol.element : tol.l2;
  EXPECT_LE(std::sqrt(diff2), l2 * std::sqrt(norm2) + tol.floor * std::sqrt(static_cast<double>(got.size())) + 1e-30) << what;
  EXPECT_LE(largest_diff, tol.element * largest + tol.floor + 1e-30)
      << what << ": element " << worst << " is " << got[worst] << ", expected " << want[worst];
}
inline void expect_same(const Both& t, const std::string& what, Tolerance tol) {
  expect_close(t.gpu(), {t.cpu().begin(), t.cpu().end()}, what, tol);
}
inline void expect_same(const Both& t, const std::string& what) {
  expect_same(t, what, one_rounding(t.type()));
}

}  // namespace r1::cuda::test
