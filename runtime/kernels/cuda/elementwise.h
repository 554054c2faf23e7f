// Small helpers shared by the operations' host code.
#pragma once

#include <cuda_runtime_api.h>

#include "runtime/device/tensor.h"

namespace r1::kernels::cuda {

/// y[t, :] += bias. y [T, N], bias [N], one dtype.
void add_bias_rows(const Tensor& y, const Tensor& bias, cudaStream_t stream);

/// out[c] += sum over parts of partial[p * ld + c], in a fixed order. out [cols] fp32 or bf16.
void add_partial_sums(const float* partial, int64_t parts, int64_t ld, const Tensor& out,
                      cudaStream_t stream);

}  // namespace r1::kernels::cuda
