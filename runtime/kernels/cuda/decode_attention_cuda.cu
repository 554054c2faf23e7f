// Decoding with a paged KV cache: one query a sequence.
//
// The context is cut into splits of 256 positions; a block takes one (split, kv head, sequence),
// reads its keys and values once for all q heads of the group (in rounds of kGroup), and writes a
// partial output with its maximum and sum. A second kernel combines the splits in order. Bytes: the
// cache of the context once; results do not depend on timing.
#include "runtime/kernels/cuda/common.cuh"

namespace r1::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kSplit =
    256;  // positions a block; the workspace of decode_attention_workspace_bytes counts with it
constexpr int kGroup = 8;  // q heads a round
constexpr int kMaxHeads = 512;

struct Heads {
  int nq, nkv, d, splits, max_blocks, block_size;
  int64_t q_stride;
  float scale;
  int16_t first_q[kMaxHeads + 1];  // q heads [first_q[kv], first_q[kv + 1]) read kv head kv
};

template <class T, int W>
__global__ void __launch_bounds__(kThreads)
    append_kernel(const T* __restrict__ qkv, const int64_t* __restrict__ slots, T* __restrict__ k,
                  T* __restrict__ v, int64_t total, int64_t row, int64_t q_width) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * W;
  if (i >= total) return;
  const int64_t t = i / row, c = i - t * row, slot = slots[t];
  if (slot < 0) return;
  const T* from = qkv + t * (q_width + 2 * row) + q_width + c;
  store<W>(k + slot * row + c, load<W>(from));
  store<W>(v + slot * row + c, load<W>(from + row));
}

// partial [B, NQ, splits, D] fp32, extrema [B, NQ, splits, 2]: maximum (log2 units) and sum.
template <class T>
__global__ void __launch_bounds__(kThreads)
    split_kernel(const T* __restrict__ q, const T* __restrict__ k_cache,
                 const T* __restrict__ v_cache, const int* __restrict__ table,
                 const int* __restrict__ lens, float* __restrict__ partial,
                 float* __restrict__ extrema, Heads h) {
  extern __shared__ float shared[];
  float* query = shared;                   // [kGroup, D]
  float* scores = query + kGroup * h.d;    // [kGroup, kSplit]
  float* sums = scores + kGroup * kSplit;  // [threads / columns, D] partial outputs of one head
  const int split = static_cast<int>(blockIdx.x), kv = static_cast<int>(blockIdx.y),
            b = static_cast<int>(blockIdx.z);
  const int begin = split * kSplit, end = min(lens[b], begin + kSplit);
  const int warp = static_cast<int>(threadIdx.x) / kWarp,
            lane = static_cast<int>(threadIdx.x) % kWarp;
  const int* blocks = table + static_cast<int64_t>(b) * h.max_blocks;
  const auto row_of = [&](int position) {
    return ((static_cast<int64_t>(blocks[position / h.block_size]) * h.block_size +
             position % h.block_size) *
                h.nkv +
            kv) *
           h.d;
  };
  for (int first = h.first_q[kv]; first < h.first_q[kv + 1]; first += kGroup) {
    const int heads = min(kGroup, h.first_q[kv + 1] - first);
    if (begin >= end) {
      for (int g = static_cast<int>(threadIdx.x); g < heads; g += kThreads) {
        float* e = extrema + ((static_cast<int64_t>(b) * h.nq + first + g) * h.splits + split) * 2;
        e[0] = -INFINITY;
        e[1] = 0;
      }
      continue;
    }
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < heads * h.d; i += kThreads)
      query[i] = to_float(q[b * h.q_stride + static_cast<int64_t>(first) * h.d + i]) * h.scale *
                 1.44269504088896340736F;
    __syncthreads();
    for (int p = begin + warp; p < end; p += kThreads / kWarp) {
      const T* key = k_cache + row_of(p);
      float dot[kGroup] = {};
      for (int c = lane; c < h.d; c += kWarp) {
        const float x = to_float(key[c]);
#pragma unroll
        for (int g = 0; g < kGroup; ++g)
          if (g < heads) dot[g] += x * query[g * h.d + c];
      }
#pragma unroll
      for (int g = 0; g < kGroup; ++g) {
        if (g >= heads) break;
        const float s = warp_reduce(dot[g], Sum{});
        if (lane == 0) scores[g * kSplit + p - begin] = s;
      }
    }
    __syncthreads();
    for (int g = warp; g < heads; g += kThreads / kWarp) {
      float top = -INFINITY, sum = 0;
      for (int i = lane; i < end - begin; i += kWarp) top = fmaxf(top, scores[g * kSplit + i]);
      top = warp_reduce(top, Max{});
      for (int i = lane; i < end - begin; i += kWarp) {
        const float e = exp2f(scores[g * kSplit + i] - top);
        scores[g * kSplit + i] = e;
        sum += e;
      }
      sum = warp_reduce(sum, Sum{});
      if (lane == 0) {
        float* e = extrema + ((static_cast<int64_t>(b) * h.nq + first + g) * h.splits + split) * 2;
        e[0] = top;
        e[1] = sum;
      }
    }
    __syncthreads();
    // Columns across threads; where the head is narrower than the block, several threads share a
    // column's positions.
    const int columns = min(h.d, kThreads), shares = kThreads / columns;
    const int column = static_cast<int>(threadIdx.x) % columns,
              share = static_cast<int>(threadIdx.x) / columns;
    for (int c0 = 0; c0 < h.d; c0 += columns) {
      const int c = c0 + column;
      float out[kGroup] = {};
      if (share < shares && c < h.d) {
        for (int p = begin + share; p < end; p += shares) {
          const float x = to_float(v_cache[row_of(p) + c]);
#pragma unroll
          for (int g = 0; g < kGroup; ++g)
            if (g < heads) out[g] += scores[g * kSplit + p - begin] * x;
        }
      }
#pragma unroll
      for (int g = 0; g < kGroup; ++g) {
        if (g >= heads) break;
        __syncthreads();
        if (share < shares) sums[share * columns + column] = out[g];
        __syncthreads();
        if (share == 0 && c < h.d) {
          float total = 0;
          for (int i = 0; i < shares; ++i) total += sums[i * columns + column];
          partial[((static_cast<int64_t>(b) * h.nq + first + g) * h.splits + split) * h.d + c] =
              total;
        }
      }
    }
  }
}

