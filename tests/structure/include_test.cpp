// The direction of includes: a folder sees what stands below it, never what stands above or beside
// it. The table is the target graph of the tree; a new folder has to be put in it.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>

namespace r1 {
namespace {

namespace fs = std::filesystem;
using Folders = std::vector<std::string>;

Folders operator+(Folders a, const Folders& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

/// device/cuda and kernels/cuda are one library, loaded at run time: its context owns the plans of
/// its kernels.
const std::string kCudaBackend = "the CUDA backend";

const Folders kPlan = {"runtime/core", "parallel/mesh", "parallel/shard", "parallel/schedule",
                       "parallel/spec", "parallel/cost"};
const Folders kDevice = {"runtime/core", "runtime/device"};
const Folders kKernels = kDevice + Folders{"runtime/kernels"};
const Folders kExec = kPlan + kKernels + Folders{"comm", "parallel/exec"};
const Folders kModels = kExec + Folders{"runtime/nn", "runtime/models"};
const Folders kServe = kModels + Folders{"runtime/tokenizer", "runtime/serve"};
const Folders kTrain = kServe +
                       Folders{"runtime/optim", "runtime/checkpoint", "runtime/tokenizer",
                               "runtime/data", "runtime/train"} +
                       Folders{kCudaBackend};

/// What a folder may include besides itself. A folder covers those below it that have no row of
/// their own.
const std::map<std::string, Folders> kAllowed = {
    {"runtime/core", {}},
    {"parallel/mesh", {"runtime/core"}},
    {"parallel/shard", {"runtime/core"}},
    {"parallel/schedule", {"runtime/core"}},
    {"parallel/spec", {"runtime/core", "parallel/mesh", "parallel/shard", "parallel/schedule"}},
    {"parallel/cost", kPlan},
    {"runtime/device", {"runtime/core"}},
    {"runtime/kernels", kDevice},
    {kCudaBackend, kKernels},
    {"comm", kDevice},
    // The device side of the communicators: part of the CUDA library too.
    {"comm/cuda", kKernels + Folders{"comm", kCudaBackend}},
    {"parallel/exec", kExec},
    {"runtime/nn", kExec},
    {"runtime/models", kModels},
    {"runtime/optim", kExec},  // sums over the process groups
    {"runtime/checkpoint", kPlan + kDevice},
    {"runtime/tokenizer", {"runtime/core"}},
    {"runtime/data", {"runtime/core", "runtime/tokenizer"}},
    {"runtime/serve", kServe},
    {"runtime/train", kTrain},
    {"runtime",
     kTrain},  // main.cpp of the rank program; a folder of runtime/ needs a row of its own
    {"launch", kPlan},
};

/// Libraries that only the folders named may see: the launcher and the plan run where they are not
/// installed.
const std::vector<std::pair<std::vector<std::string>, Folders>> kForeign = {
    {{"mpi.h"}, {"comm"}},
    {{"nccl.h", "ucp/", "uct/", "ucs/"}, {"comm", "comm/cuda"}},
    {{"cuda", "cublas", "cudnn", "nvToolsExt", "nvtx3/", "cub/", "cooperative_groups"},
     {"comm/cuda", kCudaBackend}},
    {{"cblas.h", "openblas"}, {"runtime/kernels"}},
};

/// The row of the table that a file belongs to; empty: none.
std::string folder_of(const std::string& file) {
  const fs::path path(file);
  const auto top = path.begin()->string();
  if (file.starts_with("comm/cuda/")) return "comm/cuda";
  if (top == "comm" || top == "launch") return top;
  // The library's interface needs no CUDA header: whoever uses a device may use it.
  if (file == "runtime/device/cuda/cuda_api.h") return "runtime/device";
  if (file.starts_with("runtime/device/cuda/") || file.starts_with("runtime/kernels/cuda/"))
    return kCudaBackend;
  if (std::distance(path.begin(), path.end()) == 2 && kAllowed.contains(top)) return top;
  const auto two = top + "/" + std::next(path.begin())->string();
  return kAllowed.contains(two) ? two : "";
}

bool is_ours(const std::string& header) {
  for (const char* top : {"comm/", "parallel/", "runtime/", "launch/"}) {
    if (header.starts_with(top)) return true;
  }
  return false;
}

/// What is wrong with the includes of one file, a line each.
std::vector<std::string> violations(const std::string& file, const std::string& text) {
  std::vector<std::string> out;
  const auto folder = folder_of(file);
  if (folder.empty()) {
    return {fmt::format("{}: its folder is not in the table of tests/structure/include_test.cpp",
                        file)};
  }
  const auto& allowed = kAllowed.at(folder);
  std::istringstream lines(text);
  int number = 0;
  for (std::string line; std::getline(lines, line);) {
    ++number;
    std::istringstream words(line);
    std::string hash, rest;
    words >> std::ws;
    std::getline(words, rest);
    if (!rest.starts_with("#")) continue;
    rest.erase(0, rest.find_first_not_of("# \t"));
    if (!rest.starts_with("include")) continue;
    const auto open = rest.find_first_of("\"<");
    if (open == std::string::npos) {
      out.push_back(fmt::format("{}:{}: an include that is not a plain name", file, number));
      continue;
    }
    const auto close = rest.find_first_of("\">", open + 1);
    const auto header = rest.substr(open + 1, close - open - 1);
    if (rest[open] == '"' && !is_ours(header)) {
      out.push_back(
          fmt::format("{}:{}: \"{}\": include paths start at the root", file, number, header));
      continue;
    }
    if (is_ours(header)) {
      const auto target = folder_of(header);
      if (target.empty()) {
        out.push_back(
            fmt::format("{}:{}: {}: its folder is not in the table", file, number, header));
      } else if (target != folder && std::ranges::find(allowed, target) == allowed.end()) {
        out.push_back(fmt::format("{}:{}: {} must not include {}; it may include {}", file, number,
                                  folder, header, fmt::join(allowed, ", ")));
      }
      continue;
    }
    for (const auto& [headers, users] : kForeign) {
      for (const auto& foreign : headers) {
        if (header.starts_with(foreign) && std::ranges::find(users, folder) == users.end()) {
          out.push_back(fmt::format("{}:{}: <{}> is for {} only", file, number, header,
                                    fmt::join(users, ", ")));
        }
      }
    }
  }
  return out;
}

TEST(Includes, PointDownwardsOnly) {
  const fs::path root = R1RUN_SOURCE_DIR;
  size_t files = 0;
  std::set<std::string> seen;
  for (const char* top : {"comm", "parallel", "runtime", "launch"}) {
    ASSERT_TRUE(fs::is_directory(root / top)) << top;
    for (const auto& entry : fs::recursive_directory_iterator(root / top)) {
      static const std::set<std::string> kinds = {".h",   ".cpp", ".cu", ".cuh",
                                                  ".inc", ".hpp", ".cc", ".c"};
      if (!entry.is_regular_file() || !kinds.contains(entry.path().extension().string())) continue;
      const auto name = entry.path().lexically_relative(root).generic_string();
      std::ifstream in(entry.path());
      std::stringstream text;
      text << in.rdbuf();
      for (const auto& v : violations(name, text.str())) ADD_FAILURE() << v;
      seen.insert(folder_of(name));
      ++files;
    }
  }
  EXPECT_GT(files, 15u) << "the sources were not found";
  for (const char* folder : {"runtime/core", "parallel/mesh", "comm", "launch"})
    EXPECT_TRUE(seen.contains(folder)) << folder;
}

/// The table is a graph without circles, and it is closed: what a folder sees, it may see wholly.
TEST(Includes, TheTableIsALadder) {
  for (const auto& [folder, allowed] : kAllowed) {
    for (const auto& below : allowed) {
      ASSERT_TRUE(kAllowed.contains(below)) << below;
      if (below == folder) continue;
      for (const auto& further : kAllowed.at(below)) {
        EXPECT_NE(further, folder) << folder << " and " << below << " see each other";
        EXPECT_NE(std::ranges::find(allowed, further), allowed.end())
            << folder << " may include " << below << ", which includes " << further;
      }
    }
  }
}

TEST(Includes, TheCheckCatches) {
  const auto bad = [](const char* file, const char* text) { return violations(file, text).size(); };
  EXPECT_EQ(bad("parallel/exec/a.cpp", "#include \"comm/communicator.h\"\n#include <vector>\n"),
            0u);
  EXPECT_EQ(bad("runtime/main.cpp", "#include \"runtime/train/trainer.h\"\n"), 0u);
  EXPECT_EQ(bad("runtime/device/cuda/a.cpp", "#include \"runtime/kernels/cuda/b.h\"\n"), 0u);
  EXPECT_EQ(bad("runtime/device/a.cpp", "#include \"runtime/device/cuda/b.h\"\n"), 1u);
  EXPECT_EQ(bad("runtime/kernels/a.cpp", "#include <cuda_runtime.h>\n"), 1u);
  EXPECT_EQ(bad("comm/mpi/a.cpp", "#include <mpi.h>\n"), 0u);
  EXPECT_EQ(bad("comm/cuda/a.cpp", "#include \"runtime/device/cuda/context.h\"\n"), 0u);
  EXPECT_EQ(bad("comm/ipc/a.cpp", "#include \"runtime/device/cuda/context.h\"\n"), 1u);
  EXPECT_EQ(bad("runtime/core/a.h", "#include \"runtime/device/device.h\"\n"), 1u);
  EXPECT_EQ(bad("comm/a.h", "  #  include \"parallel/mesh/mesh.h\"\n"), 1u);
  EXPECT_EQ(bad("comm/a.h", "#include <parallel/mesh/mesh.h>\n"), 1u);
  EXPECT_EQ(bad("parallel/schedule/a.h", "#include \"parallel/exec/executor.h\"\n"), 1u);
  EXPECT_EQ(bad("launch/a.cpp",
                "#include \"comm/communicator.h\"\n#include \"runtime/device/device.h\"\n"),
            2u);
  EXPECT_EQ(bad("runtime/train/a.cpp", "#include \"launch/command.h\"\n"), 1u);
  EXPECT_EQ(bad("launch/a.cpp", "#include <mpi.h>\n#include <cuda_runtime.h>\n"), 2u);
  EXPECT_EQ(bad("runtime/train/a.cpp", "#include <mpi.h>\n"), 1u);
  EXPECT_EQ(bad("runtime/core/a.cpp", "#include \"log.h\"\n"), 1u);
  EXPECT_EQ(bad("runtime/core/a.cpp", "#include \"runtime/nowhere/log.h\"\n"), 1u);
  EXPECT_EQ(bad("runtime/core/a.cpp", "#include HEADER\n"), 1u);
  EXPECT_EQ(bad("runtime/nowhere/a.cpp", ""), 1u) << "a folder that is not in the table";
  EXPECT_EQ(bad("parallel/a.cpp", ""), 1u);
}

}  // namespace
}  // namespace r1
