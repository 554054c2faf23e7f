#include "parallel/schedule/schedule.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <optional>

#include "runtime/core/error.h"

namespace r1::parallel {
namespace {

constexpr size_t kActionKinds = static_cast<size_t>(ActionKind::kRecvBackward) + 1;

bool is_send(ActionKind k) {
  return k == ActionKind::kSendForward || k == ActionKind::kSendBackward;
}

// ---- Execution on paper

bool has_transfers(const Schedule& s) {
  return std::ranges::any_of(s.ranks, [](const auto& list) {
    return std::ranges::any_of(list, [](const Action& a) { return is_transfer(a.kind); });
  });
}

/// When what happened, by stage and micro-batch; negative: not yet.
class Times {
 public:
  explicit Times(const Schedule& s)
      : m_(static_cast<size_t>(s.microbatches)),
        end_(kActionKinds,
             std::vector<double>(static_cast<size_t>(s.stages()) * m_, -1.0)) {}
  [[nodiscard]] double& at(ActionKind k, int stage, int microbatch) {
    return end_[static_cast<size_t>(k)]
               [static_cast<size_t>(stage) * m_ + static_cast<size_t>(microbatch)];
  }
  /// End of the action that makes the gradient of a stage's input: B, or I where split.
  [[nodiscard]] double input_gradient(int stage, int microbatch) {
    return std::max(at(ActionKind::kBackward, stage, microbatch),
                    at(ActionKind::kBackwardInput, stage, microbatch));
  }

 private:
  size_t m_;
  std::vector<std::vector<double>> end_;
};

/// Why the next action of a rank cannot run.
struct Stuck {
  size_t rank, index;
  std::string waits_for;
};

struct PaperRun {
  std::vector<std::vector<SimulatedAction>> ranks;
  std::vector<Stuck> stuck;  ///< empty: it ran to the end
};

double cost(const std::vector<double>& per_stage, int stage) {
  return per_stage[std::min(static_cast<size_t>(stage), per_stage.size() - 1)];
}

/// Runs the lists, each in its order: computation takes its cost and waits for its inputs, sends
/// return at once, receives wait for their message. Stage and micro-batch indices must be in range.
class PaperRunner {
 public:
  PaperRunner(const Schedule& s, const ScheduleCosts& costs)
      : s_(s),
        costs_(costs),
        transfers_(has_transfers(s)),
        done_(s),
        clock_(s.ranks.size(), 0.0),
        run_{.ranks = std::vector<std::vector<SimulatedAction>>(s.ranks.size()), .stuck = {}} {}

  PaperRun run() {
    for (bool progress = true; progress;) {
      progress = false;
      for (size_t r = 0; r < s_.ranks.size(); ++r)
        while (step(r)) progress = true;
    }
    for (size_t r = 0; r < s_.ranks.size(); ++r) {
      const size_t index = run_.ranks[r].size();
      if (index == s_.ranks[r].size()) continue;
      (void)ready(s_.ranks[r][index], static_cast<int>(r));
      run_.stuck.push_back({r, index, why_});
    }
    return std::move(run_);
  }

 private:
  struct Message {
    Action send;
    double arrival;
  };
  struct Channel {
    std::vector<Message> sent;
    size_t received = 0;
  };

  /// Runs the next action of a rank; false when there is none or its inputs are not there.
  bool step(size_t r) {
    if (run_.ranks[r].size() == s_.ranks[r].size()) return false;
    const int rank = static_cast<int>(r);
    const Action& a = s_.ranks[r][run_.ranks[r].size()];
    const auto start = ready(a, rank);
    if (!start) return false;
    // A receive is drawn from the moment it began to wait.
    const double begin = is_transfer(a.kind) ? clock_[r] : *start;
    clock_[r] = *start + duration(a);
    done_.at(a.kind, a.stage, a.microbatch) = clock_[r];
    if (is_send(a.kind))
      channels_[{rank, peer_of(a, s_.pp)}].sent.push_back({a, clock_[r] + costs_.transfer});
    else if (is_transfer(a.kind))
      ++channels_[{peer_of(a, s_.pp), rank}].received;
    run_.ranks[r].push_back({a, begin, clock_[r]});
    return true;
  }

