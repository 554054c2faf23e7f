// Loss and perplexity of a model on data: `r1run eval`, and the evaluations of a training job.
#pragma once

#include "runtime/train/setup.h"

namespace r1::train {

struct EvalResult {
  double loss = 0;  ///< mean over trained tokens
  int64_t trained_tokens = 0, rows = 0;
  [[nodiscard]] double perplexity() const;
};

/// One pass over `dataset` (every row once), forward only, on the layout of `engine`. Collective over the world.
[[nodiscard]] EvalResult evaluate_dataset(const RankContext& ctx, Engine& engine, const data::Dataset& dataset,
                                          const BatchLayout& rows);

/// `r1run eval --model DIR --data FILE...`: loss and perplexity of each file. Collective. Returns the exit code.
[[nodiscard]] ExitCode run_eval(const RankContext& ctx);

}  // namespace r1::train
