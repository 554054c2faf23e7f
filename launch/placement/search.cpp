// Cost of an assignment, and the search for a cheap one.
//
// Legend: a unit is the tp slots of one tensor-parallel group; a tile is the pp_tile x dp_tile units that one host takes.
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <numeric>
#include <random>

#include "launch/placement/slots.h"

namespace r1::launch {

bool cheaper(const PlacementCost& a, const PlacementCost& b) {
  const double x = a.seconds(), y = b.seconds(), close = 1e-9 * std::max(x, y);
  if (x < y - close) return true;
  if (x > y + close) return false;
  return a.mean < b.mean * (1 - 1e-9);
}

namespace placement {
namespace {

using parallel::MeshShape;
using parallel::StepTraffic;

/// The slots of each unit, in the order of their tp ranks.
using Unit = std::vector<int>;

/// Cuts one host's slots into groups of `tp`, nearest together: the partition whose slowest group is fastest.
class HostCut {
 public:
  HostCut(const Slots& slots, int tp, const StepTraffic& traffic) : slots_(slots), tp_(static_cast<size_t>(tp)), traffic_(traffic) {}

  /// All partitions tried, 105 for eight slots: groups are chosen one after the other around the lowest free slot.
  [[nodiscard]] std::vector<Unit> exact(const std::vector<int>& free) {
    choose(free, 0, 0);
    return std::move(best_);
  }
  /// Each group grown by the slot that is nearest to its slowest member.
  [[nodiscard]] std::vector<Unit> greedy(std::vector<int> free) const;

 private:
  [[nodiscard]] double seconds(const Unit& g) const {
    return slots_.group_s(g.data(), static_cast<int>(g.size()), std::max(1.0, traffic_.tp_bytes), traffic_.tp_operations);
  }
  void choose(const std::vector<int>& left, double slowest, double sum);
  void grow(const std::vector<int>& left, size_t from, const Unit& group, double slowest, double sum);
  void keep_if_better(double slowest, double sum);

