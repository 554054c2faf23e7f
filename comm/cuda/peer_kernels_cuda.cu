// Collectives in one kernel a rank, for ranks that each have a GPU and see each other's memory.
//
// Each rank owns an area that the others write into:
//
//   control   of each block: its one-shot calls and its steps so far
//   flags     [block][phase][source rank]: the step up to which that rank has written
//   one-shot  [parity][source rank][block][word]: data interleaved with the call's number
//   pieces    [block][phase][parity][source rank][piece]
//
// Block b of a kernel only meets block b of the others: no wait spans a grid, and what a block
// counts it keeps to itself.
//
// One-shot calls (up to one_shot_limit; parts of one size): every rank writes what another wants
// straight to it, 4 bytes of data and 4 of the call's number at a time (the "LL" protocol of NCCL:
// 8-byte halves of a 16-byte store arrive whole), so that data is its own flag; each then sums, or
// puts in place, what came from all. Bytes written: twice the data; one link latency. Two buffers
// suffice: a block that begins its call s has every peer's data of call s-1, which a peer writes
// after it is through with s-2.
//
// Phases (any size): block b handles every gridDim-th piece of each part. Phase 0 writes the piece
// of part j to rank j, which sums in rank order; phase 1 writes the sum (or, gathering, the own
// part) to all. After each phase a block raises its flag at its peers and waits for theirs. Pieces
// alternate between two buffers for the same reason as above. Bytes over the link: those of a ring,
// (n-1)/n x size a phase. Many blocks and long pieces fill the link; raising a piece's flag one
// piece later, so that nothing waits, does not (benchmarks/NOTES.md).
//
// Numbers and steps are kept in device memory: a captured graph replays correctly. They wrap after
// 2^32 calls; a word that no call has touched since exactly 2^32 calls ago would then pass for new.
#include <algorithm>

#include "comm/cuda/comm_kernels.h"
#include "comm/cuda/element.cuh"
#include "runtime/core/comm_route.h"
#include "runtime/device/cuda/check.h"
#include "runtime/device/cuda/context.h"

namespace r1::comm::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kOneShotBlocks = 64;
constexpr int kUnits = 1024;  // of 8 bytes, that a block takes in a one-shot call from each rank
constexpr int kUnitsAThread = kUnits / kThreads;
constexpr size_t kOneShotBytes = size_t{8} * kUnits * kOneShotBlocks;
constexpr int kBlocks = 128;                       // of a call in phases
constexpr size_t kPieceBytes = size_t{128} << 10;  // of all ranks' pieces of a block together

struct Control {
  uint32_t calls[kOneShotBlocks];
  uint32_t steps[kBlocks];
  uint32_t flags[kBlocks][2][kMaxPeers];
};
constexpr size_t kControlBytes = 16384;
static_assert(sizeof(Control) <= kControlBytes);

constexpr size_t piece_bytes(int n) { return kPieceBytes / static_cast<size_t>(n) / 256 * 256; }
constexpr size_t one_shot_bytes(int n) { return 2 * static_cast<size_t>(n) * 2 * kOneShotBytes; }

// What a rank may write to each other in one shot: up to here that beats two phases. More ranks
// share one link.
constexpr size_t one_shot_limit(int n) {
  return n <= 2 ? kOneShotBytes : (size_t{512} << 10) / static_cast<size_t>(n - 1);
}
static_assert(one_shot_limit(2) <= kOneShotBytes && one_shot_limit(3) <= kOneShotBytes);

constexpr size_t area_bytes(int n) {
  return kControlBytes + one_shot_bytes(n) +
         size_t{kBlocks} * 2 * 2 * static_cast<size_t>(n) * piece_bytes(n);
}
constexpr bool areas_fit() {
  for (int n = 2; n <= kMaxPeers; ++n)
    if (area_bytes(n) > ipc_kernel_bytes(n)) return false;
  return true;
}
static_assert(areas_fit(), "ipc_kernel_bytes is what is allocated");

struct Areas {
  char* p[kMaxPeers];
  int rank, n;

