#include "comm/nccl/nccl.h"

#include <sched.h>

#include <algorithm>
#include <numeric>

#include "comm/arguments.h"
#include "comm/nccl/nccl_api.h"
#include "comm/self_queue.h"

namespace r1::comm {

class NcclHub {
 public:
  NcclHub(std::shared_ptr<IpcMemory> m, StopCheck s)
      : memory(std::move(m)), stop(std::move(s)), api(nccl_api()) {}

  /// Ends everything NCCL does in this process; nothing of it can be used afterwards.
  void abort(const std::string& why) noexcept {
    if (!broken.empty()) return;
    broken = why;
    api.abort(comms);
    comms.clear();
  }

  std::shared_ptr<IpcMemory> memory;
  StopCheck stop;
  NcclApi& api;
  std::vector<NcclApi::Comm> comms;
  std::string broken;
};

namespace {

using Clock = std::chrono::steady_clock;
using State = NcclStatus::State;

constexpr auto kStopInterval = std::chrono::milliseconds(2);

int64_t sum(std::span<const int64_t> v) { return std::accumulate(v.begin(), v.end(), int64_t{0}); }

class NcclGroup;

class NcclPending final : public Pending {
 public:
  NcclPending(NcclGroup& group, const Stream& s) : group_(group), stream_(s) {}
  ~NcclPending() override;
  void wait() override;

  std::vector<uint64_t> own_receives;
  std::vector<void*> events;  // of the channels that were used

 private:
  NcclGroup& group_;
  Stream stream_;
  bool done_ = false;
};

class NcclGroup final : public Communicator {
 public:
  NcclGroup(std::unique_ptr<Communicator> host, std::shared_ptr<NcclHub> hub,
            const NcclOptions& options)
      : Communicator(host->name().find('[') != std::string::npos ? host->name() : options.name),
        host_(std::move(host)),
        hub_(std::move(hub)),
        memory_(*hub_->memory),
        options_(options),
        own_queue_(*this, memory_) {
    check_open("start");
    begin_ = memory_.create_event(nullptr);
    if (size() > 1) connect();
  }

  int rank() const override { return host_->rank(); }
  int size() const override { return host_->size(); }

