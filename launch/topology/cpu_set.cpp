#include "launch/cpu_set.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "runtime/core/error.h"
#include "runtime/core/text.h"

namespace r1::launch {
namespace {

/// A whole number within [0, kMost), or -1.
int index_of(std::string_view text) {
  int value = -1;
  const auto [at, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || at != text.data() + text.size() || value >= CpuSet::kMost) return -1;
  return value;
}

int hex_value(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

}  // namespace

CpuSet CpuSet::range(int first, int last) {
  CpuSet set;
  set.insert(first, last);
  return set;
}

CpuSet CpuSet::from_list(std::string_view text, std::string_view where) {
  CpuSet set;
  for (std::string_view rest = trimmed(text); !rest.empty();) {
    const auto comma = rest.find(',');
    const auto item = trimmed(rest.substr(0, comma));
    rest = comma == std::string_view::npos ? std::string_view{} : rest.substr(comma + 1);
    const auto dash = item.find('-');
    const int first = index_of(item.substr(0, dash));
    const int last = dash == std::string_view::npos ? first : index_of(item.substr(dash + 1));
    if (first < 0 || last < first)
      throw DataError("{}: \"{}\" is not a list of CPUs such as 0-3,8 (numbers below {})", where,
                      text.substr(0, 80), kMost);
    set.insert(first, last);
  }
  return set;
}

CpuSet CpuSet::from_mask(std::string_view text, std::string_view where) {
  const auto refuse = [&] {
    throw DataError("{}: \"{}\" is not a CPU mask such as 0000ffff,ff000000 (at most {} CPUs)",
                    where, text.substr(0, 80), kMost);
  };
  std::string_view rest = trimmed(text);
  if (rest.size() > static_cast<size_t>(kMost)) refuse();
  std::vector<std::string_view> groups;  // highest first
  while (true) {
    const auto comma = rest.find(',');
    auto group = trimmed(rest.substr(0, comma));
    if (group.starts_with("0x") || group.starts_with("0X")) group.remove_prefix(2);
    groups.push_back(group);
    if (comma == std::string_view::npos) break;
    rest = rest.substr(comma + 1);
  }
  CpuSet set;
  int base = 0;
  for (auto group = groups.rbegin(); group != groups.rend(); ++group) {
    // Only a mask written as one number may be longer than 32 bits.
    if (groups.size() > 1 && group->size() > 8) refuse();
    int bit = base;
    for (auto digit = group->rbegin(); digit != group->rend(); ++digit, bit += 4) {
      const int value = hex_value(*digit);
      if (value < 0) refuse();
      for (int i = 0; i < 4; ++i) {
        if (((value >> i) & 1) == 0) continue;
        if (bit + i >= kMost) refuse();
        set.insert(bit + i, bit + i);
      }
    }
    base += 32;
  }
  return set;
}

void CpuSet::insert(int first, int last) {
  if (first < 0 || last < first || last >= kMost)
    throw DataError("CPUs {}-{} are no range of numbers below {}", first, last, kMost);
  // Most callers append.
  if (!ranges_.empty() && first > ranges_.back().second + 1) {
    ranges_.emplace_back(first, last);
    return;
  }
  auto from = std::ranges::lower_bound(ranges_, first - 1, {}, &std::pair<int, int>::second);
  auto to = from;
  while (to != ranges_.end() && to->first <= last + 1) {
    first = std::min(first, to->first);
    last = std::max(last, to->second);
    ++to;
  }
  from = ranges_.erase(from, to);
  ranges_.insert(from, {first, last});
}

void CpuSet::insert(const CpuSet& other) {
  for (const auto& [first, last] : other.ranges_) insert(first, last);
}

int CpuSet::count() const {
  int n = 0;
  for (const auto& [first, last] : ranges_) n += last - first + 1;
  return n;
}

bool CpuSet::contains(int cpu) const {
  const auto at = std::ranges::lower_bound(ranges_, cpu, {}, &std::pair<int, int>::second);
  return at != ranges_.end() && at->first <= cpu;
}

bool CpuSet::contains(const CpuSet& other) const { return intersection(other) == other; }

CpuSet CpuSet::intersection(const CpuSet& other) const {
  CpuSet out;
  auto a = ranges_.begin();
  auto b = other.ranges_.begin();
  while (a != ranges_.end() && b != other.ranges_.end()) {
    const int first = std::max(a->first, b->first), last = std::min(a->second, b->second);
    if (first <= last) out.ranges_.emplace_back(first, last);
    a->second < b->second ? ++a : ++b;
  }
  return out;
}

std::string CpuSet::list() const {
  std::string out;
  for (const auto& [first, last] : ranges_) {
    if (!out.empty()) out += ',';
    out += first == last ? fmt::format("{}", first) : fmt::format("{}-{}", first, last);
  }
  return out;
}

std::vector<int> CpuSet::members() const {
  std::vector<int> out;
  for (const auto& [first, last] : ranges_)
    for (int cpu = first; cpu <= last; ++cpu) out.push_back(cpu);
  return out;
}

}  // namespace r1::launch
