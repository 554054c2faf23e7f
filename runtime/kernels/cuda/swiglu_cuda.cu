// SwiGLU: h = silu(g) * u with gate_up [T, 2F] = g | u, silu(x) = x * sigmoid(x). fp32 inside.
// Forward moves 3F elements a token, backward 5F.
#include "runtime/kernels/cuda/common.cuh"

namespace r1::kernels::cuda {
namespace {

constexpr int kThreads = 256;

// x / (1 + exp(-x)) in a form that is exact at both ends: exp(-x) = inf gives 0 through the
// division.
__device__ __forceinline__ float sigmoid(float x) { return 1.0F / (1.0F + __expf(-x)); }

// A block covers kThreads * W columns of one token; blockIdx.x over tokens, so that the grid's fast
// axis is unlimited.
template <class T, int W>
__global__ void __launch_bounds__(kThreads)
    swiglu_forward_kernel(const T* __restrict__ gate_up, T* __restrict__ h, int64_t f) {
  const int64_t c = (static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x) * W;
  if (c >= f) return;
  const T* row = gate_up + static_cast<int64_t>(blockIdx.x) * 2 * f;
  const Floats<W> g = load<W>(row + c), u = load<W>(row + f + c);
  Floats<W> out;
#pragma unroll
  for (int j = 0; j < W; ++j) out.v[j] = g.v[j] * sigmoid(g.v[j]) * u.v[j];
  store<W>(h + static_cast<int64_t>(blockIdx.x) * f + c, out);
}

// In place allowed: a thread writes the two vectors it alone has read.
template <class T, int W>
__global__ void __launch_bounds__(kThreads)
    swiglu_backward_kernel(const T* __restrict__ dh, const T* gate_up, T* dgate_up, int64_t f) {
  const int64_t c = (static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x) * W;
  if (c >= f) return;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * 2 * f;
  const Floats<W> d = load<W>(dh + static_cast<int64_t>(blockIdx.x) * f + c);
  const Floats<W> g = load<W>(gate_up + row + c), u = load<W>(gate_up + row + f + c);
  Floats<W> dg, du;
#pragma unroll
  for (int j = 0; j < W; ++j) {
    const float s = sigmoid(g.v[j]);
    du.v[j] = d.v[j] * g.v[j] * s;
    dg.v[j] = d.v[j] * u.v[j] * s * (1.0F + g.v[j] * (1.0F - s));
  }
  store<W>(dgate_up + row + c, dg);
  store<W>(dgate_up + row + f + c, du);
}

template <class F>
void by_width(bool vector, F&& f) {
  if (vector)
    f(std::integral_constant<int, 8>{});
  else
    f(std::integral_constant<int, 1>{});
}

dim3 grid_of(int64_t tokens, int64_t f, int width) {
  const int64_t y = ceil_div(f, int64_t{kThreads} * width);
  R1_CHECK(y <= 65535, "swiglu: {} columns", f);
  return {static_cast<unsigned>(tokens), static_cast<unsigned>(y), 1};
}

}  // namespace

void swiglu_forward(const Tensor& gate_up, const Tensor& h, const Stream& s) {
  const int64_t tokens = h.dim(0), f = h.dim(1);
  if (tokens == 0 || f == 0) return;
  const Launch l(s);
  by_width(f % 8 == 0 && all_aligned16(gate_up.data, h.data), [&](auto w) {
    dispatch(h.dtype, [&](auto* tag) {
      using T = Element<decltype(tag)>;
      swiglu_forward_kernel<T, decltype(w)::value>
          <<<grid_of(tokens, f, w), kThreads, 0, l.stream>>>(gate_up.ptr<T>(), h.ptr<T>(), f);
    });
  });
  CUDA_LAUNCH_CHECK();
}

void swiglu_backward(const Tensor& dh, const Tensor& gate_up, const Tensor& dgate_up,
                     const Stream& s) {
  const int64_t tokens = dh.dim(0), f = dh.dim(1);
  if (tokens == 0 || f == 0) return;
  const Launch l(s);
  by_width(f % 8 == 0 && all_aligned16(dh.data, gate_up.data, dgate_up.data), [&](auto w) {
    dispatch(dh.dtype, [&](auto* tag) {
      using T = Element<decltype(tag)>;
      swiglu_backward_kernel<T, decltype(w)::value>
          <<<grid_of(tokens, f, w), kThreads, 0, l.stream>>>(dh.ptr<T>(), gate_up.ptr<T>(),
                                                             dgate_up.ptr<T>(), f);
    });
  });
  CUDA_LAUNCH_CHECK();
}

}  // namespace r1::kernels::cuda
