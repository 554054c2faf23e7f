// Loss, logits and every gradient against transformers' references: every fixture in every layout, each job over all schedules
// and all recompute policies.
#include <cstring>
#include <functional>

#include "tests/e2e/support.h"

namespace r1::test {
namespace {

struct Layout {
  int pp, dp, tp;
};
constexpr Layout kLayouts[] = {{1, 1, 1}, {1, 1, 2}, {1, 1, 3}, {1, 1, 4}, {1, 1, 8}, {2, 1, 1},
                               {3, 1, 1}, {4, 1, 1}, {2, 1, 4}, {2, 2, 2}, {4, 2, 1}};
const std::vector<std::string> kFixtures{"qwen2-untied", "qwen2-tied-bf16-sharded", "llama3-ropescaled", "qwen3", "qwen2-8layers"};

void check(const std::string& fixture, const Layout& l) {
  SCOPED_TRACE(fixture + " pp " + std::to_string(l.pp) + " dp " + std::to_string(l.dp) + " tp " + std::to_string(l.tp));
  const TempDir dir;
  const Result r = run(job(l.pp * l.dp * l.tp, {"verify", "--model", data("hf/" + fixture), "--reference",
                                                data("hf/" + fixture + "/reference.safetensors"), "--pp", std::to_string(l.pp), "--dp",
                                                std::to_string(l.dp), "--tp", std::to_string(l.tp), "--json", (dir / "out.json").string()}),
                       240);
  ASSERT_EQ(r.code, 0) << r.output;
  std::ifstream in(dir / "out.json");
  const nlohmann::json out = nlohmann::json::parse(in);
  EXPECT_TRUE(out["pass"].get<bool>());
  EXPECT_TRUE(out["recompute_bit_equal"].get<bool>());
  EXPECT_LE(out["loss_rel_err"].get<double>(), 1e-6);
  EXPECT_LE(out["logits_max_abs_err"].get<double>(), 2e-5);
  EXPECT_GT(out["logits_max_abs_err"].get<double>(), 0.0) << "nothing was compared";
  EXPECT_LE(out["worst_grad"]["rel_l2"].get<double>(), 2e-5);
  EXPECT_GE(out["grads"].size(), 39u) << "every parameter has a gradient to compare";
}

TEST(Parity, AgreesWithTransformersInEveryLayout) {
  for (const Layout& layout : kLayouts)
    for (const std::string& fixture : kFixtures) check(fixture, layout);
}

/// The reference of qwen2-untied with one tensor changed in place, as a file in `dir`.
std::string changed_reference(const TempDir& dir, const std::string& tensor, const std::function<void(char*)>& change) {
  std::string bytes = bytes_of(data("hf/qwen2-untied/reference.safetensors"));
  const auto header = static_cast<size_t>(static_cast<unsigned char>(bytes[0])) + 256 * static_cast<unsigned char>(bytes[1]);
  const auto meta = nlohmann::json::parse(bytes.substr(8, header));
  change(&bytes[8 + header + meta[tensor]["data_offsets"][0].get<size_t>()]);
  const std::filesystem::path path = dir / "wrong.safetensors";
  std::ofstream(path, std::ios::binary) << bytes;
  return path.string();
}

TEST(Parity, AWrongReferenceFails) {
  // One exponent bit of the last tensor (a gradient) flipped: the table must show it and the job must fail.
  const TempDir dir;
  const std::string wrong = changed_reference(dir, "grad.model.norm.weight", [](char* at) { at[3] = static_cast<char>(at[3] ^ 0x10); });
  const Result r = run(job(2, {"verify", "--model", data("hf/qwen2-untied"), "--reference", wrong, "--tp", "2",
                               "--schedule", "1f1b", "--recompute", "none"}), 60);
  EXPECT_EQ(r.code, 65) << r.output;
  EXPECT_NE(r.output.find("model.norm.weight"), std::string::npos) << r.output;
}

TEST(Parity, ALabelBeyondTheVocabularyIsRefused) {
  const TempDir dir;
  const int64_t label = int64_t{1} << 40;
  const std::string wrong = changed_reference(dir, "labels", [&](char* at) { std::memcpy(at, &label, sizeof label); });
  const Result r = run(job(1, {"verify", "--model", data("hf/qwen2-untied"), "--reference", wrong}), 60);
  EXPECT_EQ(r.code, 65) << r.output;
  EXPECT_NE(r.output.find("labels has 1099511627776"), std::string::npos) << r.output;
}

}  // namespace
}  // namespace r1::test
