#include "comm/composed.h"

#include <sched.h>

#include <algorithm>
#include <exception>
#include <new>
#include <numeric>

#include "comm/arguments.h"
#include "comm/reduce.h"
#include "runtime/device/cpu/thread_pool.h"

namespace r1::comm {
namespace {

using Clock = std::chrono::steady_clock;

// How often a waiting loop asks whether the job must stop.
constexpr auto kStopInterval = std::chrono::milliseconds(2);
// Up to here an all-reduce gathers everything and sums locally: one round instead of two.
constexpr size_t kSmallReduceBytes = 4096;
// Bytes of the whole tensor handled at once by a reduction: bounds the scratch, keeps what was
// received in cache.
constexpr int64_t kSegmentBytes = int64_t{8} << 20;
// Up to this size every rank writes to every other at once; beyond, small exchanges take log2(n)
// rounds.
constexpr int kDirectRanks = 16;
constexpr int64_t kRoundsBytes = 64 << 10;
// From here a broadcast scatters and gathers, 2 bytes moved per byte instead of log2(n).
constexpr size_t kTreeBytes = 64 << 10;

int64_t sum(std::span<const int64_t> v) { return std::accumulate(v.begin(), v.end(), int64_t{0}); }

// Splits n elements into parts whose borders lie on 64-byte lines where that is possible.
void even_parts(int64_t n, int ranks, int64_t elem_bytes, std::vector<int64_t>& parts) {
  const int64_t line = 64 / elem_bytes;
  const int64_t each = ((n + ranks - 1) / ranks + line - 1) / line * line;
  parts.clear();
  for (int r = 0; r < ranks; ++r) {
    parts.push_back(std::min(each, n));
    n -= parts.back();
  }
}

}  // namespace

// A batch for one operation. When the operation does not finish (an exception passes), the messages
// stay under way into memory that is about to go: the wires are marked broken and never used again.
class ComposedCommunicator::Lease {
 public:
  Lease(ComposedCommunicator& c, const char* operation, const Stream& s)
      : comm_(c), operation_(operation), stream_(s) {
    if (c.idle_.empty()) {
      batch_ = c.make_batch();
    } else {
      batch_ = std::move(c.idle_.back());
      c.idle_.pop_back();
    }
    batch_->begin(s);
  }
  ~Lease() {
    if (finished_)
      comm_.idle_.push_back(std::move(batch_));
    else if (comm_.wires().broken.empty())
      comm_.wires().broken = fmt::format("{} on {} was given up", operation_, comm_.name());
  }
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;
  Batch* operator->() { return batch_.get(); }
  void finish() {
    finished_ = false;
    comm_.poll(operation_, [this] { return batch_->done(); });
    batch_->end(stream_);
    finished_ = true;
  }

 private:
  ComposedCommunicator& comm_;
  const char* operation_;
  Stream stream_;
  std::unique_ptr<Batch> batch_;
  bool finished_ = false;
};

class ComposedPending final : public Pending {
 public:
  ComposedPending(ComposedCommunicator& c, std::span<const Transfer> transfers, const Stream& s)
      : comm_(c), lease_(c, "start", s) {
    ++comm_.pending_;
    for (const Transfer& t : transfers) {
      const bool is_send = t.kind == Transfer::Kind::kSend;
      if (t.peer == comm_.rank_) {
        if (is_send)
          comm_.own_queue_.send(t.tensor.data, t.tensor.bytes(), s);
        else
          own_receives_.push_back(comm_.own_queue_.post_recv(t.tensor.data, t.tensor.bytes(), s));
      } else if (is_send) {
        lease_->send(Channel::kMessages, t.tensor.data, t.tensor.bytes(), t.peer);
      } else {
        lease_->recv(Channel::kMessages, t.tensor.data, t.tensor.bytes(), t.peer);
      }
    }
    lease_->go();
  }
  ~ComposedPending() override {
    --comm_.pending_;
    for (uint64_t ticket : own_receives_) comm_.own_queue_.cancel(ticket);
  }
  void wait() override {
    if (done_) return;
    comm_.check_open("wait");
    for (uint64_t ticket : own_receives_) comm_.own_queue_.wait(ticket, "wait");
    lease_.finish();
    done_ = true;
  }

