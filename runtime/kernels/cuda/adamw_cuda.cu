// AdamW in one pass: every state is read and written once (30 bytes a parameter with fp32 states
// and bf16 weights, 14 with bf16 states). bf16 states without an fp32 master are rounded
// stochastically: the random bits come from Philox keyed by (seed, step, state, element), so a step
// repeats bit for bit. Eight elements share a draw (rounding.h): a draw an element cost more time
// than the memory.
#include <cmath>

#include "runtime/kernels/cuda/common.cuh"
#include "runtime/kernels/rounding.h"

namespace r1::kernels::cuda {
namespace {

constexpr int kThreads = 256;

// The scalar factors, formed in fp64 and rounded once.
struct Step {
  float decay, beta1, one_minus_beta1, beta2, one_minus_beta2, inverse_correction2, correction2, eps,
      minus_step_size;  // correction2 = 1 / inverse_correction2
  uint2 seed, step;
  int64_t first_element;
};

// Elements of a thread: a group of random bits where states are rounded, 16 bytes of fp32 otherwise.
template <class P, bool kMaster, class M>
constexpr int kVec = sizeof(M) == 2 || (!kMaster && sizeof(P) == 2) ? static_cast<int>(kRoundedTogether) : 4;

__device__ __forceinline__ float approximate_sqrt(float x) {
  float y;
  asm("sqrt.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// Of values that are no denormals, as a root's are not; 1 / 0 is infinite.
__device__ __forceinline__ float approximate_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// rounding.h's adamw_random of the group that holds element e.
__device__ __forceinline__ void group_words(const Step& a, RoundedState state, int64_t e, uint32_t (&words)[4]) {
  const auto group = static_cast<uint64_t>(e / kRoundedTogether);
  uint32_t c0 = static_cast<uint32_t>(group), c1 = static_cast<uint32_t>(group >> 32) | static_cast<uint32_t>(state) << 30,
           c2 = a.step.x, c3 = a.step.y;
  uint32_t k0 = a.seed.x, k1 = a.seed.y;
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c0, p1 = uint64_t{0xCD9E8D57u} * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  words[0] = c0, words[1] = c1, words[2] = c2, words[3] = c3;
}

// bf16 bits, in the upper half of the word, whose expectation over r (16 uniform bits) is x. Infinity and NaN stay: a NaN
// that arithmetic made has its upper bits set.
__device__ __forceinline__ uint32_t stochastic(float x, uint32_t r) {
  const uint32_t u = __float_as_uint(x);
  return fabsf(x) < INFINITY ? u + r : u;
}

// V values in registers, as they came from memory where that is bf16 (half the registers).
template <int V, class T>
struct Raw {
  static_assert(V * sizeof(T) % 16 == 0 || sizeof(T) == 2);
  uint32_t words[V * sizeof(T) / 4];

  __device__ __forceinline__ void load(const T* p) {
    using W = typename Word<(sizeof(words) < 16 ? static_cast<int>(sizeof(words)) : 16)>::type;
#pragma unroll
    for (int i = 0; i < static_cast<int>(sizeof(words) / sizeof(W)); ++i) {
      const W w = reinterpret_cast<const W*>(p)[i];
      memcpy(words + i * (sizeof(W) / 4), &w, sizeof(W));
    }
  }
  // Elements [0, count), the others as element 0.
  __device__ __forceinline__ void load(const T* p, int count) {
#pragma unroll  // a run-time index would move the registers to memory
    for (int j = 0; j < V; ++j) set(j, to_float(p[j < count ? j : 0]));
  }
  __device__ __forceinline__ void store(T* p) const {
    using W = typename Word<(sizeof(words) < 16 ? static_cast<int>(sizeof(words)) : 16)>::type;
#pragma unroll
    for (int i = 0; i < static_cast<int>(sizeof(words) / sizeof(W)); ++i) {
      W w;
      memcpy(&w, words + i * (sizeof(W) / 4), sizeof(W));
      reinterpret_cast<W*>(p)[i] = w;
    }
  }
  __device__ __forceinline__ void store(T* p, int count) const {
#pragma unroll
    for (int j = 0; j < V; ++j)
      if (j < count) p[j] = from_float<T>((*this)[j]);  // exact
  }
  __device__ __forceinline__ float operator[](int j) const {
    if constexpr (sizeof(T) == 4) return __uint_as_float(words[j]);
    else return __uint_as_float(j % 2 == 0 ? words[j / 2] << 16 : words[j / 2] & 0xffff0000u);
  }
  __device__ __forceinline__ void set(int j, float x) {
    if constexpr (sizeof(T) == 4) words[j] = __float_as_uint(x);
    else put(j, static_cast<uint32_t>(__bfloat16_as_ushort(__float2bfloat16_rn(x))) << 16);
  }
  // bf16 only: the upper half of `bits`.
  __device__ __forceinline__ void put(int j, uint32_t bits) {
    words[j / 2] = j % 2 == 0 ? __byte_perm(bits, words[j / 2], 0x7632) : __byte_perm(words[j / 2], bits, 0x7610);
  }
};

// The random bits of V elements of one state from element e on, drawn only where kRandom. V is a whole group; where the
// memory's groups are not the tensor's (a shard that begins within one), each element looks for its own.
template <bool kRandom, int V, bool kWholeGroup>
struct Noise {
  uint32_t words[4];
  __device__ __forceinline__ void draw(const Step& a, RoundedState state, int64_t e) {
    if constexpr (kRandom && kWholeGroup) group_words(a, state, e, words);
  }
  __device__ __forceinline__ uint32_t bits(const Step& a, RoundedState state, int64_t e, int j) {
    if constexpr (kWholeGroup) {
      return j % 2 == 0 ? words[j / 2] & 0xffffu : words[j / 2] >> 16;
    } else {
      const int k = static_cast<int>((e + j) % kRoundedTogether);
      if (j == 0 || k == 0) group_words(a, state, e + j, words);
      const uint32_t word = k < 4 ? (k < 2 ? words[0] : words[1]) : (k < 6 ? words[2] : words[3]);
      return k % 2 == 0 ? word & 0xffffu : word >> 16;
    }
  }
};

// kVector: whole vectors at 16-byte addresses, whose groups of random bits are the tensor's.
template <class P, bool kMaster, class G, class M, bool kVector>
__global__ void __launch_bounds__(kThreads)
    adamw_kernel(P* __restrict__ p, float* __restrict__ master, const G* __restrict__ g,
                 M* __restrict__ m, M* __restrict__ v, const float* __restrict__ grad_scale, Step a,
                 int64_t n) {
  constexpr bool kRandomP = !kMaster && sizeof(P) == 2, kRandomM = sizeof(M) == 2;
  constexpr int V = kVec<P, kMaster, M>;
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * V;
  if (i >= n) return;
  const int count = n - i < V ? static_cast<int>(n - i) : V;
  const bool whole = kVector && count == V;
  using W = std::conditional_t<kMaster, float, P>;  // what the weight is read from
  const W* weights;
  if constexpr (kMaster) weights = master + i;
  else weights = p + i;
  Raw<V, W> w;
  Raw<V, G> grad;
  Raw<V, M> mean, var;
  if (whole) {
    w.load(weights);
    grad.load(g + i);
    mean.load(m + i);
    var.load(v + i);
  } else {
    w.load(weights, count);
    grad.load(g + i, count);
    mean.load(m + i, count);
    var.load(v + i, count);
  }
  const float scale = *grad_scale;
  if (scale == 0.0F) return;
  Noise<kRandomP, V, kVector> noise_w;
  Noise<kRandomM, V, kVector> noise_m, noise_v;
  const int64_t e = a.first_element + i;
  noise_w.draw(a, RoundedState::kWeight, e);  // while the loads are under way
  noise_m.draw(a, RoundedState::kMean, e);
  noise_v.draw(a, RoundedState::kSquare, e);
  Raw<V, P> rounded_w;  // p beside a master: its rounding
#pragma unroll
  for (int j = 0; j < V; ++j) {
    // Fused by hand: left to the compiler, two instantiations might round differently.
    const float x = grad[j] * scale;
    const float mj = fmaf(mean[j], a.beta1, x * a.one_minus_beta1);
    const float vj = fmaf(var[j], a.beta2, x * x * a.one_minus_beta2);
    float update;
    if constexpr (kRandomM) {
      // Moments of 8 bits: a ratio good to 2^-21 loses nothing, and an exact root and quotients would cost more time than
      // the memory does.
      update = mj * approximate_reciprocal(fmaf(approximate_sqrt(vj), a.correction2, a.eps));
    } else {
      update = mj / (sqrtf(vj) / a.inverse_correction2 + a.eps);
    }
    const float wj = fmaf(a.minus_step_size, update, w[j] * a.decay);
    if constexpr (kMaster) {
      w.set(j, wj);
      rounded_w.set(j, wj);
    } else if constexpr (kRandomP) {
      rounded_w.put(j, stochastic(wj, noise_w.bits(a, RoundedState::kWeight, e, j)));
    } else {
      rounded_w.set(j, wj);
    }
    if constexpr (kRandomM) {
      mean.put(j, stochastic(mj, noise_m.bits(a, RoundedState::kMean, e, j)));
      var.put(j, stochastic(vj, noise_v.bits(a, RoundedState::kSquare, e, j)));
    } else {
      mean.set(j, mj);
      var.set(j, vj);
    }
  }
  if (whole) {
    if constexpr (kMaster) w.store(master + i);
    rounded_w.store(p + i);
    mean.store(m + i);
    var.store(v + i);
  } else {
    if constexpr (kMaster) w.store(master + i, count);
    rounded_w.store(p + i, count);
    mean.store(m + i, count);
    var.store(v + i, count);
  }
}

}  // namespace

void adamw_step(const Tensor& p, const Tensor& master, const Tensor& g, const Tensor& m,
                const Tensor& v, const Tensor& grad_scale, const AdamWArgs& args, const Stream& s) {
  const int64_t n = p.numel();
  if (n == 0) return;
  R1_CHECK(m.dtype == v.dtype, "adamw_step: m is {}, v is {}", dtype_name(m.dtype),
           dtype_name(v.dtype));
  const Launch l(s);
  const auto t = static_cast<double>(args.step);
  const auto count = static_cast<uint64_t>(args.step);
  const Step step{
      .decay = static_cast<float>(1.0 - args.lr * args.weight_decay),
      .beta1 = static_cast<float>(args.beta1),
      .one_minus_beta1 = static_cast<float>(1.0 - args.beta1),
      .beta2 = static_cast<float>(args.beta2),
      .one_minus_beta2 = static_cast<float>(1.0 - args.beta2),
      .inverse_correction2 = static_cast<float>(std::sqrt(1.0 - std::pow(args.beta2, t))),
      .correction2 = static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(args.beta2, t))),
      .eps = static_cast<float>(args.eps),
      .minus_step_size = static_cast<float>(-args.lr / (1.0 - std::pow(args.beta1, t))),
      .seed = {static_cast<uint32_t>(args.seed), static_cast<uint32_t>(args.seed >> 32)},
      .step = {static_cast<uint32_t>(count), static_cast<uint32_t>(count >> 32)},
      .first_element = args.first_element};
  const bool vector = all_aligned16(p.data, master.data, g.data, m.data, v.data) && args.first_element % kRoundedTogether == 0;
  dispatch(p.dtype, [&](auto* pt) {
    dispatch(g.dtype, [&](auto* gt) {
      dispatch(m.dtype, [&](auto* mt) {
        using P = Element<decltype(pt)>;
        using G = Element<decltype(gt)>;
        using M = Element<decltype(mt)>;
        auto go = [&](auto has_master, auto vec) {
          constexpr int kElements = kVec<P, decltype(has_master)::value, M>;
          const auto blocks = static_cast<unsigned>(ceil_div(n, int64_t{kThreads} * kElements));
          adamw_kernel<P, decltype(has_master)::value, G, M, decltype(vec)::value>
              <<<blocks, kThreads, 0, l.stream>>>(p.ptr<P>(), master.ptr<float>(), g.ptr<G>(),
                                                  m.ptr<M>(), v.ptr<M>(), grad_scale.ptr<float>(),
                                                  step, n);
        };
        if (!master.empty())
          vector ? go(std::true_type{}, std::true_type{}) : go(std::true_type{}, std::false_type{});
        else
          vector ? go(std::false_type{}, std::true_type{})
                 : go(std::false_type{}, std::false_type{});
      });
    });
  });
  CUDA_LAUNCH_CHECK();
}

}  // namespace r1::kernels::cuda
