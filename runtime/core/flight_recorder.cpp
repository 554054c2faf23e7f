#include "runtime/core/flight_recorder.h"

#include <algorithm>
#include <cstring>

#include <fmt/format.h>

#include "runtime/core/host.h"
#include "runtime/core/human.h"

namespace r1 {
namespace {

using detail::FlightMemory;
using detail::kFlightRecords;

constexpr size_t kEndWord = 2;

size_t slot(uint64_t number) { return static_cast<size_t>(number % kFlightRecords); }

/// A record, if it is still there and whole.
std::optional<FlightRecord> read_record(const FlightMemory& m, uint64_t number) {
  const auto& words = m.ring[slot(number)];
  std::array<uint64_t, 8> copy;
  if (words[0].load(std::memory_order_acquire) != number) return std::nullopt;
  for (size_t i = 0; i < copy.size(); ++i) copy[i] = words[i].load(std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_acquire);
  if (words[0].load(std::memory_order_relaxed) != number) return std::nullopt;
  FlightRecord r;
  std::memcpy(static_cast<void*>(&r), copy.data(), sizeof r);
  return r;
}

}  // namespace

std::string_view name_of(Operation op) {
  switch (op) {
    case Operation::kNone: return "nothing";
    case Operation::kAllReduce: return "all-reduce";
    case Operation::kAllGather: return "all-gather";
    case Operation::kReduceScatter: return "reduce-scatter";
    case Operation::kBroadcast: return "broadcast";
    case Operation::kAllToAll: return "all-to-all";
    case Operation::kBarrier: return "barrier";
    case Operation::kSplit: return "split";
    case Operation::kSend: return "send";
    case Operation::kRecv: return "receive";
    case Operation::kWait: return "wait";
    case Operation::kForward: return "forward";
    case Operation::kBackward: return "backward";
    case Operation::kBackwardInput: return "input gradient";
    case Operation::kBackwardWeight: return "weight gradient";
    case Operation::kOptimizer: return "optimizer";
    case Operation::kOther: return "other work";
  }
  return "unknown operation";  // a torn or foreign record
}

uint32_t FlightRecorder::add_group(std::string_view name) noexcept {
  const uint32_t n = m_->groups.load(std::memory_order_relaxed);
  if (n == detail::kFlightGroups) return n - 1;
  auto& text = m_->group[n].name;
  std::memcpy(text.data(), name.data(), std::min(name.size(), text.size() - 1));
  m_->groups.store(n + 1, std::memory_order_release);
  return n;
}

uint64_t FlightRecorder::put(const FlightRecord& r) noexcept {
  const uint64_t number = ++count_;
  auto& words = m_->ring[slot(number)];
  std::array<uint64_t, 8> copy;
  std::memcpy(copy.data(), &r, sizeof r);
  words[0].store(0, std::memory_order_relaxed);  // not valid while it is written
  std::atomic_thread_fence(std::memory_order_release);
  for (size_t i = 1; i < copy.size(); ++i) words[i].store(copy[i], std::memory_order_relaxed);
  words[0].store(number, std::memory_order_release);
  m_->count.store(number, std::memory_order_release);
  return number;
}

void FlightRecorder::close(uint64_t number, int64_t now) noexcept {
  auto& words = m_->ring[slot(number)];
  // An action may be so long that the ring has come round.
  if (words[0].load(std::memory_order_relaxed) == number)
    words[kEndWord].store(static_cast<uint64_t>(now), std::memory_order_relaxed);
}

void FlightRecorder::begin_step(int64_t step) noexcept {
  step_ = static_cast<int32_t>(step);
  m_->step_ns.store(monotonic_ns(), std::memory_order_relaxed);
  m_->step_waited_ns.store(waited_ns_, std::memory_order_relaxed);
  m_->step.store(step, std::memory_order_release);
}

void FlightRecorder::action(Operation op, int stage, int microbatch) noexcept {
  const int64_t now = monotonic_ns();
  if (open_action_ != 0) close(open_action_, now);
  open_action_ = put({.begin_ns = now, .op = op, .step = step_, .stage = stage, .microbatch = microbatch});
  m_->open_action.store(open_action_, std::memory_order_release);
}

void FlightRecorder::end_action() noexcept {
  if (open_action_ == 0) return;
  close(open_action_, monotonic_ns());
  open_action_ = 0;
  m_->open_action.store(0, std::memory_order_release);
}

void FlightRecorder::begin(Operation op, uint32_t group, uint64_t bytes, int peer, uint64_t sequence) noexcept {
  operation_begin_ns_ = monotonic_ns();
  if (sequence == 0 && is_collective(op)) {
    auto& entered = m_->group[group].sequence;
    sequence = entered.load(std::memory_order_relaxed) + 1;
    entered.store(sequence, std::memory_order_relaxed);
  }
  open_operation_ = put({.begin_ns = operation_begin_ns_, .bytes = bytes, .op = op, .group = group, .sequence = sequence,
                         .peer = peer, .step = step_});
  m_->open_operation.store(open_operation_, std::memory_order_release);
}

void FlightRecorder::end() noexcept {
  const int64_t now = monotonic_ns();
  close(open_operation_, now);
  open_operation_ = 0;
  waited_ns_ += now - operation_begin_ns_;
  m_->waited_ns.store(waited_ns_, std::memory_order_relaxed);
  m_->open_operation.store(0, std::memory_order_release);
}

FlightData read_flight(const void* memory, size_t recent) {
  const auto& m = *static_cast<const FlightMemory*>(memory);
  FlightData d;
  d.count = m.count.load(std::memory_order_acquire);
  if (const uint64_t n = m.open_action.load(std::memory_order_acquire); n != 0) d.action = read_record(m, n);
  if (const uint64_t n = m.open_operation.load(std::memory_order_acquire); n != 0) d.operation = read_record(m, n);
  d.waited_ns = m.waited_ns.load(std::memory_order_relaxed);
  // The three belong together: taken again when a step began meanwhile.
  for (int attempt = 0; attempt < 100; ++attempt) {
    d.step = m.step.load(std::memory_order_acquire);
    d.step_ns = m.step_ns.load(std::memory_order_relaxed);
    d.step_waited_ns = m.step_waited_ns.load(std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_acquire);
    if (m.step.load(std::memory_order_relaxed) == d.step) break;
  }
  const uint32_t groups = std::min<uint32_t>(m.groups.load(std::memory_order_acquire), detail::kFlightGroups);
  for (uint32_t g = 0; g < groups; ++g) {
    const auto& name = m.group[g].name;
    d.groups.push_back({.name = std::string(name.data(), strnlen(name.data(), name.size())),
                        .sequence = m.group[g].sequence.load(std::memory_order_relaxed)});
  }
  const uint64_t most = std::min<uint64_t>(recent, kFlightRecords);
  const uint64_t first = d.count > most ? d.count - most + 1 : 1;
  for (uint64_t n = first; n <= d.count; ++n)
    if (const auto r = read_record(m, n)) d.recent.push_back(*r);
  return d;
}

std::string describe(const FlightRecord& r, const FlightData& data) {
  std::string text(name_of(r.op));
  if (r.op >= Operation::kForward) {
    if (r.stage >= 0) text += fmt::format(" stage {}", r.stage);
    if (r.microbatch >= 0) text += fmt::format(" micro-batch {}", r.microbatch);
    return text;
  }
  if (r.sequence != 0) text += fmt::format(" #{}", r.sequence);
  if (r.group < data.groups.size()) text += " of " + data.groups[r.group].name;
  if (r.peer >= 0) text += fmt::format(" with rank {}", r.peer);
  if (r.bytes > 0) text += ", " + human_bytes(static_cast<double>(r.bytes));
  return text;
}

std::string flight_text(const FlightData& data, size_t last) {
  std::string text;
  const size_t n = data.recent.size();
  for (size_t i = n > last ? n - last : 0; i < n; ++i) {
    const FlightRecord& r = data.recent[i];
    text += fmt::format("{:>10} {:>16.6f} s  step {:<6} {:<12} {}\n", r.number, static_cast<double>(r.begin_ns) * 1e-9, r.step,
                        r.end_ns == 0 ? std::string("not over") : human_duration(static_cast<double>(r.end_ns - r.begin_ns) * 1e-9),
                        describe(r, data));
  }
  return text;
}

}  // namespace r1
