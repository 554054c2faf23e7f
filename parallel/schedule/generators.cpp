// The schedules by name: each generator lists computation only.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "parallel/schedule/schedule.h"
#include "runtime/core/error.h"

namespace r1::parallel {
namespace {

using Lists = std::vector<std::vector<Action>>;

Schedule empty_schedule(std::string name, int pp, int v, int m) {
  return {.name = std::move(name),
          .pp = pp,
          .virtual_stages = v,
          .microbatches = m,
          .ranks = Lists(static_cast<size_t>(pp))};
}

Schedule gpipe(int pp, int v, int m) {
  auto s = empty_schedule("gpipe", pp, v, m);
  for (int r = 0; r < pp; ++r) {
    auto& list = s.ranks[static_cast<size_t>(r)];
    for (int i = 0; i < m; ++i) list.push_back({r, ActionKind::kForward, i});
    for (int i = 0; i < m; ++i) list.push_back({r, ActionKind::kBackward, i});
  }
  return s;
}

/// PipeDream-flush (Narayanan et al., 2021, "Memory-Efficient Pipeline-Parallel DNN Training").
Schedule one_f_one_b(int pp, int v, int m) {
  auto s = empty_schedule("1f1b", pp, v, m);
  for (int r = 0; r < pp; ++r) {
    auto& list = s.ranks[static_cast<size_t>(r)];
    const int warmup = std::min(m, pp - 1 - r);
    for (int i = 0; i < warmup; ++i) list.push_back({r, ActionKind::kForward, i});
    for (int i = 0; i < m; ++i) {
      if (warmup + i < m) list.push_back({r, ActionKind::kForward, warmup + i});
      list.push_back({r, ActionKind::kBackward, i});
    }
  }
  return s;
}

/// Narayanan et al., 2021, "Efficient Large-Scale Language Model Training on GPU Clusters",
/// section 2.2: micro-batches go through the chunks of a rank in groups, and a rank's warm-up is as
/// long as the first backward takes to come back. The paper has groups of pp and m a multiple of
/// it. Here the groups are as even as can be and none is below pp: a smaller one would leave a gap
/// (measured on paper: 1F1B is faster then), a larger one costs memory only, so the bubble is the
/// paper's for every m >= pp.
Schedule interleaved(int pp, int v, int m) {
  auto s = empty_schedule("interleaved", pp, v, m);
  struct Unit {
    int chunk, microbatch;
  };
  std::vector<Unit> forward, backward;
  const int groups = std::max(1, m / pp);
  const int largest = (m + groups - 1) / groups;
  for (int g = 0, begin = 0; g < groups; ++g) {
    const int end = begin + m / groups + (g < m % groups ? 1 : 0);
    for (int c = 0; c < v; ++c) {
      for (int i = begin; i < end; ++i) {
        forward.push_back({c, i});
        backward.push_back({v - 1 - c, i});
      }
    }
    begin = end;
  }
  const int total = m * v;
  for (int r = 0; r < pp; ++r) {
    auto& list = s.ranks[static_cast<size_t>(r)];
    const auto add = [&](const Unit& u, ActionKind kind) {
      list.push_back({u.chunk * pp + r, kind, u.microbatch});
    };
    const int warmup = std::min(total, (v - 1) * largest + (v > 1 ? 2 : 1) * (pp - 1 - r));
    for (int k = 0; k < warmup; ++k) add(forward[static_cast<size_t>(k)], ActionKind::kForward);
    for (int k = 0; k < total; ++k) {
      if (warmup + k < total) add(forward[static_cast<size_t>(warmup + k)], ActionKind::kForward);
      add(backward[static_cast<size_t>(k)], ActionKind::kBackward);
    }
  }
  return s;
}

/// Qi et al., 2023, "Zero Bubble Pipeline Parallelism", section 2.3 (ZB-H1): 1F1B with the weight
/// gradient of rank r put off by r micro-batches, so that every rank holds pp of them, as the first
/// rank of 1F1B does.
Schedule zb_h1(int pp, int v, int m) {
  auto s = empty_schedule("zb-h1", pp, v, m);
  for (int r = 0; r < pp; ++r) {
    auto& list = s.ranks[static_cast<size_t>(r)];
    const int warmup = std::min(m, pp - 1 - r);
    int weight = 0;
    for (int i = 0; i < warmup; ++i) list.push_back({r, ActionKind::kForward, i});
    for (int i = 0; i < m; ++i) {
      if (warmup + i < m) list.push_back({r, ActionKind::kForward, warmup + i});
      list.push_back({r, ActionKind::kBackwardInput, i});
      if (i >= r) list.push_back({r, ActionKind::kBackwardWeight, weight++});
    }
    while (weight < m) list.push_back({r, ActionKind::kBackwardWeight, weight++});
  }
  return s;
}

}  // namespace

const std::vector<ScheduleKind>& schedule_kinds() {
  static const std::vector<ScheduleKind> kinds = {
      {"gpipe", false, false, gpipe},
      {"1f1b", false, false, one_f_one_b},
      {"interleaved", true, false, interleaved},
      {"zb-h1", false, true, zb_h1},
  };
  return kinds;
}

Schedule make_schedule(std::string_view name, int pp, int virtual_stages, int microbatches) {
  R1_CHECK(pp > 0 && microbatches > 0, "pp {}, {} micro-batches", pp, microbatches);
  std::vector<std::string_view> names;
  for (const auto& kind : schedule_kinds()) {
    names.push_back(kind.name);
    if (kind.name != name) continue;
    if (virtual_stages < 1 || (virtual_stages > 1 && !kind.virtual_stages_allowed)) {
      throw UsageError("--virtual-stages {}: --schedule {} has {}", virtual_stages, name,
                       kind.virtual_stages_allowed
                           ? "at least one a rank"
                           : "one a rank; --schedule interleaved takes more");
    }
    auto s = with_transfers(kind.generate(pp, virtual_stages, microbatches));
    validate(s);
    return s;
  }
  throw UsageError("--schedule {}: not known; allowed: {}", name, fmt::join(names, ", "));
}

}  // namespace r1::parallel