  __device__ Control& control(int r) const { return *reinterpret_cast<Control*>(p[r]); }
  // Where words of block b of rank `source` arrive at rank r.
  __device__ uint4* words(int r, unsigned parity, int source, unsigned b) const {
    const size_t buffer = static_cast<size_t>(parity) * n + source;
    return reinterpret_cast<uint4*>(p[r] + kControlBytes) + (buffer * kOneShotBlocks + b) * kUnits;
  }
  __device__ char* piece(int r, int block, int phase, unsigned parity, int source) const {
    const size_t i = ((static_cast<size_t>(block) * 2 + phase) * 2 + parity) * n + source;
    return p[r] + kControlBytes + static_cast<size_t>(n) * 4 * kOneShotBytes + i * piece_bytes(n);
  }
};

__device__ __forceinline__ void store_words(uint4* p, uint4 v) {
  asm volatile("st.volatile.global.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(p), "r"(v.x), "r"(v.y),
               "r"(v.z), "r"(v.w)
               : "memory");
}
__device__ __forceinline__ uint4 load_words(const uint4* p) {
  uint4 v;
  asm volatile("ld.volatile.global.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p)
               : "memory");
  return v;
}
__device__ __forceinline__ void raise_flag(uint32_t* p, uint32_t v) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
__device__ __forceinline__ uint32_t read_flag(const uint32_t* p) {
  uint32_t v;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}

// `part` elements go to each rank. in: kGather: the own part, the same for all (of an all-reduce:
// the tensor); else a part for each. out: kReduce: the sum; else a part of each. A block has `span`
// units of every part.
template <class T, bool kReduce, bool kGather>
__global__ void __launch_bounds__(kThreads)
    one_shot_kernel(const typename T::Stored* in, typename T::Stored* out, int64_t part,
                    int64_t span, ReduceOp op, Areas areas) {
  using S = typename T::Stored;
  constexpr int kBytes = 8;  // of data in a word
  using H = Pack<S, kBytes>;
#if __CUDA_ARCH__ >= 900
  // Launched while the kernel before it ends (one_shot): all that it wrote is seen after this. Then
  // the next may be launched.
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
  uint32_t& calls = areas.control(areas.rank).calls[blockIdx.x];
  const uint32_t call = *static_cast<volatile uint32_t*>(&calls) + 1;
  const unsigned parity = call & 1;
  const auto for_units = [&](auto&& use) {
    const int64_t units = (part + H::kElems - 1) / H::kElems;
    const int64_t first = blockIdx.x * span, end = min(first + span, units);
#pragma unroll
    for (int j = 0; j < kUnitsAThread; ++j) {
      const int local = static_cast<int>(threadIdx.x) + j * kThreads;
      if (first + local < end) use(j, local, first + local);
    }
  };
  const auto part_for = [&](int r) { return kGather ? in : in + r * part; };
  const auto load = [&](const S* p, int64_t u) {
    return load_pack<S, kBytes>(p, u * H::kElems, part, is_aligned(p, kBytes));
  };
  const auto store = [&](S* p, int64_t u, const H& h) {
    store_pack(p, u * H::kElems, part, is_aligned(p, kBytes), h);
  };
  H own[kUnitsAThread];
  for_units([&](int j, int, int64_t u) { own[j] = load(part_for(areas.rank), u); });
  for (int k = 1; k < areas.n; ++k) {
    const int to = (areas.rank + k) % areas.n;
    uint4* words = areas.words(to, parity, areas.rank, blockIdx.x);
    for_units([&](int j, int local, int64_t u) {
      const H h = kGather ? own[j] : load(part_for(to), u);
      uint2 w;
      memcpy(&w, &h, kBytes);
      store_words(words + local, make_uint4(w.x, call, w.y, call));
    });
  }
  const auto received = [&](int from, int local) {
    const uint4* p = areas.words(areas.rank, parity, from, blockIdx.x) + local;
    uint4 w;
    do w = load_words(p);
    while (w.y != call || w.w != call);
    const uint2 data = make_uint2(w.x, w.z);
    H h;
    memcpy(&h, &data, kBytes);
    return h;
  };
  if constexpr (kReduce) {
    for_units([&](int j, int local, int64_t u) {
      typename T::Acc acc[H::kElems];
      for (int r = 0; r < areas.n; ++r) {
        const H h = r == areas.rank ? own[j] : received(r, local);
#pragma unroll
        for (int k = 0; k < H::kElems; ++k)
          acc[k] = r == 0 ? T::load(h.v[k]) : combine<T>(op, acc[k], T::load(h.v[k]));
      }
      H y;
#pragma unroll
      for (int k = 0; k < H::kElems; ++k) y.v[k] = T::store(acc[k]);
      store(out, u, y);
    });
  } else {
    for (int k = 0; k < areas.n; ++k) {
      const int from = (areas.rank + k) % areas.n;
      S* to = out + from * part;
      if (k == 0 && to == in) continue;
      for_units([&](int j, int local, int64_t u) {
        store(to, u, k == 0 ? own[j] : received(from, local));
      });
    }
  }
  __syncthreads();  // all threads have read the number
  if (threadIdx.x == 0) *static_cast<volatile uint32_t*>(&calls) = call;
}

