// Where a training job writes.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "runtime/checkpoint/output_lock.h"
#include "runtime/train/context.h"

namespace r1::train {

/// --output, or the first free of r1run-out, r1run-out-2, ... when it is not given. An output that already holds checkpoints is
/// not written into without --resume, one that another job holds not at all: rank 0 gets `lock`. Collective over the world.
/// Throws UsageError, StorageError.
[[nodiscard]] std::filesystem::path choose_output(const RankContext& ctx, const std::string& run_id,
                                                  std::unique_ptr<checkpoint::OutputLock>& lock);

}  // namespace r1::train
