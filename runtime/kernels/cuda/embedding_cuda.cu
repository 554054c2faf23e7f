// Embedding rows: gather, and the gradient's scatter without atomics.
//
// Backward: the tokens are sorted by id (stable, so a row's tokens stay in order), the sorted list
// is cut into chunks of fixed length, and a block sums the runs of equal ids in its chunk. A run
// inside a chunk is added to dw at once; the pieces of a run that crosses chunks are kept and added
// in chunk order by a second kernel. A token that fills half of the batch (padding, newline) is
// thus still spread over many blocks, and the sums repeat bit for bit.
#include <cub/device/device_radix_sort.cuh>

#include "runtime/kernels/cuda/common.cuh"

namespace r1::kernels::cuda {
namespace {

constexpr int kThreads = 256;

template <class T, int W>
__global__ void __launch_bounds__(kThreads)
    gather_kernel(const int* __restrict__ ids, const T* __restrict__ w, int64_t vocab_begin,
                  int64_t vocab, T* __restrict__ y, int64_t h) {
  const int64_t c = (static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x) * W;
  if (c >= h) return;
  const int64_t id = ids[blockIdx.x] - vocab_begin;
  Floats<W> v;
  if (id >= 0 && id < vocab) {
    v = load<W>(w + id * h + c);
  } else {
#pragma unroll
    for (int j = 0; j < W; ++j) v.v[j] = 0;
  }
  store<W>(y + static_cast<int64_t>(blockIdx.x) * h + c, v);
}

// Ids of other ranks' parts sort behind all of ours and are never touched.
__global__ void __launch_bounds__(kThreads)
    keys_kernel(const int* __restrict__ ids, int64_t vocab_begin, int64_t vocab, int64_t tokens,
                uint32_t* __restrict__ keys, uint32_t* __restrict__ positions) {
  const int64_t t = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (t >= tokens) return;
  const int64_t id = ids[t] - vocab_begin;
  keys[t] = static_cast<uint32_t>(id >= 0 && id < vocab ? id : vocab);
  positions[t] = static_cast<uint32_t>(t);
}

// pieces [chunks, 2, H]: 0 the run that came from the chunk before, 1 the run that begins here and
// goes on.
template <class T, class G, int W>
__global__ void __launch_bounds__(kThreads)
    chunk_kernel(const uint32_t* __restrict__ keys, const uint32_t* __restrict__ positions,
                 const T* __restrict__ dy, G* __restrict__ dw, float* __restrict__ pieces,
                 int64_t tokens, int chunk, uint32_t vocab, int64_t h) {
  const int64_t c = (static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x) * W;
  if (c >= h) return;
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * chunk;
  const int64_t end = begin + chunk < tokens ? begin + chunk : tokens;
  int64_t p = begin;
  while (p < end) {
    const uint32_t key = keys[p];
    if (key >= vocab) return;
    const bool continued = p == begin && begin > 0 && keys[begin - 1] == key;
    Floats<W> sum;
#pragma unroll
    for (int j = 0; j < W; ++j) sum.v[j] = 0;
    int64_t q = p;
    while (q < end && keys[q] == key) ++q;
#pragma unroll 4
    for (int64_t i = p; i < q; ++i) {
      const Floats<W> x = load<W>(dy + static_cast<int64_t>(positions[i]) * h + c);
#pragma unroll
      for (int j = 0; j < W; ++j) sum.v[j] += x.v[j];
    }
    const bool goes_on = q == end && end < tokens && keys[end] == key;
    if (continued || goes_on) {
      store<W>(pieces + (static_cast<int64_t>(blockIdx.x) * 2 + (continued ? 0 : 1)) * h + c, sum);
    } else {
      G* out = dw + static_cast<int64_t>(key) * h + c;
      Floats<W> old = load<W>(out);
#pragma unroll
      for (int j = 0; j < W; ++j) old.v[j] += sum.v[j];
      store<W>(out, old);
    }
    p = q;
  }
}

// One block a chunk in which a run begins that goes on: adds its pieces in order.
template <class G, int W>
__global__ void __launch_bounds__(kThreads)
    pieces_kernel(const uint32_t* __restrict__ keys, const float* __restrict__ pieces,
                  G* __restrict__ dw, int64_t tokens, int chunk, uint32_t vocab, int64_t h) {
  const int64_t c = (static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x) * W;
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * chunk, end = begin + chunk;
  if (c >= h || end >= tokens) return;
  const uint32_t key = keys[end - 1];
  if (key >= vocab || keys[end] != key) return;
  if (begin > 0 && keys[begin] == key && keys[begin - 1] == key)
    return;  // the run began in an earlier chunk
  Floats<W> sum = load<W>(pieces + (static_cast<int64_t>(blockIdx.x) * 2 + 1) * h + c);
  for (int64_t k = blockIdx.x + 1; k * chunk < tokens && keys[k * chunk] == key; ++k) {
    const Floats<W> x = load<W>(pieces + k * 2 * h + c);
#pragma unroll
    for (int j = 0; j < W; ++j) sum.v[j] += x.v[j];
  }
  G* out = dw + static_cast<int64_t>(key) * h + c;
  Floats<W> old = load<W>(out);
#pragma unroll
  for (int j = 0; j < W; ++j) old.v[j] += sum.v[j];
  store<W>(out, old);
}

template <class F>
void by_width(bool vector, F&& f) {
  if (vector)
    f(std::integral_constant<int, 8>{});
  else
    f(std::integral_constant<int, 1>{});
}

size_t round_up(size_t n) { return (n + 255) / 256 * 256; }

}  // namespace

void embedding_forward(const Tensor& ids, const Tensor& w, int64_t vocab_begin, const Tensor& y,
                       const Stream& s) {
  const int64_t tokens = y.dim(0), h = y.dim(1);
  if (tokens == 0 || h == 0) return;
  const Launch l(s);
  by_width(h % 8 == 0 && all_aligned16(w.data, y.data), [&](auto width) {
    constexpr int kW = decltype(width)::value;
    dispatch(y.dtype, [&](auto* tag) {
      using T = Element<decltype(tag)>;
      gather_kernel<T, kW>
          <<<dim3(static_cast<unsigned>(tokens), static_cast<unsigned>(ceil_div(h, kThreads * kW))),
             kThreads, 0, l.stream>>>(ids.ptr<int>(), w.ptr<T>(), vocab_begin, w.dim(0), y.ptr<T>(),
                                      h);
    });
  });
  CUDA_LAUNCH_CHECK();
}

void embedding_backward(const Tensor& ids, const Tensor& dy, int64_t vocab_begin, const Tensor& dw,
                        const Stream& s) {
  const int64_t tokens = dy.dim(0), h = dy.dim(1), vocab = dw.dim(0);
  if (tokens == 0 || h == 0 || vocab == 0) return;
  R1_CHECK(tokens < int64_t{1} << 31 && vocab < int64_t{1} << 31,
           "embedding_backward: {} tokens, vocabulary {}", tokens, vocab);
  const Launch l(s);
  int bits = 1;
  while ((int64_t{1} << bits) <= vocab) ++bits;
  // Chunks of at least 64 tokens, longer where the pieces would take more than 64 MiB.
  int64_t chunk = 64;
  while (ceil_div(tokens, chunk) * 2 * h * 4 > int64_t{64} << 20) chunk *= 2;
  const int64_t chunks = ceil_div(tokens, chunk);
  size_t sort_bytes = 0;
  CUDA_CHECK(cub::DeviceRadixSort::SortPairs(
      nullptr, sort_bytes, static_cast<const uint32_t*>(nullptr), static_cast<uint32_t*>(nullptr),
      static_cast<const uint32_t*>(nullptr), static_cast<uint32_t*>(nullptr),
      static_cast<int>(tokens), 0, bits, l.stream));
  const size_t list = round_up(static_cast<size_t>(tokens) * 4);
  const size_t pieces_bytes = round_up(static_cast<size_t>(chunks * 2 * h) * 4);
  auto* base = static_cast<char*>(l.ctx.scratch(4 * list + pieces_bytes + sort_bytes, l.stream));
  auto* keys_in = reinterpret_cast<uint32_t*>(base);
  auto* positions_in = reinterpret_cast<uint32_t*>(base + list);
  auto* keys = reinterpret_cast<uint32_t*>(base + 2 * list);
  auto* positions = reinterpret_cast<uint32_t*>(base + 3 * list);
  auto* pieces = reinterpret_cast<float*>(base + 4 * list);
  void* sort_memory = base + 4 * list + pieces_bytes;
  keys_kernel<<<static_cast<unsigned>(ceil_div(tokens, kThreads)), kThreads, 0, l.stream>>>(
      ids.ptr<int>(), vocab_begin, vocab, tokens, keys_in, positions_in);
  CUDA_LAUNCH_CHECK();
  CUDA_CHECK(cub::DeviceRadixSort::SortPairs(sort_memory, sort_bytes, keys_in, keys, positions_in,
                                             positions, static_cast<int>(tokens), 0, bits,
                                             l.stream));
  by_width(h % 8 == 0 && all_aligned16(dy.data, dw.data), [&](auto width) {
    constexpr int kW = decltype(width)::value;
    const dim3 grid(static_cast<unsigned>(chunks),
                    static_cast<unsigned>(ceil_div(h, kThreads * kW)));
    dispatch(dw.dtype, [&](auto* gt) {
      using G = Element<decltype(gt)>;
      dispatch(dy.dtype, [&](auto* tag) {
        using T = Element<decltype(tag)>;
        chunk_kernel<T, G, kW><<<grid, kThreads, 0, l.stream>>>(
            keys, positions, dy.ptr<T>(), dw.ptr<G>(), pieces, tokens, static_cast<int>(chunk),
            static_cast<uint32_t>(vocab), h);
      });
      CUDA_LAUNCH_CHECK();
      pieces_kernel<G, kW><<<grid, kThreads, 0, l.stream>>>(keys, pieces, dw.ptr<G>(), tokens,
                                                            static_cast<int>(chunk),
                                                            static_cast<uint32_t>(vocab), h);
    });
  });
  CUDA_LAUNCH_CHECK();
}

}  // namespace r1::kernels::cuda
