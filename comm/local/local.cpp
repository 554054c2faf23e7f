// Collectives read and write the peers' memory directly between two barriers, rank r owning part r
// of the elements: no copies, and sums in rank order. Messages are rendezvous: whoever comes second
// copies. That is stricter than MPI, whose small messages are buffered, so a program that relies on
// buffering fails here, where it is easy to debug.
#include "comm/local/local.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <numeric>
#include <thread>

#include "comm/arguments.h"
#include "comm/reduce.h"
#include "comm/self_queue.h"

namespace r1::comm {
namespace {

// A waiting thread looks this often whether the job is poisoned, a peer has left or nobody can move
// any more.
constexpr auto kLook = std::chrono::milliseconds(5);

// What all groups of one set of threads share.
class Job {
 public:
  explicit Job(int size)
      : ranks_(static_cast<size_t>(size)),
        left_(new std::atomic<bool>[static_cast<size_t>(size)]()) {}

  void poison(const std::string& reason) {
    const std::lock_guard lock(mutex_);
    if (poisoned_) return;
    reason_ = reason;
    poisoned_ = true;
  }
  void leave(int world_rank) {
    const std::lock_guard lock(mutex_);
    left_[static_cast<size_t>(world_rank)] = true;
  }
  [[nodiscard]] bool has_left(int world_rank) const {
    return left_[static_cast<size_t>(world_rank)];
  }

  void check(const Communicator& c, const char* operation) const {
    if (!poisoned_) return;
    const std::lock_guard lock(mutex_);
    throw CommError("{} on {}: rank {} stopped because another rank failed: {}", operation,
                    c.name(), c.rank(), reason_);
  }

  // Waits under `lock` until ready() holds. Throws CommError when the job is poisoned, when someone
  // of `needed` has left, or when every rank waits and none can move.
  template <class Ready>
  void wait(std::unique_lock<std::mutex>& lock, std::condition_variable& cv, int world_rank,
            const Communicator& c, const char* operation, std::span<const int> needed,
            Ready ready) {
    bool listed = false;
    while (!ready()) {
      if (cv.wait_for(lock, kLook) == std::cv_status::no_timeout || ready()) continue;
      try {
        check(c, operation);
        for (int w : needed)
          if (w != world_rank && has_left(w))
            throw CommError("{} on {}: rank {} waits for world rank {}, which has left", operation,
                            c.name(), c.rank(), w);
        look_for_deadlock(world_rank, c, operation, listed);
        listed = true;
      } catch (...) {
        unlist(world_rank);
        throw;
      }
    }
    if (listed) unlist(world_rank);
  }

 private:
  struct Waiting {
    uint64_t epoch =
        0;  // the newest epoch in which this rank found that it cannot move; 0: it may be running
    std::string what;
  };

  // Every change of who waits starts an epoch. When all ranks found in one and the same epoch that
  // they cannot move, nobody is left who could wake them: exact, not a time-out.
  void look_for_deadlock(int world_rank, const Communicator& c, const char* operation,
                         bool listed) {
    const std::lock_guard lock(mutex_);
    Waiting& own = ranks_[static_cast<size_t>(world_rank)];
    if (!listed) {
      ++epoch_;
      own.what = fmt::format("rank {} waits in {} on {}", world_rank, operation, c.name());
    }
    own.epoch = epoch_;
    for (size_t r = 0; r < ranks_.size(); ++r)
      if (!left_[r] && ranks_[r].epoch != epoch_) return;
    std::string all;
    for (size_t r = 0; r < ranks_.size(); ++r)
      fmt::format_to(std::back_inserter(all), "{}{}", all.empty() ? "" : "; ",
                     left_[r] ? fmt::format("rank {} has left", r) : ranks_[r].what);
    reason_ = "deadlock: " + all;
    poisoned_ = true;
    throw CommError("{} on {}: {}", operation, c.name(), reason_);
  }
  void unlist(int world_rank) {
    const std::lock_guard lock(mutex_);
    ++epoch_;
    ranks_[static_cast<size_t>(world_rank)].epoch = 0;
  }

