// Matrix products through cuBLASLt: one plan a shape, its algorithm chosen by timing the library's
// leading candidates at first use (or taken from the cache file), because the library's first
// answer is up to tens of per cent off on narrow shapes. Partial sums of split-K algorithms stay in
// fp32; results repeat bit for bit.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <compare>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "runtime/device/cuda/cuda_api.h"

namespace r1::cuda {

class DeviceContext;

/// One product in cuBLASLt's column-major terms: C [m, n] = op(A) [m, k] op(B) [k, n] (+ C) (+ bias
/// [m]).
struct GemmShape {
  bool transpose_a = false, transpose_b = false;
  int64_t m = 0, n = 0, k = 0;
  int64_t lda = 0, ldb = 0, ldc = 0;
  cudaDataType_t in = CUDA_R_16BF;   ///< of A, B and bias
  cudaDataType_t out = CUDA_R_16BF;  ///< of C; sums are fp32 in any case
  bool bias = false;
  bool accumulate = false;
  int alignment = 16;  ///< of all pointers, bytes, at most 16
  auto operator<=>(const GemmShape&) const = default;
  [[nodiscard]] std::string str() const;
};

class GemmPlans {
 public:
  explicit GemmPlans(DeviceContext& ctx);
  ~GemmPlans();
  GemmPlans(const GemmPlans&) = delete;
  GemmPlans& operator=(const GemmPlans&) = delete;

  /// Enqueues the product. The first call of a shape may time candidates on `stream` (never while
  /// it captures).
  void run(const GemmShape& shape, const void* a, const void* b, void* c, const void* bias,
           cudaStream_t stream);
  void save();
  [[nodiscard]] std::vector<GemmChoice> choices();

 private:
  struct Plan {
    cublasLtMatmulDesc_t op = nullptr;
    cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr;
    cublasLtMatmulAlgo_t algo{};
    int rank = 0;
    double first_us = 0, best_us = 0;
    bool settled = false;  // timed, or told not to time: the choice stays
  };
  struct Cached {
    cublasLtMatmulAlgo_t algo{};
    int rank = 0;
    double first_us = 0, best_us = 0;
  };
  using Cache = std::map<std::string, Cached>;

  void describe(const GemmShape& shape, Plan& plan);
  void choose(const GemmShape& shape, Plan& plan, const void* a, const void* b, void* c,
              const void* bias, cudaStream_t stream);
  /// Takes a choice that was made before, if the library still accepts it.
  bool take(const Cached& choice, Plan& plan);
  cublasStatus_t launch(const GemmShape& shape, const Plan& plan, const cublasLtMatmulAlgo_t& algo,
                        const void* a, const void* b, const void* c, void* d, cudaStream_t stream);
  double time_us(const GemmShape& shape, const Plan& plan, const cublasLtMatmulAlgo_t& algo,
                 const void* a, const void* b, const void* c, void* d, cudaStream_t stream,
                 int repeats);
  [[nodiscard]] std::string cache_path() const;
  [[nodiscard]] std::string cache_header() const;
  [[nodiscard]] Cache read_cache() const;

  DeviceContext& ctx_;
  std::mutex mutex_;
  std::map<GemmShape, Plan> plans_;
  Cache cache_;
  std::string cache_read_from_;
  bool unsaved_ = false;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

}  // namespace r1::cuda
