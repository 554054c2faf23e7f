// Which layout is fastest among those that fit: tries them all on paper. Pure.
#pragma once

#include <string>
#include <vector>

#include "parallel/cost/fit.h"
#include "parallel/cost/job_shape.h"
#include "parallel/cost/step_time.h"

namespace r1::parallel {

/// What may be varied; the rest is as in the job given.
struct SearchSpace {
  bool pp = false, dp = false, tp = false;
  bool recompute = false, micro_batch = false, schedule = false, zero = false;
  [[nodiscard]] bool any() const { return pp || dp || tp || recompute || micro_batch || schedule || zero; }
  [[nodiscard]] bool mesh() const { return pp || dp || tp; }
};

struct Candidate {
  JobShape job;
  bool fits = false;
  int64_t largest_bytes = 0;   ///< of a rank
  int64_t device_bytes = 0;    ///< of the fullest device, all its ranks
  int64_t host_bytes = 0;      ///< pinned on the fullest host, all its ranks (--offload)
  StepTime time;
  std::string reason;          ///< what costs it most: "12 % bubble, 9 % tensor-parallel communication"
};

/// The best of each mesh (pp, dp, tp), fastest first, then those that do not fit, nearest to fitting first.
/// With dp searched the mesh uses as many of machine.most_ranks as it can; otherwise at most that many.
[[nodiscard]] std::vector<Candidate> search(const ModelConfig& model, const JobShape& job, const SearchSpace& space,
                                            const Machine& machine);

/// One job, evaluated as search does it.
[[nodiscard]] Candidate evaluate(const ModelConfig& model, const JobShape& job, const Machine& machine);

/// The parts of a step that are not model mathematics, largest first: "12 % bubble, 9 % recomputation"; "" when small.
[[nodiscard]] std::string losses(const StepTime& time);

}  // namespace r1::parallel