 private:
  ComposedCommunicator& comm_;
  ComposedCommunicator::Lease lease_;
  std::vector<uint64_t> own_receives_;
  bool done_ = false;
};

// A sum or gather of sharded tensors under way: all messages are posted at once, the sums are formed when it is waited for.
class ShardedPending final : public Pending {
 public:
  ShardedPending(ComposedCommunicator& c, const char* operation) : comm_(c), lease_(c, operation, {}) { ++comm_.pending_; }
  ~ShardedPending() override {
    --comm_.pending_;
    if (done_ && received_.capacity() != 0) comm_.spare_.push_back(std::move(received_));
  }
  void reduce(std::span<const ShardedTensor> xs, SumOrder order) {
    order_ = order;
    const int n = comm_.size(), own = comm_.rank_;
    size_t bytes = 0;
    for (const ShardedTensor& x : xs)
      bytes += x.parts[static_cast<size_t>(own)].bytes() * static_cast<size_t>(n - 1);
    if (!comm_.spare_.empty()) {
      received_ = std::move(comm_.spare_.back());
      comm_.spare_.pop_back();
    }
    received_.resize(bytes);
    char* to = received_.data();
    for (const ShardedTensor& x : xs) {  // receives first, so that what arrives early finds its place
      const Tensor& mine = x.parts[static_cast<size_t>(own)];
      if (mine.numel() == 0) continue;
      Sum sum{.own = mine, .received = to};
      for (int k = 1; k < n; ++k, to += mine.bytes())
        lease_->recv(Channel::kCollectives, to, mine.bytes(), (own - k + n) % n);
      sums_.push_back(sum);
    }
    for (const ShardedTensor& x : xs)
      for (int k = 1; k < n; ++k) {
        const Tensor& part = x.parts[static_cast<size_t>((own + k) % n)];
        if (part.numel() != 0) lease_->send(Channel::kCollectives, part.data, part.bytes(), (own + k) % n);
      }
    lease_->go();
  }
  void gather(std::span<const ShardedTensor> xs) {
    const int n = comm_.size(), own = comm_.rank_;
    for (const ShardedTensor& x : xs)
      for (int k = 1; k < n; ++k) {
        const int from = (own - k + n) % n;
        const Tensor& part = x.parts[static_cast<size_t>(from)];
        if (part.numel() != 0) lease_->recv(Channel::kCollectives, part.data, part.bytes(), from);
      }
    for (const ShardedTensor& x : xs) {
      const Tensor& mine = x.parts[static_cast<size_t>(own)];
      if (mine.numel() == 0) continue;
      for (int k = 1; k < n; ++k) lease_->send(Channel::kCollectives, mine.data, mine.bytes(), (own + k) % n);
    }
    lease_->go();
  }
  void wait() override {
    if (done_) return;
    comm_.check_open("wait");
    lease_.finish();
    const int n = comm_.size(), own = comm_.rank_;
    std::vector<const void*> sources(static_cast<size_t>(n));
    for (const Sum& sum : sums_) {
      sources[static_cast<size_t>(own)] = sum.own.data;
      for (int k = 1; k < n; ++k)
        sources[static_cast<size_t>((own - k + n) % n)] = sum.received + static_cast<size_t>(k - 1) * sum.own.bytes();
      // In tiles over the pool: a stage's gradients are summed here, every step.
      const int64_t elem = dtype_bytes(sum.own.dtype);
      parallel_ranges(sum.own.numel(), kSumTile, [&](int64_t begin, int64_t end) {
        std::vector<const void*> at(sources);
        for (const void*& p : at) p = static_cast<const char*>(p) + begin * elem;
        char* out = static_cast<char*>(sum.own.data) + begin * elem;
        if (order_ == SumOrder::kTree) sum_in_tree(sum.own.dtype, at, out, end - begin);
        else reduce_in_order(sum.own.dtype, ReduceOp::kSum, at, out, end - begin);
      });
    }
    done_ = true;
  }

