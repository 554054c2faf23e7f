#include "runtime/train/setup.h"

#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <fstream>

#include "runtime/core/human.h"
#include "runtime/core/log.h"
#include "runtime/device/cpu/thread_pool.h"
#include "runtime/kernels/ops.h"

namespace r1::train {

namespace fs = std::filesystem;

namespace {

int cores_allowed() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

/// Bytes this host can still give: MemAvailable, and the cgroup's limit where it is lower.
int64_t available_memory() {
  int64_t available = 0;
  std::ifstream info("/proc/meminfo");
  for (std::string key; info >> key;) {
    int64_t kib = 0;
    if (key == "MemAvailable:" && info >> kib) available = kib * 1024;
    info.ignore(256, '\n');
  }
  int64_t limit = 0, used = 0;
  if (std::ifstream("/sys/fs/cgroup/memory.max") >> limit && std::ifstream("/sys/fs/cgroup/memory.current") >> used)
    available = std::min(available, std::max<int64_t>(limit - used, 0));
  return available;
}

int64_t bytes_on_host(comm::Communicator& world, const parallel::ModelConfig& config, const EngineOptions& options) {
  // Every rank knows every plan; which ranks share this host is what the plan's total is summed over.
  const int same = ranks_on_this_host(world);
  int64_t total = 0;
  const int first = world.rank() / same * same;
  for (int r = first; r < std::min(first + same, world.size()); ++r) total += plan_for(config, options, r).bytes().total();
  return total;
}

}  // namespace

int setup_threads(const RankContext& ctx) {
  const int cores = cores_allowed();
  const int ranks = ranks_on_this_host(ctx.world);
  const int online = std::max<int>(1, static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN)));
  int threads = ctx.config.threads;
  // A rank bound to its own cores uses them; unbound ranks share the host.
  if (threads == 0) threads = std::max(1, cores < online ? cores : online / ranks);
  else if (threads > cores && ctx.first())
    log::warn("--threads {}: this rank may use {} core{} only (mpirun binds ranks to cores; --bind-to none frees them)",
              threads, cores, cores == 1 ? "" : "s");
  set_cpu_threads(threads);
  return threads;
}

parallel::MeshShape mesh_of(const RankContext& ctx, int ranks_per_host) {
  const JobConfig& cfg = ctx.config;
  const parallel::MeshShape mesh{.pp = cfg.pp, .dp = cfg.dp, .tp = cfg.tp};
  parallel::check_mesh(mesh, ctx.world.size(), ranks_per_host);
  return mesh;
}

EngineOptions engine_options(const JobConfig& cfg, const parallel::MeshShape& mesh, const BatchLayout& rows,
                             bool training) {
  if (cfg.device == "cuda") throw UsageError("--device cuda: this build trains on the CPU; give --device cpu");
  if (cfg.dtype == "bf16") throw UsageError("--dtype bf16 needs a GPU; the CPU backend computes in fp32");
  EngineOptions o;
  o.mesh = mesh;
  o.schedule = cfg.schedule.empty() || cfg.schedule == "all" ? "1f1b" : cfg.schedule;
  o.virtual_stages = cfg.virtual_stages;
  o.microbatches = rows.microbatches();
  o.tokens = rows.tokens();
  o.recompute = cfg.recompute.empty() || cfg.recompute == "all" ? parallel::Recompute::kNone
                                                                 : parallel::parse_recompute(cfg.recompute);
  o.training = training;
  o.adamw = {.beta1 = cfg.beta1, .beta2 = cfg.beta2, .eps = cfg.eps, .weight_decay = cfg.weight_decay,
             .no_decay = cfg.no_decay, .clip = cfg.clip, .seed = cfg.seed};
  return o;
}

void check_memory(const RankContext& ctx, const parallel::ModelConfig& config, const EngineOptions& options) {
  const int64_t available = available_memory();
  const int64_t wanted = bytes_on_host(ctx.world, config, options);
  const int64_t misfits = reduce(ctx.world, int64_t{wanted > available}, comm::ReduceOp::kMax);
  if (misfits == 0) return;
  std::string advice;
  for (const parallel::Recompute r : {parallel::Recompute::kCheap, parallel::Recompute::kSelective, parallel::Recompute::kFull}) {
    EngineOptions smaller = options;
    smaller.recompute = r;
    const int64_t bytes = bytes_on_host(ctx.world, config, smaller);
    if (bytes > available || r <= options.recompute) continue;
    advice = fmt::format("--recompute {} would need {}", recompute_name(r), human_bytes(static_cast<double>(bytes)));
    break;
  }
  throw MemoryError("the ranks of this host need {} and {} are available{}{}", human_bytes(static_cast<double>(wanted)),
                    human_bytes(static_cast<double>(available)), advice.empty() ? "" : ": ",
                    advice.empty() ? "; take more hosts, a smaller --micro-batch or a shorter --seq-len" : advice);
}

data::DataOptions data_options(const RankContext& ctx, const std::vector<std::string>& sources, const fs::path& cache,
                               int64_t seq_len, const parallel::ModelConfig& model) {
  const JobConfig& cfg = ctx.config;
  data::DataOptions o;
  for (const std::string& s : sources) o.sources.push_back(data::parse_data_source(s));
  o.format = cfg.format;
  o.seq_len = seq_len;
  o.pack = !cfg.no_pack;
  o.shuffle = !cfg.no_shuffle;
  o.seed = cfg.seed;
  o.train_on_prompt = cfg.train_on_prompt;
  o.think_history = cfg.think_history;
  o.max_bad_rows = cfg.max_bad_rows;
  o.too_long = cfg.too_long;
  o.template_name = cfg.template_name;
  o.parse_special = cfg.parse_special;
  o.cache_dir = cache;
  o.threads = cpu_threads();
  o.vocab_size = model.vocab;
  o.progress = [&ctx](const data::DataProgress&) { ctx.check_stop(); };
  return o;
}

int64_t seq_len_of(const JobConfig& cfg, const parallel::ModelConfig& model) {
  if (cfg.seq_len == 0) return std::min<int64_t>(1024, model.max_positions);
  if (cfg.seq_len > model.max_positions)
    throw UsageError("--seq-len {}: the model has max_position_embeddings {}", cfg.seq_len, model.max_positions);
  return cfg.seq_len;
}

double measure_gemm_rate(const RankContext& ctx) {
  constexpr int64_t n = 768;
  Buffer memory(Device{}, static_cast<size_t>(3 * n * n) * sizeof(float));
  auto* base = static_cast<float*>(memory.data());
  for (int64_t i = 0; i < 3 * n * n; ++i) base[i] = static_cast<float>(i % 17) * 0.25F - 2.0F;
  const auto matrix = [&](int64_t i) { return Tensor{.data = base + i * n * n, .shape = {n, n}}; };
  const auto run = [&] { kernels::linear_forward(matrix(0), matrix(1), {}, matrix(2), {}); };
  run();
  ctx.world.barrier();
  const auto start = std::chrono::steady_clock::now();
  int64_t count = 0;
  double seconds = 0;
  while (seconds < 0.15) {
    run();
    ++count;
    seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  return reduce(ctx.world, 2.0 * static_cast<double>(n * n * n * count) / seconds, comm::ReduceOp::kSum);
}

int64_t peak_rss_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<int64_t>(usage.ru_maxrss) * 1024;
}

}  // namespace r1::train
