#include "runtime/train/context.h"

#include <algorithm>
#include <cstdio>
#include <fstream>

#include "runtime/core/host.h"
#include "runtime/core/rng.h"

namespace r1::train {

void SignalFlags::check_stop() const {
  if (const int signal = stop.load(); signal != 0)
    throw StoppedError("stopped by signal {}; the last checkpoint is valid: run the same command with --resume auto", signal);
}

void RankContext::check_stop() const {
  status.tick();
  signals.check_stop();
}

void say(const RankContext& ctx, const std::string& line) {
  if (!ctx.first()) return;
  fmt::print("{}\n", line);
  std::fflush(stdout);
}

void write_json(const std::string& target, const std::string& text) {
  if (target == "-")
    fmt::print("{}\n", text);
  else if (!(std::ofstream(target) << text << "\n").flush())
    throw StorageError("--json {}: cannot be written", target);
}

Tensor host_tensor(void* data, int64_t n, DType dtype) { return {.data = data, .dtype = dtype, .shape = {n}, .device = {}}; }

void send_text(comm::Communicator& group, std::string text, int peer) {
  auto n = static_cast<int64_t>(text.size());
  group.send(host_tensor(&n, 1, DType::kI64), peer, {});
  if (n > 0) group.send(host_tensor(text.data(), n, DType::kU8), peer, {});
}

std::string recv_text(comm::Communicator& group, int peer) {
  int64_t n = 0;
  group.recv(host_tensor(&n, 1, DType::kI64), peer, {});
  std::string text(static_cast<size_t>(n), '\0');
  if (n > 0) group.recv(host_tensor(text.data(), n, DType::kU8), peer, {});
  return text;
}

std::string broadcast_text(comm::Communicator& group, std::string text, int root) {
  auto n = static_cast<int64_t>(text.size());
  group.broadcast(host_tensor(&n, 1, DType::kI64), root, {});
  text.resize(static_cast<size_t>(n));
  if (n > 0) group.broadcast(host_tensor(text.data(), n, DType::kU8), root, {});
  return text;
}

int64_t reduce(comm::Communicator& group, int64_t value, comm::ReduceOp op) {
  group.all_reduce(host_tensor(&value, 1, DType::kI64), op, {});
  return value;
}

double reduce(comm::Communicator& group, double value, comm::ReduceOp op) {
  group.all_reduce(host_tensor(&value, 1, DType::kF64), op, {});
  return value;
}

std::vector<int64_t> gather(comm::Communicator& group, int64_t value) {
  const auto n = static_cast<size_t>(group.size());
  std::vector<int64_t> all(n), counts(n, 1);
  group.all_gather(host_tensor(&value, 1, DType::kI64), host_tensor(all.data(), group.size(), DType::kI64), counts, {});
  return all;
}

std::vector<int64_t> host_of_rank(comm::Communicator& world) {
  return gather(world, static_cast<int64_t>(hash_name(host_name())));
}

int ranks_on_this_host(comm::Communicator& world) {
  const std::vector<int64_t> hosts = host_of_rank(world);
  return static_cast<int>(std::count(hosts.begin(), hosts.end(), hosts[static_cast<size_t>(world.rank())]));
}

int local_rank(comm::Communicator& world) {
  const std::vector<int64_t> hosts = host_of_rank(world);
  return static_cast<int>(std::count(hosts.begin(), hosts.begin() + world.rank(), hosts[static_cast<size_t>(world.rank())]));
}

}  // namespace r1::train
