#include <algorithm>
#include <cmath>
#include <cstring>
#include <mutex>

#include "runtime/core/error.h"
#include "runtime/device/cpu/thread_pool.h"
#include "runtime/kernels/cpu_kernels.h"
#include "runtime/kernels/exact_sum.h"
#include "runtime/kernels/rounding.h"
#include "runtime/kernels/simd_cpu.h"

namespace r1::kernels::cpu {
namespace {

constexpr int64_t kTile = 16384;  // elements of a task
constexpr int64_t kBlock = 1024;  // elements converted at a time, held in the first-level cache

template <class T>
T* at(const Tensor& t, int64_t i) {
  return t.ptr<T>() + i;
}

/// Elements [begin, begin + n) as fp32.
void read_block(const Tensor& t, int64_t begin, int64_t n, float* out) {
  switch (t.dtype) {
    case DType::kF32:
      std::memcpy(out, at<float>(t, begin), static_cast<size_t>(n) * sizeof(float));
      return;
    case DType::kBF16:
      for (int64_t i = 0; i < n; ++i) out[i] = bf16_to_float(at<uint16_t>(t, begin)[i]);
      return;
    case DType::kF16:
      simd::from_f16(at<uint16_t>(t, begin), out, n);
      return;
    case DType::kF64:
      for (int64_t i = 0; i < n; ++i) out[i] = static_cast<float>(at<double>(t, begin)[i]);
      return;
    case DType::kI32:
    case DType::kI64:
    case DType::kU8:
      break;
  }
  throw InternalError("{} elements read as floats", dtype_name(t.dtype));
}

void write_block(const Tensor& t, int64_t begin, int64_t n, const float* in) {
  switch (t.dtype) {
    case DType::kF32:
      std::memcpy(at<float>(t, begin), in, static_cast<size_t>(n) * sizeof(float));
      return;
    case DType::kBF16:
      for (int64_t i = 0; i < n; ++i) at<uint16_t>(t, begin)[i] = float_to_bf16(in[i]);
      return;
    case DType::kF16:
      simd::to_f16(in, at<uint16_t>(t, begin), n);
      return;
    case DType::kF64:
      for (int64_t i = 0; i < n; ++i) at<double>(t, begin)[i] = static_cast<double>(in[i]);
      return;
    case DType::kI32:
    case DType::kI64:
    case DType::kU8:
      break;
  }
  throw InternalError("floats written to {} elements", dtype_name(t.dtype));
}

/// The factors of one step, formed in fp64 and rounded once.
struct AdamWFactors {
  float decay, beta1, one_minus_beta1, beta2, one_minus_beta2, inverse_correction2, eps,
      minus_step_size, grad_scale;
};

AdamWFactors adamw_factors(const AdamWArgs& a, float grad_scale) {
  const auto t = static_cast<double>(a.step);
  const double correction1 = 1.0 - std::pow(a.beta1, t), correction2 = 1.0 - std::pow(a.beta2, t);
  return {.decay = static_cast<float>(1.0 - a.lr * a.weight_decay),
          .beta1 = static_cast<float>(a.beta1),
          .one_minus_beta1 = static_cast<float>(1.0 - a.beta1),
          .beta2 = static_cast<float>(a.beta2),
          .one_minus_beta2 = static_cast<float>(1.0 - a.beta2),
          .inverse_correction2 = static_cast<float>(std::sqrt(correction2)),
          .eps = static_cast<float>(a.eps),
          .minus_step_size = static_cast<float>(-a.lr / correction1),
          .grad_scale = grad_scale};
}

void adamw_block(const AdamWFactors& f, float* p, const float* g, float* m, float* v, int64_t n) {
  using simd::set;
  simd::for_lanes(n, [&](int64_t i, auto... part) {
    const simd::V grad = simd::load(g + i, part...) * set(f.grad_scale);
    simd::V weight = simd::load(p + i, part...) * set(f.decay);
    const simd::V mean = simd::load(m + i, part...) * set(f.beta1) + grad * set(f.one_minus_beta1);
    const simd::V square =
        simd::load(v + i, part...) * set(f.beta2) + grad * grad * set(f.one_minus_beta2);
    const simd::V denominator = simd::sqrt(square) / set(f.inverse_correction2) + set(f.eps);
    weight += set(f.minus_step_size) * (mean / denominator);
    simd::store(p + i, weight, part...);
    simd::store(m + i, mean, part...);
    simd::store(v + i, square, part...);
  });
}

/// Rounds n values of a state whose first element has the number `first` over the whole tensor.
void write_stochastic(const float* values, int64_t n, const AdamWArgs& args, int64_t first, RoundedState state, uint16_t* out) {
  for (int64_t i = 0; i < n;) {
    const int64_t element = first + i, end = std::min(n, i + kRoundedTogether - element % kRoundedTogether);
    const auto words = adamw_random(args.seed, args.step, state, element / kRoundedTogether);
    for (; i < end; ++i) out[i] = stochastic_bf16(values[i], rounding_bits(words, (first + i) % kRoundedTogether));
  }
}

}  // namespace

void adamw_step(const Tensor& p, const Tensor& master, const Tensor& g, const Tensor& m,
                const Tensor& v, const Tensor& grad_scale, const AdamWArgs& args, const Stream&) {
  const float factor = *grad_scale.ptr<float>();
  if (factor == 0.0F) return;
  const AdamWFactors f = adamw_factors(args, factor);
  const bool with_master = !master.empty();
  const bool plain = !with_master && p.dtype == DType::kF32 && g.dtype == DType::kF32 &&
                     m.dtype == DType::kF32 && v.dtype == DType::kF32;
  parallel_ranges(p.numel(), kTile, [&](int64_t begin, int64_t end) {
    if (plain) {
      adamw_block(f, at<float>(p, begin), at<float>(g, begin), at<float>(m, begin),
                  at<float>(v, begin), end - begin);
      return;
    }
    float weight[kBlock], grad[kBlock], mean[kBlock], square[kBlock];
    for (int64_t b = begin; b < end; b += kBlock) {
      const int64_t n = std::min(kBlock, end - b);
      read_block(with_master ? master : p, b, n, weight);
      read_block(g, b, n, grad);
      read_block(m, b, n, mean);
      read_block(v, b, n, square);
      adamw_block(f, weight, grad, mean, square, n);
      // A bf16 state that nothing of higher precision stands behind is rounded stochastically; p
      // beside a master is not a state, and is rounded to nearest.
      const auto write = [&](const Tensor& t, const float* values, RoundedState state) {
        if (t.dtype != DType::kBF16) return write_block(t, b, n, values);
        write_stochastic(values, n, args, args.first_element + b, state, at<uint16_t>(t, b));
      };
      if (with_master) {
        write_block(master, b, n, weight);
        write_block(p, b, n, weight);
      } else {
        write(p, weight, RoundedState::kWeight);
      }
      write(m, mean, RoundedState::kMean);
      write(v, square, RoundedState::kSquare);
    }
  });
}

namespace {
void add_squares_of(const Tensor& x, const Tensor& words) {
  const int64_t rows = x.dim(0), columns = x.dim(1);
  if (rows == 0 || columns == 0) return;
  const int64_t rows_of_task = std::max<int64_t>(1, kTile / columns);
  std::mutex mutex;
  parallel_ranges(rows, rows_of_task, [&](int64_t begin, int64_t end) {
    int64_t sum[kExactWords] = {};
    for (int64_t r = begin; r < end; ++r) {
      simd::VD total{};
      const auto add_squares = [&](const float* values, int64_t count) {
        simd::for_lanes(count, [&](int64_t i, auto... part) {
          const simd::VD v = simd::widen(simd::load(values + i, part...));
          total += v * v;
        });
      };
      if (x.dtype == DType::kF32) {
        add_squares(at<float>(x, r * columns), columns);
      } else {
        float block[kBlock];
        for (int64_t b = 0; b < columns; b += kBlock) {
          const int64_t count = std::min(kBlock, columns - b);
          read_block(x, r * columns + b, count, block);
          add_squares(block, count);
        }
      }
      exact_add(sum, simd::sum(total));
    }
    const std::scoped_lock lock(mutex);  // integers: whichever task comes first
    for (int i = 0; i < kExactWords; ++i) words.ptr<int64_t>()[i] += sum[i];
  });
}
}  // namespace

void sum_of_squares(std::span<const Tensor> matrices, const Tensor& words, const Stream&) {
  for (const Tensor& x : matrices) add_squares_of(x, words);
}

void add_into(const Tensor& dst, const Tensor& src, const Stream&) {
  parallel_ranges(dst.numel(), kTile, [&](int64_t begin, int64_t end) {
    if (dst.dtype == DType::kF32 && src.dtype == DType::kF32) {
      float* to = at<float>(dst, begin);
      const float* from = at<float>(src, begin);
      simd::for_lanes(end - begin, [&](int64_t i, auto... part) {
        simd::store(to + i, simd::load(to + i, part...) + simd::load(from + i, part...), part...);
      });
      return;
    }
    if (dst.dtype == DType::kF64) {  // an fp64 sum keeps its digits
      float block[kBlock];
      for (int64_t b = begin; b < end; b += kBlock) {
        const int64_t n = std::min(kBlock, end - b);
        if (src.dtype == DType::kF64) {
          for (int64_t i = 0; i < n; ++i) at<double>(dst, b)[i] += at<double>(src, b)[i];
        } else {
          read_block(src, b, n, block);
          for (int64_t i = 0; i < n; ++i) at<double>(dst, b)[i] += static_cast<double>(block[i]);
        }
      }
      return;
    }
    float a[kBlock], c[kBlock];
    for (int64_t b = begin; b < end; b += kBlock) {
      const int64_t n = std::min(kBlock, end - b);
      read_block(dst, b, n, a);
      read_block(src, b, n, c);
      for (int64_t i = 0; i < n; ++i) a[i] += c[i];
      write_block(dst, b, n, a);
    }
  });
}

void add(const Tensor& a, const Tensor& b, const Tensor& out, const Stream&) {
  parallel_ranges(out.numel(), kTile, [&](int64_t begin, int64_t end) {
    const float* left = at<float>(a, begin);
    const float* right = at<float>(b, begin);
    float* to = at<float>(out, begin);
    simd::for_lanes(end - begin, [&](int64_t i, auto... part) {
      simd::store(to + i, simd::load(left + i, part...) + simd::load(right + i, part...), part...);
    });
  });
}

void cast(const Tensor& src, const Tensor& dst, const Stream&) {
  parallel_ranges(src.numel(), kTile, [&](int64_t begin, int64_t end) {
    if (src.dtype == dst.dtype) {
      const auto size = static_cast<size_t>(dtype_bytes(src.dtype));
      std::memmove(dst.ptr<char>() + static_cast<size_t>(begin) * size,
                   src.ptr<char>() + static_cast<size_t>(begin) * size,
                   static_cast<size_t>(end - begin) * size);
    } else if (dst.dtype == DType::kF32) {
      read_block(src, begin, end - begin, at<float>(dst, begin));
    } else if (src.dtype == DType::kF32) {
      write_block(dst, begin, end - begin, at<float>(src, begin));
    } else {
      float block[kBlock];
      for (int64_t b = begin; b < end; b += kBlock) {
        const int64_t n = std::min(kBlock, end - b);
        read_block(src, b, n, block);
        write_block(dst, b, n, block);
      }
    }
  });
}

void scale(const Tensor& x, float factor, const Stream&) {
  parallel_ranges(x.numel(), kTile, [&](int64_t begin, int64_t end) {
    if (x.dtype == DType::kF32) {
      float* values = at<float>(x, begin);
      const simd::V f = simd::set(factor);
      simd::for_lanes(end - begin, [&](int64_t i, auto... part) {
        simd::store(values + i, simd::load(values + i, part...) * f, part...);
      });
      return;
    }
    float block[kBlock];
    for (int64_t b = begin; b < end; b += kBlock) {
      const int64_t n = std::min(kBlock, end - b);
      read_block(x, b, n, block);
      for (int64_t i = 0; i < n; ++i) block[i] *= factor;
      write_block(x, b, n, block);
    }
  });
}

void copy_columns(const Tensor& src, int64_t begin, const Tensor& dst, const Stream&) {
  const auto size = static_cast<size_t>(dtype_bytes(src.dtype));
  const size_t from_row = static_cast<size_t>(src.dim(1)) * size,
               to_row = static_cast<size_t>(dst.dim(1)) * size;
  if (to_row == 0) return;
  const char* from = src.ptr<char>() + static_cast<size_t>(begin) * size;
  parallel_ranges(src.dim(0), 32, [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r)
      std::memcpy(dst.ptr<char>() + static_cast<size_t>(r) * to_row,
                  from + static_cast<size_t>(r) * from_row, to_row);
  });
}

}  // namespace r1::kernels::cpu
