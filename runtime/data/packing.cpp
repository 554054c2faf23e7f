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

/// slot -> row becomes row -> slots, slots in order.
[[nodiscard]] PackedRows gather(std::vector<uint32_t> row_of_slot, uint32_t rows) {
  PackedRows out;
  out.begin.assign(size_t{rows} + 2, 0);
  for (const uint32_t row : row_of_slot) ++out.begin[row + 2];
  std::partial_sum(out.begin.begin(), out.begin.end(), out.begin.begin());
  out.slots.resize(row_of_slot.size());
  for (uint32_t slot = 0; slot < row_of_slot.size(); ++slot)
    out.slots[out.begin[row_of_slot[slot] + 1]++] = slot;  // ends as the next row's begin
  out.begin.pop_back();
  return out;
}

/// Best fit over runs, longest first.
[[nodiscard]] PackedRows pack_runs(std::vector<SlotRun> runs, size_t slots, int64_t seq_len) {
  std::stable_sort(runs.begin(), runs.end(),
                   [](const SlotRun& a, const SlotRun& b) { return a.length > b.length; });
  // Rows by the room left in them: a list for each room, and the set of rooms whose list is not
  // empty.
  constexpr uint32_t kNone = std::numeric_limits<uint32_t>::max();
  const size_t rooms = static_cast<size_t>(seq_len) + 1;
  IntegerSet open(rooms);
  std::vector<uint32_t> head(rooms, kNone), next, row_of_slot(slots);
  for (const SlotRun& run : runs) {
    const auto length = static_cast<size_t>(run.length);
    for (uint32_t slot = run.first; slot < run.first + run.count; ++slot) {
      size_t room = open.at_least(length);
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
      const size_t left = room - length;
      if (left == 0) continue;
      if (head[left] == kNone) open.insert(left);
      next[row] = head[left];
      head[left] = row;
    }
  }
  return gather(std::move(row_of_slot), static_cast<uint32_t>(next.size()));
}

template <class Length>
[[nodiscard]] PackedRows pack_window(size_t slots, Length length, int64_t seq_len, size_t window) {
  struct Open {
    uint32_t row;
    int64_t room;
  };
  std::vector<Open> open;  // oldest first
  std::vector<uint32_t> row_of_slot(slots);
  uint32_t rows = 0;
  for (size_t slot = 0; slot < slots; ++slot) {
    const int64_t n = length(slot);
    auto best = open.end();
    for (auto it = open.begin(); it != open.end(); ++it)
      if (it->room >= n && (best == open.end() || it->room < best->room)) best = it;
    if (best == open.end()) {
      if (open.size() == window) open.erase(open.begin());
      open.push_back({rows++, seq_len});
      best = open.end() - 1;
    }
    row_of_slot[slot] = best->row;
    best->room -= n;
    if (best->room == 0) open.erase(best);
  }
  return gather(std::move(row_of_slot), rows);
}

void check_lengths(std::span<const int32_t> lengths, int64_t seq_len) {
  R1_CHECK(lengths.size() < std::numeric_limits<uint32_t>::max(), "{} slots", lengths.size());
  for (const int32_t n : lengths)
    R1_CHECK(n >= 1 && n <= seq_len, "length {} in rows of {}", n, seq_len);
}

}  // namespace

PackedRows pack_best_fit(std::span<const int32_t> lengths, int64_t seq_len) {
  check_lengths(lengths, seq_len);
  std::vector<SlotRun> runs;
  for (uint32_t i = 0; i < lengths.size(); ++i) {
    if (!runs.empty() && runs.back().length == lengths[i])
      ++runs.back().count;
    else
      runs.push_back({lengths[i], i, 1});
  }
  return pack_runs(std::move(runs), lengths.size(), seq_len);
}

PackedRows pack_in_order(std::span<const int32_t> lengths, int64_t seq_len, size_t window) {
  check_lengths(lengths, seq_len);
  return pack_window(
      lengths.size(), [&](size_t slot) { return lengths[slot]; }, seq_len, window);
}

