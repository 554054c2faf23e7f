// What every command of a rank shares, built once in main and passed by reference.
#pragma once

#include <array>
#include <atomic>
#include <string>
#include <string_view>
#include <vector>

#include "comm/communicator.h"
#include "comm/watch/watch.h"
#include "runtime/core/options.h"
#include "runtime/core/rank_status.h"

namespace r1::train {

/// Signals, as flags that the handlers set.
struct SignalFlags {
  std::atomic<int> stop{0};  ///< SIGTERM, SIGINT or SIGHUP: leave at once
  std::atomic<int> save{0};  ///< SIGUSR1: save at the next step boundary and leave
  /// Throws StoppedError when one asked to leave.
  void check_stop() const;
};

struct RankContext {
  JobConfig& config;
  comm::Communicator& world;
  RankStatusWriter& status;
  SignalFlags& signals;
  bool terminal = false;  ///< standard output is a terminal (the front door says so)
  comm::Watch* watch = nullptr;  ///< the control thread, where there is one
  comm::StopCheck stop;   ///< for whatever waits; may be empty

  [[nodiscard]] bool first() const { return world.rank() == 0; }
  /// Throws StoppedError when a signal asked to leave. Counts as progress: call it where work goes on without new phases.
  void check_stop() const;
};

/// Prints a line on standard output from world rank 0.
void say(const RankContext& ctx, const std::string& line);

/// What a command was asked to write with --json: to standard output where the target is "-". Throws StorageError.
void write_json(const std::string& target, const std::string& text);

/// `n` elements of host memory as a tensor.
[[nodiscard]] Tensor host_tensor(void* data, int64_t n, DType dtype);
/// Text of any length to a peer that calls recv_text.
void send_text(comm::Communicator& group, std::string text, int peer);
[[nodiscard]] std::string recv_text(comm::Communicator& group, int peer);
/// `text` of rank `root` on every rank. Collective.
[[nodiscard]] std::string broadcast_text(comm::Communicator& group, std::string text, int root = 0);
/// Reductions of host values. Collective.
[[nodiscard]] int64_t reduce(comm::Communicator& group, int64_t value, comm::ReduceOp op);
[[nodiscard]] double reduce(comm::Communicator& group, double value, comm::ReduceOp op);
/// Every rank's value or values, in rank order. Collective.
[[nodiscard]] std::vector<int64_t> gather(comm::Communicator& group, int64_t value);
template <size_t N>
[[nodiscard]] std::vector<std::array<int64_t, N>> gather(comm::Communicator& group, std::array<int64_t, N> values) {
  const auto n = static_cast<size_t>(group.size());
  std::vector<std::array<int64_t, N>> all(n);
  const std::vector<int64_t> counts(n, N);
  group.all_gather(host_tensor(values.data(), N, DType::kI64), host_tensor(all.data(), static_cast<int64_t>(N * n), DType::kI64), counts, {});
  return all;
}
/// A hash of the host name of every rank, in rank order. Collective over the world.
[[nodiscard]] std::vector<int64_t> host_of_rank(comm::Communicator& world);
/// Ranks on the same host as this one (this one included). Collective over the world.
[[nodiscard]] int ranks_on_this_host(comm::Communicator& world);
/// This rank's number among them, in world order. Collective over the world.
[[nodiscard]] int local_rank(comm::Communicator& world);

}  // namespace r1::train
