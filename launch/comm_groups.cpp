#include "launch/comm_groups.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>

namespace r1::launch {
namespace {

void add(std::vector<PlannedGroup>& out, const std::string& kind, std::vector<int> ranks, CommChoice choice,
         const std::function<RankSpot(int)>& spot) {
  if (ranks.size() < 2) return;
  std::set<int> hosts;
  std::map<std::pair<int, int>, int> on_gpu;
  for (const int r : ranks) {
    const RankSpot s = spot(r);
    hosts.insert(s.host);
    if (s.gpu >= 0) ++on_gpu[{s.host, s.gpu}];
  }
  int most = 0;
  for (const auto& [gpu, n] : on_gpu) most = std::max(most, n);
  const CommRoute route = choose_comm(
      choice, {.ranks = static_cast<int>(ranks.size()), .hosts = static_cast<int>(hosts.size()), .most_ranks_a_gpu = most}, kind);
  const auto same = std::ranges::find_if(out, [&](const PlannedGroup& g) {
    return g.kind == kind && g.route == route && g.hosts == static_cast<int>(hosts.size()) && g.most_ranks_a_gpu == most;
  });
  if (same != out.end()) {
    ++same->count;
    return;
  }
  out.push_back({.kind = kind, .count = 1, .ranks = std::move(ranks), .hosts = static_cast<int>(hosts.size()), .most_ranks_a_gpu = most, .route = route});
}

}  // namespace

std::vector<PlannedGroup> planned_groups(const parallel::MeshShape& m, bool tied_embeddings, CommChoice choice,
                                         const std::function<RankSpot(int)>& spot) {
  std::vector<PlannedGroup> out;
  const auto rank = [&](int pp, int dp, int tp) { return parallel::rank_of(m, {.pp = pp, .dp = dp, .tp = tp}); };
  for (int pp = 0; pp < m.pp; ++pp)
    for (int dp = 0; dp < m.dp; ++dp) {
      std::vector<int> ranks;
      for (int tp = 0; tp < m.tp; ++tp) ranks.push_back(rank(pp, dp, tp));
      add(out, "tp", std::move(ranks), choice, spot);
    }
  for (int dp = 0; dp < m.dp; ++dp)
    for (int tp = 0; tp < m.tp; ++tp) {
      std::vector<int> ranks;
      for (int pp = 0; pp < m.pp; ++pp) ranks.push_back(rank(pp, dp, tp));
      add(out, "pp", std::move(ranks), choice, spot);
    }
  for (int pp = 0; pp < m.pp; ++pp)
    for (int tp = 0; tp < m.tp; ++tp) {
      std::vector<int> ranks;
      for (int dp = 0; dp < m.dp; ++dp) ranks.push_back(rank(pp, dp, tp));
      add(out, "dp", std::move(ranks), choice, spot);
    }
  for (int dp = 0; dp < m.dp; ++dp) {
    std::vector<int> ranks;
    for (int pp = 0; pp < m.pp; ++pp)
      for (int tp = 0; tp < m.tp; ++tp) ranks.push_back(rank(pp, dp, tp));
    add(out, "replica", std::move(ranks), choice, spot);
  }
  if (tied_embeddings && m.pp > 1)
    for (int dp = 0; dp < m.dp; ++dp)
      for (int tp = 0; tp < m.tp; ++tp) add(out, "ends", {rank(0, dp, tp), rank(m.pp - 1, dp, tp)}, choice, spot);
  return out;
}

}  // namespace r1::launch
