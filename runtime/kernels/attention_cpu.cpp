// Causal attention on the CPU, after FlashAttention-2 (Dao 2023): the scores of a block of queries
// exist only as a tile in the second-level cache. Keys and values are packed once a kv head and
// shared by all its q heads; the products stop at the diagonal to within a register tile.
//
// Letters: rows are queries, columns keys; all positions are tokens of the micro-batch; s0 is the
// segment's first token.
#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "runtime/device/cpu/thread_pool.h"
#include "runtime/kernels/cpu_kernels.h"
#include "runtime/kernels/microkernel_cpu.h"
#include "runtime/kernels/simd_cpu.h"

namespace r1::kernels::cpu {
namespace {

// 96 queries x 192 keys: 72 KiB of scores. Both are multiples of the register tile's 6 and 16, so
// that a tile of keys belongs to one block of queries.
constexpr int64_t kQueries = 96, kKeys = 192;
static_assert(kKeys % kQueries == 0 && kQueries % micro::kRows == 0 &&
              kKeys % micro::kColumns == 0);
constexpr float kMinusInf = -std::numeric_limits<float>::infinity();

// Slots of thread_scratch: the caller's packed operands and partial sums; each task's tiles.
constexpr int kPackedSlot = 0, kPartialSlot = 1, kTileSlot = 2, kRowsSlot = 3;

float* scratch(int slot, int64_t elems) {
  return static_cast<float*>(thread_scratch(slot, static_cast<size_t>(elems) * sizeof(float)));
}

/// Where the heads of a token are.
struct Layout {
  int64_t tokens, width, dim, q_heads, kv_heads;
  Layout(const AttentionArgs& a, int64_t t)
      : tokens(t),
        width((a.q_heads + 2 * a.kv_heads) * a.head_dim),
        dim(a.head_dim),
        q_heads(a.q_heads),
        kv_heads(a.kv_heads) {}
  [[nodiscard]] int64_t q(int64_t token, int64_t head) const { return token * width + head * dim; }
  [[nodiscard]] int64_t k(int64_t token, int64_t head) const {
    return token * width + (q_heads + head) * dim;
  }
  [[nodiscard]] int64_t v(int64_t token, int64_t head) const {
    return token * width + (q_heads + kv_heads + head) * dim;
  }
  [[nodiscard]] int64_t o(int64_t token, int64_t head) const {
    return (token * q_heads + head) * dim;
  }
  [[nodiscard]] int64_t o_width() const { return q_heads * dim; }
};

struct Segment {
  int64_t begin, end;
  int64_t packed;  // first key in the packed operands, in keys rounded up to panels
  [[nodiscard]] int64_t length() const { return end - begin; }
};

/// The segments that are not empty, longest first: the last tasks to be taken should be short ones.
struct Segments {
  std::vector<Segment> list;
  int64_t packed_keys = 0;
  explicit Segments(std::span<const int32_t> cu) {
    for (size_t i = 0; i + 1 < cu.size(); ++i)
      if (cu[i + 1] > cu[i]) list.push_back({cu[i], cu[i + 1], 0});
    std::stable_sort(list.begin(), list.end(),
                     [](const Segment& a, const Segment& b) { return a.length() > b.length(); });
    for (Segment& s : list) {
      s.packed = packed_keys;
      packed_keys += micro::panels(s.length()) * micro::kColumns;
    }
  }
  [[nodiscard]] int64_t count() const { return static_cast<int64_t>(list.size()); }
  [[nodiscard]] const Segment& operator[](int64_t i) const { return list[static_cast<size_t>(i)]; }
};

/// Packed operands of all segments and kv heads, `kinds` of them side by side; each takes padded
/// dim x padded keys.
class Packed {
 public:
  Packed(const Layout& at, const Segments& segments, int64_t kinds)
      : dim_(micro::panels(at.dim) * micro::kColumns),
        keys_(segments.packed_keys),
        kv_heads_(at.kv_heads),
        data_(scratch(kPackedSlot, kinds * kv_heads_ * keys_ * dim_)) {}
  [[nodiscard]] float* of(int64_t kind, const Segment& s, int64_t kv) const {
    return data_ + ((kind * kv_heads_ + kv) * keys_ + s.packed) * dim_;
  }