  void all_reduce(const Tensor& x, ReduceOp op, const Stream& s) override {
    check("all_reduce", x);
    check_reducible(*this, "all_reduce", x);
    const auto n = static_cast<size_t>(size());
    if (n == 1 || x.numel() == 0) return;
    const bool narrow = x.dtype == DType::kBF16 || x.dtype == DType::kF16;
    if (op == ReduceOp::kSum && (n == 2 || !narrow)) {
      finish("all_reduce", hub_->api.all_reduce(comm_, x, op, s));
      return;
    }
    const int64_t each = (x.numel() + size() - 1) / size();
    std::vector<int64_t> parts(n);
    for (size_t r = 0; r < n; ++r)
      parts[r] = std::clamp<int64_t>(x.numel() - each * static_cast<int64_t>(r), 0, each);
    Tensor own = x;
    own.data = at_elem(x, sum(std::span(parts).first(static_cast<size_t>(rank()))));
    own.shape = {parts[static_cast<size_t>(rank())]};
    reduce_parts("all_reduce", op, x, own, parts, s);
    gather("all_reduce", own, x, parts, s);
  }
  void all_gather(const Tensor& in, const Tensor& out, std::span<const int64_t> counts,
                  const Stream& s) override {
    check("all_gather", in);
    check("all_gather", out);
    check_parts(*this, "all_gather", in, out, counts);
    gather("all_gather", in, out, counts, s);
  }
  void reduce_scatter(const Tensor& in, const Tensor& out, std::span<const int64_t> counts,
                      const Stream& s) override {
    check("reduce_scatter", in);
    check("reduce_scatter", out);
    check_parts(*this, "reduce_scatter", out, in, counts);
    check_reducible(*this, "reduce_scatter", in);
    if (size() == 1) return memory_.copy(out.data, in.data, in.bytes(), s);
    const bool narrow = in.dtype == DType::kBF16 || in.dtype == DType::kF16;
    if (even(counts) && (size() == 2 || !narrow)) {
      if (out.numel() == 0) return;
      finish("reduce_scatter",
             hub_->api.reduce_scatter(comm_, in.data, out.data, counts[0], in.dtype, s));
      return;
    }
    reduce_parts("reduce_scatter", ReduceOp::kSum, in, out, counts, s);
  }
  void broadcast(const Tensor& x, int root, const Stream& s) override {
    check("broadcast", x);
    check_peer(*this, "broadcast", root);
    if (size() == 1 || x.numel() == 0) return;
    finish("broadcast", hub_->api.broadcast(comm_, x, root, s));
  }
  void all_to_all(const Tensor& in, std::span<const int64_t> send_counts, const Tensor& out,
                  std::span<const int64_t> recv_counts, const Stream& s) override {
    check("all_to_all", in);
    check("all_to_all", out);
    check_counts(*this, "all_to_all", in, send_counts);
    check_counts(*this, "all_to_all", out, recv_counts);
    R1_CHECK(in.dtype == out.dtype, "all_to_all on {}: {} to {}", name(), dtype_name(in.dtype),
             dtype_name(out.dtype));
    const auto own = static_cast<size_t>(rank());
    R1_CHECK(send_counts[own] == recv_counts[own],
             "all_to_all on {}: rank {} sends itself {} elements and expects {}", name(), rank(),
             send_counts[own], recv_counts[own]);
    const int64_t elem = dtype_bytes(in.dtype);
    memory_.copy(at_elem(out, sum(recv_counts.first(own))),
                 at_elem(in, sum(send_counts.first(own))),
                 static_cast<size_t>(send_counts[own] * elem), s);
    if (size() == 1) return;
    exchange(
        "all_to_all",
        [&](size_t r) {
          return std::pair(at_elem(in, sum(send_counts.first(r))), send_counts[r] * elem);
        },
        [&](size_t r) {
          return std::pair(at_elem(out, sum(recv_counts.first(r))), recv_counts[r] * elem);
        },
        s);
  }

