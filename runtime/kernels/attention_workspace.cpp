// Workspace sizes of the attention operations. They stand apart from the implementations because a
// plan made on a login node needs the CUDA figures where no CUDA library is present.
#include "runtime/device/device.h"
#include "runtime/kernels/ops.h"

namespace r1::kernels {

size_t attention_workspace_bytes(DeviceKind kind, int64_t tokens, int64_t q_heads, int64_t kv_heads,
                                 int64_t head_dim) {
  if (kind == DeviceKind::kCpu || tokens == 0 || q_heads == 0) return 0;
  // delta = rowsum(do * o) [NQ, T] and the fp32 accumulators of dq [T, NQ, D], dk and dv [T, NKV,
  // D].
  const auto fp32 = [](int64_t n) { return align_up(static_cast<size_t>(n) * 4); };
  return fp32(q_heads * tokens) + fp32(tokens * q_heads * head_dim) +
         2 * fp32(tokens * kv_heads * head_dim);
}

size_t decode_attention_workspace_bytes(DeviceKind kind, int64_t sequences, int64_t q_heads,
                                        int64_t head_dim, int64_t max_context) {
  if (kind == DeviceKind::kCpu || sequences == 0 || q_heads == 0) return 0;
  // One partial output and its (maximum, sum) for each 256 positions of context, combined by a
  // second pass.
  const int64_t splits = (max_context + 255) / 256;
  return align_up(static_cast<size_t>(sequences * q_heads * splits * (head_dim + 2)) * 4);
}

}  // namespace r1::kernels
