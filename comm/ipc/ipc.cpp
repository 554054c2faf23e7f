#include "comm/ipc/ipc.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <deque>
#include <numeric>
#include <optional>

#include "comm/arguments.h"
#include "comm/composed.h"
#include "runtime/core/log.h"

namespace r1::comm {
namespace {

constexpr size_t kChannels = 2;
// Of a channel. A part of a collective is one of several pieces that both ends are at. A message is sent long before it is
// wanted.
constexpr size_t slots_in(size_t channel) {
  return channel == static_cast<size_t>(Channel::kMessages) ? kMessageSlots : kCollectiveSlots;
}
constexpr size_t kMostSlots = kMessageSlots;
static_assert(slots_in(0) <= kMostSlots && slots_in(1) <= kMostSlots);
constexpr size_t kLine = 256;

// The counters of one mailbox: messages of one rank to another in one channel. In host memory that
// both map.
struct alignas(64) Mail {
  std::atomic<uint64_t> sent{0};  // pieces whose copy into the slot is enqueued
  uint64_t piece_bytes[kMostSlots] = {};
  uint64_t message_bytes[kMostSlots] = {};
  alignas(64) std::atomic<uint64_t> received{0};  // pieces whose copy out of the slot is enqueued
};
static_assert(std::atomic<uint64_t>::is_always_lock_free,
              "the counters are shared between processes");

constexpr size_t align(size_t n) { return (n + kLine - 1) / kLine * kLine; }

}  // namespace

class IpcBatch;
class IpcGroup;

class IpcHub : public Wires {
 public:
  IpcHub(std::shared_ptr<IpcMemory> m, StopCheck s) : memory(std::move(m)) {
    stop = std::move(s);
    send_stream = memory->create_stream();
    recv_stream = memory->create_stream();
  }
  ~IpcHub() = default;  // streams go with the process: work of others may wait on them
  IpcHub(const IpcHub&) = delete;
  IpcHub& operator=(const IpcHub&) = delete;

  /// Enqueues whatever can be: a rank that waits for one message must serve its others.
  void progress();

  std::shared_ptr<IpcMemory> memory;
  Stream send_stream, recv_stream;
  std::vector<IpcGroup*> groups;
};

namespace {

struct Op {
  char* data;
  size_t bytes;
  size_t moved;
  bool begun;
  IpcBatch* batch;
};

// One direction of a pair of ranks.
struct Box {
  Mail* mail = nullptr;
  char* slots = nullptr;  // slot_count of slot_bytes in the receiver's memory, as mapped here
  uint64_t count = 0;     // pieces so far
  size_t slot_count = 0, slot_bytes = 0;
  size_t expected_bytes = 0;  // of a slot that expect_messages made
  void* full[kMostSlots] = {};   // recorded by the sender when a slot is filled
  void* empty[kMostSlots] = {};  // recorded by the receiver when it is copied out
  std::deque<Op> open;

  // From now on. The old slots stay: copies to and from them may not be over yet.
  void use(char* to, size_t bytes) {
    slots = to;
    slot_bytes = expected_bytes = bytes;
  }
};

}  // namespace

class IpcBatch final : public Batch {
 public:
  IpcBatch(IpcGroup& group, IpcHub& hub) : group_(group), hub_(hub) {
    begin_ = hub.memory->create_event(nullptr);
    sent_ = hub.memory->create_event(nullptr);
    received_ = hub.memory->create_event(nullptr);
  }
  ~IpcBatch() override {
    for (void* e : {begin_, sent_, received_}) hub_.memory->destroy_event(e);
  }
  void begin(const Stream& s) override {
    hub_.memory->record(begin_, s);
    sends_ = receives_ = false;
  }
  void send(Channel channel, const void* data, size_t bytes, int peer) override;
  void recv(Channel channel, void* data, size_t bytes, int peer) override;
  void go() override { hub_.progress(); }
  bool done() override {
    if (open_ != 0) hub_.progress();
    return open_ == 0;
  }
  void end(const Stream& s) override {
    join(sends_, sent_, hub_.send_stream, s);
    join(receives_, received_, hub_.recv_stream, s);
  }
  void one_done() { --open_; }

