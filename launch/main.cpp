// r1run: the front door. Under a launcher it becomes the parent of one rank; otherwise it is the
// launcher.
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <exception>

#include "launch/batch.h"
#include "launch/detect.h"
#include "launch/doctor/doctor.h"
#include "launch/launch_job.h"
#include "launch/plan.h"
#include "launch/process.h"
#include "launch/shim.h"
#include "launch/topology/probe.h"
#include "launch/topology/topo_command.h"
#include "launch/verify_layouts.h"
#include "runtime/core/error.h"
#include "runtime/core/options.h"

namespace {

using namespace r1;
using namespace r1::launch;

bool file_exists(const std::string& path) {
  struct stat st {};
  return stat(path.c_str(), &st) == 0;
}

bool runs_ranks(const std::string& command) {
  for (const Subcommand& s : subcommands())
    if (s.name == command) return s.runs_ranks;
  return false;
}

[[noreturn]] void become_rank_program(const std::vector<std::string>& arguments) {
  std::vector<std::string> argv{sibling_program("r1run-rank")};
  argv.insert(argv.end(), arguments.begin(), arguments.end());
  exec_program(argv);
}

int run(const std::vector<std::string>& arguments) {
  Environment env = Environment::of_process();
  const Whereabouts where = detect(env, file_exists);
  // A doctor's task needs no MPI, and no parent: whoever started it, it looks at its host.
  const bool is_task = is_rank(where) || where.situation == Situation::kSrunWithoutPmix;
  if (is_task && !arguments.empty() && arguments.front() == "doctor") {
    const Invocation doctor = split_command(arguments);
    return run_doctor_task(parse_options(doctor.command, doctor.args), env);
  }
  if (is_rank(where)) {
    if (!arguments.empty() && arguments[0] == "probe")
      return run_probe_parent(env, where, arguments);
    return run_shim(shim_options(env, where, arguments));
  }
  refuse_unusable(where);

  const Invocation inv = split_command(arguments);
  if (inv.version) {
    std::printf("r1run %s\n", R1RUN_VERSION);
    return 0;
  }
  if (inv.help) {
    std::printf("%s", program_help().c_str());
    return 0;
  }
  Request request{.config = parse_options(inv.command, inv.args), .for_ranks = {inv.command}};
  if (request.config.help) {
    std::printf("%s", options_help(inv.command).c_str());
    return 0;
  }
  if (!env.has(kSupervisedVariable))
    for (const std::string& w : request.config.warnings) std::fprintf(stderr, "r1run: warning: %s\n", w.c_str());
  if (inv.command == "plan") return run_plan(request.config);
  for (const std::string& word :
       inv.args)  // the printed command is the one that would start the job
    if (word != "--dry-run") request.for_ranks.push_back(word);
  if (inv.command == "sbatch") return run_sbatch(request.config);
  if (inv.command == "mpijob") return run_mpijob(request.config);
  if (inv.command == "doctor")
    return run_doctor(request, choose_destination(request.config, where, env), env);
  if (inv.command == "topo") return run_topo(request.config);
  if (inv.command == "probe")
    return run_probe(request, choose_destination(request.config, where, env), env);
  if (!runs_ranks(inv.command)) become_rank_program(request.for_ranks);
  // Ranks write into pipes and cannot see for themselves whether a person watches.
  if (isatty(STDOUT_FILENO) != 0) {
    setenv("R1RUN_TERMINAL", "1", 1);
    env = Environment::of_process();
  }
  const Destination destination = choose_destination(request.config, where, env);
  if (inv.command == "verify" && !request.config.layouts.empty())
    return verify_layouts(request, destination);
  return r1::launch::launch(request, destination, env, Announce::kYes);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(std::vector<std::string>(argv + 1, argv + argc));
  } catch (const r1::Error& e) {
    std::fprintf(stderr, "r1run: error: %s\n", e.what());
    return static_cast<int>(e.code());
  } catch (const std::exception& e) {
    std::fprintf(stderr, "r1run: error: %s\nThis is a bug in r1run: please report it.\n", e.what());
    return static_cast<int>(r1::ExitCode::kInternal);
  }
}
