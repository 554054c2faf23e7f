// `r1run eval --task gsm8k`: how many questions of a data set a model answers right.
#pragma once

#include "runtime/train/context.h"

namespace r1::train {

/// Asks the questions of --data, --samples times each, and compares the final answers. Collective over the world.
/// Returns the exit code.
[[nodiscard]] ExitCode run_task(const RankContext& ctx);

}  // namespace r1::train
