// Time of every CUDA operation at the shapes of R1-Distill-Qwen-1.5B and -7B, as a share of the
// ceilings measured in the same run: a bf16 product of 8192^3 for arithmetic, a large
// device-to-device copy for bytes.
//
//   bench_cuda_kernels [--cache DIR] [--only TEXT] [--deterministic]
//
// Times are medians over graph replays of ten calls. Data is random; the data of a call exceeds the
// L2 cache where the operation is bound by memory. The last table adds the operations of a step up
// and compares with the step's floor.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "runtime/core/error.h"
#include "runtime/core/rng.h"
#include "runtime/device/cuda/cuda_api.h"
#include "runtime/device/cuda_library.h"
#include "runtime/device/device.h"
#include "runtime/kernels/exact_sum.h"
#include "runtime/kernels/ops.h"

namespace r1 {
namespace {

using kernels::AttentionArgs;

constexpr Device kGpu{.kind = DeviceKind::kCuda, .index = 0};
constexpr DType kB = DType::kBF16, kF = DType::kF32;

struct Bench {
  cuda::Api& api;
  Stream s;
  std::string only;
  double gemm_ceiling = 0, copy_ceiling = 0;  // FLOP/s, bytes/s
  std::map<std::string, double> us;           // by name

  /// Median microseconds of one call.
  double time(const std::function<void()>& call, bool graphs = true) {
    DeviceBackend& backend = backend_of(DeviceKind::kCuda);
    call();  // plans, algorithms, scratch
    call();
    backend.synchronize(s);
    constexpr int kCalls = 10;
    const Event begin = backend.create_event(kGpu, true), end = backend.create_event(kGpu, true);
    Graph graph;
    if (graphs) try {
      backend.begin_capture(s);
      for (int i = 0; i < kCalls; ++i) call();
      graph = backend.end_capture(s);
    } catch (const Error&) {
      backend.abandon_capture(s);
    }
    std::vector<double> times;
    for (int repeat = 0; repeat < 7; ++repeat) {
      if (repeat == 0 && graph.handle != nullptr) backend.launch(graph, s);  // uploads the graph
      backend.record(begin, s);
      if (graph.handle != nullptr)
        backend.launch(graph, s);
      else
        for (int i = 0; i < kCalls; ++i) call();
      backend.record(end, s);
      backend.synchronize(end);
      times.push_back(backend.elapsed_us(begin, end) / kCalls);
    }
    backend.destroy_graph(graph);
    backend.destroy_event(begin);
    backend.destroy_event(end);
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  }

  void report(const std::string& name, double flop, double bytes,
              const std::function<void()>& call) {
    if (!only.empty() && name.find(only) == std::string::npos) return;
    const double t = time(call);
    us[name] = t;
    const double flops = flop / t * 1e6, rate = bytes / t * 1e6;
    if (flop > 0)
      std::printf("%-52s %10.1f us %8.1f TFLOP/s %5.1f %%\n", name.c_str(), t, flops * 1e-12,
                  100 * flops / gemm_ceiling);
    else
      std::printf("%-52s %10.1f us %8.2f TB/s    %5.1f %%\n", name.c_str(), t, rate * 1e-12,
                  100 * rate / copy_ceiling);
    std::fflush(stdout);
  }
};

/// A block of device memory filled with normal numbers (made on the host once and repeated).
class Pool {
 public:
  explicit Pool(const Stream& s) : s_(s) {
    const Rng rng(1, "benchmark");
    std::vector<uint16_t> half(kPattern);
    std::vector<float> full(kPattern);
    for (size_t i = 0; i < kPattern; ++i) {
      full[i] = static_cast<float>(rng.normal(i));
      half[i] = float_to_bf16(full[i]);
    }
    half_ = Buffer(kGpu, kPattern * 2);
    full_ = Buffer(kGpu, kPattern * 4);
    DeviceBackend& b = backend_of(DeviceKind::kCuda);
    b.copy(half_.data(), half.data(), kPattern * 2, s_);
    b.copy(full_.data(), full.data(), kPattern * 4, s_);
    b.synchronize(s_);
  }
  Tensor tensor(DType t, Shape shape) {
    Tensor x{.data = nullptr, .dtype = t, .shape = shape, .device = kGpu};
    owned_.emplace_back(kGpu, std::max<size_t>(x.bytes(), 256));
    x.data = owned_.back().data();
    DeviceBackend& b = backend_of(DeviceKind::kCuda);
    const Buffer& from = t == kB ? half_ : full_;
    for (size_t at = 0; at < x.bytes(); at += from.bytes())
      b.copy(static_cast<char*>(x.data) + at, from.data(), std::min(from.bytes(), x.bytes() - at),
             s_);
    return x;
  }
  Tensor ints(const std::vector<int32_t>& v) {
    Tensor x{.data = nullptr,
             .dtype = DType::kI32,
             .shape = {static_cast<int64_t>(v.size())},
             .device = kGpu};
    owned_.emplace_back(kGpu, x.bytes());
    x.data = owned_.back().data();
    backend_of(DeviceKind::kCuda).copy(x.data, v.data(), x.bytes(), s_);
    backend_of(DeviceKind::kCuda).synchronize(s_);
    return x;
  }
  void clear() {
    backend_of(DeviceKind::kCuda).synchronize(s_);
    owned_.clear();
  }

