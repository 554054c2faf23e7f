#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "runtime/core/error.h"
#include "runtime/device/cpu/thread_pool.h"
#include "runtime/kernels/cpu_kernels.h"
#include "runtime/kernels/simd_cpu.h"

namespace r1::kernels::cpu {

void kv_cache_append(const Tensor& qkv, const Tensor& slots, const DecodeAttentionArgs& args,
                     const Tensor& k_cache, const Tensor& v_cache, const Stream&) {
  const int64_t tokens = qkv.dim(0), row = args.kv_heads * args.head_dim;
  const int64_t width = args.q_heads * args.head_dim + 2 * row,
                capacity = k_cache.dim(0) * k_cache.dim(1);
  if (row == 0) return;
  parallel_ranges(tokens, 16, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t slot = slots.ptr<int64_t>()[t];
      if (slot < 0) continue;
      R1_CHECK(slot < capacity, "kv_cache_append: token {} goes to slot {} of {}", t, slot,
               capacity);
      const float* k = qkv.ptr<float>() + t * width + args.q_heads * args.head_dim;
      std::memcpy(k_cache.ptr<float>() + slot * row, k, static_cast<size_t>(row) * sizeof(float));
      std::memcpy(v_cache.ptr<float>() + slot * row, k + row,
                  static_cast<size_t>(row) * sizeof(float));
    }
  });
}

namespace {

float dot(const float* a, const float* b, int64_t n) {
  simd::V s{};
  simd::for_lanes(n, [&](int64_t i, auto... part) {
    s += simd::load(a + i, part...) * simd::load(b + i, part...);
  });
  return simd::sum(s);
}

}  // namespace

void decode_attention(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache,
                      const Tensor& block_table, const Tensor& context_lens,
                      const DecodeAttentionArgs& args, const Tensor& o, const Tensor&,
                      const Stream&) {
  const int64_t sequences = q.dim(0), dim = args.head_dim, kv_heads = args.kv_heads;
  if (args.q_heads == 0) return;
  const int64_t block_size = k_cache.dim(1), blocks = k_cache.dim(0),
                max_blocks = block_table.dim(1);
  // A task is one sequence and one kv head: its keys are read once for all q heads of the group.
  parallel_for(sequences * kv_heads, [&](int64_t task) {
    const int64_t b = task / kv_heads, kv = task % kv_heads;
    const int64_t context = context_lens.ptr<int32_t>()[b];
    R1_CHECK(context >= 0 && context <= args.max_context,
             "decode_attention: sequence {} has {} of at most {} tokens", b, context,
             args.max_context);
    const auto range =
        std::equal_range(args.kv_of_q.begin(), args.kv_of_q.end(), static_cast<int32_t>(kv));
    const int64_t first = range.first - args.kv_of_q.begin(), heads = range.second - range.first;
    if (heads == 0) return;
    float* out = o.ptr<float>() + (b * args.q_heads + first) * dim;
    std::fill_n(out, heads * dim, 0.0F);
    if (context == 0) return;
    const float* query = q.ptr<float>() + b * q.dim(1) + first * dim;
    const int32_t* table = block_table.ptr<int32_t>() + b * max_blocks;
    auto* scores = static_cast<float*>(
        thread_scratch(1, static_cast<size_t>(heads * context) * sizeof(float)));
    const auto row_of = [&](const Tensor& cache, int64_t block) {
      return cache.ptr<float>() + (block * block_size * kv_heads + kv) * dim;
    };
    for (int64_t p0 = 0; p0 < context; p0 += block_size) {
      const int64_t block = table[p0 / block_size];
      R1_CHECK(block >= 0 && block < blocks,
               "decode_attention: sequence {} names cache block {} of {}", b, block, blocks);
      const float* keys = row_of(k_cache, block);
      for (int64_t p = p0; p < std::min(context, p0 + block_size); ++p)
        for (int64_t h = 0; h < heads; ++h)
          scores[h * context + p] =
              dot(query + h * dim, keys + (p - p0) * kv_heads * dim, dim) * args.scale;
    }
    for (int64_t h = 0; h < heads; ++h) {
      float* row = scores + h * context;
      const float m = *std::max_element(row, row + context);
      const simd::V vm = simd::set(m);
      double sum = 0;
      simd::for_lanes(context, [&](int64_t i, auto... part) {
        simd::V e;
        if constexpr (sizeof...(part) == 0)
          e = simd::exp(simd::load(row + i) - vm);
        else
          e = simd::exp(simd::load(row + i, part..., -std::numeric_limits<float>::infinity()) - vm);
        simd::store(row + i, e, part...);
        sum += static_cast<double>(simd::sum(e));
      });
      const simd::V inverse = simd::set(static_cast<float>(1.0 / sum));
      simd::for_lanes(context, [&](int64_t i, auto... part) {
        simd::store(row + i, simd::load(row + i, part...) * inverse, part...);
      });
    }
    for (int64_t p0 = 0; p0 < context; p0 += block_size) {
      const float* values = row_of(v_cache, table[p0 / block_size]);
      for (int64_t p = p0; p < std::min(context, p0 + block_size); ++p)
        for (int64_t h = 0; h < heads; ++h) {
          const simd::V weight = simd::set(scores[h * context + p]);
          const float* value = values + (p - p0) * kv_heads * dim;
          simd::for_lanes(dim, [&](int64_t i, auto... part) {
            float* to = out + h * dim + i;
            simd::store(to, simd::load(to, part...) + weight * simd::load(value + i, part...),
                        part...);
          });
        }
    }
  });
}

}  // namespace r1::kernels::cpu
