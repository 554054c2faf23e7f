#include "launch/command.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "launch/shim.h"

namespace r1::launch {
namespace {

void add_mca(std::vector<std::string>& argv, const std::string& name, const std::string& value) {
  argv.insert(argv.end(), {"--mca", name, value});
}

}  // namespace

Keepalive keepalive_for(double peer_timeout_s) {
  Keepalive k;
  // Two probes one second apart after the idle time; the idle time takes what is left of the
  // time-out.
  k.probes = peer_timeout_s >= 4 ? 2 : 1;
  k.interval_s = std::max(1, static_cast<int>(peer_timeout_s / 5));
  k.time_s = std::max(1, static_cast<int>(std::floor(peer_timeout_s)) - k.probes * k.interval_s);
  return k;
}

Command local_mpirun(const std::string& mpirun, const RankProgram& program,
                     const LocalMachine& machine, const Keepalive& keepalive) {
  Command c;
  // -q: the launcher's closing paragraphs would bury the one line that names the cause; the exit
  // code stays.
  c.argv = {mpirun, "-q", "-np", std::to_string(program.ranks)};
  if (machine.root) {
    c.argv.emplace_back("--allow-run-as-root");
    c.warnings.emplace_back(
        "running as root: a fault in any rank then has root's rights; a user of its own is safer");
  }
  if (program.ranks > machine.cores) {
    add_mca(c.argv, "rmaps_base_oversubscribe", "1");
    c.warnings.push_back(
        fmt::format("{} ranks share {} core{}: fine for trying things out, slow for training",
                    program.ranks, machine.cores, machine.cores == 1 ? "" : "s"));
  }
  // Open MPI binds each of at most two ranks to one core, and more to a socket: a rank's threads
  // would share that core.
  const int cores_each = machine.cores / std::max(1, program.ranks);
  if (cores_each >= 1 && program.threads <= cores_each) {
    const int pe = program.threads > 0 ? program.threads : cores_each;
    c.argv.insert(c.argv.end(), {"--map-by", fmt::format("slot:PE={}", pe), "--bind-to", "core"});
  } else {
    c.argv.insert(c.argv.end(), {"--bind-to", "none"});
  }
  add_mca(c.argv, "mpi_yield_when_idle", "1");
  add_mca(c.argv, "oob_tcp_keepalive_time", std::to_string(keepalive.time_s));
  add_mca(c.argv, "oob_tcp_keepalive_intvl", std::to_string(keepalive.interval_s));
  add_mca(c.argv, "oob_tcp_keepalive_probes", std::to_string(keepalive.probes));
  c.argv.insert(c.argv.end(), {"-x", fmt::format("{}=1", kSupervisedVariable)});
  c.argv.push_back(program.path);
  c.argv.insert(c.argv.end(), program.arguments.begin(), program.arguments.end());
  return c;
}

std::string shell_line(const std::vector<std::string>& argv) {
  std::string line;
  for (const auto& word : argv) {
    if (!line.empty()) line += ' ';
    const bool plain = !word.empty() && word.find_first_not_of(
                                            "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
                                            "0123456789_-+=./:,@%") == std::string::npos;
    if (plain) {
      line += word;
      continue;
    }
    line += '\'';
    for (const char ch : word) {
      if (ch == '\'') {
        line += "'\\''";
      } else {
        line += ch;
      }
    }
    line += '\'';
  }
  return line;
}

}  // namespace r1::launch