 private:
  static constexpr size_t kPattern = size_t{1} << 22;
  Stream s_;
  Buffer half_, full_;
  std::vector<Buffer> owned_;
};

struct Model {
  const char* name;
  int64_t layers, hidden, ffn, nq, nkv, vocab;
  int64_t params() const {
    return layers *
               (hidden * (nq + 2 * nkv) * 128 + nq * 128 * hidden + 3 * hidden * ffn + 2 * hidden) +
           2 * vocab * hidden;
  }
};

std::vector<int32_t> kv_of_q(int64_t nq, int64_t nkv) {
  std::vector<int32_t> kv(static_cast<size_t>(nq));
  for (int64_t i = 0; i < nq; ++i)
    kv[static_cast<size_t>(i)] = static_cast<int32_t>(i / (nq / nkv));
  return kv;
}

void ceilings(Bench& b, Pool& pool) {
  const int64_t n = 8192;
  const Tensor x = pool.tensor(kB, {n, n}), w = pool.tensor(kB, {n, n}),
               y = pool.tensor(kB, {n, n});
  const double t = b.time([&] { kernels::linear_forward(x, w, {}, y, b.s); });
  b.gemm_ceiling = 2.0 * n * n * n / t * 1e6;
  // Not from a graph: its copies take another way, at two thirds of the rate (2.71 against 4.15 TB/s on an H200).
  const size_t bytes = size_t{512} << 20;
  const Buffer from(kGpu, bytes), to(kGpu, bytes);
  backend_of(DeviceKind::kCuda).fill_zero(from.data(), bytes, b.s);
  const double c = b.time([&] { backend_of(DeviceKind::kCuda).copy(to.data(), from.data(), bytes, b.s); }, false);
  b.copy_ceiling = 2.0 * static_cast<double>(bytes) / c * 1e6;
  std::printf("ceilings: product of 8192^3 %.1f TFLOP/s, copy %.2f TB/s\n", b.gemm_ceiling * 1e-12,
              b.copy_ceiling * 1e-12);
  pool.clear();
}

void linear(Bench& b, Pool& pool, const std::string& name, int64_t tokens, int64_t in, int64_t out,
            bool bias) {
  const Tensor x = pool.tensor(kB, {tokens, in}), w = pool.tensor(kB, {out, in}),
               y = pool.tensor(kB, {tokens, out});
  const Tensor bs = bias ? pool.tensor(kB, {out}) : Tensor{};
  const Tensor dw32 = pool.tensor(kF, {out, in}), dw16 = pool.tensor(kB, {out, in});
  const double flop =
      2.0 * static_cast<double>(tokens) * static_cast<double>(in) * static_cast<double>(out);
  b.report(name + " forward", flop, 0, [&] { kernels::linear_forward(x, w, bs, y, b.s); });
  b.report(name + " dx", flop, 0, [&] { kernels::linear_backward_input(y, w, x, false, b.s); });
  b.report(name + " dw fp32", flop, 0, [&] { kernels::linear_backward_weight(y, x, dw32, true, b.s); });
  b.report(name + " dw bf16", flop, 0, [&] { kernels::linear_backward_weight(y, x, dw16, true, b.s); });
  pool.clear();
}

void attention(Bench& b, Pool& pool, const std::string& name, const Model& m, int64_t tokens,
               const std::vector<int32_t>& lengths, DType t) {
  std::vector<int32_t> cu{0};
  double pairs = 0;
  for (int32_t n : lengths) {
    cu.push_back(cu.back() + n);
    pairs += 0.5 * n * static_cast<double>(n);
  }
  const auto kv = kv_of_q(m.nq, m.nkv);
  const AttentionArgs args{.q_heads = m.nq,
                           .kv_heads = m.nkv,
                           .head_dim = 128,
                           .kv_of_q = kv,
                           .scale = 1.0F / std::sqrt(128.0F),
                           .max_segment = *std::max_element(lengths.begin(), lengths.end()),
                           .host_cu = cu};
  const Tensor seqlens = pool.ints(cu);
  const Tensor qkv = pool.tensor(t, {tokens, (m.nq + 2 * m.nkv) * 128}),
               dqkv = pool.tensor(t, {tokens, (m.nq + 2 * m.nkv) * 128});
  const Tensor o = pool.tensor(t, {tokens, m.nq * 128}), d_o = pool.tensor(t, {tokens, m.nq * 128}),
               lse = pool.tensor(kF, {m.nq, tokens});
  const auto bytes = static_cast<int64_t>(
      kernels::attention_workspace_bytes(DeviceKind::kCuda, tokens, m.nq, m.nkv, 128));
  const Tensor workspace = pool.tensor(DType::kU8, {bytes});
  const double flop = 4.0 * static_cast<double>(m.nq) * 128 * pairs;
  b.report(name + " forward", flop, 0,
           [&] { kernels::attention_forward(qkv, seqlens, args, o, lse, workspace, b.s); });
  b.report(name + " backward", 2.5 * flop, 0, [&] {
    kernels::attention_backward(d_o, qkv, o, lse, seqlens, args, dqkv, workspace, b.s);
  });
  pool.clear();
}

void rows(Bench& b, Pool& pool, const std::string& name, const Model& m, int64_t tokens) {
  const auto n = static_cast<double>(tokens);
  const int64_t h = m.hidden, f = m.ffn, heads = (m.nq + m.nkv) * 128,
                width = (m.nq + 2 * m.nkv) * 128;
  {
    const Tensor x = pool.tensor(kB, {tokens, h}), d = pool.tensor(kB, {tokens, h}),
                 y = pool.tensor(kB, {tokens, h}), sum = pool.tensor(kB, {tokens, h});
    const Tensor w = pool.tensor(kB, {h}), rstd = pool.tensor(kF, {tokens}),
                 dw = pool.tensor(kF, {h});
    const double row = n * static_cast<double>(h) * 2;
    b.report(name + " rmsnorm forward", 0, 2 * row,
             [&] { kernels::rmsnorm_forward(x, w, 1e-6F, y, rstd, b.s); });
    b.report(name + " add+rmsnorm forward", 0, 4 * row,
             [&] { kernels::add_rmsnorm_forward(x, d, w, 1e-6F, sum, y, rstd, b.s); });
    b.report(name + " rmsnorm backward", 0, 4 * row,
             [&] { kernels::rmsnorm_backward(y, x, w, rstd, d, sum, dw, b.s); });
    b.report(name + " add_into", 0, 3 * row, [&] { kernels::add_into(y, x, b.s); });
    pool.clear();
  }
  {
    const Tensor qkv = pool.tensor(kB, {tokens, width}), table = pool.tensor(kF, {tokens, 128}),
                 dy_b = pool.tensor(kF, {width});
    std::vector<int32_t> p(static_cast<size_t>(tokens));
    for (size_t i = 0; i < p.size(); ++i) p[i] = static_cast<int32_t>(i % 4096);
    const Tensor positions = pool.ints(p);
    b.report(name + " rope", 0, n * static_cast<double>(heads) * 4, [&] {
      kernels::rope(qkv, positions, table,
                    {.q_heads = m.nq, .kv_heads = m.nkv, .head_dim = 128, .inverse = false}, b.s);
    });
    b.report(name + " qkv bias backward", 0, n * static_cast<double>(width) * 2,
             [&] { kernels::bias_backward(qkv, dy_b, b.s); });
    const Tensor out = pool.tensor(kB, {tokens, width}),
                 rstd = pool.tensor(kF, {tokens, m.nq + m.nkv});
    const Tensor qw = pool.tensor(kB, {128}), kw = pool.tensor(kB, {128}),
                 dqw = pool.tensor(kF, {128}), dkw = pool.tensor(kF, {128});
    const kernels::RopeArgs args{
        .q_heads = m.nq, .kv_heads = m.nkv, .head_dim = 128, .inverse = false};
    b.report(name + " qk_norm forward", 0, n * static_cast<double>(width) * 4,
             [&] { kernels::qk_norm_forward(qkv, qw, kw, 1e-6F, args, out, rstd, b.s); });
    b.report(name + " qk_norm backward", 0, n * static_cast<double>(heads) * 6,
             [&] { kernels::qk_norm_backward(out, qkv, qw, kw, rstd, args, dqw, dkw, b.s); });
    pool.clear();
  }
  {
    const Tensor gu = pool.tensor(kB, {tokens, 2 * f}), out = pool.tensor(kB, {tokens, f});
    const double row = n * static_cast<double>(f) * 2;
    b.report(name + " swiglu forward", 0, 3 * row, [&] { kernels::swiglu_forward(gu, out, b.s); });
    b.report(name + " swiglu backward in place", 0, 5 * row,
             [&] { kernels::swiglu_backward(out, gu, gu, b.s); });
    pool.clear();
  }
  {
    const int64_t c = 4096;
    const Tensor logits = pool.tensor(kB, {c, m.vocab}), stats = pool.tensor(kF, {3, c}),
                 lse = pool.tensor(kF, {c}), loss = pool.tensor(kF, {c});
    std::vector<int32_t> ids(static_cast<size_t>(c));
    for (size_t i = 0; i < ids.size(); ++i)
      ids[i] = static_cast<int32_t>(i * 37 % static_cast<size_t>(m.vocab));
    const Tensor targets = pool.ints(ids);
    const double row = static_cast<double>(c * m.vocab) * 2;
    b.report(name + " cross-entropy stats (4096 rows)", 0, row,
             [&] { kernels::cross_entropy_stats(logits, targets, 0, stats, b.s); });
    Tensor parts = stats;
    parts.shape = {1, 3, c};
    kernels::cross_entropy_combine(parts, targets, lse, loss, b.s);
    b.report(name + " cross-entropy backward (4096 rows)", 0, 2 * row,
             [&] { kernels::cross_entropy_backward(logits, targets, 0, lse, 1.0F, b.s); });
    pool.clear();
  }
  {
    std::vector<int32_t> ids(static_cast<size_t>(tokens));
    const Rng rng(2, "ids");
    for (size_t i = 0; i < ids.size(); ++i)
      ids[i] = static_cast<int32_t>(
          rng.below(i, 10) < 3 ? 13 : rng.below(i, 40000));  // a third is one token
    const Tensor id = pool.ints(ids), w = pool.tensor(kB, {m.vocab, h}),
                 y = pool.tensor(kB, {tokens, h}), dw = pool.tensor(kF, {m.vocab, h});
    b.report(name + " embedding forward", 0, 2 * n * static_cast<double>(h) * 2,
             [&] { kernels::embedding_forward(id, w, 0, y, b.s); });
    b.report(name + " embedding backward", 0,
             n * static_cast<double>(h) * 2 + 0.7 * n * static_cast<double>(h) * 8,
             [&] { kernels::embedding_backward(id, y, 0, dw, b.s); });
    pool.clear();
  }
}

/// The draw of tokens from logits spread as a language model's are (some 3 around their mean) and from flat ones.
void sampling(Bench& b, Pool& pool) {
  const int64_t vocab = 151936;
  const std::vector<int64_t> parts{0, vocab};
  for (const bool flat : {false, true})
    for (const int64_t n : {1, 16, 64}) {
      const Tensor logits = pool.tensor(kB, {n * vocab});
      if (!flat) kernels::scale(logits, 3.0F, b.s);
      const Tensor tokens = pool.ints(std::vector<int32_t>(static_cast<size_t>(n)));
      for (const int64_t top_k : {0, 20}) {
        std::vector<kernels::SampleRow> rows;
        for (int64_t r = 0; r < n; ++r)
          rows.push_back({.row = r, .temperature = 0.6, .top_k = top_k, .top_p = 0.95, .request = static_cast<uint64_t>(r)});
        b.report(fmt::format("sample {} rows{}{}", n, top_k > 0 ? fmt::format(" top_k {}", top_k) : "", flat ? " flat" : ""),
                 0, static_cast<double>(logits.bytes()),
                 [&] { kernels::sample(logits, parts, rows, {}, tokens, b.s); });
      }
      pool.clear();
    }
}

/// The gradients of layers of the 1.5B's shapes, laid one after the other into g, as one list.
void squares(Bench& b, const std::string& name, const Tensor& g, const Tensor& words) {
  constexpr int64_t kShapes[][2] = {{1536, 1536}, {256, 1536}, {256, 1536}, {1536, 1}, {256, 1}, {256, 1}, {1536, 1536},
                                    {8960, 1536}, {8960, 1536}, {1536, 8960}, {1536, 1}, {1536, 1}};
  std::vector<Tensor> list;
  int64_t used = 0;
  for (size_t i = 0;; ++i) {
    const auto& [rows, cols] = kShapes[i % std::size(kShapes)];
    if (used + rows * cols > g.numel()) break;
    Tensor x = g;
    x.data = static_cast<char*>(g.data) + used * dtype_bytes(g.dtype);
    x.shape = {rows, cols};
    list.push_back(x);
    used += rows * cols;
  }
  b.report(name, 0, static_cast<double>(used * dtype_bytes(g.dtype)), [&] { kernels::sum_of_squares(list, words, b.s); });
}

void optimizer(Bench& b, Pool& pool) {
  const int64_t n = 200'000'000;
  const Tensor p = pool.tensor(kB, {n}), g32 = pool.tensor(kF, {n}), g16 = pool.tensor(kB, {n}),
               master = pool.tensor(kF, {n});
  const Tensor m32 = pool.tensor(kF, {n}), v32 = pool.tensor(kF, {n}), m16 = pool.tensor(kB, {n}),
               v16 = pool.tensor(kB, {n});
  const Tensor one = pool.tensor(kF, {1}), words = pool.tensor(DType::kI64, {kernels::kExactWords});
  const kernels::AdamWArgs args{.lr = 1e-5,
                                .beta1 = 0.9,
                                .beta2 = 0.95,
                                .eps = 1e-8,
                                .weight_decay = 0.1,
                                .step = 10,
                                .seed = 1};
  // The square root of negative numbers would be NaN: second moments are the squares' mean, taken
  // from v = m * m once.
  backend_of(DeviceKind::kCuda).fill_zero(v32.data, v32.bytes(), b.s);
  backend_of(DeviceKind::kCuda).fill_zero(v16.data, v16.bytes(), b.s);
  const auto c = static_cast<double>(n);
  b.report("adamw fp32 states, bf16 weights, fp32 gradients", 0, 30 * c,
           [&] { kernels::adamw_step(p, master, g32, m32, v32, one, args, b.s); });
  b.report("adamw bf16 states (stochastic rounding)", 0, 14 * c,
           [&] { kernels::adamw_step(p, {}, g16, m16, v16, one, args, b.s); });
  squares(b, "sum_of_squares fp32", g32, words);
  squares(b, "sum_of_squares bf16", g16, words);
  b.report("cast fp32 to bf16", 0, 6 * c, [&] { kernels::cast(g32, p, b.s); });
  pool.clear();
}

/// Microseconds a token of a step made of these kernels alone, no recompute.
void sum_up(const Bench& b, const std::string& name, const Model& m, int64_t tokens,
            double bytes_per_param, const char* dw, const char* adam, int64_t step_tokens) {
  const auto get = [&](const std::string& op) {
    const auto it = b.us.find(op);
    return it == b.us.end() ? std::nan("") : it->second;
  };
  double gemm = 0;
  for (const char* g : {"qkv", "out", "gate_up", "down"})
    for (const char* k : {"forward", "dx", dw}) gemm += get(name + " " + g + " " + k);
  const double layers = static_cast<double>(m.layers), t = static_cast<double>(tokens);
  const double head =
      (get(name + " head forward") + get(name + " head dx") + get(name + " head " + dw)) / 4096;
  const double ce = (get(name + " cross-entropy stats (4096 rows)") +
                     get(name + " cross-entropy backward (4096 rows)")) /
                    4096;
  const double attention = get(name + " attention forward") + get(name + " attention backward");
  const double rows = 2 * get(name + " add+rmsnorm forward") + 2 * get(name + " rmsnorm backward") +
                      2 * get(name + " rope") + get(name + " swiglu forward") +
                      get(name + " swiglu backward in place") + get(name + " qkv bias backward");
  const double optimizer =
      get(adam) / 2e8 * static_cast<double>(m.params()) / static_cast<double>(step_tokens);
  const double floor_rows =
      2.0 *
      (16 * static_cast<double>(m.hidden) + 4.0 * static_cast<double>((m.nq + 2 * m.nkv) * 128) +
       8.0 * static_cast<double>(m.ffn)) /
      b.copy_ceiling * 1e6 * layers;
  std::printf(
      "%s: us/token: matrix %.2f (+ head %.2f), attention %.2f, rows %.2f (bytes alone %.2f), "
      "cross-entropy %.2f (floor %.2f), optimizer %.2f at %lld tokens a step (floor %.2f); sum "
      "%.2f = %.0f tok/s\n",
      name.c_str(), layers * gemm / t, head, layers * attention / t, layers * rows / t, floor_rows,
      ce, 4.0 * static_cast<double>(m.vocab) / b.copy_ceiling * 1e6, optimizer,
      static_cast<long long>(step_tokens),
      bytes_per_param * static_cast<double>(m.params()) / static_cast<double>(step_tokens) /
          b.copy_ceiling * 1e6,
      layers * (gemm + attention + rows) / t + head + ce + optimizer,
      1e6 / (layers * (gemm + attention + rows) / t + head + ce + optimizer));
}

int run(int argc, char** argv) {
  std::string cache, only;
  bool deterministic = false;
  for (int i = 1; i < argc; ++i) {
    const std::string a = argv[i];
    if (a == "--cache" && i + 1 < argc)
      cache = argv[++i];
    else if (a == "--only" && i + 1 < argc)
      only = argv[++i];
    else if (a == "--deterministic")
      deterministic = true;
    else
      throw UsageError("unknown argument {}; allowed: --cache DIR, --only TEXT, --deterministic",
                       a);
  }
  auto& api = cuda::api();
  std::string why;
  if (api.device_count(&why) == 0) throw DeviceError("no GPU to measure: {}", why);
  api.set_tuning(cuda::Tuning::kTimed, cache);
  api.set_deterministic(deterministic);
  const cuda::DeviceInfo info = api.device_info(kGpu);
  std::printf("%s, %d multiprocessors, driver CUDA %d, runtime %d, cuBLASLt %zu%s\n",
              info.name.c_str(), info.multiprocessors, info.driver_cuda, info.runtime_cuda,
              info.cublaslt_version, deterministic ? ", deterministic" : "");
  Bench b{
      .api = api, .s = backend_of(DeviceKind::kCuda).create_stream(kGpu), .only = only, .us = {}};
  Pool pool(b.s);
  ceilings(b, pool);
  const Model small{"1.5B", 28, 1536, 8960, 12, 2, 151936},
      large{"7B", 28, 3584, 18944, 28, 4, 152064};
  for (const auto& [m, tokens] : {std::pair<const Model&, int64_t>{small, 16384}, {large, 8192}}) {
    const std::string n = m.name;
    const int64_t q = m.nq * 128, width = (m.nq + 2 * m.nkv) * 128;
    linear(b, pool, n + " qkv", tokens, m.hidden, width, true);
    linear(b, pool, n + " out", tokens, q, m.hidden, false);
    linear(b, pool, n + " gate_up", tokens, m.hidden, 2 * m.ffn, false);
    linear(b, pool, n + " down", tokens, m.ffn, m.hidden, false);
    linear(b, pool, n + " head", 4096, m.hidden, m.vocab, false);
    attention(b, pool, n + " attention", m, tokens,
              std::vector<int32_t>(static_cast<size_t>(tokens / 4096), 4096), kB);
    attention(b, pool, n + " attention T 1024", m, tokens,
              std::vector<int32_t>(static_cast<size_t>(tokens / 1024), 1024), kB);
    std::vector<int32_t> packed;
    for (int64_t left = tokens, i = 0; left > 0; ++i) {
      const int64_t length = std::min<int64_t>(left, 200 + i * 977 % 1800);
      packed.push_back(static_cast<int32_t>(length));
      left -= length;
    }
    attention(b, pool, n + " attention packed", m, tokens, packed, kB);
    rows(b, pool, n, m, tokens);
  }
  attention(b, pool, "1.5B attention T 32768", small, 32768, {32768}, kB);
  attention(b, pool, "1.5B attention fp32 (own kernel)", small, 4096, {4096}, kF);
  optimizer(b, pool);
  sampling(b, pool);
  for (const cuda::GemmChoice& c : api.gemm_choices())
    std::printf("gemm %-62s candidate %2d: %9.1f us, first %9.1f us (%+.1f %%)\n", c.shape.c_str(),
                c.algo_rank, c.best_us, c.first_us,
                c.best_us > 0 ? 100 * (c.first_us / c.best_us - 1) : 0.0);
  for (const auto& [shape, bytes] : api.attention_plans())
    std::printf("attention %-70s workspace %.1f MiB\n", shape.c_str(),
                static_cast<double>(bytes) / 0x1p20);
  std::printf("own device memory: %.1f MiB\n", static_cast<double>(api.own_bytes(kGpu)) / 0x1p20);
  sum_up(b, "1.5B", small, 16384, 30, "dw fp32", "adamw fp32 states, bf16 weights, fp32 gradients",
         16384);
  sum_up(b, "1.5B", small, 16384, 14, "dw bf16", "adamw bf16 states (stochastic rounding)", 131072);
  sum_up(b, "7B", large, 8192, 14, "dw bf16", "adamw bf16 states (stochastic rounding)", 32768);
  api.save_tuning();
  return 0;
}

}  // namespace
}  // namespace r1

int main(int argc, char** argv) {
  try {
    return r1::run(argc, argv);
  } catch (const r1::Error& e) {
    std::fprintf(stderr, "bench_cuda_kernels: %s\n", e.what());
    return static_cast<int>(e.code());
  }
}
