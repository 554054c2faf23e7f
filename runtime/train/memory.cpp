#include "runtime/train/memory.h"

#include <algorithm>
#include <array>
#include <map>

#include "parallel/cost/search.h"
#include "parallel/spec/communicator_memory.h"
#include "runtime/core/human.h"
#include "runtime/device/cpu/cpu_backend.h"
#include "runtime/device/cuda/cuda_api.h"
#include "runtime/device/cuda_library.h"
#include "runtime/train/setup.h"

namespace r1::train {
namespace {

/// The machine the ranks run on, for comparing changes: what memory there is was found, how fast it is need only be right in
/// proportion.
class FoundMachine final : public parallel::Machine {
 public:
  FoundMachine(const std::vector<parallel::MemoryDomain>& domains, const std::vector<parallel::MemoryDomain>& hosts, int world, bool gpu)
      : devices_(smallest(domains)), hosts_(smallest(hosts)), world_(world), gpu_(gpu) {}
  [[nodiscard]] parallel::DeviceRates rates(const parallel::MeshShape& /*mesh*/, const parallel::NumericFormat& /*format*/) const override {
    if (gpu_) return {.gemm = 700e12, .attention_forward = 465e12, .attention_backward = 475e12, .bytes_per_s = 4.2e12, .kernel_s = 3e-6,
                      .host_bytes_per_s = 36e9, .host_link = "PCIe"};
    return {.gemm = 95e9, .attention_forward = 24e9, .attention_backward = 19e9, .bytes_per_s = 8e9, .kernel_s = 5e-6};
  }
  [[nodiscard]] parallel::MeshLinks links(const parallel::MeshShape& /*mesh*/) const override {
    const parallel::GroupLink link = gpu_ ? parallel::GroupLink{200e9, 12e-6, "NVLink"} : parallel::GroupLink{4e9, 5e-6, "host memory"};
    return {link, link, link};
  }
  [[nodiscard]] std::vector<parallel::MemoryDomain> domains(const parallel::MeshShape& mesh) const override {
    return parallel::equal_domains(mesh.world(), devices_.ranks, devices_.capacity_bytes, gpu_ ? "GPU" : "host");
  }
  [[nodiscard]] std::vector<parallel::MemoryDomain> host_domains(const parallel::MeshShape& mesh) const override {
    if (!gpu_) return {};
    return parallel::equal_domains(mesh.world(), hosts_.ranks, hosts_.capacity_bytes, "host");
  }
  [[nodiscard]] int most_ranks() const override { return world_; }

