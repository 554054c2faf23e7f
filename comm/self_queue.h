// Messages of a rank to itself: matched in order, sends buffered (nobody else could receive while
// it waits).
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "comm/memory.h"

namespace r1::comm {

class SelfQueue {
 public:
  /// `owner` gives the name for messages; it and `memory`, where the data is, must outlive the
  /// queue.
  explicit SelfQueue(const Communicator& owner, Memory& memory = host_memory())
      : owner_(owner), memory_(memory) {}
  /// Delivers to the oldest open receive, else keeps a copy on the host. Has read the data when it
  /// returns: messages of a rank to itself are rare and small. Throws CommError when the sizes
  /// differ.
  void send(const void* data, size_t bytes, const Stream& s = {});
  /// Takes the oldest message, else stays open. Returns a ticket for done() and cancel().
  uint64_t post_recv(void* data, size_t bytes, const Stream& s = {});
  [[nodiscard]] bool done(uint64_t ticket) const { return ticket < matched_; }
  /// Throws CommError unless done: a rank that waits for its own message can never send it.
  void wait(uint64_t ticket, const char* operation) const;
  /// The memory of an open receive is gone: its message will be dropped.
  void cancel(uint64_t ticket) noexcept;

 private:
  struct Open {
    void* data;
    size_t bytes;
    Stream stream;
    bool cancelled = false;
  };
  void deliver(const Open& to, const void* data, size_t bytes);

  const Communicator& owner_;
  Memory& memory_;
  std::deque<std::vector<char>> messages_;  // sent, not yet received
  std::deque<Open> open_;  // receives without a message; tickets matched_, matched_ + 1, ...
  std::vector<std::vector<char>> spare_;  // buffers for reuse
  uint64_t matched_ = 0;                  // receives completed so far
};

}  // namespace r1::comm
