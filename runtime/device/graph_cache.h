// Work that repeats with the same tensors and sizes, captured once and launched again.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>

#include "runtime/device/device.h"

namespace r1 {

/// Graphs by key. Owns them; the tensors that their work names must live as long.
class GraphCache {
 public:
  /// Everything the work depends on beside the contents of tensors: which stage and direction, which slots, which shapes.
  using Key = std::array<int64_t, 8>;

  GraphCache() = default;
  GraphCache(Device device, bool enabled) : device_(device), enabled_(enabled) {}
  GraphCache(GraphCache&& o) noexcept { *this = std::move(o); }
  GraphCache& operator=(GraphCache&& o) noexcept;
  ~GraphCache();

  /// Enqueues `work` on `s`. The first time of a key it runs as it is (operations choose algorithms and size their
  /// scratch), the second time it is captured, from then on the graph is launched. Work that cannot be captured keeps
  /// running as it is. Without graphs: calls `work`.
  void run(const Key& key, const Stream& s, const std::function<void()>& work);
  [[nodiscard]] bool enabled() const { return enabled_; }
  /// Runs everything as it is until switched on again (a profile times single operations).
  void suspend(bool on) { suspended_ = on; }
  [[nodiscard]] int graphs() const { return captured_; }

 private:
  enum class State { kSeen, kCaptured, kRefused };
  struct Entry {
    State state = State::kSeen;
    Graph graph;
  };
  /// A job that meets ever new shapes must not fill the device with graphs.
  static constexpr int kMostGraphs = 256;

  Device device_;
  bool enabled_ = false, suspended_ = false;
  int captured_ = 0;
  std::map<Key, Entry> entries_;
};

}  // namespace r1
