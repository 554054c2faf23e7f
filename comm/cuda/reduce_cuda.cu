// Sums and maxima over ranks in rank order: out[i] = ((s0[i] + s1[i]) + s2[i]) ... Reads each
// source once, writes once; accumulates in fp32 for 16-bit types.
#include <algorithm>

#include "comm/cuda/comm_kernels.h"
#include "comm/cuda/element.cuh"
#include "runtime/device/cuda/check.h"

namespace r1::comm::cuda {
namespace {

constexpr int kMaxSources = 64;
constexpr int kThreads = 256;

struct Sources {
  const void* p[kMaxSources];
  int n;
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    reduce_kernel(Sources sources, typename T::Stored* out, int64_t numel, ReduceOp op) {
  using S = typename T::Stored;
  constexpr int kElems = Pack<S>::kElems;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads * kElems;
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kElems; i < numel;
       i += stride) {
    typename T::Acc acc[kElems];
    for (int r = 0; r < sources.n; ++r) {
      const S* p = static_cast<const S*>(sources.p[r]);
      const Pack<S> x = load_pack(p, i, numel, is_aligned(p));
#pragma unroll
      for (int k = 0; k < kElems; ++k)
        acc[k] = r == 0 ? T::load(x.v[k]) : combine<T>(op, acc[k], T::load(x.v[k]));
    }
    Pack<S> y;
#pragma unroll
    for (int k = 0; k < kElems; ++k) y.v[k] = T::store(acc[k]);
    store_pack(out, i, numel, is_aligned(out), y);
  }
}

}  // namespace

void reduce_in_order(DType dtype, ReduceOp op, std::span<const void* const> sources, void* out,
                     int64_t numel, cudaStream_t stream) {
  R1_CHECK(!sources.empty() && sources.size() <= kMaxSources, "{} sources of a reduction",
           sources.size());
  Sources all{};
  for (const void* p : sources) all.p[all.n++] = p;
  with_element(dtype, [&](auto type) {
    using T = decltype(type);
    using S = typename T::Stored;
    const int64_t packs = (numel + Pack<S>::kElems - 1) / Pack<S>::kElems;
    const auto blocks =
        static_cast<unsigned>(std::clamp<int64_t>((packs + kThreads - 1) / kThreads, 1, 1024));
    reduce_kernel<T><<<blocks, kThreads, 0, stream>>>(all, static_cast<S*>(out), numel, op);
  });
  CUDA_LAUNCH_CHECK();
}

}  // namespace r1::comm::cuda
