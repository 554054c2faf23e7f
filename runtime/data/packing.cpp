#include "runtime/data/packing.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

#include "runtime/core/error.h"
#include "runtime/data/permutation.h"

namespace r1::data {
namespace {

/// Rows open at once when the file's order is kept. GSM8K with the R1-Distill-Qwen tokenizer at
/// 2,048: 1 row 95.5 % full, 4 rows 98.4 %, 16 or 64 rows 98.7 %.
constexpr size_t kOrderedWindow = 16;

/// A set of small integers with "smallest member >= x", as a tree of 64-bit words.
class IntegerSet {
 public:
  explicit IntegerSet(size_t size) {
    do {
      size = (size + 63) / 64;
      levels_.emplace_back(size, 0);
    } while (size > 1);
  }
  void insert(size_t i) {
    for (auto& level : levels_) {
      level[i / 64] |= uint64_t{1} << (i % 64);
      i /= 64;
    }
  }
  void erase(size_t i) {
    for (auto& level : levels_) {
      level[i / 64] &= ~(uint64_t{1} << (i % 64));
      if (level[i / 64] != 0) return;
      i /= 64;
    }
  }
  /// npos when there is none.
  [[nodiscard]] size_t at_least(size_t x) const {
    for (size_t depth = 0; depth < levels_.size(); ++depth) {
      const auto& level = levels_[depth];
      if (x / 64 >= level.size()) return npos;
      const uint64_t word = level[x / 64] & (~uint64_t{0} << (x % 64));
      if (word != 0) {
        size_t i = x / 64 * 64 + static_cast<size_t>(std::countr_zero(word));
        while (depth-- > 0) i = i * 64 + static_cast<size_t>(std::countr_zero(levels_[depth][i]));
        return i;
      }
      x = x / 64 + 1;  // the words behind this one
    }
    return npos;
  }
  static constexpr size_t npos = std::numeric_limits<size_t>::max();

