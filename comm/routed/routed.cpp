#include "comm/routed/routed.h"

#include <algorithm>
#include <map>
#include <numeric>

#include "comm/arguments.h"
#include "comm/ipc/ipc.h"
#include "comm/nccl/nccl.h"
#include "comm/nccl/nccl_api.h"
#include "comm/staged/staged.h"
#include "comm/ucx/ucx.h"
#include "runtime/core/host.h"
#include "runtime/core/log.h"
#include "runtime/core/rng.h"
#include "runtime/device/cuda/cuda_api.h"
#include "runtime/device/cuda_library.h"

namespace r1::comm {
namespace {

// Where a rank is, as it travels.
struct Place {
  int64_t host = 0;
  int64_t gpu = 0;  // hash of its UUID; 0: none
  int64_t has_nccl = 0;
};

// Why this rank cannot use NCCL; empty when it can.
std::string reason_without_nccl() {
  try {
    (void)nccl_api();
    return {};
  } catch (const Error& e) {
    return e.what();
  }
}

}  // namespace

struct Router::State {
  Communicator* host = nullptr;
  CommChoice choice = CommChoice::kAuto;
  Device device;
  StopCheck stop;
  std::vector<Place> places;  // by world rank
  std::shared_ptr<IpcMemory> memory;
  std::shared_ptr<IpcHub> ipc;
  std::shared_ptr<NcclHub> nccl;
  std::vector<RoutedGroup> groups;

  [[nodiscard]] bool on_gpu() const { return device.kind == DeviceKind::kCuda; }
  IpcMemory& need_memory() {
    if (!memory) memory = on_gpu() ? make_cuda_memory(device) : make_shm_memory();
    return *memory;
  }
  std::shared_ptr<IpcHub> need_ipc() {
    need_memory();
    if (!ipc) ipc = make_ipc_hub(memory, stop);
    return ipc;
  }
  std::shared_ptr<NcclHub> need_nccl() {
    need_memory();
    if (!nccl) nccl = make_nccl_hub(memory, stop);
    return nccl;
  }
  [[nodiscard]] GroupPlace place_of(std::span<const int> ranks) const {
    GroupPlace p;
    p.ranks = static_cast<int>(ranks.size());
    std::map<int64_t, int> hosts, gpus;
    for (int r : ranks) {
      const Place& at = places[static_cast<size_t>(r)];
      ++hosts[at.host];
      if (at.gpu != 0) p.most_ranks_a_gpu = std::max(p.most_ranks_a_gpu, ++gpus[at.gpu]);
      p.has_nccl = p.has_nccl && at.has_nccl != 0;
    }
    p.hosts = static_cast<int>(hosts.size());
    return p;
  }
  std::unique_ptr<Communicator> make(CommBackend backend, Communicator& group_host) {
    auto own = group_host.split(0, group_host.rank(), group_host.name());
    switch (backend) {
      case CommBackend::kNccl:
        // Only pipelines send messages, and say which: a pair takes too much memory to prepare all.
        return make_nccl(std::move(own), need_nccl(), {.name = own->name(), .messages = false});
      case CommBackend::kIpc: {
        const size_t slot = ipc_slot_bytes(group_host.size()) / (on_gpu() ? 1 : 8);
        return make_ipc(std::move(own), need_ipc(),
                        {.name = own->name(),
                         .slot_bytes = slot,
                         .message_slot_bytes = 2 * slot,
                         .most_message_slot_bytes = on_gpu() ? kMostMessageSlotBytes : 0});
      }
      case CommBackend::kUcx: {
        const bool direct = on_gpu() && ucx_moves_cuda();
        auto ucx = make_ucx(
            *own, stop,
            {.transports = {}, .name = own->name(), .memory = direct ? &need_memory() : nullptr});
        own->close();
        return on_gpu() && !direct ? make_staged(std::move(ucx)) : std::move(ucx);
      }
      case CommBackend::kMpi:
      case CommBackend::kNone:
        break;
    }
    return own;  // the host communicator, which stages
  }
};

namespace {

/// A group over up to three communicators: for host tensors and barriers, for collectives, for
/// messages.
class Routed final : public Communicator {
 public:
  template <class Wrap>
  Routed(std::unique_ptr<Communicator> host, DeviceKind kind,
         std::unique_ptr<Communicator> collectives, std::unique_ptr<Communicator> messages,
         bool any_size, Wrap split)
      : Communicator(host->name()),
        host_(std::move(host)),
        collectives_(std::move(collectives)),
        messages_(std::move(messages)),
        kind_(kind),
        kernels_(messages_ && has_peer_kernels(*messages_)),
        any_size_(any_size),
        split_(std::move(split)) {}