  void send(const Tensor& x, int peer, const Stream& s) override {
    if (peer == rank()) {
      check("send", x);
      return own_queue_.send(x.data, x.bytes(), s);
    }
    const Transfer t{Transfer::Kind::kSend, x, peer};
    start({&t, 1}, s)->wait();
  }
  void recv(const Tensor& x, int peer, const Stream& s) override {
    if (peer == rank()) {
      check("recv", x);
      const uint64_t ticket = own_queue_.post_recv(x.data, x.bytes(), s);
      if (!own_queue_.done(ticket)) own_queue_.cancel(ticket);
      return own_queue_.wait(ticket, "recv");
    }
    const Transfer t{Transfer::Kind::kRecv, x, peer};
    start({&t, 1}, s)->wait();
  }
  int64_t expect_messages(std::span<const ExpectedMessage> from) override {
    check_open("expect_messages");
    if (size() == 1) return 0;
    const auto n = static_cast<size_t>(size());
    std::vector<char> mine(n);  // by sender
    for (const ExpectedMessage& e : from) {
      check_peer(*this, "expect_messages", e.peer);
      mine[static_cast<size_t>(e.peer)] = 1;
    }
    const std::vector<char> all = gather_all<char>(*host_, mine);  // [receiver][sender]
    connect_pairs([&](size_t a, size_t b) { return all[b * n + a] != 0; });
    return 0;  // what NCCL allocates it does not say; see parallel/spec/communicator_memory.h
  }
  std::unique_ptr<Pending> start(std::span<const Transfer> transfers, const Stream& s) override {
    for (const Transfer& t : transfers) {
      check("start", t.tensor);
      check_peer(*this, "start", t.peer);
    }
    auto pending = std::make_unique<NcclPending>(*this, s);
    ++pending_;
    std::vector<Channel*> used;
    memory_.record(begin_, s);
    NcclApi& api = hub_->api;
    NcclStatus worst;
    bool open = false;
    for (const Transfer& t : transfers) {
      const bool is_send = t.kind == Transfer::Kind::kSend;
      if (t.peer == rank()) {
        if (is_send)
          own_queue_.send(t.tensor.data, t.tensor.bytes(), s);
        else
          pending->own_receives.push_back(own_queue_.post_recv(t.tensor.data, t.tensor.bytes(), s));
        continue;
      }
      if (t.tensor.numel() == 0) continue;  // nothing travels, on either side
      if (!open) api.group_begin();
      open = true;
      Channel* c = channels_.empty() ? nullptr : &channel(is_send, t.peer);
      if (c != nullptr && c->comm == nullptr) c = nullptr;
      if (c != nullptr && std::find(used.begin(), used.end(), c) == used.end()) {
        memory_.wait(c->stream, begin_);
        used.push_back(c);
      }
      const NcclApi::Comm comm = c != nullptr ? c->comm : comm_;
      const Stream& stream = c != nullptr ? c->stream : s;
      // In a pair's communicator the sender is rank 0.
      const int peer = c == nullptr ? t.peer : is_send ? 1 : 0;
      const auto bytes = static_cast<int64_t>(t.tensor.bytes());
      note(worst, is_send ? api.send(comm, t.tensor.data, bytes, peer, stream)
                          : api.recv(comm, t.tensor.data, bytes, peer, stream));
    }
    if (open) {
      note(worst, api.group_end());
      if (worst.state == State::kFailed) fail("start", worst.text);
      if (used.empty()) settle("start", comm_);
      for (Channel* c : used) settle("start", c->comm);
    }
    for (Channel* c : used) {
      pending->events.push_back(take_event());
      memory_.record(pending->events.back(), c->stream);
    }
    return pending;
  }
  // Every rank sends every other its part and sums what comes, in rank order, beside the stream's
  // own work. Half the bytes of an all-reduce.
  std::unique_ptr<Pending> start_reduce_scatter(std::span<const ShardedTensor> xs, SumOrder order,
                                                const Stream& s) override {
    if (size() == 1 || (order == SumOrder::kTree && size() > 2))
      return Communicator::start_reduce_scatter(xs, order, s);
    check_open("start_reduce_scatter");
    check_sharded(*this, "start_reduce_scatter", xs, memory_.kind());
    const auto own = static_cast<size_t>(rank()), n = static_cast<size_t>(size());
    std::vector<int64_t> place;  // of each tensor's received parts, `n` slots of equal size
    int64_t total = 0;
    for (const ShardedTensor& x : xs) {
      place.push_back(total);
      total += slot_bytes(x.parts[own]) * size();
    }
    char* received = side_scratch(static_cast<size_t>(total));
    const auto slot = [&](size_t i, size_t from) {
      return received + place[i] + slot_bytes(xs[i].parts[own]) * static_cast<int64_t>(from);
    };
    return beside(s, [&] {
      exchange_parts(
          "start_reduce_scatter", xs, [](const ShardedTensor& x, size_t to) { return x.parts[to]; },
          [&](size_t i, size_t from) {
            Tensor t = xs[i].parts[own];
            t.data = slot(i, from);
            return t;
          });
      for (size_t i = 0; i < xs.size(); ++i) {
        const Tensor& mine = xs[i].parts[own];
        if (mine.numel() == 0) continue;
        std::vector<const void*> sources;
        for (size_t r = 0; r < n; ++r) sources.push_back(r == own ? mine.data : slot(i, r));
        memory_.reduce(mine.dtype, ReduceOp::kSum, sources, mine.data, mine.numel(), side_);
      }
    });
  }
  std::unique_ptr<Pending> start_all_gather(std::span<const ShardedTensor> xs,
                                            const Stream& s) override {
    if (size() == 1) return Communicator::start_all_gather(xs, s);
    check_open("start_all_gather");
    check_sharded(*this, "start_all_gather", xs, memory_.kind());
    const auto own = static_cast<size_t>(rank());
    return beside(s, [&] {
      exchange_parts(
          "start_all_gather", xs, [&](const ShardedTensor& x, size_t) { return x.parts[own]; },
          [&](size_t i, size_t from) { return xs[i].parts[from]; });
    });
  }
  void barrier() override {
    check_open("barrier");
    host_->barrier();
  }
  std::unique_ptr<Communicator> split(int color, int key, std::string name) override {
    check_open("split");
    NcclOptions options = options_;
    options.name = name;
    return make_nccl(host_->split(color, key, std::move(name)), hub_, options);
  }
  void close() override {
    if (closed_) return;
    check_open("close");
    R1_CHECK(pending_ == 0, "close() of {} with {} started transfers not waited for", name(),
             pending_);
    host_->barrier();
    closed_ = true;
    // A blocking communicator's finalize waits for its work; by the barrier nobody's work waits for
    // a rank to come.
    for (auto c = mine_.rbegin(); c != mine_.rend(); ++c) {  // children before their parents
      if (const NcclStatus st = hub_->api.finalize(*c); st.state == State::kFailed)
        fail("close", st.text);
      settle("close", *c);
    }
    for (auto c = mine_.rbegin(); c != mine_.rend(); ++c) {
      std::erase(hub_->comms, *c);
      hub_->api.destroy(*c);
    }
    for (Channel& c : channels_)
      if (c.comm != nullptr) memory_.destroy_stream(c.stream);
    if (size() > 1) memory_.destroy_stream(side_);
    for (void* e : events_) memory_.destroy_event(e);
    memory_.destroy_event(begin_);
    for (void* p : scratch_) memory_.release(p);
    host_->close();
  }

