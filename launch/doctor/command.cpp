// `r1run doctor`: this host, or one task on every host through one mpirun or srun.
#include <fmt/format.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>

#include "launch/doctor/doctor.h"
#include "launch/gather.h"
#include "launch/process.h"
#include "runtime/core/error.h"

namespace r1::launch {
namespace {

constexpr double kLimit_s = 120, kSettle_s = 2, kSend_s = 20;

DoctorOptions options_for(const JobConfig& config, const Environment& env) {
  return {.root = "", .model = config.model, .bin_dir = executable_dir(), .path = env.get("PATH")};
}

std::vector<std::string> task_words(const JobConfig& config) {
  std::vector<std::string> words{"doctor"};
  if (!config.model.empty()) words.push_back("--model=" + config.model);
  return words;
}

std::string program(const char* name, const Environment& env) {
  const auto path = find_in_path(name, env.get("PATH"));
  if (!path) throw UnavailableError("doctor needs {} in $PATH to reach the other hosts: install Open MPI (Debian: openmpi-bin), or run it on each host alone", name);
  return *path;
}

/// One task a host.
Command command_for(const Request& request, const Destination& destination,
                    const Environment& env) {
  Command c;
  const size_t hosts = destination.cluster.hosts.size();
  if (destination.kind == Destination::Kind::kSrun) {
    c.argv = {program("srun", env),
              "--mpi=none",
              fmt::format("--nodes={}", hosts),
              fmt::format("--ntasks={}", hosts),
              "--ntasks-per-node=1",
              "--kill-on-bad-exit=0"};
  } else {
    Cluster one_each = destination.cluster;
    for (Host& h : one_each.hosts) h.slots = 1;
    const parallel::MeshShape mesh{.pp = static_cast<int>(hosts)};
    const RankProgram nothing{.path = "", .arguments = {}, .ranks = static_cast<int>(hosts)};
    c = cluster_mpirun(program("mpirun", env), nothing, one_each, mesh, keepalive_for(10),
                       geteuid() == 0, exported_variables(env.names()));
    c.argv.pop_back();  // the program's place
    for (const auto& name : GatherServer::variable_names())
      c.argv.insert(c.argv.end(), {"-x", name});
  }
  c.argv.push_back(executable_dir() + "/r1run");
  for (const auto& word : task_words(request.config)) c.argv.push_back(word);
  return c;
}

std::vector<HostReport> gather(const Command& command, size_t hosts) {
  GatherServer server;
  SpawnOptions options;
  options.set_environment = command.environment;
  for (const auto& variable : server.environment()) options.set_environment.push_back(variable);
  options.death_signal = SIGTERM;
  options.own_group = true;
  const pid_t child = spawn(command.argv, options);
  const double start = monotonic_s();
  double ended = 0;
  int status = 0;
  while (server.texts().size() < hosts) {
    server.service(100);
    if (ended == 0 && waitpid(child, &status, WNOHANG) == child) ended = monotonic_s();
    if (ended > 0 && !server.receiving() && monotonic_s() - ended > kSettle_s) break;
    if (monotonic_s() - start > kLimit_s) break;
  }
  for (const double until = monotonic_s() + kSettle_s; ended == 0 && monotonic_s() < until;
       usleep(20'000))
    if (waitpid(child, &status, WNOHANG) == child) ended = monotonic_s();
  if (ended == 0) {
    kill(child, SIGTERM);
    for (const double until = monotonic_s() + kSettle_s; ended == 0 && monotonic_s() < until;
         usleep(20'000))
      if (waitpid(child, &status, WNOHANG) == child) ended = monotonic_s();
    if (ended == 0) kill(child, SIGKILL);
  }
  std::vector<HostReport> out;
  for (const GatheredText& t : server.texts())
    if (auto report = report_from_json(t.text)) {
      report->clock_skew_s = t.skew_s;
      out.push_back(std::move(*report));
    }
  return out;
}

void print(const JobConfig& config, const std::vector<HostReport>& reports) {
  if (config.query) {
    for (const auto& r : reports)
      for (const auto& line : r.gpu_lines)
        std::printf("%s%s\n", reports.size() > 1 ? (r.host + ", ").c_str() : "", line.c_str());
  } else if (config.json != "-") {
    std::printf("%s", doctor_text(reports).c_str());
  }
  if (config.json == "-") {
    std::printf("%s", doctor_json(reports).c_str());
  } else if (!config.json.empty()) {
    std::ofstream out(config.json);
    if (!(out << doctor_json(reports)).flush())
      throw StorageError("--json {}: {}", config.json, std::strerror(errno));
  }
}

}  // namespace

int run_doctor(const Request& request, const Destination& destination, const Environment& env) {
  std::vector<HostReport> reports;
  std::vector<std::string> expected;
  if (destination.kind == Destination::Kind::kThisMachine) {
    reports.push_back(examine_host(options_for(request.config, env)));
  } else {
    const Command command = command_for(request, destination, env);
    for (const auto& w : command.warnings) std::fprintf(stderr, "r1run: warning: %s\n", w.c_str());
    for (const Host& h : destination.cluster.hosts) expected.push_back(h.name);
    reports = gather(command, expected.size());
  }
  compare_hosts(&reports, expected);
  print(request.config, reports);
  return exit_code_for(worst(reports));
}

int run_doctor_task(const JobConfig& config, const Environment& env) {
  std::vector<HostReport> reports{examine_host(options_for(config, env))};
  if (can_gather(env)) {
    if (send_gathered(env, reports.front().host, to_json_text(reports.front()), kSend_s)) return 0;
    std::fprintf(stderr,
                 "r1run doctor: %s cannot reach the launcher: a firewall between the hosts?\n",
                 reports.front().host.c_str());
    return exit_code_for(Verdict::kFailure);
  }
  print(config, reports);  // started by somebody else's mpirun
  return exit_code_for(worst(reports));
}

}  // namespace r1::launch
