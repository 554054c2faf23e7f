// A schedule run on paper: what validate and simulate share.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "parallel/schedule/schedule.h"

namespace r1::parallel {

inline constexpr size_t kActionKinds = static_cast<size_t>(ActionKind::kRecvBackward) + 1;

[[nodiscard]] bool is_send(ActionKind kind);
[[nodiscard]] bool has_transfers(const Schedule& s);

/// Why the next action of a rank cannot run.
struct Stuck {
  size_t rank, index;
  std::string waits_for;
};

struct PaperRun {
  std::vector<std::vector<SimulatedAction>> ranks;
  std::vector<Stuck> stuck;  ///< empty: it ran to the end
};

/// Runs the lists, each in its order: computation takes its cost and waits for its inputs, sends
/// return at once, receives wait for their message. Stage and micro-batch indices must be in range.
[[nodiscard]] PaperRun run_on_paper(const Schedule& s, const ScheduleCosts& costs);

}  // namespace r1::parallel
