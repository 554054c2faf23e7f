// The hosts of a Slurm allocation, from the variables that Slurm sets.
#include <fmt/format.h>

#include <algorithm>

#include "launch/cluster_builder.h"
#include "launch/hostfile.h"
#include "launch/hostfile_text.h"
#include "launch/topology/text.h"
#include "runtime/core/error.h"

namespace r1::launch {
using namespace hostfile;

namespace {

struct NumberRange {
  uint64_t first = 0, last = 0;
  size_t width = 0;
};

/// "1-3,07" → ranges. Zero padding keeps the width of the first number.
std::vector<NumberRange> parse_ranges(std::string_view body, std::string_view item,
                                      const std::string& source) {
  std::vector<NumberRange> out;
  for (const std::string_view part : fields_of(body, ',')) {
    const size_t dash = part.find('-');
    const std::string_view lo = part.substr(0, dash);
    const std::string_view hi = dash == std::string_view::npos ? lo : part.substr(dash + 1);
    const auto a = whole_number(lo), b = whole_number(hi);
    if (!a || !b || lo.size() > 18 || hi.size() > 18)
      throw UsageError(
          "{}: \"{}\": \"{}\" is no range of numbers; expected N or N-M between the brackets",
          source, escaped(item), escaped(part));
    if (*b < *a)
      throw UsageError("{}: \"{}\": range \"{}\" runs backwards", source, escaped(item),
                       escaped(part));
    out.push_back({static_cast<uint64_t>(*a), static_cast<uint64_t>(*b), lo.size()});
  }
  return out;
}

/// Expands one item ("a[1-2]b[3-4]-ib"): the last bracket runs fastest.
void expand_item(std::string_view item, const std::string& source, std::vector<std::string>* out) {
  std::vector<std::string> names{""};
  size_t i = 0;
  while (i < item.size()) {
    if (item[i] == ']') throw UsageError("{}: \"{}\": \"]\" without \"[\"", source, escaped(item));
    if (item[i] != '[') {
      const size_t end = std::min(item.find_first_of("[]", i), item.size());
      for (auto& n : names) n.append(item.substr(i, end - i));
      i = end;
      continue;
    }
    const size_t close = item.find_first_of("[]", i + 1);
    if (close == std::string_view::npos || item[close] != ']')
      throw UsageError("{}: \"{}\": \"[\" is not closed", source, escaped(item));
    const auto ranges = parse_ranges(item.substr(i + 1, close - i - 1), item, source);
    uint64_t each = 0;
    for (const auto& r : ranges) each += std::min<uint64_t>(r.last - r.first + 1, kMaxHosts + 1);
    if (each * names.size() + out->size() > kMaxHosts)
      throw UsageError("{}: \"{}\" names more than {} hosts", source, escaped(item), kMaxHosts);
    std::vector<std::string> longer;
    longer.reserve(names.size() * each);
    for (const auto& n : names)
      for (const auto& r : ranges)
        for (uint64_t v = r.first; v <= r.last; ++v)
          longer.push_back(fmt::format("{}{:0{}}", n, v, r.width));
    names = std::move(longer);
    i = close + 1;
  }
  for (auto& n : names) {
    check_host_name(n, source);
    out->push_back(std::move(n));
  }
  if (out->size() > kMaxHosts) throw UsageError("{}: names more than {} hosts", source, kMaxHosts);
}

}  // namespace

std::vector<std::string> expand_node_list(std::string_view text, const std::string& source) {
  std::vector<std::string> out;
  size_t from = 0;
  int depth = 0;
  for (size_t i = 0; i <= text.size(); ++i) {
    if (i < text.size() && text[i] == '[') ++depth;
    if (i < text.size() && text[i] == ']') --depth;
    if (i < text.size() &&
        !(depth <= 0 && (text[i] == ',' || is_blank(text[i]) || text[i] == '\n')))
      continue;
    const std::string_view item = text.substr(from, i - from);
    from = i + 1;
    if (!item.empty()) expand_item(item, source, &out);
  }
  return out;
}

std::vector<int> expand_counts(std::string_view text, const std::string& source) {
  std::vector<int> out;
  for (const std::string_view field : fields_of(text, ',')) {
    const std::string_view item = trim(field);
    const size_t open = item.find('(');
    int repeat = 1;
    if (open != std::string_view::npos) {
      if (!item.ends_with(")") || item.substr(open + 1, 1) != "x")
        throw UsageError("{}: \"{}\"; expected N or N(xM)", source, escaped(item));
      repeat = number_in(item.substr(open + 2, item.size() - open - 3), 1,
                         static_cast<int64_t>(kMaxHosts), "the repeat", source);
    }
    const int n = number_in(item.substr(0, open), 1, kMostSlots, "a count", source);
    if (out.size() + static_cast<size_t>(repeat) > kMaxHosts)
      throw UsageError("{}: counts for more than {} hosts", source, kMaxHosts);
    out.insert(out.end(), static_cast<size_t>(repeat), n);
  }
  return out;
}

Cluster slurm_cluster(std::string_view node_list, std::string_view tasks_per_node) {
  const std::string source = "SLURM_JOB_NODELIST";
  const std::vector<std::string> names = expand_node_list(node_list, source);
  std::vector<int> tasks(names.size(), 1);
  if (!tasks_per_node.empty()) tasks = expand_counts(tasks_per_node, "SLURM_TASKS_PER_NODE");
  if (tasks.size() != names.size())
    throw UsageError(
        "SLURM_TASKS_PER_NODE=\"{}\" counts {} nodes but SLURM_JOB_NODELIST=\"{}\" names {}",
        escaped(tasks_per_node), tasks.size(), escaped(node_list), names.size());
  ClusterBuilder builder(source, NodefileKind::kPbs);
  for (size_t i = 0; i < names.size(); ++i) {
    Host h;
    h.name = names[i];
    builder.add(std::move(h), tasks[i], fmt::format("node {}", i + 1));
  }
  return builder.finish();
}

}  // namespace r1::launch