  mutable std::mutex mutex_;
  std::atomic<bool> poisoned_{false};
  std::string reason_;
  uint64_t epoch_ = 1;
  std::vector<Waiting> ranks_;
  std::unique_ptr<std::atomic<bool>[]> left_;
};

// One side of a message, on the stack of a blocking call or in a Pending.
struct Post {
  char* data = nullptr;
  size_t bytes = 0;
  int peer = 0;
  bool is_send = false;
  bool done = false;
  size_t peer_bytes = 0;  // set with done
};

// Messages from one rank to another.
struct Lane {
  std::mutex mutex;
  std::condition_variable cv;
  std::deque<Post*> sends, receives;
};

struct Group;

// What a rank brings to a collective; all must agree on the first block.
struct Slot {
  const char* operation = "";
  DType dtype = DType::kU8;
  int64_t numel = 0;
  int root = -1;
  ReduceOp op = ReduceOp::kSum;
  std::vector<int64_t> counts{};

  Tensor in{}, out{};
  std::vector<int64_t> send_counts{};
  SplitKey key{};
  std::shared_ptr<Group> child{};

  [[nodiscard]] bool agrees(const Slot& o) const {
    return std::string_view(operation) == o.operation && dtype == o.dtype && numel == o.numel &&
           root == o.root && op == o.op && counts == o.counts;
  }
  [[nodiscard]] std::string str() const {
    std::string text = fmt::format("{} ({} {}", operation, numel, dtype_name(dtype));
    if (root >= 0) text += fmt::format(", root {}", root);
    if (!counts.empty()) text += fmt::format(", counts {}", fmt::join(counts, ","));
    return text + ")";
  }
};

// The memory that the ranks of one group share.
struct Group {
  Group(std::shared_ptr<Job> j, std::vector<int> w)
      : job(std::move(j)),
        world(std::move(w)),
        slots(world.size()),
        lanes(world.size() * world.size()) {}
  [[nodiscard]] Lane& lane(int from, int to) {
    return lanes[static_cast<size_t>(from) * world.size() + static_cast<size_t>(to)];
  }

  std::shared_ptr<Job> job;
  std::vector<int> world;  // world rank of each rank
  std::mutex mutex;
  std::condition_variable cv;
  size_t arrived = 0;
  uint64_t generation = 0;
  std::vector<Slot> slots;
  std::vector<Lane> lanes;
};

class LocalCommunicator;

class LocalPending final : public Pending {
 public:
  LocalPending(LocalCommunicator& c, size_t transfers) : comm_(c) { posts_.reserve(transfers); }
  ~LocalPending() override;
  void wait() override;

 private:
  friend class LocalCommunicator;
  LocalCommunicator& comm_;
  std::vector<Post> posts_;
  std::vector<uint64_t> own_receives_;
};

class LocalCommunicator final : public Communicator {
 public:
  LocalCommunicator(std::shared_ptr<Group> group, int rank, std::string name)
      : Communicator(std::move(name)), group_(std::move(group)), rank_(rank) {
    sources_.reserve(group_->world.size());
  }

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(group_->world.size()); }
  [[nodiscard]] Job& job() { return *group_->job; }
  [[nodiscard]] int world_rank() const { return group_->world[static_cast<size_t>(rank_)]; }
  [[nodiscard]] SelfQueue& own_queue() { return own_queue_; }

  void all_reduce(const Tensor& x, ReduceOp op, const Stream&) override {
    check_tensor(*this, "all_reduce", x);
    check_reducible(*this, "all_reduce", x);
    collective({.operation = "all_reduce", .dtype = x.dtype, .numel = x.numel(), .op = op, .in = x},
               [&](std::span<const Slot> slots) {
                 // Part r of every rank's tensor is read and then written by rank r alone.
                 const int64_t begin = x.numel() * rank_ / size(),
                               end = x.numel() * (rank_ + 1) / size();
                 reduce_into(slots, begin, end - begin, op, at_elem(x, begin));
                 for (const Slot& s : slots)
                   copy_bytes(at_elem(s.in, begin), at_elem(x, begin), bytes_of(x, end - begin));
                 return std::string();
               });
  }

  void all_gather(const Tensor& in, const Tensor& out, std::span<const int64_t> counts,
                  const Stream&) override {
    check_tensor(*this, "all_gather", in);
    check_tensor(*this, "all_gather", out);
    check_parts(*this, "all_gather", in, out, counts);
    collective({.operation = "all_gather",
                .dtype = out.dtype,
                .numel = out.numel(),
                .counts = {counts.begin(), counts.end()},
                .out = out},
               [&](std::span<const Slot> slots) {
                 for (const Slot& s : slots)
                   copy_bytes(at_elem(s.out, before(counts, rank_)), in.data, in.bytes());
                 return std::string();
               });
  }

