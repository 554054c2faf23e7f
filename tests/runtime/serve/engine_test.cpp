// The engine on ranks that are threads: transformers' greedy completions in every layout, samples that do not depend on
// layout, batch or cache size, log-probabilities, and a plan that is what is allocated.
#include "runtime/serve/engine.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <mutex>
#include <nlohmann/json.hpp>

#include "comm/local/local.h"
#include "comm/staged/staged.h"
#include "runtime/checkpoint/hf_model.h"
#include "runtime/device/cuda/cuda_api.h"
#include "runtime/device/cuda_library.h"
#include "runtime/kernels/ops.h"

namespace r1::serve {
namespace {

struct Reference {
  std::vector<int32_t> prompt, completion;
};

struct Fixture {
  checkpoint::HfModelDir dir;
  parallel::ModelConfig config;
  std::vector<Reference> greedy;

  explicit Fixture(const std::string& name)
      : dir(checkpoint::HfModelDir::open(std::string(R1RUN_TEST_DATA) + "/hf/" + name)) {
    config = parallel::parse_model_config(dir.config_json(), name);
    std::ifstream in(dir.path() / "reference.json");
    const nlohmann::json reference = nlohmann::json::parse(in);
    for (const auto& g : reference.at("generate"))
      greedy.push_back(
          {g.at("prompt").get<std::vector<int32_t>>(), g.at("greedy_completion").get<std::vector<int32_t>>()});
  }
};

struct Result {
  std::vector<std::vector<int32_t>> ids;
  std::vector<std::vector<float>> logprobs;
  std::vector<FinishReason> finish;
  int64_t preemptions = 0;
};

struct Setup {
  parallel::MeshShape mesh;
  int64_t sequences = 8, blocks = 64, block_size = 4, chunk = 64, logit_rows = 8, attention_rows = 64;
  bool exact = true, logprobs = false;
  std::vector<int32_t> eos = {};
  DeviceKind device = DeviceKind::kCpu;
};

/// Runs the requests on threads; checks that every rank saw the same tokens, and that the plan is what was allocated.
Result run(const Fixture& f, const Setup& s, const std::vector<Request>& requests) {
  Result result;
  std::mutex mutex;
  bool first = true;
  const Device device{s.device, 0};
  comm::run_ranks(s.mesh.world(), [&](comm::Communicator& threads) {
    const auto world = comm::make_staged(threads.split(0, threads.rank(), "world"));
    const parallel::ModelSpec spec(f.config, s.mesh.tp, s.mesh.pp);
    parallel::ProcessGroups groups(*world, s.mesh, false);
    const Stream stream = backend_of(s.device).create_stream(device);
    parallel::InferenceShape shape{.pass_tokens = 64,
                                   .sequences = s.sequences,
                                   .context = 96,
                                   .block_size = s.block_size,
                                   .blocks = s.blocks,
                                   .logit_rows = s.logit_rows,
                                   .attention_rows = s.attention_rows};
    shape.workspace_bytes = static_cast<int64_t>(kernels::decode_attention_workspace_bytes(
        s.device, s.attention_rows, f.config.heads, f.config.head_dim, shape.context));
    const parallel::InferencePlan plan = parallel::plan_inference(spec, s.mesh, groups.coord(), shape);
    std::vector<models::StageParameters> params;
    params.emplace_back(spec, groups.coord().pp, groups.coord().tp, parallel::NumericFormat{}, device,
                        models::StageParameters::Holds{.training = false}, stream);
    for (size_t i = 0; i < params[0].specs().size(); ++i) {
      const parallel::ParamSpec& p = params[0].specs()[i];
      std::vector<float> values(static_cast<size_t>(p.shard.local_elems(groups.coord().tp)));
      f.dir.read_shard(p.name, p.shard, groups.coord().tp, DType::kF32, values.data());
      models::set_weights(params[0], i, values.data(), stream);
    }
    models::PagedModel model(spec, plan, groups, params, device, stream);
    EXPECT_EQ(model.allocated().cache, plan.bytes().cache);
    EXPECT_EQ(model.allocated().scratch, plan.bytes().scratch);
    EXPECT_EQ(model.allocated().weights, plan.bytes().weights);
    Engine engine(model, groups,
                  {.limits = {.sequences = s.sequences,
                              .pass_tokens = 64,
                              .prefill_chunk = s.chunk,
                              .block_size = s.block_size,
                              .blocks = s.blocks,
                              .depth = s.mesh.pp,
                              .exact = s.exact},
                   .eos_ids = s.eos,
                   .logprobs = s.logprobs});
    Result mine;
    for (const Request& r : requests) EXPECT_EQ(engine.add(r), &r - requests.data());
    mine.ids.resize(requests.size());
    mine.logprobs.resize(requests.size());
    mine.finish.resize(requests.size());
    engine.run(
        [&](const TokenEvent& e) {
          const auto i = static_cast<size_t>(e.request);
          mine.ids[i].push_back(e.token);
          mine.logprobs[i].push_back(e.logprob);
          mine.finish[i] = e.finish;
          return false;
        },
        [] {});
    mine.preemptions = engine.stats().preemptions;
    groups.close();
    world->close();
    const std::scoped_lock lock(mutex);
    if (!first) {
      EXPECT_EQ(mine.ids, result.ids) << "ranks disagree";
      EXPECT_EQ(mine.logprobs, result.logprobs);
    }
    first = false;
    result = mine;
  });
  return result;
}

std::vector<Request> greedy_requests(const Fixture& f) {
  std::vector<Request> out;
  for (const Reference& r : f.greedy)
    out.push_back(
        {.number = out.size(), .prompt = r.prompt, .max_new_tokens = static_cast<int64_t>(r.completion.size())});
  return out;
}

std::vector<Request> sampled_requests(const Fixture& f) {
  std::vector<Request> out;
  for (uint64_t i = 0; i < 9; ++i) {
    Request r{.number = i, .prompt = f.greedy[i % 3].prompt, .max_new_tokens = 30};
    r.sampling = {.temperature = 1, .seed = 11};
    if (i % 3 == 1) r.sampling = {.temperature = 0.8, .top_p = 0.9, .repetition_penalty = 1.2, .seed = 11};
    if (i == 2) r.sampling = {.temperature = 1.1, .top_k = 40, .min_p = 0.01, .seed = 11};
    if (i == 5) r.sampling = {.repetition_penalty = 1.3};
    if (i == 6) r.sampling = {};
    out.push_back(std::move(r));
  }
  return out;
}

TEST(Engine, GreedyCompletionsAreTransformersInEveryLayout) {
  const parallel::MeshShape layouts[] = {{1, 1, 1}, {1, 1, 2}, {1, 1, 3}, {1, 1, 4}, {1, 1, 8},
                                         {2, 1, 1}, {3, 1, 1}, {4, 1, 1}, {2, 1, 4}, {4, 1, 2}};
  for (const char* name : {"qwen2-untied", "qwen2-tied-bf16-sharded", "llama3-ropescaled", "qwen3", "qwen2-8layers"}) {
    const Fixture f(name);
    ASSERT_EQ(f.greedy.size(), 3u);
    for (const parallel::MeshShape& mesh : layouts) {
      SCOPED_TRACE(std::string(name) + " " + mesh.str());
      const Result r = run(f, {.mesh = mesh}, greedy_requests(f));
      for (size_t i = 0; i < f.greedy.size(); ++i) {
        EXPECT_EQ(r.ids[i], f.greedy[i].completion) << "prompt " << i;
        EXPECT_EQ(r.finish[i], FinishReason::kLength);
      }
    }
  }
}

TEST(Engine, GreedyCompletionsAreTransformersOnAGpu) {
  try {
    std::string why;
    if (cuda::api().device_count(&why) == 0) GTEST_SKIP() << "no GPU: " << why;
  } catch (const DeviceError& e) {
    GTEST_SKIP() << e.what();
  }
  // fp32, alone and as ranks that share the GPU through host memory; samples are those of the CPU.
  for (const char* name : {"qwen2-untied", "llama3-ropescaled", "qwen3", "qwen2-8layers"}) {
    const Fixture f(name);
    for (const parallel::MeshShape& mesh : {parallel::MeshShape{1, 1, 1}, {1, 1, 3}, {2, 1, 2}})
      for (const bool exact : {false, true}) {
        SCOPED_TRACE(std::string(name) + " " + mesh.str());
        const Result r =
            run(f, {.mesh = mesh, .exact = exact, .logprobs = true, .device = DeviceKind::kCuda}, greedy_requests(f));
        for (size_t i = 0; i < f.greedy.size(); ++i) EXPECT_EQ(r.ids[i], f.greedy[i].completion) << "prompt " << i;
      }
  }
  const Fixture f("qwen3");
  const std::vector<Request> requests = sampled_requests(f);
  const std::vector<std::vector<int32_t>> on_cpu = run(f, {.mesh = {}}, requests).ids;
  for (const parallel::MeshShape& mesh : {parallel::MeshShape{1, 1, 1}, {1, 1, 3}, {2, 1, 2}})
    EXPECT_EQ(run(f, {.mesh = mesh, .exact = false, .device = DeviceKind::kCuda}, requests).ids, on_cpu) << mesh.str();
}

TEST(Engine, ChunksBlocksAndSlicesOfAnySizeGiveTheSame) {
  const Fixture f("qwen2-untied");
  for (const bool exact : {true, false})
    for (const int64_t chunk : {1, 5, 7, 64})
      for (const int64_t block_size : {1, 3, 16}) {
        SCOPED_TRACE(testing::Message() << "exact " << exact << " chunk " << chunk << " block " << block_size);
        const Result r = run(f,
                             {.mesh = {},
                              .blocks = 200,
                              .block_size = block_size,
                              .chunk = chunk,
                              .logit_rows = 2,
                              .attention_rows = 3,
                              .exact = exact},
                             greedy_requests(f));
        for (size_t i = 0; i < f.greedy.size(); ++i) EXPECT_EQ(r.ids[i], f.greedy[i].completion);
      }
}

TEST(Engine, SamplesDependOnSeedRequestAndPositionOnly) {
  const Fixture f("qwen3");
  const std::vector<Request> requests = sampled_requests(f);
  const Result alone_in_time = run(f, {.mesh = {}, .sequences = 1}, requests);
  EXPECT_NE(alone_in_time.ids[0], alone_in_time.ids[3]) << "the same prompt under another number";
  for (const parallel::MeshShape& mesh :
       {parallel::MeshShape{1, 1, 1}, {1, 1, 3}, {2, 1, 1}, {2, 1, 2}, {4, 1, 1}, {1, 1, 8}})
    for (const int64_t sequences : {2, 9}) {
      SCOPED_TRACE(mesh.str() + fmt::format(" {} at once", sequences));
      EXPECT_EQ(run(f, {.mesh = mesh, .sequences = sequences, .logit_rows = 3}, requests).ids, alone_in_time.ids);
    }
  std::vector<Request> reordered(requests.rbegin(), requests.rend());
  const Result r = run(f, {.mesh = {}}, reordered);
  for (size_t i = 0; i < requests.size(); ++i) EXPECT_EQ(r.ids[i], alone_in_time.ids[requests.size() - 1 - i]);
}

TEST(Engine, BitsDoNotDependOnTheBatch) {
  // Exact mode on CPUs: log-probabilities are bit-equal alone, in a crowd, and after starting over for want of blocks.
  const Fixture f("qwen2-8layers");
  const std::vector<Request> requests = sampled_requests(f);
  const Result alone = run(f, {.mesh = {}, .sequences = 1, .chunk = 16, .logprobs = true}, requests);
  const Result crowd = run(f, {.mesh = {}, .sequences = 8, .blocks = 200, .chunk = 16, .logprobs = true}, requests);
  const Result starved = run(f, {.mesh = {}, .sequences = 8, .blocks = 30, .chunk = 16, .logprobs = true}, requests);
  EXPECT_EQ(crowd.preemptions, 0);
  EXPECT_GT(starved.preemptions, 0);
  EXPECT_EQ(alone.ids, crowd.ids);
  EXPECT_EQ(alone.logprobs, crowd.logprobs);
  EXPECT_EQ(alone.ids, starved.ids);
  EXPECT_EQ(alone.logprobs, starved.logprobs);
}

TEST(Engine, LogprobsAreThoseOfTheReferenceLogits) {
  // The prompt is the front of a row whose logits transformers gave: the first token's log-probability follows from
  // them.
  const Fixture f("llama3-ropescaled");
  const auto ref = checkpoint::SafetensorsFile::open(f.dir.path() / "reference.safetensors");
  const int64_t vocab = f.config.vocab;
  std::vector<int64_t> ids(3 * 48);
  std::vector<float> logits(static_cast<size_t>(3 * 48 * vocab));
  const auto read = [&](const char* name, void* to, size_t bytes) {
    const checkpoint::TensorEntry* e = ref.find(name);
    ASSERT_NE(e, nullptr) << name;
    ref.read_bytes(*e, 0, to, bytes);
  };
  read("input_ids", ids.data(), ids.size() * 8);
  read("logits", logits.data(), logits.size() * 4);
  std::vector<Request> requests;
  for (uint64_t row = 0; row < 3; ++row)
    requests.push_back({.number = row,
                        .prompt = std::vector<int32_t>(ids.begin() + static_cast<int64_t>(row) * 48,
                                                       ids.begin() + static_cast<int64_t>(row) * 48 + 15),
                        .sampling = {.temperature = 2, .top_k = 50, .seed = 2},
                        .max_new_tokens = 1});
  for (const parallel::MeshShape& mesh : {parallel::MeshShape{1, 1, 1}, {2, 1, 3}}) {
    const Result r = run(f, {.mesh = mesh, .logprobs = true}, requests);
    for (size_t row = 0; row < 3; ++row) {
      const float* l = logits.data() + (row * 48 + 14) * static_cast<size_t>(vocab);
      double sum = 0;
      for (int64_t i = 0; i < vocab; ++i) sum += std::exp(static_cast<double>(l[i]));
      ASSERT_EQ(r.ids[row].size(), 1u);
      EXPECT_NEAR(static_cast<double>(r.logprobs[row][0]), static_cast<double>(l[r.ids[row][0]]) - std::log(sum), 2e-5)
          << mesh.str();
    }
  }
}

TEST(Engine, EndsAtEndTokensAndLimits) {
  const Fixture f("qwen2-untied");
  const std::vector<int32_t>& c = f.greedy[0].completion;  // 436 243 484 436 243 135 ...
  std::vector<Request> requests = greedy_requests(f);
  requests[1].ignore_eos = true;
  requests[2].max_new_tokens = 1000;  // the context ends it
  const Result r = run(f, {.mesh = {}, .eos = {c[2], f.greedy[1].completion[0]}}, requests);
  EXPECT_EQ(r.ids[0], std::vector<int32_t>(c.begin(), c.begin() + 3)) << "the end token is part of the ids";
  EXPECT_EQ(r.finish[0], FinishReason::kStop);
  EXPECT_EQ(r.ids[1], f.greedy[1].completion);
  EXPECT_EQ(static_cast<int64_t>(r.ids[2].size() + f.greedy[2].prompt.size()), 96);
  EXPECT_EQ(r.finish[2], FinishReason::kLength);
}

TEST(Engine, RefusesWhatCannotBeAnswered) {
  const Fixture f("qwen2-untied");
  for (const std::vector<int32_t>& prompt :
       {std::vector<int32_t>{}, std::vector<int32_t>{-1}, std::vector<int32_t>{512}, std::vector<int32_t>(96, 1)})
    EXPECT_THROW(run(f, {.mesh = {}}, {{.prompt = prompt, .max_new_tokens = 1}}), UsageError);
}

}  // namespace
}  // namespace r1::serve
