#include "runtime/kernels/kernel_table.h"

#include <array>
#include <atomic>

#include "runtime/core/error.h"
#include "runtime/device/cuda_library.h"
#include "runtime/kernels/cpu_kernels.h"

namespace r1::kernels {
namespace {

constexpr KernelTable kCpuTable{
    .linear_forward = cpu::linear_forward,
    .linear_backward_input = cpu::linear_backward_input,
    .linear_backward_weight = cpu::linear_backward_weight,
    .bias_backward = cpu::bias_backward,
    .embedding_forward = cpu::embedding_forward,
    .embedding_backward = cpu::embedding_backward,
    .rmsnorm_forward = cpu::rmsnorm_forward,
    .add_rmsnorm_forward = cpu::add_rmsnorm_forward,
    .rmsnorm_backward = cpu::rmsnorm_backward,
    .rope = cpu::rope,
    .qk_norm_forward = cpu::qk_norm_forward,
    .qk_norm_backward = cpu::qk_norm_backward,
    .attention_forward = cpu::attention_forward,
    .attention_backward = cpu::attention_backward,
    .kv_cache_append = cpu::kv_cache_append,
    .decode_attention = cpu::decode_attention,
    .swiglu_forward = cpu::swiglu_forward,
    .swiglu_backward = cpu::swiglu_backward,
    .cross_entropy_stats = cpu::cross_entropy_stats,
    .cross_entropy_combine = cpu::cross_entropy_combine,
    .cross_entropy_backward = cpu::cross_entropy_backward,
    .argmax = cpu::argmax,
    .sample = cpu::sample,
    .adamw_step = cpu::adamw_step,
    .sum_of_squares = cpu::sum_of_squares,
    .sum_into = cpu::sum_into,
    .exact_total = cpu::exact_total,
    .clip_factor = cpu::clip_factor,
    .add_into = cpu::add_into,
    .add = cpu::add,
    .cast = cpu::cast,
    .scale = cpu::scale,
    .copy_columns = cpu::copy_columns,
};

const KernelTable& load_cuda_table() {
  using Getter = const KernelTable* (*)();
  const auto get = reinterpret_cast<Getter>(cuda_library_symbol("r1run_cuda_kernels"));
  const KernelTable* table = get();
  if (table == nullptr || table->struct_bytes != sizeof(KernelTable))
    throw DeviceError(
        "libr1run_cuda.so was built from other sources than this program (operation table of {} "
        "bytes, expected {}); "
        "rebuild it",
        table == nullptr ? 0 : table->struct_bytes, sizeof(KernelTable));
  return *table;
}

std::array<std::atomic<const KernelTable*>, 2> g_in_front;  // operations find their table by device kind alone

}  // namespace

void intercept(DeviceKind kind, const KernelTable* table) { g_in_front[static_cast<size_t>(kind)] = table; }

const KernelTable& kernel_table(DeviceKind kind) {
  if (const KernelTable* front = g_in_front[static_cast<size_t>(kind)].load(std::memory_order_relaxed); front != nullptr)
    return *front;
  if (kind == DeviceKind::kCpu) return kCpuTable;
  static const KernelTable& table =
      load_cuda_table();  // a throw leaves it unset: the next call tries again
  return table;
}

}  // namespace r1::kernels
