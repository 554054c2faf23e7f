// `r1run plan` on described machines: the figures add up, the search finds what fits, a refusal names changes that do fit.
#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "launch/plan.h"
#include "tests/support/expect_error.h"

namespace r1::launch {
namespace {

PlanReport plan(const std::vector<std::string>& args) {
  const JobConfig cfg = parse_options("plan", args);
  std::string name;
  const parallel::ModelConfig model = planned_model(cfg.model, &name);
  return make_plan(cfg, name, model, Catalogue::built_in().cluster(cfg.cluster));
}

TEST(Plan, ASearchEndsWithTheFastestThatFits) {
  const PlanReport r = plan({"--cluster", "4xA100-80", "--model", "R1-Distill-Qwen-7B", "--batch", "64"});
  ASSERT_TRUE(r.fits());
  ASSERT_TRUE(r.searched);
  ASSERT_GE(r.ranking.size(), 5U);
  bool fitting = true;
  for (size_t i = 1; i < r.ranking.size(); ++i) {
    if (!r.ranking[i].fits) fitting = false;
    else EXPECT_TRUE(fitting) << "what does not fit comes last";
    if (r.ranking[i].fits) {
      EXPECT_LE(r.ranking[i].time.tokens_per_s, r.ranking[i - 1].time.tokens_per_s);
    }
    EXPECT_EQ(r.ranking[i].job.mesh.world(), 4);
    EXPECT_FALSE(r.ranking[i].reason.empty());
  }
  for (const PlannedRank& k : r.ranks) EXPECT_LE(k.plan.bytes().total(), r.capacity_bytes);
}

// What a GPU holds beside the plan is shown and taken off what can be used: measured 1.47 to 1.61 GiB on an H200, communicators apart.
TEST(Plan, MemoryBesideThePlanIsCounted) {
  const auto beside = [](const PlanReport& r, const std::string& category) {
    int64_t sum = 0;
    for (const auto& i : r.beside) sum += category.empty() || i.category == category ? i.bytes : 0;
    return sum;
  };
  const PlanReport one = plan({"--cluster", "1xH200", "--model", "R1-Distill-Qwen-7B", "--batch", "8", "--tp", "1"});
  EXPECT_GE(beside(one, ""), int64_t{1610} << 20);
  EXPECT_LE(beside(one, ""), int64_t{1700} << 20);
  EXPECT_EQ(beside(one, "workspace"), int64_t{64} << 20);
  EXPECT_EQ(beside(one, "NCCL buffers"), 0);
  EXPECT_EQ(one.capacity_bytes, one.cluster.device.memory_bytes - beside(one, ""));
  const PlanReport four = plan({"--cluster", "4xA100-80", "--model", "R1-Distill-Qwen-7B", "--batch", "8", "--pp", "2", "--tp", "2"});
  EXPECT_GT(beside(four, "NCCL buffers"), 0);
  EXPECT_EQ(beside(plan({"--cluster", "4xA100-80", "--model", "R1-Distill-Qwen-7B", "--batch", "8", "--pp", "2", "--tp", "2", "--comm", "ipc"}), "NCCL buffers"), 0);
  // Of tp, pp and their replica; a group over hosts has none.
  EXPECT_EQ(beside(four, "ipc buffers"), static_cast<int64_t>(2 * ipc_group_bytes(2, true) + ipc_group_bytes(4, true)));
  // Four ranks on two GPUs: tp and replica have both, the ranks of dp share one and have no kernels.
  EXPECT_EQ(beside(plan({"--cluster", "2xH200", "--model", "R1-Distill-Qwen-7B", "--batch", "8", "--dp", "2", "--tp", "2"}), "ipc buffers"),
            static_cast<int64_t>(2 * ipc_group_bytes(2, true) + ipc_group_bytes(2, false)));
  const PlanReport apart = plan({"--cluster", "2x1xH200", "--model", "R1-Distill-Qwen-7B", "--batch", "8", "--pp", "2"});
  EXPECT_EQ(beside(apart, "ipc buffers"), 0);
}

TEST(Plan, SaysWhatCarriesEachGroup) {
  const auto carried = [](const std::vector<std::string>& more) {
    std::vector<std::string> args{"--model", "R1-Distill-Qwen-1.5B", "--batch", "8"};
    args.insert(args.end(), more.begin(), more.end());
    std::map<std::string, std::string> out;
    for (const PlannedGroup& g : plan(args).groups) out[g.kind] = group_text(g);
    return out;
  };
  const auto two = carried({"--cluster", "2xproduction", "--pp", "2", "--tp", "4"});
  EXPECT_EQ(two.at("tp"), "2 groups of 4 ranks [0,1,2,3] and so on, on one host: nccl, small collectives and messages ipc");
  EXPECT_EQ(two.at("pp"), "4 groups of 2 ranks [0,4] and so on, over 2 hosts: nccl");
  EXPECT_FALSE(two.contains("dp"));
  EXPECT_EQ(carried({"--cluster", "production", "--pp", "2", "--tp", "4"}).at("replica").find("ipc"), std::string("1 group of 8 ranks [0,1,2,3,...,7], on one host: ").size());
  EXPECT_NE(carried({"--cluster", "2xEPYC-7763", "--pp", "2", "--tp", "2"}).at("tp").find(": mpi"), std::string::npos);
  EXPECT_THROW((void)carried({"--cluster", "2xproduction", "--pp", "2", "--tp", "4", "--comm", "ipc"}), UsageError);
}

// --deterministic: rows one by one, partial sums of gradients in memory, and the time of adding them up.
TEST(Plan, DeterministicHasItsPrice) {
  const std::vector<std::string> args{"--cluster", "4xA100-80", "--model", "R1-Distill-Qwen-1.5B", "--batch", "32", "--dp", "2", "--tp", "2",
                                      "--micro-batch", "4"};
  const PlanReport usual = plan(args);
  std::vector<std::string> more = args;
  more.emplace_back("--deterministic");
  const PlanReport fixed = plan(more);
  EXPECT_EQ(fixed.chosen.job.micro_batch, 1);
  // 16 rows a replica: five partial sums at once.
  EXPECT_EQ(fixed.ranks[0].plan.gradient_slots(), 5);
  const int64_t one = parallel::category_bytes(usual.ranks[0].memory, "gradients");
  EXPECT_EQ(parallel::category_bytes(fixed.ranks[0].memory, "gradients"), 5 * one + (fixed.ranks[0].plan.chunks[0].tied_head_elems) * 5 * 4);
  EXPECT_GT(fixed.chosen.time.row_sums, 0);
  EXPECT_EQ(usual.chosen.time.row_sums, 0);
  EXPECT_NE(fixed.flags.find("--deterministic"), std::string::npos);
  int64_t sum = 0;
  for (const auto& i : fixed.ranks[0].memory) sum += i.bytes;
  EXPECT_EQ(sum, fixed.ranks[0].plan.bytes().total());
}

TEST(Plan, PartsAddUp) {
  for (const std::vector<std::string>& layout : std::vector<std::vector<std::string>>{
           {"--pp", "2", "--tp", "4"}, {"--pp", "4", "--tp", "2", "--schedule", "zb-h1"}, {"--pp", "2", "--dp", "2", "--tp", "2"},
           {"--pp", "4", "--tp", "2", "--schedule", "interleaved", "--virtual-stages", "2", "--recompute", "full"}}) {
    std::vector<std::string> args{"--cluster", "2xproduction", "--model", "R1-Distill-Qwen-1.5B", "--batch", "32"};
    args.insert(args.end(), layout.begin(), layout.end());
    const PlanReport r = plan(args);
    const parallel::StepTime& t = r.chosen.time;
    EXPECT_FALSE(r.searched);
    EXPECT_NEAR(t.gemm + t.head + t.attention + t.elementwise + t.recompute + t.overhead + t.tp_comm + t.pp_comm + t.bubble +
                    t.dp_comm + t.optimizer, t.total, 1e-9 * t.total);
    EXPECT_GE(t.bubble, -1e-12);
    EXPECT_GE(t.pp_comm, -1e-12);
    for (const PlannedRank& k : r.ranks) {
      int64_t sum = 0, by_category = 0;
      for (const auto& i : k.memory) sum += i.bytes;
      for (const auto& c : parallel::memory_categories()) by_category += parallel::category_bytes(k.memory, c);
      EXPECT_EQ(sum, k.plan.bytes().total());
      EXPECT_EQ(by_category, sum);
    }
    const auto j = nlohmann::json::parse(plan_json(r));
    EXPECT_EQ(j["ranks"].size(), 8U / static_cast<size_t>(r.chosen.job.mesh.dp));
    EXPECT_EQ(j["layout"]["pp"], r.chosen.job.mesh.pp);
    EXPECT_EQ(j["ranks"][0]["bytes"], r.ranks[0].plan.bytes().total());
  }
}

/// `args` with a change as it is printed ("--pp 2 --recompute full"): options that are there already are replaced.
std::vector<std::string> changed(std::vector<std::string> args, const std::string& change) {
  std::istringstream words(change);
  for (std::string option, value; words >> option >> value;) {
    const auto same = std::ranges::find(args, option);
    if (same != args.end()) args.erase(same, same + 2);
    args.insert(args.end(), {option, value});
  }
  return args;
}

/// Each remedy, typed as it is printed, fits and is what was promised: bytes, policy, seconds, price.
void expect_as_printed(const std::vector<std::string>& args, const PlanReport& r,
                       const std::function<PlanReport(const std::vector<std::string>&)>& plan_of) {
  for (size_t i = 0; i < r.remedies.size(); ++i) {
    const parallel::Remedy& m = r.remedies[i];
    SCOPED_TRACE(r.cluster.text + ": " + m.change);
    if (i > 0) {
      EXPECT_GE(m.slowdown, r.remedies[i - 1].slowdown);
    }
    const PlanReport again = plan_of(changed(args, m.change));
    EXPECT_TRUE(again.fits());
    EXPECT_EQ(again.chosen.largest_bytes, m.largest_bytes);
    EXPECT_EQ(again.chosen.job.recompute_text(), m.policy);
    EXPECT_EQ(again.chosen.job.mesh.world(), m.ranks);
    EXPECT_NEAR(again.chosen.time.total, m.seconds, 1e-9 * m.seconds);
    EXPECT_NEAR(again.chosen.time.total / r.chosen.time.total - 1, m.slowdown, 1e-9);
    EXPECT_NE(r.refusal().find(m.change), std::string::npos);
  }
}

TEST(Plan, ARefusalNamesChangesThatFit) {
  for (const std::vector<std::string>& job : std::vector<std::vector<std::string>>{
           {"--cluster", "4xA100-80", "--model", "R1-Distill-Qwen-14B", "--tp", "4", "--micro-batch", "8", "--seq-len", "4096"},
           // What a search or --recompute auto picks anew with the change counts, not what it picked without.
           {"--cluster", "1xA100-80", "--model", "R1-Distill-Qwen-7B"},
           {"--cluster", "1xA100-80", "--model", "R1-Distill-Qwen-7B", "--tp", "1", "--recompute", "auto"},
           {"--cluster", "2xA100-40", "--model", "R1-Distill-Qwen-14B", "--batch", "64", "--seq-len", "4096"}}) {
    const PlanReport r = plan(job);
    ASSERT_FALSE(r.fits()) << job[1];
    ASSERT_FALSE(r.remedies.empty()) << job[1];
    EXPECT_NE(r.refusal().find("does not fit"), std::string::npos);
    expect_as_printed(job, r, plan);
  }
}

TEST(Plan, RemediesOfAComparisonAreWhatTheirMachineWouldDo) {
  const std::vector<std::string> job{"--cluster", "upgrade", "--model", "R1-Distill-Qwen-32B"};
  size_t remedies = 0;
  for (const PlannedCluster& machine : Catalogue::built_in().clusters("upgrade")) {
    const auto on_it = [&](const std::vector<std::string>& args) {
      const JobConfig cfg = parse_options("plan", args);
      std::string name;
      const parallel::ModelConfig model = planned_model(cfg.model, &name);
      return make_plan(cfg, name, model, machine);
    };
    const PlanReport r = on_it(job);
    remedies += r.remedies.size();
    if (!r.remedies.empty()) {
      EXPECT_NE(comparison_text({r}).find(r.remedies.front().change + " ("), std::string::npos);
    }
    expect_as_printed(job, r, on_it);
  }
  EXPECT_GT(remedies, 0U);
}

// --offload: what leaves the device is on the host, byte for byte; the step waits for the host link where nothing hides it.
TEST(Plan, OffloadMovesMemoryToTheHostAndTakesTime) {
  const std::vector<std::string> job{"--cluster", "ndv5", "--model", "R1-Distill-Qwen-7B", "--dp", "2", "--tp", "2", "--batch", "16",
                                     "--seq-len", "4096", "--recompute", "full"};
  const auto with = [&](const std::string& what) { return plan(changed(job, "--offload " + what)); };
  const PlanReport plain = plan(job), state = with("optimizer"), inputs = with("activations"), both = with("optimizer,activations");
  const auto bytes = [](const PlanReport& r) { return r.ranks.front().plan.bytes(); };
  EXPECT_EQ(bytes(plain).host, 0);
  EXPECT_EQ(plain.chosen.host_bytes, 0);
  EXPECT_EQ(bytes(state).host, bytes(plain).optimizer);
  EXPECT_EQ(bytes(plain).total() - bytes(state).total(), bytes(plain).optimizer);
  EXPECT_EQ(bytes(both).host, bytes(state).host + bytes(inputs).host);
  // 27 of 28 block inputs of one micro-batch: 1 row of 4096 tokens over 2 tp ranks, 3584 wide, bf16.
  EXPECT_EQ(bytes(inputs).host, int64_t{27} * 2048 * 3584 * 2);
  EXPECT_LT(bytes(inputs).total(), bytes(plain).total());
  for (const PlanReport& r : {state, inputs, both}) {
    EXPECT_TRUE(r.fits());
    int64_t sum = 0, host = 0;
    for (const auto& i : r.ranks.front().memory) sum += i.bytes;
    for (const auto& i : r.ranks.front().host) host += i.bytes;
    EXPECT_EQ(sum, bytes(r).total());
    EXPECT_EQ(host, bytes(r).host);
    EXPECT_EQ(r.chosen.host_bytes, 4 * bytes(r).host) << "four ranks on a host";
    const parallel::StepTime& t = r.chosen.time;
    EXPECT_NEAR(t.gemm + t.head + t.attention + t.elementwise + t.recompute + t.overhead + t.tp_comm + t.pp_comm + t.bubble + t.dp_comm +
                    t.optimizer + t.offload, t.total, 1e-9 * t.total);
    const auto j = nlohmann::json::parse(plan_json(r));
    EXPECT_EQ(j["ranks"][0]["host_bytes"], bytes(r).host);
    EXPECT_EQ(j["layout"]["offload"], r.chosen.job.offload_text());
    EXPECT_NE(plan_text(r).find("on its host"), std::string::npos);
    EXPECT_NE(r.flags.find("--offload " + r.chosen.job.offload_text()), std::string::npos);
    EXPECT_TRUE(plan_html(r).find("pinned on its host") != std::string::npos);
  }
  // Half of the state's bytes in each direction, at once, over PCIe 5 at 48 GB/s x 0.75, less what the update takes by itself.
  const double link = static_cast<double>(bytes(state).host) / (48e9 * 0.75);
  EXPECT_GT(state.chosen.time.offload, 0.9 * link);
  EXPECT_LE(state.chosen.time.offload, link * 1.001);
  EXPECT_NEAR(state.chosen.time.total + (plain.chosen.time.optimizer - state.chosen.time.optimizer), plain.chosen.time.total + state.chosen.time.offload,
              1e-6 * plain.chosen.time.total);
  // A block's input is on its way for less time than the block takes: nothing shows.
  EXPECT_EQ(inputs.chosen.time.offload, 0);
  EXPECT_NEAR(inputs.chosen.time.total, plain.chosen.time.total, 1e-9);
}

TEST(Plan, ASlowHostLinkShowsInEveryBlock) {
  Catalogue catalogue = Catalogue::built_in();
  catalogue.add(R"({"links": {"string": {"gbytes_per_s": 0.05}},
                    "devices": [{"name": "tied", "title": "tied", "sm": 90, "memory_gib": 80, "memory_gbytes_per_s": 3350, "bf16_tflops": 989,
                     "fp32_tflops": 67, "gemm": 0.7, "attention": [0.5, 0.5], "copy": 0.9, "basis": "estimate", "peer": "PCIe5",
                     "network": "NDR", "host": "string"}]})", "test");
  const auto on = [&](const std::vector<std::string>& more) {
    std::vector<std::string> args{"--cluster", "tied", "--model", "R1-Distill-Qwen-1.5B", "--tp", "1", "--batch", "4", "--recompute", "full"};
    args.insert(args.end(), more.begin(), more.end());
    const JobConfig cfg = parse_options("plan", args);
    std::string name;
    const parallel::ModelConfig model = planned_model(cfg.model, &name);
    return make_plan(cfg, name, model, catalogue.cluster(cfg.cluster));
  };
  const PlanReport inputs = on({"--offload", "activations"});
  // 27 inputs of 1024 x 1536 in bf16, there and back, for each of 4 rows; nothing else takes so long.
  const double there = 27.0 * 1024 * 1536 * 2 / 0.05e9;
  EXPECT_NEAR(inputs.chosen.time.total, 4 * 2 * there + inputs.chosen.time.optimizer, 1e-6 * inputs.chosen.time.total);
  EXPECT_GT(inputs.chosen.time.offload, 0.5 * inputs.chosen.time.total);
}

TEST(Plan, OffloadIsRefusedWhereItCannotBe) {
  const std::string m = "R1-Distill-Qwen-7B";
  EXPECT_ERROR(UsageError, (void)plan({"--cluster", "2xEPYC-7763", "--model", m, "--offload", "optimizer"}), "needs a GPU");
  EXPECT_ERROR(UsageError, (void)plan({"--cluster", "1xH200", "--model", m, "--tp", "1", "--offload", "activations"}), "--recompute full");
  EXPECT_ERROR(UsageError, (void)plan({"--cluster", "1xH200", "--model", m, "--recompute", "auto", "--offload", "activations"}), "--recompute full");
  // A search picks the policy that goes with it.
  EXPECT_EQ(plan({"--cluster", "1xH200", "--model", m, "--offload", "activations"}).chosen.job.recompute_text(), "full");
  // More than the host has: said as such, in bytes.
  const PlanReport r = plan({"--cluster", "1xA100-80", "--model", "R1-Distill-Qwen-14B", "--tp", "1", "--recompute", "full", "--offload", "optimizer"});
  EXPECT_FALSE(r.fits());
  EXPECT_GT(r.chosen.host_bytes, r.host_capacity_bytes);
  EXPECT_NE(r.refusal().find("--offload optimizer pins"), std::string::npos) << r.refusal();
}

// Nothing but the host's memory helps: it is suggested, with its price.
TEST(Plan, OffloadIsSuggestedWhenNothingElseFits) {
  const std::vector<std::string> job{"--cluster", "1xA100-40", "--model", "R1-Distill-Qwen-7B", "--tp", "1", "--recompute", "full",
                                     "--state-dtype", "bf16", "--seq-len", "1024"};
  const PlanReport r = plan(job);
  ASSERT_FALSE(r.fits());
  ASSERT_FALSE(r.remedies.empty());
  for (const parallel::Remedy& m : r.remedies) {
    EXPECT_NE(m.change.find("--offload"), std::string::npos) << m.change;
    EXPECT_GT(m.slowdown, 0);
  }
  expect_as_printed(job, r, plan);
  // Also where the policy is left to r1run: block inputs are only moved under full recomputation, which is then asked for.
  std::vector<std::string> automatic = job;
  *std::ranges::find(automatic, "full") = "auto";
  const PlanReport a = plan(automatic);
  EXPECT_TRUE(std::ranges::any_of(a.remedies, [](const parallel::Remedy& m) {
    return m.change.find("activations") != std::string::npos && m.change.find("--recompute full") != std::string::npos;
  }));
  expect_as_printed(automatic, a, plan);
  // Where something else does, it is not.
  for (const parallel::Remedy& m : plan({"--cluster", "1xA100-80", "--model", "R1-Distill-Qwen-7B"}).remedies)
    EXPECT_EQ(m.change.find("--offload"), std::string::npos) << m.change;
}

TEST(Plan, MoreMemoryMakesRecomputationUnnecessary) {
  const std::vector<std::string> job{"--model", "R1-Distill-Qwen-7B", "--tp", "4", "--recompute", "auto", "--micro-batch", "8",
                                     "--seq-len", "4096", "--cluster"};
  const auto on = [&](const char* cluster) {
    std::vector<std::string> args = job;
    args.emplace_back(cluster);
    return plan(args);
  };
  const PlanReport small = on("4xA100-40"), middle = on("4xA100-80"), large = on("4xH200");
  EXPECT_TRUE(middle.fits());
  EXPECT_TRUE(large.fits());
  EXPECT_EQ(large.chosen.job.recompute_of(0), parallel::Recompute::kNone);
  EXPECT_GE(middle.chosen.job.recompute_of(0), large.chosen.job.recompute_of(0));
  EXPECT_GE(small.chosen.job.recompute_of(0), middle.chosen.job.recompute_of(0));
}

TEST(Plan, PolicyFollowsTheStage) {
  // The first stage of 1F1B holds most micro-batches: it has to recompute where the last need not.
  const PlanReport r = plan({"--cluster", "4xA100-80", "--model", "R1-Distill-Qwen-7B", "--pp", "4", "--recompute", "auto", "--batch",
                             "64", "--micro-batch", "8", "--seq-len", "4096"});
  ASSERT_TRUE(r.fits());
  ASSERT_EQ(r.chosen.job.recompute.size(), 4U);
  EXPECT_GT(r.chosen.job.recompute[0], r.chosen.job.recompute[3]);
}

TEST(Plan, SaysWhatIsBad) {
  const auto warns = [](const std::vector<std::string>& args, const char* what) {
    const PlanReport r = plan(args);
    for (const auto& w : r.warnings)
      if (w.find(what) != std::string::npos) return true;
    return false;
  };
  const std::string m = "R1-Distill-Qwen-1.5B";
  EXPECT_TRUE(warns({"--cluster", "production", "--model", m, "--pp", "2", "--tp", "4"}, "8 ranks on 4 GPUs"));
  EXPECT_TRUE(warns({"--cluster", "2xproduction", "--model", m, "--tp", "8"}, "crosses 2 hosts"));
  EXPECT_TRUE(warns({"--cluster", "4xRTX-4090", "--model", m, "--tp", "4"}, "no NVLink"));
  EXPECT_TRUE(warns({"--cluster", "V100", "--model", m}, "CUDA 13"));
  EXPECT_TRUE(warns({"--cluster", "T4", "--model", m}, "no bf16"));
  EXPECT_TRUE(warns({"--cluster", "cpu-only", "--model", m}, "below 1B"));
  EXPECT_TRUE(warns({"--cluster", "4xH100", "--model", m, "--tp", "2"}, "left idle"));
  EXPECT_TRUE(warns({"--cluster", "2xA100-80/3g.40gb", "--model", m, "--tp", "2"}, "MIG"));
  EXPECT_FALSE(warns({"--cluster", "2xproduction", "--model", m, "--pp", "2", "--tp", "4"}, "cross"));
}

TEST(Plan, PricesAreCounted) {
  const PlanReport r = plan({"--cluster", "2xndv4", "--model", "R1-Distill-Qwen-7B", "--price", "10"});
  ASSERT_TRUE(r.usd_per_million_tokens.has_value());
  EXPECT_NEAR(*r.usd_per_million_tokens, 10.0 / 3600 / r.chosen.time.tokens_per_s * 1e6, 1e-9);
}

TEST(Plan, UnknownModelsAreNamed) {
  std::string name;
  EXPECT_ERROR(UsageError, planned_model("R1-Distill-Qwen-33B", &name), "R1-Distill-Qwen-32B");
  EXPECT_EQ(planned_model("", &name).parameters(), model_by_name("built-in")->parameters());
}

}  // namespace
}  // namespace r1::launch
