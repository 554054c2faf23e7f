// The flight recorder of a rank: a ring of what it did last, in memory that its parent maps too, so that it survives SIGKILL and
// can be read while the rank is stuck. Written by the training thread alone, read by any.
//
// Two levels: actions (a forward of a stage, the optimizer) and operations between ranks (an all-reduce) that happen within
// them. The last record of each level that has no end is what the rank is doing.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace r1 {

enum class Operation : uint32_t {
  kNone = 0,
  // between ranks
  kAllReduce,
  kAllGather,
  kReduceScatter,
  kBroadcast,
  kAllToAll,
  kBarrier,
  kSplit,
  kSend,
  kRecv,
  kWait,  ///< for transfers that were started before
  // within a rank
  kForward = 64,
  kBackward,
  kBackwardInput,
  kBackwardWeight,
  kOptimizer,
  kOther,
};
/// "all-reduce", "forward", …
[[nodiscard]] std::string_view name_of(Operation op);
/// True for operations whose members all take part, in one order.
[[nodiscard]] constexpr bool is_collective(Operation op) { return op >= Operation::kAllReduce && op <= Operation::kSplit; }

struct FlightRecord {
  uint64_t number = 0;     ///< of the record, from 1
  int64_t begin_ns = 0;    ///< CLOCK_MONOTONIC
  int64_t end_ns = 0;      ///< 0: not over
  uint64_t bytes = 0;      ///< of the tensor
  Operation op = Operation::kNone;
  uint32_t group = 0;      ///< index in FlightData::groups
  uint64_t sequence = 0;   ///< collectives of that group so far, this one included; 0 for others
  int32_t peer = -1;       ///< world rank of the other side of a transfer
  int32_t step = 0;
  int32_t stage = -1, microbatch = -1;  ///< of actions
};
static_assert(sizeof(FlightRecord) == 64);

/// A group of ranks as the recorder knows it.
struct FlightGroup {
  std::string name;          ///< the same on all its members, and on no other group of these ranks
  uint64_t sequence = 0;     ///< of the last collective that was begun
};

/// A copy of a recorder at some moment.
struct FlightData {
  std::vector<FlightGroup> groups;
  std::vector<FlightRecord> recent;         ///< oldest first; records overwritten while copying are left out
  std::optional<FlightRecord> action, operation;  ///< not over
  uint64_t count = 0;                       ///< records ever made: grows while the rank makes progress
  int64_t waited_ns = 0;                    ///< spent in operations that are over
  // At the last step boundary:
  int64_t step = -1, step_ns = 0, step_waited_ns = 0;
};

/// "all-reduce #812 of tp (pp 0 dp 0), 4.0 KiB"; "forward stage 1 micro-batch 3".
[[nodiscard]] std::string describe(const FlightRecord& record, const FlightData& data);
/// `last` records, one a line, newest last.
[[nodiscard]] std::string flight_text(const FlightData& data, size_t last);

namespace detail {

inline constexpr size_t kFlightRecords = 4096, kFlightGroups = 64, kFlightNameBytes = 56;

struct FlightMemory {
  struct Group {
    std::array<char, kFlightNameBytes> name;
    std::atomic<uint64_t> sequence;
  };
  std::atomic<uint64_t> count, open_action, open_operation;  // numbers of records, 0 for none
  std::atomic<int64_t> waited_ns, step, step_ns, step_waited_ns;
  std::atomic<uint32_t> groups;
  std::array<Group, kFlightGroups> group;
  // The number of a record is its first word: written last when it begins.
  alignas(64) std::array<std::array<std::atomic<uint64_t>, 8>, kFlightRecords> ring;
};

}  // namespace detail

/// Bytes that a recorder needs.
inline constexpr size_t kFlightBytes = (sizeof(detail::FlightMemory) + 4095) / 4096 * 4096;

/// The writer. No system call but the clock's (no kernel entry), no allocation, no lock. One thread.
class FlightRecorder {
 public:
  /// Over zeroed memory of kFlightBytes, aligned to 64; it must outlive the recorder.
  explicit FlightRecorder(void* memory) noexcept : m_(static_cast<detail::FlightMemory*>(memory)) { m_->step.store(-1, std::memory_order_relaxed); }

  /// An index for begin(); names beyond 55 bytes are cut, groups beyond 64 share the last.
  uint32_t add_group(std::string_view name) noexcept;
  /// A step boundary: `step` is the one that begins.
  void begin_step(int64_t step) noexcept;
  /// An action begins; the one before is over.
  void action(Operation op, int stage, int microbatch) noexcept;
  void end_action() noexcept;
  /// An operation between ranks begins; end() closes it. `sequence`: of a collective that was started before and is waited for
  /// now; 0: collectives count on.
  void begin(Operation op, uint32_t group, uint64_t bytes, int peer = -1, uint64_t sequence = 0) noexcept;
  /// Collectives of the group so far.
  [[nodiscard]] uint64_t sequence(uint32_t group) const noexcept { return m_->group[group].sequence.load(std::memory_order_relaxed); }
  void end() noexcept;

 private:
  uint64_t put(const FlightRecord& r) noexcept;
  void close(uint64_t number, int64_t now) noexcept;
  detail::FlightMemory* m_;
  uint64_t count_ = 0, open_action_ = 0, open_operation_ = 0;
  int64_t operation_begin_ns_ = 0, waited_ns_ = 0;
  int32_t step_ = -1;
};

/// Reads a recorder's memory, at any time and from any process that maps it; `recent`: most records to copy.
[[nodiscard]] FlightData read_flight(const void* memory, size_t recent = detail::kFlightRecords);

}  // namespace r1
