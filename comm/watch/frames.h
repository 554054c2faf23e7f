// What control threads say to each other: small binary frames over TCP.
//
// A frame is a magic number, its kind, the length of its payload (at most kMaxPayload) and the payload; numbers little-endian,
// texts with their length. Nothing in a frame makes the reader allocate more than the frame's own size.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/core/flight_recorder.h"
#include "runtime/core/rank_status.h"

namespace r1::comm {

inline constexpr size_t kMaxPayload = 8192;

enum class FrameKind : uint32_t {
  kHello = 1,      ///< to the hub: token, rank, host
  kHeartbeat = 2,  ///< to the hub
  kFarewell = 3,   ///< both ways: this side ends as it should
  kStop = 4,       ///< from the hub: leave now
};

struct Hello {
  std::string token, host;
  int32_t rank = -1;
  friend bool operator==(const Hello&, const Hello&) = default;
};

/// What a rank is doing.
struct Heartbeat {
  int32_t rank = -1;
  int32_t stage = -1;        ///< pipeline rank: ranks of one stage have equal work
  int64_t step = -1;
  uint64_t progress = 0;     ///< grows while the rank makes progress
  std::string phase;         ///< for people
  int64_t phase_age_ns = 0;
  // The operation between ranks that it is in; kNone when it computes.
  Operation op = Operation::kNone;
  std::string op_text;
  uint64_t op_group = 0;     ///< hash of the group's name
  uint64_t op_sequence = 0;  ///< of collectives
  int32_t op_peer = -1;      ///< of transfers
  int64_t op_age_ns = 0;
  // At the last step boundary.
  int64_t boundary_step = -1, boundary_ns = 0, boundary_waited_ns = 0;
  struct Group {
    uint64_t name = 0, sequence = 0;
    friend bool operator==(const Group&, const Group&) = default;
  };
  std::vector<Group> groups;  ///< its groups: hash of the name, collectives begun
  friend bool operator==(const Heartbeat&, const Heartbeat&) = default;
};

struct StopOrder {
  int32_t code = 75;
  uint32_t culprit = 0;  ///< 1: the receiver is the cause, and to tell it
  std::string why;
  friend bool operator==(const StopOrder&, const StopOrder&) = default;
};

[[nodiscard]] std::string to_frame(const Hello& hello);
[[nodiscard]] std::string to_frame(const Heartbeat& beat);
[[nodiscard]] std::string to_frame(const StopOrder& order);
[[nodiscard]] std::string farewell_frame();

/// Nothing when the payload is not one.
[[nodiscard]] std::optional<Hello> hello_from(std::string_view payload);
[[nodiscard]] std::optional<Heartbeat> heartbeat_from(std::string_view payload);
[[nodiscard]] std::optional<StopOrder> stop_from(std::string_view payload);

struct Frame {
  FrameKind kind = FrameKind::kFarewell;
  std::string payload;
};
/// Cuts frames out of a stream of bytes.
class FrameReader {
 public:
  void feed(std::string_view bytes) { buffer_.append(bytes); }
  /// The next whole frame; nothing when there is none yet, or when the stream is broken().
  [[nodiscard]] std::optional<Frame> next();
  /// A wrong magic number, an unknown kind or too long a payload: the peer is to be dropped.
  [[nodiscard]] bool broken() const { return broken_; }

 private:
  std::string buffer_;
  bool broken_ = false;
};

/// The heartbeat of this rank from its recorder; `phase` and `phase_age_ns` where it is in no operation.
[[nodiscard]] Heartbeat heartbeat_of(int rank, int stage, const FlightData& flight, const RankStatusWriter::ProgressNow& progress,
                                     int64_t now_ns);

}  // namespace r1::comm