 private:
  void follow(bool& used, const Stream& side) {
    if (!used) hub_.memory->wait(side, begin_);
    used = true;
  }
  void join(bool used, void* event, const Stream& side, const Stream& s) {
    if (!used) return;
    hub_.memory->record(event, side);
    hub_.memory->wait(s, event);
  }

  IpcGroup& group_;
  IpcHub& hub_;
  void *begin_ = nullptr, *sent_ = nullptr, *received_ = nullptr;
  bool sends_ = false, receives_ = false;
  int open_ = 0;
};

class IpcGroup final : public ComposedCommunicator {
 public:
  IpcGroup(std::unique_ptr<Communicator> host, std::shared_ptr<IpcHub> hub,
           const IpcOptions& options, std::vector<int> ranks)
      : ComposedCommunicator(group_name(options.name, ranks), host->rank(), ranks, hub,
                             *hub->memory),
        host_(std::move(host)),
        hub_(std::move(hub)),
        options_(options) {
    out_.resize(kChannels * ranks.size());
    in_.resize(kChannels * ranks.size());
    if (size() > 1) connect();
    hub_->groups.push_back(this);
  }
  ~IpcGroup() override { std::erase(hub_->groups, this); }

  void all_reduce(const Tensor& x, ReduceOp op, const Stream& s) override {
    if (!kernels_) return ComposedCommunicator::all_reduce(x, op, s);
    check_open("all_reduce");
    check_tensor(*this, "all_reduce", x, memory().kind());
    check_reducible(*this, "all_reduce", x);
    if (x.numel() != 0) kernels_->all_reduce(x, op, s);
  }
  void all_gather(const Tensor& in, const Tensor& out, std::span<const int64_t> counts,
                  const Stream& s) override {
    if (!kernels_) return ComposedCommunicator::all_gather(in, out, counts, s);
    check_open("all_gather");
    check_tensor(*this, "all_gather", in, memory().kind());
    check_tensor(*this, "all_gather", out, memory().kind());
    check_parts(*this, "all_gather", in, out, counts);
    kernels_->all_gather(in, out, counts, s);
  }
  void reduce_scatter(const Tensor& in, const Tensor& out, std::span<const int64_t> counts,
                      const Stream& s) override {
    if (!kernels_) return ComposedCommunicator::reduce_scatter(in, out, counts, s);
    check_open("reduce_scatter");
    check_tensor(*this, "reduce_scatter", in, memory().kind());
    check_tensor(*this, "reduce_scatter", out, memory().kind());
    check_parts(*this, "reduce_scatter", out, in, counts);
    check_reducible(*this, "reduce_scatter", in);
    kernels_->reduce_scatter(in, out, counts, s);
  }
  void broadcast(const Tensor& x, int root, const Stream& s) override {
    if (!kernels_) return ComposedCommunicator::broadcast(x, root, s);
    check_open("broadcast");
    check_tensor(*this, "broadcast", x, memory().kind());
    check_peer(*this, "broadcast", root);
    // An all-gather in which the root alone has something to give.
    counts_.assign(static_cast<size_t>(size()), 0);
    counts_[static_cast<size_t>(root)] = x.numel();
    Tensor own = x;
    own.shape = {rank() == root ? x.numel() : 0};
    Tensor whole = x;
    whole.shape = {x.numel()};
    if (x.numel() != 0) kernels_->all_gather(own, whole, counts_, s);
  }
  int64_t expect_messages(std::span<const ExpectedMessage> from) override {
    check_open("expect_messages");
    if (size() == 1 || options_.most_message_slot_bytes == 0) return 0;
    std::vector<uint64_t> wanted(ranks(), 0);  // bytes of a slot; 0: what there is suffices
    for (const ExpectedMessage& e : from) {
      check_peer(*this, "expect_messages", e.peer);
      if (e.peer == rank()) continue;
      const size_t bytes = align(std::min(e.bytes, options_.most_message_slot_bytes));
      uint64_t& slot = wanted[static_cast<size_t>(e.peer)];
      if (bytes > in(Channel::kMessages, e.peer).expected_bytes) slot = std::max<uint64_t>(slot, bytes);
    }
    return make_message_slots(wanted);
  }
  void barrier() override {
    check_open("barrier");
    host_->barrier();
  }
  std::unique_ptr<Communicator> split(int color, int key, std::string name) override {
    check_open("split");
    return make_ipc(host_->split(color, key, name), hub_, with_name(name));
  }
  void close() override {
    if (closed()) return;
    check_open("close");
    host_->barrier();  // nobody will start a copy to or from this rank's slots any more ...
    mark_closed();
    kernels_.reset();
    IpcMemory& m = *hub_->memory;
    for (const Stream& s : {hub_->send_stream, hub_->recv_stream}) m.synchronize(s);
    for (size_t r = 0; r < regions_.size(); ++r)
      if (regions_[r] != nullptr && static_cast<int>(r) != rank())
        m.close(regions_[r], region_bytes());
    for (const MessageRegion& r : message_regions_) m.close(r.data, r.bytes);
    host_->barrier();  // ... nor has it mapped
    if (!regions_.empty()) m.release_shared(regions_[static_cast<size_t>(rank())], region_bytes());
    for (const MessageRegion& r : own_message_regions_) m.release_shared(r.data, r.bytes);
    for (auto* boxes : {&out_, &in_})
      for (Box& b : *boxes)
        for (size_t i = 0; i < kMostSlots; ++i) {
          if (b.full[i] != nullptr) m.destroy_event(b.full[i]);
          if (b.empty[i] != nullptr) m.destroy_event(b.empty[i]);
        }
    if (control_ != nullptr) control_memory_->close(control_, control_bytes());
    control_ = nullptr;
    host_->close();
  }

