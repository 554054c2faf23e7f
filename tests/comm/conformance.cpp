#include "conformance.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <thread>

#include "runtime/core/rng.h"

namespace r1::comm::test {

void set_element(const Tensor& t, int64_t i, double v) {
  switch (t.dtype) {
    case DType::kF32:
      t.ptr<float>()[i] = static_cast<float>(v);
      break;
    case DType::kBF16:
      t.ptr<uint16_t>()[i] = float_to_bf16(static_cast<float>(v));
      break;
    case DType::kF16:
      t.ptr<uint16_t>()[i] = float_to_f16(static_cast<float>(v));
      break;
    case DType::kF64:
      t.ptr<double>()[i] = v;
      break;
    case DType::kI32:
      t.ptr<int32_t>()[i] = static_cast<int32_t>(v);
      break;
    case DType::kI64:
      t.ptr<int64_t>()[i] = static_cast<int64_t>(v);
      break;
    case DType::kU8:
      t.ptr<uint8_t>()[i] = static_cast<uint8_t>(v);
      break;
  }
}

namespace {

bool g_ordered_sums = true;  // a property of the backend that the program tests

constexpr uint64_t kSeed = 20240607;
constexpr DType kAll[] = {DType::kF32, DType::kBF16, DType::kF16, DType::kF64,
                          DType::kI32, DType::kI64,  DType::kU8};
constexpr DType kReducible[] = {DType::kF32, DType::kBF16, DType::kF16,
                                DType::kF64, DType::kI32,  DType::kI64};
// 0, 1, primes below and above every protocol switch (gather of all up to 4 KiB, eager limits of a
// few KiB); the largest for two types only, to keep the suite short.
std::vector<int64_t> sizes(DType dtype) {
  std::vector<int64_t> all = {0, 1, 7, 97, 1009, 4099};
  if (dtype == DType::kF32 || dtype == DType::kI64) all.push_back(20011);
  return all;
}

class Failed : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

template <class... Args>
void require(bool holds, fmt::format_string<Args...> text, Args&&... args) {
  if (!holds) throw Failed(fmt::format(text, std::forward<Args>(args)...));
}

// A tensor in memory of its own with guard bytes on both sides; it begins one element after an
// aligned address, so that nothing may count on alignment. Without elements its data is null.
class Host {
 public:
  Host(DType dtype, int64_t numel) {
    const auto bytes = static_cast<size_t>(numel * dtype_bytes(dtype));
    front_ = kGuard + static_cast<size_t>(dtype_bytes(dtype));
    storage_.assign(front_ + bytes + kGuard, kMark);
    tensor_ = {.data = numel == 0 ? nullptr : storage_.data() + front_,
               .dtype = dtype,
               .shape = {numel},
               .device = {}};
  }
  Host(Host&&) =
      default;  // the heap block moves along, so the view stays valid; a copy's would not
  Host& operator=(Host&&) = default;
  [[nodiscard]] const Tensor& t() const { return tensor_; }
  operator const Tensor&() const { return tensor_; }  // NOLINT
  [[nodiscard]] Tensor part(int64_t begin, int64_t n) const {
    Tensor p = tensor_;
    p.shape = {n};
    p.data = tensor_.data == nullptr ? nullptr
                                     : tensor_.ptr<char>() + begin * dtype_bytes(tensor_.dtype);
    return p;
  }
  [[nodiscard]] bool same_bytes(const Host& o) const { return storage_ == o.storage_; }
  void check_guards(const char* what) const {
    const auto marked = [](char c) { return c == kMark; };
    const auto begin = storage_.begin(), data = begin + static_cast<ptrdiff_t>(front_);
    require(std::all_of(begin, data, marked) &&
                std::all_of(data + static_cast<ptrdiff_t>(tensor_.bytes()), storage_.end(), marked),
            "{}: bytes outside the tensor were written", what);
  }

