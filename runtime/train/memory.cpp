#include "runtime/train/memory.h"

#include <algorithm>
#include <array>
#include <map>

#include "parallel/cost/search.h"
#include "runtime/core/human.h"
#include "runtime/device/cpu/cpu_backend.h"
#include "runtime/device/cuda/cuda_api.h"
#include "runtime/device/cuda_library.h"
#include "runtime/train/setup.h"

namespace r1::train {
namespace {

/// All ranks' values of one array, in rank order. Collective.
template <size_t N>
std::vector<std::array<int64_t, N>> gather(comm::Communicator& world, std::array<int64_t, N> mine) {
  const auto n = static_cast<size_t>(world.size());
  std::vector<std::array<int64_t, N>> all(n);
  const std::vector<int64_t> counts(n, N);
  world.all_gather({.data = mine.data(), .dtype = DType::kI64, .shape = {static_cast<int64_t>(N)}},
                   {.data = all.data(), .dtype = DType::kI64, .shape = {static_cast<int64_t>(N * n)}}, counts, {});
  return all;
}

/// The machine the ranks run on, for comparing changes: what memory there is was found, how fast it is need only be right in
/// proportion.
class FoundMachine final : public parallel::Machine {
 public:
  FoundMachine(std::vector<parallel::MemoryDomain> domains, int world, bool gpu) : world_(world), gpu_(gpu) {
    for (const parallel::MemoryDomain& d : domains) {
      ranks_each_ = std::max(ranks_each_, static_cast<int>(d.ranks.size()));
      capacity_ = std::min(capacity_, d.capacity_bytes);
    }
  }
  [[nodiscard]] parallel::DeviceRates rates(const parallel::MeshShape& /*mesh*/, const parallel::NumericFormat& /*format*/) const override {
    if (gpu_) return {.gemm = 700e12, .attention_forward = 465e12, .attention_backward = 475e12, .bytes_per_s = 4.2e12, .kernel_s = 3e-6};
    return {.gemm = 95e9, .attention_forward = 24e9, .attention_backward = 19e9, .bytes_per_s = 8e9, .kernel_s = 5e-6};
  }
  [[nodiscard]] parallel::MeshLinks links(const parallel::MeshShape& /*mesh*/) const override {
    const parallel::GroupLink link = gpu_ ? parallel::GroupLink{200e9, 12e-6, "NVLink"} : parallel::GroupLink{4e9, 5e-6, "host memory"};
    return {link, link, link};
  }
  [[nodiscard]] std::vector<parallel::MemoryDomain> domains(const parallel::MeshShape& mesh) const override {
    return parallel::equal_domains(mesh.world(), ranks_each_, capacity_, gpu_ ? "GPU" : "host");
  }
  [[nodiscard]] int most_ranks() const override { return world_; }

