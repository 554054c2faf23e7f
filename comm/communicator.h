// The one interface between ranks and wires: a group of ranks that can exchange tensors.
//
// A group of one is exact identity for every collective, so callers never ask for the size. Operations enqueue on `s`
// and return; on CPU streams they have completed when they return. Element counts come from the tensor views.
// Collective calls must be made by all ranks of the group in the same order; messages between a pair match in order,
// without tags. Sums are formed in rank order 0, 1, 2, ... for a given element on every backend that can (self, local,
// mpi), so that a result does not depend on timing.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "runtime/device/tensor.h"

namespace r1::comm {

enum class ReduceOp { kSum, kMax };

/// One transfer of a batch (see Communicator::exchange).
struct Transfer {
  enum class Kind { kSend, kRecv } kind = Kind::kSend;
  Tensor tensor;
  int peer = 0;
};

/// A tensor cut over the ranks of a group: parts[r] is this rank's view of what belongs to rank r (any view may be empty).
/// All ranks name the same elements with equal counts.
struct ShardedTensor {
  std::vector<Tensor> parts;
};

/// How a sum over ranks is formed.
enum class SumOrder : uint8_t {
  kRank,  ///< ((0 + 1) + 2) + ..., as all_reduce
  kTree,  ///< pairwise over halves of the ranks (cut at n/2, rounded down), so that a group of 2n ranks sums as two of n
};

/// A transfer under way; wait() returns when the tensor may be reused (send) or read (recv).
class Pending {
 public:
  virtual ~Pending() = default;
  virtual void wait() = 0;
};

/// Messages of up to `bytes` that will come from `peer`.
struct ExpectedMessage {
  int peer = 0;
  size_t bytes = 0;  ///< 0: of sizes that are not known
};

class Communicator {
 public:
  virtual ~Communicator() = default;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  [[nodiscard]] virtual int rank() const = 0;
  [[nodiscard]] virtual int size() const = 0;
  /// Name for messages: axis and world ranks, e.g. "tp[4,5,6,7]".
  [[nodiscard]] const std::string& name() const { return name_; }

  /// In place: x of every rank becomes the reduction over ranks. fp32, fp64, bf16 (fp32 accumulation), int32, int64.
  virtual void all_reduce(const Tensor& x, ReduceOp op, const Stream& s) = 0;
  /// out = parts of all ranks one after the other; counts[r] elements come from rank r (in.numel() == counts[rank()],
  /// out.numel() == sum). Counts may be 0. in may be the own part of out.
  virtual void all_gather(const Tensor& in, const Tensor& out, std::span<const int64_t> counts, const Stream& s) = 0;
  /// out = this rank's part of the elementwise sum of all ranks' `in`; counts as in all_gather. out must not alias in.
  virtual void reduce_scatter(const Tensor& in, const Tensor& out, std::span<const int64_t> counts, const Stream& s) = 0;
  virtual void broadcast(const Tensor& x, int root, const Stream& s) = 0;
  /// Rank r receives send_counts[r] elements of `in`; recv_counts[r] elements of `out` come from rank r.
  virtual void all_to_all(const Tensor& in, std::span<const int64_t> send_counts, const Tensor& out,
                          std::span<const int64_t> recv_counts, const Stream& s) = 0;
  virtual void send(const Tensor& x, int peer, const Stream& s) = 0;
  virtual void recv(const Tensor& x, int peer, const Stream& s) = 0;
  /// Starts all transfers together (they must be able to progress together) and returns at once.
  [[nodiscard]] virtual std::unique_ptr<Pending> start(std::span<const Transfer> transfers, const Stream& s) = 0;
  /// What this rank is going to receive (recv, start): lets a backend make connections and keep room for whole messages, now
  /// and not in the midst of a step. Other messages arrive as well, perhaps in pieces or one after the other. Collective, while
  /// no message is under way; a peer not named keeps what it had. Returns the bytes of this rank's device that the backend
  /// itself took (not a library). The base class needs none.
  virtual int64_t expect_messages(std::span<const ExpectedMessage> from);
  /// Starts, in place: parts[rank()] of each tensor becomes the sum of that part over all ranks, formed in `order`; the other
  /// parts hold nothing of use afterwards. wait() returns when the sums may be read and the parts written (on a device: orders `s`
  /// after them). Tensors and views must stay until then; `xs` itself need not. Operations started on a group run in that order
  /// on every rank. The base class runs to the end before it returns, kTree on the host; a backend that can overlaps.
  [[nodiscard]] virtual std::unique_ptr<Pending> start_reduce_scatter(std::span<const ShardedTensor> xs, SumOrder order,
                                                                      const Stream& s);
  /// Starts, in place: parts[r] of each tensor becomes rank r's. Otherwise as start_reduce_scatter.
  [[nodiscard]] virtual std::unique_ptr<Pending> start_all_gather(std::span<const ShardedTensor> xs, const Stream& s);
  virtual void barrier() = 0;
  /// Ranks with the same color form a group, ordered by key (ties: by rank). Collective over this group.
  [[nodiscard]] virtual std::unique_ptr<Communicator> split(int color, int key, std::string name) = 0;
  /// Collective and explicit end; the destructor is local and noexcept.
  virtual void close() = 0;

 protected:
  explicit Communicator(std::string name) : name_(std::move(name)) {}

 private:
  std::string name_;
};

/// What the waiting loops of a backend call now and then: throws when the job must stop (signal, fault) or a time-out
/// has passed. Set once per process before the first operation; the default does nothing.
using StopCheck = std::function<void(const Communicator& group, const char* operation, std::chrono::nanoseconds waited)>;

/// One rank alone: every collective is identity, sends to itself are matched in order.
[[nodiscard]] std::unique_ptr<Communicator> make_self(std::string name = "self");

/// Ranks as threads of one process: returns one communicator per rank, for tests. Each must be used by one thread.
[[nodiscard]] std::vector<std::unique_ptr<Communicator>> make_local(int size, std::string name = "local");

/// The MPI environment of this process. Create once in main, before anything else of MPI; destroyed last.
/// Sets mpi_yield_when_idle before MPI_Init (ranks beyond the cores must yield: measured 30 us against 31,000 us for a
/// 1 KiB all-reduce of four of eight ranks on two cores). Errors return, ours is the text one sees.
class MpiWorld {
 public:
  MpiWorld(int* argc, char*** argv);
  ~MpiWorld();
  MpiWorld(const MpiWorld&) = delete;
  MpiWorld& operator=(const MpiWorld&) = delete;
  /// A communicator over all ranks; once. Close it before the end: the destructor calls MPI_Finalize only when all ranks
  /// are known to come. Waiting loops poll (I-collectives and Test), call `stop` every few milliseconds.
  [[nodiscard]] std::unique_ptr<Communicator> world(StopCheck stop);
  /// `told` is called within MPI_Finalize when somebody else calls it (MPI 4.0, 11.2.4: functions at process termination are
  /// attributes of MPI_COMM_SELF) while this object is alive and not abandoned. What it refers to must live as long.
  void on_early_end(std::function<void()> told);
  /// Leaves without MPI_Finalize being needed (after an error the destructor must not block in MPI).
  void abandon() noexcept;

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace r1::comm
