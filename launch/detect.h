// Where am I? Decides from the environment whether this process was started as one of many ranks,
// stands inside an allocation, or is alone. Pure: looks at the variables given, nothing else.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace r1::launch {

/// A copy of the environment's variables.
class Environment {
 public:
  Environment() = default;
  explicit Environment(std::map<std::string, std::string, std::less<>> variables)
      : variables_(std::move(variables)) {}
  /// The variables of this process.
  [[nodiscard]] static Environment of_process();
  /// Value of a variable that is set and not empty.
  [[nodiscard]] std::optional<std::string> get(std::string_view name) const;
  [[nodiscard]] bool has(std::string_view name) const { return get(name).has_value(); }
  /// Value as a number; nullopt when unset, empty or not a decimal number.
  [[nodiscard]] std::optional<long> number(std::string_view name) const;
  /// Names of all variables.
  [[nodiscard]] std::vector<std::string> names() const;

 private:
  std::map<std::string, std::string, std::less<>> variables_;
};

enum class Situation {
  kOpenMpiRank,      ///< child of Open MPI's mpirun
  kPmixRank,         ///< child of another PMIx launcher (srun --mpi=pmix, prterun)
  kSrunWithoutPmix,  ///< srun task whose MPI cannot start
  kTorchrun,         ///< torchrun worker
  kMpichRank,        ///< child of an MPICH-family launcher
  kFluxRank,         ///< Flux task
  kSlurmAllocation,  ///< batch script or salloc shell
  kPbsAllocation,    ///< PBS or Torque job
  kDefaultHostfile,  ///< an Open MPI default hostfile is set (mpi-operator)
  kPlain,            ///< none of these: one machine or a login node
};

struct Whereabouts {
  Situation situation = Situation::kPlain;
  std::string evidence;     ///< the variables that decided, for messages
  int rank = 0, world = 1;  ///< ranks only
  int local_rank = 0, local_size = 1;
  std::string job;  ///< namespace of the job, ranks only
};

/// Decides, in the order measured to be safe: Open MPI before Slurm, because mpirun inside a batch
/// job gives every rank SLURM_PROCID=0. `file_exists` is asked for mpi-operator's /etc/mpi/hostfile
/// only.
[[nodiscard]] Whereabouts detect(const Environment& env,
                                 const std::function<bool(const std::string&)>& file_exists);

/// True when the process is one rank of a job that MPI can join: it becomes the parent of the rank
/// program.
[[nodiscard]] bool is_rank(const Whereabouts& w);

/// Throws UsageError when the process was started by a launcher that cannot carry MPI ranks here,
/// saying what to use instead.
void refuse_unusable(const Whereabouts& w);

}  // namespace r1::launch
