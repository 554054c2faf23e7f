// The commands of a rank.
#pragma once

#include <string>

#include "runtime/train/context.h"

namespace r1::train {

/// True when the command runs on the ranks of a job (otherwise one process does it all).
[[nodiscard]] bool needs_ranks(const std::string& command);
/// Runs ctx.config.command. Collective over the world.
[[nodiscard]] ExitCode run_command(const RankContext& ctx);
/// What waiting for other ranks checks now and then: signals, and --stall-timeout. `config` and `signals` must outlive it.
[[nodiscard]] comm::StopCheck stop_check(const JobConfig& config, const SignalFlags& signals);

}  // namespace r1::train