  [[nodiscard]] double duration(const Action& a) const {
    double takes = 0;
    if (a.kind == ActionKind::kForward) takes = cost(costs_.forward, a.stage);
    if (a.kind == ActionKind::kBackward || a.kind == ActionKind::kBackwardInput)
      takes += cost(costs_.backward_input, a.stage);
    if (a.kind == ActionKind::kBackward || a.kind == ActionKind::kBackwardWeight)
      takes += cost(costs_.backward_weight, a.stage);
    return takes;
  }

  /// Time at which the inputs are there; nullopt and `why_` when not yet.
  std::optional<double> ready(const Action& a, int rank) {
    at_ = clock_[static_cast<size_t>(rank)];
    why_.clear();
    const int last_stage = s_.stages() - 1;
    switch (a.kind) {
      case ActionKind::kForward:
        if (a.stage > 0)
          need_from(a, a.stage - 1, done_.at(ActionKind::kForward, a.stage - 1, a.microbatch),
                    ActionKind::kRecvForward, "F");
        break;
      case ActionKind::kBackward:
      case ActionKind::kBackwardInput:
        need_own(a, ActionKind::kForward);
        if (a.stage < last_stage)
          need_from(a, a.stage + 1, done_.input_gradient(a.stage + 1, a.microbatch),
                    ActionKind::kRecvBackward, "B or I");
        break;
      case ActionKind::kBackwardWeight:
        need_own(a, ActionKind::kBackwardInput);
        break;
      case ActionKind::kSendForward:
        need_own(a, ActionKind::kForward);
        break;
      case ActionKind::kSendBackward:
        need(done_.input_gradient(a.stage, a.microbatch),
             [&] { return fmt::format("{}B or I{}", a.stage, a.microbatch); });
        break;
      case ActionKind::kRecvForward:
      case ActionKind::kRecvBackward:
        need_message(a, rank);
        break;
    }
    if (!why_.empty()) return std::nullopt;
    return at_;
  }

  /// The action waits for what ended at `end` (negative: not yet; `what` says what).
  template <class What>
  void need(double end, const What& what) {
    if (end < 0) {
      if (why_.empty()) why_ = what();
      return;
    }
    at_ = std::max(at_, end);
  }

  /// An action of the same stage and micro-batch.
  void need_own(const Action& a, ActionKind kind) {
    need(done_.at(kind, a.stage, a.microbatch),
         [&] { return Action{a.stage, kind, a.microbatch}.str(); });
  }

  /// What another stage computed: on this rank as it is, from another by a receive (or, in a
  /// schedule without transfers, on its own after the transfer's time).
  void need_from(const Action& a, int stage, double end, ActionKind recv, const char* maker) {
    const bool remote = s_.pp > 1;
    if (remote && transfers_) {
      need(done_.at(recv, a.stage, a.microbatch), [&] {
        return Action{a.stage, recv, a.microbatch}.str() + " before it on this rank";
      });
    } else {
      need(end < 0 ? end : end + (remote ? costs_.transfer : 0.0),
           [&] { return fmt::format("{}{}{}", stage, maker, a.microbatch); });
    }
  }

  /// The next message from a receive's peer, which must be the one that is received.
  void need_message(const Action& a, int rank) {
    const bool forward = a.kind == ActionKind::kRecvForward;
    const Action wanted{forward ? a.stage - 1 : a.stage + 1,
                        forward ? ActionKind::kSendForward : ActionKind::kSendBackward,
                        a.microbatch};
    const int peer = peer_of(a, s_.pp);
    const Channel& channel = channels_[{peer, rank}];
    if (channel.received == channel.sent.size()) {
      why_ = fmt::format("{} from rank {}", wanted.str(), peer);
    } else if (const Message& next = channel.sent[channel.received]; next.send != wanted) {
      why_ = fmt::format("{}, but the next message from rank {} is {}", wanted.str(), peer,
                         next.send.str());
    } else {
      at_ = std::max(at_, next.arrival);
    }
  }

