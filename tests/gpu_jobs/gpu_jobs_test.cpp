// Jobs on a GPU as a user starts them, and what is said when the GPU or its libraries fail.
#include <gtest/gtest.h>

#include <cstring>
#include <limits>

#include "runtime/device/cuda/cuda_api.h"
#include "runtime/device/cuda_library.h"
#include "tests/e2e/support.h"

namespace r1::test {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

void write_rows(const fs::path& file, int rows, int length) {
  std::ofstream out(file);
  for (int r = 0; r < rows; ++r) {
    json ids = json::array();
    for (int i = 0; i < length; ++i) ids.push_back((r * 131 + i * 17 + i * i) % 300);
    out << json{{"input_ids", ids}, {"labels", ids}}.dump() << '\n';
  }
}

class GpuJob : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string why;
    try {
      if (cuda::api().device_count(&why) > 0) {
        write_rows(dir_ / "rows.jsonl", 64, 48);
        return;
      }
    } catch (const Error& e) {
      why = e.what();
    }
    GTEST_SKIP() << why;
  }
  /// What `more` repeats of these options counts.
  [[nodiscard]] std::vector<std::string> train(const std::string& output, std::vector<std::string> more = {}) const {
    std::vector<std::string> args{"train", "--model", data("hf/qwen2-8layers"), "--data", dir_ / "rows.jsonl", "--output", dir_ / output,
                                  "--batch", "4", "--micro-batch", "2", "--seq-len", "48", "--no-pack", "--no-shuffle", "--device", "cuda"};
    args.insert(args.end(), more.begin(), more.end());
    return args;
  }
  [[nodiscard]] std::vector<std::pair<std::string, std::string>> with_fault(const std::string& fault, const std::string& error = "0") const {
    auto env = mpi_environment();
    env.insert(env.end(), {{"LD_PRELOAD", R1RUN_CUDA_FAULT_LIBRARY}, {"R1TEST_CUDA_FAULT", fault}, {"R1TEST_CUDA_ERROR", error},
                           {"R1TEST_TRIGGER", dir_ / "trigger"}});
    return env;
  }
  /// Runs a job that fails in `fault` once its third step is done.
  Result run_until_fault(const std::string& fault, const std::string& error) {
    return run(front_door(train("out", {"--steps", "100000", "--no-graphs"})), 120, with_fault(fault, error), [&](pid_t, const std::string& output) {
      if (output.find("step 3/") != std::string::npos) std::ofstream(dir_ / "trigger") << "now";
    });
  }
  TempDir dir_;
};

TEST_F(GpuJob, LearnsAllocatesNothingAfterTheFirstStepAndKeepsItsChoices) {
  const Result r = run(front_door(train("out", {"--steps", "12", "--lr", "0.002", "--cache-dir", dir_ / "cache"})), 120);
  ASSERT_EQ(r.code, 0) << r.output;
  const std::vector<json> steps = steps_of(dir_ / "out");
  ASSERT_EQ(steps.size(), 12u);
  EXPECT_LT(steps.back()["loss"].get<double>(), steps.front()["loss"].get<double>());
  const std::vector<json> memory = lines_of(dir_ / "out", "memory");
  ASSERT_EQ(memory.size(), 1u);
  EXPECT_EQ(memory[0]["ranks"][0]["late_allocations"], 0);
  EXPECT_EQ(memory[0]["ranks"][0]["planned_bytes"], memory[0]["ranks"][0]["allocated_bytes"]);
  size_t caches = 0;
  for (const auto& file : fs::directory_iterator(dir_ / "cache")) caches += file.path().filename().string().starts_with("gemm-") ? 1 : 0;
  EXPECT_EQ(caches, 1u) << "the choice of GEMM algorithms is kept";
}

TEST_F(GpuJob, TheSameCommandGivesTheSameBits) {
  for (const char* scope : {"--deterministic=run", "--deterministic"}) {
    SCOPED_TRACE(scope);
    std::vector<std::vector<json>> runs;
    for (const char* name : {"a", "b"}) {
      const std::string output = std::string(name) + scope;
      const Result r = run(front_door(train(output, {"--steps", "10", "--lr", "0.002", scope})), 120);
      ASSERT_EQ(r.code, 0) << r.output;
      EXPECT_NE(r.output.find("deterministic  "), std::string::npos) << r.output;
      runs.push_back(steps_of(dir_ / output));
      ASSERT_EQ(runs.back().size(), 10u);
    }
    for (size_t i = 0; i < 10; ++i)
      for (const char* what : {"loss", "grad_norm"}) EXPECT_EQ(runs[0][i][what], runs[1][i][what]) << what << " of step " << i + 1;
  }
}

