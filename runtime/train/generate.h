// `r1run generate`: completions of prompts, on any layout.
#pragma once

#include "runtime/train/context.h"

namespace r1::train {

/// Reads the prompts, generates, prints. Collective over the world. Returns the exit code.
[[nodiscard]] ExitCode run_generate(const RankContext& ctx);

}  // namespace r1::train
