#include <algorithm>
#include <utility>

#include "parallel/schedule/paper_run.h"
#include "parallel/schedule/validate.h"
#include "runtime/core/error.h"

namespace r1::parallel {
namespace {

/// Micro-batches that a stage holds at once, now and at most.
class Count {
 public:
  explicit Count(size_t stages) : now_(stages), peak_(stages) {}
  void begin(size_t stage) { peak_[stage] = std::max(peak_[stage], ++now_[stage]); }
  void end(size_t stage) { --now_[stage]; }
  [[nodiscard]] const std::vector<int>& peak() const { return peak_; }

 private:
  std::vector<int> now_, peak_;
};

/// What an action begins and ends to hold.
void count(const Action& a, bool transfers, Count* in_flight, Count* stash) {
  const auto stage = static_cast<size_t>(a.stage);
  switch (a.kind) {
    case ActionKind::kRecvForward:
      in_flight->begin(stage);
      break;
    case ActionKind::kForward:
      if (stage == 0 || !transfers) in_flight->begin(stage);
      break;
    case ActionKind::kBackward:
      in_flight->end(stage);
      break;
    case ActionKind::kBackwardInput:
      stash->begin(stage);
      break;
    case ActionKind::kBackwardWeight:
      stash->end(stage);
      in_flight->end(stage);
      break;
    case ActionKind::kSendForward:
    case ActionKind::kSendBackward:
    case ActionKind::kRecvBackward:
      break;
  }
}

}  // namespace

Simulation simulate(const Schedule& s, const ScheduleCosts& costs) {
  check_ranges(s);
  R1_CHECK(
      !costs.forward.empty() && !costs.backward_input.empty() && !costs.backward_weight.empty(),
      "no costs");
  auto run = run_on_paper(s, costs);
  if (!run.stuck.empty()) fail_stuck(s, run.stuck);

  Simulation sim;
  const bool transfers = has_transfers(s);
  const auto stages = static_cast<size_t>(s.stages());
  double busy = 0;
  Count in_flight(stages), stash(stages);
  for (const auto& list : run.ranks) {
    if (!list.empty()) sim.makespan = std::max(sim.makespan, list.back().end);
    // A stage lives on one rank, so the order of that rank's list is the order in time.
    for (const auto& x : list) {
      if (!is_transfer(x.action.kind)) busy += x.end - x.start;
      count(x.action, transfers, &in_flight, &stash);
    }
  }
  if (sim.makespan > 0)
    sim.bubble_fraction = 1.0 - busy / (static_cast<double>(s.pp) * sim.makespan);
  sim.peak_in_flight = in_flight.peak();
  sim.peak_stash = stash.peak();
  sim.ranks = std::move(run.ranks);
  return sim;
}

}  // namespace r1::parallel
