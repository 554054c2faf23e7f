// A set of logical CPUs (or of NUMA nodes), by operating-system index, kept as sorted ranges: a
// mask of four thousand CPUs costs as little as one of four. Pure.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace r1::launch {

class CpuSet {
 public:
  /// Indices at or above this are refused: no machine has them, and a hostile file may name any
  /// number.
  static constexpr int kMost = 1 << 16;

  CpuSet() = default;
  /// first … last, both included. Throws DataError when they are no range within [0, kMost).
  static CpuSet range(int first, int last);
  /// "0-3,8,10-11": the kernel's and nvidia-smi's list. Throws DataError, with `where` in front.
  static CpuSet from_list(std::string_view text, std::string_view where);
  /// "0000ffff,ff000000" (NCCL, sysfs: comma groups of 32 bits, highest first), also with 0x before
  /// groups (hwloc). Throws DataError, with `where` in front.
  static CpuSet from_mask(std::string_view text, std::string_view where);

  void insert(int first, int last);
  void insert(const CpuSet& other);
  [[nodiscard]] bool empty() const { return ranges_.empty(); }
  [[nodiscard]] int count() const;
  [[nodiscard]] bool contains(int cpu) const;
  [[nodiscard]] bool contains(const CpuSet& other) const;
  [[nodiscard]] CpuSet intersection(const CpuSet& other) const;
  [[nodiscard]] bool intersects(const CpuSet& other) const { return !intersection(other).empty(); }
  /// Lowest member; -1 when empty.
  [[nodiscard]] int first() const { return ranges_.empty() ? -1 : ranges_.front().first; }
  /// "0-3,8"; "" when empty.
  [[nodiscard]] std::string list() const;
  [[nodiscard]] const std::vector<std::pair<int, int>>& ranges() const { return ranges_; }
  /// Every member, ascending.
  [[nodiscard]] std::vector<int> members() const;
  friend bool operator==(const CpuSet&, const CpuSet&) = default;

 private:
  std::vector<std::pair<int, int>> ranges_;  // inclusive, sorted, neither touching nor overlapping
};

}  // namespace r1::launch
