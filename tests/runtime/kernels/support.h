// Shared by the kernel tests: guarded blocks, random data keyed by name, comparisons, and thread
// counts.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "runtime/core/rng.h"
#include "runtime/device/cpu/thread_pool.h"
#include "runtime/device/tensor.h"
#include "runtime/kernels/ops.h"

namespace r1::kernels::test {

template <class E>
constexpr DType dtype_of() {
  if constexpr (std::is_same_v<E, float>) return DType::kF32;
  if constexpr (std::is_same_v<E, double>) return DType::kF64;
  if constexpr (std::is_same_v<E, int32_t>) return DType::kI32;
  if constexpr (std::is_same_v<E, int64_t>) return DType::kI64;
  if constexpr (std::is_same_v<E, uint8_t>) return DType::kU8;
  if constexpr (std::is_same_v<E, uint16_t>) return DType::kBF16;
}

/// Host memory of a tensor between two guards that must not change, one element off any alignment
/// beyond the element's. Floats start as NaN, so that an element an operation forgets to write is
/// seen.
template <class E>
class Block {
 public:
  explicit Block(Shape shape, DType dtype = dtype_of<E>())
      : shape_(shape),
        dtype_(dtype),
        bytes_(kGuard * 2 + static_cast<size_t>(shape.numel()) * sizeof(E), uint8_t{0xA5}) {
    if constexpr (std::is_floating_point_v<E>)
      std::fill(begin(), end(), std::numeric_limits<E>::quiet_NaN());
    else
      std::fill(begin(), end(), static_cast<E>(0x7fff));
  }
  Block(Shape shape, const std::vector<E>& values) : Block(shape) {
    if (values.size() != size()) throw std::invalid_argument("values do not fill the shape");
    std::copy(values.begin(), values.end(), begin());
  }
  Block(Block&&) = default;
  Block(const Block&) = default;
  ~Block() {
    if (bytes_.empty()) return;
    const auto intact = [](uint8_t b) { return b == 0xA5; };
    EXPECT_TRUE(std::all_of(bytes_.begin(), bytes_.begin() + kGuard, intact))
        << "written before the tensor";
    EXPECT_TRUE(std::all_of(bytes_.end() - kGuard, bytes_.end(), intact))
        << "written past the tensor";
  }
  E* begin() { return reinterpret_cast<E*>(bytes_.data() + kGuard); }
  E* end() { return begin() + size(); }
  const E* begin() const { return reinterpret_cast<const E*>(bytes_.data() + kGuard); }
  const E* end() const { return begin() + size(); }
  E& operator[](int64_t i) { return begin()[i]; }
  const E& operator[](int64_t i) const { return begin()[i]; }
  [[nodiscard]] size_t size() const { return static_cast<size_t>(shape_.numel()); }
  /// Tensors without elements come without memory, as from an arena.
  operator Tensor() const {  // NOLINT: stands for the tensor at the call
    return {.data = size() == 0 ? nullptr : const_cast<E*>(begin()),
            .dtype = dtype_,
            .shape = shape_,
            .device = {}};
  }
  [[nodiscard]] std::vector<E> values() const { return {begin(), end()}; }
  [[nodiscard]] std::vector<double> doubles() const { return {begin(), end()}; }

 private:
  static constexpr int64_t kGuard = 72;  // 64 + 8: not aligned to a vector
  Shape shape_;
  DType dtype_;
  std::vector<uint8_t> bytes_;
};

using Floats = Block<float>;
using Ints = Block<int32_t>;

inline Floats normal(std::string_view name, Shape shape, double deviation = 1.0) {
  const Rng rng(20250601, name);
  Floats b(shape);
  for (size_t i = 0; i < b.size(); ++i)
    b[static_cast<int64_t>(i)] = static_cast<float>(deviation * rng.normal(i));
  return b;
}

inline Floats filled(Shape shape, float value) {
  Floats b(shape);
  std::fill(b.begin(), b.end(), value);
  return b;
}

inline Tensor none() { return {}; }

/// Largest error allowed for fp32 kernels against fp64: relative to the norm of the whole, and for
/// each element relative to the largest one. Products of some hundred terms in fp32 give about
/// 3e-7; a wrong term gives at least 1e-3.
struct Tolerance {
  double l2 = 2e-6, element = 1e-5;
};

inline void expect_close(const std::vector<double>& got, const std::vector<double>& want,
                         const std::string& what, Tolerance tol = {}) {
  ASSERT_EQ(got.size(), want.size()) << what;
  double diff2 = 0, norm2 = 0, largest = 0, largest_diff = 0;
  size_t worst = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_FALSE(std::isnan(got[i]))
        << what << ": element " << i << " is NaN (never written?), expected " << want[i];
    const double d = std::abs(got[i] - want[i]);
    diff2 += d * d;
    norm2 += want[i] * want[i];
    largest = std::max(largest, std::abs(want[i]));
    if (d > largest_diff) largest_diff = d, worst = i;
  }
  if (got.empty()) return;
  EXPECT_LE(std::sqrt(diff2), tol.l2 * std::sqrt(norm2) + 1e-30) << what;
  EXPECT_LE(largest_diff, tol.element * largest + 1e-30)
      << what << ": element " << worst << " is " << got[worst] << ", expected " << want[worst];
}
inline void expect_close(const Floats& got, const std::vector<double>& want,
                         const std::string& what, Tolerance tol = {}) {
  expect_close(got.doubles(), want, what, tol);
}

/// Runs `body` with 1, 2 and 3 threads: the bytes it returns must be the same each time.
inline void expect_same_for_any_threads(const std::function<std::vector<float>()>& body) {
  const int before = cpu_threads();
  set_cpu_threads(1);
  const std::vector<float> one = body();
  EXPECT_FALSE(one.empty());
  for (const int threads : {2, 3}) {
    set_cpu_threads(threads);
    for (int repeat = 0; repeat < 3; ++repeat) {
      const std::vector<float> many = body();
      ASSERT_EQ(one.size(), many.size());
      EXPECT_EQ(std::memcmp(one.data(), many.data(), one.size() * sizeof(float)), 0)
          << threads << " threads";
    }
  }
  set_cpu_threads(before);
}

inline std::vector<float> concat(std::initializer_list<const Floats*> blocks) {
  std::vector<float> all;
  for (const Floats* b : blocks) all.insert(all.end(), b->begin(), b->end());
  return all;
}

/// d loss / d x by central differences in fp64.
inline std::vector<double> central_difference(
    std::vector<double> x, const std::function<double(const std::vector<double>&)>& loss) {
  std::vector<double> gradient(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const double h = 1e-5, at = x[i];
    x[i] = at + h;
    const double up = loss(x);
    x[i] = at - h;
    const double down = loss(x);
    x[i] = at;
    gradient[i] = (up - down) / (2 * h);
  }
  return gradient;
}

inline double inner(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

}  // namespace r1::kernels::test
