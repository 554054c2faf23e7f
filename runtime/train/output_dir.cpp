#include "runtime/train/output_dir.h"

#include <cerrno>
#include <cstring>
#include <fstream>

#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/commit.h"

namespace r1::train {

namespace fs = std::filesystem;

fs::path choose_output(const RankContext& ctx, const std::string& run_id, std::unique_ptr<checkpoint::OutputLock>& lock) {
  JobConfig& cfg = ctx.config;
  std::string chosen, error;
  ExitCode code = ExitCode::kOk;
  if (ctx.first()) {
    try {
      std::error_code failed;
      fs::path out = cfg.output;
      if (cfg.resume.empty()) {
        if (!cfg.is_set("output"))
          for (int i = 2; fs::exists(out, failed); ++i) out = fmt::format("{}-{}", cfg.output, i);
        else if (!checkpoint::list_checkpoints(out).empty())
          throw UsageError("--output {}: holds checkpoints already; continue them with --resume auto, or give another --output",
                           out.string());
      }
      fs::create_directories(out, failed);
      const fs::path probe = out / ".r1run-write-test";
      if (failed || !(std::ofstream(probe) << "x").flush())
        throw StorageError("--output {}: cannot be written: {}", out.string(),
                           failed ? failed.message() : std::string(std::strerror(errno)));
      fs::remove(probe, failed);
      lock = std::make_unique<checkpoint::OutputLock>(out, run_id);
      if (!lock->dead_run_id().empty()) static_cast<void>(checkpoint::remove_stale(out, lock->dead_run_id()));
      chosen = out.string();
    } catch (const Error& e) {
      error = e.what();
      code = e.code();
    }
  }
  // Rank 0 decides; its error is everybody's end, and rank 0 alone tells it.
  const auto failed = reduce(ctx.world, static_cast<int64_t>(code), comm::ReduceOp::kMax);
  if (failed != 0) {
    if (ctx.first()) throw Error(code, error);
    throw CommError("rank 0 ended with code {}", failed);
  }
  return broadcast_text(ctx.world, chosen);
}

}  // namespace r1::train