 private:
  static constexpr int64_t kSumTile = 1 << 16;
  struct Sum {
    Tensor own;
    const char* received = nullptr;  ///< own.bytes() from rank - 1, rank - 2, ...
  };
  ComposedCommunicator& comm_;
  ComposedCommunicator::Lease lease_;
  std::vector<char> received_;
  std::vector<Sum> sums_;
  SumOrder order_ = SumOrder::kRank;
  bool done_ = false;
};

ComposedCommunicator::ComposedCommunicator(std::string name, int rank, std::vector<int> world_ranks,
                                           std::shared_ptr<Wires> wires, Memory& memory)
    : Communicator(std::move(name)),
      memory_(memory),
      rank_(rank),
      world_ranks_(std::move(world_ranks)),
      wires_(std::move(wires)) {}

void ComposedCommunicator::check_open(const char* operation) const {
  R1_CHECK(!closed_, "{} on {} after close()", operation, name());
  if (!wires_->broken.empty())
    throw CommError("{} on {}: communication ended earlier on this rank: {}", operation, name(),
                    wires_->broken);
}

void ComposedCommunicator::check_message(const char* operation, const Tensor& x, int peer) const {
  check_open(operation);
  check_tensor(*this, operation, x, memory_.kind());
  check_peer(*this, operation, peer);
}

ComposedCommunicator::Wait ComposedCommunicator::begin_wait() const {
  const auto now = Clock::now();
  return {now, now + kStopInterval, !done_yields()};
}

void ComposedCommunicator::keep_waiting(Wait& wait, const char* operation) {
  // Others may need this core to send what is awaited here: ranks beyond the cores must yield.
  if (wait.yield) sched_yield();
  const auto now = Clock::now();
  if (now < wait.next_stop) return;
  wait.next_stop = now + kStopInterval;
  if (wires_->stop) wires_->stop(*this, operation, now - wait.begin);
}

char* ComposedCommunicator::scratch(size_t bytes) {
  if (bytes > scratch_bytes_) {
    if (memory_.kind() == DeviceKind::kCpu) scratch_.clear();
    scratch_bytes_ = 0;
    scratch_.emplace_back(static_cast<char*>(memory_.allocate(bytes)), Free{&memory_});
    scratch_bytes_ = bytes;
  }
  return scratch_.empty() ? nullptr : scratch_.back().get();
}

void ComposedCommunicator::all_reduce(const Tensor& x, ReduceOp op, const Stream& s) {
  check_open("all_reduce");
  check_tensor(*this, "all_reduce", x, memory_.kind());
  check_reducible(*this, "all_reduce", x);
  const int n = size();
  if (n == 1 || x.numel() == 0) return;
  if (x.bytes() <= kSmallReduceBytes) {
    char* all = scratch(x.bytes() * static_cast<size_t>(n));
    part_bytes_.assign(static_cast<size_t>(n), static_cast<int64_t>(x.bytes()));
    gather_bytes("all_reduce", static_cast<char*>(x.data), all, part_bytes_, s);
    sources_.clear();
    for (int r = 0; r < n; ++r) sources_.push_back(all + static_cast<size_t>(r) * x.bytes());
    memory_.reduce(x.dtype, op, sources_, x.data, x.numel(), s);
    return;
  }
  const int64_t elem = dtype_bytes(x.dtype), step = kSegmentBytes / elem;
  for (int64_t begin = 0; begin < x.numel(); begin += step) {
    char* segment = at_elem(x, begin);
    even_parts(std::min(step, x.numel() - begin), n, elem, parts_);
    part_bytes_.clear();
    for (int64_t p : parts_) part_bytes_.push_back(p * elem);
    char* own = segment + sum(std::span(part_bytes_).first(static_cast<size_t>(rank_)));
    reduce_parts("all_reduce", op, x.dtype, segment, own, parts_, s);
    gather_bytes("all_reduce", own, segment, part_bytes_, s);
  }
}

void ComposedCommunicator::all_gather(const Tensor& in, const Tensor& out,
                                      std::span<const int64_t> counts, const Stream& s) {
  check_open("all_gather");
  check_tensor(*this, "all_gather", in, memory_.kind());
  check_tensor(*this, "all_gather", out, memory_.kind());
  check_parts(*this, "all_gather", in, out, counts);
  part_bytes_.clear();
  for (int64_t c : counts) part_bytes_.push_back(c * dtype_bytes(out.dtype));
  gather_bytes("all_gather", static_cast<char*>(in.data), static_cast<char*>(out.data), part_bytes_,
               s);
}

void ComposedCommunicator::reduce_scatter(const Tensor& in, const Tensor& out,
                                          std::span<const int64_t> counts, const Stream& s) {
  check_open("reduce_scatter");
  check_tensor(*this, "reduce_scatter", in, memory_.kind());
  check_tensor(*this, "reduce_scatter", out, memory_.kind());
  check_parts(*this, "reduce_scatter", out, in, counts);
  check_reducible(*this, "reduce_scatter", in);
  reduce_parts("reduce_scatter", ReduceOp::kSum, in.dtype, static_cast<char*>(in.data),
               static_cast<char*>(out.data), counts, s);
}

void ComposedCommunicator::reduce_parts(const char* operation, ReduceOp op, DType dtype,
                                        const char* in, char* out, std::span<const int64_t> parts,
                                        const Stream& s) {
  const int n = size();
  const int64_t elem = dtype_bytes(dtype);
  const int64_t own = parts[static_cast<size_t>(rank_)];
  const int64_t largest = *std::max_element(parts.begin(), parts.end());
  // All ranks make the same number of steps; a short part is through before the last one. A segment
  // of all_reduce, whose parts are rounded up to whole lines, takes one step.
  const int64_t step = kSegmentBytes / elem / n + 64;
  for (int64_t begin = 0; begin < largest; begin += step) {
    const auto length = [&](int64_t part) { return std::clamp<int64_t>(part - begin, 0, step); };
    const auto own_bytes = static_cast<size_t>(length(own) * elem);
    char* received = scratch(own_bytes * static_cast<size_t>(n - 1));
    sources_.assign(static_cast<size_t>(n), nullptr);
    Lease batch(*this, operation, s);
    int slot = 0;
    for (int k = 1; k < n; ++k) {  // receives first, so that what arrives early finds its place
      const int from = (rank_ - k + n) % n;
      char* to = received + own_bytes * static_cast<size_t>(slot++);
      sources_[static_cast<size_t>(from)] = to;
      if (own_bytes != 0) batch->recv(Channel::kCollectives, to, own_bytes, from);
    }
    for (int k = 1; k < n; ++k) {
      const int to = (rank_ + k) % n;
      const int64_t count = length(parts[static_cast<size_t>(to)]);
      const int64_t at = sum(parts.first(static_cast<size_t>(to))) + begin;
      if (count != 0)
        batch->send(Channel::kCollectives, in + at * elem, static_cast<size_t>(count * elem), to);
    }
    batch.finish();
    if (own_bytes == 0) continue;
    sources_[static_cast<size_t>(rank_)] =
        in + (sum(parts.first(static_cast<size_t>(rank_))) + begin) * elem;
    memory_.reduce(dtype, op, sources_, out + begin * elem, length(own), s);
  }
}

void ComposedCommunicator::gather_bytes(const char* operation, const char* in, char* out,
                                        std::span<const int64_t> bytes, const Stream& s) {
  const int n = size();
  if (memory_.kind() == DeviceKind::kCpu && n > kDirectRanks && sum(bytes) <= kRoundsBytes)
    return gather_bytes_in_rounds(operation, in, out, bytes, s);
  const auto own_bytes = static_cast<size_t>(bytes[static_cast<size_t>(rank_)]);
  const auto place = [&](int r) { return out + sum(bytes.first(static_cast<size_t>(r))); };
  Lease batch(*this, operation, s);
  for (int k = 1; k < n; ++k) {
    const int from = (rank_ - k + n) % n;
    const auto length = static_cast<size_t>(bytes[static_cast<size_t>(from)]);
    if (length != 0) batch->recv(Channel::kCollectives, place(from), length, from);
  }
  if (own_bytes != 0)
    for (int k = 1; k < n; ++k) batch->send(Channel::kCollectives, in, own_bytes, (rank_ + k) % n);
  if (place(rank_) != in) memory_.copy(place(rank_), in, own_bytes, s);
  batch.finish();
}

// Bruck's all-gather (IEEE TPDS 8(11), 1997): after round k each rank holds the parts of the next
// 2^k ranks, own first.
void ComposedCommunicator::gather_bytes_in_rounds(const char* operation, const char* in, char* out,
                                                  std::span<const int64_t> bytes, const Stream& s) {
  const int n = size();
  held_.resize(static_cast<size_t>(sum(bytes)));  // parts of rank_, rank_ + 1, ...
  before_.assign(static_cast<size_t>(n) + 1, 0);  // bytes ahead of the i-th held part
  for (int i = 0; i < n; ++i)
    before_[static_cast<size_t>(i) + 1] =
        before_[static_cast<size_t>(i)] + bytes[static_cast<size_t>((rank_ + i) % n)];
  copy_bytes(held_.data(), in, static_cast<size_t>(before_[1]));
  for (int have = 1; have < n; have *= 2) {
    const int more = std::min(have, n - have);
    const int from = (rank_ + have) % n, to = (rank_ - have + n) % n;
    const auto incoming = static_cast<size_t>(before_[static_cast<size_t>(have + more)] -
                                              before_[static_cast<size_t>(have)]);
    const auto outgoing = static_cast<size_t>(before_[static_cast<size_t>(more)]);
    Lease batch(*this, operation, s);
    if (incoming != 0)
      batch->recv(Channel::kCollectives, held_.data() + before_[static_cast<size_t>(have)],
                  incoming, from);
    if (outgoing != 0) batch->send(Channel::kCollectives, held_.data(), outgoing, to);
    batch.finish();
  }
  for (int i = 0; i < n; ++i) {
    const auto r = static_cast<size_t>((rank_ + i) % n);
    copy_bytes(out + sum(bytes.first(r)), held_.data() + before_[static_cast<size_t>(i)],
               static_cast<size_t>(bytes[r]));
  }
}

void ComposedCommunicator::broadcast(const Tensor& x, int root, const Stream& s) {
  check_open("broadcast");
  check_tensor(*this, "broadcast", x, memory_.kind());
  check_peer(*this, "broadcast", root);
  const int n = size();
  char* data = static_cast<char*>(x.data);
  if (n == 1 || x.numel() == 0) return;
  if (x.bytes() < kTreeBytes || n <= 2) return broadcast_tree(data, x.bytes(), root, s);
  even_parts(static_cast<int64_t>(x.bytes()), n, 1, part_bytes_);
  const auto place = [&](int r) {
    return data + sum(std::span(part_bytes_).first(static_cast<size_t>(r)));
  };
  const auto length = [&](int r) {
    return static_cast<size_t>(part_bytes_[static_cast<size_t>(r)]);
  };
  Lease scatter(*this, "broadcast", s);
  if (rank_ == root) {
    for (int r = 0; r < n; ++r)
      if (r != root && length(r) != 0) scatter->send(Channel::kCollectives, place(r), length(r), r);
  } else if (length(rank_) != 0) {
    scatter->recv(Channel::kCollectives, place(rank_), length(rank_), root);
  }
  scatter.finish();
  gather_bytes("broadcast", place(rank_), data, part_bytes_, s);
}

// Binomial tree: in the round of distance d, the ranks below d (counted from the root) that have
// the data send it on.
void ComposedCommunicator::broadcast_tree(char* data, size_t bytes, int root, const Stream& s) {
  const int n = size(), relative = (rank_ - root + n) % n;
  int distance = 1;
  while (distance <= relative) distance *= 2;
  if (relative != 0) {
    Lease batch(*this, "broadcast", s);
    batch->recv(Channel::kCollectives, data, bytes, (relative - distance / 2 + root) % n);
    batch.finish();
  }
  Lease batch(*this, "broadcast", s);
  for (; relative + distance < n; distance *= 2)
    batch->send(Channel::kCollectives, data, bytes, (relative + distance + root) % n);
  batch.finish();
}

void ComposedCommunicator::all_to_all(const Tensor& in, std::span<const int64_t> send_counts,
                                      const Tensor& out, std::span<const int64_t> recv_counts,
                                      const Stream& s) {
  check_open("all_to_all");
  check_tensor(*this, "all_to_all", in, memory_.kind());
  check_tensor(*this, "all_to_all", out, memory_.kind());
  check_counts(*this, "all_to_all", in, send_counts);
  check_counts(*this, "all_to_all", out, recv_counts);
  R1_CHECK(in.dtype == out.dtype, "all_to_all on {}: {} to {}", name(), dtype_name(in.dtype),
           dtype_name(out.dtype));
  const int n = size();
  const int64_t elem = dtype_bytes(in.dtype);
  const auto own = static_cast<size_t>(rank_);
  R1_CHECK(send_counts[own] == recv_counts[own],
           "all_to_all on {}: rank {} sends itself {} elements and expects {}", name(), rank_,
           send_counts[own], recv_counts[own]);
  Lease batch(*this, "all_to_all", s);
  for (int k = 1; k < n; ++k) {
    const auto from = static_cast<size_t>((rank_ - k + n) % n);
    if (recv_counts[from] == 0) continue;
    batch->recv(Channel::kCollectives, at_elem(out, sum(recv_counts.first(from))),
                static_cast<size_t>(recv_counts[from] * elem), static_cast<int>(from));
  }
  for (int k = 1; k < n; ++k) {
    const auto to = static_cast<size_t>((rank_ + k) % n);
    if (send_counts[to] == 0) continue;
    batch->send(Channel::kCollectives, at_elem(in, sum(send_counts.first(to))),
                static_cast<size_t>(send_counts[to] * elem), static_cast<int>(to));
  }
  memory_.copy(at_elem(out, sum(recv_counts.first(own))), at_elem(in, sum(send_counts.first(own))),
               static_cast<size_t>(send_counts[own] * elem), s);
  batch.finish();
}

void ComposedCommunicator::send(const Tensor& x, int peer, const Stream& s) {
  check_message("send", x, peer);
  if (peer == rank_) return own_queue_.send(x.data, x.bytes(), s);
  Lease batch(*this, "send", s);
  batch->send(Channel::kMessages, x.data, x.bytes(), peer);
  batch.finish();
}

void ComposedCommunicator::recv(const Tensor& x, int peer, const Stream& s) {
  check_message("recv", x, peer);
  if (peer == rank_) {
    const uint64_t ticket = own_queue_.post_recv(x.data, x.bytes(), s);
    if (!own_queue_.done(ticket)) own_queue_.cancel(ticket);
    return own_queue_.wait(ticket, "recv");
  }
  Lease batch(*this, "recv", s);
  batch->recv(Channel::kMessages, x.data, x.bytes(), peer);
  batch.finish();
}

std::unique_ptr<Pending> ComposedCommunicator::start(std::span<const Transfer> transfers,
                                                     const Stream& s) {
  for (const Transfer& t : transfers) check_message("start", t.tensor, t.peer);
  return std::make_unique<ComposedPending>(*this, transfers, s);
}

std::unique_ptr<Pending> ComposedCommunicator::start_reduce_scatter(std::span<const ShardedTensor> xs, SumOrder order,
                                                                    const Stream& s) {
  // On a device the blocking kernels do it; sums in a tree are formed on the host.
  if (memory_.kind() != DeviceKind::kCpu) return Communicator::start_reduce_scatter(xs, order, s);
  check_open("start_reduce_scatter");
  check_sharded(*this, "start_reduce_scatter", xs, DeviceKind::kCpu);
  auto pending = std::make_unique<ShardedPending>(*this, "start_reduce_scatter");
  pending->reduce(xs, order);
  return pending;
}

std::unique_ptr<Pending> ComposedCommunicator::start_all_gather(std::span<const ShardedTensor> xs, const Stream& s) {
  if (memory_.kind() != DeviceKind::kCpu) return Communicator::start_all_gather(xs, s);
  check_open("start_all_gather");
  check_sharded(*this, "start_all_gather", xs, DeviceKind::kCpu);
  auto pending = std::make_unique<ShardedPending>(*this, "start_all_gather");
  pending->gather(xs);
  return pending;
}

void ComposedCommunicator::barrier() {
  check_open("barrier");
  // Dissemination (Hensgen, Finkel, Manber 1988): in round k each rank signals the one 2^k further
  // on.
  const int n = size();
  for (int distance = 1; distance < n; distance *= 2) {
    char out = 0, in = 0;
    Lease batch(*this, "barrier", {});
    batch->recv(Channel::kCollectives, &in, 1, (rank_ - distance + n) % n);
    batch->send(Channel::kCollectives, &out, 1, (rank_ + distance) % n);
    batch.finish();
  }
}

std::unique_ptr<Communicator> ComposedCommunicator::split(int color, int key, std::string name) {
  check_open("split");
  struct Entry {
    SplitKey key;
    int64_t next_group;
  };
  const auto n = static_cast<size_t>(size());
  const Entry own{{color, key}, wires_->next_group};
  std::vector<Entry> all(n);
  const std::vector<int64_t> bytes(n, sizeof(Entry));
  gather_bytes("split", reinterpret_cast<const char*>(&own), reinterpret_cast<char*>(all.data()),
               bytes, {});
  // An id larger than that of any group one of us is in: for any pair of ranks it is new. Groups of
  // other colors share it, but no rank.
  int64_t id = 0;
  std::vector<SplitKey> keys;
  for (const Entry& e : all) {
    id = std::max(id, e.next_group);
    keys.push_back(e.key);
  }
  wires_->next_group = id + 1;
  const std::vector<int> members = split_members(keys, rank_);
  std::vector<int> world;
  for (int m : members) world.push_back(world_ranks_[static_cast<size_t>(m)]);
  const auto place = std::find(members.begin(), members.end(), rank_) - members.begin();
  std::string full = group_name(name, world);
  return make_group(std::move(full), static_cast<int>(place), std::move(world), id);
}

void ComposedCommunicator::close() {
  if (closed_) return;
  R1_CHECK(pending_ == 0, "close() of {} with {} started transfers not waited for", name(),
           pending_);
  barrier();
  closed_ = true;
}

void ComposedCommunicator::mark_closed() {
  R1_CHECK(pending_ == 0, "close() of {} with {} started transfers not waited for", name(),
           pending_);
  closed_ = true;
}

}  // namespace r1::comm
