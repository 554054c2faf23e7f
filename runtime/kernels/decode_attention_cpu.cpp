#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

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

// Attention of one query token is a walk over its keys and values at the speed of memory. The
// context is cut into chunks of fixed length, so that one long sequence still occupies all threads;
// a chunk leaves its softmax relative to its own maximum, and a second pass combines the chunks in
// order (Flash-Decoding).
constexpr int64_t kChunk = 128;
constexpr int64_t kHeads = 4;  // q heads of a group that share one reading of a key

/// What a chunk leaves for one q head: maximum, sum of exponentials, and the weighted sum of values
/// [head_dim].
struct Partial {
  float* data;
  [[nodiscard]] float& maximum() const { return data[0]; }
  [[nodiscard]] float& sum() const { return data[1]; }
  [[nodiscard]] float* out() const { return data + 2; }
};

/// scores[h][p] = q_h . k_p * scale for N heads and n consecutive keys. 2 keys x N heads are the
/// chains of sums under way.
template <int N>
void scores_of(const float* q, const float* keys, int64_t key_stride, int64_t n, int64_t dim,
               float scale, float* scores, int64_t score_stride) {
  const auto keys_at = [&](int64_t p, auto count) {
    constexpr int kKeys = decltype(count)::value;
    simd::V sum[kKeys][N] = {};
    const float* k = keys + p * key_stride;
    simd::for_lanes(dim, [&](int64_t i, auto... part) {
      for (int j = 0; j < kKeys; ++j) {
        const simd::V key = simd::load(k + j * key_stride + i, part...);
        for (int h = 0; h < N; ++h) sum[j][h] += simd::load(q + h * dim + i, part...) * key;
      }
    });
    for (int j = 0; j < kKeys; ++j)
      for (int h = 0; h < N; ++h) scores[h * score_stride + p + j] = simd::sum(sum[j][h]) * scale;
  };
  int64_t p = 0;
  for (; p + 2 <= n; p += 2) keys_at(p, std::integral_constant<int, 2>{});
  if (p < n) keys_at(p, std::integral_constant<int, 1>{});
}

/// out_h += sum over p of weights[h][p] v_p, four values at a time.
template <int N>
void weighted_values(const float* weights, int64_t weight_stride, const float* values,
                     int64_t value_stride, int64_t n, int64_t dim, float* out, int64_t out_stride) {
  const auto values_at = [&](int64_t p, auto count) {
    constexpr int kValues = decltype(count)::value;
    simd::V weight[N][kValues];
    for (int h = 0; h < N; ++h)
      for (int j = 0; j < kValues; ++j)
        weight[h][j] = simd::set(weights[h * weight_stride + p + j]);
    const float* v = values + p * value_stride;
    simd::for_lanes(dim, [&](int64_t i, auto... part) {
      simd::V value[kValues];
      for (int j = 0; j < kValues; ++j) value[j] = simd::load(v + j * value_stride + i, part...);
      for (int h = 0; h < N; ++h) {
        float* to = out + h * out_stride + i;
        simd::V sum = simd::load(to, part...);
        for (int j = 0; j < kValues; ++j) sum += weight[h][j] * value[j];
        simd::store(to, sum, part...);
      }
    });
  };
  int64_t p = 0;
  for (; p + 4 <= n; p += 4) values_at(p, std::integral_constant<int, 4>{});
  for (; p < n; ++p) values_at(p, std::integral_constant<int, 1>{});
}

