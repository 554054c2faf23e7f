#include "runtime/train/commands.h"

#include "runtime/train/trainer.h"
#include "runtime/train/verify.h"

namespace r1::train {

bool needs_ranks(const std::string& command) {
  for (const Subcommand& c : subcommands())
    if (c.name == command) return c.runs_ranks;
  return false;
}

ExitCode run_command(const RankContext& ctx) {
  const std::string& command = ctx.config.command;
  if (command == "train") return run_train(ctx);
  if (command == "verify") return run_verify(ctx);
  throw UsageError("r1run {}: this program has no such command", command);
}

comm::StopCheck stop_check(const JobConfig& config, const SignalFlags& signals) {
  return [&config, &signals](const comm::Communicator& group, const char* operation, std::chrono::nanoseconds waited) {
    if (const int signal = signals.stop.load(); signal != 0)
      throw StoppedError("stopped by signal {}; the last checkpoint is valid: run the same command with --resume auto", signal);
    const double seconds = std::chrono::duration<double>(waited).count();
    if (config.stall_timeout > 0 && seconds > config.stall_timeout)
      throw CommError("{} over {} has waited {:.0f} s (--stall-timeout {:.0f}s): another rank does not come", operation,
                      group.name(), seconds, config.stall_timeout);
  };
}

}  // namespace r1::train
