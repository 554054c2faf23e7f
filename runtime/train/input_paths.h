// The files and directories that options name: whether they are there, before anything else is done with them.
#pragma once

#include "runtime/core/options.h"

namespace r1::train {

/// Throws UsageError (exit code 64) naming the option and its path when an input of the job is not there on this host: --model, --data,
/// --eval-data, --reference, --checkpoint, --resume DIR. What is in them is for their readers to judge (65).
void check_input_paths(const JobConfig& config);

}  // namespace r1::train