TEST_F(GpuJob, AnUpdateBesideTheNextForwardGivesTheSameBits) {
  std::vector<std::vector<json>> runs;
  std::vector<std::string> weights;
  // A profile lets updates run by themselves, from its fourth step on.
  for (const char* profile : {"0", "1000"}) {
    SCOPED_TRACE(profile);
    const std::string output = std::string("profile-") + profile;
    const Result r = run(front_door(train(output, {"--steps", "12", "--lr", "0.002", "--deterministic=run", "--profile", profile,
                                                   "--save-every", "5", "--eval-data", dir_ / "rows.jsonl", "--eval-every", "3"})), 120);
    ASSERT_EQ(r.code, 0) << r.output;
    runs.push_back(steps_of(dir_ / output));
    ASSERT_EQ(runs.back().size(), 12u);
    for (const json& e : lines_of(dir_ / output, "eval")) runs.back().push_back(e);
    for (const auto& checkpoint : fs::directory_iterator(dir_ / output))
      if (fs::exists(checkpoint.path() / "model.safetensors")) weights.push_back(checkpoint.path().filename().string() + bytes_of(checkpoint.path() / "model.safetensors"));
  }
  ASSERT_EQ(runs[0].size(), 16u);
  for (size_t i = 0; i < runs[0].size(); ++i) {
    EXPECT_EQ(runs[0][i]["loss"], runs[1][i]["loss"]) << "line " << i + 1;
    EXPECT_EQ(runs[0][i].value("grad_norm", 0.0), runs[1][i].value("grad_norm", 0.0)) << "line " << i + 1;
  }
  std::sort(weights.begin(), weights.end());
  ASSERT_EQ(weights.size(), 6u);
  for (size_t i = 0; i < weights.size(); i += 2) EXPECT_TRUE(weights[i] == weights[i + 1]) << weights[i].substr(0, 20);
}

// Sharded updates beside the next forward too: a rank's weights come from the other replica while it computes.
TEST_F(GpuJob, RanksThatShareAGpuTrainAsOneDoes) {
  std::vector<std::vector<json>> runs;
  for (const char* layout : {"1x1x1", "1x2x1", "2x2x2"}) {
    SCOPED_TRACE(layout);
    const int pp = layout[0] - '0', dp = layout[2] - '0', tp = layout[4] - '0';
    const Result r = run(job(pp * dp * tp, train(layout, {"--steps", "8", "--lr", "0.002", "--dtype", "fp32", "--micro-batch", "1", "--pp", std::to_string(pp),
                                                          "--dp", std::to_string(dp), "--tp", std::to_string(tp)})), 180, mpi_environment());
    ASSERT_EQ(r.code, 0) << r.output;
    runs.push_back(steps_of(dir_ / layout));
    ASSERT_EQ(runs.back().size(), 8u);
    for (size_t i = 0; i < 8; ++i)
      for (const char* what : {"loss", "grad_norm"}) {
        const auto expected = runs.front()[i][what].get<double>();
        EXPECT_NEAR(runs.back()[i][what].get<double>(), expected, 1e-4 * expected) << what << " of step " << i + 1;
      }
  }
}

TEST_F(GpuJob, OffloadGivesTheSameBits) {
  std::vector<std::vector<json>> runs;
  for (const char* what : {"none", "optimizer", "activations", "optimizer,activations"}) {
    SCOPED_TRACE(what);
    const Result r = run(front_door(train(what, {"--steps", "8", "--lr", "0.002", "--recompute", "full", "--deterministic=run", "--offload", what})), 120);
    ASSERT_EQ(r.code, 0) << r.output;
    runs.push_back(steps_of(dir_ / what));
    ASSERT_EQ(runs.back().size(), 8u);
    for (size_t i = 0; i < 8; ++i) EXPECT_EQ(runs.front()[i]["loss"], runs.back()[i]["loss"]) << "step " << i + 1;
  }
}

TEST_F(GpuJob, DrawsTheTokensThatTheCpuDraws) {
  std::ofstream prompts(dir_ / "prompts.jsonl");
  for (int i = 0; i < 40; ++i) prompts << json{{"prompt_ids", {5 + i % 4, 17, 200, 31}}}.dump() << '\n';
  prompts.close();
  for (const std::vector<std::string>& how : {std::vector<std::string>{"--temperature", "0.6", "--top-p", "0.95"},
                                              {"--temperature", "1.2", "--top-k", "20", "--min-p", "0.01", "--repetition-penalty", "1.3"}}) {
    std::vector<std::vector<json>> ids;
    for (const char* device : {"cpu", "cuda"}) {
      SCOPED_TRACE(device);
      std::vector<std::string> args{"generate", "--model", data("hf/qwen2-8layers"), "--chat", dir_ / "prompts.jsonl", "--max-new-tokens", "24", "--ignore-eos",
                                    "--seed", "3", "--dtype", "fp32", "--device", device, "--json", dir_ / "out.jsonl"};
      args.insert(args.end(), how.begin(), how.end());
      const Result r = run(front_door(args), 120);
      ASSERT_EQ(r.code, 0) << r.output;
      std::ifstream in(dir_ / "out.jsonl");
      ids.emplace_back();
      for (std::string line; std::getline(in, line);) ids.back().push_back(json::parse(line)["ids"]);
      ASSERT_EQ(ids.back().size(), 40u);
    }
    EXPECT_EQ(ids[0], ids[1]) << how[1];
    EXPECT_NE(ids[0][0], ids[0][4]) << "the same prompt is another request";
  }
}