  int rank() const override { return host_->rank(); }
  int size() const override { return host_->size(); }
  void all_reduce(const Tensor& x, ReduceOp op, const Stream& s) override {
    of(x, kKernelAllReduce).all_reduce(x, op, s);
  }
  void all_gather(const Tensor& in, const Tensor& out, std::span<const int64_t> counts,
                  const Stream& s) override {
    of(out, kKernelAllGather).all_gather(in, out, counts, s);
  }
  void reduce_scatter(const Tensor& in, const Tensor& out, std::span<const int64_t> counts,
                      const Stream& s) override {
    of(in, kKernelReduceScatter).reduce_scatter(in, out, counts, s);
  }
  void broadcast(const Tensor& x, int root, const Stream& s) override {
    of(x, kKernelAllGather).broadcast(x, root, s);
  }
  void all_to_all(const Tensor& in, std::span<const int64_t> send_counts, const Tensor& out,
                  std::span<const int64_t> recv_counts, const Stream& s) override {
    of(in).all_to_all(in, send_counts, out, recv_counts, s);
  }
  void send(const Tensor& x, int peer, const Stream& s) override { carrier(x).send(x, peer, s); }
  void recv(const Tensor& x, int peer, const Stream& s) override { carrier(x).recv(x, peer, s); }
  std::unique_ptr<Pending> start(std::span<const Transfer> transfers, const Stream& s) override {
    for (const Transfer& t : transfers)
      R1_CHECK(t.tensor.device.kind == transfers[0].tensor.device.kind,
               "start on {}: tensors of two devices", name());
    return (transfers.empty() ? *host_ : carrier(transfers[0].tensor)).start(transfers, s);
  }
  int64_t expect_messages(std::span<const ExpectedMessage> from) override {
    return messages_ ? messages_->expect_messages(from) : collectives_ ? collectives_->expect_messages(from) : 0;
  }
  std::unique_ptr<Pending> start_reduce_scatter(std::span<const ShardedTensor> xs, SumOrder order,
                                                const Stream& s) override {
    // Sums over a tree of more than two ranks are formed on the host alone.
    const bool tree = order == SumOrder::kTree && size() > 2 && kind_ == DeviceKind::kCuda;
    return (tree ? *host_ : of(xs)).start_reduce_scatter(xs, order, s);
  }
  std::unique_ptr<Pending> start_all_gather(std::span<const ShardedTensor> xs, const Stream& s) override {
    return of(xs).start_all_gather(xs, s);
  }
  void barrier() override { host_->barrier(); }
  std::unique_ptr<Communicator> split(int color, int key, std::string name) override {
    return split_(host_->split(color, key, std::move(name)));
  }
  void close() override {
    if (messages_) messages_->close();
    if (collectives_) collectives_->close();
    host_->close();
  }

 private:
  // Up to these sizes, of the whole tensor, one kernel a rank is quicker than NCCL. Between two GPUs at any size: 8 KiB to
  // 1 GiB over NVLink (benchmarks/results/2026-11-30-h200x2-layout-grid.md); more could not be measured: what two H100
  // reached with half the blocks.
  static constexpr size_t kKernelAllReduce = size_t{16} << 20;
  static constexpr size_t kKernelAllGather = size_t{64} << 20;
  static constexpr size_t kKernelReduceScatter = size_t{16} << 20;

  [[nodiscard]] Communicator& of(const Tensor& x, size_t kernel_bytes = 0) {
    if (!collectives_ || x.device.kind != kind_) return *host_;
    const bool kernel = kernels_ && kernel_bytes > 0 && (any_size_ || x.bytes() <= kernel_bytes);
    return kernel ? *messages_ : *collectives_;
  }
  [[nodiscard]] Communicator& of(std::span<const ShardedTensor> xs) {
    for (const ShardedTensor& x : xs)
      for (const Tensor& part : x.parts)
        if (part.numel() != 0) return of(part);
    return *host_;
  }
  [[nodiscard]] Communicator& carrier(const Tensor& x) {
    return messages_ && x.device.kind == kind_ ? *messages_ : of(x);
  }

