// Schedules as text, and back.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "parallel/schedule/schedule.h"
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

/// Largest stage and micro-batch taken from text: keeps tables that are indexed by both small.
constexpr int kMaxIndex = 1'000'000;

}  // namespace

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

}  // namespace r1::parallel