 private:
  static constexpr size_t kGuard = 64;
  static constexpr char kMark = 0x5a;
  size_t front_;
  std::vector<char> storage_;
  Tensor tensor_;
};

double get(const Tensor& t, int64_t i) {
  switch (t.dtype) {
    case DType::kF32:
      return t.ptr<float>()[i];
    case DType::kBF16:
      return bf16_to_float(t.ptr<uint16_t>()[i]);
    case DType::kF16:
      return f16_to_float(t.ptr<uint16_t>()[i]);
    case DType::kF64:
      return t.ptr<double>()[i];
    case DType::kI32:
      return t.ptr<int32_t>()[i];
    case DType::kI64:
      return static_cast<double>(t.ptr<int64_t>()[i]);
    case DType::kU8:
      return t.ptr<uint8_t>()[i];
  }
  return 0;
}
bool is_float(DType t) {
  return t == DType::kF32 || t == DType::kBF16 || t == DType::kF16 || t == DType::kF64;
}

// The values rank `rank` brings to what is named `purpose`: every rank can compute those of all
// others. Floats spread over five decades with both signs, so that another order of summation gives
// other bits.
void fill(const Tensor& t, const std::string& purpose, int rank) {
  constexpr double kDecades[] = {1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e-1, 1.0};
  const Rng rng(kSeed + static_cast<uint64_t>(rank), purpose);
  for (int64_t i = 0; i < t.numel(); ++i) {
    const uint64_t bits = rng.bits(static_cast<uint64_t>(i));
    if (is_float(t.dtype))
      set_element(t, i, (static_cast<double>(bits >> 11) * 0x1p-53 - 0.5) * kDecades[bits & 7]);
    else if (t.dtype == DType::kU8)
      set_element(t, i, static_cast<double>(bits & 255));
    else
      set_element(t, i, static_cast<double>(bits % 2000001) - 1e6);
  }
}
Host filled(DType dtype, int64_t numel, const std::string& purpose, int rank) {
  Host h(dtype, numel);
  fill(h, purpose, rank);
  return h;
}

// The sum in rank order as the interface promises it: accumulated in fp32 for the 16-bit types,
// rounded once.
double ordered_sum(std::span<const Host> ranks, int64_t i) {
  const DType dtype = ranks[0].t().dtype;
  double wide = get(ranks[0], i);
  float narrow = static_cast<float>(wide);
  for (size_t r = 1; r < ranks.size(); ++r) {
    wide += get(ranks[r], i);
    narrow += static_cast<float>(get(ranks[r], i));
  }
  switch (dtype) {
    case DType::kF32:
      return narrow;
    case DType::kBF16:
      return bf16_to_float(float_to_bf16(narrow));
    case DType::kF16:
      return f16_to_float(float_to_f16(narrow));
    default:
      return wide;
  }
}
// Half a unit in the last place relative to the sum of magnitudes, a step for each rank.
double tolerance(std::span<const Host> ranks, int64_t i) {
  double magnitude = 0;
  for (const Host& h : ranks) magnitude += std::abs(get(h, i));
  switch (ranks[0].t().dtype) {
    case DType::kF32:
      return magnitude * 0x1p-24 * static_cast<double>(ranks.size());
    case DType::kBF16:
      return magnitude * 0x1p-8;
    case DType::kF16:
      return magnitude * 0x1p-11 + 0x1p-25;
    case DType::kF64:
      return magnitude * 0x1p-53 * static_cast<double>(ranks.size());
    default:
      return 0;
  }
}
std::vector<Host> inputs(const Communicator& c, DType dtype, int64_t numel,
                         const std::string& purpose) {
  std::vector<Host> all;
  for (int r = 0; r < c.size(); ++r) all.push_back(filled(dtype, numel, purpose, r));
  return all;
}
// Checks result[i] against the sum over ranks of their element offset + i: close to the sum in
// double, and of the same bits as the sum in rank order.
void check_sum(const char* what, const Tensor& result, std::span<const Host> ranks,
               int64_t offset) {
  for (int64_t i = 0; i < result.numel(); ++i) {
    double exact = 0;
    for (const Host& h : ranks) exact += get(h, offset + i);
    const double got = get(result, i);
    require(std::abs(got - exact) <= tolerance(ranks, offset + i),
            "{} of {}: element {} is {}, the sum is {}", what, dtype_name(result.dtype), i, got,
            exact);
    const bool narrow = result.dtype == DType::kBF16 || result.dtype == DType::kF16;
    if (!g_ordered_sums && !narrow) continue;
    require(got == ordered_sum(ranks, offset + i),
            "{} of {}: element {} is {:a}, summed in rank order it is {:a}", what,
            dtype_name(result.dtype), i, got, ordered_sum(ranks, offset + i));
  }
}

// Counts that differ between ranks, some of them 0: `shape` chooses the pattern.
constexpr int kCountShapes = 6;
std::vector<int64_t> counts_of(int ranks, int shape) {
  std::vector<int64_t> counts(static_cast<size_t>(ranks), 0);
  for (int r = 0; r < ranks; ++r) {
    int64_t& n = counts[static_cast<size_t>(r)];
    switch (shape) {
      case 0:
        break;  // nothing at all
      case 1:
        n = 37;
        break;  // even
      case 2:
        n = r % 3 == 1 ? 0 : 11 * r + 1;
        break;  // uneven with holes
      case 3:
        n = r == ranks - 1 ? 9001 : 0;
        break;  // all on the last rank
      case 4:
        n = 1201 + 257 * ((r * 5) % ranks);
        break;  // uneven, beyond eager limits
      case 5:
        n = 9001;
        break;  // even, more than a block's share
    }
  }
  return counts;
}
int64_t sum(std::span<const int64_t> v) { return std::accumulate(v.begin(), v.end(), int64_t{0}); }
int64_t before(std::span<const int64_t> v, int rank) {
  return sum(v.first(static_cast<size_t>(rank)));
}

void identity(Communicator& c) {
  require(c.size() >= 1 && 0 <= c.rank() && c.rank() < c.size(), "rank {} of {}", c.rank(),
          c.size());
  require(!c.name().empty(), "no name");
  // Ranks are distinct: each writes its own place.
  Host own(DType::kI64, 1), all(DType::kI64, c.size());
  set_element(own, 0, c.rank());
  c.all_gather(own, all, std::vector<int64_t>(static_cast<size_t>(c.size()), 1), {});
  for (int r = 0; r < c.size(); ++r)
    require(get(all, r) == r, "rank {} says it is rank {}", r, get(all, r));
}

void all_reduce_sum(Communicator& c) {
  for (DType dtype : kReducible)
    for (int64_t n : sizes(dtype)) {
      const auto in = inputs(c, dtype, n, "all_reduce_sum");
      Host own = filled(dtype, n, "all_reduce_sum", c.rank());
      c.all_reduce(own, ReduceOp::kSum, {});
      check_sum("all_reduce", own, in, 0);
      own.check_guards("all_reduce");
    }
}

// Larger than the segment in which a backend may cut a reduction (8 MiB).
void all_reduce_large(Communicator& c) {
  constexpr int64_t kNumel = (int64_t{9} << 20) / 4 + 3;
  // From a table: a product would be contracted into the reference's additions.
  std::vector<float> table(1021);
  for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<float>(i) * 0.37f;
  const auto value = [&](int rank, int64_t i) {
    return table[static_cast<size_t>(i * 7 + rank * 13) % table.size()];
  };
  Host x(DType::kF32, kNumel);
  float* p = x.t().ptr<float>();
  for (int64_t i = 0; i < kNumel; ++i) p[i] = value(c.rank(), i);
  c.all_reduce(x, ReduceOp::kSum, {});
  for (int64_t i = 0; i < kNumel; ++i) {
    float expected = value(0, i);
    for (int r = 1; r < c.size(); ++r) expected += value(r, i);
    const float allowed = g_ordered_sums ? 0.0f : 400.0f * 0x1p-23f * static_cast<float>(c.size());
    if (std::abs(p[i] - expected) > allowed) require(false, "element {} is {:a}, expected {:a}", i, p[i], expected);
  }
  x.check_guards("all_reduce");
}

void all_reduce_max(Communicator& c) {
  for (DType dtype : kReducible)
    for (int64_t n : sizes(dtype)) {
      const auto in = inputs(c, dtype, n, "all_reduce_max");
      Host x = filled(dtype, n, "all_reduce_max", c.rank());
      c.all_reduce(x, ReduceOp::kMax, {});
      for (int64_t i = 0; i < n; ++i) {
        double expected = get(in[0], i);
        for (const Host& h : in) expected = std::max(expected, get(h, i));
        require(get(x, i) == expected, "maximum of {}: element {} is {}, expected {}",
                dtype_name(dtype), i, get(x, i), expected);
      }
      x.check_guards("all_reduce");
    }
}

// A NaN or an infinity of one rank reaches all, in a sum and in a maximum.
void all_reduce_special_values(Communicator& c) {
  for (DType dtype : kReducible) {
    if (!is_float(dtype)) continue;
    for (int64_t n : {int64_t{3}, int64_t{5000}})
      for (ReduceOp op : {ReduceOp::kSum, ReduceOp::kMax})
        for (int culprit = 0; culprit < c.size(); ++culprit) {
          Host x(dtype, n);
          for (int64_t i = 0; i < n; ++i) set_element(x, i, c.rank() - 3.0);
          if (c.rank() == culprit) {
            set_element(x, 1, std::numeric_limits<double>::quiet_NaN());
            set_element(x, n - 1, std::numeric_limits<double>::infinity());
          }
          c.all_reduce(x, op, {});
          require(std::isnan(get(x, 1)), "the NaN of rank {} became {}", culprit, get(x, 1));
          require(get(x, n - 1) == std::numeric_limits<double>::infinity(),
                  "the infinity of rank {} became {}", culprit, get(x, n - 1));
          require(std::isfinite(get(x, 0)), "element 0 became {}", get(x, 0));
        }
  }
}

void all_gather(Communicator& c) {
  for (DType dtype : kAll)
    for (int shape = 0; shape < kCountShapes; ++shape)
      for (bool in_place : {false, true}) {
        const auto counts = counts_of(c.size(), shape);
        const int64_t own = counts[static_cast<size_t>(c.rank())];
        Host out(dtype, sum(counts));
        const Host apart = filled(dtype, own, "all_gather", c.rank());
        Tensor in = apart;
        if (in_place) {
          in = out.part(before(counts, c.rank()), own);
          fill(in, "all_gather", c.rank());
        }
        c.all_gather(in, out, counts, {});
        for (int r = 0; r < c.size(); ++r) {
          const Host theirs = filled(dtype, counts[static_cast<size_t>(r)], "all_gather", r);
          const Tensor part = out.part(before(counts, r), theirs.t().numel());
          require(part.empty() || std::memcmp(part.data, theirs.t().data, part.bytes()) == 0,
                  "counts {}: the part of rank {} differs{}", shape, r,
                  in_place ? " (in place)" : "");
        }
        out.check_guards("all_gather");
      }
}

void reduce_scatter(Communicator& c) {
  for (DType dtype : kReducible)
    for (int shape = 0; shape < kCountShapes; ++shape) {
      const auto counts = counts_of(c.size(), shape);
      const auto in = inputs(c, dtype, sum(counts), "reduce_scatter");
      const Host x = filled(dtype, sum(counts), "reduce_scatter", c.rank());
      Host out(dtype, counts[static_cast<size_t>(c.rank())]);
      c.reduce_scatter(x, out, counts, {});
      check_sum("reduce_scatter", out, in, before(counts, c.rank()));
      require(x.same_bytes(in[static_cast<size_t>(c.rank())]), "reduce_scatter changed its input");
      out.check_guards("reduce_scatter");
    }
}

ShardedTensor sharded(const Host& x, std::span<const int64_t> counts) {
  ShardedTensor s;
  for (int r = 0; r < static_cast<int>(counts.size()); ++r)
    s.parts.push_back(x.part(before(counts, r), counts[static_cast<size_t>(r)]));
  return s;
}
// Element i of the tree's sum over ranks [first, last).
float tree_sum(std::span<const Host> ranks, int64_t i) {
  if (ranks.size() == 1) return static_cast<float>(get(ranks[0], i));
  const size_t half = ranks.size() / 2;
  return tree_sum(ranks.first(half), i) + tree_sum(ranks.subspan(half), i);
}

// Sums under way together, with another collective between their start and their end, and the gather of the results.
void start_sharded(Communicator& c) {
  for (DType dtype : kReducible)
    for (int shape = 0; shape < kCountShapes; ++shape) {
      const auto counts = counts_of(c.size(), shape), even = counts_of(c.size(), 1);
      const auto in = inputs(c, dtype, sum(counts), "sharded"), in2 = inputs(c, DType::kF32, sum(even), "tree");
      Host x = filled(dtype, sum(counts), "sharded", c.rank()), y = filled(DType::kF32, sum(even), "tree", c.rank());
      const ShardedTensor a = sharded(x, counts), b = sharded(y, even);
      auto first = c.start_reduce_scatter({&a, 1}, SumOrder::kRank, {});
      auto second = c.start_reduce_scatter({&b, 1}, SumOrder::kTree, {});
      Host between = filled(DType::kI64, 3, "between", c.rank());
      c.all_reduce(between, ReduceOp::kSum, {});
      first->wait();
      second->wait();
      check_sum("start_reduce_scatter", a.parts[static_cast<size_t>(c.rank())], in, before(counts, c.rank()));
      const Tensor own = b.parts[static_cast<size_t>(c.rank())];
      for (int64_t i = 0; i < own.numel(); ++i)
        require(get(own, i) == static_cast<double>(tree_sum(in2, before(even, c.rank()) + i)), "element {} is not the tree's sum", i);
      const ShardedTensor both[] = {a, b};
      c.start_all_gather(both, {})->wait();
      for (int r = 0; r < c.size(); ++r)
        check_sum("start_all_gather", a.parts[static_cast<size_t>(r)], in, before(counts, r));
      for (int64_t i = 0; i < sum(even); ++i)
        require(get(y, i) == static_cast<double>(tree_sum(in2, i)), "gathered element {} is not the tree's sum", i);
      x.check_guards("start_all_gather");
      y.check_guards("start_all_gather");
    }
}

void broadcast(Communicator& c) {
  for (DType dtype : kAll)
    for (int64_t n : sizes(dtype))
      for (int root = 0; root < c.size(); ++root) {
        Host x = filled(dtype, n, "broadcast", c.rank());
        c.broadcast(x, root, {});
        require(x.same_bytes(filled(dtype, n, "broadcast", root)), "{} {} from rank {} differ", n,
                dtype_name(dtype), root);
      }
}

void all_to_all(Communicator& c) {
  const auto count = [](int shape, int from, int to) -> int64_t {
    switch (shape) {
      case 0:
        return 0;
      case 1:
        return 29;
      case 2:
        return (from + 2 * to) % 3 == 0 ? 0 : 5 * from + to + 1;
      default:
        return (from * 3 + to) % 4 * 1103;
    }
  };
  for (DType dtype : kAll)
    for (int shape = 0; shape < 4; ++shape) {
      std::vector<int64_t> sends, receives;
      for (int r = 0; r < c.size(); ++r) {
        sends.push_back(count(shape, c.rank(), r));
        receives.push_back(count(shape, r, c.rank()));
      }
      const Host in = filled(dtype, sum(sends), "all_to_all", c.rank());
      Host out(dtype, sum(receives));
      c.all_to_all(in, sends, out, receives, {});
      for (int r = 0; r < c.size(); ++r) {
        int64_t offset = 0, total = 0;  // of what rank r sent here in its whole input
        for (int to = 0; to < c.size(); ++to) {
          if (to < c.rank()) offset += count(shape, r, to);
          total += count(shape, r, to);
        }
        const Host theirs = filled(dtype, total, "all_to_all", r);
        const Tensor got = out.part(before(receives, r), receives[static_cast<size_t>(r)]);
        const Tensor expected = theirs.part(offset, got.numel());
        require(got.empty() || std::memcmp(got.data, expected.data, got.bytes()) == 0,
                "shape {}: from rank {} differs", shape, r);
      }
      out.check_guards("all_to_all");
    }
}

// Every pair, both ways, one after the other, empty messages included.
void send_recv(Communicator& c) {
  for (DType dtype : kAll)
    for (int64_t n : sizes(dtype))
      for (int from = 0; from < c.size(); ++from)
        for (int to = 0; to < c.size(); ++to) {
          if (c.rank() == from) c.send(filled(dtype, n, "send", from * 100 + to), to, {});
          if (c.rank() == to) {
            Host x(dtype, n);
            c.recv(x, from, {});
            require(x.same_bytes(filled(dtype, n, "send", from * 100 + to)),
                    "{} {} from rank {} differ", n, dtype_name(dtype), from);
          }
        }
}

// All ranks send large messages to all others at once: nothing may wait for its own send first.
void start_exchange(Communicator& c) {
  for (int64_t n : {int64_t{0}, int64_t{1}, int64_t{100003}}) {
    std::vector<Host> out, in;
    for (int r = 0; r < c.size(); ++r) {
      out.push_back(filled(DType::kF32, n, "exchange", c.rank() * 100 + r));
      in.emplace_back(DType::kF32, n);
    }
    std::vector<Transfer> transfers;
    for (int r = 0; r < c.size(); ++r) {
      transfers.push_back({Transfer::Kind::kSend, out[static_cast<size_t>(r)], r});
      transfers.push_back({Transfer::Kind::kRecv, in[static_cast<size_t>(r)], r});
    }
    const auto pending = c.start(transfers, {});
    pending->wait();
    pending->wait();  // a second wait returns at once
    for (int r = 0; r < c.size(); ++r)
      require(in[static_cast<size_t>(r)].same_bytes(
                  filled(DType::kF32, n, "exchange", r * 100 + c.rank())),
              "{} elements from rank {} differ", n, r);
  }
  c.start({}, {})->wait();  // nothing to do
}

// Messages of mixed sizes between a pair, sent and received by send(), recv() and start() in turn,
// match in order.
void order_of_messages(Communicator& c) {
  constexpr int kMessages = 24;
  const auto length = [](int i) { return int64_t{1} << (i * 5 % 17); };
  const int next = (c.rank() + 1) % c.size(), previous = (c.rank() - 1 + c.size()) % c.size();
  std::vector<Host> out, in;
  for (int i = 0; i < kMessages; ++i) {
    out.push_back(filled(DType::kI32, length(i), fmt::format("order {}", i), c.rank()));
    in.emplace_back(DType::kI32, length(i));
  }
  // All receives are open before the first send, so that blocking sends in a ring get through.
  std::vector<std::unique_ptr<Pending>> receives, sends;
  for (int i = 0; i < kMessages - 2; i += 2) {
    const Transfer two[] = {{Transfer::Kind::kRecv, in[static_cast<size_t>(i)], previous},
                            {Transfer::Kind::kRecv, in[static_cast<size_t>(i) + 1], previous}};
    receives.push_back(c.start(two, {}));
  }
  for (int i = 0; i < kMessages; ++i) {
    const Tensor& x = out[static_cast<size_t>(i)];
    if (i % 3 == 0 || i >= kMessages - 2) {
      const Transfer one[] = {{Transfer::Kind::kSend, x, next}};
      sends.push_back(c.start(one, {}));
    } else {
      c.send(x, next, {});
    }
  }
  // The last two are received after, but posted behind, those under way.
  c.recv(in[kMessages - 2], previous, {});
  c.recv(in[kMessages - 1], previous, {});
  for (auto& p : receives) p->wait();
  for (auto& p : sends) p->wait();
  for (int i = 0; i < kMessages; ++i)
    require(in[static_cast<size_t>(i)].same_bytes(
                filled(DType::kI32, length(i), fmt::format("order {}", i), previous)),
            "message {} differs", i);
}

// Rooms for messages are made, made larger and kept, for some pairs; what comes is right whether it was expected or not.
void expected_messages(Communicator& c) {
  const int n = c.size(), next = (c.rank() + 1) % n, previous = (c.rank() - 1 + n) % n;
  const auto bytes = [](int64_t floats) { return static_cast<size_t>(floats) * sizeof(float); };
  // Nothing, one neighbour, less than before, both with more on every other rank, and more than any backend keeps room for.
  for (int round = 0; round < 5; ++round) {
    const int64_t most = std::array<int64_t, 5>{0, 7001, 500, 20011, 200003}[static_cast<size_t>(round)];
    std::vector<ExpectedMessage> from;
    if (round > 0) from.push_back({previous, bytes(most)});
    if (round == 3 && c.rank() % 2 == 0) from.insert(from.begin(), {next, bytes(most / 2)});
    c.expect_messages(from);
    // More messages than a backend has room for, both ways round the ring and across it, some larger than was said.
    std::vector<int> peers{next};
    for (const int p : {previous, n % 2 == 0 ? (c.rank() + n / 2) % n : previous})
      if (std::find(peers.begin(), peers.end(), p) == peers.end()) peers.push_back(p);
    constexpr int kMessages = 9;
    std::vector<std::vector<Host>> out;
    std::vector<std::unique_ptr<Pending>> sends;
    const auto length = [&](int i) { return i == 4 ? 2 * most + 3 : most * (i % 3 + 1) / 3; };
    const auto purpose = [&](int i) { return fmt::format("expected {} {}", round, i); };
    for (const int peer : peers) {
      out.emplace_back();
      for (int i = 0; i < kMessages; ++i) out.back().push_back(filled(DType::kF32, length(i), purpose(i), c.rank() * 100 + peer));
    }
    for (size_t p = 0; p < peers.size(); ++p)
      for (const Host& x : out[p]) {
        const Transfer one[] = {{Transfer::Kind::kSend, x, peers[p]}};
        sends.push_back(c.start(one, {}));
      }
    for (const int peer : peers)
      for (int i = 0; i < kMessages; ++i) {
        Host x(DType::kF32, length(i));
        c.recv(x, peer, {});
        require(x.same_bytes(filled(DType::kF32, length(i), purpose(i), peer * 100 + c.rank())), "round {}: message {} from rank {} differs",
                round, i, peer);
      }
    for (auto& s : sends) s->wait();
    c.barrier();
  }
}

void messages_to_itself(Communicator& c) {
  Host a = filled(DType::kF64, 5, "a", c.rank()), b = filled(DType::kF64, 5, "b", c.rank());
  Host first(DType::kF64, 5), second(DType::kF64, 5), third(DType::kF64, 5);
  c.send(a, c.rank(), {});
  const Transfer batch[] = {{Transfer::Kind::kSend, b, c.rank()},
                            {Transfer::Kind::kRecv, first, c.rank()},
                            {Transfer::Kind::kRecv, second, c.rank()},
                            {Transfer::Kind::kRecv, third, c.rank()}};
  const auto pending = c.start(batch, {});
  c.send(a, c.rank(), {});  // meets the receive that is open
  pending->wait();
  require(first.same_bytes(a) && second.same_bytes(b) && third.same_bytes(a),
          "messages to itself out of order");
  bool threw = false;
  try {
    c.recv(first, c.rank(), {});  // nothing was sent: can never be filled
  } catch (const CommError&) {
    threw = true;
  }
  require(threw, "a receive from itself without a message did not throw");
  c.send(b, c.rank(), {});  // dropped: belongs to the receive that failed
}

// A receive stays open while collectives run; neither takes the other's data.
void open_receive_during_collectives(Communicator& c) {
  const int next = (c.rank() + 1) % c.size(), previous = (c.rank() - 1 + c.size()) % c.size();
  for (int64_t n : {int64_t{3}, int64_t{30011}}) {
    Host in(DType::kF32, n);
    const Host out = filled(DType::kF32, n, "open", c.rank());
    const Transfer receive[] = {{Transfer::Kind::kRecv, in, previous}};
    const auto pending = c.start(receive, {});
    const auto all = inputs(c, DType::kF32, n, "during");
    Host x = filled(DType::kF32, n, "during", c.rank());
    c.all_reduce(x, ReduceOp::kSum, {});
    check_sum("all_reduce", x, all, 0);
    c.barrier();
    const Transfer send[] = {{Transfer::Kind::kSend, out, next}};
    const auto sending = c.start(send, {});
    Host y = filled(DType::kF32, n, "during", c.rank());
    c.all_reduce(y, ReduceOp::kSum, {});
    require(y.same_bytes(x), "the same sum twice gave different bits");
    pending->wait();
    sending->wait();
    require(in.same_bytes(filled(DType::kF32, n, "open", previous)),
            "the open receive got other data");
  }
}

// No rank leaves before the last one has come (all on one host: one clock).
void barrier(Communicator& c) {
  for (int late = 0; late < c.size(); ++late) {
    if (c.rank() == late) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    const auto now = [] {
      return static_cast<double>(std::chrono::steady_clock::now().time_since_epoch().count());
    };
    Host entered(DType::kF64, 1), left(DType::kF64, 1);
    set_element(entered, 0, now());
    c.barrier();
    set_element(left, 0, -now());
    c.all_reduce(entered, ReduceOp::kMax, {});
    c.all_reduce(left, ReduceOp::kMax, {});
    require(-get(left, 0) >= get(entered, 0),
            "a rank left the barrier {} ns before another entered it",
            get(entered, 0) + get(left, 0));
  }
}

void use_group(Communicator& c) {
  identity(c);
  const auto in = inputs(c, DType::kF32, 3001, "group");
  Host x = filled(DType::kF32, 3001, "group", c.rank());
  c.all_reduce(x, ReduceOp::kSum, {});
  check_sum("all_reduce", x, in, 0);
  order_of_messages(c);
  c.barrier();
}

void split_by_parity(Communicator& c) {
  const auto group = c.split(c.rank() % 2, c.rank(), "half");
  require(group->size() == (c.size() + 1 - c.rank() % 2) / 2, "{} ranks", group->size());
  require(group->rank() == c.rank() / 2, "rank {} of {}", group->rank(), group->name());
  require(group->name().starts_with("half["), "its name is {}", group->name());
  use_group(*group);
  use_group(c);  // the parent is still there, and nothing was mixed up
  group->close();
}

void split_reversed_and_nested(Communicator& c) {
  const auto reversed = c.split(0, -c.rank(), "reversed");
  require(reversed->size() == c.size() && reversed->rank() == c.size() - 1 - c.rank(), "rank {}",
          reversed->rank());
  use_group(*reversed);
  const auto same = c.split(-7, 42, "same");  // equal keys: by rank; a negative color is a color
  require(same->rank() == c.rank(), "equal keys changed the order");
  const auto pair = reversed->split(reversed->rank() / 2, 0, "pair");
  use_group(*pair);
  const auto alone = pair->split(pair->rank(), 0, "alone");
  require(alone->size() == 1 && alone->rank() == 0, "alone are {}", alone->size());
  use_group(*alone);
  use_group(*same);
  // Groups of one parent with the same members do not mix, however their calls interleave.
  Host a(DType::kI64, 1), b(DType::kI64, 1);
  const int next = (c.rank() + 1) % c.size(), previous = (c.rank() - 1 + c.size()) % c.size();
  Host one(DType::kI64, 1), two(DType::kI64, 1);
  set_element(one, 0, 1);
  set_element(two, 0, 2);
  const Transfer receive[] = {{Transfer::Kind::kRecv, a, previous}},
                 other[] = {{Transfer::Kind::kRecv, b, previous}};
  const auto first = c.start(receive, {}), second = same->start(other, {});
  same->send(two, next, {});
  c.send(one, next, {});
  second->wait();
  first->wait();
  require(get(a, 0) == 1 && get(b, 0) == 2, "messages of two groups were mixed: {} {}", get(a, 0),
          get(b, 0));
}

// A random program, the same on all ranks: whatever order of calls, sizes and groups.
void random_program(Communicator& c) {
  const Rng rng(kSeed, "program");
  const auto half = c.split(c.rank() * 2 < c.size() ? 0 : 1, 0, "half");
  for (uint64_t i = 0; i < 150; ++i) {
    Communicator& g = rng.below(i * 8, 3) == 0 ? *half : c;
    const auto n =
        static_cast<int64_t>(rng.below(i * 8 + 1, rng.below(i * 8 + 2, 8) == 0 ? 20000 : 500));
    const DType dtype = kReducible[rng.below(i * 8 + 3, std::size(kReducible))];
    const std::string purpose = fmt::format("program {}", i);
    const int root = static_cast<int>(i) % g.size();
    std::vector<int64_t> counts;
    for (int r = 0; r < g.size(); ++r)
      counts.push_back(static_cast<int64_t>(
          rng.below(i * 512 + static_cast<uint64_t>(r), static_cast<uint64_t>(n) + 1)));
    switch (rng.below(i * 8 + 4, 5)) {
      case 0: {
        Host x = filled(dtype, n, purpose, g.rank());
        g.all_reduce(x, ReduceOp::kSum, {});
        check_sum("all_reduce", x, inputs(g, dtype, n, purpose), 0);
        break;
      }
      case 1: {
        const Host x = filled(dtype, sum(counts), purpose, g.rank());
        Host out(dtype, counts[static_cast<size_t>(g.rank())]);
        g.reduce_scatter(x, out, counts, {});
        check_sum("reduce_scatter", out, inputs(g, dtype, sum(counts), purpose),
                  before(counts, g.rank()));
        break;
      }
      case 2: {
        const Host x = filled(dtype, counts[static_cast<size_t>(g.rank())], purpose, g.rank());
        Host out(dtype, sum(counts));
        g.all_gather(x, out, counts, {});
        for (int r = 0; r < g.size(); ++r) {
          const Host theirs = filled(dtype, counts[static_cast<size_t>(r)], purpose, r);
          const Tensor part = out.part(before(counts, r), theirs.t().numel());
          require(part.empty() || std::memcmp(part.data, theirs.t().data, part.bytes()) == 0,
                  "step {}: rank {}", i, r);
        }
        break;
      }
      case 3: {
        Host x = filled(dtype, n, purpose, g.rank());
        g.broadcast(x, root, {});
        require(x.same_bytes(filled(dtype, n, purpose, root)), "step {}: broadcast from {}", i,
                root);
        break;
      }
      default: {
        Host in(dtype, n);
        const Host out = filled(dtype, n, purpose, g.rank());
        const int to = (g.rank() + root) % g.size(), from = (g.rank() - root + g.size()) % g.size();
        const Transfer both[] = {{Transfer::Kind::kSend, out, to},
                                 {Transfer::Kind::kRecv, in, from}};
        g.start(both, {})->wait();
        require(in.same_bytes(filled(dtype, n, purpose, from)), "step {}: shift by {}", i, root);
        break;
      }
    }
  }
  half->close();
}

void closed_groups_refuse(Communicator& c) {
  const auto group = c.split(0, 0, "closing");
  group->barrier();
  group->close();
  group->close();  // no second farewell
  bool threw = false;
  try {
    group->barrier();
  } catch (const InternalError& e) {
    threw = std::string(e.what()).find(group->name()) != std::string::npos;
  }
  require(threw, "a barrier after close() did not throw, or did not name the group");
}

void wrong_arguments(Communicator& c) {
  const auto refuses = [&](const char* what, auto call) {
    try {
      call();
    } catch (const InternalError& e) {
      require(std::string(e.what()).find(c.name()) != std::string::npos,
              "{}: the message does not name the group: {}", what, e.what());
      return;
    }
    require(false, "{} was accepted", what);
  };
  Host x(DType::kF32, 4), bytes(DType::kU8, 4);
  refuses("a peer beyond the group", [&] { c.send(x, c.size(), {}); });
  refuses("a negative peer", [&] { c.recv(x, -1, {}); });
  refuses("a root beyond the group", [&] { c.broadcast(x, c.size(), {}); });
  refuses("a sum of bytes", [&] { c.all_reduce(bytes, ReduceOp::kSum, {}); });
  refuses("elements without data", [&] {
    c.all_reduce(Tensor{.data = nullptr, .dtype = DType::kF32, .shape = {4}, .device = {}},
                 ReduceOp::kSum, {});
  });
  const std::vector<int64_t> counts(static_cast<size_t>(c.size()), 3);
  refuses("counts that do not fit the part",
          [&] { c.all_gather(x, Host(DType::kF32, 3 * c.size()), counts, {}); });
  refuses("counts that do not fit the whole",
          [&] { c.reduce_scatter(x, Host(DType::kF32, 3), counts, {}); });
  const std::vector<int64_t> too_many(static_cast<size_t>(c.size()) + 1, 1);
  refuses("a count too many", [&] {
    c.all_gather(Host(DType::kF32, 1), Host(DType::kF32, c.size() + 1), too_many, {});
  });
  c.barrier();  // nothing was sent
}

}  // namespace

void set_ordered_sums(bool ordered) { g_ordered_sums = ordered; }

const std::vector<Case>& conformance_cases() {
  static const std::vector<Case> cases = {
      {"identity", identity},
      {"all_reduce_sum", all_reduce_sum},
      {"all_reduce_large", all_reduce_large},
      {"all_reduce_max", all_reduce_max},
      {"all_reduce_special_values", all_reduce_special_values},
      {"all_gather", all_gather},
      {"reduce_scatter", reduce_scatter},
      {"start_sharded", start_sharded},
      {"broadcast", broadcast},
      {"all_to_all", all_to_all},
      {"send_recv", send_recv},
      {"start_exchange", start_exchange},
      {"order_of_messages", order_of_messages},
      {"expected_messages", expected_messages},
      {"messages_to_itself", messages_to_itself},
      {"open_receive_during_collectives", open_receive_during_collectives},
      {"barrier", barrier},
      {"split_by_parity", split_by_parity},
      {"split_reversed_and_nested", split_reversed_and_nested},
      {"random_program", random_program},
      {"closed_groups_refuse", closed_groups_refuse},
      {"wrong_arguments", wrong_arguments},
  };
  return cases;
}

}  // namespace r1::comm::test
