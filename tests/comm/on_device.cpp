#include "on_device.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <vector>

#include "runtime/device/device.h"

namespace r1::comm::test {
namespace {

constexpr size_t kGuard = 256;
constexpr char kMark = 0x5a;

// Blocks of device memory for reuse: allocating waits for a device on some drivers, and an
// operation may be under way.
class Pool {
 public:
  explicit Pool(Device d) : device_(d) {}
  Buffer take(size_t bytes) {
    size_t size = 4096;
    while (size < bytes) size *= 2;
    auto& list = free_[size];
    if (list.empty()) return {device_, size};
    Buffer b = std::move(list.back());
    list.pop_back();
    return b;
  }
  void give(Buffer b) { free_[b.bytes()].push_back(std::move(b)); }
  [[nodiscard]] Device device() const { return device_; }

 private:
  Device device_;
  std::map<size_t, std::vector<Buffer>> free_;
};

struct Shared {
  explicit Shared(Device d)
      : pool(d), backend(backend_of(d.kind)), stream(backend.create_stream(d)) {}
  Pool pool;
  DeviceBackend& backend;
  Stream stream;
};

// A host range as it lies on the device.
class Copy {
 public:
  Copy(Shared& shared, const Tensor& host) : shared_(&shared), host_(host) {
    if (host.empty()) return;
    // At the same distance from a 256-byte line as on the host: nothing may count on alignment.
    front_ = kGuard + reinterpret_cast<uintptr_t>(host.data) % kGuard;
    bytes_ = front_ + host.bytes() + kGuard;
    image_.assign(bytes_, kMark);
    std::memcpy(image_.data() + front_, host.data, host.bytes());
    block_ = shared.pool.take(bytes_);
    shared.backend.copy(block_.data(), image_.data(), bytes_, shared.stream);
    shared.backend.synchronize(shared.stream);
  }
  Copy(Copy&&) = default;
  Copy& operator=(Copy&&) = default;
  /// The device's view of `part`, which lies within the host tensor.
  [[nodiscard]] Tensor view(const Tensor& part) const {
    Tensor t = part;
    t.device = shared_->pool.device();
    if (!part.empty())
      t.data = static_cast<char*>(block_.data()) + front_ +
               (static_cast<char*>(part.data) - static_cast<char*>(host_.data));
    return t;
  }
  [[nodiscard]] Tensor view() const { return view(host_); }
  [[nodiscard]] bool holds(const Tensor& part) const {
    const auto* p = static_cast<const char*>(part.data);
    const auto* begin = static_cast<const char*>(host_.data);
    return !host_.empty() && !part.empty() && begin <= p &&
           p + part.bytes() <= begin + host_.bytes();
  }
  /// Fetches the tensor, checks what lies around it, and gives the block back.
  void finish(bool written) {
    if (host_.empty()) return;
    shared_->backend.copy(image_.data(), block_.data(), bytes_, shared_->stream);
    shared_->backend.synchronize(shared_->stream);
    const auto marked = [](char c) { return c == kMark; };
    const auto begin = image_.begin(), data = begin + static_cast<ptrdiff_t>(front_);
    const auto end = data + static_cast<ptrdiff_t>(host_.bytes());
    if (!std::all_of(begin, data, marked) || !std::all_of(end, image_.end(), marked))
      throw std::runtime_error("bytes outside the device tensor were written");
    if (written)
      std::memcpy(host_.data, &*data, host_.bytes());
    else if (std::memcmp(host_.data, &*data, host_.bytes()) != 0)
      throw std::runtime_error("an input on the device was changed");
    shared_->pool.give(std::move(block_));
  }

 private:
  Shared* shared_;
  Tensor host_;
  size_t front_ = 0, bytes_ = 0;
  std::vector<char> image_;
  Buffer block_;
};

class OnDevicePending final : public Pending {
 public:
  OnDevicePending(std::vector<std::pair<Copy, bool>> copies, std::unique_ptr<Pending> inner)
      : copies_(std::move(copies)), inner_(std::move(inner)) {}
  void wait() override {
    inner_->wait();
    for (auto& [copy, received] : copies_) copy.finish(received);
    copies_.clear();
  }

 private:
  std::vector<std::pair<Copy, bool>> copies_;
  std::unique_ptr<Pending> inner_;
};

class OnDevice final : public Communicator {
 public:
  OnDevice(Communicator* inner, std::unique_ptr<Communicator> owned, std::shared_ptr<Shared> shared)
      : Communicator(inner->name()),
        inner_(*inner),
        owned_(std::move(owned)),
        shared_(std::move(shared)) {}
  int rank() const override { return inner_.rank(); }
  int size() const override { return inner_.size(); }

