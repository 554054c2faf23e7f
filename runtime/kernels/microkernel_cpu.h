// Small matrix products for attention: C tiles of 6 x 16 in registers (12 sums, 2 of B, 1 of A fill
// the 16 vector registers), B packed in panels of 16 columns, A read in place with any strides.
// BLAS repacks both operands at each call, which at head dims of 64 to 128 costs a third of the
// time, and cannot stop at the diagonal. Included by *_cpu.cpp files only.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "runtime/kernels/simd_cpu.h"

namespace r1::kernels::micro {

inline constexpr int64_t kRows = 6, kColumns = 16;

[[nodiscard]] constexpr int64_t panels(int64_t columns) {
  return (columns + kColumns - 1) / kColumns;
}
/// Elements of B [k, columns] packed: panels of [k][16], the last one filled with zeros.
[[nodiscard]] constexpr int64_t packed_elems(int64_t k, int64_t columns) {
  return panels(columns) * k * kColumns;
}

/// Packs B [k, columns] with row stride ldb.
inline void pack(const float* b, int64_t ldb, int64_t k, int64_t columns, float* packed) {
  for (int64_t j = 0; j < columns; j += kColumns) {
    const int64_t n = std::min(kColumns, columns - j);
    for (int64_t p = 0; p < k; ++p, packed += kColumns) {
      const float* row = b + p * ldb + j;
      if (n == kColumns) {
        simd::store(packed, simd::load(row));
        simd::store(packed + simd::kLanes, simd::load(row + simd::kLanes));
      } else {
        std::memset(packed, 0, kColumns * sizeof(float));
        std::memcpy(packed, row, static_cast<size_t>(n) * sizeof(float));
      }
    }
  }
}

/// Copies rows of `columns` elements to lie one after the other. The rows of a head are a power of
/// two apart or near it, so that a block of them meets in a few sets of the first-level cache.
inline void gather_rows(const float* x, int64_t ldx, int64_t rows, int64_t columns, float* out) {
  for (int64_t r = 0; r < rows; ++r)
    std::memcpy(out + r * columns, x + r * ldx, static_cast<size_t>(columns) * sizeof(float));
}

/// Packs B = X^T where X is [columns, k] with row stride ldx.
inline void pack_transposed(const float* x, int64_t ldx, int64_t k, int64_t columns,
                            float* packed) {
  for (int64_t j = 0; j < columns; j += kColumns, packed += k * kColumns) {
    const int64_t n = std::min(kColumns, columns - j);
    if (n < kColumns) std::memset(packed, 0, static_cast<size_t>(k * kColumns) * sizeof(float));
    int64_t c = 0;
    for (; c + simd::kLanes <= n; c += simd::kLanes) {
      const float* from = x + (j + c) * ldx;
      int64_t p = 0;
      for (; p + simd::kLanes <= k; p += simd::kLanes) {
        simd::V rows[simd::kLanes];
        for (int i = 0; i < simd::kLanes; ++i) rows[i] = simd::load(from + i * ldx + p);
        simd::transpose(rows);
        for (int i = 0; i < simd::kLanes; ++i)
          simd::store(packed + (p + i) * kColumns + c, rows[i]);
      }
      for (; p < k; ++p)
        for (int i = 0; i < simd::kLanes; ++i) packed[p * kColumns + c + i] = from[i * ldx + p];
    }
    for (; c < n; ++c)
      for (int64_t p = 0; p < k; ++p) packed[p * kColumns + c] = x[(j + c) * ldx + p];
  }
}

namespace detail {

template <int ROWS>
void tile(int64_t k, const float* a, int64_t a_row, int64_t a_k, const float* panel, float alpha,
          bool accumulate, float* c, int64_t ldc, int64_t columns) {
  simd::V sum[ROWS][2] = {};
  for (int64_t p = 0; p < k; ++p, a += a_k, panel += kColumns) {
    const simd::V b0 = simd::load(panel), b1 = simd::load(panel + simd::kLanes);
    for (int i = 0; i < ROWS; ++i) {
      const simd::V value = simd::set(a[i * a_row]);
      sum[i][0] += value * b0;
      sum[i][1] += value * b1;
    }
  }
  const simd::V factor = simd::set(alpha);
  for (int i = 0; i < ROWS; ++i) {
    float* row = c + i * ldc;
    for (int half = 0; half < 2; ++half) {
      const int64_t at = half * simd::kLanes, n = columns - at;
      const simd::V value = sum[i][half] * factor;
      if (n >= simd::kLanes)
        simd::store(row + at, accumulate ? simd::load(row + at) + value : value);
      else if (n > 0)
        simd::store(row + at, accumulate ? simd::load(row + at, n) + value : value, n);
    }
  }
}

}  // namespace detail

/// C[rows, columns] = alpha A B (+ C when `accumulate`) with rows <= 6, columns <= 16, A(i, p) =
/// a[i * a_row + p * a_k], B a packed panel of k rows.
inline void product(int64_t rows, int64_t columns, int64_t k, const float* a, int64_t a_row,
                    int64_t a_k, const float* panel, float alpha, bool accumulate, float* c,
                    int64_t ldc) {
  switch (rows) {
    case 6:
      return detail::tile<6>(k, a, a_row, a_k, panel, alpha, accumulate, c, ldc, columns);
    case 5:
      return detail::tile<5>(k, a, a_row, a_k, panel, alpha, accumulate, c, ldc, columns);
    case 4:
      return detail::tile<4>(k, a, a_row, a_k, panel, alpha, accumulate, c, ldc, columns);
    case 3:
      return detail::tile<3>(k, a, a_row, a_k, panel, alpha, accumulate, c, ldc, columns);
    case 2:
      return detail::tile<2>(k, a, a_row, a_k, panel, alpha, accumulate, c, ldc, columns);
    case 1:
      return detail::tile<1>(k, a, a_row, a_k, panel, alpha, accumulate, c, ldc, columns);
    default:
      return;
  }
}

}  // namespace r1::kernels::micro
