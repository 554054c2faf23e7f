// Whether a job may go on from a checkpoint: it must be the same job, apart from its layout.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "runtime/checkpoint/manifest.h"
#include "runtime/core/options.h"
#include "runtime/data/dataset.h"

namespace r1::train {

/// What must be equal for a job to go on as if it had not stopped, by name: "model", "tokenizer", "data" (content of the files),
/// and options by their own names. Values are texts for people where they can be (a hash otherwise). `total_steps` counts only
/// where the learning rate depends on it.
struct JobIdentity {
  std::string model, tokenizer;
  std::vector<data::SourceStats> sources;
  int64_t seq_len = 0, total_steps = 0;
};
[[nodiscard]] std::map<std::string, std::string> job_fingerprints(const JobConfig& config, const JobIdentity& identity);

/// One thing in which a job differs from a checkpoint.
struct Difference {
  std::string name;
  std::string saved, now;
};
/// Those of `now` that the checkpoint knows and that differ. Pure.
[[nodiscard]] std::vector<Difference> differences(const std::map<std::string, std::string>& saved,
                                                  const std::map<std::string, std::string>& now);

/// Names that --resume-allow takes.
[[nodiscard]] const std::vector<std::string>& resume_names();

/// Throws UsageError naming every difference that is not in `allowed`, and how to allow it. Returns those that are.
std::vector<Difference> check_resume(const std::string& checkpoint, const std::map<std::string, std::string>& saved,
                                     const std::map<std::string, std::string>& now,
                                     const std::vector<std::string>& allowed);

}  // namespace r1::train