TEST_F(GpuJob, StepsThatAreNotFiniteEndTheJobWith76) {
  fs::copy(data("hf/qwen2-untied"), dir_ / "model");
  std::string bytes = bytes_of(dir_ / "model" / "model.safetensors");
  uint64_t header = 0;
  std::memcpy(&header, bytes.data(), sizeof header);
  const json entry = json::parse(bytes.substr(8, header))["model.norm.weight"];
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::memcpy(&bytes[8 + header + entry["data_offsets"][0].get<size_t>()], &nan, sizeof nan);
  std::ofstream(dir_ / "model" / "model.safetensors", std::ios::binary) << bytes;
  const Result r = run(front_door({"train", "--model", dir_ / "model", "--data", dir_ / "rows.jsonl", "--output", dir_ / "out", "--steps", "20",
                                   "--batch", "4", "--seq-len", "48", "--no-pack", "--device", "cuda", "--max-skipped-steps", "2"}), 120);
  EXPECT_EQ(r.code, 76) << r.output;
  EXPECT_EQ(count(r.output, "FATAL"), 1) << r.output;
  EXPECT_NE(r.output.find("--max-skipped-steps 2"), std::string::npos) << r.output;
}

TEST_F(GpuJob, AMemoryErrorOfTheGpuIsNamedWithWhatToDo) {
  const Result r = run_until_fault("device", "214");  // cudaErrorECCUncorrectable
  EXPECT_FALSE(r.timed_out);
  EXPECT_EQ(r.code, 75) << r.output;
  EXPECT_EQ(count(r.output, "FATAL"), 1) << r.output;
  EXPECT_NE(r.output.find("uncorrectable memory error of the GPU: drain this host, look for Xid"), std::string::npos) << r.output;
}

TEST_F(GpuJob, ALostGpuIsNamedWithWhatToDo) {
  const Result r = run_until_fault("device", "719");  // cudaErrorLaunchFailure, what an Xid 13 or 31 shows as
  EXPECT_FALSE(r.timed_out);
  EXPECT_EQ(r.code, 75) << r.output;
  EXPECT_EQ(count(r.output, "FATAL"), 1) << r.output;
  EXPECT_NE(r.output.find("compute-sanitizer"), std::string::npos) << r.output;
}

TEST_F(GpuJob, ALibraryWithoutMemoryIsTakenForThat) {
  const Result r = run_until_fault("memory", "0");
  EXPECT_FALSE(r.timed_out);
  EXPECT_EQ(r.code, 69) << r.output;
  EXPECT_EQ(count(r.output, "FATAL"), 1) << r.output;
  EXPECT_NE(r.output.find("GiB are free on the device"), std::string::npos) << r.output;
}

TEST_F(GpuJob, AGpuThatAnotherProcessFillsIsRefusedBeforeLoading) {
  const Device device{DeviceKind::kCuda, 0};
  const size_t free_bytes = cuda::api().device_info(device).free_bytes;
  ASSERT_GT(free_bytes, size_t{4} << 30);
  const Buffer filled(device, free_bytes - (size_t{1} << 30));
  const Result r = run(front_door(train("out", {"--steps", "2"})), 60);
  EXPECT_EQ(r.code, 69) << r.output;
  EXPECT_EQ(r.output.find("step 1/"), std::string::npos) << r.output;
  EXPECT_NE(r.output.find("nvidia-smi shows what else is on it"), std::string::npos) << r.output;
}

// Needs the CUDA library but no GPU.
TEST(GpuDriver, OneThatIsTooOldIsNamedWithBothVersions) {
  std::string why;
  try {
    static_cast<void>(cuda::api().device_count(&why));
  } catch (const Error& e) {
    GTEST_SKIP() << e.what();
  }
  auto env = mpi_environment();
  env.insert(env.end(), {{"LD_PRELOAD", R1RUN_CUDA_FAULT_LIBRARY}, {"R1TEST_CUDA_FAULT", "driver"}});
  const TempDir dir;
  const Result r = run(front_door({"train", "--steps", "1", "--device", "cuda", "--output", dir / "out"}), 60, env);
  EXPECT_EQ(r.code, 75) << r.output;
  EXPECT_EQ(count(r.output, "FATAL"), 1) << r.output;
  EXPECT_NE(r.output.find("the NVIDIA driver offers CUDA 12.8, this build needs 13."), std::string::npos) << r.output;
  EXPECT_NE(r.output.find("install driver 580 or newer"), std::string::npos) << r.output;
}

}  // namespace
}  // namespace r1::test
