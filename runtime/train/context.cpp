#include "runtime/train/context.h"

#include <algorithm>
#include <cstdio>

#include "runtime/core/host.h"
#include "runtime/core/rng.h"

namespace r1::train {
namespace {

Tensor host_tensor(void* data, int64_t n, DType dtype) {
  return {.data = data, .dtype = dtype, .shape = {n}, .device = {}};
}

}  // namespace

void RankContext::check_stop() const {
  status.tick();
  if (const int signal = signals.stop.load(); signal != 0)
    throw StoppedError("stopped by signal {}; the last checkpoint is valid: run the same command with --resume auto",
                       signal);
}

void say(const RankContext& ctx, const std::string& line) {
  if (!ctx.first()) return;
  fmt::print("{}\n", line);
  std::fflush(stdout);
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

std::vector<int64_t> host_of_rank(comm::Communicator& world) {
  const auto n = static_cast<size_t>(world.size());
  std::vector<int64_t> hosts(n), counts(n, 1);
  auto mine = static_cast<int64_t>(hash_name(host_name()));
  world.all_gather(host_tensor(&mine, 1, DType::kI64), host_tensor(hosts.data(), world.size(), DType::kI64), counts, {});
  return hosts;
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