namespace {

void check_slots(double slots) {
  if (slots > 4e9)
    throw UsageError(
        "one epoch would hold {:.0f} samples; the limit is 4e9 (lower the weights behind --data)",
        slots);
}

/// Appends a source's samples by length, longest first, ties by id: a counting sort. Those of
/// length 0 are left out.
template <class Length>
void append_by_length(const PlanSource& source, int64_t seq_len,
                      const std::vector<int32_t>& lengths, const Length& length_class,
                      std::vector<uint32_t>* order) {
  const size_t base = order->size();
  std::vector<uint32_t> at(static_cast<size_t>(seq_len) + 2, 0);
  const auto slot_of = [&](uint32_t sample) {
    return static_cast<size_t>(seq_len - length_class(sample));
  };
  for (uint32_t i = 0; i < source.samples; ++i)
    if (lengths[source.first_sample + i] > 0) ++at[slot_of(source.first_sample + i) + 1];
  std::partial_sum(at.begin(), at.end(), at.begin());
  order->resize(base + at.back());
  for (uint32_t i = 0; i < source.samples; ++i)
    if (lengths[source.first_sample + i] > 0)
      (*order)[base + at[slot_of(source.first_sample + i)]++] = source.first_sample + i;
}

}  // namespace

RowPlan::RowPlan(std::vector<int32_t> lengths, std::span<const PlanSource> sources,
                 const PlanOptions& options)
    : options_(options) {
  R1_CHECK(options.seq_len >= 1, "seq_len {}", options.seq_len);
  R1_CHECK(lengths.size() < std::numeric_limits<uint32_t>::max(), "{} samples", lengths.size());
  std::vector<SlotRun> runs;
  for (const PlanSource& source : sources) {
    if (options.shuffle)
      add_classes(source, lengths, &runs);
    else
      add_in_order(source, lengths);
  }
  if (!options.pack) {
    rows_ = slots_;
    return;
  }
  if (options.shuffle) {
    std::vector<int32_t>().swap(lengths);
    packed_ = pack_runs(std::move(runs), static_cast<size_t>(slots_), options.seq_len);
  } else {
    packed_ = pack_window(
        order_.size(), [&](size_t slot) { return lengths[order_[slot]]; }, options.seq_len,
        kOrderedWindow);
  }
  rows_ = packed_.rows();
}

// With shuffle: the source's samples by length (all alike when they are not packed) as classes,
// whose slots their samples take in turn, and the runs of equal slots.
void RowPlan::add_classes(const PlanSource& source, const std::vector<int32_t>& lengths,
                          std::vector<SlotRun>* runs) {
  const auto length_class = [&](uint32_t sample) { return options_.pack ? lengths[sample] : 1; };
  const auto base = static_cast<uint32_t>(order_.size());
  append_by_length(source, options_.seq_len, lengths, length_class, &order_);
  const std::span<const uint32_t> sorted(order_.begin() + base, order_.end());
  check_slots(static_cast<double>(slots_) + source.weight * static_cast<double>(sorted.size()));
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
    if (slots == 0 && end == sorted.size()) slots = carried >= 0.5 || begin == 0 ? 1 : 0;
    if (slots > 0) {
      classes_.push_back({base + static_cast<uint32_t>(begin), static_cast<uint32_t>(end - begin),
                          static_cast<uint32_t>(slots_), slots});
      runs->push_back({lengths[sorted[begin]], static_cast<uint32_t>(slots_), slots});
      slots_ += slots;
    }
    begin = end;
  }
}

// Without shuffle: the source's samples as often as its weight says, in the file's order.
void RowPlan::add_in_order(const PlanSource& source, const std::vector<int32_t>& lengths) {
  std::vector<uint32_t> kept;
  for (uint32_t i = 0; i < source.samples; ++i)
    if (lengths[source.first_sample + i] > 0) kept.push_back(source.first_sample + i);
  const double wanted = source.weight * static_cast<double>(kept.size());
  check_slots(static_cast<double>(order_.size()) + wanted);
  auto left = static_cast<size_t>(std::llround(wanted));
  if (left == 0 && !kept.empty()) left = 1;
  while (left > 0 && !kept.empty()) {
    const size_t take = std::min(left, kept.size());
    order_.insert(order_.end(), kept.begin(), kept.begin() + static_cast<ptrdiff_t>(take));
    left -= take;
  }
  slots_ = static_cast<int64_t>(order_.size());
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
