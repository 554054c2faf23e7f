#include "parallel/schedule/paper_run.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <optional>
#include <utility>

namespace r1::parallel {
namespace {

/// When what happened, by stage and micro-batch; negative: not yet.
class Times {
 public:
  explicit Times(const Schedule& s)
      : m_(static_cast<size_t>(s.microbatches)),
        end_(kActionKinds, std::vector<double>(static_cast<size_t>(s.stages()) * m_, -1.0)) {}
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

double cost(const std::vector<double>& per_stage, int stage) {
  return per_stage[std::min(static_cast<size_t>(stage), per_stage.size() - 1)];
}

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
    need(done_.at(kind, a.stage, a.microbatch), [&] {
      return Action{a.stage, kind, a.microbatch}.str();
    });
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

}  // namespace

PaperRun run_on_paper(const Schedule& s, const ScheduleCosts& costs) {
  return PaperRunner(s, costs).run();
}

}  // namespace r1::parallel