// Calls store(i, load(i)) for each pack of this thread, four loads under way at once: what is
// stored may alias what is loaded later, so the compiler keeps their order.
template <class Load, class Store>
__device__ __forceinline__ void each_pack_of(int64_t elems, int per_pack, Load load, Store store) {
  const int64_t stride = int64_t{kThreads} * per_pack;
  int64_t i = static_cast<int64_t>(threadIdx.x) * per_pack;
  for (; i + 3 * stride < elems; i += 4 * stride) {
    const auto a = load(i), b = load(i + stride), c = load(i + 2 * stride),
               d = load(i + 3 * stride);
    store(i, a);
    store(i + stride, b);
    store(i + 2 * stride, c);
    store(i + 3 * stride, d);
  }
  for (; i < elems; i += stride) store(i, load(i));
}

struct Parts {
  int64_t begin[kMaxPeers + 1];  // elements before part r
  int64_t piece;                 // elements of a piece
  int64_t pieces;                // of the longest part
};

// Raises this block's flag at all peers, then waits for theirs: what they wrote in this phase is
// here.
__device__ __forceinline__ void meet(const Areas& areas, int phase, uint32_t step) {
  __syncthreads();
  const int peer = static_cast<int>(threadIdx.x);
  if (peer < areas.n && peer != areas.rank) {
    raise_flag(&areas.control(peer).flags[blockIdx.x][phase][areas.rank], step);
    const uint32_t* own = &areas.control(areas.rank).flags[blockIdx.x][phase][peer];
    while (static_cast<int32_t>(read_flag(own) - step) < 0) {
    }
  }
  __syncthreads();
}