 private:
  struct Each {
    int ranks = 1;
    int64_t capacity_bytes = int64_t{1} << 62;
  };
  /// Most ranks, least memory of any: what every domain is taken to be.
  static Each smallest(const std::vector<parallel::MemoryDomain>& domains) {
    Each e;
    for (const parallel::MemoryDomain& d : domains) {
      e.ranks = std::max(e.ranks, static_cast<int>(d.ranks.size()));
      e.capacity_bytes = std::min(e.capacity_bytes, d.capacity_bytes);
    }
    return e;
  }
  Each devices_, hosts_;
  int world_;
  bool gpu_;
};

}  // namespace

/// What a rank on the CPU takes beside its plan, from the first step on: buffers of the BLAS and of MPI. A process stays within its
/// plan + 10 % + this in the layouts of tests/e2e/memory_test.cpp.
constexpr int64_t kProcessBytes = int64_t{64} << 20;
/// The same on a GPU, beside the context, which is there when memory is asked for: the libraries' code, the GEMM workspace, graphs,
/// what allocations are rounded up to. Of the 1.47 to 1.61 GiB in launch/planned_cluster.cpp the context takes about half a GiB.
constexpr int64_t kGpuProcessBytes = int64_t{1100} << 20;

/// About what the communicators of a rank with a GPU take, as the plan counts it: of `here` ranks on its host, alone on the GPU
/// or not (then there is no NCCL, and few groups have kernels).
static int64_t communicator_bytes(const EngineOptions& o, int64_t here, bool alone) {
  const parallel::MeshShape& m = o.mesh;
  int64_t bytes = 0;
  if (messages_through_ipc(o.comm))
    for (const int ranks : {m.tp, m.pp, m.dp, m.pp * m.tp})
      if (ranks > 1 && ranks <= here) bytes += static_cast<int64_t>(ipc_group_bytes(ranks, alone));
  if (!alone || (o.comm != CommChoice::kAuto && o.comm != CommChoice::kNccl)) return bytes;
  const bool messages = o.needs.message_slots == 0;  // then NCCL carries them
  const int64_t groups = int64_t{m.pp > 1} + int64_t{m.dp > 1} + int64_t{m.tp > 1};
  return bytes + groups * parallel::kNcclCommunicatorBytes + (m.dp > 1 ? parallel::kExchangeBytes : 0) +
         (messages ? parallel::message_directions(m.pp) * parallel::kNcclMessageBytes : 0);
}

std::vector<parallel::MemoryDomain> memory_domains(const RankContext& ctx, const Device& device, const EngineOptions& options) {
  const bool gpu = device.kind == DeviceKind::kCuda;
  const int64_t capacity = static_cast<int64_t>(gpu ? cuda::api().device_info(device).free_bytes : available_host_bytes());
  const std::vector<int64_t> devices = device_of_rank(ctx.world, device), hosts = host_of_rank(ctx.world);
  const auto own = static_cast<size_t>(ctx.world.rank());
  const bool alone = std::ranges::count(devices, devices[own]) == 1;
  const int64_t communicators = gpu ? communicator_bytes(options, std::ranges::count(hosts, hosts[own]), alone) : 0;
  const auto found = gather(ctx.world, std::array<int64_t, 3>{gpu, capacity, communicators});
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
  for (parallel::MemoryDomain& d : out) {
    const int64_t each = (gpu ? kGpuProcessBytes : kProcessBytes) + found[static_cast<size_t>(d.ranks.front())][2];
    d.capacity_bytes = std::max<int64_t>(0, d.capacity_bytes - each * static_cast<int64_t>(d.ranks.size()));
  }
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
  job.ipc_ranks_a_host = o.needs.message_slots > 0 ? o.mesh.world() : 0;  // as in this rank's pipeline
  job.training = o.training;
  job.zero = o.zero;
  job.tree_rows = o.tree_rows;
  job.offload_optimizer = o.needs.offload_optimizer;
  job.offload_activations = o.needs.offload_activations;
  return job;
}

void choose_recompute(const RankContext& ctx, const parallel::ModelConfig& config, EngineOptions* options) {
  const parallel::JobShape job = job_shape(ctx.config, *options);
  const parallel::ModelSpec spec(config, job.mesh.tp, job.stages());
  const auto chosen = parallel::choose_recompute(spec, job, parallel::schedule_of(job), memory_domains(ctx, options->device, *options));
  options->stage_recompute = chosen.value_or(std::vector(static_cast<size_t>(job.mesh.pp), parallel::Recompute::kFull));
}

namespace {

/// The first domain whose ranks plan more than it has, with what they plan.
struct Short {
  const parallel::MemoryDomain* domain = nullptr;
  int64_t needed = 0;
};
Short first_short(const std::vector<parallel::MemoryDomain>& domains, const std::vector<int64_t>& planned) {
  for (const parallel::MemoryDomain& d : domains) {
    int64_t sum = 0;
    for (const int r : d.ranks) sum += planned[static_cast<size_t>(r)];
    if (sum > d.capacity_bytes) return {&d, sum};
  }
  return {};
}

/// Changes priced as the ranks would run them: --recompute auto chooses anew.
std::vector<parallel::Remedy> remedies_for(const JobConfig& cfg, const parallel::ModelConfig& model, const parallel::JobShape& job,
                                           const parallel::Machine& machine) {
  if (!job.training) return {};
  if (cfg.recompute != "auto") return parallel::remedies(model, job, machine, 4);
  return parallel::remedies(model, job, machine, 4, [&](const parallel::JobShape& changed, const std::vector<parallel::OptionValue>& options) {
    const bool fixed = std::ranges::find(options, "recompute", &parallel::OptionValue::option) != options.end();
    const std::vector<parallel::Candidate> best = parallel::search(model, changed, {.recompute = !fixed}, machine);
    if (best.empty()) return std::optional<parallel::ChangedJob>();
    return std::optional(parallel::ChangedJob{best.front().job, best.front().fits, best.front().largest_bytes, best.front().time.total});
  });
}

}  // namespace

void check_memory(const RankContext& ctx, const parallel::ModelConfig& config, const EngineOptions& options) {
  const std::vector<parallel::MemoryDomain> domains = memory_domains(ctx, options.device, options);
  const parallel::JobShape job = job_shape(ctx.config, options);
  // Beside a GPU, what --offload pins lies on the host.
  const std::vector<parallel::MemoryDomain> hosts = job.gpu ? memory_domains(ctx, Device{}, options) : std::vector<parallel::MemoryDomain>{};
  // The very plans that the ranks will allocate.
  const parallel::RankPlan::Bytes mine = plan_for(config, options, ctx.world.rank()).bytes();
  std::vector<int64_t> planned, pinned;
  for (const auto& [device, host] : gather(ctx.world, std::array<int64_t, 2>{mine.total(), mine.host})) {
    planned.push_back(device);
    pinned.push_back(host);
  }
  Short found = first_short(domains, planned);
  const bool on_host = found.domain == nullptr;
  if (on_host) found = first_short(hosts, pinned);
  if (found.domain == nullptr) return;
  const parallel::MemoryDomain& domain = *found.domain;
  // One rank tells; what it finds is what every rank would find.
  if (ctx.world.rank() != domain.ranks.front()) throw CommError("rank {} does not fit into memory", domain.ranks.front());
  const auto h = [](int64_t n) { return human_bytes(static_cast<double>(n)); };
  std::string text = fmt::format("{} does not fit: the {} rank{} of {} need {}{}, {} are available", job.mesh.str(), domain.ranks.size(),
                                 domain.ranks.size() == 1 ? "" : "s", domain.name, h(found.needed),
                                 on_host ? fmt::format(" of pinned memory for --offload {}", job.offload_text()) : "", h(domain.capacity_bytes));
  if (job.gpu && !on_host) {
    const cuda::DeviceInfo info = cuda::api().device_info(options.device);
    text += fmt::format(" ({} of {} free at the start, {} a rank kept for libraries; nvidia-smi shows what else is on it)",
                        h(static_cast<int64_t>(info.free_bytes)), h(static_cast<int64_t>(info.total_bytes)), h(kGpuProcessBytes));
  }
  const FoundMachine machine(domains, hosts, ctx.world.size(), job.gpu);
  const std::vector<parallel::Remedy> remedies = remedies_for(ctx.config, config, job, machine);
  if (remedies.empty())
    text += fmt::format("; no change of recompute, micro-batch{} or layout on these ranks would make it fit: take more hosts or a shorter --seq-len",
                        job.gpu ? ", --state-dtype, --offload" : "");
  else
    text += ". Changes that would fit, the fastest first:";
  for (const parallel::Remedy& m : remedies)
    text += fmt::format("\n  {} ({} a rank, about {:+.0f} % step time)", m.change, h(m.largest_bytes), 100 * m.slowdown);
  throw MemoryError("{}", text);
}

std::vector<RankMemory> gather_memory(const RankContext& ctx, Engine& engine, int64_t late_allocations) {
  std::vector<RankMemory> out;
  const std::array<int64_t, 4> mine{engine.plan().bytes().total(), engine.allocated().total(), peak_rss_bytes(), late_allocations};
  for (const auto& v : gather(ctx.world, mine)) out.push_back({v[0], v[1], v[2], v[3]});
  return out;
}

}  // namespace r1::train
