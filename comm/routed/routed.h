// The groups of a job: each over the backend that fits where its ranks are
// (runtime/core/comm_route.h), and over the host communicator for host tensors of a GPU job.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "runtime/core/comm_route.h"

namespace r1::comm {

/// A group and what carries it, for the start-up report.
struct RoutedGroup {
  std::string name;
  CommRoute route;
};

class Router {
 public:
  /// `host` moves host tensors between all ranks (and, staged, device tensors: the fallback); it
  /// must outlive the router and everything split from world(). `device`: where this rank's tensors
  /// live. Waits call `stop`. Collective over `host`: ranks tell each other their host and GPU.
  Router(Communicator& host, CommChoice choice, Device device, StopCheck stop);
  ~Router();
  Router(const Router&) = delete;
  Router& operator=(const Router&) = delete;

  /// All ranks: over `host` itself. Groups split from it are routed; close them before the router
  /// goes.
  [[nodiscard]] Communicator& world();
  /// The groups made so far on this rank, those of one rank left out.
  [[nodiscard]] const std::vector<RoutedGroup>& groups() const;

 private:
  class World;
  struct State;
  std::shared_ptr<State> state_;
  std::unique_ptr<World> world_;
};

}  // namespace r1::comm
