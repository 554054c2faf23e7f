// The draw of tokens (ops.h): one block a row, so a row's token depends on nothing else.
//
//   1. the largest logit (a greedy row ends here);
//   2. where top-k or top-p cut: the candidates, those with a z of kLowestZ or more, into shared memory as keys of
//      sample_order. Where they are too many (a flat distribution), each later pass reads the logits again;
//   3. the key of the last candidate kept, by radix selection: a histogram of the key's highest digit over the candidates,
//      the bin in which the wanted sum is reached, then the next digit over the candidates in that bin. Top-k sums counts,
//      top-p masses in fixed point (sample_mass): atomic additions of integers give the same sums in any order;
//   4. the largest z + Gumbel noise among the candidates kept. No variate is formed for a token that cannot win.
//
// z, exp and log are fp64. Bytes: the logits once or twice where the candidates fit, up to 13 times (from L2) where not. H200,
// 1 to 64 rows of 151,936 logits, top-p 0.95, too many candidates: 341 us.
#include <algorithm>
#include <cmath>

#include "runtime/kernels/cuda/common.cuh"
#include "runtime/kernels/sample.h"

namespace r1::kernels::cuda {
namespace {

constexpr int kThreads = 1024, kWarps = kThreads / kWarp;
constexpr int kLoads = 4;  // logits that a thread has under way
constexpr int kDigitBits = 11, kBins = 1 << kDigitBits, kBinsAThread = kBins / kThreads;
constexpr int kListed = 8192;      // candidates in shared memory
constexpr int kRowsALaunch = 128;  // rows travel as kernel arguments

/// SampleRow as the kernel wants it.
struct Row {
  double temperature, top_p, least_z, penalty;
  uint64_t key, request, position;
  int32_t row, top_k, seen;
};

template <class T>
struct Arguments {
  const T* logits;
  const uint32_t* seen;
  int32_t* tokens;
  int64_t rows;  // of the logits
  int32_t words, parts;
  int32_t vocab_begin[kMaxVocabParts + 1];
  Row row[kRowsALaunch];
};

struct Best {
  double value;
  int32_t id;
};
constexpr int32_t kNoId = 0x7fffffff;
__device__ Best better(Best a, Best b) { return a.value > b.value || (a.value == b.value && a.id < b.id) ? a : b; }

struct Shared {
  uint32_t low[kBins], high[kBins];  // halves of 64-bit sums: shared memory adds 32 bits at a time
  uint64_t list[kListed];
  uint64_t warp_sums[kWarps];
  Best warp_best[kWarps];
  int32_t candidates;  // listed or not
  struct {
    int32_t bin;
    uint64_t above, sum;  // of the bins above it, of the bin
  } reached;
};

/// The larger value of all threads, of equal ones the smaller id; in every thread.
__device__ Best block_best(Best b, Shared& s) {
  const auto across = [](Best x) {
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2)
      x = better(x, Best{__shfl_xor_sync(0xffffffffu, x.value, offset), __shfl_xor_sync(0xffffffffu, x.id, offset)});
    return x;
  };
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  b = across(b);
  __syncthreads();  // the slots may still be read
  if (lane == 0) s.warp_best[warp] = b;
  __syncthreads();
  return across(lane < kWarps ? s.warp_best[lane] : Best{-INFINITY, kNoId});
}

/// Inclusive sums over the lanes of a warp.
__device__ uint64_t warp_scan(uint64_t x) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const uint64_t below = __shfl_up_sync(0xffffffffu, static_cast<unsigned long long>(x), offset);
    if (lane >= offset) x += below;
  }
  return x;
}

__device__ void add_to_bin(Shared& s, int bin, uint64_t amount) {
  const auto low = static_cast<uint32_t>(amount);
  const uint32_t before = atomicAdd(&s.low[bin], low);
  const uint32_t high = static_cast<uint32_t>(amount >> 32) + (before + low < before ? 1 : 0);
  if (high != 0) atomicAdd(&s.high[bin], high);
}

/// The row of one block.
template <class T>
struct BlockRow {
  const Arguments<T>& a;
  const Row& r;
  Shared& s;
  float largest = 0, lowest = 0;
  bool listed = false;

