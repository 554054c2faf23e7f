#include "launch/detect.h"

#include <unistd.h>

#include <charconv>

#include "runtime/core/error.h"

namespace r1::launch {

Environment Environment::of_process() {
  std::map<std::string, std::string, std::less<>> variables;
  for (char** e = environ; e != nullptr && *e != nullptr; ++e) {
    const std::string_view entry(*e);
    const size_t eq = entry.find('=');
    if (eq != std::string_view::npos && eq > 0)
      variables.emplace(std::string(entry.substr(0, eq)), std::string(entry.substr(eq + 1)));
  }
  return Environment(std::move(variables));
}

std::optional<std::string> Environment::get(std::string_view name) const {
  const auto it = variables_.find(name);
  if (it == variables_.end() || it->second.empty()) return std::nullopt;
  return it->second;
}

std::optional<long> Environment::number(std::string_view name) const {
  const auto text = get(name);
  if (!text) return std::nullopt;
  long value = 0;
  const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), value);
  if (error != std::errc() || end != text->data() + text->size()) return std::nullopt;
  return value;
}

std::vector<std::string> Environment::names() const {
  std::vector<std::string> out;
  out.reserve(variables_.size());
  for (const auto& [name, value] : variables_) out.push_back(name);
  return out;
}

namespace {

int as_int(const std::optional<long>& value, int otherwise) {
  return value ? static_cast<int>(*value) : otherwise;
}

/// Slurm 22.05 leaves SLURM_STEP_ID unset in the batch script; newer versions set it to the batch
/// step's or the interactive step's reserved number (SLURM_BATCH_SCRIPT, SLURM_INTERACTIVE_STEP in
/// slurm.h).
bool is_reserved_step(const std::string& id) {
  return id == "4294967291" || id == "4294967290" || id == "batch" || id == "interactive" ||
         id == "-5" || id == "-6";
}

/// Each of the following fills `w` and says true where its starter's traces are found.
bool by_open_mpi(const Environment& env, Whereabouts* w) {
  const auto rank = env.number("OMPI_COMM_WORLD_RANK");
  if (!rank) return false;
  w->situation = Situation::kOpenMpiRank;
  w->evidence = "OMPI_COMM_WORLD_RANK";
  w->rank = static_cast<int>(*rank);
  w->world = as_int(env.number("OMPI_COMM_WORLD_SIZE"), 1);
  w->local_rank = as_int(env.number("OMPI_COMM_WORLD_LOCAL_RANK"), 0);
  w->local_size = as_int(env.number("OMPI_COMM_WORLD_LOCAL_SIZE"), 1);
  w->job = env.get("PMIX_NAMESPACE").value_or(env.get("OMPI_MCA_ess_base_jobid").value_or(""));
  return true;
}

bool by_pmix(const Environment& env, Whereabouts* w) {
  if (!env.has("PMIX_RANK") || !env.has("PMIX_NAMESPACE")) return false;
  w->situation = Situation::kPmixRank;
  w->evidence = "PMIX_RANK and PMIX_NAMESPACE";
  w->rank = as_int(env.number("PMIX_RANK"), 0);
  w->job = *env.get("PMIX_NAMESPACE");
  if (!w->job.starts_with("slurm.pmix.")) return true;
  w->world = as_int(env.number("SLURM_STEP_NUM_TASKS"), as_int(env.number("SLURM_NTASKS"), 1));
  w->local_rank = as_int(env.number("SLURM_LOCALID"), 0);
  if (const auto gtids = env.get("SLURM_GTIDS")) {
    w->local_size = 1;
    for (const char c : *gtids) w->local_size += c == ',';
  }
  return true;
}

bool by_srun_alone(const Environment& env, Whereabouts* w) {
  const auto step = env.get("SLURM_STEP_ID") ? env.get("SLURM_STEP_ID") : env.get("SLURM_STEPID");
  if (!step || is_reserved_step(*step) || !env.has("SLURM_PROCID")) return false;
  w->situation = Situation::kSrunWithoutPmix;
  w->evidence = "SLURM_STEP_ID and SLURM_PROCID without PMIX_RANK";
  w->rank = as_int(env.number("SLURM_PROCID"), 0);
  w->world = as_int(env.number("SLURM_STEP_NUM_TASKS"), 1);
  return true;
}

bool by_torchrun(const Environment& env, Whereabouts* w) {
  const bool torch = env.has("RANK") && env.has("WORLD_SIZE") && env.has("MASTER_ADDR");
  if (!env.has("TORCHELASTIC_RUN_ID") && !torch) return false;
  w->situation = Situation::kTorchrun;
  w->evidence = torch ? "RANK, WORLD_SIZE and MASTER_ADDR" : "TORCHELASTIC_RUN_ID";
  w->rank = as_int(env.number("RANK"), 0);
  w->world = as_int(env.number("WORLD_SIZE"), 1);
  w->local_rank = as_int(env.number("LOCAL_RANK"), 0);
  w->local_size = as_int(env.number("LOCAL_WORLD_SIZE"), 1);
  return true;
}

/// Starters that tell a rank and the number of ranks alone.
bool by_rank_and_size(const Environment& env, Whereabouts* w, Situation situation, const char* rank,
                      const char* size) {
  if (!env.has(rank)) return false;
  w->situation = situation;
  w->evidence = rank;
  w->rank = as_int(env.number(rank), 0);
  w->world = as_int(env.number(size), 1);
  return true;
}

/// Hosts to start on, without a rank.
bool by_allocation(const Environment& env, Whereabouts* w) {
  constexpr std::pair<const char*, Situation> kTraces[] = {
      {"SLURM_JOB_ID", Situation::kSlurmAllocation},
      {"PBS_NODEFILE", Situation::kPbsAllocation},
      {"OMPI_MCA_orte_default_hostfile", Situation::kDefaultHostfile}};
  for (const auto& [variable, situation] : kTraces) {
    if (!env.has(variable)) continue;
    w->situation = situation;
    w->evidence = variable;
    return true;
  }
  return false;
}

}  // namespace