 private:
  std::vector<std::vector<uint64_t>> levels_;
};

/// slot -> row becomes row -> slots; slots keep the order in which `slots` lists them.
[[nodiscard]] PackedRows gather(std::span<const uint32_t> row_of_slot,
                                std::span<const uint32_t> slot_order, uint32_t rows) {
  PackedRows out;
  out.begin.assign(size_t{rows} + 1, 0);
  for (const uint32_t row : row_of_slot) ++out.begin[row + 1];
  std::partial_sum(out.begin.begin(), out.begin.end(), out.begin.begin());
  out.slots.resize(row_of_slot.size());
  std::vector<uint32_t> at(out.begin.begin(), out.begin.end() - 1);
  const auto place = [&](uint32_t slot) { out.slots[at[row_of_slot[slot]]++] = slot; };
  if (slot_order.empty())
    for (uint32_t slot = 0; slot < row_of_slot.size(); ++slot) place(slot);
  else
    for (const uint32_t slot : slot_order) place(slot);
  return out;
}

void check_lengths(std::span<const int32_t> lengths, int64_t seq_len) {
  R1_CHECK(lengths.size() < std::numeric_limits<uint32_t>::max(), "{} slots", lengths.size());
  for (const int32_t n : lengths)
    R1_CHECK(n >= 1 && n <= seq_len, "length {} in rows of {}", n, seq_len);
}

}  // namespace

PackedRows pack_best_fit(std::span<const int32_t> lengths, int64_t seq_len) {
  check_lengths(lengths, seq_len);
  const size_t n = lengths.size();
  // Longest first, ties by index: a counting sort.
  const size_t longest =
      n == 0 ? 0 : static_cast<size_t>(*std::max_element(lengths.begin(), lengths.end()));
  std::vector<uint32_t> order(n);
  {
    std::vector<uint32_t> at(longest + 2, 0);
    for (const int32_t len : lengths) ++at[longest - static_cast<size_t>(len) + 1];
    std::partial_sum(at.begin(), at.end(), at.begin());
    for (uint32_t i = 0; i < n; ++i) order[at[longest - static_cast<size_t>(lengths[i])]++] = i;
  }
  // Rows by the room left in them: a list for each room, and the set of rooms whose list is not
  // empty.
  constexpr uint32_t kNone = std::numeric_limits<uint32_t>::max();
  const size_t rooms = static_cast<size_t>(seq_len) + 1;
  IntegerSet open(rooms);
  std::vector<uint32_t> head(rooms, kNone), next, row_of_slot(n);
  for (const uint32_t slot : order) {
    const size_t len = static_cast<size_t>(lengths[slot]);
    size_t room = open.at_least(len);
    uint32_t row = 0;
    if (room == IntegerSet::npos) {
      row = static_cast<uint32_t>(next.size());
      next.push_back(kNone);
      room = static_cast<size_t>(seq_len);
    } else {
      row = head[room];
      head[room] = next[row];
      if (head[room] == kNone) open.erase(room);
    }
    row_of_slot[slot] = row;
    const size_t left = room - len;
    if (left == 0) continue;
    if (head[left] == kNone) open.insert(left);
    next[row] = head[left];
    head[left] = row;
  }
  const auto rows = static_cast<uint32_t>(next.size());
  return gather(row_of_slot, order, rows);
}

PackedRows pack_in_order(std::span<const int32_t> lengths, int64_t seq_len, size_t window) {
  check_lengths(lengths, seq_len);
  struct Open {
    uint32_t row;
    int64_t room;
  };
  std::vector<Open> open;  // oldest first
  std::vector<uint32_t> row_of_slot(lengths.size());
  uint32_t rows = 0;
  for (size_t slot = 0; slot < lengths.size(); ++slot) {
    const int64_t len = lengths[slot];
    auto best = open.end();
    for (auto it = open.begin(); it != open.end(); ++it)
      if (it->room >= len && (best == open.end() || it->room < best->room)) best = it;
    if (best == open.end()) {
      if (open.size() == window) open.erase(open.begin());
      open.push_back({rows++, seq_len});
      best = open.end() - 1;
    }
    row_of_slot[slot] = best->row;
    best->room -= len;
    if (best->room == 0) open.erase(best);
  }
  return gather(row_of_slot, {}, rows);
}

RowPlan::RowPlan(std::span<const int32_t> lengths, std::span<const PlanSource> sources,
                 const PlanOptions& options)
    : options_(options) {
  R1_CHECK(options.seq_len >= 1, "seq_len {}", options.seq_len);
  R1_CHECK(lengths.size() < std::numeric_limits<uint32_t>::max(), "{} samples", lengths.size());
  std::vector<int32_t> slot_lengths;
  const auto too_many = [](double slots) {
    if (slots > 4e9)
      throw UsageError(
          "one epoch would hold {:.0f} samples; the limit is 4e9 (lower the weights behind --data)",
          slots);
  };
  if (options.shuffle) {
    for (const PlanSource& source : sources) {
      // This source's samples by length (all alike when they are not packed), ties by id.
      const auto length_class = [&](uint32_t sample) { return options.pack ? lengths[sample] : 1; };
      std::vector<uint32_t> sorted;
      sorted.reserve(source.samples);
      for (uint32_t i = 0; i < source.samples; ++i)
        if (lengths[source.first_sample + i] > 0) sorted.push_back(source.first_sample + i);
      std::stable_sort(sorted.begin(), sorted.end(),
                       [&](uint32_t a, uint32_t b) { return length_class(a) > length_class(b); });
      too_many(static_cast<double>(slots_) + source.weight * static_cast<double>(sorted.size()));
      const auto base = static_cast<uint32_t>(order_.size());
      // A class is at least 1/weight samples, so that each has a slot and none is never seen:
      // neighbouring lengths are joined until it is, and its slots have the longest of them. With
      // whole weights nothing is joined.
      double carried = 0.0;  // fractions of slots, so that the sum over classes is right
      for (size_t begin = 0; begin < sorted.size();) {
        size_t end = begin;
        while (end < sorted.size() && (source.weight * static_cast<double>(end - begin) < 1.0 ||
                                       length_class(sorted[end]) == length_class(sorted[end - 1])))
          ++end;
        // The rest would be too few for a class of its own.
        if (source.weight * static_cast<double>(sorted.size() - end) < 1.0) end = sorted.size();
        const double wanted = carried + source.weight * static_cast<double>(end - begin);
        auto slots = static_cast<uint32_t>(wanted + 1e-9);
        carried = std::max(0.0, wanted - slots);
        if (slots == 0 && end == sorted.size())
          slots = carried >= 0.5 || order_.size() == base ? 1 : 0;
        if (slots > 0) {
          classes_.push_back({base + static_cast<uint32_t>(begin),
                              static_cast<uint32_t>(end - begin), static_cast<uint32_t>(slots_),
                              slots});
          slot_lengths.insert(slot_lengths.end(), slots, lengths[sorted[begin]]);
          slots_ += slots;
        }
        begin = end;
      }
      order_.insert(order_.end(), sorted.begin(), sorted.end());
    }
  } else {
    for (const PlanSource& source : sources) {
      std::vector<uint32_t> kept;
      for (uint32_t i = 0; i < source.samples; ++i)
        if (lengths[source.first_sample + i] > 0) kept.push_back(source.first_sample + i);
      const double wanted = source.weight * static_cast<double>(kept.size());
      too_many(static_cast<double>(order_.size()) + wanted);
      auto left = static_cast<size_t>(std::llround(wanted));
      if (left == 0 && !kept.empty()) left = 1;
      while (left > 0 && !kept.empty()) {
        const size_t take = std::min(left, kept.size());
        order_.insert(order_.end(), kept.begin(), kept.begin() + static_cast<ptrdiff_t>(take));
        left -= take;
      }
    }
    slots_ = static_cast<int64_t>(order_.size());
    slot_lengths.reserve(order_.size());
    for (const uint32_t sample : order_) slot_lengths.push_back(lengths[sample]);
  }
  if (!options.pack) {
    rows_ = slots_;
    return;
  }
  packed_ = options.shuffle ? pack_best_fit(slot_lengths, options.seq_len)
                            : pack_in_order(slot_lengths, options.seq_len, kOrderedWindow);
  rows_ = packed_.rows();
}

uint32_t RowPlan::sample_of_slot(uint32_t slot, uint64_t epoch) const {
  if (!options_.shuffle) return order_[slot];
  const auto it = std::upper_bound(classes_.begin(), classes_.end(), slot,
                                   [](uint32_t s, const Class& c) { return s < c.first_slot; }) -
                  1;
  // The class's samples pass by in cycles, each a permutation; an epoch takes the next `slots` of
  // them.
  const uint64_t position = epoch * it->slots + (slot - it->first_slot);
  const uint64_t cycle = position / it->count;
  if (it->count == 1) return order_[it->first];
  const Permutation permutation(options_.seed, "data:samples", cycle, it->first, it->count);
  return order_[it->first + permutation(position % it->count)];
}

std::vector<uint32_t> RowPlan::samples(int64_t global_row) const {
  R1_CHECK(global_row >= 0 && rows_ > 0, "row {} of {} rows", global_row, rows_);
  const auto rows = static_cast<uint64_t>(rows_);
  const uint64_t epoch = static_cast<uint64_t>(global_row) / rows;
  uint64_t row = static_cast<uint64_t>(global_row) % rows;
  if (options_.shuffle) row = Permutation(options_.seed, "data:rows", epoch, 0, rows)(row);
  if (!options_.pack) return {sample_of_slot(static_cast<uint32_t>(row), epoch)};
  std::vector<uint32_t> out;
  for (uint32_t i = packed_.begin[row]; i < packed_.begin[row + 1]; ++i)
    out.push_back(sample_of_slot(packed_.slots[i], epoch));
  return out;
}

}  // namespace r1::data