 private:
  int64_t dim_, keys_, kv_heads_;
  float* data_;
};

float row_max(const float* x, int64_t n, float m) {
  simd::V best = simd::set(m);
  simd::for_lanes(n, [&](int64_t i, auto... part) {
    if constexpr (sizeof...(part) == 0)
      best = simd::max(simd::load(x + i), best);
    else
      best = simd::max(simd::load(x + i, part..., m), best);
  });
  return simd::max_lane(best);
}

/// x = exp(x - m) in place; returns the sum.
float row_exp(float* x, int64_t n, float m) {
  const simd::V vm = simd::set(m);
  simd::V sum{};
  simd::for_lanes(n, [&](int64_t i, auto... part) {
    simd::V e;
    if constexpr (sizeof...(part) == 0)
      e = simd::exp_nonpositive(simd::load(x + i) - vm);
    else
      e = simd::exp_nonpositive(simd::load(x + i, part..., kMinusInf) - vm);
    simd::store(x + i, e, part...);
    sum += e;
  });
  return simd::sum(sum);
}

void row_scale(float* x, int64_t n, float factor) {
  const simd::V f = simd::set(factor);
  simd::for_lanes(n, [&](int64_t i, auto... part) {
    simd::store(x + i, simd::load(x + i, part...) * f, part...);
  });
}

/// A block of queries [q0, q0 + rows) against keys [k0, k0 + keys), and what the causal mask leaves
/// of it.
struct Tile {
  int64_t q0, rows, k0, keys;
  /// Keys that row r sees, counted from k0.
  [[nodiscard]] int64_t seen(int64_t r) const {
    return std::clamp<int64_t>(q0 + r + 1 - k0, 0, keys);
  }
  /// The first row that sees key j.
  [[nodiscard]] int64_t first_row(int64_t j) const {
    return std::clamp<int64_t>(k0 + j - q0, 0, rows);
  }
};

/// out[rows, kKeys] = alpha X Y^T where a row sees it: X [rows, dim], Y^T packed by panels of 16
/// keys from the segment's first; `key` is k0 counted from there.
void scores(const Tile& t, int64_t dim, const float* x, const float* packed_t, int64_t key,
            float alpha, float* out) {
  for (int64_t j = 0; j < t.keys; j += micro::kColumns) {
    const float* panel = packed_t + (key + j) * dim;
    for (int64_t r = t.first_row(j) / micro::kRows * micro::kRows; r < t.rows; r += micro::kRows)
      micro::product(std::min(micro::kRows, t.rows - r), micro::kColumns, dim, x + r * dim, dim, 1,
                     panel, alpha, false, out + r * kKeys + j, kKeys);
  }
}

/// c[rows, dim] += w[rows, keys] Y over the keys each register tile sees, overwriting at the
/// segment's first key; Y packed by panels of 16 columns with `packed_rows` rows, the first of
/// which used is `key`.
void weighted_rows(const Tile& t, int64_t dim, const float* w, const float* packed,
                   int64_t packed_rows, int64_t key, float* c) {
  for (int64_t d = 0; d < dim; d += micro::kColumns) {
    const float* panel = packed + d * packed_rows + key * micro::kColumns;
    for (int64_t r = 0; r < t.rows; r += micro::kRows) {
      const int64_t n = std::min(micro::kRows, t.rows - r);
      micro::product(n, std::min(micro::kColumns, dim - d), t.seen(r + n - 1), w + r * kKeys, kKeys,
                     1, panel, 1.0F, key > 0, c + r * dim + d, dim);
    }
  }
}

/// c[keys, dim] += w^T Y over the rows that see each register tile of keys; Y packed with t.rows
/// rows. The block of queries that holds a key is the first to see it, and overwrites.
void weighted_columns(const Tile& t, int64_t dim, const float* w, const float* packed, float* c) {
  for (int64_t d = 0; d < dim; d += micro::kColumns)
    for (int64_t j = 0; j < t.keys; j += micro::kRows) {
      const int64_t r = t.first_row(j);
      micro::product(std::min(micro::kRows, t.keys - j), std::min(micro::kColumns, dim - d),
                     t.rows - r, w + r * kKeys + j, 1, kKeys,
                     packed + d * t.rows + r * micro::kColumns, 1.0F, t.k0 + j < t.q0,
                     c + j * dim + d, dim);
    }
}

enum ForwardKind : int64_t { kKeysT, kValues, kForwardKinds };
enum BackwardKind : int64_t { kBackKeysT, kBackValuesT, kBackKeys, kBackwardKinds };

/// One block of queries of one head.
void forward_block(const AttentionArgs& args, const Layout& at, const Packed& packed,
                   const Segment& s, int64_t q0, int64_t head, const float* qkv, float* o,
                   float* lse) {
  const int64_t rows = std::min(kQueries, s.end - q0), kv = args.kv_of_q[static_cast<size_t>(head)],
                dim = at.dim;
  float* p = scratch(kTileSlot, kQueries * kKeys);
  float* q = scratch(kRowsSlot, 2 * kQueries * dim);
  float* out = q + kQueries * dim;
  micro::gather_rows(qkv + at.q(q0, head), at.width, rows, dim, q);
  float maximum[kQueries], sum[kQueries];
  std::fill_n(maximum, rows, kMinusInf);
  std::fill_n(sum, rows, 0.0F);
  for (int64_t k0 = s.begin; k0 < q0 + rows; k0 += kKeys) {
    const Tile t{.q0 = q0, .rows = rows, .k0 = k0, .keys = std::min(kKeys, q0 + rows - k0)};
    scores(t, dim, q, packed.of(kKeysT, s, kv), k0 - s.begin, args.scale, p);
    for (int64_t r = 0; r < rows; ++r) {
      float* row = p + r * kKeys;
      const int64_t seen = t.seen(r);
      const float m = row_max(row, seen, maximum[r]);
      if (k0 > s.begin && m != maximum[r]) {
        const float shrink = std::exp(maximum[r] - m);
        row_scale(out + r * dim, dim, shrink);
        sum[r] *= shrink;
      }
      maximum[r] = m;
      sum[r] += row_exp(row, seen, m);
      std::fill(row + seen, row + std::min(t.keys, seen + micro::kRows), 0.0F);
    }
    weighted_rows(t, dim, p, packed.of(kValues, s, kv), s.length(), k0 - s.begin, out);
  }
  for (int64_t r = 0; r < rows; ++r) {
    const simd::V factor = simd::set(1.0F / sum[r]);
    float* to = o + at.o(q0 + r, head);
    simd::for_lanes(dim, [&](int64_t i, auto... part) {
      simd::store(to + i, simd::load(out + r * dim + i, part...) * factor, part...);
    });
    lse[head * at.tokens + q0 + r] = maximum[r] + std::log(sum[r]);
  }
}

/// dq of one head in one segment, and its part of dk and dv: [tokens of the segment, dim] each.
void backward_segment(const AttentionArgs& args, const Layout& at, const Packed& packed,
                      const Segment& s, int64_t head, const float* d_o, const float* qkv,
                      const float* o, const float* lse, float* dqkv, float* dk, float* dv) {
  const int64_t kv = args.kv_of_q[static_cast<size_t>(head)], dim = at.dim;
  const int64_t rows_elems = kQueries * dim, panel_elems = micro::packed_elems(kQueries, dim);
  float* p = scratch(kTileSlot, 2 * kQueries * kKeys);
  float* ds = p + kQueries * kKeys;
  float* q = scratch(kRowsSlot, 3 * rows_elems + 2 * panel_elems);
  float* gradient = q + rows_elems;
  float* dq = gradient + rows_elems;
  float* q_packed = dq + rows_elems;
  float* gradient_packed = q_packed + panel_elems;
  for (int64_t q0 = s.begin; q0 < s.end; q0 += kQueries) {
    const int64_t rows = std::min(kQueries, s.end - q0);
    micro::gather_rows(qkv + at.q(q0, head), at.width, rows, dim, q);
    micro::gather_rows(d_o + at.o(q0, head), at.o_width(), rows, dim, gradient);
    micro::pack(q, dim, rows, dim, q_packed);
    micro::pack(gradient, dim, rows, dim, gradient_packed);
    float delta[kQueries];  // rowsum(do * o)
    for (int64_t r = 0; r < rows; ++r) {
      const float* a = gradient + r * dim;
      const float* b = o + at.o(q0 + r, head);
      simd::VD dot{};
      simd::for_lanes(dim, [&](int64_t i, auto... part) {
        dot += simd::widen(simd::load(a + i, part...)) * simd::widen(simd::load(b + i, part...));
      });
      delta[r] = static_cast<float>(simd::sum(dot));
    }
    for (int64_t k0 = s.begin; k0 < q0 + rows; k0 += kKeys) {
      const Tile t{.q0 = q0, .rows = rows, .k0 = k0, .keys = std::min(kKeys, q0 + rows - k0)};
      const int64_t key = k0 - s.begin;
      scores(t, dim, q, packed.of(kBackKeysT, s, kv), key, args.scale, p);
      scores(t, dim, gradient, packed.of(kBackValuesT, s, kv), key, 1.0F, ds);
      for (int64_t r = 0; r < rows; ++r) {
        float* prob = p + r * kKeys;
        float* dscore = ds + r * kKeys;
        const int64_t seen = t.seen(r), masked = std::min(t.keys, seen + micro::kRows);
        const simd::V row_lse = simd::set(lse[head * at.tokens + q0 + r]);
        const simd::V row_delta = simd::set(delta[r]), factor = simd::set(args.scale);
        simd::for_lanes(seen, [&](int64_t i, auto... part) {
          const simd::V e = simd::exp(simd::load(prob + i, part...) - row_lse);
          simd::store(prob + i, e, part...);
          simd::store(dscore + i, e * (simd::load(dscore + i, part...) - row_delta) * factor,
                      part...);
        });
        std::fill(prob + seen, prob + masked, 0.0F);
        std::fill(dscore + seen, dscore + masked, 0.0F);
      }
      weighted_rows(t, dim, ds, packed.of(kBackKeys, s, kv), s.length(), key, dq);
      weighted_columns(t, dim, p, gradient_packed, dv + key * dim);
      weighted_columns(t, dim, ds, q_packed, dk + key * dim);
    }
    for (int64_t r = 0; r < rows; ++r) std::copy_n(dq + r * dim, dim, dqkv + at.q(q0 + r, head));
  }
}

}  // namespace

void attention_forward(const Tensor& qkv, const Tensor&, const AttentionArgs& args, const Tensor& o,
                       const Tensor& lse, const Tensor&, const Stream&) {
  const Layout at(args, qkv.dim(0));
  if (at.tokens == 0 || at.q_heads == 0) return;
  const Segments segments(args.host_cu);
  const Packed packed(at, segments, kForwardKinds);
  const float* in = qkv.ptr<float>();
  parallel_for(segments.count() * at.kv_heads, [&](int64_t i) {
    const Segment& s = segments[i / at.kv_heads];
    const int64_t kv = i % at.kv_heads;
    micro::pack_transposed(in + at.k(s.begin, kv), at.width, at.dim, s.length(),
                           packed.of(kKeysT, s, kv));
    micro::pack(in + at.v(s.begin, kv), at.width, s.length(), at.dim, packed.of(kValues, s, kv));
  });
  struct Block {
    const Segment* segment;
    int64_t q0;
    [[nodiscard]] int64_t cost() const { return q0 - segment->begin; }
  };
  std::vector<Block> blocks;
  for (const Segment& s : segments.list)
    for (int64_t q0 = s.begin; q0 < s.end; q0 += kQueries) blocks.push_back({&s, q0});
  std::stable_sort(blocks.begin(), blocks.end(),
                   [](const Block& a, const Block& b) { return a.cost() > b.cost(); });
  parallel_for(static_cast<int64_t>(blocks.size()) * at.q_heads, [&](int64_t i) {
    const Block& b = blocks[static_cast<size_t>(i / at.q_heads)];
    forward_block(args, at, packed, *b.segment, b.q0, i % at.q_heads, in, o.ptr<float>(),
                  lse.ptr<float>());
  });
  const int64_t end = args.host_cu.back();  // tokens past the last segment are padding
  std::fill(o.ptr<float>() + at.o(end, 0), o.ptr<float>() + at.o(at.tokens, 0), 0.0F);
  for (int64_t h = 0; h < at.q_heads; ++h)
    std::fill(lse.ptr<float>() + h * at.tokens + end, lse.ptr<float>() + (h + 1) * at.tokens, 0.0F);
}

void attention_backward(const Tensor& do_, const Tensor& qkv, const Tensor& o, const Tensor& lse,
                        const Tensor&, const AttentionArgs& args, const Tensor& dqkv, const Tensor&,
                        const Stream&) {
  const Layout at(args, qkv.dim(0));
  if (at.tokens == 0 || at.width == 0) return;
  const Segments segments(args.host_cu);
  const float* in = qkv.ptr<float>();
  float* out = dqkv.ptr<float>();
  const int64_t end = args.host_cu.back();
  std::fill(out + at.q(end, 0), out + at.q(at.tokens, 0), 0.0F);

  const Packed packed(at, segments, kBackwardKinds);
  parallel_for(segments.count() * at.kv_heads, [&](int64_t i) {
    const Segment& s = segments[i / at.kv_heads];
    const int64_t kv = i % at.kv_heads;
    micro::pack_transposed(in + at.k(s.begin, kv), at.width, at.dim, s.length(),
                           packed.of(kBackKeysT, s, kv));
    micro::pack_transposed(in + at.v(s.begin, kv), at.width, at.dim, s.length(),
                           packed.of(kBackValuesT, s, kv));
    micro::pack(in + at.k(s.begin, kv), at.width, s.length(), at.dim, packed.of(kBackKeys, s, kv));
  });
  // A task is one segment and one q head; its part of dk and dv is summed over the q heads of a
  // group afterwards, in order.
  const int64_t head_elems = at.tokens * at.dim;
  float* partial =
      scratch(kPartialSlot, at.q_heads * 2 * head_elems);  // [q heads, dk and dv, tokens, dim]
  parallel_for(segments.count() * at.q_heads, [&](int64_t i) {
    const Segment& s = segments[i / at.q_heads];
    const int64_t head = i % at.q_heads;
    float* dk = partial + head * 2 * head_elems + s.begin * at.dim;
    backward_segment(args, at, packed, s, head, do_.ptr<float>(), in, o.ptr<float>(),
                     lse.ptr<float>(), out, dk, dk + head_elems);
  });
  constexpr int64_t kTokens = 32;
  parallel_ranges(end, kTokens, [&](int64_t begin, int64_t last) {
    for (int64_t t = begin; t < last; ++t)
      for (int64_t kv = 0; kv < at.kv_heads; ++kv) {
        const auto group =
            std::equal_range(args.kv_of_q.begin(), args.kv_of_q.end(), static_cast<int32_t>(kv));
        const int64_t first = group.first - args.kv_of_q.begin(),
                      after = group.second - args.kv_of_q.begin();
        for (int64_t part_of = 0; part_of < 2; ++part_of) {
          float* to = out + (part_of == 0 ? at.k(t, kv) : at.v(t, kv));
          const float* from = partial + part_of * head_elems + t * at.dim;
          simd::for_lanes(at.dim, [&](int64_t i, auto... part) {
            simd::V sum{};  // stays zero where no q head of this rank reads the kv head
            for (int64_t head = first; head < after; ++head)
              sum += simd::load(from + head * 2 * head_elems + i, part...);
            simd::store(to + i, sum, part...);
          });
        }
      }
  });
}

}  // namespace r1::kernels::cpu