// in: all parts (kReduce) or the own one; out: the own part (not kGather) or all of them.
template <class T, bool kReduce, bool kGather>
__global__ void __launch_bounds__(kThreads)
    phases_kernel(const typename T::Stored* in, typename T::Stored* out, ReduceOp op, Parts parts,
                  Areas areas) {
  using S = typename T::Stored;
  using P = Pack<S>;
  const int b = static_cast<int>(blockIdx.x), rank = areas.rank, n = areas.n;
  Control& control = areas.control(rank);
  uint32_t step = control.steps[b];
  const auto length = [&](int r, int64_t at) {
    return max(int64_t{0}, min(parts.piece, parts.begin[r + 1] - parts.begin[r] - at));
  };
  const auto pack = [](const char* p, int64_t i) {
    const uint4 w = __ldcg(reinterpret_cast<const uint4*>(p) + i / P::kElems);
    P x;
    memcpy(&x, &w, 16);
    return x;
  };
  const auto put = [](char* p, int64_t i, const P& x) {
    uint4 w;
    memcpy(&w, &x, 16);
    reinterpret_cast<uint4*>(p)[i / P::kElems] = w;
  };
  const auto each_pack = [](int64_t elems, auto load, auto store) {
    each_pack_of(elems, P::kElems, load, store);
  };
  for (int64_t piece = b; piece < parts.pieces; piece += gridDim.x) {
    ++step;
    const unsigned parity = step & 1;
    const int64_t at = piece * parts.piece, own_elems = length(rank, at);
    if constexpr (kReduce) {
      for (int k = 1; k < n; ++k) {
        const int to = (rank + k) % n;
        const S* from = in + parts.begin[to] + at;
        const int64_t elems = length(to, at);
        const bool aligned = is_aligned(from);
        char* dst = areas.piece(to, b, 0, parity, rank);
        each_pack(
            elems, [&](int64_t i) { return load_pack(from, i, elems, aligned); },
            [&](int64_t i, const P& x) { put(dst, i, x); });
      }
      meet(areas, 0, step);
    }
    // The own piece: summed from all, or as it is; to out, and when gathering to all.
    const S* mine = kReduce ? in + parts.begin[rank] + at : in + at;
    S* result = kGather ? out + parts.begin[rank] + at : out + at;
    const bool mine_aligned = is_aligned(mine), result_aligned = is_aligned(result);
    each_pack(
        own_elems,
        [&](int64_t i) {
          P y = load_pack(mine, i, own_elems, mine_aligned);
          if constexpr (kReduce) {
            typename T::Acc acc[P::kElems];
            for (int r = 0; r < n; ++r) {
              const P x = r == rank ? y : pack(areas.piece(rank, b, 0, parity, r), i);
#pragma unroll
              for (int k = 0; k < P::kElems; ++k)
                acc[k] = r == 0 ? T::load(x.v[k]) : combine<T>(op, acc[k], T::load(x.v[k]));
            }
#pragma unroll
            for (int k = 0; k < P::kElems; ++k) y.v[k] = T::store(acc[k]);
          }
          return y;
        },
        [&](int64_t i, const P& y) {
          if (kReduce || mine != result) store_pack(result, i, own_elems, result_aligned, y);
          if (kGather) {
            for (int k = 1; k < n; ++k) {
              const int to = (rank + k) % n;
              put(areas.piece(to, b, 1, parity, rank), i, y);
            }
          }
        });
    if constexpr (kGather) {
      meet(areas, 1, step);
      for (int k = 1; k < n; ++k) {
        const int from = (rank - k + n) % n;
        S* to = out + parts.begin[from] + at;
        const int64_t elems = length(from, at);
        const bool aligned = is_aligned(to);
        const char* src = areas.piece(rank, b, 1, parity, from);
        each_pack(
            elems, [&](int64_t i) { return pack(src, i); },
            [&](int64_t i, const P& x) { store_pack(to, i, elems, aligned, x); });
      }
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) control.steps[b] = step;
}

// A type that is only moved.
struct Bytes1 {
  using Stored = uint8_t;
  using Acc = uint32_t;
};

class Kernels final : public PeerKernels {
 public:
  Kernels(int device, int rank, const std::vector<void*>& areas)
      : device_(device), early_launch_(can_launch_early(device)) {
    areas_.rank = rank;
    areas_.n = static_cast<int>(areas.size());
    for (size_t r = 0; r < areas.size(); ++r) areas_.p[r] = static_cast<char*>(areas[r]);
  }
  void all_reduce(const Tensor& x, ReduceOp op, const Stream& s) override {
    if (x.bytes() <= one_shot_limit(areas_.n)) return one_shot<true, true>(x, x, op, x.numel(), s);
    // Parts of whole lines, so that packs stay aligned when the tensor is.
    const int64_t line = 256 / dtype_bytes(x.dtype);
    const int64_t each = ((x.numel() + areas_.n - 1) / areas_.n + line - 1) / line * line;
    Parts parts{};
    for (int r = 0; r < areas_.n; ++r) parts.begin[r + 1] = std::min(x.numel(), each * (r + 1));
    phases<true, true>(x, x, op, parts, s);
  }
  void all_gather(const Tensor& in, const Tensor& out, std::span<const int64_t> counts,
                  const Stream& s) override {
    if (few(counts, in.dtype)) return one_shot<false, true>(in, out, ReduceOp::kSum, counts[0], s);
    phases<false, true>(in, out, ReduceOp::kSum, parts_of(counts), s);
  }
  void reduce_scatter(const Tensor& in, const Tensor& out, std::span<const int64_t> counts,
                      const Stream& s) override {
    if (few(counts, in.dtype)) return one_shot<true, false>(in, out, ReduceOp::kSum, counts[0], s);
    phases<true, false>(in, out, ReduceOp::kSum, parts_of(counts), s);
  }

 private:
  [[nodiscard]] static Parts parts_of(std::span<const int64_t> counts) {
    Parts parts{};
    for (size_t r = 0; r < counts.size(); ++r) parts.begin[r + 1] = parts.begin[r] + counts[r];
    return parts;
  }
  // Code for older GPUs, compiled anew for this one, does not wait for the kernel before.
  [[nodiscard]] static bool can_launch_early(int device) {
    const r1::cuda::DeviceScope scope(device);
    cudaFuncAttributes code{};
    CUDA_CHECK(cudaFuncGetAttributes(&code, one_shot_kernel<F32, true, true>));
    return code.ptxVersion >= 90;
  }
  // Whether parts go in one shot. Each rank must have data for each: it is also their sign that
  // they may write again.
  [[nodiscard]] bool few(std::span<const int64_t> counts, DType dtype) const {
    return counts[0] > 0 &&
           static_cast<size_t>(counts[0] * dtype_bytes(dtype)) <= one_shot_limit(areas_.n) &&
           std::ranges::all_of(counts, [&](int64_t c) { return c == counts[0]; });
  }
  // Calls launch(T{}) for the element type; what is only moved is any type of the same width.
  template <bool kReduce, class F>
  static void with_moved(DType dtype, F launch) {
    if constexpr (kReduce) {
      with_element(dtype, launch);
    } else {
      switch (dtype_bytes(dtype)) {
        case 1:
          return launch(Bytes1{});
        case 2:
          return launch(BF16{});
        case 4:
          return launch(I32{});
        default:
          return launch(I64{});
      }
    }
  }
  template <bool kReduce, bool kGather>
  void one_shot(const Tensor& in, const Tensor& out, ReduceOp op, int64_t part, const Stream& s) {
    const int64_t units = (part * dtype_bytes(in.dtype) + 7) / 8;
    const int64_t blocks =
        std::clamp<int64_t>((units + kThreads - 1) / kThreads, 1, kOneShotBlocks);
    const r1::cuda::DeviceScope scope(device_);
    with_moved<kReduce>(in.dtype, [&](auto type) {
      using T = decltype(type);
      using S = typename T::Stored;
      // The launch itself is a good part of a short kernel's time: it overlaps the end of the
      // kernel before.
      cudaLaunchAttribute early{};
      early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
      early.val.programmaticStreamSerializationAllowed = 1;
      const cudaLaunchConfig_t launch{.gridDim = dim3(static_cast<unsigned>(blocks)),
                                      .blockDim = dim3(kThreads),
                                      .dynamicSmemBytes = 0,
                                      .stream = r1::cuda::handle_of(s),
                                      .attrs = &early,
                                      .numAttrs = early_launch_ ? 1U : 0U};
      CUDA_CHECK(cudaLaunchKernelEx(&launch, one_shot_kernel<T, kReduce, kGather>,
                                    in.ptr<const S>(), out.ptr<S>(), part,
                                    (units + blocks - 1) / blocks, op, areas_));
    });
  }
  template <bool kReduce, bool kGather>
  void phases(const Tensor& in, const Tensor& out, ReduceOp op, Parts parts, const Stream& s) {
    int64_t longest = 0;
    for (int r = 0; r < areas_.n; ++r)
      longest = std::max(longest, parts.begin[r + 1] - parts.begin[r]);
    if (longest == 0) return;
    const int64_t elem = dtype_bytes(in.dtype), per_pack = 16 / elem;
    const int64_t most = static_cast<int64_t>(piece_bytes(areas_.n)) / elem;
    // All blocks get work as soon as there is enough for each thread to move one pack.
    const int64_t even = (longest + kBlocks - 1) / kBlocks;
    parts.piece = std::clamp((even + per_pack - 1) / per_pack * per_pack,
                             std::min(most, kThreads * per_pack), most);
    parts.pieces = (longest + parts.piece - 1) / parts.piece;
    const auto blocks = static_cast<unsigned>(std::min<int64_t>(parts.pieces, kBlocks));
    const r1::cuda::DeviceScope scope(device_);
    with_moved<kReduce>(in.dtype, [&](auto type) {
      using T = decltype(type);
      using S = typename T::Stored;
      phases_kernel<T, kReduce, kGather><<<blocks, kThreads, 0, r1::cuda::handle_of(s)>>>(
          in.ptr<S>(), out.ptr<S>(), op, parts, areas_);
    });
    CUDA_LAUNCH_CHECK();
  }

  int device_;
  bool early_launch_;
  Areas areas_{};
};

}  // namespace

std::unique_ptr<PeerKernels> make_peer_kernels(int device, int rank,
                                               const std::vector<void*>& areas) {
  R1_CHECK(areas.size() >= 2 && areas.size() <= kMaxPeers, "kernels of a group of {}",
           areas.size());
  return std::make_unique<Kernels>(device, rank, areas);
}

}  // namespace r1::comm::cuda