  const Slots& slots_;
  size_t tp_;
  const StepTraffic& traffic_;
  std::vector<Unit> now_, best_;
  double best_slowest_ = std::numeric_limits<double>::infinity(), best_sum_ = best_slowest_;
};

void HostCut::keep_if_better(double slowest, double sum) {
  const bool faster = slowest < best_slowest_ * (1 - 1e-12);
  if (!faster && !(slowest <= best_slowest_ * (1 + 1e-12) && sum < best_sum_ * (1 - 1e-12))) return;
  best_slowest_ = slowest;
  best_sum_ = sum;
  best_ = now_;
}

void HostCut::choose(const std::vector<int>& left, double slowest, double sum) {
  if (left.size() < tp_) return keep_if_better(slowest, sum);
  // Every subset of tp - 1 others joins the lowest free slot; where slots are left over, it may stay out itself.
  grow(left, 1, {left[0]}, slowest, sum);
  if (left.size() % tp_ != 0) choose(std::vector<int>(left.begin() + 1, left.end()), slowest, sum);
}

void HostCut::grow(const std::vector<int>& left, size_t from, const Unit& group, double slowest, double sum) {
  if (group.size() == tp_) {
    std::vector<int> rest;
    for (const int s : left)
      if (std::ranges::find(group, s) == group.end()) rest.push_back(s);
    const double t = seconds(group);
    now_.push_back(group);
    choose(rest, std::max(slowest, t), sum + t);
    now_.pop_back();
    return;
  }
  for (size_t i = from; i < left.size(); ++i) {
    Unit larger = group;
    larger.push_back(left[i]);
    grow(left, i + 1, larger, slowest, sum);
  }
}

std::vector<Unit> HostCut::greedy(std::vector<int> free) const {
  std::vector<Unit> out;
  while (free.size() >= tp_) {
    Unit group{free.front()};
    free.erase(free.begin());
    while (group.size() < tp_) {
      size_t best = 0;
      double best_s = std::numeric_limits<double>::infinity();
      for (size_t i = 0; i < free.size(); ++i) {
        Unit larger = group;
        larger.push_back(free[i]);
        const double t = seconds(larger);
        if (t < best_s * (1 - 1e-12)) {
          best_s = t;
          best = i;
        }
      }
      group.push_back(free[best]);
      free.erase(free.begin() + static_cast<std::ptrdiff_t>(best));
    }
    out.push_back(std::move(group));
  }
  return out;
}

/// The units of a host whose slots are [first, first + count).
std::vector<Unit> units_of_host(const Slots& slots, int first, int count, int tp, const StepTraffic& traffic) {
  std::vector<int> free(static_cast<size_t>(count));
  std::iota(free.begin(), free.end(), first);
  if (tp == 1) {
    std::vector<Unit> out;
    for (const int s : free) out.push_back({s});
    return out;
  }
  HostCut cut(slots, tp, traffic);
  return count <= 8 ? cut.exact(free) : cut.greedy(free);
}

/// Units of each host, and those that had to be put together from what hosts had left.
struct Units {
  std::vector<std::vector<Unit>> of_host;
  std::vector<Unit> mixed;
};

Units make_units(const Slots& slots, int tp, const StepTraffic& traffic) {
  Units out;
  const std::vector<int>& first = slots.first_of_host();
  std::map<const HostClass*, std::vector<std::vector<int>>> known;  // relative to the host's first slot
  std::vector<int> left_over;
  for (size_t h = 0; h + 1 < first.size(); ++h) {
    const int begin = first[h], count = first[h + 1] - first[h];
    out.of_host.emplace_back();
    if (count == 0) continue;
    const HostClass* c = &slots.class_of(begin);
    auto it = known.find(c);
    if (it == known.end()) {
      std::vector<std::vector<int>> relative = units_of_host(slots, begin, count, tp, traffic);
      for (auto& unit : relative)
        for (int& s : unit) s -= begin;
      it = known.emplace(c, std::move(relative)).first;
    }
    std::vector<bool> used(static_cast<size_t>(count), false);
    for (const auto& unit : it->second) {
      out.of_host.back().emplace_back();
      for (const int s : unit) {
        out.of_host.back().back().push_back(begin + s);
        used[static_cast<size_t>(s)] = true;
      }
    }
    for (int s = 0; s < count; ++s)
      if (!used[static_cast<size_t>(s)]) left_over.push_back(begin + s);
  }
  for (size_t i = 0; i + static_cast<size_t>(tp) <= left_over.size(); i += static_cast<size_t>(tp))
    out.mixed.emplace_back(left_over.begin() + static_cast<std::ptrdiff_t>(i), left_over.begin() + static_cast<std::ptrdiff_t>(i) + tp);
  return out;
}

/// Orders of hosts worth trying: as given, and leaf switch by leaf switch, the fullest first.
std::vector<std::vector<int>> host_orders(const Slots& slots) {
  const auto hosts = static_cast<int>(slots.first_of_host().size()) - 1;
  std::vector<int> given(static_cast<size_t>(hosts));
  std::iota(given.begin(), given.end(), 0);
  std::vector<std::vector<int>> out{given};
  std::map<int, int> size;
  for (const int h : given)
    if (slots.first_of_host()[static_cast<size_t>(h)] < slots.first_of_host()[static_cast<size_t>(h) + 1]) ++size[slots.leaf_of_host(h)];
  if (size.size() > 1) {
    const auto leaf = [&](int h) {
      const bool empty = slots.first_of_host()[static_cast<size_t>(h)] == slots.first_of_host()[static_cast<size_t>(h) + 1];
      return empty ? -1 : slots.leaf_of_host(h);
    };
    std::vector<int> by_leaf = given;
    std::ranges::stable_sort(by_leaf, [&](int a, int b) {
      const int la = leaf(a), lb = leaf(b);
      const int na = size[la], nb = size[lb];
      return na != nb ? na > nb : la < lb;
    });
    if (by_leaf != given) out.push_back(std::move(by_leaf));
  }
  return out;
}

/// Fills the (pp, dp) grid with units: hosts in order, each a tile of pp_tile stages x dp_tile replicas. `stages_first`:
/// the next host continues with further stages of the same replicas, otherwise with further replicas of the same stages.
/// Empty when units and grid do not suit.
std::vector<int> fill(const Units& units, const std::vector<int>& order, const MeshShape& mesh, int pp_tile, int dp_tile,
                      bool stages_first) {
  if (mesh.pp % pp_tile != 0 || mesh.dp % dp_tile != 0) return {};
  const int tiles_pp = mesh.pp / pp_tile, tiles_dp = mesh.dp / dp_tile, per_tile = pp_tile * dp_tile;
  std::vector<int> slot_of_rank(static_cast<size_t>(mesh.world()), -1);
  int tile = 0;
  const int tiles = tiles_pp * tiles_dp;
  for (const int h : order) {
    const std::vector<Unit>& here = units.of_host[static_cast<size_t>(h)];
    for (size_t begin = 0; begin + static_cast<size_t>(per_tile) <= here.size() && tile < tiles; begin += static_cast<size_t>(per_tile), ++tile) {
      const int tp_at = stages_first ? tile % tiles_pp : tile / tiles_dp;
      const int dp_at = stages_first ? tile / tiles_pp : tile % tiles_dp;
      for (int i = 0; i < per_tile; ++i) {
        const parallel::MeshCoord c{.pp = tp_at * pp_tile + i / dp_tile, .dp = dp_at * dp_tile + i % dp_tile, .tp = 0};
        const int rank = parallel::rank_of(mesh, c);
        const Unit& unit = here[begin + static_cast<size_t>(i)];
        for (size_t t = 0; t < unit.size(); ++t) slot_of_rank[static_cast<size_t>(rank) + t] = unit[t];
      }
    }
  }
  return tile == tiles ? slot_of_rank : std::vector<int>{};
}

/// Units one after the other over the grid, whatever hosts they lie on, mixed ones last.
std::vector<int> fill_plain(const Units& units, const std::vector<int>& order, const MeshShape& mesh, bool stages_first) {
  std::vector<const Unit*> list;
  for (const int h : order)
    for (const Unit& u : units.of_host[static_cast<size_t>(h)]) list.push_back(&u);
  for (const Unit& u : units.mixed) list.push_back(&u);
  const int groups = mesh.pp * mesh.dp;
  if (static_cast<int>(list.size()) < groups) return {};
  std::vector<int> slot_of_rank(static_cast<size_t>(mesh.world()), -1);
  for (int g = 0; g < groups; ++g) {
    const parallel::MeshCoord c = stages_first ? parallel::MeshCoord{.pp = g % mesh.pp, .dp = g / mesh.pp, .tp = 0}
                                               : parallel::MeshCoord{.pp = g / mesh.dp, .dp = g % mesh.dp, .tp = 0};
    const int rank = parallel::rank_of(mesh, c);
    const Unit& unit = *list[static_cast<size_t>(g)];
    for (size_t t = 0; t < unit.size(); ++t) slot_of_rank[static_cast<size_t>(rank) + t] = unit[t];
  }
  return slot_of_rank;
}

/// Ranks up to which exchanges are tried: an evaluation then takes microseconds.
constexpr int kMostExchanged = 64;
constexpr size_t kMostStarts = 16;

/// The best assignment so far.
struct Best {
  const Slots* slots = nullptr;
  const MeshShape* mesh = nullptr;
  const StepTraffic* traffic = nullptr;
  std::vector<int> assignment;
  PlacementCost cost;
  std::vector<std::vector<int>> constructed;  ///< every candidate, as starting points for exchanges
  bool consider(const std::vector<int>& candidate) {
    if (candidate.empty()) return false;
    if (mesh->world() <= kMostExchanged && constructed.size() < kMostStarts) constructed.push_back(candidate);
    const PlacementCost c = cost_of(*slots, *mesh, *traffic, candidate);
    if (!assignment.empty() && !cheaper(c, cost)) return false;
    assignment = candidate;
    cost = c;
    return true;
  }
};

/// Number of ways to give `ranks` different slots out of `slots`, or more than `limit`.
int64_t arrangements(int64_t slots, int64_t ranks, int64_t limit) {
  int64_t n = 1;
  for (int64_t i = 0; i < ranks && n <= limit; ++i) n *= slots - i;
  return n;
}

void try_all(Best& best, int slots, int ranks) {
  std::vector<int> now;
  std::vector<bool> used(static_cast<size_t>(slots), false);
  const std::function<void()> go = [&] {
    if (static_cast<int>(now.size()) == ranks) {
      best.consider(now);
      return;
    }
    for (int s = 0; s < slots; ++s) {
      if (used[static_cast<size_t>(s)]) continue;
      used[static_cast<size_t>(s)] = true;
      now.push_back(s);
      go();
      now.pop_back();
      used[static_cast<size_t>(s)] = false;
    }
  };
  go();
}

/// Exchanges ranks, or moves one to a free slot, as long as that helps; first whole groups, then single ranks.
void improve(Best& best, int slots, int64_t evaluations) {
  const int world = best.mesh->world(), tp = best.mesh->tp;
  bool changed = true;
  while (changed && evaluations > 0) {
    changed = false;
    for (const int size : {tp, 1}) {
      if (size == 1 && tp == 1) continue;
      for (int a = 0; a < world && evaluations > 0; a += size)
        for (int b = a + size; b < world && evaluations > 0; b += size, --evaluations) {
          std::vector<int> tried = best.assignment;
          for (int t = 0; t < size; ++t) std::swap(tried[static_cast<size_t>(a + t)], tried[static_cast<size_t>(b + t)]);
          changed = best.consider(tried) || changed;
        }
    }
    if (slots == world) continue;
    for (int a = 0; a < world && evaluations > 0; ++a)
      for (int s = 0; s < slots && evaluations > 0; ++s) {
        if (std::ranges::find(best.assignment, s) != best.assignment.end()) continue;
        --evaluations;
        std::vector<int> tried = best.assignment;
        tried[static_cast<size_t>(a)] = s;
        changed = best.consider(tried) || changed;
      }
  }
}

}  // namespace

PlacementCost cost_of(const Slots& slots, const MeshShape& mesh, const StepTraffic& traffic, const std::vector<int>& slot_of_rank) {
  PlacementCost out;
  double sum = 0;
  int parts = 0;
  const auto slot = [&](int pp, int dp, int tp) { return slot_of_rank[static_cast<size_t>((pp * mesh.dp + dp) * mesh.tp + tp)]; };
  const auto add = [&](double seconds, double* slowest) {
    *slowest = std::max(*slowest, seconds);
    sum += seconds;
    ++parts;
  };
  if (mesh.tp > 1)
    for (size_t g = 0; g < slot_of_rank.size(); g += static_cast<size_t>(mesh.tp))
      add(slots.group_s(slot_of_rank.data() + g, mesh.tp, traffic.tp_bytes, traffic.tp_operations), &out.tp);
  for (int pp = 0; pp + 1 < mesh.pp; ++pp)
    for (int dp = 0; dp < mesh.dp; ++dp)
      for (int tp = 0; tp < mesh.tp; ++tp)
        add(slots.message_s(slot(pp, dp, tp), slot(pp + 1, dp, tp), traffic.pp_bytes, traffic.pp_operations), &out.pp);
  if (mesh.dp > 1)
    for (int pp = 0; pp < mesh.pp; ++pp)
      for (int tp = 0; tp < mesh.tp; ++tp) {
        // A ring in order of the replicas: it is as fast as its slowest link.
        double slowest = 0;
        for (int dp = 0; dp < mesh.dp; ++dp) {
          if (mesh.dp == 2 && dp == 1) break;
          slowest = std::max(slowest, slots.message_s(slot(pp, dp, tp), slot(pp, (dp + 1) % mesh.dp, tp), traffic.dp_bytes, 1));
        }
        add(slowest, &out.dp);
      }
  out.mean = parts > 0 ? sum / parts : 0;
  return out;
}

std::vector<int> search(const Slots& slots, const MeshShape& mesh, const StepTraffic& traffic, const PlacementOptions& options) {
  const int world = mesh.world(), all = static_cast<int>(slots.all().size());
  Best best{.slots = &slots, .mesh = &mesh, .traffic = &traffic, .assignment = {}, .cost = {}, .constructed = {}};
  std::vector<int> in_order(static_cast<size_t>(world));
  std::iota(in_order.begin(), in_order.end(), 0);
  best.consider(in_order);
  if (arrangements(all, world, options.exhaustive) <= options.exhaustive) {
    try_all(best, all, world);
    return best.assignment;
  }
  const Units units = make_units(slots, mesh.tp, traffic);
  size_t widest = 1;
  for (const auto& host : units.of_host) widest = std::max(widest, host.size());
  for (const std::vector<int>& order : host_orders(slots)) {
    for (const bool stages_first : {false, true}) {
      best.consider(fill_plain(units, order, mesh, stages_first));
      for (int pp_tile = 1; pp_tile <= std::min<int>(mesh.pp, static_cast<int>(widest)); ++pp_tile)
        for (int dp_tile = 1; pp_tile * dp_tile <= static_cast<int>(widest) && dp_tile <= mesh.dp; ++dp_tile) {
          // Half-empty hosts are only worth trying when the tile cannot be larger.
          if (2 * pp_tile * dp_tile <= static_cast<int>(widest) && mesh.pp * mesh.dp > pp_tile * dp_tile) continue;
          best.consider(fill(units, order, mesh, pp_tile, dp_tile, stages_first));
        }
    }
  }
  if (world > kMostExchanged) return best.assignment;
  // The slowest part decides, so exchanges get stuck on plateaus: several starts, some of them random (the same each time).
  std::vector<std::vector<int>> starts = best.constructed;
  std::mt19937 random(1);
  std::vector<int> shuffled(static_cast<size_t>(all));
  std::iota(shuffled.begin(), shuffled.end(), 0);
  for (int i = 0; i < (world <= 16 ? 32 : 4); ++i) {
    std::shuffle(shuffled.begin(), shuffled.end(), random);
    starts.emplace_back(shuffled.begin(), shuffled.begin() + world);
  }
  starts.push_back(best.assignment);
  for (const std::vector<int>& start : starts) {
    Best local{.slots = &slots, .mesh = &mesh, .traffic = &traffic, .assignment = start, .cost = cost_of(slots, mesh, traffic, start),
               .constructed = {}};
    improve(local, all, 5'000);
    best.consider(local.assignment);
  }
  return best.assignment;
}

}  // namespace placement
}  // namespace r1::launch
