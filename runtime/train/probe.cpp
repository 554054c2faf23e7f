#include "runtime/train/probe.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "runtime/core/error.h"

namespace r1::train {
namespace {

using Clock = std::chrono::steady_clock;

Tensor bytes_of(void* data, int64_t n) { return {.data = data, .dtype = DType::kU8, .shape = {n}, .device = {}}; }

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  if (value == nullptr)
    throw UsageError("probe runs below r1run (`r1run probe --hostfile F`, or `mpirun -np 2 r1run probe`), not by itself");
  return value;
}

/// The text of every rank, in order. Collective.
std::vector<std::string> gather(comm::Communicator& world, const std::string& mine) {
  const auto n = static_cast<size_t>(world.size());
  std::vector<int64_t> sizes(n), ones(n, 1);
  auto size = static_cast<int64_t>(mine.size());
  world.all_gather({.data = &size, .dtype = DType::kI64, .shape = {1}, .device = {}},
                   {.data = sizes.data(), .dtype = DType::kI64, .shape = {world.size()}, .device = {}}, ones, {});
  int64_t total = 0;
  for (const int64_t s : sizes) total += s;
  std::string all(static_cast<size_t>(total), '\0'), own = mine;
  world.all_gather(bytes_of(own.data(), size), bytes_of(all.data(), total), sizes, {});
  std::vector<std::string> out;
  size_t at = 0;
  for (const int64_t s : sizes) {
    out.push_back(all.substr(at, static_cast<size_t>(s)));
    at += static_cast<size_t>(s);
  }
  return out;
}

struct Timing {
  double gbytes_per_s = 0, latency_us = 0;
};

/// Seconds of `rounds` messages there and back.
double ping_pong(comm::Communicator& world, int peer, bool first, std::vector<char>& buffer, int64_t bytes, int rounds) {
  const Tensor message = bytes_of(buffer.data(), bytes);
  const auto start = Clock::now();
  for (int i = 0; i < rounds; ++i) {
    first ? world.send(message, peer, {}) : world.recv(message, peer, {});
    first ? world.recv(message, peer, {}) : world.send(message, peer, {});
  }
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// A size whose way there and back takes about 50 ms, at most the buffer: slow links must not hold the others up. The first
/// rank decides and tells its peer.
int64_t agree_on_size(comm::Communicator& world, int peer, bool first, std::vector<char>& buffer) {
  constexpr int64_t kTrial = 256 << 10;
  const double seconds = ping_pong(world, peer, first, buffer, kTrial, 1);
  auto size = static_cast<int64_t>(static_cast<double>(kTrial) * 0.05 / std::max(seconds, 1e-9));
  size = std::clamp<int64_t>(size, kTrial, static_cast<int64_t>(buffer.size()));
  const Tensor message{.data = &size, .dtype = DType::kI64, .shape = {1}, .device = {}};
  first ? world.send(message, peer, {}) : world.recv(message, peer, {});
  return size;
}

/// Best of several, after a warm-up: probes share the machine with others.
Timing time_pair(comm::Communicator& world, int peer, bool first, std::vector<char>& buffer) {
  constexpr int64_t kSmall = 8;
  Timing best{0, 1e12};
  (void)ping_pong(world, peer, first, buffer, kSmall, 10);
  const int64_t large = agree_on_size(world, peer, first, buffer);
  (void)ping_pong(world, peer, first, buffer, large, 1);
  for (int attempt = 0; attempt < 4; ++attempt) {
    constexpr int kRounds = 20, kLargeRounds = 2;
    best.latency_us = std::min(best.latency_us, ping_pong(world, peer, first, buffer, kSmall, kRounds) / (2 * kRounds) * 1e6);
    const double seconds = ping_pong(world, peer, first, buffer, large, kLargeRounds);
    best.gbytes_per_s = std::max(best.gbytes_per_s, 2.0 * kLargeRounds * static_cast<double>(large) / seconds / 1e9);
  }
  return best;
}

/// Every pair of ranks once, in rounds of disjoint pairs (a round-robin tournament). Few ranks: one pair at a time, so that
/// pairs do not share a link; many: the pairs of a round together, which a fabric without over-subscription carries.
nlohmann::json time_pairs(const RankContext& ctx) {
  comm::Communicator& world = ctx.world;
  const int n = world.size(), even = n + n % 2, me = world.rank();
  const bool one_at_a_time = n <= 24;
  std::vector<char> buffer(size_t{8} << 20);
  const auto count = static_cast<size_t>(n);
  std::vector<double> mine(2 * count, 0.0), all(2 * count * count, 0.0);
  for (int round = 0; round + 1 < even; ++round) {
    for (int k = 0; k < even / 2; ++k) {
      const int a = k == 0 ? even - 1 : (round + k) % (even - 1);
      const int b = k == 0 ? round : (round - k + even - 1) % (even - 1);
      const bool in = (me == a || me == b) && a < n && b < n;
      if (in) {
        const int peer = me == a ? b : a;
        const Timing t = time_pair(world, peer, me < peer, buffer);
        mine[2 * static_cast<size_t>(peer)] = t.gbytes_per_s;
        mine[2 * static_cast<size_t>(peer) + 1] = t.latency_us;
      }
      if (one_at_a_time) world.barrier();
    }
    ctx.check_stop();
  }
  const std::vector<int64_t> counts(count, 2 * n);
  world.all_gather({.data = mine.data(), .dtype = DType::kF64, .shape = {2 * n}, .device = {}},
                   {.data = all.data(), .dtype = DType::kF64, .shape = {2 * n * static_cast<int64_t>(n)}, .device = {}}, counts, {});
  nlohmann::json pairs = nlohmann::json::array();
  for (size_t a = 0; a < count; ++a)
    for (size_t b = a + 1; b < count; ++b) {
      const double* entry = &all[2 * (a * count + b)];
      pairs.push_back({a, b, entry[0], entry[1]});
    }
  return pairs;
}

}  // namespace

void run_probe(const RankContext& ctx) {
  std::ifstream in(variable("R1RUN_PROBE_LOCAL"), std::ios::binary);
  const std::string mine{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  nlohmann::json result;
  result["hosts"] = gather(ctx.world, mine);
  result["pairs"] = ctx.config.measure ? time_pairs(ctx) : nlohmann::json::array();
  if (!ctx.first()) return;
  const std::string path = variable("R1RUN_PROBE_RESULT");
  std::ofstream out(path, std::ios::binary);
  out << result.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) << '\n';
  out.close();
  if (!out) throw StorageError("{}: cannot be written", path);
}

}  // namespace r1::train