 private:
  friend class NcclPending;

  struct Channel {
    NcclApi::Comm comm = nullptr;
    Stream stream;
  };

  [[nodiscard]] Channel& channel(bool is_send, int peer) {
    return channels_[static_cast<size_t>(peer) * 2 + (is_send ? 0 : 1)];
  }

  void check_open(const char* operation) const {
    R1_CHECK(!closed_, "{} on {} after close()", operation, name());
    if (!hub_->broken.empty())
      throw CommError("{} on {}: communication ended earlier on this rank: {}", operation, name(),
                      hub_->broken);
  }
  void check(const char* operation, const Tensor& x) const {
    check_open(operation);
    check_tensor(*this, operation, x, memory_.kind());
  }
  [[nodiscard]] static bool even(std::span<const int64_t> counts) {
    return std::all_of(counts.begin(), counts.end(), [&](int64_t c) { return c == counts[0]; });
  }
  static void note(NcclStatus& worst, NcclStatus s) {
    if (s.state == State::kFailed || worst.state == State::kDone) worst = std::move(s);
  }

  [[noreturn]] void fail(const char* operation, const std::string& text) {
    hub_->abort(fmt::format("{} on {}: {}", operation, name(), text));
    throw CommError("{} on {}: NCCL: {}", operation, name(), text);
  }
  // Until the communicator takes the next call: what was called is enqueued then.
  void settle(const char* operation, NcclApi::Comm comm) {
    const auto begin = Clock::now();
    auto next = begin + kStopInterval;
    for (;;) {
      const NcclStatus s = hub_->api.status(comm);
      if (s.state == State::kDone) return;
      if (s.state == State::kFailed) fail(operation, s.text);
      sched_yield();
      const auto now = Clock::now();
      if (now < next) continue;
      next = now + kStopInterval;
      check_stop(operation, now - begin);
    }
  }
  void check_stop(const char* operation, std::chrono::nanoseconds waited) {
    if (!hub_->stop) return;
    try {
      hub_->stop(*this, operation, waited);
    } catch (const std::exception& e) {
      hub_->abort(e.what());
      throw;
    }
  }
  void finish(const char* operation, const NcclStatus& s) {
    if (s.state == State::kFailed) fail(operation, s.text);
    if (s.state == State::kUnderWay) settle(operation, comm_);
  }

