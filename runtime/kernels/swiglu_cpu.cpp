#include "runtime/device/cpu/thread_pool.h"
#include "runtime/kernels/cpu_kernels.h"
#include "runtime/kernels/simd_cpu.h"

namespace r1::kernels::cpu {
namespace {

constexpr int64_t kRows = 8;  // tokens of a task

simd::V sigmoid(simd::V x) { return simd::set(1.0F) / (simd::set(1.0F) + simd::exp(-x)); }

}  // namespace

void swiglu_forward(const Tensor& gate_up, const Tensor& h, const Stream&) {
  const int64_t tokens = h.dim(0), ffn = h.dim(1);
  parallel_ranges(tokens, kRows, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* gate = gate_up.ptr<float>() + t * 2 * ffn;
      const float* up = gate + ffn;
      float* out = h.ptr<float>() + t * ffn;
      simd::for_lanes(ffn, [&](int64_t i, auto... part) {
        const simd::V g = simd::load(gate + i, part...);
        simd::store(out + i, g * sigmoid(g) * simd::load(up + i, part...), part...);
      });
    }
  });
}

void swiglu_backward(const Tensor& dh, const Tensor& gate_up, const Tensor& dgate_up,
                     const Stream&) {
  const int64_t tokens = dh.dim(0), ffn = dh.dim(1);
  parallel_ranges(tokens, kRows, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* d = dh.ptr<float>() + t * ffn;
      const float* gate = gate_up.ptr<float>() + t * 2 * ffn;
      float* dgate = dgate_up.ptr<float>() + t * 2 * ffn;
      simd::for_lanes(ffn, [&](int64_t i, auto... part) {
        const simd::V g = simd::load(gate + i, part...), u = simd::load(gate + ffn + i, part...);
        const simd::V dy = simd::load(d + i, part...);
        const simd::V s = sigmoid(g), silu = g * s;
        // silu'(g) = s (1 + g (1 - s)) = s + silu (1 - s)
        simd::store(dgate + i, dy * u * (s + silu * (simd::set(1.0F) - s)), part...);
        simd::store(dgate + ffn + i, dy * silu, part...);
      });
    }
  });
}

}  // namespace r1::kernels::cpu