  void all_reduce(const Tensor& x, ReduceOp op, const Stream&) override {
    if (wrong(x)) return inner_.all_reduce(on(x), op, s());
    Copy c(*shared_, x);
    inner_.all_reduce(c.view(), op, s());
    c.finish(true);
  }
  void all_gather(const Tensor& in, const Tensor& out, std::span<const int64_t> counts,
                  const Stream&) override {
    Copy whole(*shared_, out);
    if (whole.holds(in)) {
      inner_.all_gather(whole.view(in), whole.view(), counts, s());
    } else {
      Copy part(*shared_, in);
      inner_.all_gather(part.view(), whole.view(), counts, s());
      part.finish(false);
    }
    whole.finish(true);
  }
  void reduce_scatter(const Tensor& in, const Tensor& out, std::span<const int64_t> counts,
                      const Stream&) override {
    Copy whole(*shared_, in), part(*shared_, out);
    inner_.reduce_scatter(whole.view(), part.view(), counts, s());
    whole.finish(false);
    part.finish(true);
  }
  void broadcast(const Tensor& x, int root, const Stream&) override {
    Copy c(*shared_, x);
    inner_.broadcast(c.view(), root, s());
    c.finish(true);
  }
  void all_to_all(const Tensor& in, std::span<const int64_t> send_counts, const Tensor& out,
                  std::span<const int64_t> recv_counts, const Stream&) override {
    Copy a(*shared_, in), b(*shared_, out);
    inner_.all_to_all(a.view(), send_counts, b.view(), recv_counts, s());
    a.finish(false);
    b.finish(true);
  }
  void send(const Tensor& x, int peer, const Stream&) override {
    Copy c(*shared_, x);
    inner_.send(c.view(), peer, s());
    c.finish(false);
  }
  void recv(const Tensor& x, int peer, const Stream&) override {
    Copy c(*shared_, x);
    inner_.recv(c.view(), peer, s());
    c.finish(true);
  }
  int64_t expect_messages(std::span<const ExpectedMessage> from) override { return inner_.expect_messages(from); }
  std::unique_ptr<Pending> start(std::span<const Transfer> transfers, const Stream&) override {
    std::vector<std::pair<Copy, bool>> copies;
    std::vector<Transfer> device;
    for (const Transfer& t : transfers) {
      copies.emplace_back(Copy(*shared_, t.tensor), t.kind == Transfer::Kind::kRecv);
      device.push_back({t.kind, copies.back().first.view(), t.peer});
    }
    auto inner = inner_.start(device, s());
    return std::make_unique<OnDevicePending>(std::move(copies), std::move(inner));
  }
  std::unique_ptr<Pending> start_reduce_scatter(std::span<const ShardedTensor> xs, SumOrder order,
                                                const Stream&) override {
    return sharded(xs, [&](std::span<const ShardedTensor> device) {
      return inner_.start_reduce_scatter(device, order, s());
    });
  }
  std::unique_ptr<Pending> start_all_gather(std::span<const ShardedTensor> xs,
                                            const Stream&) override {
    return sharded(xs, [&](std::span<const ShardedTensor> device) {
      return inner_.start_all_gather(device, s());
    });
  }
  void barrier() override { inner_.barrier(); }
  std::unique_ptr<Communicator> split(int color, int key, std::string name) override {
    auto group = inner_.split(color, key, std::move(name));
    Communicator* p = group.get();
    return std::make_unique<OnDevice>(p, std::move(group), shared_);
  }
  void close() override { inner_.close(); }

 private:
  template <class Start>
  std::unique_ptr<Pending> sharded(std::span<const ShardedTensor> xs, Start start) {
    std::vector<std::pair<Copy, bool>> copies;
    std::vector<ShardedTensor> device;
    for (const ShardedTensor& x : xs) {
      device.emplace_back();
      for (const Tensor& part : x.parts) {
        copies.emplace_back(Copy(*shared_, part), true);
        device.back().parts.push_back(copies.back().first.view());
      }
    }
    auto inner = start(device);
    return std::make_unique<OnDevicePending>(std::move(copies), std::move(inner));
  }
  [[nodiscard]] const Stream& s() const { return shared_->stream; }
  // Elements without data: for the communicator to refuse.
  [[nodiscard]] static bool wrong(const Tensor& x) { return x.data == nullptr && x.numel() != 0; }
  [[nodiscard]] Tensor on(Tensor x) const {
    x.device = shared_->pool.device();
    return x;
  }

  Communicator& inner_;
  std::unique_ptr<Communicator> owned_;
  std::shared_ptr<Shared> shared_;
};

}  // namespace

std::unique_ptr<Communicator> on_device(Communicator& inner, Device device) {
  return std::make_unique<OnDevice>(&inner, nullptr, std::make_shared<Shared>(device));
}

}  // namespace r1::comm::test
