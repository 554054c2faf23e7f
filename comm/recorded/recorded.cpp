#include "comm/recorded/recorded.h"

#include <numeric>
#include <utility>

namespace r1::comm {
namespace {

/// Closes the record also when the operation throws: then the rank's last words say more.
class Recording {
 public:
  Recording(FlightRecorder& recorder, Operation op, uint32_t group, uint64_t bytes, int peer = -1, uint64_t sequence = 0)
      : recorder_(recorder) {
    recorder_.begin(op, group, bytes, peer, sequence);
  }
  ~Recording() { recorder_.end(); }
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;

 private:
  FlightRecorder& recorder_;
};

class RecordedPending : public Pending {
 public:
  RecordedPending(std::unique_ptr<Pending> inner, FlightRecorder& recorder, Operation op, uint32_t group, uint64_t bytes, int peer,
                  uint64_t sequence)
      : inner_(std::move(inner)), recorder_(recorder), op_(op), group_(group), bytes_(bytes), peer_(peer), sequence_(sequence) {}
  void wait() override {
    const Recording record(recorder_, op_, group_, bytes_, peer_, sequence_);
    inner_->wait();
  }

 private:
  std::unique_ptr<Pending> inner_;
  FlightRecorder& recorder_;
  Operation op_;
  uint32_t group_;
  uint64_t bytes_;
  int peer_;
  uint64_t sequence_;
};

class RecordedCommunicator : public Communicator {
 public:
  /// `world_ranks`: of the members, by group rank.
  RecordedCommunicator(std::unique_ptr<Communicator> inner, FlightRecorder& recorder, std::vector<int64_t> world_ranks)
      : Communicator(inner->name()), inner_(std::move(inner)), recorder_(recorder), world_ranks_(std::move(world_ranks)),
        group_(recorder.add_group(name())) {}
  [[nodiscard]] int rank() const override { return inner_->rank(); }
  [[nodiscard]] int size() const override { return inner_->size(); }

  void all_reduce(const Tensor& x, ReduceOp op, const Stream& s) override {
    collective(Operation::kAllReduce, x.bytes(), [&] { inner_->all_reduce(x, op, s); });
  }
  void all_gather(const Tensor& in, const Tensor& out, std::span<const int64_t> counts, const Stream& s) override {
    collective(Operation::kAllGather, out.bytes(), [&] { inner_->all_gather(in, out, counts, s); });
  }
  void reduce_scatter(const Tensor& in, const Tensor& out, std::span<const int64_t> counts, const Stream& s) override {
    collective(Operation::kReduceScatter, in.bytes(), [&] { inner_->reduce_scatter(in, out, counts, s); });
  }
  void broadcast(const Tensor& x, int root, const Stream& s) override {
    collective(Operation::kBroadcast, x.bytes(), [&] { inner_->broadcast(x, root, s); });
  }
  void all_to_all(const Tensor& in, std::span<const int64_t> send_counts, const Tensor& out,
                  std::span<const int64_t> recv_counts, const Stream& s) override {
    collective(Operation::kAllToAll, in.bytes(), [&] { inner_->all_to_all(in, send_counts, out, recv_counts, s); });
  }
  void send(const Tensor& x, int peer, const Stream& s) override {
    const Recording record(recorder_, Operation::kSend, group_, x.bytes(), world_rank(peer));
    inner_->send(x, peer, s);
  }
  void recv(const Tensor& x, int peer, const Stream& s) override {
    const Recording record(recorder_, Operation::kRecv, group_, x.bytes(), world_rank(peer));
    inner_->recv(x, peer, s);
  }
  [[nodiscard]] std::unique_ptr<Pending> start(std::span<const Transfer> transfers, const Stream& s) override {
    auto pending = inner_->start(transfers, s);
    if (transfers.empty()) return pending;
    uint64_t bytes = 0;
    for (const Transfer& t : transfers) bytes += t.tensor.bytes();
    return std::make_unique<RecordedPending>(std::move(pending), recorder_, Operation::kWait, group_, bytes,
                                             world_rank(transfers.front().peer), 0);
  }
  int64_t expect_messages(std::span<const ExpectedMessage> from) override { return inner_->expect_messages(from); }
  [[nodiscard]] std::unique_ptr<Pending> start_reduce_scatter(std::span<const ShardedTensor> xs, SumOrder order,
                                                              const Stream& s) override {
    return started(Operation::kReduceScatter, [&] { return inner_->start_reduce_scatter(xs, order, s); });
  }
  [[nodiscard]] std::unique_ptr<Pending> start_all_gather(std::span<const ShardedTensor> xs, const Stream& s) override {
    return started(Operation::kAllGather, [&] { return inner_->start_all_gather(xs, s); });
  }
  void barrier() override {
    collective(Operation::kBarrier, 0, [&] { inner_->barrier(); });
  }
  [[nodiscard]] std::unique_ptr<Communicator> split(int color, int key, std::string name) override {
    const Recording record(recorder_, Operation::kSplit, group_, 0);
    auto inner = inner_->split(color, key, std::move(name));
    // Whom a transfer waits for is told by world rank.
    int64_t mine = world_ranks_[static_cast<size_t>(rank())];
    std::vector<int64_t> ranks(static_cast<size_t>(inner->size()), mine), counts(static_cast<size_t>(inner->size()), 1);
    if (inner->size() > 1)
      inner->all_gather({.data = &mine, .dtype = DType::kI64, .shape = {1}, .device = {}},
                        {.data = ranks.data(), .dtype = DType::kI64, .shape = {inner->size()}, .device = {}}, counts, {});
    return std::make_unique<RecordedCommunicator>(std::move(inner), recorder_, std::move(ranks));
  }
  void close() override { inner_->close(); }

 private:
  template <class Work>
  void collective(Operation op, uint64_t bytes, Work&& work) {
    if (size() == 1) return work();  // nobody to wait for
    const Recording record(recorder_, op, group_, bytes);
    work();
  }
  /// The start and, under the same number, the wait.
  template <class Start>
  [[nodiscard]] std::unique_ptr<Pending> started(Operation op, Start&& start) {
    if (size() == 1) return start();
    std::unique_ptr<Pending> pending;
    {
      const Recording record(recorder_, op, group_, 0);
      pending = start();
    }
    return std::make_unique<RecordedPending>(std::move(pending), recorder_, op, group_, 0, -1, recorder_.sequence(group_));
  }
  [[nodiscard]] int world_rank(int peer) const {
    const auto i = static_cast<size_t>(peer);
    return i < world_ranks_.size() ? static_cast<int>(world_ranks_[i]) : -1;
  }

  std::unique_ptr<Communicator> inner_;
  FlightRecorder& recorder_;
  std::vector<int64_t> world_ranks_;
  uint32_t group_;
};

}  // namespace

std::unique_ptr<Communicator> make_recorded(std::unique_ptr<Communicator> inner, FlightRecorder& recorder) {
  std::vector<int64_t> ranks(static_cast<size_t>(inner->size()));
  std::iota(ranks.begin(), ranks.end(), 0);
  return std::make_unique<RecordedCommunicator>(std::move(inner), recorder, std::move(ranks));
}

}  // namespace r1::comm
