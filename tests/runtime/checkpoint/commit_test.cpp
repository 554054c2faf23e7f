// The commit protocol under crashes and failing system calls: the newest valid checkpoint is always
// found.
#include "runtime/checkpoint/commit.h"

#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <functional>
#include <set>

#include "tests/runtime/checkpoint/tiny_checkpoint.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"

namespace r1::checkpoint {
namespace {

using test::TempDir;

const std::string kRun = "run-1";

// Counts calls; at the `kill_at`-th, kills this process before the call; from the `fail_at`-th on
// (or only there), fails it.
class Injector : public SyscallHook {
 public:
  int before(Syscall& call) override {
    ++calls;
    if (call.kind == SyscallKind::kExchange && no_exchange) return EINVAL;
    if (tear && call.kind == SyscallKind::kWrite && call.bytes > 1)
      call.bytes = (call.bytes + 1) / 2;
    if (calls == kill_at) ::raise(SIGKILL);
    if (calls == fail_at || (fail_for_ever && fail_at > 0 && calls > fail_at)) {
      failed.push_back(call.kind);
      return error;
    }
    return 0;
  }
  int calls = 0, kill_at = 0, fail_at = 0, error = 0;
  bool fail_for_ever = false, tear = false, no_exchange = false;
  std::vector<SyscallKind> failed;
};

std::set<std::string> names_in(const fs::path& dir) {
  std::set<std::string> out;
  if (fs::exists(dir))
    for (const auto& item : fs::directory_iterator(dir)) out.insert(item.path().filename());
  return out;
}

// The step of the newest valid checkpoint, every checksum of which must be right; -1 for none.
int64_t newest(const fs::path& root) {
  const auto path = latest_checkpoint(root);
  if (!path) return -1;
  const CheckpointReader reader = CheckpointReader::open(*path);
  reader.verify_all();
  const test::TinyParameter p = test::tiny_parameters()[0];
  std::string got(static_cast<size_t>(whole_box(p.shape).elems() * 4), '\0');
  reader.read_box(kKindMaster, p.name, p.shape, whole_box(p.shape), DType::kF32, got.data());
  EXPECT_EQ(got,
            test::tiny_bytes("master", p, whole_box(p.shape), reader.manifest().step, DType::kF32));
  return reader.manifest().step;
}

struct Scenario {
  std::string name;
  std::function<void(const fs::path& root)> prepare;
  std::function<void(const fs::path& root, SyscallHook* hook)> act;
  int64_t before, after;       // the newest step
  std::set<std::string> left;  // names in the root at the end of an undisturbed run
  bool no_exchange = false;
};

std::vector<Scenario> scenarios() {
  const auto write = [](int64_t step) {
    return [step](const fs::path& root, SyscallHook* hook) {
      test::write_tiny_checkpoint(root, step, kRun, 1, 2, hook);
    };
  };
  const auto prepare = [](std::vector<int64_t> steps) {
    return [steps](const fs::path& root) {
      for (const int64_t s : steps) test::write_tiny_checkpoint(root, s, kRun, 1, 2);
    };
  };
  return {
      {"the first one", [](const fs::path&) {}, write(1), -1, 1, {"step-000001"}},
      {"the second one", prepare({1}), write(2), 1, 2, {"step-000001", "step-000002"}},
      {"the same step again", prepare({1, 2}), write(2), 2, 2, {"step-000001", "step-000002"}},
      {"the same step again without exchange",
       prepare({1, 2}),
       write(2),
       2,
       2,
       {"step-000001", "step-000002"},
       true},
      {"with retention",
       prepare({1, 2, 3}),
       [](const fs::path& root, SyscallHook* hook) {
         test::write_tiny_checkpoint(root, 4, kRun, 1, 2, hook);
         apply_retention(root, {.keep_last = 2}, hook);
       },
       3,
       4,
       {"step-000003", "step-000004"}},
  };
}

void copy_tree(const fs::path& from, const fs::path& to) {
  fs::create_directories(to);
  if (fs::exists(from)) fs::copy(from, to, fs::copy_options::recursive);
}

// Runs `act` in a child process that the injector kills; true when it was killed.
bool run_and_kill(const Scenario& s, const fs::path& root, int kill_at, bool tear) {
  const pid_t child = ::fork();
  if (child == 0) {
    Injector injector;
    injector.kill_at = kill_at;
    injector.tear = tear;
    injector.no_exchange = s.no_exchange;
    try {
      s.act(root, &injector);
    } catch (...) {
      ::_exit(3);
    }
    ::_exit(0);
  }
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  if (WIFEXITED(status)) {
    EXPECT_EQ(WEXITSTATUS(status), 0) << "the writer failed by itself";
  }
  return WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
}

TEST(Commit, KilledAtEverySystemCall) {
  int points = 0;
  for (const Scenario& s : scenarios())
    for (const bool tear : {false, true}) {  // torn: each write in two calls
      if (tear && s.name != "the second one") continue;
      SCOPED_TRACE(s.name + (tear ? ", torn writes" : ""));
      const TempDir start(TempDir::Where::kMemory);
      s.prepare(start / "root");
      EXPECT_EQ(newest(start / "root"), s.before);
      bool reached_end = false, committed = false;
      for (int k = 1; !reached_end; ++k) {
        SCOPED_TRACE(fmt::format("killed at call {}", k));
        const TempDir dir(TempDir::Where::kMemory);
        const fs::path root = dir / "root";
        if (fs::exists(start / "root")) copy_tree(start / "root", root);
        reached_end = !run_and_kill(s, root, k, tear);
        const int64_t step = newest(root);
        // The old one until the rename, the new one from then on.
        if (reached_end) {
          ASSERT_EQ(step, s.after);
        } else if (step == s.after && s.after != s.before) {
          committed = true;
        } else {
          ASSERT_EQ(step, s.before);
          ASSERT_FALSE(committed) << "the new checkpoint was lost again";
        }
        ++points;
        // The next start of the same run cleans up and goes on.
        remove_stale(root, kRun);
        ASSERT_EQ(newest(root), step);
        s.act(root, nullptr);
        remove_stale(root, kRun);
        ASSERT_EQ(newest(root), s.after);
        ASSERT_EQ(names_in(root), s.left);
      }
      EXPECT_TRUE(committed || s.after == s.before);
    }
  EXPECT_GT(points, 400);
  std::printf("%d crash points\n", points);
}

TEST(Commit, EverySystemCallFails) {
  int failures = 0;
  for (const Scenario& s : scenarios()) {
    SCOPED_TRACE(s.name);
    const TempDir start(TempDir::Where::kMemory);
    s.prepare(start / "root");
    for (const bool for_ever : {false, true}) {
      for (int k = 1;; ++k) {
        SCOPED_TRACE(fmt::format("call {} fails, {}", k, for_ever ? "and all after it" : "once"));
        const TempDir dir(TempDir::Where::kMemory);
        const fs::path root = dir / "root";
        if (fs::exists(start / "root")) copy_tree(start / "root", root);
        Injector injector;
        injector.fail_at = k;
        injector.fail_for_ever = for_ever;
        injector.no_exchange = s.no_exchange;
        injector.error = std::array{ENOSPC, EIO, EDQUOT, EROFS}[static_cast<size_t>(k) % 4];
        bool threw = false;
        try {
          s.act(root, &injector);
        } catch (const StorageError& e) {
          threw = true;
          EXPECT_NE(std::string(e.what()).find(dir.path().string()), std::string::npos) << e.what();
          EXPECT_EQ(e.code(), ExitCode::kCannotWrite);
        }
        if (injector.failed.empty()) break;  // k is beyond the last call
        ++failures;
        const int64_t step = newest(root);
        if (!threw) {
          ASSERT_EQ(step, s.after) << "no error, but no checkpoint";
        } else {
          ASSERT_TRUE(step == s.before || step == s.after);
          // With only one failure, the cleaning up after it succeeds.
          const auto left = names_in(root);
          EXPECT_TRUE(for_ever ||
                      std::none_of(left.begin(), left.end(), [](const std::string& name) {
                        return name.starts_with(".step-");
                      }));
        }
        s.act(root, nullptr);  // the retry at the next interval
        remove_stale(root, kRun);
        ASSERT_EQ(newest(root), s.after);
        ASSERT_EQ(names_in(root), s.left);
      }
    }
  }
  EXPECT_GT(failures, 600);
  std::printf("%d failing calls\n", failures);
}

// Runs `f` in a child; its exit status.
int in_child(const std::function<int()>& f) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(f());
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 256 + WTERMSIG(status);
}

TEST(Commit, FileSizeLimitIsAStorageError) {
  const TempDir dir(TempDir::Where::kMemory);
  const int status = in_child([&] {
    const rlimit limit{1000, 1000};
    ::signal(SIGXFSZ, SIG_IGN);
    if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) return 2;
    try {
      test::write_tiny_checkpoint(dir / "root", 1, kRun);
    } catch (const StorageError& e) {
      const std::string text = e.what();
      return text.find("ulimit -f") != std::string::npos &&
                     text.find("safetensors") != std::string::npos
                 ? 0
                 : 3;
    }
    return 4;
  });
  EXPECT_EQ(status, 0);
  EXPECT_TRUE(names_in(dir / "root").empty());
}

