// What a power failure may leave: a model of a file system that keeps only what was fsynced for
// sure, and of everything else any part. The writer's system calls are recorded; for each prefix of
// them, states that could be found after a power failure are laid out and the newest checkpoint is
// looked for.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <optional>

#include "runtime/checkpoint/commit.h"
#include "tests/runtime/checkpoint/tiny_checkpoint.h"
#include "tests/support/temp_dir.h"

namespace r1::checkpoint {
namespace {

using test::TempDir;

struct Recorded {
  Syscall call;
  std::string data;
};
class Recorder : public SyscallHook {
 public:
  int before(Syscall& call) override {
    Recorded r{call, {}};
    if (call.data != nullptr) r.data.assign(static_cast<const char*>(call.data), call.bytes);
    calls.push_back(std::move(r));
    return 0;
  }
  std::vector<Recorded> calls;
};

struct Node;
using NodePtr = std::shared_ptr<Node>;
struct Node {
  bool directory = false;
  // A file: what was written, and what an fsync has made sure of.
  std::string content;
  std::optional<std::string> durable;
  // A directory: its names now; its names at the last fsync; what happened since, each of which
  // happens whole or not at all.
  std::map<std::string, NodePtr> names, durable_names;
  std::vector<std::map<std::string, NodePtr>> pending;  // name to node; null: the name is gone
};

class DiskModel {
 public:
  explicit DiskModel(fs::path base) : base_(std::move(base)), root_(load(base_)) {}

  void apply(const Recorded& r) {
    const Syscall& c = r.call;
    switch (c.kind) {
      case SyscallKind::kMkdir:
      case SyscallKind::kCreate: {
        auto [dir, name] = parent(c.path);
        if (c.kind == SyscallKind::kMkdir && dir->names.contains(name)) break;  // it may exist
        auto node = std::make_shared<Node>();
        node->directory = c.kind == SyscallKind::kMkdir;
        change(dir, {{name, node}});
        break;
      }
      case SyscallKind::kAllocate:
        break;
      case SyscallKind::kWrite: {
        Node& f = *find(c.path);
        f.content.resize(std::max<size_t>(f.content.size(), c.offset + r.data.size()));
        f.content.replace(c.offset, r.data.size(), r.data);
        break;
      }
      case SyscallKind::kFsync:
        find(c.path)->durable = find(c.path)->content;
        break;
      case SyscallKind::kClose:
        break;
      case SyscallKind::kFsyncDir: {
        Node& d = *find(c.path);
        d.durable_names = d.names;
        d.pending.clear();
        break;
      }
      case SyscallKind::kRename: {
        auto [from, from_name] = parent(c.path);
        auto [to, to_name] = parent(c.to);
        ASSERT_EQ(from, to) << "renames stay within one directory";
        change(from, {{from_name, nullptr}, {to_name, from->names.at(from_name)}});
        break;
      }
      case SyscallKind::kExchange: {
        auto [a, a_name] = parent(c.path);
        auto [b, b_name] = parent(c.to);
        ASSERT_EQ(a, b);
        change(a, {{a_name, b->names.at(b_name)}, {b_name, a->names.at(a_name)}});
        break;
      }
      case SyscallKind::kUnlink:
      case SyscallKind::kRmdir: {
        auto [dir, name] = parent(c.path);
        change(dir, {{name, nullptr}});
        break;
      }
    }
  }

  enum class Loss {
    kAll,      // nothing but what was fsynced
    kNone,     // everything reached the disk (the process alone died)
    kData,     // all names, but no data that was not fsynced (delayed allocation)
    kOrdered,  // a prefix of the names' changes, random data
    kRandom,   // any changes, random data
  };
  // Lays out a state that could be found after the power failed now.
  void lay_out(const fs::path& to, Loss loss, const Rng& rng) const {
    uint64_t draw = 0;
    lay_out(*root_, to, loss, rng, draw);
  }

 private:
  static NodePtr load(const fs::path& path) {
    auto node = std::make_shared<Node>();
    node->directory = fs::is_directory(path);
    if (node->directory) {
      for (const auto& item : fs::directory_iterator(path))
        node->names[item.path().filename()] = load(item.path());
      node->durable_names = node->names;
    } else {
      node->content = test::read_file(path);
      node->durable = node->content;
    }
    return node;
  }
  NodePtr find(const fs::path& path) const {
    NodePtr node = root_;
    for (const fs::path& part : path.lexically_relative(base_))
      if (part != ".") node = node->names.at(part);
    return node;
  }
  std::pair<NodePtr, std::string> parent(const fs::path& path) const {
    return {find(path.parent_path()), path.filename()};
  }
  static void apply_change(std::map<std::string, NodePtr>& names,
                           const std::map<std::string, NodePtr>& change) {
    for (const auto& [name, node] : change)
      if (node)
        names[name] = node;
      else
        names.erase(name);
  }
  static void change(const NodePtr& dir, std::map<std::string, NodePtr> what) {
    apply_change(dir->names, what);
    dir->pending.push_back(std::move(what));
  }
  void lay_out(const Node& node, const fs::path& to, Loss loss, const Rng& rng,
               uint64_t& draw) const {
    if (!node.directory) {
      std::string content = node.durable.value_or("");
      if (loss == Loss::kNone || (node.durable && *node.durable == node.content)) {
        content = node.content;
      } else if (loss == Loss::kOrdered || loss == Loss::kRandom) {
        // Not fsynced: nothing, a part, the right length full of zeros, or all of it.
        switch (rng.below(draw++, 4)) {
          case 0:
            break;
          case 1:
            content = node.content.substr(0, rng.below(draw++, node.content.size() + 1));
            break;
          case 2:
            content = std::string(node.content.size(), '\0');
            break;
          default:
            content = node.content;
            break;
        }
      }
      test::write_file(to, content);
      return;
    }
    std::map<std::string, NodePtr> names =
        loss == Loss::kNone || loss == Loss::kData ? node.names : node.durable_names;
    if (loss == Loss::kOrdered) {
      const uint64_t n = rng.below(draw++, node.pending.size() + 1);
      for (uint64_t i = 0; i < n; ++i) apply_change(names, node.pending[i]);
    } else if (loss == Loss::kRandom) {
      for (const auto& p : node.pending)
        if (rng.below(draw++, 2) == 0) apply_change(names, p);
    }
    fs::create_directories(to);
    for (const auto& [name, child] : names) lay_out(*child, to / name, loss, rng, draw);
  }