  // Messages of a collective, all in one group call on the group's communicator.
  template <class Out, class In>
  void exchange(const char* operation, Out out, In in, const Stream& s) {
    NcclStatus worst;
    hub_->api.group_begin();
    for (int k = 1; k < size(); ++k) {
      const int to = (rank() + k) % size(), from = (rank() - k + size()) % size();
      if (const auto [data, bytes] = out(static_cast<size_t>(to)); bytes != 0)
        note(worst, hub_->api.send(comm_, data, bytes, to, s));
      if (const auto [data, bytes] = in(static_cast<size_t>(from)); bytes != 0)
        note(worst, hub_->api.recv(comm_, data, bytes, from, s));
    }
    note(worst, hub_->api.group_end());
    if (worst.state == State::kFailed) fail(operation, worst.text);
    settle(operation, comm_);
  }
  void gather(const char* operation, const Tensor& in, const Tensor& out,
              std::span<const int64_t> counts, const Stream& s) {
    const auto own = static_cast<size_t>(rank());
    char* place = at_elem(out, sum(counts.first(own)));
    if (size() == 1) return place == in.data ? void() : memory_.copy(place, in.data, in.bytes(), s);
    if (even(counts)) {
      if (counts[0] != 0)
        finish(operation, hub_->api.all_gather(comm_, in.data, out.data, counts[0], out.dtype, s));
      return;
    }
    if (place != in.data) memory_.copy(place, in.data, in.bytes(), s);
    const int64_t elem = dtype_bytes(out.dtype);
    exchange(
        operation,
        [&](size_t) { return std::pair(static_cast<char*>(in.data), counts[own] * elem); },
        [&](size_t r) { return std::pair(at_elem(out, sum(counts.first(r))), counts[r] * elem); },
        s);
  }
  // Everybody sends everybody its part, which sums them in rank order.
  void reduce_parts(const char* operation, ReduceOp op, const Tensor& in, const Tensor& out,
                    std::span<const int64_t> parts, const Stream& s) {
    const auto own = static_cast<size_t>(rank()), n = static_cast<size_t>(size());
    const int64_t elem = dtype_bytes(in.dtype), own_bytes = parts[own] * elem,
                  slot = (own_bytes + 255) / 256 * 256;
    char* received = scratch(static_cast<size_t>(slot) * n);
    exchange(
        operation,
        [&](size_t r) { return std::pair(at_elem(in, sum(parts.first(r))), parts[r] * elem); },
        [&](size_t r) { return std::pair(received + slot * static_cast<int64_t>(r), own_bytes); },
        s);
    std::vector<const void*> sources;
    for (size_t r = 0; r < n; ++r)
      sources.push_back(r == own ? at_elem(in, sum(parts.first(own)))
                                 : received + slot * static_cast<int64_t>(r));
    if (own_bytes != 0) memory_.reduce(in.dtype, op, sources, out.data, parts[own], s);
  }
  [[nodiscard]] static int64_t slot_bytes(const Tensor& part) {
    return (static_cast<int64_t>(part.bytes()) + 255) / 256 * 256;
  }
  // Sends and receives of parts on the side stream, in one group call.
  template <class Out, class In>
  void exchange_parts(const char* operation, std::span<const ShardedTensor> xs, Out out, In in) {
    NcclStatus worst;
    hub_->api.group_begin();
    for (size_t i = 0; i < xs.size(); ++i)
      for (int k = 1; k < size(); ++k) {
        const int to = (rank() + k) % size(), from = (rank() - k + size()) % size();
        if (const Tensor t = out(xs[i], static_cast<size_t>(to)); t.numel() != 0)
          note(worst, hub_->api.send(comm_, t.data, static_cast<int64_t>(t.bytes()), to, side_));
        if (const Tensor t = in(i, static_cast<size_t>(from)); t.numel() != 0)
          note(worst, hub_->api.recv(comm_, t.data, static_cast<int64_t>(t.bytes()), from, side_));
      }
    note(worst, hub_->api.group_end());
    if (worst.state == State::kFailed) fail(operation, worst.text);
    settle(operation, comm_);
  }
  // Runs `work` on the side stream, after what is on `s` now; waiting orders `s` after it.
  template <class Work>
  std::unique_ptr<Pending> beside(const Stream& s, Work work) {
    auto pending = std::make_unique<NcclPending>(*this, s);
    ++pending_;
    memory_.record(begin_, s);
    memory_.wait(side_, begin_);
    work();
    pending->events.push_back(take_event());
    memory_.record(pending->events.back(), side_);
    return pending;
  }
  char* side_scratch(size_t bytes) {
    if (bytes > side_scratch_bytes_) {
      scratch_.insert(scratch_.begin(), static_cast<char*>(memory_.allocate(bytes)));
      side_scratch_ = scratch_.front();
      side_scratch_bytes_ = bytes;
    }
    return side_scratch_;
  }
  char* scratch(size_t bytes) {
    if (bytes > scratch_bytes_ || scratch_.empty()) {
      // An outgrown block stays: work on a stream may still use it.
      scratch_.push_back(static_cast<char*>(memory_.allocate(std::max<size_t>(bytes, 256))));
      scratch_bytes_ = bytes;
    }
    return scratch_.back();
  }
  void* take_event() {
    if (events_.empty()) return memory_.create_event(nullptr);
    void* e = events_.back();
    events_.pop_back();
    return e;
  }

