#include "runtime/kernels/cuda/cuda_kernels.h"
#include "runtime/kernels/kernel_table.h"

namespace r1::kernels {
namespace {

constexpr KernelTable kCudaTable{
    .linear_forward = cuda::linear_forward,
    .linear_backward_input = cuda::linear_backward_input,
    .linear_backward_weight = cuda::linear_backward_weight,
    .bias_backward = cuda::bias_backward,
    .embedding_forward = cuda::embedding_forward,
    .embedding_backward = cuda::embedding_backward,
    .rmsnorm_forward = cuda::rmsnorm_forward,
    .add_rmsnorm_forward = cuda::add_rmsnorm_forward,
    .rmsnorm_backward = cuda::rmsnorm_backward,
    .rope = cuda::rope,
    .qk_norm_forward = cuda::qk_norm_forward,
    .qk_norm_backward = cuda::qk_norm_backward,
    .attention_forward = cuda::attention_forward,
    .attention_backward = cuda::attention_backward,
    .kv_cache_append = cuda::kv_cache_append,
    .decode_attention = cuda::decode_attention,
    .swiglu_forward = cuda::swiglu_forward,
    .swiglu_backward = cuda::swiglu_backward,
    .cross_entropy_stats = cuda::cross_entropy_stats,
    .cross_entropy_combine = cuda::cross_entropy_combine,
    .cross_entropy_backward = cuda::cross_entropy_backward,
    .argmax = cuda::argmax,
    .sample = cuda::sample,
    .adamw_step = cuda::adamw_step,
    .sum_of_squares = cuda::sum_of_squares,
    .sum_into = cuda::sum_into,
    .exact_total = cuda::exact_total,
    .clip_factor = cuda::clip_factor,
    .add_into = cuda::add_into,
    .add = cuda::add,
    .cast = cuda::cast,
    .scale = cuda::scale,
    .copy_columns = cuda::copy_columns,
};

}  // namespace
}  // namespace r1::kernels

extern "C" const r1::kernels::KernelTable* r1run_cuda_kernels() { return &r1::kernels::kCudaTable; }
