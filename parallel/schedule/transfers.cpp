// Sends and receives: which there are, and where they go in a schedule of computations.
#include <algorithm>
#include <map>
#include <optional>
#include <utility>

#include "parallel/schedule/paper_run.h"
#include "parallel/schedule/validate.h"
#include "runtime/core/error.h"

namespace r1::parallel {

bool is_transfer(ActionKind kind) {
  switch (kind) {
    case ActionKind::kForward:
    case ActionKind::kBackward:
    case ActionKind::kBackwardInput:
    case ActionKind::kBackwardWeight:
      return false;
    case ActionKind::kSendForward:
    case ActionKind::kRecvForward:
    case ActionKind::kSendBackward:
    case ActionKind::kRecvBackward:
      return true;
  }
  return false;
}

int peer_of(const Action& a, int pp) {
  R1_CHECK(is_transfer(a.kind), "{} is no transfer", a.str());
  const bool to_next = a.kind == ActionKind::kSendForward || a.kind == ActionKind::kRecvBackward;
  return (to_next ? a.stage + 1 : a.stage - 1 + pp) % pp;
}

bool is_send(ActionKind k) {
  return k == ActionKind::kSendForward || k == ActionKind::kSendBackward;
}

bool has_transfers(const Schedule& s) {
  return std::ranges::any_of(s.ranks, [](const auto& list) {
    return std::ranges::any_of(list, [](const Action& a) { return is_transfer(a.kind); });
  });
}

namespace {

/// Messages between each pair (from, to), in the order in which they are sent, as the receives that
/// match them; and how many of them have been received.
struct Queue {
  std::vector<Action> receives;
  size_t received = 0;
};
using Queues = std::map<std::pair<int, int>, Queue>;

bool makes_gradient(const Action& a) {
  return a.kind == ActionKind::kBackward || a.kind == ActionKind::kBackwardInput;
}

/// One rank's list with a send behind every action that makes what another stage needs.
std::vector<Action> with_sends(const Schedule& in, int r, Queues* queues) {
  std::vector<Action> out;
  for (const Action& a : in.ranks[static_cast<size_t>(r)]) {
    out.push_back(a);
    std::optional<Action> send, recv;
    if (a.kind == ActionKind::kForward && a.stage < in.stages() - 1) {
      send = {a.stage, ActionKind::kSendForward, a.microbatch};
      recv = {a.stage + 1, ActionKind::kRecvForward, a.microbatch};
    } else if (makes_gradient(a) && a.stage > 0) {
      send = {a.stage, ActionKind::kSendBackward, a.microbatch};
      recv = {a.stage - 1, ActionKind::kRecvBackward, a.microbatch};
    }
    if (!send) continue;
    out.push_back(*send);
    (*queues)[{r, peer_of(*send, in.pp)}].receives.push_back(*recv);
  }
  return out;
}

/// What an action needs from another stage.
std::optional<Action> needed_by(const Action& a, int stages) {
  if (a.kind == ActionKind::kForward && a.stage > 0)
    return Action{a.stage, ActionKind::kRecvForward, a.microbatch};
  if (makes_gradient(a) && a.stage < stages - 1)
    return Action{a.stage, ActionKind::kRecvBackward, a.microbatch};
  return std::nullopt;
}

/// One rank's list with receives: at the action that needs one, all messages up to it that have not
/// been received yet. They were sent before it, so waiting for them is no longer than waiting for
/// it.
std::vector<Action> with_receives(const Schedule& s, int r, Queues* queues) {
  std::vector<Action> out;
  for (const Action& a : s.ranks[static_cast<size_t>(r)]) {
    if (const auto recv = needed_by(a, s.stages())) {
      auto& [queue, next] = (*queues)[{peer_of(*recv, s.pp), r}];
      // Nearly always the next one: searching from there keeps long schedules linear.
      const auto first = queue.begin() + static_cast<ptrdiff_t>(next);
      const auto at = std::find(first, queue.end(), *recv);
      if (at == queue.end()) {  // received early, or never made
        R1_CHECK(std::find(queue.begin(), first, *recv) != first,
                 "schedule {}: nobody makes what {} needs", s.name, a.str());
      } else {
        out.insert(out.end(), first, at + 1);
        next = static_cast<size_t>(at - queue.begin()) + 1;
      }
    }
    out.push_back(a);
  }
  return out;
}

}  // namespace

Schedule with_transfers(const Schedule& compute_only) {
  const auto& in = compute_only;
  check_ranges(in);
  R1_CHECK(!has_transfers(in), "schedule {} has transfers already", in.name);
  if (in.pp == 1) return in;
  Schedule out = in;
  Queues queues;
  for (int r = 0; r < in.pp; ++r) out.ranks[static_cast<size_t>(r)] = with_sends(in, r, &queues);
  for (int r = 0; r < in.pp; ++r)
    out.ranks[static_cast<size_t>(r)] = with_receives(out, r, &queues);
  return out;
}

}  // namespace r1::parallel
