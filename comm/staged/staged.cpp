#include "comm/staged/staged.h"

#include <map>
#include <utility>
#include <vector>

#include "runtime/device/device.h"

namespace r1::comm {
namespace {

/// Pinned host buffers for reuse: a copy to pageable memory is staged again by the driver, at half the rate.
class HostBuffers {
 public:
  /// At least that large: a power of two.
  PinnedBuffer take(DeviceKind kind, size_t bytes) {
    size_t size = 4096;
    while (size < bytes) size *= 2;
    auto& list = free_[size];
    if (list.empty()) return {kind, size};
    PinnedBuffer buffer = std::move(list.back());
    list.pop_back();
    return buffer;
  }
  void give(PinnedBuffer buffer) { free_[buffer.bytes()].push_back(std::move(buffer)); }

 private:
  std::map<size_t, std::vector<PinnedBuffer>> free_;
};

/// A host copy of a device tensor; host tensors are used as they are.
class Staged {
 public:
  Staged(const Tensor& t, bool read, const Stream& s, HostBuffers& buffers) : device_(t), stream_(s), host_(t) {
    if (t.device.kind == DeviceKind::kCpu || t.empty()) {
      host_.device = {};
      return;
    }
    buffers_ = &buffers;
    memory_ = buffers.take(t.device.kind, t.bytes());
    host_.data = memory_.data();
    host_.device = {};
    if (read) {
      DeviceBackend& backend = backend_of(t.device.kind);
      backend.copy(host_.data, t.data, t.bytes(), s);
      backend.synchronize(s);
    }
  }
  Staged(Staged&& o) noexcept
      : device_(o.device_), stream_(o.stream_), host_(o.host_), buffers_(std::exchange(o.buffers_, nullptr)),
        memory_(std::move(o.memory_)) {}
  Staged& operator=(Staged&&) = delete;
  ~Staged() {
    if (buffers_ != nullptr) buffers_->give(std::move(memory_));
  }
  [[nodiscard]] const Tensor& host() const { return host_; }
  void write_back() const {
    if (buffers_ == nullptr) return;
    DeviceBackend& backend = backend_of(device_.device.kind);
    backend.copy(device_.data, host_.data, device_.bytes(), stream_);
    backend.synchronize(stream_);
  }

 private:
  Tensor device_;
  Stream stream_;
  Tensor host_;
  HostBuffers* buffers_ = nullptr;
  PinnedBuffer memory_;
};

class StagedPending : public Pending {
 public:
  StagedPending(std::vector<Staged> received, std::vector<Staged> sent, std::unique_ptr<Pending> inner)
      : received_(std::move(received)), sent_(std::move(sent)), inner_(std::move(inner)) {}
  void wait() override {
    inner_->wait();
    for (const Staged& t : received_) t.write_back();
    received_.clear();
    sent_.clear();
  }

 private:
  std::vector<Staged> received_, sent_;
  std::unique_ptr<Pending> inner_;
};

class StagedCommunicator : public Communicator {
 public:
  explicit StagedCommunicator(std::unique_ptr<Communicator> inner, std::shared_ptr<HostBuffers> buffers)
      : Communicator(inner->name()), buffers_(std::move(buffers)), inner_(std::move(inner)) {}
  [[nodiscard]] int rank() const override { return inner_->rank(); }
  [[nodiscard]] int size() const override { return inner_->size(); }

