#include "parallel/cost/search.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <tuple>

#include "runtime/core/error.h"

namespace r1::parallel {
namespace {

std::vector<int> divisors(int n) {
  std::vector<int> out;
  for (int i = 1; i <= n; ++i)
    if (n % i == 0) out.push_back(i);
  return out;
}

/// Meshes worth trying: every factorisation of the ranks that the model and the batch allow.
std::vector<MeshShape> meshes(const ModelConfig& model, const JobShape& job, const SearchSpace& space, int ranks) {
  std::vector<MeshShape> out;
  const auto fits_model = [&](const MeshShape& m) {
    return static_cast<int64_t>(m.pp) * job.virtual_stages <= model.layers && m.tp <= model.heads && m.dp <= job.batch &&
           m.tp <= 64;
  };
  const std::vector<int> all = divisors(ranks);
  for (const int pp : space.pp ? all : std::vector{job.mesh.pp})
    for (const int tp : space.tp ? all : std::vector{job.mesh.tp}) {
      const int64_t used = static_cast<int64_t>(pp) * tp;
      if (used > ranks) continue;
      MeshShape m{.pp = pp, .dp = space.dp ? static_cast<int>(ranks / used) : job.mesh.dp, .tp = tp};
      if (m.world() > ranks) continue;
      if (space.dp) m.dp = std::min<int>(m.dp, static_cast<int>(std::min<int64_t>(job.batch, 65536)));
      if (fits_model(m)) out.push_back(m);
    }
  return out;
}

struct ScheduleChoice {
  std::string name;
  int virtual_stages;
};
std::vector<ScheduleChoice> schedules(const JobShape& job, const SearchSpace& space, const ModelConfig& model,
                                      const MeshShape& mesh, int microbatches) {
  if (!space.schedule || mesh.pp == 1) return {{mesh.pp == 1 ? "1f1b" : job.schedule, mesh.pp == 1 ? 1 : job.virtual_stages}};
  std::vector<ScheduleChoice> out{{"1f1b", 1}, {"zb-h1", 1}};
  for (const int v : {2, 4})
    if (static_cast<int64_t>(mesh.pp) * v <= model.layers && microbatches >= mesh.pp) out.push_back({"interleaved", v});
  return out;
}

std::vector<int64_t> micro_batches(const JobShape& job, const SearchSpace& space, const MeshShape& mesh) {
  if (!space.micro_batch) return {job.micro_batch};
  std::vector<int64_t> out;
  const int64_t rows = (job.batch + mesh.dp - 1) / mesh.dp;
  for (int64_t b = 1; b <= std::min<int64_t>(rows, 64); b *= 2) out.push_back(b);
  return out;
}

/// Tensors of a step of this many tokens a micro-batch are beyond what anybody trains at once.
constexpr int64_t kMostTokens = 1 << 20;

bool better(const Candidate& a, const Candidate& b) {
  if (a.fits != b.fits) return a.fits;
  if (!a.fits) return a.device_bytes < b.device_bytes;
  return a.time.tokens_per_s > b.time.tokens_per_s;
}

Candidate evaluate_with(const ModelSpec& spec, JobShape job, const Schedule& schedule, bool choose, const Machine& machine) {
  const std::vector<MemoryDomain> domains = machine.domains(job.mesh);
  if (choose) {
    if (job.offload_activations) job.recompute = {Recompute::kFull};  // nothing else keeps the inputs alone
    else if (const auto chosen = choose_recompute(spec, job, schedule, domains)) job.recompute = *chosen;
    else job.recompute = {Recompute::kFull};
  }
  Candidate c{.job = job};
  const JobBytes bytes(spec, job, schedule);
  c.largest_bytes = bytes.largest().second;
  for (const MemoryDomain& domain : domains) {
    int64_t n = 0;
    for (const int r : domain.ranks) n += bytes.of(r);
    c.device_bytes = std::max(c.device_bytes, n);
  }
  const std::vector<MemoryDomain> hosts = machine.host_domains(job.mesh);
  for (const MemoryDomain& host : hosts) {
    int64_t n = 0;
    for (const int r : host.ranks) n += bytes.host_of(r);
    c.host_bytes = std::max(c.host_bytes, n);
  }
  c.fits = !overflow(bytes, domains) && !host_overflow(bytes, hosts);
  c.time = step_time(spec, job, schedule, machine.rates(job.mesh, job.format), machine.links(job.mesh));
  c.reason = losses(c.time);
  return c;
}

}  // namespace

std::string losses(const StepTime& t) {
  std::vector<std::pair<double, std::string>> parts{
      {t.bubble, "bubble"},
      {t.tp_comm, "tensor-parallel communication"},
      {t.pp_comm, "waiting for stage transfers"},
      {t.dp_comm, "gradient sums"},
      {t.row_sums, "sums over rows"},
      {t.offload, "waiting for host memory"},
      {t.recompute, "recomputation"},
      {t.optimizer, "optimizer"},
  };
  std::ranges::stable_sort(parts, std::greater<>{}, &std::pair<double, std::string>::first);
  std::string out;
  for (const auto& [seconds, what] : parts) {
    const double share = seconds / t.total;
    if (share < 0.015) break;
    out += fmt::format("{}{:.0f} % {}", out.empty() ? "" : ", ", 100 * share, what);
  }
  return out.empty() ? "nearly all of it is computation" : out;
}

Candidate evaluate(const ModelConfig& model, const JobShape& job, const Machine& machine) {
  const ModelSpec spec(model, job.mesh.tp, job.stages());
  return evaluate_with(spec, job, schedule_of(job), false, machine);
}

std::vector<Candidate> search(const ModelConfig& model, const JobShape& job, const SearchSpace& space, const Machine& machine) {
  std::vector<Candidate> best;
  std::map<std::pair<int, int>, ModelSpec> specs;  // (tp, stages)
  const auto spec_of = [&](int tp, int stages) -> const ModelSpec& {
    const auto it = specs.find({tp, stages});
    return it != specs.end() ? it->second : specs.emplace(std::pair{tp, stages}, ModelSpec(model, tp, stages)).first->second;
  };
  for (const MeshShape& mesh : meshes(model, job, space, machine.most_ranks())) {
    std::optional<Candidate> top;
    for (const int64_t rows : micro_batches(job, space, mesh)) {
      JobShape tried = job;
      tried.mesh = mesh;
      tried.micro_batch = rows;
      if (rows > 1 && tried.tokens() > kMostTokens) continue;
      if (space.zero) tried.zero = mesh.dp > 1 ? 1 : 0;
      for (const ScheduleChoice& s : schedules(job, space, model, mesh, tried.microbatches())) {
        tried.schedule = s.name;
        tried.virtual_stages = s.virtual_stages;
        Candidate c = evaluate_with(spec_of(mesh.tp, tried.stages()), tried, schedule_of(tried), space.recompute, machine);
        if (!top || better(c, *top)) top = std::move(c);
      }
    }
    if (top) best.push_back(std::move(*top));
  }
  std::ranges::stable_sort(best, better);
  return best;
}

}  // namespace r1::parallel
