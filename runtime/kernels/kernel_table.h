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

/// Every operation of ops.h once.
#define R1_FOR_EACH_KERNEL(X) \
  X(linear_forward) X(linear_backward_input) X(linear_backward_weight) X(bias_backward) \
  X(embedding_forward) X(embedding_backward) X(rmsnorm_forward) X(add_rmsnorm_forward) X(rmsnorm_backward) \
  X(rope) X(qk_norm_forward) X(qk_norm_backward) X(attention_forward) X(attention_backward) \
  X(kv_cache_append) X(decode_attention) X(swiglu_forward) X(swiglu_backward) X(cross_entropy_stats) \
  X(cross_entropy_combine) X(cross_entropy_backward) X(argmax) X(sample) X(adamw_step) X(sum_of_squares) \
  X(sum_into) X(exact_total) X(clip_factor) X(add_into) X(add) X(cast) X(scale) X(copy_columns)

struct KernelTable {
  /// sizeof(KernelTable) as the library was built; a library built from other sources is refused.
  size_t struct_bytes = sizeof(KernelTable);

#define R1_KERNEL(name) decltype(&::r1::kernels::name) name = nullptr;
  R1_FOR_EACH_KERNEL(R1_KERNEL)
#undef R1_KERNEL
};

/// The implementations for a device kind. CUDA: loads the CUDA library on first use; throws
/// DeviceError when it is missing, does not fit this build, or lacks an operation.
[[nodiscard]] const KernelTable& kernel_table(DeviceKind kind);

/// Puts `table` in front of the implementations of a device kind, or takes it away (nullptr): a profile's timed calls.
/// Not while operations run in other threads.
void intercept(DeviceKind kind, const KernelTable* table);

}  // namespace r1::kernels
