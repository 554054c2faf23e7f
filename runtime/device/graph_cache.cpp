#include "runtime/device/graph_cache.h"

#include <utility>

#include "runtime/core/error.h"
#include "runtime/core/log.h"

namespace r1 {

GraphCache& GraphCache::operator=(GraphCache&& o) noexcept {
  std::swap(device_, o.device_);
  std::swap(enabled_, o.enabled_);
  std::swap(suspended_, o.suspended_);
  std::swap(captured_, o.captured_);
  entries_.swap(o.entries_);
  return *this;
}

GraphCache::~GraphCache() {
  if (captured_ == 0) return;
  for (auto& [key, entry] : entries_) backend_of(device_.kind).destroy_graph(entry.graph);
}

void GraphCache::run(const Key& key, const Stream& s, const std::function<void()>& work) {
  if (!enabled_ || suspended_) {
    work();
    return;
  }
  DeviceBackend& backend = backend_of(device_.kind);
  const auto [it, first] = entries_.try_emplace(key);
  Entry& entry = it->second;
  if (first || entry.state == State::kRefused) {
    work();
    return;
  }
  if (entry.state == State::kSeen) {
    if (captured_ >= kMostGraphs) {
      entry.state = State::kRefused;
      work();
      return;
    }
    backend.begin_capture(s);
    try {
      work();
      entry.graph = backend.end_capture(s);
    } catch (const Error& e) {
      backend.abandon_capture(s);
      entry.state = State::kRefused;
      log::warn("a part of the step cannot be captured as a graph and runs operation by operation: {}", e.what());
      work();
      return;
    }
    entry.state = State::kCaptured;
    ++captured_;
  }
  backend.launch(entry.graph, s);
}

}  // namespace r1
