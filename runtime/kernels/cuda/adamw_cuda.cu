// AdamW in one pass: every state is read and written once (30 bytes a parameter with fp32 states and bf16 weights, 14
// with bf16 states). bf16 states without an fp32 master are rounded stochastically: the random bits come from Philox
// keyed by (seed, step, element), so a step repeats bit for bit.
#include "runtime/core/rng.h"
#include "runtime/kernels/cuda/common.cuh"

namespace r1::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kVec = 4;

struct Step {
  float lr, beta1, beta2, eps, decay;  // decay = 1 - lr * weight_decay
  float step_size, denominator_scale;  // lr / (1 - b1^t), 1 / sqrt(1 - b2^t)
  uint64_t seed;
  uint32_t step;
};

__device__ __forceinline__ uint4 philox(uint4 c, uint2 k) {
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint32_t h0 = __umulhi(0xD2511F53u, c.x), l0 = 0xD2511F53u * c.x;
    const uint32_t h1 = __umulhi(0xCD9E8D57u, c.z), l1 = 0xCD9E8D57u * c.z;
    c = {h1 ^ c.y ^ k.x, l1, h0 ^ c.w ^ k.y, l0};
    k.x += 0x9E3779B9u;
    k.y += 0xBB67AE85u;
  }
  return c;
}

// bf16 value whose expectation over r (16 uniform bits) is x; returned as the fp32 that the stored bits mean.
__device__ __forceinline__ float stochastic(float x, uint32_t r) {
  const uint32_t u = __float_as_uint(x);
  if ((u & 0x7f800000u) == 0x7f800000u) return x;  // infinities and NaN stay
  return __uint_as_float((u + (r & 0xffffu)) & 0xffff0000u);
}

template <class P, bool kMaster, class G, class M, bool kVector>
__global__ void __launch_bounds__(kThreads) adamw_kernel(P* __restrict__ p, float* __restrict__ master, const G* __restrict__ g,
                                                         M* __restrict__ m, M* __restrict__ v,
                                                         const float* __restrict__ grad_scale, Step a, int64_t n) {
  constexpr bool kRandomP = !kMaster && sizeof(P) == 2, kRandomM = sizeof(M) == 2;
  const float scale = *grad_scale;
  if (scale == 0.0F) return;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t i = index * kVec;
  if (i >= n) return;
  const int count = n - i < kVec ? static_cast<int>(n - i) : kVec;
  const bool whole = kVector && count == kVec;
  Floats<kVec> w, grad, mean, var;
  if (whole) {
    if constexpr (kMaster)
      w = load<kVec>(master + i);
    else
      w = load<kVec>(p + i);
    grad = load<kVec>(g + i);
    mean = load<kVec>(m + i);
    var = load<kVec>(v + i);
  } else {
    for (int j = 0; j < kVec; ++j) {
      const int64_t e = i + (j < count ? j : 0);
      if constexpr (kMaster)
        w.v[j] = master[e];
      else
        w.v[j] = to_float(p[e]);
      grad.v[j] = to_float(g[e]);
      mean.v[j] = to_float(m[e]);
      var.v[j] = to_float(v[e]);
    }
  }
  uint32_t random[8];
  if constexpr (kRandomP || kRandomM) {
    const uint2 key{static_cast<uint32_t>(a.seed), static_cast<uint32_t>(a.seed >> 32)};
    const uint4 c{static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), a.step, 0u};
    const uint4 r0 = philox(c, key);
    random[0] = r0.x, random[1] = r0.y, random[2] = r0.z, random[3] = r0.w;
    if constexpr (kRandomM) {
      const uint4 r1 = philox({c.x, c.y, c.z, 1u}, key);
      random[4] = r1.x, random[5] = r1.y, random[6] = r1.z, random[7] = r1.w;
    }
  }
#pragma unroll
  for (int j = 0; j < kVec; ++j) {
    const float x = grad.v[j] * scale;
    w.v[j] *= a.decay;
    mean.v[j] = a.beta1 * mean.v[j] + (1.0F - a.beta1) * x;
    var.v[j] = a.beta2 * var.v[j] + (1.0F - a.beta2) * x * x;
    w.v[j] -= a.step_size * mean.v[j] / (sqrtf(var.v[j]) * a.denominator_scale + a.eps);
    if constexpr (kRandomM) {
      mean.v[j] = stochastic(mean.v[j], random[4 + j]);
      var.v[j] = stochastic(var.v[j], random[4 + j] >> 16);
    }
    if constexpr (kRandomP) w.v[j] = stochastic(w.v[j], random[j]);
  }
  if (whole) {
    if constexpr (kMaster) store<kVec>(master + i, w);
    store<kVec>(p + i, w);
    store<kVec>(m + i, mean);
    store<kVec>(v + i, var);
  } else {
    for (int j = 0; j < count; ++j) {
      if constexpr (kMaster) master[i + j] = w.v[j];
      p[i + j] = from_float<P>(w.v[j]);
      m[i + j] = from_float<M>(mean.v[j]);
      v[i + j] = from_float<M>(var.v[j]);
    }
  }
}

}  // namespace

void adamw_step(const Tensor& p, const Tensor& master, const Tensor& g, const Tensor& m, const Tensor& v,
                const Tensor& grad_scale, const AdamWArgs& args, const Stream& s) {
  const int64_t n = p.numel();
  if (n == 0) return;
  R1_CHECK(m.dtype == v.dtype, "adamw_step: m is {}, v is {}", dtype_name(m.dtype), dtype_name(v.dtype));
  const Launch l(s);
  const double t = static_cast<double>(args.step);
  const Step step{.lr = args.lr,
                  .beta1 = args.beta1,
                  .beta2 = args.beta2,
                  .eps = args.eps,
                  .decay = 1.0F - args.lr * args.weight_decay,
                  .step_size = static_cast<float>(args.lr / (1.0 - std::pow(static_cast<double>(args.beta1), t))),
                  .denominator_scale = static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(static_cast<double>(args.beta2), t))),
                  .seed = args.seed,
                  .step = static_cast<uint32_t>(args.step)};
  const bool vector = all_aligned16(p.data, master.data, g.data, m.data, v.data);
  const auto blocks = static_cast<unsigned>(ceil_div(n, int64_t{kThreads} * kVec));
  dispatch(p.dtype, [&](auto* pt) {
    dispatch(g.dtype, [&](auto* gt) {
      dispatch(m.dtype, [&](auto* mt) {
        using P = Element<decltype(pt)>;
        using G = Element<decltype(gt)>;
        using M = Element<decltype(mt)>;
        auto go = [&](auto has_master, auto vec) {
          adamw_kernel<P, decltype(has_master)::value, G, M, decltype(vec)::value><<<blocks, kThreads, 0, l.stream>>>(
              p.ptr<P>(), master.ptr<float>(), g.ptr<G>(), m.ptr<M>(), v.ptr<M>(), grad_scale.ptr<float>(), step, n);
        };
        if (!master.empty())
          vector ? go(std::true_type{}, std::true_type{}) : go(std::true_type{}, std::false_type{});
        else
          vector ? go(std::false_type{}, std::true_type{}) : go(std::false_type{}, std::false_type{});
      });
    });
  });
  CUDA_LAUNCH_CHECK();
}

}  // namespace r1::kernels::cuda
