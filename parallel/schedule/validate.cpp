#include "parallel/schedule/validate.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdint>
#include <string>

#include "runtime/core/error.h"

namespace r1::parallel {
namespace {

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

}  // namespace

void fail_stuck(const Schedule& s, const std::vector<Stuck>& stuck) {
  std::vector<Spot> marks;
  std::vector<std::string> waits;
  for (const auto& x : stuck) {
    marks.push_back({x.rank, x.index});
    waits.push_back(fmt::format("rank {} waits at {} for {}", x.rank,
                                s.ranks[x.rank][x.index].str(), x.waits_for));
  }
  fail(s, marks, fmt::format("deadlock: {}", fmt::join(waits, "; ")));
}

namespace {

void check_action(const Schedule& s, size_t r, size_t i) {
  const Action& a = s.ranks[r][i];
  const auto bad = [&](const std::string& what) {
    fail(s, {{r, i}}, fmt::format("rank {}: {}: {}", r, a.str(), what));
  };
  if (a.stage < 0 || a.stage >= s.stages())
    bad(fmt::format("stages count from 0 to {}", s.stages() - 1));
  if (a.stage % s.pp != static_cast<int>(r))
    bad(fmt::format("stage {} lives on rank {}", a.stage, a.stage % s.pp));
  if (a.microbatch < 0 || a.microbatch >= s.microbatches)
    bad(fmt::format("micro-batches count from 0 to {}", s.microbatches - 1));
  const bool needs_previous =
      a.kind == ActionKind::kRecvForward || a.kind == ActionKind::kSendBackward;
  const bool needs_next = a.kind == ActionKind::kSendForward || a.kind == ActionKind::kRecvBackward;
  if (s.pp == 1 && is_transfer(a.kind)) bad("there is one rank only");
  if (needs_previous && a.stage == 0) bad("there is no stage before");
  if (needs_next && a.stage == s.stages() - 1) bad("there is no stage behind");
}

}  // namespace

void check_ranges(const Schedule& s) {
  if (s.pp < 1 || s.virtual_stages < 1 || s.microbatches < 0 ||
      s.ranks.size() != static_cast<size_t>(s.pp)) {
    fail(s, {}, fmt::format("{} lists of actions", s.ranks.size()));
  }
  for (size_t r = 0; r < s.ranks.size(); ++r)
    for (size_t i = 0; i < s.ranks[r].size(); ++i) check_action(s, r, i);
}

namespace {

/// The list of one rank, by where each of its actions stands.
class RankCheck {
 public:
  RankCheck(const Schedule& s, size_t r);
  /// One stage and micro-batch: every action once, in an order that dependencies allow.
  void check(int stage, int microbatch, bool transfers);

 private:
  using K = ActionKind;
  static constexpr size_t kNever = SIZE_MAX;
  [[nodiscard]] size_t& spot(int stage, int microbatch, ActionKind kind) {
    const auto chunk = static_cast<size_t>(stage / s_.pp);
    const size_t cell =
        chunk * static_cast<size_t>(s_.microbatches) + static_cast<size_t>(microbatch);
    return where_[cell * kActionKinds + static_cast<size_t>(kind)];
  }
  [[nodiscard]] size_t at(ActionKind kind) { return spot(stage_, microbatch_, kind); }
  [[nodiscard]] std::string text(ActionKind kind) const {
    return Action{stage_, kind, microbatch_}.str();
  }
  void must_have(ActionKind kind) {
    if (at(kind) == kNever)
      fail(s_, {{r_, s_.ranks[r_].size()}}, fmt::format("rank {}: {} is missing", r_, text(kind)));
  }
  void ordered(ActionKind a, ActionKind b) {
    if (at(a) > at(b))
      fail(s_, {{r_, at(a)}, {r_, at(b)}},
           fmt::format("rank {}: {} before {}", r_, text(b), text(a)));
  }
  [[nodiscard]] ActionKind check_computation();
  void check_transfers(ActionKind gradient);

  const Schedule& s_;
  size_t r_;
  std::vector<size_t> where_;  ///< by chunk, micro-batch and kind; kNever: nowhere
  int stage_ = 0, microbatch_ = 0;
};

RankCheck::RankCheck(const Schedule& s, size_t r)
    : s_(s),
      r_(r),
      where_(static_cast<size_t>(s.virtual_stages) * static_cast<size_t>(s.microbatches) *
                 kActionKinds,
             kNever) {
  const auto& list = s.ranks[r];
  for (size_t i = 0; i < list.size(); ++i) {
    size_t& place = spot(list[i].stage, list[i].microbatch, list[i].kind);
    if (place != kNever)
      fail(s, {{r, place}, {r, i}}, fmt::format("rank {}: {} twice", r, list[i].str()));
    place = i;
  }
}

/// Returns the kind that makes the gradient of the stage's input.
ActionKind RankCheck::check_computation() {
  must_have(K::kForward);
  const bool split = at(K::kBackwardInput) != kNever || at(K::kBackwardWeight) != kNever;
  if (split && at(K::kBackward) != kNever) {
    fail(s_, {{r_, at(K::kBackward)}},
         fmt::format("rank {}: both {} and its halves I or W", r_, text(K::kBackward)));
  }
  const auto gradient = split ? K::kBackwardInput : K::kBackward;
  must_have(gradient);
  ordered(K::kForward, gradient);
  if (split) {
    must_have(K::kBackwardWeight);
    ordered(K::kBackwardInput, K::kBackwardWeight);
  }
  return gradient;
}

void RankCheck::check_transfers(ActionKind gradient) {
  if (stage_ > 0) {
    must_have(K::kRecvForward);
    ordered(K::kRecvForward, K::kForward);
    must_have(K::kSendBackward);
    ordered(gradient, K::kSendBackward);
  }
  if (stage_ < s_.stages() - 1) {
    must_have(K::kSendForward);
    ordered(K::kForward, K::kSendForward);
    must_have(K::kRecvBackward);
    ordered(K::kRecvBackward, gradient);
  }
}

void RankCheck::check(int stage, int microbatch, bool transfers) {
  stage_ = stage;
  microbatch_ = microbatch;
  const ActionKind gradient = check_computation();
  if (transfers) check_transfers(gradient);
}

}  // namespace

void validate(const Schedule& s) {
  check_ranges(s);
  const bool transfers = has_transfers(s);
  for (size_t r = 0; r < s.ranks.size(); ++r) {
    RankCheck rank(s, r);
    for (int stage = static_cast<int>(r); stage < s.stages(); stage += s.pp)
      for (int i = 0; i < s.microbatches; ++i) rank.check(stage, i, transfers);
  }
  if (const auto run = run_on_paper(s, {}); !run.stuck.empty()) fail_stuck(s, run.stuck);
}

}  // namespace r1::parallel