 private:
  int world_, ranks_each_ = 1;
  int64_t capacity_ = int64_t{1} << 62;
  bool gpu_;
};

}  // namespace

/// What a rank on the CPU takes beside its plan, from the first step on: buffers of the BLAS and of MPI. A process stays within its
/// plan + 10 % + this in the layouts of tests/e2e/memory_test.cpp.
constexpr int64_t kProcessBytes = int64_t{64} << 20;
/// The same on a GPU, beside the context, which is there when memory is asked for: the libraries' code, the GEMM workspace, graphs,
/// what allocations are rounded up to. Of the 1.47 to 1.61 GiB in launch/planned_cluster.cpp the context takes about half a GiB.
constexpr int64_t kGpuProcessBytes = int64_t{1100} << 20;

std::vector<parallel::MemoryDomain> memory_domains(const RankContext& ctx, const Device& device) {
  const bool gpu = device.kind == DeviceKind::kCuda;
  const int64_t capacity = static_cast<int64_t>(gpu ? cuda::api().device_info(device).free_bytes : available_host_bytes());
  const std::vector<int64_t> devices = device_of_rank(ctx.world, device);
  const auto found = gather(ctx.world, std::array<int64_t, 2>{gpu, capacity});
  std::map<int64_t, size_t> index;
  std::vector<parallel::MemoryDomain> out;
  for (int r = 0; r < ctx.world.size(); ++r) {
    const auto at = static_cast<size_t>(r);
    const auto [it, fresh] = index.emplace(devices[at], out.size());
    if (fresh)
      out.push_back({.name = found[at][0] == 0 ? fmt::format("the host of rank {}", r) : fmt::format("the GPU of rank {}", r),
                     .capacity_bytes = found[at][1], .ranks = {}});
    parallel::MemoryDomain& domain = out[it->second];
    domain.capacity_bytes = std::min(domain.capacity_bytes, found[at][1]);
    domain.ranks.push_back(r);
  }
  for (parallel::MemoryDomain& d : out)
    d.capacity_bytes = std::max<int64_t>(0, d.capacity_bytes - (gpu ? kGpuProcessBytes : kProcessBytes) * static_cast<int64_t>(d.ranks.size()));
  return out;
}

parallel::JobShape job_shape(const JobConfig& cfg, const EngineOptions& o) {
  parallel::JobShape job;
  job.mesh = o.mesh;
  job.schedule = o.schedule;
  job.virtual_stages = o.virtual_stages;
  job.micro_batch = cfg.micro_batch > 0 && o.tokens % cfg.micro_batch == 0 ? cfg.micro_batch : 1;
  job.seq_len = o.tokens / job.micro_batch;
  job.batch = int64_t{o.microbatches} * job.micro_batch * o.mesh.dp;
  job.recompute = o.stage_recompute.empty() ? std::vector{o.recompute} : o.stage_recompute;
  job.format = o.format;
  job.gpu = o.device.kind == DeviceKind::kCuda;
  job.training = o.training;
  job.zero = o.zero;
  job.tree_rows = o.tree_rows;
  return job;
}

void choose_recompute(const RankContext& ctx, const parallel::ModelConfig& config, EngineOptions* options) {
  const parallel::JobShape job = job_shape(ctx.config, *options);
  const parallel::ModelSpec spec(config, job.mesh.tp, job.stages());
  const auto chosen = parallel::choose_recompute(spec, job, parallel::schedule_of(job), memory_domains(ctx, options->device));
  options->stage_recompute = chosen.value_or(std::vector(static_cast<size_t>(job.mesh.pp), parallel::Recompute::kFull));
}

void check_memory(const RankContext& ctx, const parallel::ModelConfig& config, const EngineOptions& options) {
  const std::vector<parallel::MemoryDomain> domains = memory_domains(ctx, options.device);
  const parallel::JobShape job = job_shape(ctx.config, options);
  // The very plans that the ranks will allocate.
  const auto planned = gather(ctx.world, std::array<int64_t, 1>{plan_for(config, options, ctx.world.rank()).bytes().total()});
  const parallel::MemoryDomain* over = nullptr;
  int64_t needed = 0;
  for (const parallel::MemoryDomain& d : domains) {
    int64_t sum = 0;
    for (const int r : d.ranks) sum += planned[static_cast<size_t>(r)][0];
    if (sum <= d.capacity_bytes || over != nullptr) continue;
    over = &d;
    needed = sum;
  }
  if (over == nullptr) return;
  const parallel::MemoryDomain& domain = *over;
  // One rank tells; what it finds is what every rank would find.
  if (ctx.world.rank() != domain.ranks.front()) throw CommError("rank {} does not fit into memory", domain.ranks.front());
  const auto h = [](int64_t n) { return human_bytes(static_cast<double>(n)); };
  std::string text = fmt::format("{} does not fit: the {} rank{} of {} need {}, {} are available", job.mesh.str(), domain.ranks.size(),
                                 domain.ranks.size() == 1 ? "" : "s", domain.name, h(needed), h(domain.capacity_bytes));
  const FoundMachine machine(domains, ctx.world.size(), job.gpu);
  const std::vector<parallel::Remedy> remedies = job.training ? parallel::remedies(config, job, machine, 4) : std::vector<parallel::Remedy>{};
  if (remedies.empty())
    text += "; no change of recompute, micro-batch, layout or state dtype on these ranks would make it fit: take more hosts or a "
            "shorter --seq-len";
  else
    text += ". Changes that would fit, the fastest first:";
  for (const parallel::Remedy& m : remedies)
    text += fmt::format("\n  {} ({} a rank, about {:+.0f} % step time)", m.change, h(m.largest_bytes), 100 * m.slowdown);
  throw MemoryError("{}", text);
}

std::vector<RankMemory> gather_memory(const RankContext& ctx, Engine& engine, int64_t late_allocations) {
  std::vector<RankMemory> out;
  const std::array<int64_t, 4> mine{engine.plan().bytes().total(), engine.model().allocated().total(), peak_rss_bytes(), late_allocations};
  for (const auto& v : gather(ctx.world, mine)) out.push_back({v[0], v[1], v[2], v[3]});
  return out;
}

}  // namespace r1::train
