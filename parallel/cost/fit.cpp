#include "parallel/cost/fit.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>

#include "runtime/core/error.h"

namespace r1::parallel {
namespace {

constexpr std::array kPolicies{Recompute::kNone, Recompute::kCheap, Recompute::kSelective, Recompute::kFull};

/// Price of a policy in hundredths of a block's time: what choose_recompute weighs bytes against. Constants, so that the
/// plan on a login node and the ranks on any device decide alike (from the step-time model at T 4096 on an H200).
double price(Recompute policy) {
  switch (policy) {
    case Recompute::kNone: return 0;
    case Recompute::kCheap: return 1.5;
    case Recompute::kSelective: return 4;
    case Recompute::kFull: return 24;
  }
  return 0;
}

}  // namespace

JobBytes::JobBytes(const ModelSpec& spec, const JobShape& job, const Schedule& schedule) : mesh_(job.mesh) {
  // Most tp ranks have shards of the same sizes, and so the same bytes. The last replica holds the largest part of a cut
  // optimizer state.
  using Sizes = std::array<int64_t, 5>;
  for (int pp = 0; pp < mesh_.pp; ++pp) {
    std::map<Sizes, RankPlan::Bytes> known;
    for (int tp = 0; tp < mesh_.tp; ++tp) {
      const LocalShape& l = spec.local(tp);
      const Sizes key{l.q_heads.size(), l.kv_heads.size(), l.ffn.size(), l.vocab.size(),
                      token_part(job.tokens(), tp, mesh_.tp).size()};
      auto it = known.find(key);
      if (it == known.end())
        it = known.emplace(key, plan_rank(spec, job, schedule, {.pp = pp, .dp = mesh_.dp - 1, .tp = tp}).bytes()).first;
      bytes_.push_back(it->second.total());
      host_.push_back(it->second.host);
    }
  }
}

int64_t JobBytes::of(const MeshCoord& c) const {
  return bytes_.at(static_cast<size_t>(c.pp) * static_cast<size_t>(mesh_.tp) + static_cast<size_t>(c.tp));
}
int64_t JobBytes::of(int world_rank) const { return of(coord_of(mesh_, world_rank)); }

int64_t JobBytes::host_of(int world_rank) const {
  const MeshCoord c = coord_of(mesh_, world_rank);
  return host_.at(static_cast<size_t>(c.pp) * static_cast<size_t>(mesh_.tp) + static_cast<size_t>(c.tp));
}

std::pair<MeshCoord, int64_t> JobBytes::largest() const {
  const auto at = std::ranges::max_element(bytes_) - bytes_.begin();
  const auto i = static_cast<int>(at);
  return {{.pp = i / mesh_.tp, .dp = 0, .tp = i % mesh_.tp}, bytes_[static_cast<size_t>(at)]};
}

namespace {
std::optional<Overflow> worst_of(const std::vector<MemoryDomain>& domains, const std::function<int64_t(int)>& bytes_of) {
  std::optional<Overflow> worst;
  int64_t most_over = 0;
  for (size_t i = 0; i < domains.size(); ++i) {
    int64_t needed = 0;
    for (const int r : domains[i].ranks) needed += bytes_of(r);
    if (needed - domains[i].capacity_bytes > most_over) {
      most_over = needed - domains[i].capacity_bytes;
      worst = Overflow{i, needed};
    }
  }
  return worst;
}
}  // namespace

std::optional<Overflow> overflow(const JobBytes& bytes, const std::vector<MemoryDomain>& domains) {
  return worst_of(domains, [&](int r) { return bytes.of(r); });
}

std::optional<Overflow> host_overflow(const JobBytes& bytes, const std::vector<MemoryDomain>& hosts) {
  return worst_of(hosts, [&](int r) { return bytes.host_of(r); });
}

std::vector<MemoryDomain> equal_domains(int world, int ranks_per_device, int64_t capacity_bytes, const std::string& word) {
  std::vector<MemoryDomain> out;
  for (int r = 0; r < world; ++r) {
    if (r % ranks_per_device == 0)
      out.push_back({.name = fmt::format("{} {}", word, r / ranks_per_device), .capacity_bytes = capacity_bytes, .ranks = {}});
    out.back().ranks.push_back(r);
  }
  return out;
}

std::optional<std::vector<Recompute>> choose_recompute(const ModelSpec& spec, const JobShape& job, const Schedule& schedule,
                                                       const std::vector<MemoryDomain>& domains) {
  // Bytes of (policy, pp, tp): dp replicas have the same plan.
  const auto pps = static_cast<size_t>(job.mesh.pp);
  std::vector<JobBytes> with;
  for (const Recompute p : kPolicies) {
    JobShape same = job;
    same.recompute = {p};
    with.emplace_back(spec, same, schedule);
  }
  std::vector<size_t> chosen(pps, 0);
  const auto bytes_in = [&](const MemoryDomain& domain, const std::vector<size_t>& policies) {
    int64_t n = 0;
    for (const int r : domain.ranks) {
      const MeshCoord c = coord_of(job.mesh, r);
      n += with[policies[static_cast<size_t>(c.pp)]].of(c);
    }
    return n;
  };
  for (;;) {
    const MemoryDomain* over = nullptr;
    for (const MemoryDomain& domain : domains)
      if (bytes_in(domain, chosen) > domain.capacity_bytes) {
        over = &domain;
        break;
      }
    if (over == nullptr) break;
    const int64_t now = bytes_in(*over, chosen);
    // The cheapest change that is enough here; else the one that frees most for its price.
    struct Move {
      size_t pp = 0, policy = 0;
      bool enough = false;
      double price = 0, value = 0;
    };
    std::optional<Move> best;
    for (size_t pp = 0; pp < pps; ++pp)
      for (size_t p = chosen[pp] + 1; p < kPolicies.size(); ++p) {
        std::vector<size_t> tried = chosen;
        tried[pp] = p;
        const int64_t then = bytes_in(*over, tried);
        if (then >= now) continue;
        double layers = 0;
        for (int stage = static_cast<int>(pp); stage < job.stages(); stage += job.mesh.pp) {
          const StageSpec& st = spec.stages()[static_cast<size_t>(stage)];
          layers += static_cast<double>(st.layer_end - st.layer_begin);
        }
        Move move{pp, p, then <= over->capacity_bytes, layers * (price(kPolicies[p]) - price(kPolicies[chosen[pp]])), 0};
        move.value = static_cast<double>(now - then) / move.price;
        const bool better = !best || (move.enough && !best->enough) ||
                            (move.enough == best->enough && (move.enough ? move.price < best->price : move.value > best->value));
        if (better) best = move;
      }
    if (!best) return std::nullopt;
    chosen[best->pp] = best->policy;
  }
  std::vector<Recompute> out;
  for (const size_t p : chosen) out.push_back(kPolicies[p]);
  return out;
}

namespace {

/// A job changed in one way.
struct Change {
  std::vector<OptionValue> options;
  std::string explanation;
  JobShape job;
  [[nodiscard]] std::string text() const {
    std::string out;
    for (const OptionValue& o : options) out += fmt::format("{}--{} {}", out.empty() ? "" : " ", o.option, o.value);
    return out;
  }
};

void add_layout(std::vector<Change>& out, const JobShape& job, MeshShape mesh, const ModelConfig& model, int most_ranks,
                const std::string& why) {
  if (mesh.world() > most_ranks || static_cast<int64_t>(mesh.pp) * job.virtual_stages > model.layers || mesh.dp > job.batch)
    return;
  if (mesh.tp > model.heads) return;
  Change c{{{"pp", std::to_string(mesh.pp)}, {"dp", std::to_string(mesh.dp)}, {"tp", std::to_string(mesh.tp)}}, why, job};
  c.job.mesh = mesh;
  if (job.recompute.size() > 1) c.job.recompute = {*std::ranges::max_element(job.recompute)};
  out.push_back(std::move(c));
}

void add_layouts(std::vector<Change>& out, const JobShape& job, const ModelConfig& model, int most_ranks) {
  const MeshShape m = job.mesh;
  for (int f = 2; f <= 64; f *= 2) {
    add_layout(out, job, {.pp = m.pp, .dp = m.dp, .tp = m.tp * f}, model, most_ranks, "more tensor-parallel ranks");
    add_layout(out, job, {.pp = m.pp * f, .dp = m.dp, .tp = m.tp}, model, most_ranks, "more stages");
    if (m.dp % f == 0) {
      add_layout(out, job, {.pp = m.pp, .dp = m.dp / f, .tp = m.tp * f}, model, most_ranks, "tensor-parallel ranks instead of replicas");
      add_layout(out, job, {.pp = m.pp * f, .dp = m.dp / f, .tp = m.tp}, model, most_ranks, "stages instead of replicas");
    }
    if (m.pp % f == 0)
      add_layout(out, job, {.pp = m.pp / f, .dp = m.dp, .tp = m.tp * f}, model, most_ranks, "tensor-parallel ranks instead of stages");
  }
}

std::vector<Change> changes_of(const JobShape& job, const ModelConfig& model, int most_ranks, bool layouts) {
  std::vector<Change> out;
  const auto change = [&](const char* option, std::string value, std::string why, auto&& apply) {
    out.push_back({{{option, std::move(value)}}, std::move(why), job});
    apply(out.back().job);
  };
  const Recompute now = *std::ranges::max_element(job.recompute);
  for (const Recompute r : kPolicies)
    if (r > now)
      change("recompute", recompute_name(r), "activations computed again in the backward", [&](JobShape& j) { j.recompute = {r}; });
  for (int64_t rows = job.micro_batch / 2; rows >= 1; rows /= 2)
    change("micro-batch", std::to_string(rows), "fewer rows at once", [&](JobShape& j) { j.micro_batch = rows; });
  if (job.gpu && job.format.master)
    change("state-dtype", "bf16", "weights, gradients and moments in bf16: other numerics, 8 bytes a parameter",
           [](JobShape& j) { j.format = numeric_format(true, "bf16", "bf16"); });
  if (job.mesh.dp > 1 && job.zero == 0)
    change("zero", "1", "optimizer state cut over the replicas", [](JobShape& j) { j.zero = 1; });
  if (layouts) add_layouts(out, job, model, most_ranks);
  if (job.schedule == "gpipe")
    change("schedule", "1f1b", "fewer micro-batches in flight", [](JobShape& j) { j.schedule = "1f1b"; });
  return out;
}

/// What --offload can take off the device beyond what it does already.
std::vector<Change> offloads_of(const JobShape& job) {
  std::vector<Change> out;
  if (!job.gpu) return out;
  const auto add = [&](bool optimizer, bool activations, const char* why) {
    Change c{{}, why, job};
    c.job.offload_optimizer = job.offload_optimizer || optimizer;
    c.job.offload_activations = job.offload_activations || activations;
    if (c.job.offload_text() == job.offload_text()) return;
    if (std::ranges::any_of(out, [&](const Change& o) { return o.job.offload_text() == c.job.offload_text(); })) return;
    if (activations) {  // named also where it is chosen already: the command may say --recompute auto
      c.job.recompute = {Recompute::kFull};
      c.options.push_back({"recompute", "full"});
    }
    c.options.push_back({"offload", c.job.offload_text()});
    out.push_back(std::move(c));
  };
  add(true, false, "optimizer state in pinned host memory, read and written each step");
  add(false, true, "block inputs in pinned host memory, written in the forward and read in the backward");
  add(true, true, "optimizer state and block inputs in pinned host memory, moved each step");
  return out;
}

/// Both changes in one: nullopt where they set one option twice.
std::optional<Change> both(const Change& a, const Change& b) {
  Change c{a.options, a.explanation + "; " + b.explanation, b.job};
  for (const OptionValue& o : b.options) {
    if (std::ranges::find(a.options, o.option, &OptionValue::option) != a.options.end()) return std::nullopt;
    c.options.push_back(o);
  }
  return c;
}

ChangedJob evaluated(const ModelConfig& model, const JobShape& job, const Machine& machine) {
  const ModelSpec spec(model, job.mesh.tp, job.stages());
  const Schedule schedule = schedule_of(job);
  const JobBytes bytes(spec, job, schedule);
  return {.job = job,
          .fits = !overflow(bytes, machine.domains(job.mesh)) && !host_overflow(bytes, machine.host_domains(job.mesh)),
          .largest_bytes = bytes.largest().second,
          .seconds = step_time(spec, job, schedule, machine.rates(job.mesh, job.format), machine.links(job.mesh)).total};
}

}  // namespace

std::vector<Remedy> remedies(const ModelConfig& model, const JobShape& job, const Machine& machine, size_t most, const TryOptions& try_options,
                             bool layouts) {
  const double base = evaluated(model, job, machine).seconds;
  std::vector<Remedy> out;
  const auto consider = [&](const Change& c) {
    const std::optional<ChangedJob> e = try_options ? try_options(c.job, c.options) : evaluated(model, c.job, machine);
    if (!e || !e->fits) return;
    out.push_back({.change = c.text(), .explanation = c.explanation, .largest_bytes = e->largest_bytes, .slowdown = e->seconds / base - 1,
                   .ranks = e->job.mesh.world(), .seconds = e->seconds, .policy = e->job.recompute_text()});
  };
  const auto singles = [&](const JobShape& of) { return changes_of(of, model, machine.most_ranks(), layouts); };
  const std::vector<Change> first = singles(job);
  for (const Change& c : first) consider(c);
  if (out.empty())
    for (const Change& a : first)
      for (const Change& b : singles(a.job))
        // Each pair once; two values of one option are one change.
        if (a.options.front().option < b.options.front().option)
          if (const auto c = both(a, b)) consider(*c);
  if (out.empty())
    for (const Change& c : offloads_of(job)) consider(c);
  if (out.empty())
    for (const Change& a : offloads_of(job))
      for (const Change& b : singles(a.job))
        if (const auto c = both(a, b)) consider(*c);
  std::ranges::stable_sort(out, {}, &Remedy::slowdown);
  if (out.size() > most) out.resize(most);
  return out;
}

}  // namespace r1::parallel
