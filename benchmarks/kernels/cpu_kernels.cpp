// Rates of the CPU kernels against two ceilings of the same machine, measured in the same run: the
// BLAS product of 1024^3 on one thread times the threads, and a large copy.
//
//   cpu_kernels [--threads N] [--seconds S] [--filter TEXT] [--clock wall|cpu]
//
// Columns: operation and shape, best and median time of a call, rate of the best, its share of the
// ceiling. Bytes are those the operation must read and write at least once; FLOPs those of the
// formula (attention: the causal half). --clock cpu counts processor time of all threads, for a
// machine that others use too; rates are then per processor second.
#include <cblas.h>
#include <fmt/format.h>
#include <time.h>

#include <algorithm>
#include <boost/program_options.hpp>
#include <cmath>
#include <cstring>
#include <functional>
#include <iostream>
#include <string>
#include <vector>

#include "runtime/core/rng.h"
#include "runtime/device/cpu/thread_pool.h"
#include "runtime/device/device.h"
#include "runtime/kernels/exact_sum.h"
#include "runtime/kernels/ops.h"

namespace r1::kernels {
namespace {

double now(clockid_t clock) {
  timespec t{};
  clock_gettime(clock, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

struct Options {
  int threads = 1;
  double seconds = 0.3;  // a row
  std::string filter;
  clockid_t clock = CLOCK_MONOTONIC;
};

/// A tensor filled with small random numbers (no denormals, no overflow), made at its first use:
/// rows that are filtered out cost nothing.
class Data {
 public:
  Data(DType type, Shape shape) {
    tensor_ = {.data = nullptr, .dtype = type, .shape = shape, .device = {}};
  }
  operator Tensor() const {  // NOLINT: stands for the tensor at the call
    make();
    return tensor_;
  }
  template <class T>
  [[nodiscard]] T* ptr() const {
    make();
    return tensor_.ptr<T>();
  }

 private:
  void make() const {
    if (tensor_.data != nullptr) return;
    buffer_ = Buffer({}, tensor_.bytes());
    tensor_.data = buffer_.data();
    std::memset(buffer_.data(), 0, buffer_.bytes());
    if (tensor_.dtype != DType::kF32) return;
    uint64_t state = 88172645463325252ULL;
    for (int64_t i = 0; i < tensor_.numel(); ++i) {
      state ^= state << 13, state ^= state >> 7, state ^= state << 17;
      tensor_.ptr<float>()[i] =
          static_cast<float>(static_cast<double>(state >> 11) * 0x1p-52 - 1.0);
    }
  }
  mutable Buffer buffer_;
  mutable Tensor tensor_;
};
Data f32(Shape s) { return {DType::kF32, s}; }

struct Time {
  double best, median;
};

Time measure(const Options& o, const std::function<void()>& call) {
  call();
  std::vector<double> times;
  const double start = now(CLOCK_MONOTONIC);
  while (times.size() < 5 || (now(CLOCK_MONOTONIC) - start < o.seconds && times.size() < 10000)) {
    const double t = now(o.clock);
    call();
    times.push_back(now(o.clock) - t);
  }
  std::sort(times.begin(), times.end());
  return {times.front(), times[times.size() / 2]};
}

enum class Ceiling { kGemm, kCopy };

class Table {
 public:
  explicit Table(const Options& o) : options_(o) {
    const Data a = f32({1024, 1024}), b = f32({1024, 1024}), c = f32({1024, 1024});
    openblas_set_num_threads(1);
    Options longer = o;
    longer.seconds = std::max(1.0, o.seconds);
    const double one =
        measure(longer, [&] {
          cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, 1024, 1024, 1024, 1.0F,
                      a.ptr<float>(), 1024, b.ptr<float>(), 1024, 0.0F, c.ptr<float>(), 1024);
        }).best;
    // Per processor second the ceiling is that of one thread; on the wall clock, of all.
    const double threads = o.clock == CLOCK_MONOTONIC ? o.threads : 1;
    gemm_ = 2.0 * 1024 * 1024 * 1024 / one * threads;
    constexpr size_t kBytes = size_t{256} << 20;
    const Buffer from({}, kBytes), to({}, kBytes);
    std::memset(from.data(), 1, kBytes);
    copy_ = 2.0 * kBytes / measure(longer, [&] {
                             backend_of(DeviceKind::kCpu).copy(to.data(), from.data(), kBytes, {});
                           }).best;
    fmt::print("threads {}, ceilings: product 1024^3 {:.1f} GFLOP/s, copy {:.2f} GB/s ({} clock)\n",
               o.threads, gemm_ * 1e-9, copy_ * 1e-9, o.clock == CLOCK_MONOTONIC ? "wall" : "cpu");
    fmt::print("{:<26} {:<30} {:>9} {:>9} {:>9} {:>8}  {:>5}\n", "operation", "shape", "best ms",
               "median", "rate", "", "share");
  }

  void row(const std::string& op, const std::string& shape, Ceiling ceiling, double work,
           const std::function<void()>& call) {
    if ((op + " " + shape).find(options_.filter) == std::string::npos) return;
    const Time t = measure(options_, call);
    const bool gemm = ceiling == Ceiling::kGemm;
    fmt::print("{:<26} {:<30} {:>9.4f} {:>9.4f} {:>9.2f} {:>8}  {:>4.0f}%\n", op, shape,
               t.best * 1e3, t.median * 1e3, work / t.best * 1e-9, gemm ? "GFLOP/s" : "GB/s",
               100 * work / t.best / (gemm ? gemm_ : copy_));
    std::fflush(stdout);
  }

 private:
  Options options_;
  double gemm_ = 0, copy_ = 0;
};

void linear(Table& table) {
  struct Dims {
    int64_t tokens, in, out;
  };
  for (const auto& [T, IN, OUT] :
       {Dims{512, 768, 1280}, Dims{512, 768, 768}, Dims{512, 768, 2304}, Dims{512, 768, 4096},
        Dims{512, 2048, 768}, Dims{512, 768, 32000}, Dims{128, 768, 32000}, Dims{512, 384, 640},
        Dims{2048, 768, 4096}, Dims{64, 64, 192}}) {
    const Data x = f32({T, IN}), w = f32({OUT, IN}), y = f32({T, OUT}), dx = f32({T, IN}),
               dw = f32({OUT, IN});
    const auto flop = static_cast<double>(2 * T * IN * OUT);
    const std::string shape = fmt::format("[{}, {}] -> {}", T, IN, OUT);
    table.row("linear_forward", shape, Ceiling::kGemm, flop,
              [&] { linear_forward(x, w, {}, y, {}); });
    table.row("linear_backward_input", shape, Ceiling::kGemm, flop,
              [&] { linear_backward_input(y, w, dx, false, {}); });
    table.row("linear_backward_weight", shape, Ceiling::kGemm, flop,
              [&] { linear_backward_weight(y, x, dw, true, {}); });
  }
  for (const int64_t T : {1, 2, 4, 8, 16, 32})
    for (const auto& [in, out] :
         {std::pair<int64_t, int64_t>{768, 4096}, {2048, 768}, {768, 32000}, {1536, 17920}}) {
      const Data x = f32({T, in}), w = f32({out, in}), y = f32({T, out});
      table.row("linear_forward (decode)", fmt::format("[{}, {}] -> {}", T, in, out),
                Ceiling::kCopy, static_cast<double>(4 * (in * out + T * (in + out))),
                [&] { linear_forward(x, w, {}, y, {}); });
    }
  const Data dy = f32({512, 4096}), db = f32({4096});
  table.row("bias_backward", "[512, 4096]", Ceiling::kCopy, 4.0 * 512 * 4096,
            [&] { bias_backward(dy, db, {}); });
}

void attention(Table& table) {
  struct Dims {
    int64_t segments, length, q, kv, dim;
  };
  for (const Dims& d :
       {Dims{1, 512, 12, 4, 64}, Dims{4, 128, 12, 4, 64}, Dims{16, 32, 12, 4, 64},
        Dims{1, 512, 1, 1, 64}, Dims{1, 2048, 12, 2, 128}, Dims{1, 4096, 12, 4, 64}}) {
    const int64_t tokens = d.segments * d.length, width = (d.q + 2 * d.kv) * d.dim;
    const Data qkv = f32({tokens, width}), o = f32({tokens, d.q * d.dim}), lse = f32({d.q, tokens});
    const Data d_o = f32({tokens, d.q * d.dim}), dqkv = f32({tokens, width});
    const Data cu(DType::kI32, {d.segments + 1});
    std::vector<int32_t> map, host_cu;
    for (int64_t i = 0; i <= d.segments; ++i) host_cu.push_back(static_cast<int32_t>(i * d.length));
    for (int64_t h = 0; h < d.q; ++h) map.push_back(static_cast<int32_t>(h * d.kv / d.q));
    const AttentionArgs args{.q_heads = d.q,
                             .kv_heads = d.kv,
                             .head_dim = d.dim,
                             .kv_of_q = map,
                             .scale = 0.125F,
                             .max_segment = d.length,
                             .host_cu = host_cu};
    // Two products forward and five backward over the keys a query sees.
    const double product =
        2.0 * static_cast<double>(d.segments * d.length * (d.length + 1) / 2 * d.q * d.dim);
    const std::string shape =
        fmt::format("{}x{}, {}/{} heads of {}", d.segments, d.length, d.q, d.kv, d.dim);
    table.row("attention_forward", shape, Ceiling::kGemm, 2 * product,
              [&] { attention_forward(qkv, cu, args, o, lse, {}, {}); });
    table.row("attention_backward", shape, Ceiling::kGemm, 5 * product,
              [&] { attention_backward(d_o, qkv, o, lse, cu, args, dqkv, {}, {}); });
  }
  for (const int64_t context : {512, 4096}) {
    const int64_t sequences = 4, blocks = sequences * context / 16;
    const Data q = f32({sequences, 12 * 64}), k = f32({blocks, 16, 4, 64}),
               v = f32({blocks, 16, 4, 64});
    const Data o = f32({sequences, 12 * 64}), block_table(DType::kI32, {sequences, context / 16}),
               lens(DType::kI32, {sequences});
    for (int64_t i = 0; i < blocks; ++i) block_table.ptr<int32_t>()[i] = static_cast<int32_t>(i);
    for (int64_t i = 0; i < sequences; ++i) lens.ptr<int32_t>()[i] = static_cast<int32_t>(context);
    const std::vector<int32_t> map = {0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3};
    const DecodeAttentionArgs args{.q_heads = 12,
                                   .kv_heads = 4,
                                   .head_dim = 64,
                                   .kv_of_q = map,
                                   .scale = 0.125F,
                                   .max_context = context};
    table.row("decode_attention", fmt::format("{}x{}, 12/4 heads of 64", sequences, context),
              Ceiling::kCopy, static_cast<double>(2 * sequences * context * 4 * 64 * 4),
              [&] { decode_attention(q, k, v, block_table, lens, args, o, {}, {}); });
  }
}

void elementwise(Table& table) {
  const auto bytes = [](int64_t n) { return 4.0 * static_cast<double>(n); };
  for (const auto& [T, H, F] :
       {std::tuple<int64_t, int64_t, int64_t>{512, 768, 2048}, {8192, 2048, 5632}}) {
    const Data x = f32({T, H}), y = f32({T, H}), z = f32({T, H}), w = f32({H}), rstd = f32({T}),
               dw = f32({H});
    const std::string shape = fmt::format("[{}, {}]", T, H);
    table.row("rmsnorm_forward", shape, Ceiling::kCopy, bytes(2 * T * H),
              [&] { rmsnorm_forward(x, w, 1e-6F, y, rstd, {}); });
    table.row("add_rmsnorm_forward", shape, Ceiling::kCopy, bytes(4 * T * H),
              [&] { add_rmsnorm_forward(x, z, w, 1e-6F, z, y, rstd, {}); });
    table.row("rmsnorm_backward", shape, Ceiling::kCopy, bytes(4 * T * H),
              [&] { rmsnorm_backward(y, x, w, rstd, z, z, dw, {}); });
    table.row("add", shape, Ceiling::kCopy, bytes(3 * T * H), [&] { add(x, y, z, {}); });
    table.row("add_into", shape, Ceiling::kCopy, bytes(3 * T * H), [&] { add_into(z, y, {}); });
    table.row("scale", shape, Ceiling::kCopy, bytes(2 * T * H), [&] { scale(z, 1.0F, {}); });
    const Data gate_up = f32({T, 2 * F}), h = f32({T, F}), dgate_up = f32({T, 2 * F});
    const std::string wide = fmt::format("[{}, 2 x {}]", T, F);
    table.row("swiglu_forward", wide, Ceiling::kCopy, bytes(3 * T * F),
              [&] { swiglu_forward(gate_up, h, {}); });
    table.row("swiglu_backward", wide, Ceiling::kCopy, bytes(5 * T * F),
              [&] { swiglu_backward(h, gate_up, dgate_up, {}); });
    const int64_t dim = 64, kv = 4, q = H / dim, width = (q + 2 * kv) * dim;
    const Data qkv = f32({T, width}), raw = f32({T, width}), cs = f32({T, dim}),
               pos(DType::kI32, {T});
    const Data qw = f32({dim}), kw = f32({dim}), dqw = f32({dim}), dkw = f32({dim}),
               qk_rstd = f32({T, q + kv});
    const RopeArgs args{.q_heads = q, .kv_heads = kv, .head_dim = dim};
    const std::string heads = fmt::format("[{}, ({} + 2 x {}) x {}]", T, q, kv, dim);
    for (int64_t t = 0; t < T; ++t) pos.ptr<int32_t>()[t] = static_cast<int32_t>(t);
    for (int64_t t = 0; t < T; ++t)  // unit rotations: repeated in place, the values stay in range
      for (int64_t i = 0; i < dim / 2; ++i) {
        cs.ptr<float>()[t * dim + i] = static_cast<float>(std::cos(static_cast<double>(t * i)));
        cs.ptr<float>()[t * dim + dim / 2 + i] =
            static_cast<float>(std::sin(static_cast<double>(t * i)));
      }
    table.row("rope", heads, Ceiling::kCopy, bytes(2 * T * (q + kv) * dim),
              [&] { rope(qkv, pos, cs, args, {}); });
    table.row("qk_norm_forward", heads, Ceiling::kCopy, bytes(2 * T * width),
              [&] { qk_norm_forward(raw, qw, kw, 1e-6F, args, qkv, qk_rstd, {}); });
    table.row("qk_norm_backward", heads, Ceiling::kCopy, bytes(3 * T * width),
              [&] { qk_norm_backward(qkv, raw, qw, kw, qk_rstd, args, dqw, dkw, {}); });
  }
  {
    const int64_t T = 512, V = 32000, H = 768;
    const Data ids(DType::kI32, {T}), w = f32({V, H}), y = f32({T, H});
    for (int64_t t = 0; t < T; ++t) ids.ptr<int32_t>()[t] = static_cast<int32_t>(t * 7919 % V);
    table.row("embedding_forward", "[512] of [32000, 768]", Ceiling::kCopy, bytes(2 * T * H),
              [&] { embedding_forward(ids, w, 0, y, {}); });
    table.row("embedding_backward", "[512] of [32000, 768]", Ceiling::kCopy, bytes(3 * T * H),
              [&] { embedding_backward(ids, y, 0, w, {}); });
  }
  for (const int64_t C : {128, 512}) {
    const int64_t V = 32000;
    const Data logits = f32({C, V}), targets(DType::kI32, {C}), stats = f32({3, C}), lse = f32({C}),
               loss = f32({C});
    const std::string shape = fmt::format("[{}, {}]", C, V);
    table.row("cross_entropy_stats", shape, Ceiling::kCopy, bytes(C * V),
              [&] { cross_entropy_stats(logits, targets, 0, stats, {}); });
    table.row("cross_entropy_combine", shape, Ceiling::kCopy, bytes(5 * C), [&] {
      cross_entropy_combine(Tensor(stats).view({1, 3, C}), targets, lse, loss, {});
    });
    table.row("cross_entropy_backward", shape, Ceiling::kCopy, bytes(2 * C * V),
              [&] { cross_entropy_backward(logits, targets, 0, lse, 1.0F, {}); });
  }
  {
    const int64_t n = 20'000'000;
    const Data p = f32({n}), g = f32({n}), m = f32({n}), v = f32({n}), one = f32({1});
    const Data half(DType::kBF16, {n}), fp16(DType::kF16, {n});
    *one.ptr<float>() = 1.0F;
    for (int64_t i = 0; i < n; ++i) v.ptr<float>()[i] = std::abs(v.ptr<float>()[i]);
    table.row("adamw_step", "20M", Ceiling::kCopy, bytes(7 * n), [&] {
      adamw_step(p, {}, g, m, v, one, {.lr = 1e-4, .weight_decay = 0.01, .step = 10}, {});
    });
    const Data words(DType::kI64, {kExactWords});
    const std::array<Tensor, 1> matrix{Tensor(g).view({n / 1000, 1000})};
    table.row("sum_of_squares", "20M", Ceiling::kCopy, bytes(n),
              [&] { sum_of_squares(matrix, words, {}); });
    table.row("cast fp32 to bf16", "20M", Ceiling::kCopy, bytes(n) * 1.5,
              [&] { cast(g, half, {}); });
    table.row("cast bf16 to fp32", "20M", Ceiling::kCopy, bytes(n) * 1.5,
              [&] { cast(half, g, {}); });
    table.row("cast fp32 to fp16", "20M", Ceiling::kCopy, bytes(n) * 1.5,
              [&] { cast(g, fp16, {}); });
    table.row("cast fp16 to fp32", "20M", Ceiling::kCopy, bytes(n) * 1.5,
              [&] { cast(fp16, g, {}); });
    table.row("add_into bf16 to fp32", "20M", Ceiling::kCopy, bytes(n) * 2.5,
              [&] { add_into(g, half, {}); });
  }
  const Data wide = f32({4096, 4096}), narrow = f32({4096, 1000});
  table.row("copy_columns", "1000 of [4096, 4096]", Ceiling::kCopy, bytes(2 * 4096 * 1000),
            [&] { copy_columns(wide, 17, narrow, {}); });
}

int run(int argc, char** argv) {
  namespace po = boost::program_options;
  Options o;
  std::string clock = "wall";
  po::options_description d(
      "cpu_kernels: rates of the CPU kernels against the machine's own ceilings");
  d.add_options()("help", "this text")("threads", po::value(&o.threads)->default_value(o.threads),
                                       "CPU threads")(
      "seconds", po::value(&o.seconds)->default_value(o.seconds), "time spent on each row")(
      "filter", po::value(&o.filter), "only rows whose operation and shape contain this")(
      "clock", po::value(&clock)->default_value(clock),
      "wall, or cpu on a machine that others use too");
  po::variables_map vm;
  po::store(po::parse_command_line(argc, argv, d), vm);
  po::notify(vm);
  if (vm.count("help") != 0) {
    std::cout << d;
    return 0;
  }
  if (clock != "wall" && clock != "cpu") throw UsageError("--clock {}: wall or cpu", clock);
  if (o.threads < 1) throw UsageError("--threads {}: at least 1", o.threads);
  if (clock == "cpu") o.clock = CLOCK_PROCESS_CPUTIME_ID;
  set_cpu_threads(o.threads);
  Table table(o);
  linear(table);
  attention(table);
  elementwise(table);
  return 0;
}

}  // namespace
}  // namespace r1::kernels

int main(int argc, char** argv) {
  try {
    return r1::kernels::run(argc, argv);
  } catch (const std::exception& e) {
    std::cerr << "cpu_kernels: " << e.what() << "\n";
    return static_cast<int>(r1::ExitCode::kUsage);
  }
}
