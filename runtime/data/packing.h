// Which samples form which row. Rows are formed from lengths alone, before anything is distributed.
//
// With shuffle, rows are made of slots, a slot being a length. Samples of equal length are one
// class, and a class with weight w and c samples has w*c slots. Slots are packed once (best fit,
// longest first); which sample of the class stands in a slot changes from epoch to epoch by a keyed
// permutation. So every epoch has the same number of rows and the same fill, rows are formed anew,
// and row i is computed without a table of the epoch.
//
// Without shuffle a slot is a sample, in the file's order.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace r1::data {

/// Packed rows: row r holds slots[begin[r]] .. slots[begin[r + 1] - 1].
struct PackedRows {
  std::vector<uint32_t> begin;  ///< rows + 1 entries
  std::vector<uint32_t> slots;
  [[nodiscard]] int64_t rows() const { return static_cast<int64_t>(begin.size()) - 1; }
};

/// Slots of one length with consecutive numbers.
struct SlotRun {
  int32_t length = 0;
  uint32_t first = 0, count = 0;
};

/// Best fit, longest first: each slot goes to the fullest row that still holds it. lengths: of the
/// slots, each 1..seq_len.
[[nodiscard]] PackedRows pack_best_fit(std::span<const int32_t> lengths, int64_t seq_len);

/// Best fit in the given order over at most `window` rows that are open at once; the oldest is
/// closed for a new one. Rows come in the order of their first slot, slots in a row in order.
[[nodiscard]] PackedRows pack_in_order(std::span<const int32_t> lengths, int64_t seq_len,
                                       size_t window);

/// What the plan needs to know of the samples.
struct PlanSource {
  double weight = 1.0;
  uint32_t first_sample = 0,
           samples = 0;  ///< global sample ids [first_sample, first_sample + samples)
};
struct PlanOptions {
  int64_t seq_len = 0;
  bool pack = true, shuffle = true;
  uint64_t seed = 0;
};

class RowPlan {
 public:
  /// lengths: of all samples, cut to seq_len; 0 = left out (dropped). By value: they are let go
  /// before rows are packed, which is when the most memory is needed (12 bytes a sample).
  RowPlan(std::vector<int32_t> lengths, std::span<const PlanSource> sources,
          const PlanOptions& options);
  [[nodiscard]] int64_t rows() const { return rows_; }
  [[nodiscard]] int64_t slots() const { return slots_; }
  /// Global sample ids of a row; global_row = epoch * rows() + row in the epoch. Thread-safe, pure.
  [[nodiscard]] std::vector<uint32_t> samples(int64_t global_row) const;

 private:
  struct Class {
    uint32_t first = 0, count = 0;  // into order_
    uint32_t first_slot = 0, slots = 0;
  };
  void add_classes(const PlanSource& source, const std::vector<int32_t>& lengths,
                   std::vector<SlotRun>* runs);
  void add_in_order(const PlanSource& source, const std::vector<int32_t>& lengths);
  [[nodiscard]] uint32_t sample_of_slot(uint32_t slot, uint64_t epoch) const;

  PlanOptions options_;
  std::vector<uint32_t> order_;  // shuffle: samples by class; else: slot -> sample
  std::vector<Class> classes_;   // shuffle only, by first_slot
  PackedRows packed_;            // pack only
  int64_t rows_ = 0, slots_ = 0;
};

}  // namespace r1::data