  void add(NcclApi::Comm c) {
    hub_->comms.push_back(c);
    mine_.push_back(c);
  }
  // Made without blocking, so that a rank that does not come ends the wait; used by calls that take
  // no thread each.
  [[nodiscard]] NcclApi::Comm make_comm(const NcclApi::Id& id, int ranks, int rank) {
    const NcclApi::Comm parent = hub_->api.init(id, ranks, rank, memory_.device());
    add(parent);
    settle("start", parent);
    if (options_.non_blocking_calls) return parent;
    NcclApi::Comm comm = nullptr;
    if (const NcclStatus s = hub_->api.split(parent, rank, &comm); s.state == State::kFailed)
      fail("start", s.text);
    settle("start", parent);
    R1_CHECK(comm != nullptr, "NCCL split {} and gave nothing", name());
    add(comm);
    settle("start", comm);
    return comm;
  }
  void connect() {
    NcclApi::Id id{};
    if (rank() == 0) id = hub_->api.unique_id();
    comm_ = make_comm(gather_all<NcclApi::Id>(*host_, {&id, 1})[0], size(), rank());
    side_ = memory_.create_stream();
    if (options_.messages) connect_pairs([](size_t, size_t) { return true; });
  }
  // A communicator of its own for messages from a to b, for all pairs that are wanted(a, b) and have none. The same answers on
  // all ranks.
  template <class Wanted>
  void connect_pairs(const Wanted& wanted) {
    const auto n = static_cast<size_t>(size()), own = static_cast<size_t>(rank());
    channels_.resize(2 * n);
    // This rank's, in the order that all ranks take; both ends of a pair have a channel or neither has.
    struct Pair {
      size_t from, to;
      Channel* channel;
    };
    std::vector<Pair> pairs;
    std::vector<NcclApi::Id> mine(n);  // by receiver
    for (size_t a = 0; a < n; ++a)
      for (size_t b = 0; b < n; ++b) {
        if (a == b || (a != own && b != own) || !wanted(a, b)) continue;
        Channel& c = channel(a == own, static_cast<int>(a == own ? b : a));
        if (c.comm != nullptr) continue;
        pairs.push_back({a, b, &c});
        if (a == own) mine[b] = hub_->api.unique_id();
      }
    const std::vector<NcclApi::Id> all = gather_all<NcclApi::Id>(*host_, mine);  // [sender][receiver]
    for (const Pair& p : pairs) {
      p.channel->comm = make_comm(all[p.from * n + p.to], 2, p.from == own ? 0 : 1);
      p.channel->stream = memory_.create_stream();
    }
    // The first message of a pair makes the connection, for which both must come: here, once and
    // for all.
    char* word = scratch(256 * channels_.size());
    for (const Pair& p : pairs) {
      char* at = word + 256 * (p.channel - channels_.data());
      const NcclStatus s = p.from == own ? hub_->api.send(p.channel->comm, at, 4, 1, p.channel->stream)
                                         : hub_->api.recv(p.channel->comm, at, 4, 0, p.channel->stream);
      if (s.state == State::kFailed) fail("start", s.text);
      settle("start", p.channel->comm);
    }
    for (const Pair& p : pairs) memory_.synchronize(p.channel->stream);
  }