  [[nodiscard]] bool has_kernels() const { return kernels_ != nullptr; }
  Box& out(Channel c, int peer) { return out_[index(c, peer)]; }
  Box& in(Channel c, int peer) { return in_[index(c, peer)]; }

  /// Enqueues the pieces whose turn has come.
  void progress() {
    for (size_t i = 0; i < out_.size(); ++i)
      while (!out_[i].open.empty() && push(out_[i])) {
      }
    for (size_t i = 0; i < in_.size(); ++i)
      while (!in_[i].open.empty() && pull(in_[i], static_cast<int>(i / kChannels))) {
      }
  }

 protected:
  std::unique_ptr<Batch> make_batch() override { return std::make_unique<IpcBatch>(*this, *hub_); }
  std::unique_ptr<Communicator> make_group(std::string, int, std::vector<int>, int64_t) override {
    R1_CHECK(false, "ipc groups are split through their host group");
    return nullptr;
  }

 private:
  [[nodiscard]] static size_t index(Channel c, int peer) {
    return static_cast<size_t>(peer) * kChannels + static_cast<size_t>(c);
  }
  [[nodiscard]] IpcOptions with_name(const std::string& name) const {
    IpcOptions o = options_;
    o.name = name;
    return o;
  }
  [[nodiscard]] size_t ranks() const { return static_cast<size_t>(size()); }
  [[nodiscard]] size_t control_bytes() const {
    return ranks() * ranks() * kChannels * sizeof(Mail);
  }
  [[nodiscard]] size_t kernel_area() const { return kernel_bytes_ == 0 ? 0 : align(kernel_bytes_); }
  [[nodiscard]] size_t slots_of_a_pair() const { return slots_in(0) * slot(0) + slots_in(1) * slot(1); }
  [[nodiscard]] size_t region_bytes() const { return kernel_area() + ranks() * slots_of_a_pair(); }
  // In the receiver's memory: a copy between two GPUs takes a copy engine, and goes on whatever the
  // sender computes meanwhile (29 MB in 0.12 ms beside products on an H200).
  [[nodiscard]] char* slots_of(size_t sender, size_t receiver, size_t channel) const {
    return static_cast<char*>(regions_[receiver]) + kernel_area() + sender * slots_of_a_pair() +
           (channel == 0 ? 0 : slots_in(0) * slot(0));
  }
  // Bytes of a channel's slot, in whole lines.
  [[nodiscard]] size_t slot(size_t channel) const {
    return align(channel == static_cast<size_t>(Channel::kMessages) ? options_.message_slot_bytes
                                                                    : options_.slot_bytes);
  }

