// A group of one: every collective is identity; messages go through a queue.
#include <numeric>

#include "comm/arguments.h"
#include "comm/communicator.h"
#include "comm/self_queue.h"

namespace r1::comm {
namespace {

class SelfPending final : public Pending {
 public:
  SelfPending(SelfQueue& queue, std::vector<uint64_t> receives)
      : queue_(queue), receives_(std::move(receives)) {}
  ~SelfPending() override {
    for (uint64_t ticket : receives_) queue_.cancel(ticket);
  }
  void wait() override {
    for (uint64_t ticket : receives_) queue_.wait(ticket, "wait");
    receives_.clear();
  }

 private:
  SelfQueue& queue_;
  std::vector<uint64_t> receives_;
};

class SelfCommunicator final : public Communicator {
 public:
  explicit SelfCommunicator(std::string name) : Communicator(std::move(name)) {}
  int rank() const override { return 0; }
  int size() const override { return 1; }

  void all_reduce(const Tensor& x, ReduceOp, const Stream&) override {
    check_open("all_reduce");
    check_tensor("all_reduce", x);
    check_reducible(*this, "all_reduce", x);
  }
  void all_gather(const Tensor& in, const Tensor& out, std::span<const int64_t> counts,
                  const Stream& s) override {
    check_parts(*this, "all_gather", in, out, counts);
    copy("all_gather", in, out, s);
  }
  void reduce_scatter(const Tensor& in, const Tensor& out, std::span<const int64_t> counts,
                      const Stream& s) override {
    check_parts(*this, "reduce_scatter", out, in, counts);
    check_reducible(*this, "reduce_scatter", in);
    copy("reduce_scatter", in, out, s);
  }
  void broadcast(const Tensor& x, int root, const Stream&) override {
    check_open("broadcast");
    check_tensor("broadcast", x);
    check_peer(*this, "broadcast", root);
  }
  void all_to_all(const Tensor& in, std::span<const int64_t> send_counts, const Tensor& out,
                  std::span<const int64_t> recv_counts, const Stream& s) override {
    check_counts(*this, "all_to_all", in, send_counts);
    check_parts(*this, "all_to_all", in, out, recv_counts);
    copy("all_to_all", in, out, s);
  }
  void send(const Tensor& x, int peer, const Stream&) override {
    check_message("send", x, peer);
    queue_.send(x.data, x.bytes());
  }
  void recv(const Tensor& x, int peer, const Stream&) override {
    check_message("recv", x, peer);
    const uint64_t ticket = queue_.post_recv(x.data, x.bytes());
    if (!queue_.done(ticket)) queue_.cancel(ticket);
    queue_.wait(ticket, "recv");
  }
  std::unique_ptr<Pending> start(std::span<const Transfer> transfers, const Stream&) override {
    std::vector<uint64_t> receives;
    for (const Transfer& t : transfers) {
      check_message("start", t.tensor, t.peer);
      if (t.kind == Transfer::Kind::kSend)
        queue_.send(t.tensor.data, t.tensor.bytes());
      else
        receives.push_back(queue_.post_recv(t.tensor.data, t.tensor.bytes()));
    }
    return std::make_unique<SelfPending>(queue_, std::move(receives));
  }
  void barrier() override { check_open("barrier"); }
  std::unique_ptr<Communicator> split(int, int, std::string name) override {
    check_open("split");
    const int ranks[] = {0};
    return std::make_unique<SelfCommunicator>(group_name(name, ranks));
  }
  void close() override { closed_ = true; }

 private:
  void check_open(const char* operation) const {
    R1_CHECK(!closed_, "{} on {} after close()", operation, name());
  }
  // One rank works on either device: a collective of one is at most a copy, which it makes on the
  // CPU only.
  void check_tensor(const char* operation, const Tensor& x) const {
    comm::check_tensor(*this, operation, x, x.device.kind);
  }
  void check_message(const char* operation, const Tensor& x, int peer) const {
    check_open(operation);
    comm::check_tensor(*this, operation, x);
    check_peer(*this, operation, peer);
  }
  void copy(const char* operation, const Tensor& in, const Tensor& out, const Stream&) const {
    check_open(operation);
    check_tensor(operation, in);
    comm::check_tensor(*this, operation, out, in.device.kind);
    if (out.numel() == 0 || in.data == out.data) return;
    R1_CHECK(in.device.kind == DeviceKind::kCpu, "{} on {}: distinct CUDA tensors", operation,
             name());
    copy_bytes(out.data, in.data, in.bytes());
  }

  bool closed_ = false;
  SelfQueue queue_{*this};
};

}  // namespace

std::unique_ptr<Communicator> make_self(std::string name) {
  return std::make_unique<SelfCommunicator>(std::move(name));
}

}  // namespace r1::comm
