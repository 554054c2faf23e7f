// The seam between an operation's checks (op.cpp) and its implementations: one function pointer an
// operation of ops.h, with the same signature. The CPU table is built in; the CUDA library hands
// out its own through
//
//     extern "C" const r1::kernels::KernelTable* r1run_cuda_kernels();
//
// An implementation is called with checked arguments: devices, dtypes and shapes agree, and spans
// match their counts. It must still accept counts of 0.
#pragma once

#include "runtime/kernels/ops.h"

namespace r1::kernels {

struct KernelTable {
  /// sizeof(KernelTable) as the library was built; a library built from other sources is refused.
  size_t struct_bytes = sizeof(KernelTable);

#define R1_KERNEL(name) decltype(&::r1::kernels::name) name = nullptr
  R1_KERNEL(linear_forward);
  R1_KERNEL(linear_backward_input);
  R1_KERNEL(linear_backward_weight);
  R1_KERNEL(bias_backward);
  R1_KERNEL(embedding_forward);
  R1_KERNEL(embedding_backward);
  R1_KERNEL(rmsnorm_forward);
  R1_KERNEL(add_rmsnorm_forward);
  R1_KERNEL(rmsnorm_backward);
  R1_KERNEL(rope);
  R1_KERNEL(qk_norm_forward);
  R1_KERNEL(qk_norm_backward);
  R1_KERNEL(attention_forward);
  R1_KERNEL(attention_backward);
  R1_KERNEL(kv_cache_append);
  R1_KERNEL(decode_attention);
  R1_KERNEL(swiglu_forward);
  R1_KERNEL(swiglu_backward);
  R1_KERNEL(cross_entropy_stats);
  R1_KERNEL(cross_entropy_combine);
  R1_KERNEL(cross_entropy_backward);
  R1_KERNEL(argmax);
  R1_KERNEL(adamw_step);
  R1_KERNEL(sum_of_squares);
  R1_KERNEL(sum_into);
  R1_KERNEL(exact_total);
  R1_KERNEL(clip_factor);
  R1_KERNEL(add_into);
  R1_KERNEL(add);
  R1_KERNEL(cast);
  R1_KERNEL(scale);
  R1_KERNEL(copy_columns);
#undef R1_KERNEL
};

/// The implementations for a device kind. CUDA: loads the CUDA library on first use; throws
/// DeviceError when it is missing, does not fit this build, or lacks an operation.
[[nodiscard]] const KernelTable& kernel_table(DeviceKind kind);

}  // namespace r1::kernels