  bool push(Box& b) {
    if (b.count - b.mail->received.load(std::memory_order_acquire) >= b.slot_count) return false;
    IpcMemory& m = *hub_->memory;
    Op& op = b.open.front();
    const size_t slot = b.count % b.slot_count;
    const size_t n = std::min(op.bytes - op.moved, b.slot_bytes);
    if (b.count >= b.slot_count) m.wait(hub_->send_stream, b.empty[slot]);
    m.copy(b.slots + slot * b.slot_bytes, op.data + op.moved, n, hub_->send_stream);
    m.record(b.full[slot], hub_->send_stream);
    b.mail->piece_bytes[slot] = n;
    b.mail->message_bytes[slot] = op.bytes;
    b.mail->sent.store(++b.count, std::memory_order_release);
    return advance(b, n);
  }
  bool pull(Box& b, int peer) {
    if (b.mail->sent.load(std::memory_order_acquire) <= b.count) return false;
    IpcMemory& m = *hub_->memory;
    Op& op = b.open.front();
    const size_t slot = b.count % b.slot_count;
    const size_t n = b.mail->piece_bytes[slot];
    if (b.mail->message_bytes[slot] != op.bytes)
      throw CommError("recv on {}: rank {} sent {} bytes where {} were expected", name(), peer,
                      b.mail->message_bytes[slot], op.bytes);
    m.wait(hub_->recv_stream, b.full[slot]);
    m.copy(op.data + op.moved, b.slots + slot * b.slot_bytes, n, hub_->recv_stream);
    m.record(b.empty[slot], hub_->recv_stream);
    b.mail->received.store(++b.count, std::memory_order_release);
    return advance(b, n);
  }
  static bool advance(Box& b, size_t n) {
    Op& op = b.open.front();
    op.moved += n;
    op.begun = true;
    if (op.moved == op.bytes) {
      op.batch->one_done();
      b.open.pop_front();
    }
    return true;
  }

  // What a rank tells the others: its device and region, then for each peer, channel and slot the
  // event that it records as sender and the one that it records as receiver.
  struct Hello {
    IpcHandle device{}, region{};
  };
  using Events = std::array<IpcHandle, 2>;