/// x = exp(x - max) in place; the maximum and the sum.
void softmax_terms(float* x, int64_t n, Partial result) {
  constexpr float kMinusInf = -std::numeric_limits<float>::infinity();
  float m = kMinusInf;
  for (int64_t i = 0; i < n; ++i) m = std::max(m, x[i]);
  // With no score above -inf (NaN among them, maybe) exp(x - m) would hide what is there.
  const simd::V shift = simd::set(std::isinf(m) && m < 0 ? 0.0F : m);
  simd::V sum{};
  simd::for_lanes(n, [&](int64_t i, auto... part) {
    simd::V e;
    if constexpr (sizeof...(part) == 0)
      e = simd::exp_nonpositive(simd::load(x + i) - shift);
    else
      e = simd::exp_nonpositive(simd::load(x + i, part..., kMinusInf) - shift);
    simd::store(x + i, e, part...);
    sum += e;
  });
  result.maximum() = m;
  result.sum() = simd::sum(sum);
}

/// Up to kHeads consecutive q heads that read one kv head.
struct HeadGroup {
  int64_t head, count, kv;
};

std::vector<HeadGroup> head_groups(std::span<const int32_t> kv_of_q) {
  std::vector<HeadGroup> groups;
  for (int64_t h = 0; h < static_cast<int64_t>(kv_of_q.size()); ++h) {
    const int64_t kv = kv_of_q[static_cast<size_t>(h)];
    if (!groups.empty() && groups.back().kv == kv && groups.back().count < kHeads)
      ++groups.back().count;
    else
      groups.push_back({h, 1, kv});
  }
  return groups;
}

/// Consecutive positions in one cache block: the element their first row begins at.
struct Run {
  int64_t offset, count;
};

/// Asks for the cache lines of [begin, end).
void fetch(const float* begin, const float* end) {
  for (; begin < end; begin += 2 * simd::kLanes) __builtin_prefetch(begin, 0, 2);
}

/// Calls f with the count as a constant.
template <class F>
void with_count(int64_t count, F&& f) {
  switch (count) {
    case 4:
      return f(std::integral_constant<int, 4>{});
    case 3:
      return f(std::integral_constant<int, 3>{});
    case 2:
      return f(std::integral_constant<int, 2>{});
    default:
      return f(std::integral_constant<int, 1>{});
  }
}

}  // namespace

