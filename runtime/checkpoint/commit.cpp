#include "runtime/checkpoint/commit.h"

#include <sys/stat.h>

#include <algorithm>
#include <charconv>
#include <limits>
#include <utility>

#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/settle.h"
#include "runtime/core/host.h"
#include "runtime/core/log.h"

namespace r1::checkpoint {
namespace {

constexpr std::string_view kStep = "step-", kStage = ".step-", kTrash = ".trash-step-",
                           kReplaced = ".replaced-step-";

std::optional<int64_t> parse_step(std::string_view digits) {
  int64_t step = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), step);
  if (error != std::errc() || end != digits.data() + digits.size() || step < 0) return std::nullopt;
  if (step_directory(step) != std::string(kStep) + std::string(digits))
    return std::nullopt;  // one spelling only
  return step;
}

bool is_real_directory(const fs::path& path) {
  struct stat st {};
  return ::lstat(path.c_str(), &st) == 0 && S_ISDIR(st.st_mode);
}

// Names in `root`; empty when it cannot be listed.
std::vector<std::string> list_names(const fs::path& root) {
  std::vector<std::string> out;
  std::error_code error;
  for (fs::directory_iterator it(root, error), end; !error && it != end; it.increment(error))
    out.push_back(it->path().filename().string());
  std::sort(out.begin(), out.end());
  return out;
}

// ".replaced-step-000041.<run id>": what commit() moves aside where names cannot be exchanged.
std::optional<int64_t> replaced_step(std::string_view name) {
  if (!name.starts_with(kReplaced)) return std::nullopt;
  name.remove_prefix(kReplaced.size());
  return parse_step(name.substr(0, name.find('.')));
}

// Why the checkpoint is not valid; nothing when it is.
std::optional<std::string> defect_of(const CheckpointPlace& place) {
  try {
    const CheckpointReader reader = CheckpointReader::open(place.path);
    if (reader.manifest().step != place.step)
      return fmt::format("{}: its manifest is of step {}", place.path.string(),
                         reader.manifest().step);
    return std::nullopt;
  } catch (const DataError& e) {
    return e.what();
  }
}

void check_run_id(const std::string& run_id) {
  R1_CHECK(plain_file_name(run_id) && run_id.size() <= 64, "run id {}", shown(run_id));
}

void warn_if_open_to_all(const fs::path& dir) {
  struct stat st {};
  if (::stat(dir.c_str(), &st) == 0 && (st.st_mode & S_IWOTH) != 0 && (st.st_mode & S_ISVTX) == 0)
    log::warn("{}: everybody on this machine may replace files in it; chmod o-w it", dir.string());
}

// For what is only in the way: the checkpoint is committed whether it goes or not.
void remove_if_possible(const fs::path& path, SyscallHook* hook) noexcept {
  try {
    remove_tree(path, hook);
  } catch (const std::exception& e) {
    log::warn("{}: could not be cleaned up: {}", path.string(), e.what());
  }
}

}  // namespace

std::string make_run_id() { return random_token(8); }

std::string step_directory(int64_t step) { return fmt::format("{}{:06}", kStep, step); }

// ---- staging

StagedCheckpoint StagedCheckpoint::create(const fs::path& root, int64_t step,
                                          const std::string& run_id, uint64_t need_bytes,
                                          SyscallHook* hook) {
  check_run_id(run_id);
  R1_CHECK(step >= 0, "step {}", step);
  make_directories(root, hook);
  warn_if_open_to_all(root);
  StagedCheckpoint s;
  s.root_ = root;
  s.stage_ = root / fmt::format(".{}.{}", step_directory(step), run_id);
  s.target_ = root / step_directory(step);
  s.hook_ = hook;
  if (is_real_directory(s.stage_)) remove_tree(s.stage_, hook);  // an earlier attempt that failed
  if (need_bytes > 0) require_free_space(root, need_bytes);
  s.creator_ = s.open_ = true;  // from here on `s` cleans up after a failure
  make_directory(s.stage_, /*may_exist=*/false, hook);
  make_directory(s.state_dir(), /*may_exist=*/false, hook);
  return s;
}

StagedCheckpoint StagedCheckpoint::join(const fs::path& root, int64_t step,
                                        const std::string& run_id, SyscallHook* hook) {
  check_run_id(run_id);
  StagedCheckpoint s;
  s.root_ = root;
  s.stage_ = root / fmt::format(".{}.{}", step_directory(step), run_id);
  s.target_ = root / step_directory(step);
  s.hook_ = hook;
  s.open_ = true;
  if (!settle([&] { return is_real_directory(s.state_dir()); }))
    throw StorageError(
        "{}: the directory that the first rank made does not show here within {} s; is {} on a "
        "file "
        "system that all hosts share?",
        s.stage_.string(), kSettle.count(), root.string());
  return s;
}

StagedCheckpoint::StagedCheckpoint(StagedCheckpoint&& o) noexcept { *this = std::move(o); }
StagedCheckpoint& StagedCheckpoint::operator=(StagedCheckpoint&& o) noexcept {
  std::swap(root_, o.root_);
  std::swap(stage_, o.stage_);
  std::swap(target_, o.target_);
  std::swap(hook_, o.hook_);
  std::swap(creator_, o.creator_);
  std::swap(open_, o.open_);
  return *this;
}
StagedCheckpoint::~StagedCheckpoint() { abort(); }