template <class T>
__global__ void __launch_bounds__(128)
    combine_kernel(const float* __restrict__ partial, const float* __restrict__ extrema,
                   const int* __restrict__ lens, T* __restrict__ o, int nq, int splits, int d) {
  const int64_t item = blockIdx.x;  // b * nq + head
  const int used = (lens[item / nq] + kSplit - 1) / kSplit;
  const float* e = extrema + item * splits * 2;
  float top = -INFINITY, sum = 0;
  for (int s = 0; s < used; ++s) top = fmaxf(top, e[2 * s]);
  for (int s = 0; s < used; ++s) sum += e[2 * s + 1] * exp2f(e[2 * s] - top);
  for (int c = static_cast<int>(threadIdx.x); c < d; c += 128) {
    float out = 0;
    for (int s = 0; s < used; ++s)
      out += partial[(item * splits + s) * d + c] * exp2f(e[2 * s] - top);
    o[item * d + c] = from_float<T>(used == 0 ? 0.0F : out / sum);
  }
}

}  // namespace

void kv_cache_append(const Tensor& qkv, const Tensor& slots, const DecodeAttentionArgs& args,
                     const Tensor& k_cache, const Tensor& v_cache, const Stream& s) {
  const int64_t row = args.kv_heads * args.head_dim, total = qkv.dim(0) * row;
  if (total == 0) return;
  const Launch l(s);
  const int64_t q_width = args.q_heads * args.head_dim;
  dispatch(qkv.dtype, [&](auto* tag) {
    using T = Element<decltype(tag)>;
    auto go = [&](auto width) {
      constexpr int kW = decltype(width)::value;
      append_kernel<T, kW>
          <<<static_cast<unsigned>(ceil_div(total, kThreads * kW)), kThreads, 0, l.stream>>>(
              qkv.ptr<T>(), slots.ptr<int64_t>(), k_cache.ptr<T>(), v_cache.ptr<T>(), total, row,
              q_width);
    };
    if (row % 8 == 0 && q_width % 8 == 0 && all_aligned16(qkv.data, k_cache.data, v_cache.data))
      go(std::integral_constant<int, 8>{});
    else
      go(std::integral_constant<int, 1>{});
  });
  CUDA_LAUNCH_CHECK();
}

void decode_attention(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache,
                      const Tensor& block_table, const Tensor& context_lens,
                      const DecodeAttentionArgs& args, const Tensor& o, const Tensor& workspace,
                      const Stream& s) {
  const int64_t sequences = q.dim(0), d = args.head_dim;
  if (sequences == 0 || args.q_heads == 0) return;
  const Launch l(s);
  const int64_t splits = ceil_div(args.max_context, kSplit);
  if (splits == 0) {
    CUDA_CHECK(cudaMemsetAsync(o.data, 0, o.bytes(), l.stream));
    return;
  }
  R1_CHECK(args.q_heads <= kMaxHeads && args.kv_heads <= kMaxHeads, "{} q heads, {} kv heads",
           args.q_heads, args.kv_heads);
  Heads h{.nq = static_cast<int>(args.q_heads),
          .nkv = static_cast<int>(args.kv_heads),
          .d = static_cast<int>(d),
          .splits = static_cast<int>(splits),
          .max_blocks = static_cast<int>(block_table.dim(1)),
          .block_size = static_cast<int>(k_cache.dim(1)),
          .q_stride = q.dim(1),
          .scale = args.scale,
          .first_q = {}};
  for (int64_t kv = 0, i = 0; kv <= args.kv_heads; ++kv) {
    while (i < args.q_heads && args.kv_of_q[static_cast<size_t>(i)] < kv) ++i;
    h.first_q[kv] = static_cast<int16_t>(i);
  }
  auto* partial = static_cast<float*>(workspace.data);
  float* extrema = partial + sequences * args.q_heads * splits * d;
  const size_t shared =
      static_cast<size_t>(kGroup * d + kGroup * kSplit + kThreads) * sizeof(float);
  R1_CHECK(shared <= 48 * 1024, "decode_attention: head dim {}", d);
  dispatch(q.dtype, [&](auto* tag) {
    using T = Element<decltype(tag)>;
    split_kernel<T><<<dim3(static_cast<unsigned>(splits), static_cast<unsigned>(args.kv_heads),
                           static_cast<unsigned>(sequences)),
                      kThreads, shared, l.stream>>>(q.ptr<T>(), k_cache.ptr<T>(), v_cache.ptr<T>(),
                                                    block_table.ptr<int>(), context_lens.ptr<int>(),
                                                    partial, extrema, h);
    CUDA_LAUNCH_CHECK();
    combine_kernel<T><<<static_cast<unsigned>(sequences * args.q_heads), 128, 0, l.stream>>>(
        partial, extrema, context_lens.ptr<int>(), o.ptr<T>(), h.nq, h.splits, h.d);
  });
  CUDA_LAUNCH_CHECK();
}

}  // namespace r1::kernels::cuda
