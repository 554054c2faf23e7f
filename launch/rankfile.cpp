// Rankfiles: which cores of which host each rank gets.
#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "launch/hostfile.h"
#include "launch/hostfile_text.h"
#include "launch/topology/text.h"
#include "runtime/core/error.h"

namespace r1::launch {
using namespace hostfile;

namespace {

std::vector<std::pair<int, int>> parse_core_list(std::string_view text, const std::string& where) {
  std::vector<std::pair<int, int>> out;
  for (const std::string_view part : fields_of(text, ',')) {
    const size_t dash = part.find('-');
    const int lo = number_in(part.substr(0, dash), 0, 1 << 20, "a core", where);
    const int hi = dash == std::string_view::npos
                       ? lo
                       : number_in(part.substr(dash + 1), 0, 1 << 20, "a core", where);
    if (hi < lo) throw UsageError("{}: core range \"{}\" runs backwards", where, escaped(part));
    out.emplace_back(lo, hi);
  }
  return out;
}

std::vector<RankfileEntry::Part> parse_slot_list(std::string_view text, const std::string& where) {
  std::vector<RankfileEntry::Part> out;
  for (const std::string_view part : fields_of(text, ';')) {
    RankfileEntry::Part p;
    const size_t colon = part.find(':');
    if (colon != std::string_view::npos)
      p.socket = number_in(part.substr(0, colon), 0, 1 << 16, "a socket", where);
    const std::string_view cores = colon == std::string_view::npos ? part : part.substr(colon + 1);
    if (!(cores == "*" && p.socket >= 0)) p.cores = parse_core_list(cores, where);
    out.push_back(std::move(p));
  }
  return out;
}

RankfileEntry parse_rank_line(const Line& line, const std::string& where) {
  Words words(line.text);
  std::string_view word = words.next();
  if (word != "rank")
    throw UsageError("{}: starts with \"{}\"; expected rank N=HOST slot=CORES", where,
                     escaped(word));
  RankfileEntry e;
  e.line = line.number;
  e.rank = number_in(words.next(), 0, 1 << 24, "the rank", where);
  if (words.next() != "=") throw UsageError("{}: expected \"=\" after rank {}", where, e.rank);
  std::string_view host = words.next();
  if (host.starts_with("+"))
    throw UsageError("{}: relative host \"{}\": Open MPI 4.1.4 fails on it; name the host", where,
                     escaped(host));
  if (const size_t at_sign = host.find('@'); at_sign != std::string_view::npos)
    host.remove_prefix(at_sign + 1);
  check_host_name(host, where);
  e.host = std::string(host);
  word = words.next();
  if ((word != "slot" && word != "slots") || words.next() != "=")
    throw UsageError("{}: expected slot=CORES after host \"{}\"", where, e.host);
  std::string list;
  for (word = words.next(); !word.empty(); word = words.next()) list += word;
  if (list.empty()) throw UsageError("{}: slot= has no cores", where);
  e.parts = parse_slot_list(list, where);
  return e;
}

}  // namespace

std::vector<RankfileEntry> parse_rankfile(std::string_view text, const std::string& source) {
  std::vector<std::string> ignored;
  std::map<int, RankfileEntry> by_rank;
  for (const Line& line : lines_of(text, source, &ignored)) {
    if (trim(line.text).empty()) continue;
    const std::string where = at(source, line.number);
    const RankfileEntry e = parse_rank_line(line, where);
    const auto [it, fresh] = by_rank.try_emplace(e.rank, e);
    if (!fresh)
      throw UsageError("{}: rank {} is placed a second time (first in line {})", where, e.rank,
                       it->second.line);
  }
  if (by_rank.empty())
    throw UsageError("{}: places no rank; expected lines like \"rank 0=node1 slot=0-3\"", source);
  std::vector<RankfileEntry> out;
  for (auto& [rank, e] : by_rank) {
    if (rank != static_cast<int>(out.size()))
      throw UsageError("{}: rank {} has no line, but rank {} has", source, out.size(), rank);
    out.push_back(std::move(e));
  }
  return out;
}

std::vector<RankfileEntry> read_rankfile(const std::string& path) {
  return parse_rankfile(read_text(path, "rankfile"), path);
}

std::string rankfile_text(const std::vector<RankfileEntry>& entries) {
  std::string out;
  for (const RankfileEntry& e : entries) {
    out += fmt::format("rank {}={} slot=", e.rank, e.host);
    for (size_t i = 0; i < e.parts.size(); ++i) {
      const RankfileEntry::Part& p = e.parts[i];
      if (i > 0) out += ';';
      if (p.socket >= 0) out += fmt::format("{}:", p.socket);
      if (p.cores.empty()) out += '*';
      for (size_t c = 0; c < p.cores.size(); ++c) {
        const auto [first, last] = p.cores[c];
        out += fmt::format("{}{}{}", c > 0 ? "," : "", first,
                           last > first ? fmt::format("-{}", last) : "");
      }
    }
    out += '\n';
  }
  return out;
}

Cluster rankfile_cluster(const std::vector<RankfileEntry>& entries, const std::string& source) {
  Cluster out{.hosts = {}, .source = source};
  for (const RankfileEntry& e : entries) {
    auto it = std::ranges::find(out.hosts, e.host, &Host::name);
    if (it == out.hosts.end())
      it = out.hosts.insert(it, {.name = e.host, .slots = 0, .slots_given = true, .line = e.line});
    ++it->slots;
  }
  return out;
}

}  // namespace r1::launch