TEST(Commit, FullDisk) {
  const TempDir dir(TempDir::Where::kMemory);
  fs::create_directories(dir / "disk");
  const int status = in_child([&]() -> int {
    if (::unshare(CLONE_NEWNS) != 0 ||
        ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        ::mount("tmpfs", (dir / "disk").c_str(), "tmpfs", 0, "size=128k") != 0)
      return 77;
    const fs::path root = dir / "disk";
    test::write_tiny_checkpoint(root, 1, kRun);
    // Fill the disk but for a few pages, in steps, so that the writer runs full at different
    // places.
    for (const uintmax_t left : {60u, 40u, 24u, 8u, 0u}) {
      fs::remove(root / "filler");
      const uintmax_t free = fs::space(root).available;
      if (free > left * 1024)
        test::write_file(root / "filler", std::string(free - left * 1024, 'x'));
      try {
        test::write_tiny_checkpoint(root, 2, kRun);
        if (newest(root) != 2) return 2;
        remove_tree(root / "step-000002");
        if (left <= 8) return 3;  // cannot have fitted
      } catch (const StorageError& e) {
        const std::string text = e.what();
        if (text.find("No space left") == std::string::npos &&
            text.find("are needed and") == std::string::npos)
          return 4;
        if (newest(root) != 1) return 5;
        for (const std::string& name : names_in(root))
          if (name.starts_with(".")) return 6;
      }
    }
    return 0;
  });
  if (status == 77) GTEST_SKIP() << "cannot mount a tmpfs (needs root)";
  EXPECT_EQ(status, 0);
}

