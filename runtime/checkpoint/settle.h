// Waiting for another host's files to show on a shared file system, whose clients cache names and sizes.
#pragma once

#include <algorithm>
#include <chrono>
#include <thread>

namespace r1::checkpoint {

inline constexpr auto kSettle = std::chrono::seconds(10);

/// Waits until `done` or the time is up; false then.
template <class F>
bool settle(F&& done) {
  const auto until = std::chrono::steady_clock::now() + kSettle;
  auto pause = std::chrono::milliseconds(1);
  while (!done()) {
    if (std::chrono::steady_clock::now() >= until) return false;
    std::this_thread::sleep_for(pause);
    pause = std::min(pause * 2, std::chrono::milliseconds(200));
  }
  return true;
}

}  // namespace r1::checkpoint