  void connect() {
    control_memory_ = make_shm_memory();
    map_control();
    IpcMemory& m = *hub_->memory;
    choose_kernels();
    const size_t n = ranks(), own = static_cast<size_t>(rank()), boxes = n * kChannels * kMostSlots;
    std::vector<char> mine(sizeof(Hello) + boxes * sizeof(Events));
    Hello hello;
    void* region = m.allocate_shared(region_bytes(), hello.region);
    std::memcpy(mine.data(), &hello, sizeof hello);
    for (size_t r = 0; r < n; ++r)
      for (size_t c = 0; c < kChannels; ++c)
        for (size_t i = 0; i < slots_in(c); ++i) {
          if (r == own) continue;
          Events e{};
          out_[r * kChannels + c].full[i] = m.create_event(&e[0]);
          in_[r * kChannels + c].empty[i] = m.create_event(&e[1]);
          std::memcpy(mine.data() + sizeof(Hello) + ((r * kChannels + c) * kMostSlots + i) * sizeof e,
                      e.data(), sizeof e);
        }
    const std::vector<char> all = gather_all<char>(*host_, mine);
    regions_.assign(n, nullptr);
    regions_[own] = region;
    std::string failed;
    try {
      for (size_t r = 0; r < n; ++r)
        if (r != own) open_peer(r, all.data() + r * mine.size());
    } catch (const Error& e) {
      failed = e.what();
    }
    agree(failed);
    m.forget(hello.region);
    for (size_t r = 0; r < n; ++r)
      for (size_t c = 0; c < kChannels; ++c) {
        auto* mail = static_cast<Mail*>(control_);
        out_[r * kChannels + c].mail = &mail[(own * n + r) * kChannels + c];
        for (auto* way : {&out_, &in_}) {
          (*way)[r * kChannels + c].slot_bytes = slot(c);
          (*way)[r * kChannels + c].slot_count = slots_in(c);
        }
        out_[r * kChannels + c].slots = slots_of(own, r, c);
        in_[r * kChannels + c].mail = &mail[(r * n + own) * kChannels + c];
        in_[r * kChannels + c].slots = slots_of(r, own, c);
      }
    if (kernel_bytes_ != 0) kernels_ = m.make_kernels(rank(), regions_);
    host_->barrier();  // all regions are zeroed and mapped
  }
  void open_peer(size_t r, const char* theirs) {
    IpcMemory& m = *hub_->memory;
    Hello hello;
    std::memcpy(&hello, theirs, sizeof hello);
    regions_[r] = m.open(hello.region, region_bytes());
    for (size_t c = 0; c < kChannels; ++c)
      for (size_t i = 0; i < slots_in(c); ++i) {
        Events e;
        const size_t box = (static_cast<size_t>(rank()) * kChannels + c) * kMostSlots + i;
        std::memcpy(e.data(), theirs + sizeof(Hello) + box * sizeof e, sizeof e);
        in_[r * kChannels + c].full[i] = m.open_event(e[0]);
        out_[r * kChannels + c].empty[i] = m.open_event(e[1]);
      }
  }
  // wanted[s]: bytes of a slot for what rank s sends here.
  int64_t make_message_slots(const std::vector<uint64_t>& wanted) {
    const size_t n = ranks(), own = static_cast<size_t>(rank());
    IpcMemory& m = *hub_->memory;
    const auto bytes_until = [](std::span<const uint64_t> slots) {
      return kMessageSlots * std::accumulate(slots.begin(), slots.end(), size_t{0});
    };
    const size_t own_bytes = bytes_until(wanted);
    IpcHandle handle{};
    std::optional<MemoryError> too_little;
    try {
      if (own_bytes != 0)
        own_message_regions_.push_back({static_cast<char*>(m.allocate_shared(own_bytes, handle)), own_bytes});
    } catch (const MemoryError& e) {
      too_little = e;
    }
    const bool all_have_room = all_can(!too_little);
    if (too_little) throw *too_little;
    if (!all_have_room) throw CommError("{}: another rank has no memory for the messages it expects", name());
    for (size_t r = 0; r < n; ++r)  // all ranks have come: what they were to receive is received
      if (r != own) check_idle(static_cast<int>(r));
    // Of every rank: its region's handle, then wanted.
    const size_t row = sizeof(IpcHandle) + n * sizeof(uint64_t);
    std::vector<char> mine(row);
    std::memcpy(mine.data(), handle.data(), sizeof handle);
    std::memcpy(mine.data() + sizeof handle, wanted.data(), n * sizeof(uint64_t));
    const std::vector<char> all = gather_all<char>(*host_, mine);
    for (size_t s = 0; s < n; ++s)
      if (wanted[s] != 0)
        in(Channel::kMessages, static_cast<int>(s))
            .use(own_message_regions_.back().data + bytes_until(std::span(wanted).first(s)), wanted[s]);
    std::string failed;
    try {
      for (size_t r = 0; r < n; ++r) {
        std::vector<uint64_t> theirs(n);
        std::memcpy(theirs.data(), all.data() + r * row + sizeof handle, n * sizeof(uint64_t));
        if (r == own || theirs[own] == 0) continue;
        IpcHandle region{};
        std::memcpy(region.data(), all.data() + r * row, sizeof region);
        const size_t bytes = bytes_until(theirs);
        message_regions_.push_back({static_cast<char*>(m.open(region, bytes)), bytes});
        out(Channel::kMessages, static_cast<int>(r))
            .use(message_regions_.back().data + bytes_until(std::span(theirs).first(own)), theirs[own]);
      }
    } catch (const Error& e) {
      failed = e.what();
    }
    agree(failed);
    if (own_bytes != 0) m.forget(handle);
    return static_cast<int64_t>(own_bytes);
  }
  void check_idle(int peer) {
    const Box &sent = out(Channel::kMessages, peer), &received = in(Channel::kMessages, peer);
    R1_CHECK(sent.open.empty() && received.open.empty() && sent.count == sent.mail->received.load(std::memory_order_acquire) &&
                 received.count == received.mail->sent.load(std::memory_order_acquire),
             "expect_messages on {} while messages between ranks {} and {} are under way", name(), rank(), peer);
  }
  // Whether every rank can go on.
  [[nodiscard]] bool all_can(bool can) {
    int64_t flag = can ? 0 : 1;
    host_->all_reduce({.data = &flag, .dtype = DType::kI64, .shape = {1}, .device = {}},
                      ReduceOp::kMax, {});
    return flag == 0;
  }
  // One rank's failure is everybody's, so that none waits for it later.
  void agree(const std::string& failed) {
    const bool all = all_can(failed.empty());
    if (!failed.empty()) throw CommError("{}: {}", name(), failed);
    if (!all) throw CommError("{}: another rank could not open its peers' memory", name());
  }
  void map_control() {
    IpcHandle handle{};
    std::string failed;
    void* own = nullptr;
    try {
      if (rank() == 0) own = control_memory_->allocate_shared(control_bytes(), handle);
    } catch (const Error& e) {
      failed = e.what();
    }
    agree(failed);
    host_->broadcast({.data = handle.data(),
                      .dtype = DType::kU8,
                      .shape = {static_cast<int64_t>(handle.size())},
                      .device = {}},
                     0, {});
    try {
      control_ = rank() == 0 ? own : control_memory_->open(handle, control_bytes());
    } catch (const Error& e) {
      failed = e.what();
    }
    agree(failed);
    if (rank() == 0) control_memory_->forget(handle);
  }
  // Kernels that wait for each other need a GPU each.
  void choose_kernels() {
    IpcHandle device{};
    hub_->memory->device_id().copy(device.data(), device.size() - 1);
    std::vector<IpcHandle> devices = gather_all<IpcHandle>(*host_, {&device, 1});
    std::sort(devices.begin(), devices.end());
    const bool distinct = std::adjacent_find(devices.begin(), devices.end()) == devices.end();
    kernel_bytes_ = options_.kernels && distinct ? hub_->memory->kernel_bytes(size()) : 0;
  }

