// Before anything else: do all ranks have the same job? An MPMD command line, an INI file that one host has an older copy of, another
// build of the program, or a model directory that is not the same everywhere would otherwise end in a deadlock, or in a model that
// is silently two models.
#pragma once

#include <string>
#include <vector>

#include "runtime/train/context.h"

namespace r1::train {

/// One thing that must be the same on all ranks.
struct JobFact {
  std::string name;    ///< "--steps", "program", "model/config.json"
  std::string value;   ///< "6", a build id, "1204 bytes, 8c1f…", "missing"
  std::string origin;  ///< where it was given; may be empty
  bool operator==(const JobFact& other) const { return name == other.name && value == other.value; }
};

/// Options (but for those that may differ between hosts: --threads, and what only the front door reads), the build of this program,
/// and the small files of --model (large ones by size).
[[nodiscard]] std::vector<JobFact> job_facts(const JobConfig& config);

/// The GNU build id of this program in hex; empty when it was linked without one.
[[nodiscard]] std::string build_id();

/// "--steps: 6 (command line) on rank 0, 4 (job.ini:3) on rank 1", one a line; empty when they are the same.
[[nodiscard]] std::string fact_differences(const std::vector<JobFact>& first, const std::vector<JobFact>& other, int first_rank,
                                           int other_rank);

/// Collective over the world. Throws UsageError on all ranks when one differs from rank 0.
void check_same_job(comm::Communicator& world, const std::vector<JobFact>& facts);

}  // namespace r1::train