void StagedCheckpoint::abort() noexcept {
  if (std::exchange(open_, false) && creator_) remove_if_possible(stage_, hook_);
}

fs::path StagedCheckpoint::commit(const Manifest& manifest) {
  R1_CHECK(creator_ && open_, "commit of {} by a rank that did not create it, or twice",
           stage_.string());
  R1_CHECK(root_ / step_directory(manifest.step) == target_, "manifest of step {} for {}",
           manifest.step, target_.string());
  try {
    const std::string text = to_json(manifest);
    for (const FileRecord& f : manifest.files) {
      const fs::path path = stage_ / f.name;
      struct stat st {};
      int found = 0;
      if (!settle([&] {
            found = ::stat(path.c_str(), &st);
            return found == 0 && static_cast<uint64_t>(st.st_size) == f.bytes;
          })) {
        if (found != 0)
          throw StorageError("{}: was written by a rank but is not there", path.string());
        throw StorageError("{}: has {} bytes, its writer wrote {}", path.string(), st.st_size,
                           f.bytes);
      }
    }
    write_text_file(stage_ / kManifestFile, text, hook_);
    fsync_directory(stage_, hook_);
    // From here on the staging directory is a whole checkpoint under another name.
    if (!is_real_directory(target_)) {
      rename_path(stage_, target_, hook_);
    } else if (exchange_paths(stage_, target_, hook_)) {
      fsync_directory(root_, hook_);
      open_ = false;
      remove_if_possible(stage_, hook_);  // the earlier checkpoint of this step
      return target_;
    } else {
      // Between these two renames there is no step directory: latest_checkpoint() knows the other
      // name.
      const fs::path aside = root_ / fmt::format(".replaced-{}{}", target_.filename().string(),
                                                 stage_.extension().string());
      if (is_real_directory(aside)) remove_tree(aside, hook_);
      rename_path(target_, aside, hook_);
      rename_path(stage_, target_, hook_);
      open_ = false;
      fsync_directory(root_, hook_);
      remove_if_possible(aside, hook_);
      return target_;
    }
    open_ = false;
    fsync_directory(root_, hook_);
    return target_;
  } catch (const StorageError&) {
    abort();
    throw;
  }
}

// ---- finding

std::vector<CheckpointPlace> list_checkpoints(const fs::path& root) {
  std::vector<CheckpointPlace> out;
  for (const std::string& name : list_names(root)) {
    if (!name.starts_with(kStep) || !is_real_directory(root / name)) continue;
    if (const auto step = parse_step(std::string_view(name).substr(kStep.size())))
      out.push_back({*step, root / name});
  }
  std::sort(out.begin(), out.end(), [](const auto& a, const auto& b) { return a.step > b.step; });
  return out;
}

std::optional<fs::path> latest_checkpoint(const fs::path& root) {
  const auto place = newest_checkpoint(root, std::numeric_limits<int64_t>::max());
  return place ? std::optional(place->path) : std::nullopt;
}

std::optional<CheckpointPlace> newest_checkpoint(const fs::path& root, int64_t below) {
  std::vector<CheckpointPlace> candidates = list_checkpoints(root);
  for (const std::string& name : list_names(root))
    if (const auto step = replaced_step(name); step && is_real_directory(root / name))
      candidates.push_back({*step, root / name});
  // At one step, the directory under its own name first.
  std::stable_sort(candidates.begin(), candidates.end(),
                   [](const auto& a, const auto& b) { return a.step > b.step; });
  for (const CheckpointPlace& c : candidates) {
    if (c.step >= below) continue;
    const auto defect = defect_of(c);
    if (!defect) return c;
    log::warn("passing over a checkpoint that is not valid: {}", *defect);
  }
  return std::nullopt;
}

// ---- removing

std::vector<fs::path> apply_retention(const fs::path& root, const Retention& retention,
                                      SyscallHook* hook) {
  std::vector<fs::path> removed;
  if (retention.keep_last <= 0) return removed;
  int kept = 0;
  for (const CheckpointPlace& c : list_checkpoints(root)) {
    if (defect_of(c)) continue;  // not ours to judge
    if (kept < retention.keep_last) {
      ++kept;
      continue;
    }
    if (retention.keep_every > 0 && c.step % retention.keep_every == 0) continue;
    const std::string run_id = CheckpointReader::open(c.path).manifest().run_id;
    const fs::path trash =
        root / fmt::format("{}{}.{}", kTrash, step_directory(c.step).substr(kStep.size()), run_id);
    if (is_real_directory(trash)) remove_tree(trash, hook);
    rename_path(c.path, trash, hook);
    fsync_directory(root, hook);
    remove_tree(trash, hook);
    removed.push_back(c.path);
  }
  return removed;
}

std::vector<fs::path> remove_stale(const fs::path& root, const std::string& run_id,
                                   SyscallHook* hook) {
  check_run_id(run_id);
  std::vector<fs::path> removed;
  for (const std::string& name : list_names(root)) {
    if (!name.ends_with("." + run_id) || !is_real_directory(root / name)) continue;
    if (const auto step = replaced_step(name)) {
      // The only copy of that step unless its directory is there and valid.
      if (defect_of({*step, root / step_directory(*step)})) continue;
    } else if (!name.starts_with(kStage) && !name.starts_with(kTrash)) {
      continue;
    }
    remove_tree(root / name, hook);
    removed.push_back(root / name);
  }
  return removed;
}

}  // namespace r1::checkpoint
