#include "runtime/checkpoint/slice.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "runtime/checkpoint/checked.h"

namespace r1::checkpoint {

int64_t Box::elems() const {
  return static_cast<int64_t>(must_fit(checked_product(size), "elements of a box"));
}

std::string Box::str() const {
  std::string out = "[";
  for (size_t i = 0; i < start.size(); ++i)
    out += fmt::format("{}{}:{}", i ? ", " : "", start[i], start[i] + size[i]);
  return out + "]";
}

Box whole_box(std::span<const int64_t> shape) {
  return {std::vector<int64_t>(shape.size(), 0), std::vector<int64_t>(shape.begin(), shape.end())};
}

Box slice_box(std::span<const int64_t> shape, int dim, int64_t begin, int64_t end) {
  R1_CHECK(dim >= 0 && static_cast<size_t>(dim) < shape.size() && 0 <= begin && begin <= end &&
               end <= shape[static_cast<size_t>(dim)],
           "[{}, {}) of dim {} of [{}]", begin, end, dim, fmt::join(shape, ", "));
  Box b = whole_box(shape);
  b.start[static_cast<size_t>(dim)] = begin;
  b.size[static_cast<size_t>(dim)] = end - begin;
  return b;
}

Box box_of(const parallel::ShardSpec& spec, int rank) {
  const std::vector<int64_t>& shape = spec.global_shape();
  if (shape.empty()) return {};  // a scalar is held whole
  const parallel::Interval part = spec.part(rank);
  return slice_box(shape, spec.dim(), part.begin, part.end);
}

Box intersect(const Box& a, const Box& b) {
  R1_CHECK(a.size.size() == b.size.size(), "boxes {} and {}", a.str(), b.str());
  Box out = a;
  for (size_t i = 0; i < a.size.size(); ++i) {
    out.start[i] = std::max(a.start[i], b.start[i]);
    const int64_t end = std::min(a.start[i] + a.size[i], b.start[i] + b.size[i]);
    out.size[i] = std::max<int64_t>(0, end - out.start[i]);
  }
  return out;
}

void for_each_run(const Box& part, const Box& from, const Box& to,
                  const std::function<void(const BoxRun&)>& take) {
  const size_t rank = part.size.size();
  if (std::find(part.size.begin(), part.size.end(), 0) != part.size.end()) return;
  // Dims [first, rank) form one run: all after `first` are whole in both boxes.
  size_t first = rank;
  int64_t run = 1;
  while (first > 0) {
    --first;
    run *= part.size[first];
    if (part.size[first] != from.size[first] || part.size[first] != to.size[first]) break;
  }
  // Offset of part's first element in a dense box, and the box's strides.
  const auto strides_of = [&](const Box& box) {
    std::vector<int64_t> s(rank, 1);
    for (size_t i = rank; i-- > 1;) s[i - 1] = s[i] * box.size[i];
    return s;
  };
  const std::vector<int64_t> from_stride = strides_of(from), to_stride = strides_of(to);
  BoxRun r{.elems = run};
  for (size_t i = 0; i < rank; ++i) {
    r.from += (part.start[i] - from.start[i]) * from_stride[i];
    r.to += (part.start[i] - to.start[i]) * to_stride[i];
  }
  std::vector<int64_t> at(first, 0);
  for (;;) {
    take(r);
    size_t i = first;
    while (i > 0) {
      --i;
      r.from += from_stride[i];
      r.to += to_stride[i];
      if (++at[i] < part.size[i]) break;
      r.from -= part.size[i] * from_stride[i];
      r.to -= part.size[i] * to_stride[i];
      at[i] = 0;
      if (i == 0) return;
    }
    if (first == 0) return;
  }
}

namespace {

bool floating(DType t) {
  return t == DType::kF32 || t == DType::kBF16 || t == DType::kF16 || t == DType::kF64;
}

// fp64 to fp32 such that rounding the result again, to a format of at most 22 bits of significand,
// equals rounding once: inexact results are made odd (Boldo and Melquiond, "Emulation of FMA and
// correctly rounded sums", 2008).
float round_to_odd(double d) {
  float f = static_cast<float>(d);
  if (std::isnan(d) || static_cast<double>(f) == d) return f;
  uint32_t u = std::bit_cast<uint32_t>(f);
  if (std::fabs(static_cast<double>(f)) > std::fabs(d))
    --u;  // towards zero; from infinity to the largest
  return std::bit_cast<float>(u | 1u);
}

template <DType kType>
struct Element;
template <>
struct Element<DType::kF32> {
  using Bits = float;
  static double wide(float v) { return static_cast<double>(v); }
  static float single(float v) { return v; }
  static float from_single(float v) { return v; }
  static float from_double(double v) { return static_cast<float>(v); }
};
template <>
struct Element<DType::kF64> {
  using Bits = double;
  static double wide(double v) { return v; }
  static double from_single(float v) { return static_cast<double>(v); }
  static double from_double(double v) { return v; }
};
template <>
struct Element<DType::kBF16> {
  using Bits = uint16_t;
  static float single(uint16_t v) { return bf16_to_float(v); }
  static uint16_t from_single(float v) { return float_to_bf16(v); }
  static uint16_t from_double(double v) { return float_to_bf16(round_to_odd(v)); }
};
template <>
struct Element<DType::kF16> {
  using Bits = uint16_t;
  static float single(uint16_t v) { return f16_to_float(v); }
  static uint16_t from_single(float v) { return float_to_f16(v); }
  static uint16_t from_double(double v) { return float_to_f16(round_to_odd(v)); }
};

template <DType kFrom, DType kTo>
void convert(const char* src, char* dst, size_t n) {
  using From = typename Element<kFrom>::Bits;
  using To = typename Element<kTo>::Bits;
  for (size_t i = 0; i < n; ++i) {
    From in;
    std::memcpy(&in, src + i * sizeof(From), sizeof(From));
    To out;
    if constexpr (kFrom == DType::kF64)
      out = Element<kTo>::from_double(in);
    else
      out = Element<kTo>::from_single(Element<kFrom>::single(in));
    std::memcpy(dst + i * sizeof(To), &out, sizeof(To));
  }
}

template <DType kFrom>
void convert_from(const char* src, DType to, char* dst, size_t n) {
  if (to == DType::kF32) return convert<kFrom, DType::kF32>(src, dst, n);
  if (to == DType::kBF16) return convert<kFrom, DType::kBF16>(src, dst, n);
  if (to == DType::kF16) return convert<kFrom, DType::kF16>(src, dst, n);
  return convert<kFrom, DType::kF64>(src, dst, n);
}

}  // namespace

bool convertible(DType from, DType to) { return from == to || (floating(from) && floating(to)); }

void convert_elements(DType from, const void* src, DType to, void* dst, size_t n) {
  R1_CHECK(convertible(from, to), "{} to {}", dtype_name(from), dtype_name(to));
  if (n == 0) return;
  const char* s = static_cast<const char*>(src);
  char* d = static_cast<char*>(dst);
  if (from == to) {
    std::memmove(d, s, n * static_cast<size_t>(dtype_bytes(from)));
  } else if (from == DType::kF32) {
    convert_from<DType::kF32>(s, to, d, n);
  } else if (from == DType::kBF16) {
    convert_from<DType::kBF16>(s, to, d, n);
  } else if (from == DType::kF16) {
    convert_from<DType::kF16>(s, to, d, n);
  } else {
    convert_from<DType::kF64>(s, to, d, n);
  }
}

}  // namespace r1::checkpoint
