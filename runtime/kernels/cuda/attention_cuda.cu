// Attention on CUDA: bf16 through cuDNN where it has a kernel, everything else through the own
// kernels.
//
// cuDNN wants the same number of q heads for each kv head, so q heads whose kv heads have groups of
// one size run together and uneven groups (tensor parallelism that cuts inside a group) take one
// launch for each run of equal groups.
#include <algorithm>
#include <vector>

#include "runtime/device/cuda/attention_plans.h"
#include "runtime/device/device.h"
#include "runtime/kernels/attention_class.h"
#include "runtime/kernels/cuda/attention_flash.h"
#include "runtime/kernels/cuda/common.cuh"

namespace r1::kernels::cuda {
namespace {

using r1::cuda::AttentionPlans;
using r1::cuda::AttentionPointers;
using r1::cuda::AttentionShape;

/// Consecutive kv heads with groups of one size: q heads [q, q + kv_count * group).
struct Run {
  int64_t q = 0, kv = 0, kv_count = 0, group = 0;
};

std::vector<Run> runs_of(const AttentionArgs& a) {
  std::vector<Run> runs;
  size_t i = 0;
  while (i < a.kv_of_q.size()) {
    const int32_t kv = a.kv_of_q[i];
    size_t j = i;
    while (j < a.kv_of_q.size() && a.kv_of_q[j] == kv) ++j;
    const auto group = static_cast<int64_t>(j - i);
    if (!runs.empty() && runs.back().group == group && runs.back().kv + runs.back().kv_count == kv)
      ++runs.back().kv_count;
    else
      runs.push_back({static_cast<int64_t>(i), kv, 1, group});
    i = j;
  }
  return runs;
}

// Element offsets of the segments, for row lengths of four tensors; entries past the last segment
// repeat its end.
template <class I>
__global__ void offsets_kernel(const int* __restrict__ cu, int segments, int batch,
                               int* __restrict__ lengths, I* __restrict__ offsets, int pitch,
                               int64_t qkv_row, int64_t o_row, int64_t lse_row, int64_t dkv_row) {
  for (int i = static_cast<int>(threadIdx.x); i <= batch; i += static_cast<int>(blockDim.x)) {
    const int64_t at = cu[min(i, segments)];
    offsets[i] = static_cast<I>(at * qkv_row);
    offsets[pitch + i] = static_cast<I>(at * o_row);
    offsets[2 * pitch + i] = static_cast<I>(at * lse_row);
    offsets[3 * pitch + i] = static_cast<I>(at * dkv_row);
    if (i < batch) lengths[i] = cu[min(i + 1, segments)] - cu[min(i, segments)];
  }
}

/// Everything about one call that does not depend on the run.
struct Problem {
  const AttentionArgs& args;
  int64_t tokens, width, o_width, length;  // length > 0: dense
  bool backward;
  int64_t batch, longest;
};

Problem problem_of(const AttentionArgs& a, int64_t tokens, bool backward) {
  const AttentionClass c = attention_class(a.host_cu, a.max_segment, tokens);
  return {.args = a,
          .tokens = tokens,
          .width = (a.q_heads + 2 * a.kv_heads) * a.head_dim,
          .o_width = a.q_heads * a.head_dim,
          .length = c.equal ? c.longest : 0,
          .backward = backward,
          .batch = c.segments,
          .longest = c.longest};
}

AttentionShape shape_of(const Problem& p, const Run& r, bool deterministic) {
  return {.backward = p.backward,
          .ragged = p.length == 0,
          .deterministic = p.backward && deterministic,
          .batch = p.batch,
          .length = p.longest,
          .tokens = p.tokens,
          .q_heads = r.kv_count * r.group,
          .kv_heads = r.kv_count,
          .head_dim = p.args.head_dim,
          .width = p.width,
          .o_width = p.o_width,
          .scale = p.args.scale};
}

bool wide_offsets(const Problem& p) { return p.tokens * p.width >= (int64_t{1} << 31); }
/// Elements from one list of offsets to the next: each begins on a 256-byte boundary.
size_t offsets_pitch(const Problem& p) { return align_up(static_cast<size_t>(p.batch + 1), 64); }
/// Bytes of the four lists and the lengths of a ragged run; 0 where dense.
size_t offsets_bytes(const Problem& p) {
  return p.length > 0 ? 0 : offsets_pitch(p) * (4 * (wide_offsets(p) ? 8 : 4) + 4);
}

/// Fills the offsets of a ragged run at `memory`.
void put_offsets(const Problem& p, const Run& r, const Tensor& cu, void* memory,
                 AttentionPointers& at, cudaStream_t stream) {
  const bool wide = wide_offsets(p);
  const size_t pitch = offsets_pitch(p), step = pitch * (wide ? 8 : 4);
  auto* base = static_cast<char*>(memory);
  at.qkv_offsets = base;
  at.o_offsets = base + step;
  at.lse_offsets = base + 2 * step;
  at.dkv_offsets = base + 3 * step;
  at.lengths = base + 4 * step;
  const auto segments = static_cast<int>(p.args.host_cu.size()) - 1;
  const auto go = [&](auto* offsets) {
    offsets_kernel<<<1, 256, 0, stream>>>(cu.ptr<int>(), segments, static_cast<int>(p.batch),
                                          static_cast<int*>(at.lengths), offsets,
                                          static_cast<int>(pitch), p.width, p.o_width,
                                          r.kv_count * r.group, r.kv_count * p.args.head_dim);
  };
  if (wide)
    go(static_cast<int64_t*>(at.qkv_offsets));
  else
    go(static_cast<int32_t*>(at.qkv_offsets));
  CUDA_LAUNCH_CHECK();
}

/// cuDNN's plans for all runs, or nothing when one of them has none. `largest` becomes the
/// workspace they need.
bool plans_for(const Problem& p, const std::vector<Run>& runs, bool deterministic,
               AttentionPlans& plans, std::vector<AttentionShape>& shapes, size_t& largest) {
  largest = 0;
  for (const Run& r : runs) {
    shapes.push_back(shape_of(p, r, deterministic));
    const int64_t bytes = plans.prepare(shapes.back());
    if (bytes < 0) return false;
    largest = std::max(largest, static_cast<size_t>(bytes));
  }
  return true;
}

/// cuDNN takes bf16 with head dims that are whole 16-byte vectors; a single token is no attention
/// problem for it.
bool worth_asking(const Problem& p, DType t) {
  return t == DType::kBF16 && p.args.head_dim % 8 == 0 && p.args.head_dim <= 256 && p.longest > 1 &&
         p.args.q_heads > 0;
}

/// One decision for both directions, because the statistics in between have the layout of whoever
/// ran the forward: cuDNN when it has kernels for both. `shapes` and `bytes` are those of the
/// direction asked for.
struct Choice {
  bool cudnn = false;
  std::vector<AttentionShape> shapes;
  size_t bytes = 0;
};
Choice choose(const Launch& l, const AttentionArgs& args, int64_t tokens, DType t,
              const std::vector<Run>& runs, bool backward) {
  Choice own, other;
  const bool deterministic = l.ctx.settings().deterministic;
  const Problem p = problem_of(args, tokens, backward), q = problem_of(args, tokens, !backward);
  if (!worth_asking(p, t)) return own;
  own.cudnn = plans_for(p, runs, deterministic, l.ctx.attention(), own.shapes, own.bytes) &&
              plans_for(q, runs, deterministic, l.ctx.attention(), other.shapes, other.bytes);
  return own;
}

char* columns(const Tensor& t, int64_t elements) {
  return static_cast<char*>(t.data) + elements * dtype_bytes(t.dtype);
}

/// The caller's workspace where it is large enough, else scratch of the stream (allocated once).
void* workspace_of(const Launch& l, const Tensor& workspace, size_t bytes) {
  return !workspace.empty() && workspace.bytes() >= bytes ? workspace.data
                                                          : l.ctx.scratch(bytes, l.stream);
}

}  // namespace

void attention_forward(const Tensor& qkv, const Tensor& cu_seqlens, const AttentionArgs& args,
                       const Tensor& o, const Tensor& lse, const Tensor& workspace,
                       const Stream& s) {
  const int64_t tokens = qkv.dim(0), d = args.head_dim;
  if (tokens == 0 || args.q_heads == 0) return;
  const Launch l(s);
  const Problem p = problem_of(args, tokens, false);
  const std::vector<Run> runs = runs_of(args);
  const auto [cudnn, shapes, bytes] = choose(l, args, tokens, qkv.dtype, runs, false);
  if (!cudnn) {
    flash_forward(qkv, cu_seqlens, args, o, lse, s);
    return;
  }
  const size_t offsets = offsets_bytes(p);
  auto* memory = static_cast<char*>(workspace_of(l, workspace, offsets + bytes));
  if (p.length == 0 && args.host_cu.back() < tokens) {
    const int64_t end = args.host_cu.back();
    CUDA_CHECK(cudaMemsetAsync(columns(o, end * p.o_width), 0,
                               static_cast<size_t>((tokens - end) * p.o_width * 2), l.stream));
  }
  for (size_t i = 0; i < runs.size(); ++i) {
    const Run& r = runs[i];
    AttentionPointers at{.q = columns(qkv, r.q * d),
                         .k = columns(qkv, (args.q_heads + r.kv) * d),
                         .v = columns(qkv, (args.q_heads + args.kv_heads + r.kv) * d),
                         .o = columns(o, r.q * d),
                         .lse = lse.ptr<float>() + r.q * tokens};
    if (p.length == 0) put_offsets(p, r, cu_seqlens, memory, at, l.stream);
    l.ctx.attention().run(shapes[i], at, memory + offsets, l.stream);
  }
}

void attention_backward(const Tensor& do_, const Tensor& qkv, const Tensor& o, const Tensor& lse,
                        const Tensor& cu_seqlens, const AttentionArgs& args, const Tensor& dqkv,
                        const Tensor& workspace, const Stream& s) {
  const int64_t tokens = qkv.dim(0), d = args.head_dim;
  if (tokens == 0 || qkv.dim(1) == 0) return;
  const Launch l(s);
  const std::vector<Run> runs = runs_of(args);
  const auto [cudnn, shapes, bytes] = choose(l, args, tokens, qkv.dtype, runs, true);
  if (!cudnn) {
    auto* delta = static_cast<float*>(
        workspace_of(l, workspace, static_cast<size_t>(args.q_heads * tokens) * sizeof(float)));
    flash_backward(do_, qkv, o, lse, cu_seqlens, args, dqkv, delta, s);
    return;
  }
  const Problem p = problem_of(args, tokens, true);
  const bool ragged = p.length == 0;
  const size_t offsets = offsets_bytes(p);
  int64_t most_kv = 0, covered = 0;  // kv heads of the largest run that writes dk and dv apart
  for (size_t i = 0; i < runs.size(); ++i) {
    if (shapes[i].compact_dkv()) most_kv = std::max(most_kv, runs[i].kv_count);
    covered += runs[i].kv_count;
  }
  const size_t part = align_up(static_cast<size_t>(tokens * most_kv * d) * 2, 256);  // dk or dv of a run
  auto* memory = static_cast<char*>(workspace_of(l, workspace, offsets + 2 * part + bytes));
  const auto row_bytes = static_cast<size_t>(p.width) * 2;
  if (ragged && args.host_cu.back() < tokens) {
    const int64_t end = args.host_cu.back();
    CUDA_CHECK(cudaMemsetAsync(columns(dqkv, end * p.width), 0,
                               static_cast<size_t>(tokens - end) * row_bytes, l.stream));
  }
  if (covered < args.kv_heads)  // kv heads that no q head of this rank reads
    CUDA_CHECK(cudaMemset2DAsync(columns(dqkv, args.q_heads * d), row_bytes, 0,
                                 static_cast<size_t>(2 * args.kv_heads * d) * 2,
                                 static_cast<size_t>(tokens), l.stream));
  for (size_t i = 0; i < runs.size(); ++i) {
    const Run& r = runs[i];
    const int64_t k_column = (args.q_heads + r.kv) * d,
                  v_column = (args.q_heads + args.kv_heads + r.kv) * d;
    AttentionPointers at{.q = columns(qkv, r.q * d),
                         .k = columns(qkv, k_column),
                         .v = columns(qkv, v_column),
                         .o = columns(o, r.q * d),
                         .lse = lse.ptr<float>() + r.q * tokens,
                         .d_o = columns(do_, r.q * d),
                         .dq = columns(dqkv, r.q * d),
                         .dk = shapes[i].compact_dkv() ? memory + offsets : columns(dqkv, k_column),
                         .dv = shapes[i].compact_dkv() ? memory + offsets + part : columns(dqkv, v_column)};
    if (ragged) put_offsets(p, r, cu_seqlens, memory, at, l.stream);
    l.ctx.attention().run(shapes[i], at, memory + offsets + 2 * part, l.stream);
    if (shapes[i].compact_dkv()) {
      const auto width = static_cast<size_t>(r.kv_count * d) * 2,
                 rows = static_cast<size_t>(args.host_cu.back());
      CUDA_CHECK(cudaMemcpy2DAsync(columns(dqkv, k_column), row_bytes, at.dk, width, width, rows,
                                   cudaMemcpyDeviceToDevice, l.stream));
      CUDA_CHECK(cudaMemcpy2DAsync(columns(dqkv, v_column), row_bytes, at.dv, width, width, rows,
                                   cudaMemcpyDeviceToDevice, l.stream));
    }
  }
}

}  // namespace r1::kernels::cuda