Whereabouts detect(const Environment& env,
                   const std::function<bool(const std::string&)>& file_exists) {
  Whereabouts w;
  if (by_open_mpi(env, &w) || by_pmix(env, &w) || by_srun_alone(env, &w) || by_torchrun(env, &w) ||
      by_rank_and_size(env, &w, Situation::kMpichRank, "PMI_RANK", "PMI_SIZE") ||
      by_rank_and_size(env, &w, Situation::kFluxRank, "FLUX_TASK_RANK", "FLUX_JOB_SIZE") ||
      by_allocation(env, &w))
    return w;
  if (file_exists && file_exists("/etc/mpi/hostfile")) {
    w.situation = Situation::kDefaultHostfile;
    w.evidence = "/etc/mpi/hostfile";
  }
  return w;
}

bool is_rank(const Whereabouts& w) {
  return w.situation == Situation::kOpenMpiRank || w.situation == Situation::kPmixRank;
}

void refuse_unusable(const Whereabouts& w) {
  switch (w.situation) {
    case Situation::kSrunWithoutPmix:
      // Debian's Open MPI aborts inside MPI_Init here; without MPI each task would train a copy of
      // its own.
      throw UsageError(
          "started by srun without PMIx ({}): the tasks cannot find each other. Use `srun "
          "--mpi=pmix r1run …` "
          "(`srun --mpi=list` shows what this cluster offers), or start `r1run …` itself inside "
          "the allocation",
          w.evidence);
    case Situation::kTorchrun:
      if (w.world <= 1) return;  // one worker is simply one process
      throw UsageError(
          "started by torchrun ({}, {} workers): r1run's ranks talk MPI, which torchrun does not "
          "set up. Use "
          "`mpirun -np {} r1run …`, or start `r1run --hostfile FILE …` once and let it start the "
          "ranks",
          w.evidence, w.world, w.world);
    case Situation::kMpichRank:
      if (w.world <= 1) return;
      throw UsageError(
          "started by an MPICH-family launcher ({}, {} processes): this r1run is built with Open "
          "MPI and each process "
          "would see a world of one. Use Open MPI's mpirun, or `srun --mpi=pmix`",
          w.evidence, w.world);
    case Situation::kFluxRank:
      if (w.world <= 1) return;
      throw UsageError(
          "started by Flux without PMIx ({}, {} tasks): use `flux run -o pmi=pmix r1run …`",
          w.evidence, w.world);
    case Situation::kOpenMpiRank:
    case Situation::kPmixRank:
    case Situation::kSlurmAllocation:
    case Situation::kPbsAllocation:
    case Situation::kDefaultHostfile:
    case Situation::kPlain:
      return;
  }
}

}  // namespace r1::launch
