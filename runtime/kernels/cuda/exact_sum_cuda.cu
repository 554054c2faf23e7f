// Sums that do not depend on their order (exact_sum.h): the norm's squares over a list of matrices, token losses.
//
// The squares of many parameters are one launch: a launch a parameter left most multiprocessors idle for the small ones and at
// the end of each. Every warp takes rows of the whole list in turn and keeps the digits of its sum in registers, digit i in
// lane i. Each element is read once.
#include <algorithm>
#include <vector>

#include "runtime/kernels/cuda/common.cuh"
#include "runtime/kernels/exact_sum.h"

namespace r1::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kVec = 8;  // elements a lane takes at once
constexpr unsigned kAllLanes = 0xffffffffu;
static_assert(kExactWords <= kWarp);

// Matrices in one launch, within the 4 KiB that every driver takes as arguments.
constexpr int kMatrices = 112;
struct Matrix {
  const void* x;
  int64_t rows, cols;
  int64_t first_item;  // number of its first item in the list
};
struct MatrixList {
  Matrix matrices[kMatrices];
  int count;
  int64_t items;  // what a warp takes at once: a row, or kWarp rows of up to kVec elements
};
static_assert(sizeof(MatrixList) <= 3800);

__host__ __device__ constexpr bool is_narrow(int64_t cols) { return cols <= kVec; }

// Adds a lane's own addend (0: none) to the warp's digits, `digit` being this lane's.
__device__ __forceinline__ void add_each(long long& digit, double v) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const ExactAddend a = exact_addend(v);
  unsigned left = __ballot_sync(kAllLanes, v != 0.0);  // NaN differs from 0
  while (left != 0) {  // a turn for each place, of which values alike have two or three
    const int word = __shfl_sync(kAllLanes, a.word, __ffs(static_cast<int>(left)) - 1);
    const bool here = v != 0.0 && a.word == word;
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      // Amounts of 32 bits, not negative: the sums of 32 halves fit.
      const auto amount = here ? static_cast<unsigned>(a.amounts[i]) : 0u;
      const unsigned low = __reduce_add_sync(kAllLanes, amount & 0xffffu), high = __reduce_add_sync(kAllLanes, amount >> 16);
      if (lane == word + i) digit += static_cast<long long>(low) + (static_cast<long long>(high) << 16);
    }
    left &= ~__ballot_sync(kAllLanes, here);
  }
}

// Adds one addend that all lanes hold.
__device__ __forceinline__ void add_common(long long& digit, double v) {
  const ExactAddend a = exact_addend(v);
  const int i = static_cast<int>(threadIdx.x) % kWarp - a.word;
  digit += i == 0 ? a.amounts[0] : i == 1 ? a.amounts[1] : i == 2 ? a.amounts[2] : 0;
}

// Adds the warps' digits to the job's words: integers, so in any order.
__device__ __forceinline__ void add_digits(long long digit, unsigned long long* words) {
  __shared__ unsigned long long sums[kWarps][kWarp];
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  sums[warp][lane] = static_cast<unsigned long long>(digit);
  __syncthreads();
  if (threadIdx.x >= kExactWords) return;
  unsigned long long sum = 0;
#pragma unroll
  for (int k = 0; k < kWarps; ++k) sum += sums[k][threadIdx.x];
  if (sum != 0) atomicAdd(words + threadIdx.x, sum);
}

__device__ __forceinline__ double add_square(double total, float x) {
  const double v = x;
  return fma(v, v, total);
}

// From this sum of bf16 squares on, some element may be infinite or NaN.
constexpr double kSuspect = 0x1p256;

// kVec elements as they came from memory.
template <class T>
struct Vector {
  uint32_t words[kVec * sizeof(T) / 4];

  __device__ __forceinline__ void load(const T* p) {
#pragma unroll
    for (int i = 0; i < static_cast<int>(sizeof(words) / sizeof(uint4)); ++i) {
      const uint4 w = reinterpret_cast<const uint4*>(p)[i];
      memcpy(words + 4 * i, &w, sizeof(w));
    }
  }
  // Adds the squares in order. bf16: the bits, moved to an fp64's exponent and fraction, are |x| 2^-896, denormals and zero
  // too; the multiplication is exact, and four times as fast as a conversion. Infinity and NaN become 2^128 and more.
  __device__ __forceinline__ double add_squares(double total) const {
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      if constexpr (sizeof(T) == 4) {
        total = add_square(total, __uint_as_float(words[j]));
      } else {
        const uint32_t w = words[j / 2];
        const uint32_t high = j % 2 == 0 ? (w & 0x7fffu) << 13 : (w & 0x7fff0000u) >> 3;
        const double v = __hiloint2double(static_cast<int>(high), 0) * 0x1p896;
        total = fma(v, v, total);
      }
    }
    return total;
  }
};

template <class T>
__device__ __forceinline__ double lane_squares_by_element(const T* __restrict__ row, int64_t cols) {
  double total = 0;
  for (int64_t c = static_cast<int64_t>(threadIdx.x) % kWarp * kVec; c < cols; c += kWarp * kVec)
    for (int64_t j = c; j < cols && j < c + kVec; ++j) total = add_square(total, to_float(row[j]));
  return total;
}

