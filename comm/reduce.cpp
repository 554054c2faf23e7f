#include "comm/reduce.h"

#include <algorithm>
#include <bit>
#include <type_traits>
#include <vector>

namespace r1::comm {
namespace {

// Elements handled at once: the accumulators stay in L1 while each source streams by.
constexpr int64_t kBlock = 1024;

struct F32 {
  using Stored = float;
  using Acc = float;
  static Acc load(Stored v) { return v; }
  static Stored store(Acc v) { return v; }
};
struct F64 {
  using Stored = double;
  using Acc = double;
  static Acc load(Stored v) { return v; }
  static Stored store(Acc v) { return v; }
};
struct BF16 {
  using Stored = uint16_t;
  using Acc = float;
  static Acc load(Stored v) { return bf16_to_float(v); }
  static Stored store(Acc v) { return float_to_bf16(v); }
};
struct F16 {
  using Stored = uint16_t;
  using Acc = float;
  static Acc load(Stored v) { return f16_to_float(v); }
  static Stored store(Acc v) { return float_to_f16(v); }
};
// Unsigned accumulators: a sum that leaves the range wraps instead of being undefined.
template <class Signed>
struct Int {
  using Stored = Signed;
  using Acc = std::make_unsigned_t<Signed>;
  static Acc load(Stored v) { return static_cast<Acc>(v); }
  static Stored store(Acc v) { return static_cast<Stored>(v); }
};

template <class T>
typename T::Acc larger(typename T::Acc a, typename T::Acc b) {
  if constexpr (std::is_floating_point_v<typename T::Acc>) {
    return (a > b || a != a) ? a : b;  // a NaN on either side stays: a maximum must not hide it
  } else {
    return T::store(a) > T::store(b) ? a : b;
  }
}

template <class T>
void reduce(ReduceOp op, std::span<const void* const> sources, void* out, int64_t numel) {
  typename T::Acc acc[kBlock];
  for (int64_t begin = 0; begin < numel; begin += kBlock) {
    const int64_t n = std::min(kBlock, numel - begin);
    const auto* first = static_cast<const typename T::Stored*>(sources[0]) + begin;
    for (int64_t i = 0; i < n; ++i) acc[i] = T::load(first[i]);
    for (size_t r = 1; r < sources.size(); ++r) {
      const auto* src = static_cast<const typename T::Stored*>(sources[r]) + begin;
      switch (op) {
        case ReduceOp::kSum:
          for (int64_t i = 0; i < n; ++i) acc[i] += T::load(src[i]);
          break;
        case ReduceOp::kMax:
          for (int64_t i = 0; i < n; ++i) acc[i] = larger<T>(acc[i], T::load(src[i]));
          break;
      }
    }
    auto* dst = static_cast<typename T::Stored*>(out) + begin;
    for (int64_t i = 0; i < n; ++i) dst[i] = T::store(acc[i]);
  }
}

/// acc[0, n) = the pairwise sum of the sources' elements from `begin`; `spare` holds the right halves, one block a level.
template <class T>
void tree(std::span<const void* const> sources, int64_t begin, int64_t n, typename T::Acc* acc, typename T::Acc* spare) {
  if (sources.size() == 1) {
    const auto* from = static_cast<const typename T::Stored*>(sources[0]) + begin;
    for (int64_t i = 0; i < n; ++i) acc[i] = T::load(from[i]);
    return;
  }
  const size_t half = sources.size() / 2;
  tree<T>(sources.first(half), begin, n, acc, spare);
  tree<T>(sources.subspan(half), begin, n, spare, spare + kBlock);
  for (int64_t i = 0; i < n; ++i) acc[i] += spare[i];
}

template <class T>
void tree_sum(std::span<const void* const> sources, void* out, int64_t numel) {
  typename T::Acc acc[kBlock];
  std::vector<typename T::Acc> spare(static_cast<size_t>(kBlock) * (std::bit_width(sources.size()) + 1));
  for (int64_t begin = 0; begin < numel; begin += kBlock) {
    const int64_t n = std::min(kBlock, numel - begin);
    tree<T>(sources, begin, n, acc, spare.data());
    auto* dst = static_cast<typename T::Stored*>(out) + begin;
    for (int64_t i = 0; i < n; ++i) dst[i] = T::store(acc[i]);
  }
}

}  // namespace

void reduce_in_order(DType dtype, ReduceOp op, std::span<const void* const> sources, void* out,
                     int64_t numel) {
  if (numel == 0) return;
  R1_CHECK(!sources.empty(), "a reduction of no sources");
  switch (dtype) {
    case DType::kF32:
      return reduce<F32>(op, sources, out, numel);
    case DType::kF64:
      return reduce<F64>(op, sources, out, numel);
    case DType::kBF16:
      return reduce<BF16>(op, sources, out, numel);
    case DType::kF16:
      return reduce<F16>(op, sources, out, numel);
    case DType::kI32:
      return reduce<Int<int32_t>>(op, sources, out, numel);
    case DType::kI64:
      return reduce<Int<int64_t>>(op, sources, out, numel);
    case DType::kU8:
      break;
  }
  R1_CHECK(false, "no reduction of {} is defined", dtype_name(dtype));
}

void sum_in_tree(DType dtype, std::span<const void* const> sources, void* out, int64_t numel) {
  if (numel == 0) return;
  R1_CHECK(!sources.empty(), "a reduction of no sources");
  switch (dtype) {
    case DType::kF32:
      return tree_sum<F32>(sources, out, numel);
    case DType::kF64:
      return tree_sum<F64>(sources, out, numel);
    case DType::kBF16:
      return tree_sum<BF16>(sources, out, numel);
    case DType::kF16:
      return tree_sum<F16>(sources, out, numel);
    case DType::kI32:
      return tree_sum<Int<int32_t>>(sources, out, numel);
    case DType::kI64:
      return tree_sum<Int<int64_t>>(sources, out, numel);
    case DType::kU8:
      break;
  }
  R1_CHECK(false, "no reduction of {} is defined", dtype_name(dtype));
}

}  // namespace r1::comm
