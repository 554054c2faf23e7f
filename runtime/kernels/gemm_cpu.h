// Matrix products of the CPU backend: OpenBLAS on one thread a tile, tiles shared between the
// threads of our pool.
//
// OpenBLAS's own threads stay off (openblas_set_num_threads(1) at the first product): two pools on
// the same cores fight, and its split, unlike ours, follows the number of threads. It still starts
// its threads when the library is loaded unless the environment says OPENBLAS_NUM_THREADS=1; they
// sleep, but a launcher should set it.
#pragma once

#include <cstdint>

namespace r1::kernels::cpu {

/// Whether an operand is read transposed.
enum class Op : bool { kNone, kTranspose };

/// C = alpha op(A) op(B) + beta C on the calling thread. Row-major; op(A) [m, k], op(B) [k, n], C
/// [m, n] with row strides lda, ldb, ldc. With beta 0, C need not be initialised. k = 0 scales C by
/// beta.
void gemm_tile(Op op_a, Op op_b, int64_t m, int64_t n, int64_t k, float alpha, const float* a,
               int64_t lda, const float* b, int64_t ldb, float beta, float* c, int64_t ldc);

/// The same over the pool. Tiles depend on m and n alone, so the result does not depend on the
/// number of threads.
void gemm(Op op_a, Op op_b, int64_t m, int64_t n, int64_t k, float alpha, const float* a,
          int64_t lda, const float* b, int64_t ldb, float beta, float* c, int64_t ldc);

/// How gemm() cuts C: tiles of tile_m x tile_n, the last ones smaller.
struct GemmTiles {
  int64_t tile_m = 0, tile_n = 0;
};
[[nodiscard]] GemmTiles gemm_tiles(int64_t m, int64_t n);

/// y = x w^T + bias for few tokens: y [t, out], x [t, in], w [out, in], bias [out] or null. Reads w
/// once and at the rate of memory, where BLAS repacks it. A token's result does not depend on how
/// many others are computed with it.
void gemm_few_rows(int64_t tokens, int64_t out, int64_t in, const float* x, const float* w,
                   const float* bias, float* y);
/// Up to how many tokens gemm_few_rows is the faster one.
inline constexpr int64_t kFewRows = 32;

}  // namespace r1::kernels::cpu
