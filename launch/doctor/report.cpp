// Reports: put together, compared between hosts, printed.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "launch/doctor/host.h"

namespace r1::launch {
namespace {

using nlohmann::json;

constexpr double kSkewWarning_s = 1, kSkewFailure_s = 60;

std::string short_name(const std::string& host) { return host.substr(0, host.find('.')); }

std::optional<Verdict> verdict_of(std::string_view word) {
  for (const Verdict v : {Verdict::kOk, Verdict::kUnknown, Verdict::kWarning, Verdict::kFailure})
    if (word_for(v) == word) return v;
  return std::nullopt;
}

void compare_fact(const std::string& name, std::vector<HostReport>* reports) {
  std::map<std::string, int> count;
  for (const auto& r : *reports) {
    const auto it = r.facts.find(name);
    ++count[it == r.facts.end() ? "" : it->second];
  }
  if (count.size() < 2) return;
  const auto usual = std::max_element(count.begin(), count.end(), [](const auto& a, const auto& b) {
                       return a.second < b.second;
                     })->first;
  // A rank that runs another build or library than its peers may hang or compute something else.
  const bool grave = name == "r1run" || name == "r1run-rank" || name == "libr1run_cuda.so" ||
                     name == "model" || name == "NCCL";
  for (auto& r : *reports) {
    const auto it = r.facts.find(name);
    const std::string mine = it == r.facts.end() ? "" : it->second;
    if (mine == usual) continue;
    doctor::add(&r, "same " + name, grave ? Verdict::kFailure : Verdict::kWarning,
                fmt::format("{} here, {} on {} of {} hosts", mine.empty() ? "missing" : mine,
                            usual.empty() ? "missing" : usual, count[usual], reports->size()),
                grave ? "install the same on all hosts"
                      : "make it the same on all hosts, or leave this host out");
  }
}

}  // namespace

std::string_view word_for(Verdict verdict) {
  switch (verdict) {
    case Verdict::kOk:
      return "ok";
    case Verdict::kUnknown:
      return "unknown";
    case Verdict::kWarning:
      return "warning";
    case Verdict::kFailure:
      return "failure";
  }
  return "unknown";
}

int exit_code_for(Verdict verdict) {
  switch (verdict) {
    case Verdict::kOk:
      return 0;
    case Verdict::kWarning:
      return 1;
    case Verdict::kFailure:
      return 2;
    case Verdict::kUnknown:
      return 3;
  }
  return 3;
}

HostReport examine_host(const DoctorOptions& options) {
  HostReport r;
  r.host = host_name();
  const auto part = [&](const char* name, void (*examine)(const DoctorOptions&, HostReport*)) {
    try {
      examine(options, &r);
    } catch (const std::exception& e) {
      doctor::add(&r, name, Verdict::kUnknown, e.what());
    }
  };
  part("GPUs", doctor::examine_gpus);
  part("system", doctor::examine_system);
  part("programs", doctor::examine_programs);
  part("model", doctor::examine_model);
  return r;
}

std::string to_json_text(const HostReport& report) {
  json checks = json::array();
  for (const Check& c : report.checks)
    checks.push_back({{"check", c.name},
                      {"verdict", word_for(c.verdict)},
                      {"found", c.found},
                      {"remedy", c.remedy}});
  const json j{{"host", report.host},
               {"checks", checks},
               {"facts", report.facts},
               {"gpus", report.gpu_lines},
               {"clock_skew_s", report.clock_skew_s}};
  return j.dump(-1, ' ', false, json::error_handler_t::replace);
}

std::optional<HostReport> report_from_json(std::string_view text) {
  const json j = json::parse(text, nullptr, false);
  try {
    HostReport r;
    r.host = j.at("host").get<std::string>();
    for (const json& c : j.at("checks")) {
      const auto verdict = verdict_of(c.at("verdict").get<std::string>());
      if (!verdict) return std::nullopt;
      r.checks.push_back({c.at("check").get<std::string>(), *verdict,
                          c.at("found").get<std::string>(), c.at("remedy").get<std::string>()});
    }
    r.facts = j.at("facts").get<std::map<std::string, std::string>>();
    r.gpu_lines = j.at("gpus").get<std::vector<std::string>>();
    r.clock_skew_s = j.at("clock_skew_s").get<double>();
    return r;
  } catch (const json::exception&) {
    return std::nullopt;
  }
}

void compare_hosts(std::vector<HostReport>* reports, const std::vector<std::string>& expected) {
  if (reports->size() > 1) {
    std::set<std::string> names;
    for (const auto& r : *reports)
      for (const auto& [name, value] : r.facts) names.insert(name);
    for (const auto& name : names) compare_fact(name, reports);
    for (auto& r : *reports) {
      const double skew = std::abs(r.clock_skew_s);
      const Verdict v = skew >= kSkewFailure_s   ? Verdict::kFailure
                        : skew >= kSkewWarning_s ? Verdict::kWarning
                                                 : Verdict::kOk;
      doctor::add(&r, "clock", v,
                  v == Verdict::kOk
                      ? "agrees with the launcher's"
                      : fmt::format("{:+.1f} s against the launcher's", r.clock_skew_s),
                  v == Verdict::kOk ? ""
                                    : "start chrony or ntpd: logs of hosts cannot be compared, and "
                                      "certificates and tickets fail");
    }
  }
  for (const auto& host : expected) {
    const bool there = std::any_of(reports->begin(), reports->end(), [&](const HostReport& r) {
      return r.host == host || short_name(r.host) == short_name(host);
    });
    if (there) continue;
    HostReport lost;
    lost.host = host;
    doctor::add(&lost, "reachable", Verdict::kFailure, "no report came from this host",
                "the launcher's message above says why (name, ssh key, path of r1run, firewall "
                "between the hosts)");
    reports->push_back(std::move(lost));
  }
  std::sort(reports->begin(), reports->end(),
            [](const HostReport& a, const HostReport& b) { return a.host < b.host; });
}

Verdict worst(const std::vector<HostReport>& reports) {
  Verdict v = Verdict::kOk;
  for (const auto& r : reports)
    for (const Check& c : r.checks) v = std::max(v, c.verdict);
  return v;
}

std::string doctor_text(const std::vector<HostReport>& reports) {
  // Rows that all hosts share are said once.
  std::vector<std::pair<Check, std::vector<std::string>>> rows;
  for (const auto& r : reports)
    for (const Check& c : r.checks) {
      const auto it =
          std::find_if(rows.begin(), rows.end(), [&](const auto& row) { return row.first == c; });
      if (it == rows.end())
        rows.push_back({c, {r.host}});
      else
        it->second.push_back(r.host);
    }
  size_t width = 0;
  for (const auto& [c, hosts] : rows) width = std::max(width, c.name.size());
  std::string out;
  std::map<Verdict, int> count;
  for (const auto& [c, hosts] : rows) {
    ++count[c.verdict];
    std::string where;
    if (reports.size() > 1)
      where = hosts.size() == reports.size() ? "  [all hosts]"
              : hosts.size() <= 4            ? fmt::format("  [{}]", fmt::join(hosts, ", "))
                                  : fmt::format("  [{}, … {} hosts]", hosts.front(), hosts.size());
    out += fmt::format("{:<8} {:<{}}  {}{}\n", word_for(c.verdict), c.name, width, c.found, where);
    if (!c.remedy.empty()) out += fmt::format("{:<8} {:<{}}  -> {}\n", "", "", width, c.remedy);
  }
  out += fmt::format("{} host{}: {} ok, {} unknown, {} warning{}, {} failure{}\n", reports.size(),
                     reports.size() == 1 ? "" : "s", count[Verdict::kOk], count[Verdict::kUnknown],
                     count[Verdict::kWarning], count[Verdict::kWarning] == 1 ? "" : "s",
                     count[Verdict::kFailure], count[Verdict::kFailure] == 1 ? "" : "s");
  return out;
}

std::string doctor_json(const std::vector<HostReport>& reports) {
  json hosts = json::array();
  for (const auto& r : reports) hosts.push_back(json::parse(to_json_text(r)));
  return json{{"worst", word_for(worst(reports))}, {"hosts", hosts}}.dump(
             2, ' ', false, json::error_handler_t::replace) +
         "\n";
}

}  // namespace r1::launch