  const Schedule& s_;
  const ScheduleCosts& costs_;
  bool transfers_;
  Times done_;
  std::vector<double> clock_;                        ///< by rank
  std::map<std::pair<int, int>, Channel> channels_;  ///< (from, to)
  PaperRun run_;
  double at_ = 0;    ///< of the action looked at: when what it needs is there
  std::string why_;  ///< of the same: what it waits for
};

PaperRun run_on_paper(const Schedule& s, const ScheduleCosts& costs) {
  return PaperRunner(s, costs).run();
}

// ---- Errors

struct Spot {
  size_t rank, index;
};

/// The lists as columns, marked spots as >2F0<; long lists are shown around the spots.
std::string grid(const Schedule& s, const std::vector<Spot>& marks) {
  constexpr size_t kBefore = 12, kAfter = 12;
  size_t first = SIZE_MAX, last = 0, longest = 0;
  for (const auto& list : s.ranks) longest = std::max(longest, list.size());
  for (const auto& m : marks) {
    longest = std::max(longest, m.index + 1);  // what is missing is marked behind the end
    first = std::min(first, m.index - std::min(m.index, kBefore));
    last = std::max(last, m.index + kAfter);
  }
  if (marks.empty() || longest <= kBefore + kAfter) {
    first = 0;
    last = longest;
  }
  last = std::min(last, longest);
  std::string out;
  for (size_t r = 0; r < s.ranks.size(); ++r) {
    const auto& list = s.ranks[r];
    out += fmt::format("\n{:>3}:{}", r, first > 0 ? " ..." : "");
    for (size_t i = first; i < last; ++i) {
      const bool marked =
          std::ranges::any_of(marks, [&](const Spot& m) { return m.rank == r && m.index == i; });
      const std::string text = i < list.size() ? list[i].str() : "";
      if (!marked && text.empty()) continue;
      out += fmt::format(" {:>7}", marked ? fmt::format(">{}<", text) : text + " ");
    }
    if (last < list.size()) out += " ...";
  }
  return out;
}

[[noreturn]] void fail(const Schedule& s, const std::vector<Spot>& marks, const std::string& what) {
  throw InternalError("schedule {} (pp {}, virtual stages {}, micro-batches {}): {}{}", s.name,
                      s.pp, s.virtual_stages, s.microbatches, what, grid(s, marks));
}

[[noreturn]] void fail_stuck(const Schedule& s, const std::vector<Stuck>& stuck) {
  std::vector<Spot> marks;
  std::vector<std::string> waits;
  for (const auto& x : stuck) {
    marks.push_back({x.rank, x.index});
    waits.push_back(fmt::format("rank {} waits at {} for {}", x.rank,
                                s.ranks[x.rank][x.index].str(), x.waits_for));
  }
  fail(s, marks, fmt::format("deadlock: {}", fmt::join(waits, "; ")));
}

/// Shape and index ranges: what everything else relies on.
void check_ranges(const Schedule& s) {
  if (s.pp < 1 || s.virtual_stages < 1 || s.microbatches < 0 ||
      s.ranks.size() != static_cast<size_t>(s.pp)) {
    fail(s, {}, fmt::format("{} lists of actions", s.ranks.size()));
  }
  for (size_t r = 0; r < s.ranks.size(); ++r) {
    for (size_t i = 0; i < s.ranks[r].size(); ++i) {
      const auto& a = s.ranks[r][i];
      const auto bad = [&](const std::string& what) {
        fail(s, {{r, i}}, fmt::format("rank {}: {}: {}", r, a.str(), what));
      };
      if (a.stage < 0 || a.stage >= s.stages())
        bad(fmt::format("stages count from 0 to {}", s.stages() - 1));
      if (a.stage % s.pp != static_cast<int>(r))
        bad(fmt::format("stage {} lives on rank {}", a.stage, a.stage % s.pp));
      if (a.microbatch < 0 || a.microbatch >= s.microbatches) {
        bad(fmt::format("micro-batches count from 0 to {}", s.microbatches - 1));
      }
      const bool needs_previous =
          a.kind == ActionKind::kRecvForward || a.kind == ActionKind::kSendBackward;
      const bool needs_next =
          a.kind == ActionKind::kSendForward || a.kind == ActionKind::kRecvBackward;
      if (s.pp == 1 && is_transfer(a.kind)) bad("there is one rank only");
      if (needs_previous && a.stage == 0) bad("there is no stage before");
      if (needs_next && a.stage == s.stages() - 1) bad("there is no stage behind");
    }
  }
}

}  // namespace

// ---- Transfers

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

Schedule with_transfers(const Schedule& compute_only) {
  const auto& in = compute_only;
  check_ranges(in);
  R1_CHECK(!has_transfers(in), "schedule {} has transfers already", in.name);
  if (in.pp == 1) return in;
  const int last_stage = in.stages() - 1;

  // Sends, and from them the order of messages between each pair (from, to), as the receives that
  // match them.
  Schedule out = in;
  std::map<std::pair<int, int>, std::vector<Action>> messages;
  for (int r = 0; r < in.pp; ++r) {
    auto& list = out.ranks[static_cast<size_t>(r)];
    list.clear();
    for (const auto& a : in.ranks[static_cast<size_t>(r)]) {
      list.push_back(a);
      const bool makes_gradient =
          a.kind == ActionKind::kBackward || a.kind == ActionKind::kBackwardInput;
      std::optional<Action> send, recv;
      if (a.kind == ActionKind::kForward && a.stage < last_stage) {
        send = {a.stage, ActionKind::kSendForward, a.microbatch};
        recv = {a.stage + 1, ActionKind::kRecvForward, a.microbatch};
      } else if (makes_gradient && a.stage > 0) {
        send = {a.stage, ActionKind::kSendBackward, a.microbatch};
        recv = {a.stage - 1, ActionKind::kRecvBackward, a.microbatch};
      }
      if (!send) continue;
      list.push_back(*send);
      messages[{r, peer_of(*send, in.pp)}].push_back(*recv);
    }
  }
  // Receives: at the action that needs one, all messages up to it that have not been received yet.
  // They were sent before it, so waiting for them is no longer than waiting for it.
  std::map<std::pair<int, int>, size_t> received;
  for (int r = 0; r < in.pp; ++r) {
    auto& list = out.ranks[static_cast<size_t>(r)];
    std::vector<Action> whole;
    for (const auto& a : list) {
      std::optional<Action> recv;
      if (a.kind == ActionKind::kForward && a.stage > 0)
        recv = {a.stage, ActionKind::kRecvForward, a.microbatch};
      if ((a.kind == ActionKind::kBackward || a.kind == ActionKind::kBackwardInput) &&
          a.stage < last_stage) {
        recv = {a.stage, ActionKind::kRecvBackward, a.microbatch};
      }
      if (recv) {
        const std::pair pair{peer_of(*recv, in.pp), r};
        const auto& queue = messages[pair];
        auto& next = received[pair];
        // Nearly always the next one: searching from there keeps long schedules linear.
        const auto first = queue.begin() + static_cast<ptrdiff_t>(next);
        const auto at = std::find(first, queue.end(), *recv);
        if (at == queue.end()) {  // received early, or never made
          R1_CHECK(std::find(queue.begin(), first, *recv) != first,
                   "schedule {}: nobody makes what {} needs", in.name, a.str());
        } else {
          whole.insert(whole.end(), first, at + 1);
          next = static_cast<size_t>(at - queue.begin()) + 1;
        }
      }
      whole.push_back(a);
    }
    list = std::move(whole);
  }
  return out;
}

// ---- Checks

void validate(const Schedule& s) {
  check_ranges(s);
  const bool transfers = has_transfers(s);
  constexpr size_t kNever = SIZE_MAX;
  const size_t kinds = kActionKinds;
  const auto m = static_cast<size_t>(s.microbatches);
  for (size_t r = 0; r < s.ranks.size(); ++r) {
    const auto& list = s.ranks[r];
    // Where each action of this rank stands, by chunk, micro-batch and kind.
    std::vector<size_t> where(static_cast<size_t>(s.virtual_stages) * m * kinds, kNever);
    const auto spot = [&](int stage, int microbatch, ActionKind kind) -> size_t& {
      return where[(static_cast<size_t>(stage / s.pp) * m + static_cast<size_t>(microbatch)) *
                       kinds +
                   static_cast<size_t>(kind)];
    };
    for (size_t i = 0; i < list.size(); ++i) {
      auto& at = spot(list[i].stage, list[i].microbatch, list[i].kind);
      if (at != kNever)
        fail(s, {{r, at}, {r, i}}, fmt::format("rank {}: {} twice", r, list[i].str()));
      at = i;
    }
    for (int stage = static_cast<int>(r); stage < s.stages(); stage += s.pp) {
      for (int i = 0; i < s.microbatches; ++i) {
        const auto at = [&](ActionKind kind) { return spot(stage, i, kind); };
        const auto text = [&](ActionKind kind) { return Action{stage, kind, i}.str(); };
        const auto must_have = [&](ActionKind kind) {
          if (at(kind) == kNever)
            fail(s, {{r, list.size()}}, fmt::format("rank {}: {} is missing", r, text(kind)));
        };
        const auto ordered = [&](ActionKind a, ActionKind b) {
          if (at(a) > at(b))
            fail(s, {{r, at(a)}, {r, at(b)}},
                 fmt::format("rank {}: {} before {}", r, text(b), text(a)));
        };
        using K = ActionKind;
        must_have(K::kForward);
        const bool split = at(K::kBackwardInput) != kNever || at(K::kBackwardWeight) != kNever;
        if (split && at(K::kBackward) != kNever) {
          fail(s, {{r, at(K::kBackward)}},
               fmt::format("rank {}: both {} and its halves I or W", r, text(K::kBackward)));
        }
        const auto gradient = split ? K::kBackwardInput : K::kBackward;
        must_have(gradient);
        ordered(K::kForward, gradient);
        if (split) {
          must_have(K::kBackwardWeight);
          ordered(K::kBackwardInput, K::kBackwardWeight);
        }
        if (!transfers) continue;
        if (stage > 0) {
          must_have(K::kRecvForward);
          ordered(K::kRecvForward, K::kForward);
          must_have(K::kSendBackward);
          ordered(gradient, K::kSendBackward);
        }
        if (stage < s.stages() - 1) {
          must_have(K::kSendForward);
          ordered(K::kForward, K::kSendForward);
          must_have(K::kRecvBackward);
          ordered(K::kRecvBackward, gradient);
        }
      }
    }
  }
  if (const auto run = run_on_paper(s, {}); !run.stuck.empty()) fail_stuck(s, run.stuck);
}

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
  struct Count {
    std::vector<int> now, peak;
    explicit Count(size_t n) : now(n), peak(n) {}
    void begin(size_t stage) { peak[stage] = std::max(peak[stage], ++now[stage]); }
    void end(size_t stage) { --now[stage]; }
  } in_flight(stages), stash(stages);
  for (const auto& list : run.ranks) {
    if (!list.empty()) sim.makespan = std::max(sim.makespan, list.back().end);
    // A stage lives on one rank, so the order of that rank's list is the order in time.
    for (const auto& x : list) {
      const auto stage = static_cast<size_t>(x.action.stage);
      if (!is_transfer(x.action.kind)) busy += x.end - x.start;
      switch (x.action.kind) {
        case ActionKind::kRecvForward:
          in_flight.begin(stage);
          break;
        case ActionKind::kForward:
          if (stage == 0 || !transfers) in_flight.begin(stage);
          break;
        case ActionKind::kBackward:
          in_flight.end(stage);
          break;
        case ActionKind::kBackwardInput:
          stash.begin(stage);
          break;
        case ActionKind::kBackwardWeight:
          stash.end(stage);
          in_flight.end(stage);
          break;
        case ActionKind::kSendForward:
        case ActionKind::kSendBackward:
        case ActionKind::kRecvBackward:
          break;
      }
    }
  }
  if (sim.makespan > 0)
    sim.bubble_fraction = 1.0 - busy / (static_cast<double>(s.pp) * sim.makespan);
  sim.peak_in_flight = std::move(in_flight.peak);
  sim.peak_stash = std::move(stash.peak);
  sim.ranks = std::move(run.ranks);
  return sim;
}

}  // namespace r1::parallel