  /// use(logit, id) of each token, by the threads in turn; ids rise within a thread.
  template <class F>
  __device__ void each_logit(F&& use) const {
    const uint32_t* seen = r.seen < 0 ? nullptr : a.seen + static_cast<int64_t>(r.seen) * a.words;
    for (int p = 0; p < a.parts; ++p) {
      const int begin = a.vocab_begin[p], width = a.vocab_begin[p + 1] - begin;
      const T* x = a.logits + a.rows * begin + static_cast<int64_t>(r.row) * width;
      for (int i = static_cast<int>(threadIdx.x); i < width; i += kLoads * kThreads) {
        float v[kLoads];
#pragma unroll
        for (int j = 0; j < kLoads; ++j) v[j] = i + j * kThreads < width ? to_float(x[i + j * kThreads]) : 0.0F;
#pragma unroll
        for (int j = 0; j < kLoads; ++j) {
          if (i + j * kThreads >= width) break;
          const int id = begin + i + j * kThreads;
          if (seen != nullptr && (seen[static_cast<uint32_t>(id) / 32] >> (id % 32) & 1) != 0)
            v[j] = penalised(v[j], r.penalty);
          use(v[j], id);
        }
      }
    }
  }
  __device__ double z_of(float logit) const {
    return (static_cast<double>(logit) - static_cast<double>(largest)) / r.temperature;
  }
  /// use(order, z) of each candidate that is `wanted` (by its order: z costs a division in fp64).
  template <class Wanted, class F>
  __device__ void each_candidate(const Wanted& wanted, F&& use) const {
    if (listed) {
      for (int i = static_cast<int>(threadIdx.x); i < s.candidates; i += kThreads) {
        const uint64_t order = s.list[i];
        if (wanted(order)) use(order, z_of(ordered_logit(order)));
      }
      return;
    }
    each_logit([&](float logit, int id) {
      if (logit < lowest) return;
      const uint64_t order = sample_order(logit, id);
      if (!wanted(order)) return;
      const double z = z_of(logit);
      if (z >= kLowestZ) use(order, z);
    });
  }

  /// The likeliest token; kNoId where no token is to be chosen.
  __device__ int32_t find_largest() {
    Best best{-INFINITY, kNoId};
    bool nan = false;
    each_logit([&](float logit, int id) {
      nan = nan || isnan(logit);
      if (static_cast<double>(logit) > best.value) best = {static_cast<double>(logit), id};
    });
    if (__syncthreads_or(nan ? 1 : 0) != 0) return kNoId;
    best = block_best(best, s);
    if (isinf(best.value)) return kNoId;
    largest = static_cast<float>(best.value);
    lowest = lowest_logit(largest, r.temperature);
    return best.id;
  }

  __device__ void list_candidates() {
    if (threadIdx.x == 0) s.candidates = 0;
    __syncthreads();
    each_candidate([](uint64_t) { return true; }, [&](uint64_t order, double) {
      const int at = atomicAdd(&s.candidates, 1);
      if (at < kListed) s.list[at] = order;
    });
    __syncthreads();
    listed = s.candidates <= kListed;
  }