  std::unique_ptr<Communicator> host_;
  std::shared_ptr<NcclHub> hub_;
  IpcMemory& memory_;
  NcclOptions options_;
  SelfQueue own_queue_;
  NcclApi::Comm comm_ = nullptr;
  std::vector<NcclApi::Comm> mine_;  // in the order of their making
  std::vector<Channel> channels_;    // by peer: to it, from it
  void* begin_ = nullptr;
  std::vector<void*> events_;  // for reuse
  std::vector<char*> scratch_;
  size_t scratch_bytes_ = 0;
  Stream side_;  // of started collectives
  char* side_scratch_ = nullptr;
  size_t side_scratch_bytes_ = 0;
  int pending_ = 0;
  bool closed_ = false;
};

NcclPending::~NcclPending() {
  --group_.pending_;
  for (uint64_t ticket : own_receives) group_.own_queue_.cancel(ticket);
  for (void* e : events) group_.events_.push_back(e);
}

void NcclPending::wait() {
  if (done_) return;
  group_.check_open("wait");
  for (uint64_t ticket : own_receives) group_.own_queue_.wait(ticket, "wait");
  own_receives.clear();
  for (void* e : events) group_.memory_.wait(stream_, e);
  done_ = true;
}

}  // namespace

std::shared_ptr<NcclHub> make_nccl_hub(std::shared_ptr<IpcMemory> memory, StopCheck stop) {
  return std::make_shared<NcclHub>(std::move(memory), std::move(stop));
}

void check_nccl(NcclHub& hub, const Communicator& group, const char* operation,
                std::chrono::nanoseconds waited) {
  if (!hub.broken.empty())
    throw CommError("{}: communication ended earlier on this rank: {}", operation, hub.broken);
  for (NcclApi::Comm c : hub.comms)
    if (const NcclStatus s = hub.api.status(c); s.state == State::kFailed) {
      hub.abort(s.text);
      throw CommError("{}: NCCL: {}", operation, s.text);
    }
  if (!hub.stop) return;
  try {
    hub.stop(group, operation, waited);
  } catch (const std::exception& e) {
    hub.abort(e.what());
    throw;
  }
}

std::string nccl_version(NcclHub& hub) { return hub.api.version(); }

std::unique_ptr<Communicator> make_nccl(std::unique_ptr<Communicator> host,
                                        std::shared_ptr<NcclHub> hub, const NcclOptions& options) {
  return std::make_unique<NcclGroup>(std::move(host), std::move(hub), options);
}

}  // namespace r1::comm