// A lane's share of a row: every kWarp-th vector, added in order. kBatch vectors are under way at once.
template <class T, int kBatch>
__device__ __forceinline__ double lane_squares(const T* __restrict__ row, int cols) {
  constexpr int kStep = kWarp * kVec;
  double total = 0;
  for (int c = static_cast<int>(threadIdx.x) % kWarp * kVec; c < cols; c += kBatch * kStep) {
    Vector<T> v[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; ++b)
      if (c + b * kStep < cols) v[b].load(row + c + b * kStep);
#pragma unroll
    for (int b = 0; b < kBatch; ++b)
      if (c + b * kStep < cols) total = v[b].add_squares(total);
  }
  if (sizeof(T) == 2 && !(total < kSuspect)) total = lane_squares_by_element(row, cols);
  return total;
}

// One warp a row, one lane where it is narrow, in an order that depends on the row alone.
template <class T>
__global__ void __launch_bounds__(kThreads, 4)
    squares_kernel(const __grid_constant__ MatrixList list, unsigned long long* __restrict__ words) {
  constexpr int kBatch = sizeof(T) == 2 ? 4 : 2;  // 64 bytes a lane
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  long long digit = 0;
  int at = 0;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * kWarps + warp; item < list.items;
       item += static_cast<int64_t>(gridDim.x) * kWarps) {
    while (at + 1 < list.count && item >= list.matrices[at + 1].first_item) ++at;
    const Matrix& m = list.matrices[at];
    const int64_t cols = m.cols, number = item - m.first_item;
    const T* x = static_cast<const T*>(m.x);
    if (is_narrow(cols)) {
      const int64_t r = number * kWarp + lane;
      double total = 0;
      if (r < m.rows)
        for (int64_t c = 0; c < cols; ++c) total = add_square(total, to_float(x[r * cols + c]));
      add_each(digit, total);
    } else {
      const T* row = x + number * cols;
      const bool vector = cols % kVec == 0 && cols < (int64_t{1} << 30) && reinterpret_cast<uintptr_t>(x) % 16 == 0;
      const double total =
          vector ? lane_squares<T, kBatch>(row, static_cast<int>(cols)) : lane_squares_by_element(row, cols);
      add_common(digit, warp_reduce(total, Sum{}));
    }
  }
  add_digits(digit, words);
}

// Of any sign: each lane's addends in turn.
__global__ void __launch_bounds__(kThreads)
    exact_elements_kernel(const float* __restrict__ x, int64_t n, unsigned long long* __restrict__ words) {
  __shared__ unsigned long long sum[kExactWords];
  if (threadIdx.x < kExactWords) sum[threadIdx.x] = 0;
  __syncthreads();
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < n; i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const ExactAddend a = exact_addend(static_cast<double>(x[i]));
#pragma unroll
    for (int k = 0; k < 3; ++k)
      if (a.amounts[k] != 0) atomicAdd(sum + a.word + k, static_cast<unsigned long long>(a.amounts[k]));
  }
  __syncthreads();
  if (threadIdx.x < kExactWords && sum[threadIdx.x] != 0) atomicAdd(words + threadIdx.x, sum[threadIdx.x]);
}

__global__ void exact_total_kernel(const int64_t* __restrict__ words, double* __restrict__ out) {
  out[0] = exact_value(words);
}

template <class T>
void launch_squares(const MatrixList& list, const Tensor& words, const Launch& l) {
  int resident = 0;
  CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, squares_kernel<T>, kThreads, 0));
  const int64_t blocks =
      std::min<int64_t>(ceil_div(list.items, int64_t{kWarps}), int64_t{l.ctx.multiprocessors()} * std::max(1, resident));
  squares_kernel<T><<<static_cast<unsigned>(blocks), kThreads, 0, l.stream>>>(list, words.ptr<unsigned long long>());
  CUDA_LAUNCH_CHECK();
}

}  // namespace

void sum_of_squares(std::span<const Tensor> matrices, const Tensor& words, const Stream& s) {
  const Launch l(s);
  for (const DType type : {DType::kF32, DType::kBF16}) {
    MatrixList list{};
    const auto flush = [&] {
      if (list.items == 0) return;
      dispatch(type, [&](auto* tag) { launch_squares<Element<decltype(tag)>>(list, words, l); });
      list = {};
    };
    for (const Tensor& x : matrices) {
      if (x.dtype != type || x.numel() == 0) continue;
      list.matrices[list.count++] = {x.data, x.dim(0), x.dim(1), list.items};
      list.items += is_narrow(x.dim(1)) ? ceil_div(x.dim(0), kWarp) : x.dim(0);
      if (list.count == kMatrices) flush();
    }
    flush();
  }
}

void sum_into(const Tensor& x, const Tensor& words, const Stream& s) {
  const int64_t n = x.numel();
  if (n == 0) return;
  const Launch l(s);
  const int64_t blocks = std::min<int64_t>(ceil_div(n, int64_t{kThreads}), int64_t{l.ctx.multiprocessors()});
  exact_elements_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, l.stream>>>(x.ptr<float>(), n,
                                                                                words.ptr<unsigned long long>());
  CUDA_LAUNCH_CHECK();
}

void exact_total(const Tensor& words, const Tensor& out, const Stream& s) {
  const Launch l(s);
  exact_total_kernel<<<1, 1, 0, l.stream>>>(words.ptr<int64_t>(), out.ptr<double>());
  CUDA_LAUNCH_CHECK();
}

}  // namespace r1::kernels::cuda
