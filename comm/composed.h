// Collectives composed from messages: what a backend that can only send and receive (mpi, ucx)
// builds on.
//
// A backend supplies batches of non-blocking messages; this class waits for them by polling, so
// nothing ever blocks inside a library, and forms sums in rank order. Tensors live in the Memory
// that the backend names: on a GPU, the batch orders its copies with the caller's stream (begin,
// end), and `done` may mean enqueued.
#pragma once

#include <memory>

#include "comm/communicator.h"
#include "comm/memory.h"
#include "comm/self_queue.h"

namespace r1::comm {

/// Users' messages and those of collectives never match each other: a receive may stay open during
/// a collective.
enum class Channel : uint8_t { kMessages, kCollectives };

/// Messages under way together. Between two ranks and in one channel they match in the order of the
/// calls, over all batches. Memory must stay until done.
class Batch {
 public:
  virtual ~Batch() = default;
  /// The messages that follow may touch their memory once what is enqueued on `s` by now is done.
  virtual void begin(const Stream&) {}
  virtual void send(Channel channel, const void* data, size_t bytes, int peer) = 0;
  virtual void recv(Channel channel, void* data, size_t bytes, int peer) = 0;
  /// All messages of the batch are posted, and nobody may look at it for a while: gets them under
  /// way.
  virtual void go() {}
  /// Lets the wire progress without blocking; true when all messages posted so far are through
  /// (then the batch is empty again). Throws CommError with the library's text, or when a message
  /// has another size than was expected.
  [[nodiscard]] virtual bool done() = 0;
  /// After done(): work enqueued on `s` from now on sees what was received and may overwrite what
  /// was sent.
  virtual void end(const Stream&) {}
};

/// What all groups of one process share over one backend.
struct Wires {
  StopCheck stop;      ///< may be empty
  std::string broken;  ///< not empty after a failure: messages may be under way into memory that is
                       ///< gone, so the library must not be entered again
  int64_t next_group =
      0;  ///< id of the next group; larger than that of every group this process is in
};

class ComposedCommunicator : public Communicator {
 public:
  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(world_ranks_.size()); }

  void all_reduce(const Tensor& x, ReduceOp op, const Stream& s) override;
  void all_gather(const Tensor& in, const Tensor& out, std::span<const int64_t> counts,
                  const Stream& s) override;
  void reduce_scatter(const Tensor& in, const Tensor& out, std::span<const int64_t> counts,
                      const Stream& s) override;
  void broadcast(const Tensor& x, int root, const Stream& s) override;
  void all_to_all(const Tensor& in, std::span<const int64_t> send_counts, const Tensor& out,
                  std::span<const int64_t> recv_counts, const Stream& s) override;
  void send(const Tensor& x, int peer, const Stream& s) override;
  void recv(const Tensor& x, int peer, const Stream& s) override;
  [[nodiscard]] std::unique_ptr<Pending> start(std::span<const Transfer> transfers,
                                               const Stream& s) override;
  [[nodiscard]] std::unique_ptr<Pending> start_reduce_scatter(std::span<const ShardedTensor> xs, SumOrder order,
                                                              const Stream& s) override;
  [[nodiscard]] std::unique_ptr<Pending> start_all_gather(std::span<const ShardedTensor> xs, const Stream& s) override;
  void barrier() override;
  [[nodiscard]] std::unique_ptr<Communicator> split(int color, int key, std::string name) override;
  void close() override;

  /// Bytes of temporary memory this group holds; grown on demand, then reused.
  [[nodiscard]] size_t scratch_bytes() const { return scratch_bytes_; }

 protected:
  /// `rank` is the own index in `world_ranks`.
  ComposedCommunicator(std::string name, int rank, std::vector<int> world_ranks,
                       std::shared_ptr<Wires> wires, Memory& memory = host_memory());
  [[nodiscard]] virtual std::unique_ptr<Batch> make_batch() = 0;
  [[nodiscard]] Memory& memory() const { return memory_; }
  /// Whether Batch::done() of this backend yields the core itself when nothing moves: yielding
  /// twice a look doubles the time until a message is seen when ranks share cores.
  [[nodiscard]] virtual bool done_yields() const { return false; }
  /// A group of the given world ranks with an id that no other group of any of these processes has.
  /// Local.
  [[nodiscard]] virtual std::unique_ptr<Communicator> make_group(std::string name, int rank,
                                                                 std::vector<int> world_ranks,
                                                                 int64_t id) = 0;
  [[nodiscard]] const std::vector<int>& world_ranks() const { return world_ranks_; }
  [[nodiscard]] Wires& wires() const { return *wires_; }
  [[nodiscard]] const std::shared_ptr<Wires>& shared_wires() const { return wires_; }
  [[nodiscard]] bool closed() const { return closed_; }
  /// Throws after close() and after a failure.
  void check_open(const char* operation) const;
  /// For a backend with its own barrier: marks the group as closed.
  void mark_closed();
  /// The waiting loop: until done(), yielding the core, asking the StopCheck every few
  /// milliseconds.
  template <class Done>
  void poll(const char* operation, Done done) {
    if (done()) return;
    Wait wait = begin_wait();
    do keep_waiting(wait, operation);
    while (!done());
  }

 private:
  friend class ComposedPending;
  friend class ShardedPending;
  class Lease;

  void check_message(const char* operation, const Tensor& x, int peer) const;
  struct Wait {
    std::chrono::steady_clock::time_point begin, next_stop;
    bool yield;
  };
  [[nodiscard]] Wait begin_wait() const;
  void keep_waiting(Wait& wait, const char* operation);
  [[nodiscard]] char* scratch(size_t bytes);

  void gather_bytes(const char* operation, const char* in, char* out,
                    std::span<const int64_t> bytes, const Stream& s);
  void gather_bytes_in_rounds(const char* operation, const char* in, char* out,
                              std::span<const int64_t> bytes, const Stream& s);
  void broadcast_tree(char* data, size_t bytes, int root, const Stream& s);
  /// Sums (or maxima) of `parts[r]` elements of in, rank r getting part r at `out`; in segments
  /// that bound the scratch.
  void reduce_parts(const char* operation, ReduceOp op, DType dtype, const char* in, char* out,
                    std::span<const int64_t> parts, const Stream& s);

  Memory& memory_;
  int rank_;
  std::vector<int> world_ranks_;
  std::shared_ptr<Wires> wires_;
  bool closed_ = false;
  int pending_ = 0;  // started transfers not yet waited for
  SelfQueue own_queue_{*this, memory_};
  std::vector<std::unique_ptr<Batch>> idle_;
  std::vector<std::vector<char>> spare_;  // what started sums received into, for reuse
  struct Free {
    Memory* memory;
    void operator()(char* p) const noexcept { memory->release(p); }
  };
  // Grown on demand. Work on a stream may still use an outgrown one on a GPU, so it stays until the
  // end there.
  std::vector<std::unique_ptr<char, Free>> scratch_;
  size_t scratch_bytes_ = 0;
  std::vector<const void*> sources_;
  std::vector<int64_t> parts_, part_bytes_, before_;
  std::vector<char> held_;  // host memory only
};

}  // namespace r1::comm