  /// The key at which the candidates of at least `least`, from the greatest down, reach a sum of `weight`s:
  /// needed(total of all), 1 at least and not more than the total. All keys from it on together have that sum, and none
  /// that lies above it is left out.
  template <class Weight, class Needed>
  __device__ uint64_t reach(uint64_t least, const Weight& weight, const Needed& needed) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
    uint64_t prefix = 0, above = 0, wanted = 0;  // of the key's digits found; the sum of greater prefixes
    for (int end = kSampleOrderBits, shift = 0; end > 0; end = shift) {
      shift = end > kDigitBits ? end - kDigitBits : 0;
      for (int i = static_cast<int>(threadIdx.x); i < kBins; i += kThreads) s.low[i] = s.high[i] = 0;
      __syncthreads();
      each_candidate([&](uint64_t order) { return order >= least && order >> end == prefix; },
                     [&](uint64_t order, double z) {
                       const uint64_t w = weight(z), digit = order >> shift & ((uint64_t{1} << (end - shift)) - 1);
                       if (w != 0) add_to_bin(s, static_cast<int>(digit), w);
                     });
      __syncthreads();
      // Each thread has neighbouring bins, the first thread the greatest.
      uint64_t bins[kBinsAThread], sum = 0;
      const int first = kBins - 1 - static_cast<int>(threadIdx.x) * kBinsAThread;
#pragma unroll
      for (int j = 0; j < kBinsAThread; ++j) {
        bins[j] = uint64_t{s.high[first - j]} << 32 | s.low[first - j];
        sum += bins[j];
      }
      const uint64_t in_warp = warp_scan(sum);
      if (lane == kWarp - 1) s.warp_sums[warp] = in_warp;
      __syncthreads();
      const uint64_t warps = warp_scan(lane < kWarps ? s.warp_sums[lane] : 0);
      const uint64_t total = __shfl_sync(0xffffffffu, static_cast<unsigned long long>(warps), kWarp - 1);
      const uint64_t others = __shfl_sync(0xffffffffu, static_cast<unsigned long long>(warps), warp > 0 ? warp - 1 : 0);
      if (end == kSampleOrderBits) wanted = needed(total);
      uint64_t before = above + in_warp - sum + (warp > 0 ? others : 0);
#pragma unroll
      for (int j = 0; j < kBinsAThread; ++j) {
        if (before < wanted && wanted <= before + bins[j])
          s.reached = {.bin = first - j, .above = before, .sum = bins[j]};  // one thread, once
        before += bins[j];
      }
      __syncthreads();
      prefix = prefix << (end - shift) | static_cast<uint64_t>(s.reached.bin);
      above = s.reached.above;
      if (above + s.reached.sum == wanted) return prefix << shift;  // the whole bin
    }
    return prefix;
  }

  /// The least key that top-k and top-p keep.
  __device__ uint64_t cut() {
    uint64_t least = 0;
    if (r.top_k > 0 && r.top_k < s.candidates)
      least = reach(0, [](double) { return uint64_t{1}; }, [&](uint64_t) { return static_cast<uint64_t>(r.top_k); });
    if (r.top_p < 1) {
      const uint64_t key = reach(least, [](double z) { return sample_mass(exp(z)); },
                                 [&](uint64_t total) { return mass_to_reach(r.top_p, total); });
      least = key > least ? key : least;
    }
    return least;
  }

  __device__ double score(double z, uint32_t word) const { return z - log(-log(draw_uniform(word))); }

  /// The winner among the candidates from `least` on. `likeliest` is one of them unless min-p leaves none.
  __device__ int32_t draw(uint64_t least, int32_t likeliest) {
    if (r.least_z > 0) return -1;
    const auto word_of = [&](int32_t id) {
      return draw_word(r.key, r.request, static_cast<int64_t>(r.position), id);
    };
    __syncthreads();  // the slots may still be read
    if (threadIdx.x == 0) s.warp_best[0] = {score(0, word_of(likeliest)), likeliest};
    __syncthreads();
    Best best = s.warp_best[0];
    each_candidate([&](uint64_t order) { return order >= least; }, [&](uint64_t order, double z) {
      if (z < r.least_z || z + kLargestGumbel < best.value) return;
      const int32_t id = ordered_id(order);
      const uint32_t word = word_of(id);
      // -log(u) >= 1 - u: a token whose 1 - u is above exp(z - best) scores less than the best. In fp32, which errs by much
      // less than 1 in 1,000 here.
      if (static_cast<float>(~word) * 0x1p-32F > 1.001F * expf(static_cast<float>(z - best.value))) return;
      best = better(best, Best{score(z, word), id});
    });
    return block_best(best, s).id;
  }

  __device__ int32_t choose() {
    const int32_t likeliest = find_largest();
    if (likeliest == kNoId) return -1;
    if (r.temperature == 0) return likeliest;
    uint64_t least = 0;
    if (r.top_k > 0 || r.top_p < 1) {
      list_candidates();
      least = cut();
    }
    return draw(least, likeliest);
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads) sample_kernel(const __grid_constant__ Arguments<T> a) {
  extern __shared__ __align__(16) unsigned char memory[];
  BlockRow<T> row{.a = a, .r = a.row[blockIdx.x], .s = *reinterpret_cast<Shared*>(memory)};
  const int32_t token = row.choose();
  if (threadIdx.x == 0) a.tokens[blockIdx.x] = token;
}

}  // namespace

void sample(const Tensor& logits, std::span<const int64_t> vocab_begin, std::span<const SampleRow> rows,
            const Tensor& seen, const Tensor& tokens, const Stream& s) {
  if (rows.empty()) return;
  const Launch l(s);
  const int64_t vocab = vocab_begin.back();
  dispatch(logits.dtype, [&](auto* tag) {
    using T = Element<decltype(tag)>;
    Arguments<T> a{.logits = logits.ptr<T>(),
                   .seen = seen.ptr<uint32_t>(),
                   .tokens = tokens.ptr<int32_t>(),
                   .rows = logits.numel() / vocab,
                   .words = static_cast<int32_t>(seen_words(vocab)),
                   .parts = static_cast<int32_t>(vocab_begin.size()) - 1,
                   .vocab_begin = {},
                   .row = {}};
    for (size_t p = 0; p < vocab_begin.size(); ++p) a.vocab_begin[p] = static_cast<int32_t>(vocab_begin[p]);
    CUDA_CHECK(cudaFuncSetAttribute(sample_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(sizeof(Shared))));
    for (size_t first = 0; first < rows.size(); first += kRowsALaunch) {
      const size_t count = std::min<size_t>(rows.size() - first, kRowsALaunch);
      for (size_t i = 0; i < count; ++i) {
        const SampleRow& r = rows[first + i];
        a.row[i] = {.temperature = r.temperature,
                    .top_p = r.top_p,
                    .least_z = r.min_p > 0 ? std::log(r.min_p) : -INFINITY,
                    .penalty = r.repetition_penalty,
                    .key = draw_key(r.seed),
                    .request = r.request,
                    .position = static_cast<uint64_t>(r.position),
                    .row = static_cast<int32_t>(r.row),
                    .top_k = static_cast<int32_t>(std::min(r.top_k, kMaxSampleVocab)),
                    .seen = static_cast<int32_t>(r.seen)};
      }
      sample_kernel<T><<<static_cast<unsigned>(count), kThreads, sizeof(Shared), l.stream>>>(a);
      CUDA_LAUNCH_CHECK();
      a.tokens += count;
    }
  });
}

}  // namespace r1::kernels::cuda
