#include "comm/timed/timed.h"

#include <algorithm>
#include <utility>

namespace r1::comm {

CommClock::~CommClock() {
  try {
    static_cast<void>(stop());
  } catch (...) {  // a device that has failed keeps its events
  }
}

size_t CommClock::entry(const std::string& group, Operation op) {
  const auto it = std::ranges::find_if(entries_, [&](const CommTime& t) { return t.op == op && t.group == group; });
  if (it != entries_.end()) return static_cast<size_t>(it - entries_.begin());
  entries_.push_back({.group = group, .op = op});
  return entries_.size() - 1;
}

std::vector<CommTime> CommClock::stop() {
  on_ = false;
  const std::vector<Sample> samples = std::exchange(samples_, {});  // also when a lost device ends this: not awaited twice
  DeviceBackend* const backend = samples.empty() ? nullptr : &backend_of(kind_);
  for (const Sample& sample : samples) {
    double seconds = sample.seconds;
    if (sample.events) {
      backend->synchronize(sample.end);
      seconds = 1e-6 * backend->elapsed_us(sample.begin, sample.end);
      backend->destroy_event(sample.begin);
      backend->destroy_event(sample.end);
    }
    entries_[sample.entry].seconds += seconds;
  }
  std::ranges::stable_sort(entries_, std::ranges::greater{}, &CommTime::seconds);
  return std::exchange(entries_, {});
}

CommClock::Scope::Scope(CommClock& clock, const std::string& group, Operation op, size_t bytes, const Stream& s)
    : clock_(clock), s_(s), on_(clock.on_) {
  if (!on_) return;
  sample_.entry = clock.entry(group, op);
  ++clock.entries_[sample_.entry].calls;
  clock.entries_[sample_.entry].bytes += static_cast<double>(bytes);
  sample_.events = s.device.kind == clock.kind_ && clock.kind_ != DeviceKind::kCpu;
  if (sample_.events) {
    DeviceBackend& backend = backend_of(clock.kind_);
    sample_.begin = backend.create_event(s.device, true);
    sample_.end = backend.create_event(s.device, true);
    backend.record(sample_.begin, s);
  }
  start_ = std::chrono::steady_clock::now();
}

CommClock::Scope::~Scope() {
  if (!on_) return;
  sample_.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  try {
    if (sample_.events) backend_of(clock_.kind_).record(sample_.end, s_);
    clock_.samples_.push_back(sample_);
  } catch (...) {  // the device has failed: the operation itself says so
  }
}

namespace {

class TimedPending final : public Pending {
 public:
  TimedPending(std::unique_ptr<Pending> inner, CommClock& clock, std::string group, Operation op, const Stream& s)
      : inner_(std::move(inner)), clock_(clock), group_(std::move(group)), op_(op), s_(s) {}
  void wait() override {
    clock_.time(group_, op_, 0, s_, [&] { inner_->wait(); });
  }

 private:
  std::unique_ptr<Pending> inner_;
  CommClock& clock_;
  std::string group_;
  Operation op_;
  Stream s_;
};

class TimedCommunicator final : public Communicator {
  template <class Work>
  auto time(Operation op, size_t bytes, const Stream& s, Work&& work) {
    return clock_.time(name(), op, bytes, s, std::forward<Work>(work));
  }
  [[nodiscard]] std::unique_ptr<Pending> pending(std::unique_ptr<Pending> inner, Operation op, const Stream& s) {
    return std::make_unique<TimedPending>(std::move(inner), clock_, name(), op, s);
  }

 public:
  TimedCommunicator(Communicator& inner, CommClock& clock) : Communicator(inner.name()), inner_(inner), clock_(clock) {}
  TimedCommunicator(std::unique_ptr<Communicator> inner, CommClock& clock)
      : Communicator(inner->name()), owned_(std::move(inner)), inner_(*owned_), clock_(clock) {}
  [[nodiscard]] int rank() const override { return inner_.rank(); }
  [[nodiscard]] int size() const override { return inner_.size(); }

  void all_reduce(const Tensor& x, ReduceOp op, const Stream& s) override {
    time(Operation::kAllReduce, x.bytes(), s, [&] { inner_.all_reduce(x, op, s); });
  }
  void all_gather(const Tensor& in, const Tensor& out, std::span<const int64_t> counts, const Stream& s) override {
    time(Operation::kAllGather, out.bytes(), s, [&] { inner_.all_gather(in, out, counts, s); });
  }
  void reduce_scatter(const Tensor& in, const Tensor& out, std::span<const int64_t> counts, const Stream& s) override {
    time(Operation::kReduceScatter, in.bytes(), s, [&] { inner_.reduce_scatter(in, out, counts, s); });
  }
  void broadcast(const Tensor& x, int root, const Stream& s) override {
    time(Operation::kBroadcast, x.bytes(), s, [&] { inner_.broadcast(x, root, s); });
  }
  void all_to_all(const Tensor& in, std::span<const int64_t> send_counts, const Tensor& out, std::span<const int64_t> recv_counts,
                  const Stream& s) override {
    time(Operation::kAllToAll, in.bytes(), s, [&] { inner_.all_to_all(in, send_counts, out, recv_counts, s); });
  }
  void send(const Tensor& x, int peer, const Stream& s) override {
    time(Operation::kSend, x.bytes(), s, [&] { inner_.send(x, peer, s); });
  }
  void recv(const Tensor& x, int peer, const Stream& s) override {
    time(Operation::kRecv, x.bytes(), s, [&] { inner_.recv(x, peer, s); });
  }
  [[nodiscard]] std::unique_ptr<Pending> start(std::span<const Transfer> transfers, const Stream& s) override {
    if (transfers.empty()) return inner_.start(transfers, s);
    const Operation op = transfers.front().kind == Transfer::Kind::kSend ? Operation::kSend : Operation::kRecv;
    return pending(time(op, 0, s, [&] { return inner_.start(transfers, s); }), Operation::kWait, s);
  }
  int64_t expect_messages(std::span<const ExpectedMessage> from) override { return inner_.expect_messages(from); }
  [[nodiscard]] std::unique_ptr<Pending> start_reduce_scatter(std::span<const ShardedTensor> xs, SumOrder order,
                                                              const Stream& s) override {
    return pending(time(Operation::kReduceScatter, 0, s, [&] { return inner_.start_reduce_scatter(xs, order, s); }),
                   Operation::kWait, s);
  }
  [[nodiscard]] std::unique_ptr<Pending> start_all_gather(std::span<const ShardedTensor> xs, const Stream& s) override {
    return pending(time(Operation::kAllGather, 0, s, [&] { return inner_.start_all_gather(xs, s); }), Operation::kWait, s);
  }
  void barrier() override {
    time(Operation::kBarrier, 0, {}, [&] { inner_.barrier(); });
  }
  [[nodiscard]] std::unique_ptr<Communicator> split(int color, int key, std::string name) override {
    auto group = inner_.split(color, key, std::move(name));
    if (group->size() == 1) return group;
    return std::make_unique<TimedCommunicator>(std::move(group), clock_);
  }
  void close() override { inner_.close(); }

 private:
  std::unique_ptr<Communicator> owned_;
  Communicator& inner_;
  CommClock& clock_;
};

}  // namespace

std::unique_ptr<Communicator> make_timed(Communicator& inner, CommClock& clock) {
  return std::make_unique<TimedCommunicator>(inner, clock);
}

}  // namespace r1::comm
