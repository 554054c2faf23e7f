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
    std::map<Sizes, int64_t> known;
    for (int tp = 0; tp < mesh_.tp; ++tp) {
      const LocalShape& l = spec.local(tp);
      const Sizes key{l.q_heads.size(), l.kv_heads.size(), l.ffn.size(), l.vocab.size(),
                      token_part(job.tokens(), tp, mesh_.tp).size()};
      auto it = known.find(key);
      if (it == known.end())
        it = known.emplace(key, plan_rank(spec, job, schedule, {.pp = pp, .dp = mesh_.dp - 1, .tp = tp}).bytes().total()).first;
      bytes_.push_back(it->second);
    }
  }
}

int64_t JobBytes::of(const MeshCoord& c) const {
  return bytes_.at(static_cast<size_t>(c.pp) * static_cast<size_t>(mesh_.tp) + static_cast<size_t>(c.tp));
}
int64_t JobBytes::of(int world_rank) const { return of(coord_of(mesh_, world_rank)); }

std::pair<MeshCoord, int64_t> JobBytes::largest() const {
  const auto at = std::ranges::max_element(bytes_) - bytes_.begin();
  const auto i = static_cast<int>(at);
  return {{.pp = i / mesh_.tp, .dp = 0, .tp = i % mesh_.tp}, bytes_[static_cast<size_t>(at)]};
}

std::optional<Overflow> overflow(const JobBytes& bytes, const std::vector<MemoryDomain>& domains) {
  std::optional<Overflow> worst;
  int64_t most_over = 0;
  for (size_t i = 0; i < domains.size(); ++i) {
    int64_t needed = 0;
    for (const int r : domains[i].ranks) needed += bytes.of(r);
    if (needed - domains[i].capacity_bytes > most_over) {
      most_over = needed - domains[i].capacity_bytes;
      worst = Overflow{i, needed};
    }
  }
  return worst;
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
  std::string flags, explanation;
  JobShape job;
};

void add_layout(std::vector<Change>& out, const JobShape& job, MeshShape mesh, const ModelConfig& model, int most_ranks,
                const std::string& why) {
  if (mesh.world() > most_ranks || static_cast<int64_t>(mesh.pp) * job.virtual_stages > model.layers || mesh.dp > job.batch)
    return;
  if (mesh.tp > model.heads) return;
  Change c{fmt::format("--pp {} --dp {} --tp {}", mesh.pp, mesh.dp, mesh.tp), why, job};
  c.job.mesh = mesh;
  if (job.recompute.size() > 1) c.job.recompute = {*std::ranges::max_element(job.recompute)};
  out.push_back(std::move(c));
}

std::vector<Change> changes_of(const JobShape& job, const ModelConfig& model, int most_ranks) {
  std::vector<Change> out;
  const Recompute now = *std::ranges::max_element(job.recompute);
  for (const Recompute r : kPolicies) {
    if (r <= now) continue;
    Change c{fmt::format("--recompute {}", recompute_name(r)), "activations computed again in the backward", job};
    c.job.recompute = {r};
    out.push_back(std::move(c));
  }
  for (int64_t rows = job.micro_batch / 2; rows >= 1; rows /= 2) {
    Change c{fmt::format("--micro-batch {}", rows), "fewer rows at once", job};
    c.job.micro_batch = rows;
    out.push_back(std::move(c));
  }
  if (job.gpu && job.format.master) {
    Change c{"--state-dtype bf16", "weights, gradients and moments in bf16: other numerics, 8 bytes a parameter", job};
    c.job.format = numeric_format(true, "bf16", "bf16");
    out.push_back(std::move(c));
  }
  if (job.mesh.dp > 1 && job.zero == 0) {
    Change c{"--zero 1", "optimizer state cut over the replicas", job};
    c.job.zero = 1;
    out.push_back(std::move(c));
  }
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
  if (job.schedule == "gpipe") {
    Change c{"--schedule 1f1b", "fewer micro-batches in flight", job};
    c.job.schedule = "1f1b";
    out.push_back(std::move(c));
  }
  return out;
}

struct Evaluated {
  bool fits = false;
  int64_t largest = 0;
  double seconds = 0;  ///< of a step
};

Evaluated evaluate(const ModelConfig& model, const JobShape& job, const Machine& machine) {
  const ModelSpec spec(model, job.mesh.tp, job.stages());
  const Schedule schedule = schedule_of(job);
  const JobBytes bytes(spec, job, schedule);
  Evaluated e;
  e.largest = bytes.largest().second;
  e.fits = !overflow(bytes, machine.domains(job.mesh));
  e.seconds = step_time(spec, job, schedule, machine.rates(job.mesh, job.format), machine.links(job.mesh)).total;
  return e;
}

}  // namespace

std::vector<Remedy> remedies(const ModelConfig& model, const JobShape& job, const Machine& machine, size_t most) {
  const double base = evaluate(model, job, machine).seconds;
  std::vector<Remedy> out;
  const auto consider = [&](const Change& c) {
    const Evaluated e = evaluate(model, c.job, machine);
    if (!e.fits) return;
    out.push_back({c.flags, c.explanation, e.largest, e.seconds / base - 1, c.job.mesh.world()});
  };
  const std::vector<Change> first = changes_of(job, model, machine.most_ranks());
  for (const Change& c : first) consider(c);
  if (out.empty())
    for (const Change& a : first)
      for (const Change& b : changes_of(a.job, model, machine.most_ranks())) {
        // Two values of one option are one change.
        const std::string option_a = a.flags.substr(0, a.flags.find(' ')), option_b = b.flags.substr(0, b.flags.find(' '));
        if (option_a >= option_b) continue;
        consider({a.flags + " " + b.flags, a.explanation + "; " + b.explanation, b.job});
      }
  std::ranges::stable_sort(out, {}, &Remedy::slowdown);
  if (out.size() > most) out.resize(most);
  return out;
}

}  // namespace r1::parallel
