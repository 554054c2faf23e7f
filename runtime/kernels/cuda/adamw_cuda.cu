// AdamW in one pass: every state is read and written once (30 bytes a parameter with fp32 states
// and bf16 weights, 14 with bf16 states). bf16 states without an fp32 master are rounded
// stochastically: the random bits come from Philox keyed by (seed, step, element), so a step
// repeats bit for bit.
#include <cmath>

#include "runtime/kernels/cuda/common.cuh"

namespace r1::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kVec = 4;

// The scalar factors, formed in fp64 and rounded once.
struct Step {
  float decay, beta1, one_minus_beta1, beta2, one_minus_beta2, inverse_correction2, eps,
      minus_step_size;
  uint2 seed, step;
  int64_t first_element;
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

// bf16 value whose expectation over r (16 uniform bits) is x; returned as the fp32 that the stored
// bits mean.
__device__ __forceinline__ float stochastic(float x, uint32_t r) {
  const uint32_t u = __float_as_uint(x);
  if ((u & 0x7f800000u) == 0x7f800000u) return x;  // infinities and NaN stay
  return __uint_as_float((u + (r & 0xffffu)) & 0xffff0000u);
}

template <class P, bool kMaster, class G, class M, bool kVector>
__global__ void __launch_bounds__(kThreads)
    adamw_kernel(P* __restrict__ p, float* __restrict__ master, const G* __restrict__ g,
                 M* __restrict__ m, M* __restrict__ v, const float* __restrict__ grad_scale, Step a,
                 int64_t n) {
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
#pragma unroll  // a run-time index would move the registers to memory
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
#pragma unroll
  for (int j = 0; j < kVec; ++j) {
    const float x = grad.v[j] * scale;
    w.v[j] *= a.decay;
    mean.v[j] = mean.v[j] * a.beta1 + x * a.one_minus_beta1;
    var.v[j] = var.v[j] * a.beta2 + x * x * a.one_minus_beta2;
    w.v[j] += a.minus_step_size * (mean.v[j] / (sqrtf(var.v[j]) / a.inverse_correction2 + a.eps));
    if constexpr (kRandomP || kRandomM) {  // the words of rounding.h: 0 for p, 1 for m, 2 for v
      const auto e = static_cast<uint64_t>(a.first_element + i + j);
      const uint4 random = philox(
          {static_cast<uint32_t>(e), static_cast<uint32_t>(e >> 32), a.step.x, a.step.y}, a.seed);
      if constexpr (kRandomP) w.v[j] = stochastic(w.v[j], random.x);
      if constexpr (kRandomM) {
        mean.v[j] = stochastic(mean.v[j], random.y);
        var.v[j] = stochastic(var.v[j], random.z);
      }
    }
  }
  if (whole) {
    if constexpr (kMaster) store<kVec>(master + i, w);
    store<kVec>(p + i, w);
    store<kVec>(m + i, mean);
    store<kVec>(v + i, var);
  } else {
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      if (j >= count) break;
      if constexpr (kMaster) master[i + j] = w.v[j];
      p[i + j] = from_float<P>(w.v[j]);
      m[i + j] = from_float<M>(mean.v[j]);
      v[i + j] = from_float<M>(var.v[j]);
    }
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
      .eps = static_cast<float>(args.eps),
      .minus_step_size = static_cast<float>(-args.lr / (1.0 - std::pow(args.beta1, t))),
      .seed = {static_cast<uint32_t>(args.seed), static_cast<uint32_t>(args.seed >> 32)},
      .step = {static_cast<uint32_t>(count), static_cast<uint32_t>(count >> 32)},
      .first_element = args.first_element};
  const bool vector = all_aligned16(p.data, master.data, g.data, m.data, v.data);
  const auto blocks = static_cast<unsigned>(ceil_div(n, int64_t{kThreads} * kVec));
  dispatch(p.dtype, [&](auto* pt) {
    dispatch(g.dtype, [&](auto* gt) {
      dispatch(m.dtype, [&](auto* mt) {
        using P = Element<decltype(pt)>;
        using G = Element<decltype(gt)>;
        using M = Element<decltype(mt)>;
        auto go = [&](auto has_master, auto vec) {
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