TEST(Commit, SpaceIsAskedForBeforeWriting) {
  const TempDir dir(TempDir::Where::kMemory);
  EXPECT_ERROR(StorageError, StagedCheckpoint::create(dir / "root", 1, kRun, uint64_t{1} << 60),
               "are needed and", "are free");
  EXPECT_TRUE(names_in(dir / "root").empty());
}

TEST(Commit, UnwritableAndMisplacedRoots) {
  const TempDir dir(TempDir::Where::kMemory);
  test::write_file(dir / "file", "x");
  EXPECT_ERROR(StorageError, StagedCheckpoint::create(dir / "file", 1, kRun), "file");
  EXPECT_ERROR(StorageError, StagedCheckpoint::create(dir / "file" / "below", 1, kRun), "file",
               "Not a directory");
  if (::geteuid() != 0) {
    ::chmod(dir.path().c_str(), 0500);
    EXPECT_ERROR(StorageError, StagedCheckpoint::create(dir / "root", 1, kRun), "Permission denied",
                 "--output");
    ::chmod(dir.path().c_str(), 0700);
  }
  EXPECT_FALSE(latest_checkpoint(dir / "missing").has_value());
  EXPECT_FALSE(latest_checkpoint(dir / "file").has_value());
  EXPECT_TRUE(list_checkpoints(dir / "missing").empty());
}

TEST(Commit, ModesFollowTheUmask) {
  for (const mode_t mask : {mode_t{022}, mode_t{077}, mode_t{002}, mode_t{027}}) {
    const TempDir dir(TempDir::Where::kMemory);
    const mode_t before = ::umask(mask);
    const fs::path path = test::write_tiny_checkpoint(dir / "root", 1, kRun);
    ::umask(before);
    for (const auto& item : fs::recursive_directory_iterator(dir / "root"))
      EXPECT_EQ(static_cast<mode_t>(item.status().permissions()),
                (item.is_directory() ? 0777 : 0666) & ~mask)
          << item.path();
  }
}

TEST(Commit, ManifestMustDescribeWhatIsThere) {
  const TempDir dir(TempDir::Where::kMemory);
  StagedCheckpoint staged = StagedCheckpoint::create(dir.path(), 1, kRun);
  Manifest m;
  m.run_id = kRun;
  m.step = 2;
  EXPECT_ERROR(InternalError, staged.commit(m), "step 2");
  staged.abort();
  EXPECT_TRUE(names_in(dir.path()).empty());
}

TEST(Commit, DestroyedWithoutCommitLeavesNothing) {
  const TempDir dir(TempDir::Where::kMemory);
  {
    StagedCheckpoint a = StagedCheckpoint::create(dir.path(), 1, kRun);
    const StagedCheckpoint joined = StagedCheckpoint::join(dir.path(), 1, kRun);
    EXPECT_EQ(joined.stage(), a.stage());
    test::write_file(a.stage() / "x", "y");
    StagedCheckpoint b = std::move(a);
    EXPECT_EQ(names_in(dir.path()).size(), 1u);
  }
  EXPECT_TRUE(names_in(dir.path()).empty());
}

