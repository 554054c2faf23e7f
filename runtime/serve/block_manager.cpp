#include "runtime/serve/block_manager.h"

#include "runtime/core/error.h"

namespace r1::serve {

BlockManager::BlockManager(int64_t blocks) : total_(blocks), used_(static_cast<size_t>(blocks), false) {
  R1_CHECK(blocks >= 0 && blocks <= INT32_MAX, "{} cache blocks", blocks);
  for (int64_t b = blocks; b-- > 0;)
    free_.push_back(static_cast<int32_t>(b));  // low numbers first: the cache fills from the front
}

bool BlockManager::grow(std::vector<int32_t>& held, int64_t count) {
  const int64_t missing = count - static_cast<int64_t>(held.size());
  if (missing > free_blocks()) return false;
  for (int64_t i = 0; i < missing; ++i) {
    held.push_back(free_.back());
    used_[static_cast<size_t>(free_.back())] = true;
    free_.pop_back();
  }
  return true;
}

void BlockManager::release(std::vector<int32_t>& held) {
  while (!held.empty()) {
    const auto b = static_cast<size_t>(held.back());
    R1_CHECK(b < used_.size() && used_[b], "cache block {} is given back twice", held.back());
    used_[b] = false;
    free_.push_back(held.back());
    held.pop_back();
  }
}

}  // namespace r1::serve