  void reduce_scatter(const Tensor& in, const Tensor& out, std::span<const int64_t> counts,
                      const Stream&) override {
    check_tensor(*this, "reduce_scatter", in);
    check_tensor(*this, "reduce_scatter", out);
    check_parts(*this, "reduce_scatter", out, in, counts);
    check_reducible(*this, "reduce_scatter", in);
    collective({.operation = "reduce_scatter",
                .dtype = in.dtype,
                .numel = in.numel(),
                .counts = {counts.begin(), counts.end()},
                .in = in},
               [&](std::span<const Slot> slots) {
                 reduce_into(slots, before(counts, rank_), out.numel(), ReduceOp::kSum, out.data);
                 return std::string();
               });
  }

  void broadcast(const Tensor& x, int root, const Stream&) override {
    check_tensor(*this, "broadcast", x);
    check_peer(*this, "broadcast", root);
    collective(
        {.operation = "broadcast", .dtype = x.dtype, .numel = x.numel(), .root = root, .in = x},
        [&](std::span<const Slot> slots) {
          copy_bytes(x.data, slots[static_cast<size_t>(root)].in.data, x.bytes());
          return std::string();
        });
  }

  void all_to_all(const Tensor& in, std::span<const int64_t> send_counts, const Tensor& out,
                  std::span<const int64_t> recv_counts, const Stream&) override {
    check_tensor(*this, "all_to_all", in);
    check_tensor(*this, "all_to_all", out);
    check_counts(*this, "all_to_all", in, send_counts);
    check_counts(*this, "all_to_all", out, recv_counts);
    R1_CHECK(in.dtype == out.dtype, "all_to_all on {}: {} to {}", name(), dtype_name(in.dtype),
             dtype_name(out.dtype));
    collective({.operation = "all_to_all",
                .dtype = in.dtype,
                .in = in,
                .send_counts = {send_counts.begin(), send_counts.end()}},
               [&](std::span<const Slot> slots) {
                 for (int r = 0; r < size(); ++r) {
                   const Slot& from = slots[static_cast<size_t>(r)];
                   const int64_t n = recv_counts[static_cast<size_t>(r)];
                   const int64_t sent = from.send_counts[static_cast<size_t>(rank_)];
                   if (sent != n)
                     return fmt::format("rank {} sends {} elements to rank {}, which expects {}", r,
                                        sent, rank_, n);
                   copy_bytes(at_elem(out, before(recv_counts, r)),
                              at_elem(from.in, before(from.send_counts, rank_)), bytes_of(out, n));
                 }
                 return std::string();
               });
  }

  void send(const Tensor& x, int peer, const Stream&) override {
    check_message("send", x, peer);
    if (peer == rank_) return own_queue_.send(x.data, x.bytes());
    blocking(
        {.data = static_cast<char*>(x.data), .bytes = x.bytes(), .peer = peer, .is_send = true});
  }

  void recv(const Tensor& x, int peer, const Stream&) override {
    check_message("recv", x, peer);
    if (peer == rank_) {
      const uint64_t ticket = own_queue_.post_recv(x.data, x.bytes());
      if (!own_queue_.done(ticket)) own_queue_.cancel(ticket);
      return own_queue_.wait(ticket, "recv");
    }
    blocking(
        {.data = static_cast<char*>(x.data), .bytes = x.bytes(), .peer = peer, .is_send = false});
  }

  std::unique_ptr<Pending> start(std::span<const Transfer> transfers, const Stream&) override {
    for (const Transfer& t : transfers) check_message("start", t.tensor, t.peer);
    auto pending = std::make_unique<LocalPending>(*this, transfers.size());
    for (const Transfer& t : transfers) {
      const bool is_send = t.kind == Transfer::Kind::kSend;
      if (t.peer == rank_) {
        if (is_send)
          own_queue_.send(t.tensor.data, t.tensor.bytes());
        else
          pending->own_receives_.push_back(own_queue_.post_recv(t.tensor.data, t.tensor.bytes()));
        continue;
      }
      // The addresses stay: room for all was reserved.
      pending->posts_.push_back({.data = static_cast<char*>(t.tensor.data),
                                 .bytes = t.tensor.bytes(),
                                 .peer = t.peer,
                                 .is_send = is_send});
      post(pending->posts_.back());
    }
    return pending;
  }

