// The own attention kernels: any head dim up to 256, fp32 or bf16, any kv_of_q. fp32 products and
// sums throughout, so this is the fp32 mode; in bf16 it stands in where cuDNN has no kernel.
#pragma once

#include <cuda_runtime_api.h>

#include "runtime/kernels/ops.h"

namespace r1::kernels::cuda {

void flash_forward(const Tensor& qkv, const Tensor& cu_seqlens, const AttentionArgs& args,
                   const Tensor& o, const Tensor& lse, const Stream& s);
/// delta: NQ * T floats of workspace.
void flash_backward(const Tensor& do_, const Tensor& qkv, const Tensor& o, const Tensor& lse,
                    const Tensor& cu_seqlens, const AttentionArgs& args, const Tensor& dqkv,
                    float* delta, const Stream& s);

}  // namespace r1::kernels::cuda
