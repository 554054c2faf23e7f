// Does a job fit, which recomputation makes it fit, and what else would. Pure; used by `r1run plan` and by the ranks.
#pragma once

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
  /// The rank with most, and its bytes.
  [[nodiscard]] std::pair<MeshCoord, int64_t> largest() const;

 private:
  MeshShape mesh_;
  std::vector<int64_t> bytes_;  // [pp, tp]
};

/// The domain that is over its capacity by most; nullopt when everything fits.
struct Overflow {
  size_t domain = 0;
  int64_t needed_bytes = 0;
};
[[nodiscard]] std::optional<Overflow> overflow(const JobBytes& bytes, const std::vector<MemoryDomain>& domains);

/// The cheapest recomputation policies, one for each pipeline rank, with which the job fits; nullopt when none does. All
/// ranks that call it with the same values get the same answer. Where one domain holds several stages the policy is
/// raised first where it frees most bytes for its cost.
[[nodiscard]] std::optional<std::vector<Recompute>> choose_recompute(const ModelSpec& spec, const JobShape& job,
                                                                     const Schedule& schedule,
                                                                     const std::vector<MemoryDomain>& domains);

/// Capacity per device, the same on all: a GPU or, for CPU ranks, a host. Ranks fill devices in order.
[[nodiscard]] std::vector<MemoryDomain> equal_domains(int world, int ranks_per_device, int64_t capacity_bytes,
                                                      const std::string& device_word);

/// A change that makes a job fit, as a user would type it, and its price.
struct Remedy {
  std::string change;         ///< "--recompute full"
  std::string explanation;    ///< "blocks are computed again in the backward"
  int64_t largest_bytes = 0;  ///< of a rank, with the change
  double slowdown = 0;        ///< step time per token over that without memory limits: 0.21 is 21 % slower
  int ranks = 0;              ///< of the changed job
};

/// The machine a job is planned for.
class Machine {
 public:
  virtual ~Machine() = default;
  [[nodiscard]] virtual DeviceRates rates(const MeshShape& mesh, const NumericFormat& format) const = 0;
  [[nodiscard]] virtual MeshLinks links(const MeshShape& mesh) const = 0;
  /// Memory by device (or CPU host) with the ranks that share it.
  [[nodiscard]] virtual std::vector<MemoryDomain> domains(const MeshShape& mesh) const = 0;
  /// Ranks when every device has one.
  [[nodiscard]] virtual int most_ranks() const = 0;
};

/// Changes after which the job fits, cheapest in step time first; at most `most`. Single changes, then pairs of them when
/// no single one is enough.
[[nodiscard]] std::vector<Remedy> remedies(const ModelConfig& model, const JobShape& job, const Machine& machine, size_t most);

}  // namespace r1::parallel
