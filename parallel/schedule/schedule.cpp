#include "parallel/schedule/schedule.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <map>
#include <optional>

#include "runtime/core/error.h"

namespace r1::parallel {
namespace {

struct KindName {
  ActionKind kind;
  std::string_view text;
};
constexpr KindName kKindNames[] = {
    {ActionKind::kForward, "F"},       {ActionKind::kBackward, "B"},
    {ActionKind::kBackwardInput, "I"}, {ActionKind::kBackwardWeight, "W"},
    {ActionKind::kSendForward, "SF"},  {ActionKind::kRecvForward, "RF"},
    {ActionKind::kSendBackward, "SB"}, {ActionKind::kRecvBackward, "RB"},
};

std::string_view name_of(ActionKind kind) {
  for (const auto& k : kKindNames) {
    if (k.kind == kind) return k.text;
  }
  throw InternalError("action kind {}", static_cast<int>(kind));
}

bool is_send(ActionKind k) {
  return k == ActionKind::kSendForward || k == ActionKind::kSendBackward;
}

/// Largest stage and micro-batch taken from text: keeps tables that are indexed by both small.
constexpr int kMaxIndex = 1'000'000;

// ---- Generators: compute actions only

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
        end_(std::size(kKindNames),
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
PaperRun run_on_paper(const Schedule& s, const ScheduleCosts& costs) {
  const bool transfers = has_transfers(s);
  const int last_stage = s.stages() - 1;
  Times done(s);
  PaperRun run{.ranks = std::vector<std::vector<SimulatedAction>>(s.ranks.size()), .stuck = {}};
  struct Message {
    Action send;
    double arrival;
  };
  struct Channel {
    std::vector<Message> sent;
    size_t received = 0;
  };
  std::map<std::pair<int, int>, Channel> channels;  // (from, to)
  std::vector<double> clock(s.ranks.size(), 0.0);
  std::string why;

  // Time at which the inputs are there; nullopt and `why` when not yet.
  const auto ready = [&](const Action& a, int rank) -> std::optional<double> {
    double at = clock[static_cast<size_t>(rank)];
    const auto need = [&](double end, const auto& what) {
      if (end < 0) {
        if (why.empty()) why = what();
        return;
      }
      at = std::max(at, end);
    };
    // What another stage computed: on this rank as it is, from another by a receive (or, in a
    // schedule without transfers, on its own after the transfer's time).
    const auto from_stage = [&](int stage, double end, ActionKind recv, const char* maker) {
      const bool remote = s.pp > 1;
      if (remote && transfers) {
        need(done.at(recv, a.stage, a.microbatch), [&] {
          return Action{a.stage, recv, a.microbatch}.str() + " before it on this rank";
        });
      } else {
        need(end < 0 ? end : end + (remote ? costs.transfer : 0.0),
             [&] { return fmt::format("{}{}{}", stage, maker, a.microbatch); });
      }
    };
    const auto own = [&](ActionKind kind) {
      need(done.at(kind, a.stage, a.microbatch), [&] {
        return Action{a.stage, kind, a.microbatch}.str();
      });
    };
    why.clear();
    switch (a.kind) {
      case ActionKind::kForward:
        if (a.stage > 0) {
          from_stage(a.stage - 1, done.at(ActionKind::kForward, a.stage - 1, a.microbatch),
                     ActionKind::kRecvForward, "F");
        }
        break;
      case ActionKind::kBackward:
      case ActionKind::kBackwardInput:
        own(ActionKind::kForward);
        if (a.stage < last_stage) {
          from_stage(a.stage + 1, done.input_gradient(a.stage + 1, a.microbatch),
                     ActionKind::kRecvBackward, "B or I");
        }
        break;
      case ActionKind::kBackwardWeight:
        own(ActionKind::kBackwardInput);
        break;
      case ActionKind::kSendForward:
        own(ActionKind::kForward);
        break;
      case ActionKind::kSendBackward:
        need(done.input_gradient(a.stage, a.microbatch),
             [&] { return fmt::format("{}B or I{}", a.stage, a.microbatch); });
        break;
      case ActionKind::kRecvForward:
      case ActionKind::kRecvBackward: {
        const bool forward = a.kind == ActionKind::kRecvForward;
        const Action wanted{forward ? a.stage - 1 : a.stage + 1,
                            forward ? ActionKind::kSendForward : ActionKind::kSendBackward,
                            a.microbatch};
        const int peer = peer_of(a, s.pp);
        auto& channel = channels[{peer, rank}];
        if (channel.received == channel.sent.size()) {
          why = fmt::format("{} from rank {}", wanted.str(), peer);
        } else if (const auto& next = channel.sent[channel.received]; next.send != wanted) {
          why = fmt::format("{}, but the next message from rank {} is {}", wanted.str(), peer,
                            next.send.str());
        } else {
          at = std::max(at, next.arrival);
        }
        break;
      }
    }
    if (!why.empty()) return std::nullopt;
    return at;
  };

  for (bool progress = true; progress;) {
    progress = false;
    for (size_t r = 0; r < s.ranks.size(); ++r) {
      const int rank = static_cast<int>(r);
      while (run.ranks[r].size() < s.ranks[r].size()) {
        const Action& a = s.ranks[r][run.ranks[r].size()];
        const auto start = ready(a, rank);
        if (!start) break;
        double takes = 0;
        if (a.kind == ActionKind::kForward) takes = cost(costs.forward, a.stage);
        if (a.kind == ActionKind::kBackward || a.kind == ActionKind::kBackwardInput) {
          takes += cost(costs.backward_input, a.stage);
        }
        if (a.kind == ActionKind::kBackward || a.kind == ActionKind::kBackwardWeight) {
          takes += cost(costs.backward_weight, a.stage);
        }
        // A receive is drawn from the moment it began to wait.
        const double begin = is_transfer(a.kind) ? clock[r] : *start;
        clock[r] = *start + takes;
        done.at(a.kind, a.stage, a.microbatch) = clock[r];
        if (is_send(a.kind))
          channels[{rank, peer_of(a, s.pp)}].sent.push_back({a, clock[r] + costs.transfer});
        if (is_transfer(a.kind) && !is_send(a.kind)) ++channels[{peer_of(a, s.pp), rank}].received;
        run.ranks[r].push_back({a, begin, clock[r]});
        progress = true;
      }
    }
  }
  for (size_t r = 0; r < s.ranks.size(); ++r) {
    const size_t index = run.ranks[r].size();
    if (index == s.ranks[r].size()) continue;
    (void)ready(s.ranks[r][index], static_cast<int>(r));
    run.stuck.push_back({r, index, why});
  }
  return run;
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

// ---- Text

std::string Action::str() const { return fmt::format("{}{}{}", stage, name_of(kind), microbatch); }

Action parse_action(std::string_view text) {
  const char* at = text.data();
  const char* const end = at + text.size();
  const auto index = [&](int& value) {
    const auto [next, error] = std::from_chars(at, end, value);
    at = next;
    return error == std::errc{} && value >= 0 && value <= kMaxIndex;
  };
  Action a;
  bool ok = index(a.stage);
  const char* const word = at;
  while (at != end && *at >= 'A' && *at <= 'Z') ++at;
  const auto kind = std::ranges::find(
      kKindNames, std::string_view(word, static_cast<size_t>(at - word)), &KindName::text);
  ok = ok && kind != std::end(kKindNames) && index(a.microbatch) && at == end;
  if (!ok) {
    throw UsageError(
        "\"{}\" is no action: expected stage, kind and micro-batch, such as 2F0; kinds are F "
        "(forward), B (backward), I and "
        "W (its input and weight halves), SF, RF, SB, RB (send and receive)",
        text.substr(0, 40));
  }
  a.kind = kind->kind;
  return a;
}

std::string print(const Schedule& s) {
  std::string out;
  for (size_t r = 0; r < s.ranks.size(); ++r) {
    out += fmt::format("{}:", r);
    for (const auto& a : s.ranks[r]) {
      out += ' ';
      out += a.str();
    }
    out += "\n";
  }
  return out;
}

Schedule parse_schedule(std::string_view text, int virtual_stages) {
  Schedule s{
      .name = "text", .pp = 0, .virtual_stages = virtual_stages, .microbatches = 0, .ranks = {}};
  int number = 0;
  while (!text.empty()) {
    const auto length = std::min(text.find('\n'), text.size());
    auto line = text.substr(0, length);
    text.remove_prefix(std::min(length + 1, text.size()));
    ++number;
    const auto skip_blanks = [&] {
      line.remove_prefix(std::min(line.find_first_not_of(" \t\r"), line.size()));
    };
    skip_blanks();
    if (line.empty() || line.front() == '#') continue;
    const auto head = fmt::format("{}:", s.pp);
    if (!line.starts_with(head)) {
      throw UsageError("schedule, line {}: expected \"{}\" and the actions of that rank", number,
                       head);
    }
    line.remove_prefix(head.size());
    auto& list = s.ranks.emplace_back();
    ++s.pp;
    for (skip_blanks(); !line.empty(); skip_blanks()) {
      const auto word = line.substr(0, std::min(line.find_first_of(" \t\r"), line.size()));
      try {
        list.push_back(parse_action(word));
      } catch (const UsageError& e) {
        throw UsageError("schedule, line {}: {}", number, e.what());
      }
      s.microbatches = std::max(s.microbatches, list.back().microbatch + 1);
      line.remove_prefix(word.size());
    }
  }
  if (s.pp == 0) throw UsageError("schedule: no line such as \"0: 0F0 0B0\"");
  return s;
}

// ---- The table

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
  const size_t kinds = std::size(kKindNames);
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
