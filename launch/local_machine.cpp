#include "launch/local_machine.h"

#include <hwloc.h>
#include <unistd.h>

#include <cstdio>

#include "launch/process.h"
#include "launch/shim.h"
#include "launch/supervise.h"
#include "parallel/mesh/mesh.h"
#include "runtime/core/error.h"

namespace r1::launch {
namespace {

std::vector<std::string> single_rank(const Request& request) {
  std::vector<std::string> argv{sibling_program("r1run-rank")};
  argv.insert(argv.end(), request.for_ranks.begin(), request.for_ranks.end());
  return argv;
}

Command local_command(const Request& request, const Environment& env) {
  const parallel::MeshShape mesh{
      .pp = request.config.pp, .dp = request.config.dp, .tp = request.config.tp};
  const auto mpirun = find_in_path("mpirun", env.get("PATH"));
  if (!mpirun)
    throw UsageError(
        "{} needs {} ranks but there is no mpirun in $PATH: install Open MPI (Debian: "
        "openmpi-bin), or "
        "run a single rank (--pp 1 --dp 1 --tp 1)",
        mesh.str(), mesh.world());
  const RankProgram program{.path = executable_dir() + "/r1run",
                            .arguments = request.for_ranks,
                            .ranks = mesh.world(),
                            .threads = request.config.threads};
  return local_mpirun(*mpirun, program, local_machine(),
                      keepalive_for(request.config.peer_timeout));
}

int supervise_command(const Request& request, const Command& command, Announce announce) {
  if (announce == Announce::kYes)
    for (const auto& w : command.warnings) std::fprintf(stderr, "r1run: warning: %s\n", w.c_str());
  SuperviseOptions options;
  options.saves_on_request = request.config.command == "train";
  options.forward_stdin = request.config.command == "generate" || isatty(STDIN_FILENO) == 0;
  return supervise(command, options);
}

}  // namespace

LocalMachine local_machine() {
  LocalMachine m;
  m.root = geteuid() == 0;
  hwloc_topology_t topology = nullptr;
  R1_CHECK(hwloc_topology_init(&topology) == 0 && hwloc_topology_load(topology) == 0, "hwloc");
  m.cores = hwloc_get_nbobjs_by_type(topology, HWLOC_OBJ_CORE);
  if (m.cores <= 0)
    m.cores = hwloc_get_nbobjs_by_type(topology, HWLOC_OBJ_PU);  // some virtual machines hide cores
  if (m.cores <= 0) m.cores = 1;
  hwloc_topology_destroy(topology);
  return m;
}

int launch_local(const Request& request, const Environment& env, Announce announce) {
  const bool single = request.world() == 1;
  const Command command =
      single ? Command{.argv = single_rank(request), .environment = {}, .warnings = {}}
             : local_command(request, env);
  if (request.config.dry_run) {
    for (const auto& w : command.warnings) std::fprintf(stderr, "r1run: warning: %s\n", w.c_str());
    std::printf("%s\n", shell_line(command.argv).c_str());
    return 0;
  }
  // One rank needs no MPI launcher; its parent still has the last word when it dies.
  if (single) return run_shim(shim_options(env, Whereabouts{}, request.for_ranks));
  return supervise_command(request, command, announce);
}

}  // namespace r1::launch
