// --deterministic over layouts, and steps with NaN or Inf, as a user meets them.
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/core/rng.h"
#include "tests/e2e/support.h"

namespace r1::test {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

/// `rows` samples of `tokens` random ids below `vocab`; those in `marked` contain the id `mark`.
void write_rows(const fs::path& file, int rows, int tokens, int vocab, const std::vector<int>& marked = {}, int mark = 0) {
  std::ofstream out(file);
  const Rng rng(7, "rows");
  for (int r = 0; r < rows; ++r) {
    std::vector<int> ids;
    for (int t = 0; t < tokens; ++t) {
      const auto id = static_cast<int>(rng.below(static_cast<uint64_t>(1000 * r + t), static_cast<uint64_t>(vocab - 1)));
      ids.push_back(id >= mark && mark > 0 ? id + 1 : id);
    }
    if (std::find(marked.begin(), marked.end(), r) != marked.end()) ids[static_cast<size_t>(tokens) / 2] = mark;
    out << json{{"input_ids", ids}, {"labels", ids}}.dump() << "\n";
  }
}

/// CRC-32C of each tensor of a kind in a checkpoint, by name and box.
std::map<std::string, uint32_t> checksums(const fs::path& checkpoint, const std::string& kind) {
  std::map<std::string, uint32_t> out;
  const auto reader = checkpoint::CheckpointReader::open(checkpoint);
  for (const checkpoint::Piece& p : reader.manifest().pieces)
    if (p.kind == kind) out[p.tensor + " " + p.box.str()] = p.crc32c;
  return out;
}

TEST(Deterministic, FiftyStepsAreTheSameBitsInSixLayouts) {
  const TempDir dir;
  write_rows(dir / "data.jsonl", 40, 48, 300);
  struct Layout {
    int ranks;
    std::vector<std::string> args;
  };
  const std::vector<Layout> layouts{
      {1, {}},
      {2, {"--pp", "2", "--micro-batch", "2"}},
      {2, {"--dp", "2", "--recompute", "full", "--micro-batch", "4"}},
      {4, {"--dp", "4", "--zero", "0", "--recompute", "selective"}},
      {4, {"--pp", "4", "--schedule", "zb-h1", "--recompute", "selective", "--schedule-print"}},
      {4, {"--pp", "2", "--dp", "2", "--schedule", "interleaved", "--virtual-stages", "2", "--recompute", "cheap"}}};
  std::map<std::string, uint32_t> weights;
  std::vector<json> first;
  for (size_t i = 0; i < layouts.size(); ++i) {
    SCOPED_TRACE("layout " + std::to_string(i));
    const fs::path out = dir / std::to_string(i);
    std::vector<std::string> args{"train", "--model", data("hf/qwen2-8layers"), "--data", dir / "data.jsonl", "--output", out,
                                  "--steps", "50", "--batch", "8", "--seq-len", "48", "--no-pack", "--lr", "0.002",
                                  "--weight-decay", "0.1", "--clip", "0.5", "--deterministic"};
    args.insert(args.end(), layouts[i].args.begin(), layouts[i].args.end());
    const Result r = run(job(layouts[i].ranks, args), 240);
    ASSERT_EQ(r.code, 0) << r.output;
    EXPECT_NE(r.output.find("deterministic  rows one by one"), std::string::npos) << "the cost is printed: " << r.output;
    const auto now = checksums(out / "step-000050", "weight");
    const std::vector<json> steps = steps_of(out);
    ASSERT_EQ(steps.size(), 50u);
    ASSERT_GE(now.size(), 90u);
    if (i == 0) {
      weights = now;
      first = steps;
      EXPECT_LT(steps.back()["loss"].get<double>(), steps.front()["loss"].get<double>()) << "nothing was learnt";
    }
    EXPECT_TRUE(now == weights);
    if (layouts[i].args.size() > 1 && layouts[i].args.back() == "--schedule-print") {
      EXPECT_NE(r.output.find("0: 0F0"), std::string::npos) << r.output;
      EXPECT_NE(r.output.find("0W7"), std::string::npos) << "the weight gradients of the last row, split off: " << r.output;
      EXPECT_TRUE(bytes_of(out / "schedule.svg").starts_with("<svg")) << bytes_of(out / "schedule.svg").substr(0, 200);
    }
    for (size_t s = 0; s < 50; ++s) {
      EXPECT_EQ(steps[s]["loss"], first[s]["loss"]) << "step " << s + 1;
      EXPECT_EQ(steps[s]["grad_norm"], first[s]["grad_norm"]) << "step " << s + 1;
    }
  }
}

TEST(Deterministic, OneLayoutCostsNothingOnTheCpu) {
  const TempDir dir;
  write_rows(dir / "data.jsonl", 8, 48, 300, {}, 0);
  const Result r = run(job(1, {"train", "--model", data("hf/qwen2-untied"), "--data", dir / "data.jsonl", "--output", dir / "out", "--steps", "2",
                               "--batch", "4", "--micro-batch", "2", "--seq-len", "48", "--no-pack", "--deterministic=run"}), 120);
  ASSERT_EQ(r.code, 0) << r.output;
  EXPECT_NE(r.output.find("deterministic  from run to run of this layout: always so on the CPU, at no cost"), std::string::npos) << r.output;
  EXPECT_NE(r.output.find("2 micro-batches of 2 rows"), std::string::npos) << r.output;
  // The time to the first step is told, and by its phases.
  EXPECT_NE(r.output.find("start      first step "), std::string::npos) << r.output;
  const std::vector<json> first = lines_of(dir / "out", "first_step");
  ASSERT_EQ(first.size(), 1u);
  double sum = 0;
  for (const auto& [phase, seconds] : first[0]["phases"].items()) sum += seconds.get<double>();
  EXPECT_NEAR(sum, first[0]["seconds_since_exec"].get<double>(), 0.1);
  EXPECT_TRUE(first[0]["phases"].contains("loading weights"));
}

/// A copy of qwen2-untied whose embedding of one id is infinite: a sample that holds it has no finite loss.
void write_model_with_infinite_row(const fs::path& to, int id) {
  fs::copy(data("hf/qwen2-untied"), to);
  std::string bytes = bytes_of(to / "model.safetensors");
  uint64_t header = 0;
  std::memcpy(&header, bytes.data(), sizeof header);
  const json entry = json::parse(bytes.substr(8, header))["model.embed_tokens.weight"];
  ASSERT_EQ(entry["dtype"], "F32");
  const auto hidden = entry["shape"][1].get<size_t>();
  const float infinite = std::numeric_limits<float>::infinity();
  for (size_t i = 0; i < hidden; ++i)
    std::memcpy(&bytes[8 + header + entry["data_offsets"][0].get<size_t>() + 4 * (static_cast<size_t>(id) * hidden + i)], &infinite, 4);
  std::ofstream(to / "model.safetensors", std::ios::binary) << bytes;
}

TEST(NotFinite, AStepIsSkippedOnAllRanksAndItsRowsAreNamed) {
  const TempDir dir;
  write_model_with_infinite_row(dir / "model", 77);
  write_rows(dir / "data.jsonl", 16, 48, 300, {9}, 77);  // the third step's second row
  const Result r = run(job(4, {"train", "--model", dir / "model", "--data", dir / "data.jsonl", "--output", dir / "out", "--steps", "4",
                               "--batch", "4", "--seq-len", "48", "--no-pack", "--no-shuffle", "--lr", "0.01", "--save-every", "1",
                               "--pp", "2", "--dp", "2"}), 120);
  ASSERT_EQ(r.code, 0) << r.output;
  EXPECT_NE(r.output.find("rows 8 to 11: data.jsonl:9, data.jsonl:10, data.jsonl:11, data.jsonl:12"), std::string::npos) << r.output;
  const std::vector<json> skipped = lines_of(dir / "out", "skipped");
  ASSERT_EQ(skipped.size(), 1u);
  EXPECT_EQ(skipped[0]["step"], 3);
  EXPECT_EQ(skipped[0]["first_row"], 8);
  EXPECT_EQ(skipped[0]["loss"], "nan");
  EXPECT_EQ(steps_of(dir / "out").back()["skipped_steps"], 1);
  for (const char* kind : {"weight", "exp_avg", "exp_avg_sq"}) {
    const auto before = checksums(dir / "out" / "step-000002", kind), after = checksums(dir / "out" / "step-000003", kind);
    EXPECT_GT(before.size(), 30u);
    EXPECT_TRUE(before == after) << kind << " changed in the skipped step";
    EXPECT_FALSE(before == checksums(dir / "out" / "step-000004", kind)) << kind << " did not change in the next one";
  }
}

TEST(NotFinite, TooManyInARowEndTheJobWith76) {
  const TempDir dir;
  write_model_with_infinite_row(dir / "model", 77);
  write_rows(dir / "data.jsonl", 8, 48, 300, {2, 3, 4, 5, 6, 7}, 77);
  const Result r = run(job(2, {"train", "--model", dir / "model", "--data", dir / "data.jsonl", "--output", dir / "out", "--steps", "8",
                               "--batch", "1", "--seq-len", "48", "--no-pack", "--no-shuffle", "--max-skipped-steps", "2", "--tp", "2"}), 120);
  EXPECT_EQ(r.code, 76) << r.output;
  EXPECT_EQ(lines_of(dir / "out", "skipped").size(), 3u);
  EXPECT_NE(r.output.find("--max-skipped-steps 2"), std::string::npos) << r.output;
  EXPECT_EQ(count(r.output, "FATAL"), 1) << r.output;
}

}  // namespace
}  // namespace r1::test