  void all_reduce(const Tensor& x, ReduceOp op, const Stream& s) override {
    if (size() == 1) return;
    const Staged h(x, true, s, *buffers_);
    inner_->all_reduce(h.host(), op, {});
    h.write_back();
  }
  void all_gather(const Tensor& in, const Tensor& out, std::span<const int64_t> counts, const Stream& s) override {
    const Staged a(in, true, s, *buffers_), b(out, false, s, *buffers_);
    inner_->all_gather(a.host(), b.host(), counts, {});
    b.write_back();
  }
  void reduce_scatter(const Tensor& in, const Tensor& out, std::span<const int64_t> counts, const Stream& s) override {
    const Staged a(in, true, s, *buffers_), b(out, false, s, *buffers_);
    inner_->reduce_scatter(a.host(), b.host(), counts, {});
    b.write_back();
  }
  void broadcast(const Tensor& x, int root, const Stream& s) override {
    if (size() == 1) return;
    const Staged h(x, rank() == root, s, *buffers_);
    inner_->broadcast(h.host(), root, {});
    if (rank() != root) h.write_back();
  }
  void all_to_all(const Tensor& in, std::span<const int64_t> send_counts, const Tensor& out,
                  std::span<const int64_t> recv_counts, const Stream& s) override {
    const Staged a(in, true, s, *buffers_), b(out, false, s, *buffers_);
    inner_->all_to_all(a.host(), send_counts, b.host(), recv_counts, {});
    b.write_back();
  }
  void send(const Tensor& x, int peer, const Stream& s) override {
    const Staged h(x, true, s, *buffers_);
    inner_->send(h.host(), peer, {});
  }
  void recv(const Tensor& x, int peer, const Stream& s) override {
    const Staged h(x, false, s, *buffers_);
    inner_->recv(h.host(), peer, {});
    h.write_back();
  }
  [[nodiscard]] std::unique_ptr<Pending> start(std::span<const Transfer> transfers, const Stream& s) override {
    std::vector<Staged> received, sent;
    std::vector<Transfer> host;
    for (const Transfer& t : transfers) {
      auto& list = t.kind == Transfer::Kind::kSend ? sent : received;
      list.emplace_back(t.tensor, t.kind == Transfer::Kind::kSend, s, *buffers_);
      host.push_back({t.kind, list.back().host(), t.peer});
    }
    auto inner = inner_->start(host, {});
    return std::make_unique<StagedPending>(std::move(received), std::move(sent), std::move(inner));
  }
  [[nodiscard]] std::unique_ptr<Pending> start_reduce_scatter(std::span<const ShardedTensor> xs, SumOrder order,
                                                              const Stream& s) override {
    return sharded(xs, s, true, [&](std::span<const ShardedTensor> host) { return inner_->start_reduce_scatter(host, order, {}); });
  }
  [[nodiscard]] std::unique_ptr<Pending> start_all_gather(std::span<const ShardedTensor> xs, const Stream& s) override {
    return sharded(xs, s, false, [&](std::span<const ShardedTensor> host) { return inner_->start_all_gather(host, {}); });
  }
  int64_t expect_messages(std::span<const ExpectedMessage> from) override { return inner_->expect_messages(from); }
  void barrier() override { inner_->barrier(); }
  [[nodiscard]] std::unique_ptr<Communicator> split(int color, int key, std::string name) override {
    return std::make_unique<StagedCommunicator>(inner_->split(color, key, std::move(name)), buffers_);
  }
  void close() override { inner_->close(); }

 private:
  /// Host copies of all parts; a sum reads all and returns the own one, a gather reads the own one and returns the others.
  template <class Start>
  std::unique_ptr<Pending> sharded(std::span<const ShardedTensor> xs, const Stream& s, bool sum, const Start& start) {
    std::vector<Staged> received, sent;
    std::vector<ShardedTensor> host;
    for (const ShardedTensor& x : xs) {
      ShardedTensor h;
      for (int r = 0; r < static_cast<int>(x.parts.size()); ++r) {
        auto& list = (r == rank()) == sum ? received : sent;
        list.emplace_back(x.parts[static_cast<size_t>(r)], sum || r == rank(), s, *buffers_);
        h.parts.push_back(list.back().host());
      }
      host.push_back(std::move(h));
    }
    auto inner = start(std::span<const ShardedTensor>(host));
    return std::make_unique<StagedPending>(std::move(received), std::move(sent), std::move(inner));
  }

  std::shared_ptr<HostBuffers> buffers_;  // of all groups split from one
  std::unique_ptr<Communicator> inner_;
};

}  // namespace

std::unique_ptr<Communicator> make_staged(std::unique_ptr<Communicator> inner) {
  return std::make_unique<StagedCommunicator>(std::move(inner), std::make_shared<HostBuffers>());
}

}  // namespace r1::comm
