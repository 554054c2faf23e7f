// The command that starts the ranks: an argument vector, never a shell's text. Pure.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "launch/hostfile.h"
#include "launch/placement.h"
#include "parallel/mesh/mesh.h"

namespace r1::launch {

/// Facts about this machine and user that the command depends on.
struct LocalMachine {
  int cores = 1;  ///< cores this process may use (not hardware threads)
  bool root = false;
};

/// What to start.
struct RankProgram {
  std::string path;  ///< full path of r1run, which becomes the parent of each rank
  std::vector<std::string> arguments;  ///< the user's, unchanged
  int ranks = 1;
  int threads = 0;  ///< threads a rank asked for; 0: the rank's own choice
};

/// Times that follow from --peer-timeout.
struct Keepalive {
  int time_s = 2, interval_s = 1, probes = 2;
};
/// mpirun notices a cut-off host after time + interval x probes (default 300 + 20 x 9 = 480 s):
/// settings that stay within the time-out. At least 1 + 1 x 1 s.
[[nodiscard]] Keepalive keepalive_for(double peer_timeout_s);

struct Command {
  std::vector<std::string> argv;
  std::vector<std::pair<std::string, std::string>>
      environment;                    ///< for the launcher process itself
  std::vector<std::string> warnings;  ///< for people, before the start
  /// A file that the launcher reads at its start (a rankfile, hosts in rank order): its path stands
  /// for kFileInArguments in argv and in the environment. Empty: none.
  std::string file;
  std::string placement;  ///< where each rank goes, for people: placement_lines; empty: the launcher's order
};
inline constexpr const char* kFileInArguments = "@FILE@";

/// mpirun for all ranks on this machine.
[[nodiscard]] Command local_mpirun(const std::string& mpirun, const RankProgram& program,
                                   const LocalMachine& machine, const Keepalive& keepalive);

/// Names of this process's variables that remote ranks get: libraries' settings and r1run's own,
/// never a name that looks like it holds a secret. Open MPI passes its own (OMPI_MCA_*) without
/// being told.
[[nodiscard]] std::vector<std::string> exported_variables(const std::vector<std::string>& names);

/// mpirun over the hosts of a cluster, ranks in host order (block fill), so that neighbouring ranks
/// share a host. `exported`: names of variables; their values never appear in the arguments. Throws
/// UsageError when the ranks do not fit the slots.
[[nodiscard]] Command cluster_mpirun(const std::string& mpirun, const RankProgram& program,
                                     const Cluster& cluster, const parallel::MeshShape& mesh,
                                     const Keepalive& keepalive, bool root,
                                     const std::vector<std::string>& exported);

/// Puts the ranks of cluster_mpirun's command where a placement says: by a rankfile where cores are
/// known, by the order of hosts where only that differs from the launcher's own; and gives the
/// ranks' parents the table of what to set and where to bind.
void use_placement(Command* command, const Placement& placement, const Cluster& cluster,
                   const Topology& topology);

/// The same for local_mpirun's command: the ranks' parents alone set and bind.
void use_local_placement(Command* command, const Placement& placement, const Cluster& this_machine);

/// Places the ranks of cluster_mpirun's command as a rankfile of the user's says. Throws UsageError naming the file's line where
/// the file does not fit the job, its hosts, or the cores that `topology` knows them to have (mpirun is silent about cores that
/// do not exist); warns where the cores of a host are not known.
void use_rankfile(Command* command, const std::vector<RankfileEntry>& entries, const std::string& source, const Cluster& cluster,
                  const Topology& topology, int ranks);

/// A placement for people, a line a rank, each beginning with "# ".
[[nodiscard]] std::string placement_lines(const Placement& placement, const Cluster& cluster);

/// Hosts of an allocation with the ranks that srun puts on each: `ranks` spread evenly where the
/// allocation's own counts do not hold them or are uneven.
[[nodiscard]] Cluster slurm_ranks(const Cluster& allocation, int ranks);

/// srun inside a Slurm allocation. `exported`: names of the variables that the tasks get beside
/// Slurm's own; their values never appear in the arguments.
[[nodiscard]] Command slurm_srun(const std::string& srun, const RankProgram& program,
                                 const Cluster& allocation, const parallel::MeshShape& mesh,
                                 const std::vector<std::string>& exported);

/// Names of this process's variables that the tasks of srun get: those of exported_variables, what a
/// program needs at all ($PATH, $HOME …) and the settings of Open MPI and PMIx.
[[nodiscard]] std::vector<std::string> srun_variables(const std::vector<std::string>& names);

/// The same for slurm_srun's command: tasks in the order of the placement (--distribution=arbitrary
/// with a list of hosts) where it is not Slurm's own. `whole_nodes`: the allocation has every CPU of
/// its nodes, and --cpu-bind may name them (Slurm refuses that otherwise); else the ranks' parents
/// bind alone.
void use_srun_placement(Command* command, const Placement& placement, const Cluster& cluster,
                        bool whole_nodes);

/// Which host each rank lands on when hosts are filled in order.
[[nodiscard]] std::vector<int> block_fill(const Cluster& cluster, int ranks);

/// What is bad about a mesh on these hosts: tensor-parallel groups that cross hosts. Empty when
/// nothing is.
[[nodiscard]] std::vector<std::string> layout_warnings(const Cluster& cluster,
                                                       const parallel::MeshShape& mesh);

/// The argument vector as a line that a POSIX shell would read back to the same words.
[[nodiscard]] std::string shell_line(const std::vector<std::string>& argv);

}  // namespace r1::launch
