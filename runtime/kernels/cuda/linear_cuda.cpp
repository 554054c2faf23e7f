// Linear layers: row-major tensors seen as cuBLASLt's column-major transposes.
#include <cuda_runtime_api.h>

#include "runtime/core/error.h"
#include "runtime/device/cuda/check.h"
#include "runtime/device/cuda/context.h"
#include "runtime/device/cuda/gemm_plans.h"
#include "runtime/kernels/cuda/cuda_kernels.h"
#include "runtime/kernels/cuda/elementwise.h"

namespace r1::kernels::cuda {
namespace {

using r1::cuda::GemmShape;
using r1::cuda::Launch;

cudaDataType_t cuda_type(DType t) {
  switch (t) {
    case DType::kF32:
      return CUDA_R_32F;
    case DType::kBF16:
      return CUDA_R_16BF;
    default:
      throw InternalError("no matrix product in {} on CUDA", dtype_name(t));
  }
}

int alignment(std::initializer_list<const void*> pointers) {
  uintptr_t bits = 16;
  for (const void* p : pointers) bits |= reinterpret_cast<uintptr_t>(p);
  return static_cast<int>(bits & (~bits + 1));
}

}  // namespace

void linear_forward(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& y,
                    const Stream& s) {
  const int64_t tokens = x.dim(0), in = x.dim(1), out = w.dim(0);
  if (tokens == 0 || out == 0) return;
  const Launch l(s);
  const void* b = bias.empty() ? nullptr : bias.data;
  if (in == 0) {
    CUDA_CHECK(cudaMemsetAsync(y.data, 0, y.bytes(), l.stream));
    if (b != nullptr) add_bias_rows(y, bias, l.stream);
    return;
  }
  const GemmShape shape{.transpose_a = true,
                        .transpose_b = false,
                        .m = out,
                        .n = tokens,
                        .k = in,
                        .lda = in,
                        .ldb = in,
                        .ldc = out,
                        .in = cuda_type(x.dtype),
                        .out = cuda_type(y.dtype),
                        .bias = b != nullptr,
                        .accumulate = false,
                        .alignment = alignment({x.data, w.data, y.data, b})};
  l.ctx.gemm().run(shape, w.data, x.data, y.data, b, l.stream);
}

void linear_backward_input(const Tensor& dy, const Tensor& w, const Tensor& dx, bool accumulate,
                           const Stream& s) {
  const int64_t tokens = dy.dim(0), out = dy.dim(1), in = w.dim(1);
  if (tokens == 0 || in == 0) return;
  const Launch l(s);
  if (out == 0) {
    if (!accumulate) CUDA_CHECK(cudaMemsetAsync(dx.data, 0, dx.bytes(), l.stream));
    return;
  }
  const GemmShape shape{.transpose_a = false,
                        .transpose_b = false,
                        .m = in,
                        .n = tokens,
                        .k = out,
                        .lda = in,
                        .ldb = out,
                        .ldc = in,
                        .in = cuda_type(dy.dtype),
                        .out = cuda_type(dx.dtype),
                        .bias = false,
                        .accumulate = accumulate,
                        .alignment = alignment({dy.data, w.data, dx.data})};
  l.ctx.gemm().run(shape, w.data, dy.data, dx.data, nullptr, l.stream);
}

void linear_backward_weight(const Tensor& dy, const Tensor& x, const Tensor& dw, bool accumulate,
                            const Stream& s) {
  const int64_t tokens = dy.dim(0), out = dy.dim(1), in = x.dim(1);
  if (out == 0 || in == 0) return;
  const Launch l(s);
  if (tokens == 0) {
    if (!accumulate) CUDA_CHECK(cudaMemsetAsync(dw.data, 0, dw.bytes(), l.stream));
    return;
  }
  const GemmShape shape{.transpose_a = false,
                        .transpose_b = true,
                        .m = in,
                        .n = out,
                        .k = tokens,
                        .lda = in,
                        .ldb = out,
                        .ldc = in,
                        .in = cuda_type(x.dtype),
                        .out = cuda_type(dw.dtype),
                        .bias = false,
                        .accumulate = accumulate,
                        .alignment = alignment({dy.data, x.data, dw.data})};
  l.ctx.gemm().run(shape, x.data, dy.data, dw.data, nullptr, l.stream);
}

}  // namespace r1::kernels::cuda
