// The commit protocol: all files of a checkpoint are written into a staging directory, the manifest
// last; then one rename makes it a checkpoint. A crash at any point leaves the previous checkpoint
// valid and at most one staging directory behind.
//
//   <root>/.step-000041.<run id>/   staging
//   <root>/step-000041/             committed: config.json, model*.safetensors, ...,
//   r1run/manifest.json
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "runtime/checkpoint/manifest.h"

namespace r1::checkpoint {

/// A random name for a run: 16 hex digits.
[[nodiscard]] std::string make_run_id();

class StagedCheckpoint {
 public:
  /// Makes the staging directory (and `root`); one rank calls it, then the others join().
  /// `need_bytes` > 0 checks the free space first. A staging directory of the same run and step is
  /// removed. Throws StorageError.
  [[nodiscard]] static StagedCheckpoint create(const fs::path& root, int64_t step,
                                               const std::string& run_id, uint64_t need_bytes = 0,
                                               SyscallHook* hook = nullptr);
  /// The other ranks, after the first one's create(): waits up to a few seconds for the directory
  /// to show on this host (shared file systems cache). Throws StorageError.
  [[nodiscard]] static StagedCheckpoint join(const fs::path& root, int64_t step,
                                             const std::string& run_id,
                                             SyscallHook* hook = nullptr);
  StagedCheckpoint(StagedCheckpoint&& o) noexcept;
  StagedCheckpoint& operator=(StagedCheckpoint&& o) noexcept;
  /// The creator's destructor removes what was not committed.
  ~StagedCheckpoint();

  [[nodiscard]] const fs::path& stage() const { return stage_; }         ///< HF files go here
  [[nodiscard]] fs::path state_dir() const { return stage_ / "r1run"; }  ///< r1run's own files
  [[nodiscard]] const fs::path& target() const { return target_; }       ///< where it will be
  /// By the creator, when the files of all ranks are on disk: checks that every file of the
  /// manifest is there with its size, writes the manifest, renames. Throws StorageError; then the
  /// staging directory is removed and the previous checkpoints are untouched.
  fs::path commit(const Manifest& manifest);
  /// Removes the staging directory.
  void abort() noexcept;

 private:
  StagedCheckpoint() = default;
  fs::path root_, stage_, target_;
  SyscallHook* hook_ = nullptr;
  bool creator_ = false, open_ = false;
};

/// "step-000041"
[[nodiscard]] std::string step_directory(int64_t step);
struct CheckpointPlace {
  int64_t step = 0;
  fs::path path;
};
/// What looks like a committed checkpoint, by step, newest first; the manifests are not read.
[[nodiscard]] std::vector<CheckpointPlace> list_checkpoints(const fs::path& root);
/// The highest step whose manifest verifies and whose files are all there with their sizes; never
/// by time. Those passed over are warned about with the reason. Nothing when `root` does not exist
/// or holds none.
[[nodiscard]] std::optional<fs::path> latest_checkpoint(const fs::path& root);
/// The same among steps below `below`: for when reading shows that the newest is damaged.
[[nodiscard]] std::optional<CheckpointPlace> newest_checkpoint(const fs::path& root, int64_t below);

struct Retention {
  int keep_last = 0;       ///< newest N; 0 keeps all
  int64_t keep_every = 0;  ///< and every step divisible by this; 0: none
};
/// Removes older checkpoints, by renaming them to .trash-... first; only directories with a
/// manifest that verifies, never the newest valid one. Returns what it removed. Throws
/// StorageError.
std::vector<fs::path> apply_retention(const fs::path& root, const Retention& retention,
                                      SyscallHook* hook = nullptr);
/// Removes staging and trash directories that the run `run_id` left behind. Returns what it
/// removed.
std::vector<fs::path> remove_stale(const fs::path& root, const std::string& run_id,
                                   SyscallHook* hook = nullptr);

}  // namespace r1::checkpoint