TEST(Latest, HighestValidStepAndNeverTheNewestFile) {
  const TempDir dir(TempDir::Where::kMemory);
  const fs::path root = dir.path();
  for (const int64_t step : {30, 4, 200, 1'000'000})
    test::write_tiny_checkpoint(root, step, kRun, 1, 1);
  EXPECT_EQ(latest_checkpoint(root), root / "step-1000000");
  // Names that are not ours, and unfinished ones.
  fs::copy(root / "step-000004", root / "step-9999999",
           fs::copy_options::recursive);  // manifest of step 4
  fs::copy(root / "step-000004", root / "step-02000000",
           fs::copy_options::recursive);  // second spelling
  fs::copy(root / "step-000004", root / ".step-3000000.run-1", fs::copy_options::recursive);
  fs::create_directories(root / "step-5000000/r1run");
  test::write_file(root / "step-6000000", "a file");
  test::write_file(root / "step-abc/x", "");
  fs::create_directory_symlink(root / "step-000200", root / "step-7000000");
  EXPECT_EQ(newest(root), 1'000'000);
  // Damage: falls back one by one.
  const fs::path manifest = root / "step-1000000/r1run/manifest.json";
  std::string text = test::read_file(manifest);
  text[text.size() / 2] = static_cast<char>(text[text.size() / 2] ^ 1);
  test::write_file(manifest, text);
  EXPECT_EQ(newest(root), 200);
  fs::resize_file(root / "step-000200/model-00001-of-00002.safetensors", 10);
  EXPECT_EQ(newest(root), 30);
  fs::remove(root / "step-000030/config.json");
  EXPECT_EQ(newest(root), 4);
  std::vector<int64_t> steps;
  for (const CheckpointPlace& c : list_checkpoints(root)) steps.push_back(c.step);
  EXPECT_EQ(steps, (std::vector<int64_t>{9'999'999, 5'000'000, 1'000'000, 200, 30, 4}));
}

TEST(Retention, KeepsTheNewestAndEveryNth) {
  const TempDir dir(TempDir::Where::kMemory);
  const fs::path root = dir.path();
  for (const int64_t step : {10, 20, 25, 30, 40, 50})
    test::write_tiny_checkpoint(root, step, kRun, 1, 1);
  EXPECT_TRUE(apply_retention(root, {}).empty());
  fs::create_directories(root / "step-000005");  // not a checkpoint of ours: never touched
  test::write_file(root / "step-000005/precious", "x");
  fs::remove(root / "step-000030/r1run/manifest.json");  // damaged: neither counted nor touched
  const std::vector<fs::path> removed = apply_retention(root, {.keep_last = 2, .keep_every = 20});
  EXPECT_EQ(removed, (std::vector<fs::path>{root / "step-000025", root / "step-000010"}));
  EXPECT_EQ(names_in(root), (std::set<std::string>{"step-000005", "step-000020", "step-000030",
                                                   "step-000040", "step-000050"}));
  apply_retention(root, {.keep_last = 1});
  EXPECT_EQ(names_in(root), (std::set<std::string>{"step-000005", "step-000030", "step-000050"}));
  EXPECT_EQ(newest(root), 50);
}

TEST(Stale, OnlyOfTheSameRun) {
  const TempDir dir(TempDir::Where::kMemory);
  const fs::path root = dir.path();
  test::write_tiny_checkpoint(root, 1, kRun, 1, 1);
  for (const std::string_view name :
       {".step-000002.run-1", ".trash-step-000000.run-1", ".replaced-step-000001.run-1",
        ".step-000002.run-2", ".step-000002.other-run-1", ".trash-step-000000.run-2",
        ".replaced-step-000009.run-1", "notes.run-1"})
    test::write_file(root / name / "file", "x");
  // Links inside are removed, not followed.
  test::write_file(dir / "outside/keep", "x");
  fs::create_directory_symlink(dir / "outside", root / ".step-000002.run-1/link");
  remove_stale(root, kRun);
  EXPECT_EQ(names_in(root),
            (std::set<std::string>{"step-000001", ".step-000002.run-2", ".step-000002.other-run-1",
                                   ".trash-step-000000.run-2", ".replaced-step-000009.run-1",
                                   "notes.run-1", "outside"}));
  EXPECT_EQ(test::read_file(dir / "outside/keep"), "x");
}

TEST(RunId, IsRandomAndPlain) {
  const std::string a = make_run_id(), b = make_run_id();
  EXPECT_NE(a, b);
  EXPECT_TRUE(plain_file_name(a));
  EXPECT_EQ(a.size(), 16u);
  EXPECT_EQ(step_directory(41), "step-000041");
  EXPECT_EQ(step_directory(12345678), "step-12345678");
}

}  // namespace
}  // namespace r1::checkpoint
