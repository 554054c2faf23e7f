#include "runtime/train/setup.h"

#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <functional>

#include "parallel/cost/job_shape.h"
#include "runtime/core/host.h"
#include "runtime/core/human.h"
#include "runtime/core/log.h"
#include "runtime/core/rng.h"
#include "runtime/device/cpu/cpu_backend.h"
#include "runtime/device/cpu/thread_pool.h"
#include "runtime/device/cuda/cuda_api.h"
#include "runtime/device/cuda_library.h"
#include "runtime/kernels/ops.h"
#include "runtime/train/data_progress.h"
#include "runtime/train/gemm_ceiling.h"
#include "runtime/train/memory.h"
#include "runtime/train/save.h"

namespace r1::train {

namespace fs = std::filesystem;

namespace {

int cores_allowed() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

/// Sum of `bytes` over the plans of the ranks that share this host. Every rank knows every plan.
int64_t sum_on_host(comm::Communicator& world, const parallel::ModelConfig& config, const EngineOptions& options,
                    const std::function<int64_t(const parallel::RankPlan&)>& bytes) {
  const std::vector<int64_t> hosts = host_of_rank(world);
  int64_t total = 0;
  for (int r = 0; r < world.size(); ++r)
    if (hosts[static_cast<size_t>(r)] == hosts[static_cast<size_t>(world.rank())]) total += bytes(plan_for(config, options, r));
  return total;
}

/// GPUs that this rank may use with --device auto or cuda. Throws DeviceError where cuda finds none.
int usable_gpus(const RankContext& ctx) {
  const JobConfig& cfg = ctx.config;
  // The driver's device file: without it the CUDA library need not be loaded to know that there is no GPU.
  if (cfg.device == "auto" && !fs::exists("/dev/nvidiactl")) return 0;
  cuda::Api* api = nullptr;
  try {
    api = &cuda::api();
  } catch (const DeviceError& e) {
    if (cfg.device == "cuda") throw;
    if (ctx.first()) log::warn("there is a GPU, but this build cannot use it ({}); training on the CPU", e.what());
    return 0;
  }
  std::string why;
  const int count = api->device_count(&why);
  if (count > 0) return count;
  if (cfg.device == "cuda") throw DeviceError("--device cuda: no usable GPU: {}", why);
  if (ctx.first()) log::warn("no usable GPU ({}); training on the CPU", why);
  return 0;
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

Device choose_device(const RankContext& ctx, const fs::path& cache) {
  const JobConfig& cfg = ctx.config;
  if (cfg.device == "cpu") return {};
  const int count = usable_gpus(ctx);
  // A host without GPUs among others that have some: ranks that compute on different kinds of device would wait for ever.
  if (reduce(ctx.world, int64_t{count == 0}, comm::ReduceOp::kMax) != 0) {
    if (count > 0) log::warn("another rank has no usable GPU; training on the CPU");
    return {};
  }
  cuda::Api& api = cuda::api();
  const Device device{DeviceKind::kCuda, local_rank(ctx.world) % count};
  // Not by their number: a rank that its scheduler lets see one GPU of several shares it with nobody.
  const int sharing = ranks_on_this_device(ctx.world, device);
  if (sharing > 1 && ctx.first()) log::warn("{} ranks share a GPU of this host: correct, but slower than one rank a GPU", sharing);
  api.set_deterministic(cfg.repeatable());
  api.set_tuning(cfg.repeatable() || cfg.dtype == "fp32" ? cuda::Tuning::kHeuristic : cuda::Tuning::kTimed, cache.string());
  return device;
}

std::vector<int64_t> device_of_rank(comm::Communicator& world, const Device& device) {
  const std::string id = device.kind == DeviceKind::kCuda ? cuda::api().device_info(device).uuid : host_name();
  return gather(world, static_cast<int64_t>(hash_name(id)));
}

int ranks_on_this_device(comm::Communicator& world, const Device& device) {
  const std::vector<int64_t> devices = device_of_rank(world, device);
  return static_cast<int>(std::count(devices.begin(), devices.end(), devices[static_cast<size_t>(world.rank())]));
}

parallel::NumericFormat numeric_format(const JobConfig& cfg, const Device& device) {
  return parallel::numeric_format(device.kind == DeviceKind::kCuda, cfg.dtype, cfg.state_dtype);
}

/// Whole messages that this rank keeps room for, a peer along the pipeline. Equal within a pipeline. Collective over the world.
static int message_slots(comm::Communicator& world, const parallel::MeshShape& mesh, const EngineOptions& o) {
  const std::vector<int64_t> hosts = host_of_rank(world);
  if (o.device.kind != DeviceKind::kCuda || !messages_through_ipc(o.comm)) return 0;
  parallel::MeshCoord c = parallel::coord_of(mesh, world.rank());
  for (c.pp = 0; c.pp < mesh.pp; ++c.pp)
    if (hosts.at(static_cast<size_t>(parallel::rank_of(mesh, c))) != hosts[static_cast<size_t>(world.rank())]) return 0;
  return static_cast<int>(kMessageSlots);
}

EngineOptions engine_options(comm::Communicator& world, const JobConfig& cfg, const parallel::ModelConfig& model, const parallel::MeshShape& mesh,
                             const BatchLayout& rows, const Device& device, bool training) {
  EngineOptions o;
  o.mesh = mesh;
  o.schedule = cfg.schedule.empty() || cfg.schedule == "all" ? "1f1b" : cfg.schedule;
  o.virtual_stages = cfg.virtual_stages;
  o.microbatches = rows.microbatches();
  o.tokens = rows.tokens();
  o.recompute = cfg.recompute.empty() || cfg.recompute == "all" || cfg.recompute == "auto" ? parallel::Recompute::kNone
                                                                 : parallel::parse_recompute(cfg.recompute);
  o.training = training;
  o.zero = cfg.zero;
  o.tree_rows = cfg.row_tree() ? rows.batch : 0;
  o.device = device;
  o.time_comm = training && cfg.profile > 0;
  o.format = numeric_format(cfg, device);
  o.comm = parse_comm_choice(cfg.comm);
  o.needs = parallel::device_needs(device.kind == DeviceKind::kCuda, model, mesh.tp, rows.tokens());
  if (cfg.no_graphs) o.needs.graphs = false;
  o.needs.message_slots = message_slots(world, mesh, o);
  const auto offloads = [&](const char* what) { return std::find(cfg.offload.begin(), cfg.offload.end(), what) != cfg.offload.end(); };
  if (!cfg.offload.empty() && training) {
    if (device.kind == DeviceKind::kCpu) throw UsageError("--offload needs a GPU: on a CPU everything is in host memory already");
    if (offloads("activations") && o.recompute != parallel::Recompute::kFull)
      throw UsageError("--offload activations goes with --recompute full, where the inputs of the blocks are all that is kept");
    o.needs.offload_optimizer = offloads("optimizer");
    o.needs.offload_activations = offloads("activations");
  }
  o.adamw = {.beta1 = cfg.beta1, .beta2 = cfg.beta2, .eps = cfg.eps, .weight_decay = cfg.weight_decay,
             .no_decay = cfg.no_decay, .clip = cfg.clip, .seed = cfg.seed};
  return o;
}

bool snapshot_fits(const RankContext& ctx, const parallel::ModelConfig& config, const EngineOptions& options) {
  const bool gpu = options.device.kind == DeviceKind::kCuda;
  const int64_t wanted = sum_on_host(ctx.world, config, options, [&](const parallel::RankPlan& p) {
    return snapshot_bytes(p) + (gpu ? 0 : p.bytes().total());
  });
  return reduce(ctx.world, int64_t{wanted > static_cast<int64_t>(available_host_bytes())}, comm::ReduceOp::kMax) == 0;
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
  // One rank a cache tokenises while the others wait for it: the one that works reports.
  o.progress = [&ctx, line = DataProgressLine()](const data::DataProgress& p) mutable {
    ctx.check_stop();
    if (p.waiting && !ctx.first()) return;
    if (const std::string text = line.next(p); !text.empty()) {
      fmt::print("{}\n", text);
      std::fflush(stdout);
    }
  };
  return o;
}

int64_t seq_len_of(const JobConfig& cfg, const parallel::ModelConfig& model) {
  if (cfg.seq_len == 0) return std::min<int64_t>(1024, model.max_positions);
  if (cfg.seq_len > model.max_positions)
    throw UsageError("--seq-len {}: the model has max_position_embeddings {}", cfg.seq_len, model.max_positions);
  return cfg.seq_len;
}

double measure_gemm_rate(const RankContext& ctx, const Device& device, DType dtype) {
  // On a GPU one product so large that every other is below it; on a CPU which one is fastest depends on its caches and threads.
  const std::vector<GemmShape> shapes = device.kind == DeviceKind::kCuda
                                            ? std::vector<GemmShape>{{8192, 8192, 8192}}
                                            : std::vector<GemmShape>{{768, 768, 768}, {1024, 1024, 1024}, {512, 2048, 512}};
  int64_t elems = 0;  // x and w
  int64_t out = 0;
  for (const GemmShape& g : shapes) {
    elems = std::max(elems, (g.m + g.n) * g.k);
    out = std::max(out, g.m * g.n);
  }
  DeviceBackend& backend = backend_of(device.kind);
  const Stream s = backend.create_stream(device);
  double rate = 0;
  {
    Buffer memory(device, static_cast<size_t>((elems + out) * dtype_bytes(dtype)));
    // Random data: GEMMs run faster on zeros than on real numbers.
    std::vector<uint16_t> bits(static_cast<size_t>(elems));
    parallel_ranges(elems, int64_t{1} << 16, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        bits[static_cast<size_t>(i)] = static_cast<uint16_t>(0x3c00u + (philox4x32({static_cast<uint32_t>(i)}, 7)[0] & 0x83ffu));
    });
    std::vector<float> floats;
    if (dtype == DType::kF32)
      for (const uint16_t b : bits) floats.push_back(bf16_to_float(b));
    const void* host = dtype == DType::kF32 ? static_cast<const void*>(floats.data()) : bits.data();
    backend.copy(memory.data(), host, static_cast<size_t>(elems * dtype_bytes(dtype)), s);
    backend.synchronize(s);
    const auto matrix = [&](int64_t offset, int64_t rows, int64_t columns) {
      return Tensor{.data = static_cast<char*>(memory.data()) + offset * dtype_bytes(dtype), .dtype = dtype, .shape = {rows, columns}, .device = device};
    };
    // Several products a measurement where one is short: a GPU's launch and clock do not count then.
    const int runs = device.kind == DeviceKind::kCuda ? 4 : 1;
    const auto seconds = [&](const GemmShape& g) {
      const auto start = std::chrono::steady_clock::now();
      for (int i = 0; i < runs; ++i) kernels::linear_forward(matrix(0, g.m, g.k), matrix(g.m * g.k, g.n, g.k), {}, matrix(elems, g.m, g.n), s);
      backend.synchronize(s);
      return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / runs;
    };
    if (device.kind == DeviceKind::kCuda) static_cast<void>(seconds(shapes.front()));  // its algorithms are timed
    ctx.world.barrier();
    rate = gemm_ceiling(shapes, 0.15 / runs, seconds);
  }
  backend.destroy_stream(s);
  return reduce(ctx.world, rate, comm::ReduceOp::kSum);
}

int64_t peak_rss_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<int64_t>(usage.ru_maxrss) * 1024;
}

}  // namespace r1::train