  void barrier() override {
    collective({.operation = "barrier"}, [](std::span<const Slot>) { return std::string(); });
  }

  std::unique_ptr<Communicator> split(int color, int key, std::string name) override {
    std::vector<SplitKey> keys;
    collective({.operation = "split", .key = {color, key}}, [&](std::span<const Slot> slots) {
      for (const Slot& s : slots) keys.push_back(s.key);
      return std::string();
    });
    const std::vector<int> members = split_members(keys, rank_);
    std::vector<int> world;
    for (int m : members) world.push_back(group_->world[static_cast<size_t>(m)]);
    const std::string full = group_name(name, world);
    // The first member makes the shared memory, the others take it from its slot.
    std::shared_ptr<Group> child;
    if (members.front() == rank_) child = std::make_shared<Group>(group_->job, std::move(world));
    collective({.operation = "split", .child = child}, [&](std::span<const Slot> slots) {
      child = slots[static_cast<size_t>(members.front())].child;
      return std::string();
    });
    const auto own = std::find(members.begin(), members.end(), rank_);
    return std::make_unique<LocalCommunicator>(std::move(child),
                                               static_cast<int>(own - members.begin()), full);
  }

  void close() override {
    if (closed_) return;
    collective({.operation = "close"}, [](std::span<const Slot>) { return std::string(); });
    closed_ = true;
  }

  // Messages, for LocalPending too.
  void post(Post& p) {
    Lane& lane = lane_of(p);
    const std::lock_guard lock(lane.mutex);
    std::deque<Post*>& others = p.is_send ? lane.receives : lane.sends;
    if (others.empty()) return (p.is_send ? lane.sends : lane.receives).push_back(&p);
    Post& other = *others.front();
    others.pop_front();
    Post& from = p.is_send ? p : other;
    Post& to = p.is_send ? other : p;
    if (from.bytes == to.bytes) copy_bytes(to.data, from.data, from.bytes);
    p.peer_bytes = other.bytes;
    other.peer_bytes = p.bytes;
    p.done = other.done = true;
    lane.cv.notify_all();
  }
  void complete(Post& p, const char* operation) {
    Lane& lane = lane_of(p);
    std::unique_lock lock(lane.mutex);
    const int needed[] = {group_->world[static_cast<size_t>(p.peer)]};
    job().wait(lock, lane.cv, world_rank(), *this, operation, needed, [&] { return p.done; });
    if (p.bytes != p.peer_bytes)
      throw CommError("{} on {}: rank {} {} {} bytes, rank {} {} {}", operation, name(), rank_,
                      p.is_send ? "sends" : "expects", p.bytes, p.peer,
                      p.is_send ? "expects" : "sends", p.peer_bytes);
  }
  void withdraw(Post& p) noexcept {
    Lane& lane = lane_of(p);
    const std::lock_guard lock(lane.mutex);
    std::erase(p.is_send ? lane.sends : lane.receives, &p);
  }

 private:
  static size_t bytes_of(const Tensor& x, int64_t elems) {
    return static_cast<size_t>(elems * dtype_bytes(x.dtype));
  }
  static int64_t before(std::span<const int64_t> counts, int rank) {
    return std::accumulate(counts.begin(), counts.begin() + rank, int64_t{0});
  }
  [[nodiscard]] Lane& lane_of(const Post& p) {
    return p.is_send ? group_->lane(rank_, p.peer) : group_->lane(p.peer, rank_);
  }
  void check_open(const char* operation) {
    R1_CHECK(!closed_, "{} on {} after close()", operation, name());
    job().check(*this, operation);
  }
  void check_message(const char* operation, const Tensor& x, int peer) {
    check_open(operation);
    check_tensor(*this, operation, x);
    check_peer(*this, operation, peer);
  }

  void blocking(Post p) {
    post(p);
    try {
      complete(p, p.is_send ? "send" : "recv");
    } catch (...) {
      withdraw(p);
      throw;
    }
  }

  void reduce_into(std::span<const Slot> slots, int64_t begin, int64_t n, ReduceOp op, void* out) {
    if (n == 0) return;
    sources_.clear();
    for (const Slot& s : slots) sources_.push_back(at_elem(s.in, begin));
    reduce_in_order(slots[0].dtype, op, sources_, out, n);
  }