void decode_attention(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache,
                      const Tensor& block_table, const Tensor& context_lens,
                      const DecodeAttentionArgs& args, const Tensor& o, const Tensor&,
                      const Stream&) {
  const int64_t sequences = q.dim(0), dim = args.head_dim, kv_heads = args.kv_heads,
                q_heads = args.q_heads;
  if (q_heads == 0 || sequences == 0) return;
  const int64_t block_size = k_cache.dim(1), blocks = k_cache.dim(0),
                max_blocks = block_table.dim(1);
  for (int64_t b = 0; b < sequences; ++b) {
    const int64_t context = context_lens.ptr<int32_t>()[b];
    R1_CHECK(context >= 0 && context <= args.max_context,
             "decode_attention: sequence {} has {} of at most {} tokens", b, context,
             args.max_context);
    for (int64_t i = 0; i * block_size < context; ++i) {
      const int32_t block = block_table.ptr<int32_t>()[b * max_blocks + i];
      R1_CHECK(block >= 0 && block < blocks,
               "decode_attention: sequence {} names cache block {} of {}", b, block, blocks);
    }
  }
  const int64_t chunks = std::max<int64_t>(1, (args.max_context + kChunk - 1) / kChunk),
                partial_size = dim + 2;
  auto* partials = static_cast<float*>(thread_scratch(
      0, static_cast<size_t>(sequences * q_heads * chunks * partial_size) * sizeof(float)));
  const auto partial = [&](int64_t b, int64_t head, int64_t i) {
    return Partial{partials + ((b * q_heads + head) * chunks + i) * partial_size};
  };
  const std::vector<HeadGroup> groups = head_groups(args.kv_of_q);
  const int64_t token_stride = kv_heads * dim, partial_stride = chunks * partial_size;
  // A task reads whole cache rows, all heads of a token after the other: they lie in one piece.
  // Chunk by chunk: the rows of q that are tokens of one prompt find the chunk in the second-level
  // cache after the first of them.
  parallel_for(sequences * chunks, [&](int64_t task) {
    const int64_t b = task % sequences, i = task / sequences;
    const int64_t first = i * kChunk,
                  last = std::min<int64_t>(context_lens.ptr<int32_t>()[b], first + kChunk);
    if (first >= last) return;
    const float* query = q.ptr<float>() + b * q.dim(1);
    const int32_t* table = block_table.ptr<int32_t>() + b * max_blocks;
    auto* scores = static_cast<float*>(
        thread_scratch(1, static_cast<size_t>(q_heads * kChunk) * sizeof(float)));
    // Walks the cache rows of the chunk: positions of one block lie at equal distances. While one
    // run of them is worked on, group by group, the next is fetched: it may be anywhere in memory,
    // where no hardware looks ahead.
    const auto run_at = [&](int64_t p) {
      const int64_t within = p % block_size;
      return Run{
          .offset = p < last ? (table[p / block_size] * block_size + within) * token_stride : 0,
          .count = std::clamp<int64_t>(last - p, 0, block_size - within)};
    };
    const auto each_run = [&](const float* cache, auto&& f) {
      for (int64_t p = first; p < last;) {
        const Run run = run_at(p), next = run_at(p + run.count);
        const auto parts = static_cast<int64_t>(groups.size());
        for (int64_t g = 0; g < parts; ++g) {
          const int64_t elements = next.count * token_stride;
          fetch(cache + next.offset + g * elements / parts,
                cache + next.offset + (g + 1) * elements / parts);
          f(p - first, run, groups[static_cast<size_t>(g)]);
        }
        p += run.count;
      }
    };
    each_run(k_cache.ptr<float>(), [&](int64_t at, const Run& run, const HeadGroup& g) {
      with_count(g.count, [&](auto count) {
        scores_of<decltype(count)::value>(
            query + g.head * dim, k_cache.ptr<float>() + run.offset + g.kv * dim, token_stride,
            run.count, dim, args.scale, scores + g.head * kChunk + at, kChunk);
      });
    });
    for (int64_t head = 0; head < q_heads; ++head) {
      softmax_terms(scores + head * kChunk, last - first, partial(b, head, i));
      std::fill_n(partial(b, head, i).out(), dim, 0.0F);
    }
    each_run(v_cache.ptr<float>(), [&](int64_t at, const Run& run, const HeadGroup& g) {
      with_count(g.count, [&](auto count) {
        weighted_values<decltype(count)::value>(
            scores + g.head * kChunk + at, kChunk, v_cache.ptr<float>() + run.offset + g.kv * dim,
            token_stride, run.count, dim, partial(b, g.head, i).out(), partial_stride);
      });
    });
  });
  parallel_ranges(sequences * q_heads, 8, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t b = row / q_heads, head = row % q_heads,
                    context = context_lens.ptr<int32_t>()[b];
      float* out = o.ptr<float>() + row * dim;
      std::fill_n(out, dim, 0.0F);
      const int64_t used = (context + kChunk - 1) / kChunk;
      float m = -std::numeric_limits<float>::infinity();
      for (int64_t i = 0; i < used; ++i) m = std::max(m, partial(b, head, i).maximum());
      double sum = 0;
      const auto weight = [&](const Partial& p) {
        return p.maximum() == m ? 1.0F : std::exp(p.maximum() - m);
      };
      for (int64_t i = 0; i < used; ++i) {
        const Partial p = partial(b, head, i);
        sum += static_cast<double>(weight(p)) * static_cast<double>(p.sum());
      }
      for (int64_t i = 0; i < used; ++i) {
        const Partial p = partial(b, head, i);
        const simd::V factor = simd::set(static_cast<float>(static_cast<double>(weight(p)) / sum));
        simd::for_lanes(dim, [&](int64_t j, auto... part) {
          simd::store(out + j,
                      simd::load(out + j, part...) + factor * simd::load(p.out() + j, part...),
                      part...);
        });
      }
    }
  });
}

}  // namespace r1::kernels::cpu
