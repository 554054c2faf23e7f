// Checkpoints of a training job: what each rank writes, the copy it is written from, and the writing behind the training.
//
// A checkpoint goes through phases that every rank enters together: stage (the first rank makes the directory), pieces (each rank's own state), whole (a stage's writer
// makes whole tensors for the Hugging Face files), commit (the first rank). Ranks agree between steps, with one reduction of
// a few numbers that the step needs anyway; while a phase runs, files are the only thing they share.
#pragma once

#include <atomic>
#include <chrono>
#include <exception>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "runtime/checkpoint/commit.h"
#include "runtime/checkpoint/hf_model.h"
#include "runtime/checkpoint/parts.h"
#include "runtime/train/engine.h"

namespace r1::train {

/// What a checkpoint says beside tensors.
struct CheckpointMeta {
  std::string run_id;
  int64_t step = 0, data_position_rows = 0;
  uint64_t seed = 0;
  std::string config_text;
  std::map<std::string, std::string> fingerprints;
  std::map<std::string, int64_t> counters;
};

/// One tensor of a rank's training state, as it lies in memory.
struct StatePart {
  std::string tensor;      ///< global name
  std::string_view kind;   ///< kKindMaster: the most exact weights there are; kKindExpAvg, kKindExpAvgSq
  std::vector<int64_t> global_shape;
  checkpoint::Box held;    ///< the box of the global tensor that `memory` holds, dense
  std::vector<checkpoint::Box> owned;  ///< the parts of it that this rank writes; never empty
  Tensor memory;           ///< on the engine's device
};
/// What this rank writes, kind by kind; over all ranks each element once a kind.
[[nodiscard]] std::vector<StatePart> owned_state(Engine& engine);

/// Host memory that a rank's snapshot takes. Pure.
[[nodiscard]] int64_t snapshot_bytes(const parallel::RankPlan& plan);

/// Bytes of a checkpoint: weights, masters where they are written, two moments; 2 % for headers and side files.
[[nodiscard]] uint64_t checkpoint_bytes(const parallel::ModelConfig& config, const parallel::NumericFormat& format);

struct SaveOptions {
  std::filesystem::path root;
  bool snapshot = false;  ///< keep memory for a copy and write it behind the training; otherwise begin() writes
  checkpoint::Retention retention;
  checkpoint::SyscallHook* hook = nullptr;  ///< for tests
  std::function<void()> tick;               ///< called with each system call of the writer, from any thread: it makes progress
};

struct SaveOutcome {
  bool committed = false;
  int64_t step = 0;
  std::filesystem::path path;  ///< of the checkpoint
  std::string error;           ///< why it failed, on the rank that is to tell; empty on the others
  double copy_seconds = 0;     ///< of the snapshot
  double total_seconds = 0;    ///< from begin() to the commit
};

/// Writes checkpoints of one job. The same calls in the same order on every rank.
class CheckpointSaver {
 public:
  CheckpointSaver(Engine& engine, const checkpoint::HfModelDir& source, SaveOptions options);
  /// Gives up what is under way.
  ~CheckpointSaver();
  CheckpointSaver(const CheckpointSaver&) = delete;
  CheckpointSaver& operator=(const CheckpointSaver&) = delete;

  [[nodiscard]] bool busy() const { return phase_ != Phase::kIdle; }
  /// Step of the checkpoint under way.
  [[nodiscard]] int64_t step() const { return meta_.step; }
  /// Starts a checkpoint of the state as it is now; not while busy(). With a snapshot it returns when the copy is made.
  void begin(const CheckpointMeta& meta);

  struct Vote {
    int64_t running = 0;
    int64_t failed = 0;  ///< the larger, the lower the rank: the lowest one that failed tells why
  };
  /// This rank's; the maxima over all ranks go into advance().
  [[nodiscard]] Vote vote() const;
  /// Goes on to the next phase when all ranks are through with this one. Local. An outcome when the checkpoint is committed, or
  /// has failed and its staging directory is gone.
  [[nodiscard]] std::optional<SaveOutcome> advance(const Vote& all);
  /// Waits for the checkpoint under way. Collective over the world.
  [[nodiscard]] SaveOutcome finish();

 private:
  enum class Phase { kIdle, kStage, kPieces, kWhole, kCommit, kCleanUp };
  /// Fails every system call once the saver is being destroyed, so that writing ends soon.
  class StopHook : public checkpoint::SyscallHook {
   public:
    StopHook(SyscallHook* inner, const std::function<void()>& tick) : inner_(inner), tick_(tick) {}
    int before(checkpoint::Syscall& call) override;
    std::atomic<bool> stop{false};

   private:
    SyscallHook* inner_;
    const std::function<void()>& tick_;
  };

  void start(Phase phase);
  void run_phase();
  void join();
  void stage();
  void write_own_pieces();
  void write_whole();
  void commit();
  [[nodiscard]] std::vector<int> ranks_of_stage() const;
  [[nodiscard]] checkpoint::SourcePiece source_of(size_t part, const checkpoint::Box& box, std::string_view kind, DType dtype);
  [[nodiscard]] const char* host_data(size_t part);
  [[nodiscard]] bool assembles() const;

  Engine& engine_;
  const checkpoint::HfModelDir& source_;
  SaveOptions options_;
  StopHook hook_;
  std::vector<StatePart> parts_;
  std::vector<size_t> offsets_;  ///< of the parts in the snapshot
  Buffer snapshot_;
  std::vector<char> staging_;    ///< one tensor of a device, when there is no snapshot
  CheckpointMeta meta_;
  Phase phase_ = Phase::kIdle;
  std::optional<checkpoint::StagedCheckpoint> staged_;
  std::thread worker_;
  std::atomic<bool> running_{false};
  std::exception_ptr error_;     ///< of the phase; read when it is not running
  std::string failure_;          ///< why this rank failed, kept through kCleanUp
  std::chrono::steady_clock::time_point begun_;
  double copy_seconds_ = 0;
};

}  // namespace r1::train
