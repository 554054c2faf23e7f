// The ranks' part of `r1run probe`: one rank a host gathers what each host's parent found out, and times pairs of hosts.
#pragma once

#include "runtime/train/context.h"

namespace r1::train {

/// Gathers the texts that the parents left (R1RUN_PROBE_LOCAL) and, with --measure, times every pair of ranks; rank 0 writes
/// {"hosts": [...], "pairs": [[a, b, GB/s, us], ...]} where R1RUN_PROBE_RESULT says. Collective over the world.
void run_probe(const RankContext& ctx);

}  // namespace r1::train