  std::unique_ptr<Communicator> host_;
  std::shared_ptr<IpcHub> hub_;
  IpcOptions options_;
  std::unique_ptr<IpcMemory> control_memory_;
  void* control_ = nullptr;
  size_t kernel_bytes_ = 0;
  std::vector<void*> regions_;  // by rank, as mapped here
  struct MessageRegion {
    char* data;
    size_t bytes;
  };
  std::vector<MessageRegion> own_message_regions_, message_regions_;  // of expect_messages: for others, and theirs
  std::vector<Box> out_, in_;   // by peer and channel
  std::unique_ptr<PeerKernels> kernels_;
  std::vector<int64_t> counts_;
};

void IpcHub::progress() {
  if (!broken.empty()) return;  // memory of messages under way may be gone
  for (IpcGroup* g : groups) g->progress();
}

void IpcBatch::send(Channel channel, const void* data, size_t bytes, int peer) {
  follow(sends_, hub_.send_stream);
  ++open_;
  group_.out(channel, peer)
      .open.push_back({const_cast<char*>(static_cast<const char*>(data)), bytes, 0, false, this});
}

void IpcBatch::recv(Channel channel, void* data, size_t bytes, int peer) {
  follow(receives_, hub_.recv_stream);
  ++open_;
  group_.in(channel, peer).open.push_back({static_cast<char*>(data), bytes, 0, false, this});
}

std::shared_ptr<IpcHub> make_ipc_hub(std::shared_ptr<IpcMemory> memory, StopCheck stop) {
  return std::make_shared<IpcHub>(std::move(memory), std::move(stop));
}

bool has_peer_kernels(const Communicator& group) {
  const auto* ipc = dynamic_cast<const IpcGroup*>(&group);
  return ipc != nullptr && ipc->has_kernels();
}

void progress(IpcHub& hub) { hub.progress(); }

std::unique_ptr<Communicator> make_ipc(std::unique_ptr<Communicator> host,
                                       std::shared_ptr<IpcHub> hub, const IpcOptions& options) {
  IpcOptions named = options;
  if (host->name().find('[') != std::string::npos) named.name = host->name();
  std::vector<int> ranks(static_cast<size_t>(host->size()));
  std::iota(ranks.begin(), ranks.end(), 0);
  return std::make_unique<IpcGroup>(std::move(host), std::move(hub), named, std::move(ranks));
}

}  // namespace r1::comm