  fs::path base_;
  NodePtr root_;
};

int64_t newest(const fs::path& root) {
  const auto path = latest_checkpoint(root);
  if (!path) return -1;
  const CheckpointReader reader = CheckpointReader::open(*path);
  reader.verify_all();
  return reader.manifest().step;
}

TEST(PowerLoss, AtEverySystemCall) {
  const std::string run = "run-1";
  const auto write = [&](int64_t step) {
    return [=](const fs::path& root, SyscallHook* hook) {
      test::write_tiny_checkpoint(root, step, run, 1, 2, hook);
    };
  };
  struct Scenario {
    std::string name;
    std::vector<int64_t> steps;
    std::function<void(const fs::path& root, SyscallHook* hook)> act;
    int64_t before, after;
  };
  int states = 0;
  for (const Scenario& s : std::vector<Scenario>{
           {"first", {}, write(1), -1, 1},
           {"second", {1}, write(2), 1, 2},
           {"again", {1, 2}, write(2), 2, 2},
           {"retention",
            {1, 2, 3},
            [&](const fs::path&root, SyscallHook*hook) {
              test::write_tiny_checkpoint(root, 4, run, 1, 2, hook);
              apply_retention(root, {.keep_last = 1}, hook);
            },
            3,
            4},
       }) {
    SCOPED_TRACE(s.name);
    const TempDir dir(TempDir::Where::kMemory);
    for (const int64_t step : s.steps) test::write_tiny_checkpoint(dir / "root", step, run, 1, 2);
    DiskModel disk(dir.path());
    Recorder recorder;
    s.act(dir / "root", &recorder);
    for (size_t k = 0; k <= recorder.calls.size(); ++k) {
      SCOPED_TRACE(fmt::format("after call {}", k));
      for (const auto loss : {DiskModel::Loss::kAll, DiskModel::Loss::kNone, DiskModel::Loss::kData,
                              DiskModel::Loss::kOrdered, DiskModel::Loss::kRandom})
        for (uint64_t sample = 0; sample < (loss == DiskModel::Loss::kRandom ? 3u : 1u); ++sample) {
          const TempDir after(TempDir::Where::kMemory);
          disk.lay_out(after.path(), loss, Rng(k * 16 + sample, s.name));
          const int64_t step = newest(after / "root");
          ASSERT_TRUE(step == s.before || step == s.after)
              << "loss " << static_cast<int>(loss) << " step " << step;
          // What was reported as written stays.
          if (k == recorder.calls.size()) {
            ASSERT_EQ(step, s.after) << "loss " << static_cast<int>(loss);
          }
          ++states;
        }
      if (k < recorder.calls.size()) disk.apply(recorder.calls[k]);
    }
  }
  EXPECT_GT(states, 1500);
  std::printf("%d states\n", states);
}

// The model itself: without an fsync of the file, a renamed file may be empty; so the test above
// can fail.
TEST(PowerLoss, ModelLosesWhatIsNotSynced) {
  const TempDir dir(TempDir::Where::kMemory), out(TempDir::Where::kMemory);
  DiskModel disk(dir.path());
  const std::string data = "content";
  disk.apply({{.kind = SyscallKind::kCreate, .path = dir / "tmp"}, {}});
  disk.apply({{.kind = SyscallKind::kWrite, .path = dir / "tmp"}, data});
  disk.apply({{.kind = SyscallKind::kRename, .path = dir / "tmp", .to = dir / "final"}, {}});
  disk.apply({{.kind = SyscallKind::kFsyncDir, .path = dir.path()}, {}});
  disk.lay_out(out / "a", DiskModel::Loss::kAll, Rng(0, ""));
  EXPECT_EQ(test::read_file(out / "a/final"), "");
  disk.apply({{.kind = SyscallKind::kFsync, .path = dir / "final"}, {}});
  disk.lay_out(out / "b", DiskModel::Loss::kAll, Rng(0, ""));
  EXPECT_EQ(test::read_file(out / "b/final"), data);
  disk.apply({{.kind = SyscallKind::kUnlink, .path = dir / "final"}, {}});
  disk.lay_out(out / "c", DiskModel::Loss::kAll, Rng(0, ""));
  EXPECT_TRUE(fs::exists(out / "c/final"));
  disk.lay_out(out / "d", DiskModel::Loss::kNone, Rng(0, ""));
  EXPECT_FALSE(fs::exists(out / "d/final"));
}

}  // namespace
}  // namespace r1::checkpoint
