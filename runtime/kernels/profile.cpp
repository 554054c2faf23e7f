#include "runtime/kernels/profile.h"

#include <algorithm>
#include <chrono>
#include <memory>

#include "runtime/core/error.h"
#include "runtime/device/device.h"
#include "runtime/kernels/kernel_table.h"

namespace r1::kernels {
namespace {

struct Cost {
  double flops = 0, bytes = 0;
};

/// Bytes of the tensors among the arguments.
template <class T>
double bytes_of(const T&) {
  return 0;
}
template <>
double bytes_of(const Tensor& t) {
  return t.data == nullptr ? 0 : static_cast<double>(t.bytes());
}
template <>
double bytes_of(const std::span<const Tensor>& list) {
  double n = 0;
  for (const Tensor& t : list) n += bytes_of(t);
  return n;
}
template <class... A>
double all_bytes(const A&... a) {
  return (bytes_of(a) + ... + 0.0);
}

double product_flops(const Tensor& a, int64_t other) { return 2.0 * static_cast<double>(a.numel()) * static_cast<double>(other); }

/// Scores that the causal mask leaves, over all q heads.
double scores(const AttentionArgs& args) {
  double n = 0;
  for (size_t i = 1; i < args.host_cu.size(); ++i) {
    const double length = args.host_cu[i] - args.host_cu[i - 1];
    n += length * length / 2;
  }
  return n * static_cast<double>(args.q_heads);
}

const Stream& stream_among(const Stream& s) { return s; }
template <class First, class... Rest>
const Stream& stream_among(const First&, const Rest&... rest) {
  return stream_among(rest...);
}

/// Operations whose cost is not that of reading or writing each operand once.
template <auto Op>
struct CostOf {
  template <class... A>
  static Cost of(const A&... a) {
    return {0, all_bytes(a...)};
  }
};
template <>
struct CostOf<&KernelTable::linear_forward> {
  static Cost of(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& y, const Stream&) {
    return {product_flops(x, w.dim(0)), all_bytes(x, w, bias, y)};
  }
};
template <>
struct CostOf<&KernelTable::linear_backward_input> {
  static Cost of(const Tensor& dy, const Tensor& w, const Tensor& dx, bool accumulate, const Stream&) {
    return {product_flops(dy, w.dim(1)), all_bytes(dy, w, dx) + (accumulate ? bytes_of(dx) : 0)};
  }
};
template <>
struct CostOf<&KernelTable::linear_backward_weight> {
  static Cost of(const Tensor& dy, const Tensor& x, const Tensor& dw, bool accumulate, const Stream&) {
    return {product_flops(dy, x.dim(1)), all_bytes(dy, x, dw) + (accumulate ? bytes_of(dw) : 0)};
  }
};
template <>
struct CostOf<&KernelTable::attention_forward> {
  static Cost of(const Tensor& qkv, const Tensor&, const AttentionArgs& a, const Tensor& o, const Tensor& lse,
                 const Tensor&, const Stream&) {
    return {4 * scores(a) * static_cast<double>(a.head_dim), all_bytes(qkv, o, lse)};
  }
};
template <>
struct CostOf<&KernelTable::attention_backward> {
  static Cost of(const Tensor& d, const Tensor& qkv, const Tensor& o, const Tensor& lse, const Tensor&,
                 const AttentionArgs& a, const Tensor& dqkv, const Tensor&, const Stream&) {
    return {10 * scores(a) * static_cast<double>(a.head_dim), all_bytes(d, qkv, o, lse, dqkv)};
  }
};
template <>
struct CostOf<&KernelTable::rope> {  // in place
  static Cost of(const Tensor& qkv, const Tensor& positions, const Tensor&, const RopeArgs& a, const Stream&) {
    const double turned = static_cast<double>(a.q_heads + a.kv_heads) / static_cast<double>(a.q_heads + 2 * a.kv_heads);
    return {0, 2 * turned * bytes_of(qkv) + bytes_of(positions)};
  }
};
template <>
struct CostOf<&KernelTable::cross_entropy_backward> {  // in place
  static Cost of(const Tensor& logits, const Tensor& targets, int64_t, const Tensor& lse, float, const Stream&) {
    return {0, all_bytes(logits, logits, targets, lse)};
  }
};
template <>
struct CostOf<&KernelTable::adamw_step> {  // the gradient is only read
  static Cost of(const Tensor& p, const Tensor& master, const Tensor& g, const Tensor& m, const Tensor& v, const Tensor&,
                 const AdamWArgs&, const Stream&) {
    return {0, all_bytes(p, g, m, m, v, v) + (master.data != nullptr ? 2 * bytes_of(master) : bytes_of(p))};
  }
};
template <>
struct CostOf<&KernelTable::add_into> {
  static Cost of(const Tensor& dst, const Tensor& src, const Stream&) { return {0, all_bytes(dst, dst, src)}; }
};
template <>
struct CostOf<&KernelTable::scale> {
  static Cost of(const Tensor& x, float, const Stream&) { return {0, all_bytes(x, x)}; }
};
template <>
struct CostOf<&KernelTable::embedding_forward> {  // one row of the table a token
  static Cost of(const Tensor& ids, const Tensor&, int64_t, const Tensor& y, const Stream&) {
    return {0, all_bytes(ids, y, y)};
  }
};
template <>
struct CostOf<&KernelTable::embedding_backward> {
  static Cost of(const Tensor& ids, const Tensor& dy, int64_t, const Tensor&, const Stream&) {
    return {0, all_bytes(ids, dy) + 2 * 4.0 * static_cast<double>(dy.numel())};
  }
};

struct Sample {
  size_t op = 0;
  Cost cost;
  Event begin, end;
  double seconds = 0;  // where streams run at once
};

/// The profile under way.
class Profiler {
 public:
  explicit Profiler(DeviceKind kind) : kind_(kind), table_(kernel_table(kind)) {}
  [[nodiscard]] DeviceKind kind() const { return kind_; }
  [[nodiscard]] const KernelTable& table() const { return table_; }

