#include "comm/watch/diagnose.h"

#include <algorithm>
#include <functional>
#include <set>

#include <fmt/format.h>

#include "runtime/core/human.h"

namespace r1::comm {
namespace {

double seconds(int64_t ns) { return static_cast<double>(ns) * 1e-9; }

/// Collectives of the group `name` that the rank has begun; nothing when it is not a member.
std::optional<uint64_t> begun(const RankView& r, uint64_t name) {
  for (const Heartbeat::Group& g : r.beat.groups)
    if (g.name == name) return g.sequence;
  return std::nullopt;
}

/// Whom rank `i` waits for.
std::vector<int> waits_for(std::span<const RankView> ranks, size_t i) {
  const Heartbeat& b = ranks[i].beat;
  std::vector<int> out;
  if (!ranks[i].joined || ranks[i].finished || ranks[i].gone || b.op == Operation::kNone || b.op >= Operation::kForward) return out;
  if (!is_collective(b.op)) {
    if (b.op_peer >= 0 && static_cast<size_t>(b.op_peer) < ranks.size()) out.push_back(b.op_peer);
    return out;
  }
  for (size_t other = 0; other < ranks.size(); ++other)
    if (other != i)
      if (const auto sequence = begun(ranks[other], b.op_group); sequence && *sequence < b.op_sequence)
        out.push_back(static_cast<int>(other));
  return out;
}

std::string doing(const RankView& r) {
  if (r.gone) return "gone";
  if (r.finished) return "finished";
  if (!r.joined) return "not heard of yet";
  std::string text = r.beat.op != Operation::kNone
                         ? fmt::format("in {} for {}", r.beat.op_text, human_duration(seconds(r.beat.op_age_ns)))
                         : fmt::format("in {}{}", r.beat.phase.empty() ? "no phase" : r.beat.phase,
                                       r.beat.phase_age_ns > 0 ? " for " + human_duration(seconds(r.beat.phase_age_ns)) : "");
  return r.beat.step >= 0 ? fmt::format("step {}, {}", r.beat.step, text) : text;
}

double median(std::vector<double> v) {
  if (v.empty()) return 0;
  std::sort(v.begin(), v.end());
  const size_t n = v.size();
  return n % 2 == 1 ? v[n / 2] : 0.5 * (v[n / 2 - 1] + v[n / 2]);
}

}  // namespace

std::string rank_list(std::span<const int> ranks) {
  std::string text;
  for (size_t i = 0; i < ranks.size();) {
    size_t j = i;
    while (j + 1 < ranks.size() && ranks[j + 1] == ranks[j] + 1) ++j;
    text += text.empty() ? "" : ", ";
    text += j == i ? fmt::format("{}", ranks[i]) : fmt::format("{}{}{}", ranks[i], j == i + 1 ? ", " : "-", ranks[j]);
    i = j + 1;
  }
  return text;
}

Diagnosis diagnose(std::span<const RankView> ranks, double stalled_s) {
  std::vector<std::vector<int>> edges;
  for (size_t i = 0; i < ranks.size(); ++i) edges.push_back(waits_for(ranks, i));
  Diagnosis d;
  std::vector<int> waiting;
  std::set<int> waited_for;
  for (size_t i = 0; i < ranks.size(); ++i) {
    if (!edges[i].empty()) waiting.push_back(static_cast<int>(i));
    waited_for.insert(edges[i].begin(), edges[i].end());
  }
  // At the end of the chains: ranks that are waited for and wait for nobody.
  for (const int r : waited_for)
    if (edges[static_cast<size_t>(r)].empty()) d.culprits.push_back(r);
  if (d.culprits.empty() && !waiting.empty()) {
    // Everybody waits: some wait for each other. Whoever can be reached from itself is part of it.
    d.cycle = true;
    for (const int start : waiting) {
      std::set<int> seen;
      std::vector<int> open = edges[static_cast<size_t>(start)];
      while (!open.empty()) {
        const int r = open.back();
        open.pop_back();
        if (seen.insert(r).second) open.insert(open.end(), edges[static_cast<size_t>(r)].begin(), edges[static_cast<size_t>(r)].end());
      }
      if (seen.contains(start)) d.culprits.push_back(start);
    }
    d.deadlock = std::all_of(d.culprits.begin(), d.culprits.end(),
                             [&](int r) { return is_collective(ranks[static_cast<size_t>(r)].beat.op); });
  }
  if (d.culprits.empty())  // nobody waits for another: whoever is not over
    for (size_t i = 0; i < ranks.size(); ++i)
      if (!ranks[i].finished) d.culprits.push_back(static_cast<int>(i));
  if (d.culprits.empty()) return d;
  const RankView& first = ranks[static_cast<size_t>(d.culprits.front())];
  if (first.finished || first.gone)
    d.why = fmt::format("rank{} {} {}", d.culprits.size() == 1 ? "" : "s", rank_list(d.culprits),
                        first.finished ? "finished while others have not" : "vanished");
  else if (d.cycle)
    d.why = fmt::format("no progress for {:.1f} s: ranks {} wait for each other ({})", stalled_s, rank_list(d.culprits), doing(first));
  else
    d.why = fmt::format("no progress for {:.1f} s {}{}", stalled_s, doing(first),
                        d.culprits.size() > 1 ? fmt::format(" (so are ranks {})", rank_list(std::span(d.culprits).subspan(1))) : "");
  std::erase_if(waiting, [&](int r) { return std::find(d.culprits.begin(), d.culprits.end(), r) != d.culprits.end(); });
  if (!waiting.empty()) {
    const RankView& w = ranks[static_cast<size_t>(waiting.front())];
    d.why += fmt::format("; rank{} {} wait{} for it: rank {} is {}", waiting.size() == 1 ? "" : "s", rank_list(waiting),
                         waiting.size() == 1 ? "s" : "", waiting.front(), doing(w));
  }
  return d;
}

std::string stall_table(std::span<const RankView> ranks) {
  std::vector<std::pair<std::string, std::vector<int>>> lines;
  for (size_t i = 0; i < ranks.size(); ++i) {
    std::string text = doing(ranks[i]) + (ranks[i].host.empty() ? "" : " on " + ranks[i].host);
    if (!lines.empty() && lines.back().first == text) lines.back().second.push_back(static_cast<int>(i));
    else lines.push_back({std::move(text), {static_cast<int>(i)}});
  }
  std::string out;
  for (const auto& [text, list] : lines) out += fmt::format("  rank {}: {}\n", rank_list(list), text);
  return out;
}

std::vector<std::string> SlowRanks::update(std::span<const RankView> ranks) {
  // A window is over when every rank has made its steps and the time has passed on every rank.
  for (size_t i = 0; i < ranks.size(); ++i) {
    const Heartbeat& b = ranks[i].beat;
    if (!ranks[i].joined || ranks[i].finished || ranks[i].gone || b.boundary_step < 0) return {};
    State& s = state_[static_cast<int>(i)];
    if (s.step < 0) s = {.step = b.boundary_step, .ns = b.boundary_ns, .waited_ns = b.boundary_waited_ns};
  }
  for (size_t i = 0; i < ranks.size(); ++i) {
    const State& s = state_[static_cast<int>(i)];
    const Heartbeat& b = ranks[i].beat;
    if (b.boundary_step - s.step < limits_.window_steps || seconds(b.boundary_ns - s.ns) < limits_.window_s) return {};
  }
  std::vector<double> work(ranks.size());
  for (size_t i = 0; i < ranks.size(); ++i) {
    State& s = state_[static_cast<int>(i)];
    const Heartbeat& b = ranks[i].beat;
    work[i] = seconds((b.boundary_ns - s.ns) - (b.boundary_waited_ns - s.waited_ns)) / static_cast<double>(b.boundary_step - s.step);
    s.step = b.boundary_step;
    s.ns = b.boundary_ns;
    s.waited_ns = b.boundary_waited_ns;
    if (!warm_) s.first_work = work[i];
  }
  if (!warm_) {
    warm_ = true;
    return {};
  }
  std::vector<double> growth;
  for (size_t i = 0; i < ranks.size(); ++i) growth.push_back(work[i] / std::max(state_[static_cast<int>(i)].first_work, 1e-6));
  std::vector<std::string> lines;
  for (size_t i = 0; i < ranks.size(); ++i) {
    State& s = state_[static_cast<int>(i)];
    std::vector<double> peers, others;
    for (size_t o = 0; o < ranks.size(); ++o) {
      if (o == i) continue;
      others.push_back(growth[o]);
      if (ranks[o].beat.stage == ranks[i].beat.stage) peers.push_back(work[o]);
    }
    const double peer = median(peers), usual = s.first_work * std::max(median(others), 1.0);
    const double expected = peers.empty() ? usual : peer;
    const bool slow = expected > 0 && work[i] > limits_.ratio * expected && work[i] - expected > limits_.least_s;
    if (!slow) {
      s.slow_windows = 0;
      s.told = false;
      continue;
    }
    if (++s.slow_windows < limits_.windows || s.told) continue;
    s.told = true;
    lines.push_back(fmt::format("rank {}{} is slow: {} of its own work a step, {:.1f} times {} ({})", i,
                                ranks[i].host.empty() ? "" : " on " + ranks[i].host, human_duration(work[i]), work[i] / expected,
                                peers.empty() ? "what it took at the beginning" : "the median of the ranks with equal work",
                                human_duration(expected)));
  }
  return lines;
}

}  // namespace r1::comm
