// `r1run verify`: loss, logits and every gradient against a reference, on this layout, for all schedules and recompute
// policies in one job unless chosen.
#pragma once

#include "runtime/train/context.h"

namespace r1::train {

/// The reference is a safetensors file: input_ids, labels (-100: not trained; not shifted), attention_mask [R, S] int64,
/// logits [R, S, V] and grad.<parameter name>, fp32 (the form of transformers' own names). Without --reference the rows are
/// made from --seed; --write-reference writes the run's own results in the same form, which is how the front door compares
/// layouts with each other. Prints a table; --json writes the result. Returns kOk when everything is within the
/// tolerances, kBadInput otherwise. Collective.
[[nodiscard]] ExitCode run_verify(const RankContext& ctx);
/// `r1run verify --checkpoint DIR`: all checksums.
[[nodiscard]] ExitCode run_verify_checkpoint(const RankContext& ctx);

}  // namespace r1::train