  // Runs work(slots of all ranks) between two barriers. `work` must not throw: the peers read and
  // write this rank's tensors until the second barrier, which for the same reason heeds no poison.
  // It returns what was wrong, or "".
  template <class Work>
  void collective(Slot own, Work work) {
    const char* operation = own.operation;
    check_open(operation);
    {
      std::unique_lock lock(group_->mutex);
      job().check(*this, operation);
      group_->slots[static_cast<size_t>(rank_)] = std::move(own);
      if (!arrive()) {
        const uint64_t generation = group_->generation;
        try {
          job().wait(lock, group_->cv, world_rank(), *this, operation, group_->world,
                     [&] { return group_->generation != generation; });
        } catch (...) {
          --group_->arrived;
          throw;
        }
      }
    }
    const std::span<const Slot> slots = group_->slots;
    std::string wrong;
    for (size_t r = 1; r < slots.size() && wrong.empty(); ++r)
      if (!slots[r].agrees(slots[0]))
        wrong = fmt::format("the ranks disagree: rank 0 calls {}, rank {} calls {}", slots[0].str(),
                            r, slots[r].str());
    if (wrong.empty()) wrong = work(slots);
    {
      std::unique_lock lock(group_->mutex);
      if (!arrive()) {
        const uint64_t generation = group_->generation;
        group_->cv.wait(lock, [&] { return group_->generation != generation; });
      }
    }
    if (!wrong.empty()) throw CommError("{} on {}: {}", operation, name(), wrong);
  }
  // Under the group's mutex; true for the last one, which lets the others go.
  bool arrive() {
    if (++group_->arrived < group_->world.size()) return false;
    group_->arrived = 0;
    ++group_->generation;
    group_->cv.notify_all();
    return true;
  }

  std::shared_ptr<Group> group_;
  int rank_;
  bool closed_ = false;
  SelfQueue own_queue_{*this};
  std::vector<const void*> sources_;
};

LocalPending::~LocalPending() {
  for (Post& p : posts_) comm_.withdraw(p);
  for (uint64_t ticket : own_receives_) comm_.own_queue().cancel(ticket);
}

void LocalPending::wait() {
  for (uint64_t ticket : own_receives_) comm_.own_queue().wait(ticket, "wait");
  for (Post& p : posts_) comm_.complete(p, p.is_send ? "wait for a send" : "wait for a recv");
}

LocalCommunicator& local(Communicator& c) {
  auto* own = dynamic_cast<LocalCommunicator*>(&c);
  R1_CHECK(own != nullptr, "{} is not a communicator of threads", c.name());
  return *own;
}

}  // namespace

std::vector<std::unique_ptr<Communicator>> make_local(int size, std::string name) {
  R1_CHECK(size >= 1, "a group of {} ranks", size);
  std::vector<int> world(static_cast<size_t>(size));
  std::iota(world.begin(), world.end(), 0);
  const std::string full = group_name(name, world);
  auto group = std::make_shared<Group>(std::make_shared<Job>(size), std::move(world));
  std::vector<std::unique_ptr<Communicator>> ranks;
  for (int r = 0; r < size; ++r)
    ranks.push_back(std::make_unique<LocalCommunicator>(group, r, full));
  return ranks;
}

void poison_local(Communicator& c, const std::string& reason) { local(c).job().poison(reason); }

void leave_local(Communicator& c) { local(c).job().leave(local(c).world_rank()); }

void run_ranks(int size, const std::function<void(Communicator&)>& fn, const std::string& name) {
  std::vector<std::unique_ptr<Communicator>> comms = make_local(size, name);
  std::mutex mutex;
  std::exception_ptr first;
  const auto body = [&](Communicator& c) {
    std::string reason = "unknown exception";
    try {
      fn(c);
      return leave_local(c);
    } catch (const std::exception& e) {
      reason = e.what();
      const std::lock_guard lock(mutex);
      if (!first) first = std::current_exception();
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (!first) first = std::current_exception();
    }
    poison_local(c, fmt::format("rank {}: {}", c.rank(), reason));
    leave_local(c);
  };
  std::vector<std::thread> threads;
  for (auto& c : comms) threads.emplace_back([&body, &c] { body(*c); });
  for (std::thread& t : threads) t.join();
  if (first) std::rethrow_exception(first);
}

}  // namespace r1::comm