  std::unique_ptr<Communicator> host_, collectives_, messages_;
  DeviceKind kind_;
  bool kernels_;  // of `messages_`, beside another communicator for collectives
  bool any_size_;
  std::function<std::unique_ptr<Communicator>(std::unique_ptr<Communicator>)> split_;
};

// World ranks of a group: each rank says its own.
std::vector<int> members(Communicator& group, int world_rank) {
  const auto n = static_cast<size_t>(group.size());
  int64_t own = world_rank;
  std::vector<int64_t> all(n);
  group.all_gather(
      {.data = &own, .dtype = DType::kI64, .shape = {1}, .device = {}},
      {.data = all.data(), .dtype = DType::kI64, .shape = {group.size()}, .device = {}},
      std::vector<int64_t>(n, 1), {});
  return {all.begin(), all.end()};
}

}  // namespace

class Router::World final : public Communicator {
 public:
  explicit World(std::shared_ptr<State> state)
      : Communicator(state->host->name()), state_(std::move(state)) {}
  int rank() const override { return host().rank(); }
  int size() const override { return host().size(); }
  void all_reduce(const Tensor& x, ReduceOp op, const Stream& s) override {
    host().all_reduce(x, op, s);
  }
  void all_gather(const Tensor& in, const Tensor& out, std::span<const int64_t> counts,
                  const Stream& s) override {
    host().all_gather(in, out, counts, s);
  }
  void reduce_scatter(const Tensor& in, const Tensor& out, std::span<const int64_t> counts,
                      const Stream& s) override {
    host().reduce_scatter(in, out, counts, s);
  }
  void broadcast(const Tensor& x, int root, const Stream& s) override {
    host().broadcast(x, root, s);
  }
  void all_to_all(const Tensor& in, std::span<const int64_t> send_counts, const Tensor& out,
                  std::span<const int64_t> recv_counts, const Stream& s) override {
    host().all_to_all(in, send_counts, out, recv_counts, s);
  }
  void send(const Tensor& x, int peer, const Stream& s) override { host().send(x, peer, s); }
  void recv(const Tensor& x, int peer, const Stream& s) override { host().recv(x, peer, s); }
  std::unique_ptr<Pending> start(std::span<const Transfer> transfers, const Stream& s) override {
    return host().start(transfers, s);
  }
  int64_t expect_messages(std::span<const ExpectedMessage> from) override {
    return host().expect_messages(from);
  }
  std::unique_ptr<Pending> start_reduce_scatter(std::span<const ShardedTensor> xs, SumOrder order,
                                                const Stream& s) override {
    return host().start_reduce_scatter(xs, order, s);
  }
  std::unique_ptr<Pending> start_all_gather(std::span<const ShardedTensor> xs, const Stream& s) override {
    return host().start_all_gather(xs, s);
  }
  void barrier() override { host().barrier(); }
  std::unique_ptr<Communicator> split(int color, int key, std::string name) override {
    return route(host().split(color, key, std::move(name)));
  }
  void close() override {}  // the host communicator belongs to somebody else

 private:
  [[nodiscard]] Communicator& host() const { return *state_->host; }

  std::unique_ptr<Communicator> route(std::unique_ptr<Communicator> group) {
    if (group->size() == 1) {
      // Not the host communicator: it would stage a GPU's tensor to copy it, and wait for the stream.
      const std::string name = group->name();
      group->close();
      return make_self(name);
    }
    const std::vector<int> ranks = members(*group, host().rank());
    const CommRoute r = choose_comm(state_->choice, state_->place_of(ranks), group->name());
    state_->groups.push_back({group->name(), r});
    if (r.collectives == CommBackend::kMpi && r.messages == CommBackend::kMpi) return group;
    const bool one = r.collectives == r.messages;
    auto collectives = state_->make(r.collectives, *group);
    auto messages = one ? nullptr : state_->make(r.messages, *group);
    return std::make_unique<Routed>(
        std::move(group), state_->device.kind, std::move(collectives), std::move(messages), r.any_size,
        [this](std::unique_ptr<Communicator> g) { return route(std::move(g)); });
  }

  std::shared_ptr<State> state_;
};

Router::Router(Communicator& host, CommChoice choice, Device device, StopCheck stop)
    : state_(std::make_shared<State>()) {
  state_->host = &host;
  state_->choice = choice;
  state_->device = device;
  state_->stop = std::move(stop);
  const auto n = static_cast<size_t>(host.size());
  Place own{.host = static_cast<int64_t>(hash_name(host_name()))};
  std::string without_nccl;
  if (n > 1 && state_->on_gpu()) {
    own.gpu = static_cast<int64_t>(hash_name(state_->need_memory().device_id()) | 1);
    if (choice == CommChoice::kAuto || choice == CommChoice::kNccl) {
      without_nccl = reason_without_nccl();
      if (choice == CommChoice::kNccl && !without_nccl.empty())
        throw DeviceError("--comm nccl: {}", without_nccl);
      own.has_nccl = without_nccl.empty() ? 1 : 0;
      if (!without_nccl.empty() && host.rank() == 0) log::warn("{}", without_nccl);
    }
  }
  state_->places = gather_all<Place>(host, {&own, 1});
  world_ = std::make_unique<World>(state_);
  if (n > 1 && state_->on_gpu()) {
    // A stream whose work waits for a rank that died never ends by itself.
    cuda::api().set_wait_hook([this](std::chrono::nanoseconds waited) {
      // A peer may wait for the rest of a message before it does what this rank's stream waits for.
      if (state_->ipc) progress(*state_->ipc);
      if (state_->nccl)
        check_nccl(*state_->nccl, *world_, "wait for the GPU", waited);
      else if (state_->stop)
        state_->stop(*world_, "wait for the GPU", waited);
    });
  }
}

Router::~Router() {
  if (state_->places.size() < 2 || !state_->on_gpu()) return;
  cuda::api().set_wait_hook({});
}

Communicator& Router::world() { return *world_; }
const std::vector<RoutedGroup>& Router::groups() const { return state_->groups; }

}  // namespace r1::comm
