// `r1run train` on a rank: data, model, steps, checkpoints, metrics.
#pragma once

#include "runtime/train/context.h"

namespace r1::train {

/// Runs the job. Collective over ctx.world. Returns the exit code; throws the errors of runtime/core/error.h.
[[nodiscard]] ExitCode run_train(const RankContext& ctx);

}  // namespace r1::train
