// Does a job fit, which recomputation makes it fit, and what else would. Pure; used by `r1run plan` and by the ranks.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "parallel/cost/job_shape.h"
#include "parallel/cost/step_time.h"

namespace r1::parallel {

/// Memory that some ranks share: a GPU, or a host of CPU ranks.
struct MemoryDomain {
  std::string name;            ///< "gpu-node-01 GPU 2"
  int64_t capacity_bytes = 0;  ///< that the plan's tensors may take
  std::vector<int> ranks;      ///< world ranks
};

/// Planned bytes of every rank; of the dp replicas of one (pp, tp) those of the largest.
class JobBytes {
 public:
  JobBytes(const ModelSpec& spec, const JobShape& job, const Schedule& schedule);
  [[nodiscard]] int64_t of(int world_rank) const;
  [[nodiscard]] int64_t of(const MeshCoord& coord) const;
  /// In pinned host memory beside the device.
  [[nodiscard]] int64_t host_of(int world_rank) const;
  /// The rank with most, and its bytes.
  [[nodiscard]] std::pair<MeshCoord, int64_t> largest() const;

 private:
  MeshShape mesh_;
  std::vector<int64_t> bytes_, host_;  // [pp, tp]
};

/// The domain that is over its capacity by most; nullopt when everything fits.
struct Overflow {
  size_t domain = 0;
  int64_t needed_bytes = 0;
};
[[nodiscard]] std::optional<Overflow> overflow(const JobBytes& bytes, const std::vector<MemoryDomain>& domains);

/// The same of what lies in pinned memory of the hosts.
[[nodiscard]] std::optional<Overflow> host_overflow(const JobBytes& bytes, const std::vector<MemoryDomain>& hosts);

/// The cheapest recomputation policies, one for each pipeline rank, with which the job fits; nullopt when none does. All
/// ranks that call it with the same values get the same answer. Where one domain holds several stages the policy is
/// raised first where it frees most bytes for its cost.
[[nodiscard]] std::optional<std::vector<Recompute>> choose_recompute(const ModelSpec& spec, const JobShape& job,
                                                                     const Schedule& schedule,
                                                                     const std::vector<MemoryDomain>& domains);

/// Capacity per device, the same on all: a GPU or, for CPU ranks, a host. Ranks fill devices in order.
[[nodiscard]] std::vector<MemoryDomain> equal_domains(int world, int ranks_per_device, int64_t capacity_bytes,
                                                      const std::string& device_word);

/// One option of a command line: "recompute", "full".
struct OptionValue {
  std::string option, value;
};

/// A change that makes a job fit, as a user would type it, and its price.
struct Remedy {
  std::string change;         ///< "--recompute full"
  std::string explanation;    ///< "blocks are computed again in the backward"
  int64_t largest_bytes = 0;  ///< of a rank, with the change
  double slowdown = 0;        ///< step time per token over that without memory limits: 0.21 is 21 % slower
  int ranks = 0;              ///< of the changed job
  double seconds = 0;         ///< of its step
  std::string policy;         ///< recompute of the changed job: what a search or --recompute auto picks with the change
};

/// The machine a job is planned for.
class Machine {
 public:
  virtual ~Machine() = default;
  [[nodiscard]] virtual DeviceRates rates(const MeshShape& mesh, const NumericFormat& format) const = 0;
  [[nodiscard]] virtual MeshLinks links(const MeshShape& mesh) const = 0;
  /// Memory by device (or CPU host) with the ranks that share it.
  [[nodiscard]] virtual std::vector<MemoryDomain> domains(const MeshShape& mesh) const = 0;
  /// Host memory that may be pinned, by host, with the ranks there; empty: not known, not limited.
  [[nodiscard]] virtual std::vector<MemoryDomain> host_domains(const MeshShape& /*mesh*/) const { return {}; }
  /// Ranks when every device has one.
  [[nodiscard]] virtual int most_ranks() const = 0;
};

/// A job with changed options as it would be run.
struct ChangedJob {
  JobShape job;
  bool fits = false;
  int64_t largest_bytes = 0;  ///< of a rank
  double seconds = 0;         ///< of a step
};
/// What comes of a command line with these options added or replaced; nullopt: it is refused. `changed` is the job with the change and
/// nothing else: what the command line leaves to a search (layout, recompute auto) is chosen anew by whoever knows it.
using TryOptions = std::function<std::optional<ChangedJob>(const JobShape& changed, const std::vector<OptionValue>& options)>;

/// Changes after which the job fits, cheapest in step time first; at most `most`. Single changes; pairs of them when no single one is
/// enough; --offload, alone and with a single change, when no pair is. Each is priced as `try_options` says the changed command runs
/// (without it: the changed job as it is). `layouts`: whether other meshes are tried.
[[nodiscard]] std::vector<Remedy> remedies(const ModelConfig& model, const JobShape& job, const Machine& machine, size_t most,
                                           const TryOptions& try_options = {}, bool layouts = true);

}  // namespace r1::parallel
