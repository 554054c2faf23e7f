// Blocks of the key/value cache: who holds which. Plain integers; the memory is elsewhere.
#pragma once

#include <cstdint>
#include <vector>

namespace r1::serve {

class BlockManager {
 public:
  explicit BlockManager(int64_t blocks);

  [[nodiscard]] int64_t total() const { return total_; }
  [[nodiscard]] int64_t free_blocks() const { return static_cast<int64_t>(free_.size()); }
  /// Appends blocks to `held` until there are `count`; false (and nothing changed) when too few are free.
  [[nodiscard]] bool grow(std::vector<int32_t>& held, int64_t count);
  /// Gives all of `held` back and clears it. Throws InternalError when one of them is free already.
  void release(std::vector<int32_t>& held);

 private:
  int64_t total_;
  std::vector<int32_t> free_;  ///< the last is handed out next
  std::vector<bool> used_;
};

}  // namespace r1::serve