  template <class Work>
  void time(const char* name, Cost cost, const Stream& s, const Work& work) {
    DeviceBackend& backend = backend_of(kind_);
    Sample sample{.op = index(name), .cost = cost};
    sample.begin = event(s);
    backend.record(sample.begin, s);
    const auto start = std::chrono::steady_clock::now();
    work();
    sample.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    sample.end = event(s);
    backend.record(sample.end, s);
    samples_.push_back(sample);
  }

  std::vector<OpProfile> finish() {
    DeviceBackend& backend = backend_of(kind_);
    std::vector<OpProfile> out(names_.size());
    for (const Sample& sample : samples_) {
      OpProfile& p = out[sample.op];
      p.name = names_[sample.op];
      ++p.calls;
      p.flops += sample.cost.flops;
      p.bytes += sample.cost.bytes;
      backend.synchronize(sample.end);
      p.seconds += kind_ == DeviceKind::kCpu ? sample.seconds : 1e-6 * backend.elapsed_us(sample.begin, sample.end);
      backend.destroy_event(sample.begin);
      backend.destroy_event(sample.end);
    }
    std::stable_sort(out.begin(), out.end(), [](const auto& a, const auto& b) { return a.seconds > b.seconds; });
    return out;
  }

 private:
  size_t index(const char* name) {
    const auto it = std::find(names_.begin(), names_.end(), name);
    if (it != names_.end()) return static_cast<size_t>(it - names_.begin());
    names_.emplace_back(name);
    return names_.size() - 1;
  }
  Event event(const Stream& s) const { return backend_of(kind_).create_event(s.device, true); }

  DeviceKind kind_;
  const KernelTable& table_;
  std::vector<std::string> names_;
  std::vector<Sample> samples_;
};

// Operations find their implementation by device kind alone, so what stands in between is per process.
std::unique_ptr<Profiler>& profiler() {
  static std::unique_ptr<Profiler> instance;
  return instance;
}

template <auto Op>
struct Timed;
template <class... A, void (*KernelTable::*Op)(A...)>
struct Timed<Op> {
  static inline const char* name = "";
  static void call(A... a) {
    profiler()->time(name, CostOf<Op>::of(a...), stream_among(a...), [&] { (profiler()->table().*Op)(a...); });
  }
};

const KernelTable& timed_table() {
  static const KernelTable table = [] {
    KernelTable t;
#define R1_TIMED(op)                              \
  Timed<&KernelTable::op>::name = #op;            \
  t.op = Timed<&KernelTable::op>::call;
    R1_FOR_EACH_KERNEL(R1_TIMED)
#undef R1_TIMED
    return t;
  }();
  return table;
}

}  // namespace

void profile_begin(DeviceKind kind) {
  R1_CHECK(profiler() == nullptr, "a profile is under way already");
  profiler() = std::make_unique<Profiler>(kind);
  intercept(kind, &timed_table());
}

std::vector<OpProfile> profile_end() {
  R1_CHECK(profiler() != nullptr, "no profile is under way");
  intercept(profiler()->kind(), nullptr);
  std::vector<OpProfile> out = profiler()->finish();
  profiler().reset();
  return out;
}

}  // namespace r1::kernels
