// The engine on ranks that are threads: gradients against central differences, allocations against the plan.
#include "runtime/train/engine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <mutex>
#include <optional>
#include <utility>

#include "comm/local/local.h"
#include "runtime/core/rng.h"
#include "runtime/train/batches.h"

namespace r1::train {
namespace {

parallel::ModelConfig tiny(const std::string& architecture, bool tied) {
  const std::string json = fmt::format(
      R"({{"architectures": ["{}"], "hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 2,
          "head_dim": 8, "intermediate_size": 40, "vocab_size": 37, "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
          "tie_word_embeddings": {}, "hidden_act": "silu", "initializer_range": 0.2, "rope_theta": 10000.0}})",
      architecture, tied);
  return parallel::parse_model_config(json, "test");
}

models::HostBatch make_batch(const parallel::ModelConfig& c, int64_t rows, int64_t seq, uint64_t seed) {
  models::HostBatch b;
  const Rng rng(seed, "batch");
  for (int64_t r = 0; r < rows; ++r) {
    data::Row row;
    for (int64_t t = 0; t < seq; ++t) {
      const auto id = [&](int64_t i) { return static_cast<int32_t>(rng.below(static_cast<uint64_t>(r * 1000 + i), static_cast<uint64_t>(c.vocab))); };
      row.ids.push_back(id(t));
      row.targets.push_back(t + 1 == seq || t == 4 ? -1 : id(t + 1));
      row.trained_tokens += row.targets.back() >= 0 ? 1 : 0;
    }
    row.segments = {5, static_cast<int32_t>(seq - 5)};  // two packed samples
    append_row(b, row);
  }
  return b;
}

void initialise(Engine& engine, uint64_t seed) {
  for (const models::StageParameters& p : engine.model().parameters())
    models::initialise(p, engine.spec().config(), seed, engine.stream());
}

/// d loss / d w by central differences for the elements with the largest gradients of every parameter.
void check_gradients(const std::string& architecture, bool tied) {
  SCOPED_TRACE(architecture + (tied ? " tied" : ""));
  const parallel::ModelConfig c = tiny(architecture, tied);
  auto world = comm::make_self();
  EngineOptions o{.mesh = {}, .tokens = 2 * 11};
  Engine engine(c, o, *world);
  initialise(engine, 3);
  const models::HostBatch batch = make_batch(c, 2, 11, 5);
  engine.forward_backward({&batch, 1}, batch.trained_tokens);
  const models::StageParameters& params = engine.model().parameters().front();
  int checked = 0;
  for (size_t i = 0; i < params.specs().size(); ++i) {
    const std::vector<float> gradient = models::host_values(params, params.gradients(), i, engine.stream());
    auto* w = params.part(params.weights(), i).ptr<float>();
    const auto at = static_cast<size_t>(std::max_element(gradient.begin(), gradient.end(), [](float a, float b) {
                                          return std::abs(a) < std::abs(b); }) - gradient.begin());
    const float saved = w[at], h = 4e-3F;
    const auto loss = [&](float value) {
      w[at] = value;
      return engine.forward_only({&batch, 1}) / static_cast<double>(batch.trained_tokens);
    };
    const double numeric = (loss(saved + h) - loss(saved - h)) / (2.0 * static_cast<double>(h));
    w[at] = saved;
    // fp32 losses carry 1e-7 of rounding, which h divides; h itself adds a term of third order.
    EXPECT_NEAR(static_cast<double>(gradient[at]), numeric, 1e-2 * std::abs(numeric) + 2e-4) << params.specs()[i].name;
    ++checked;
  }
  EXPECT_EQ(checked, static_cast<int>(params.specs().size()));
  engine.close();
}

TEST(Engine, GradientsAgreeWithCentralDifferences) {
  check_gradients("Qwen2ForCausalLM", false);
  check_gradients("Qwen2ForCausalLM", true);
  check_gradients("LlamaForCausalLM", false);
  check_gradients("Qwen3ForCausalLM", false);
}

TEST(Engine, AllocatesExactlyWhatThePlanSays) {
  const parallel::ModelConfig c = tiny("Qwen3ForCausalLM", true);
  const parallel::MeshShape meshes[] = {{1, 1, 1}, {1, 1, 3}, {2, 1, 1}, {2, 1, 2}, {4, 1, 1}, {1, 2, 2}, {2, 3, 1}};
  for (const parallel::MeshShape& mesh : meshes)
    for (const char* schedule : {"gpipe", "1f1b", "zb-h1", "interleaved"})
      for (const parallel::Recompute r : {parallel::Recompute::kNone, parallel::Recompute::kFull}) {
        if (std::string(schedule) == "interleaved" && mesh.pp > 2) continue;  // four layers
        SCOPED_TRACE(mesh.str() + " " + schedule + " " + recompute_name(r));
        comm::run_ranks(mesh.world(), [&](comm::Communicator& world) {
          EngineOptions o{.mesh = mesh, .schedule = schedule, .virtual_stages = std::string(schedule) == "interleaved" ? 2 : 1,
                                .microbatches = 3, .tokens = 11, .recompute = r};
          if (r == parallel::Recompute::kFull) o.tree_rows = 3 * mesh.dp - 1;  // --deterministic, a row short
          Engine engine(c, o, world);
          const auto planned = plan_for(c, o, world.rank()).bytes(), allocated = engine.model().allocated();
          EXPECT_EQ(allocated.weights, planned.weights);
          EXPECT_EQ(allocated.gradients, planned.gradients);
          EXPECT_EQ(allocated.optimizer, planned.optimizer);
          EXPECT_EQ(allocated.activations, planned.activations);
          EXPECT_EQ(allocated.scratch, planned.scratch);
          // Adam's two moments: a shard is a dp-th, but for what does not divide and for alignment.
          int64_t elems = 0, rows = 0;
          for (const models::StageParameters& p : engine.model().parameters())
            for (const parallel::ParamSpec& s : p.specs()) {
              elems += s.shard.local_elems(p.tp_rank());
              rows += s.shape.back() + 128;
            }
          if (mesh.dp > 1) {
            EXPECT_LE(planned.optimizer, 8 * (elems / mesh.dp + rows));
          }
          engine.close();
        });
      }
}

/// Losses, norms and the weights after some steps of a job.
struct Outcome {
  std::vector<double> losses, norms;
  std::map<std::string, std::vector<float>> weights;  ///< by name and tp rank
  friend bool operator==(const Outcome&, const Outcome&) = default;
};

/// `before_step` is called with each virtual stage's parameters.
Outcome train(const parallel::ModelConfig& c, EngineOptions o, const std::vector<models::HostBatch>& rows, int steps = 3,
              const std::function<void(const models::StageParameters&)>& before_step = {}) {
  Outcome out;
  std::mutex mutex;
  o.adamw = {.weight_decay = 0.1, .clip = 0.5};
  int64_t trained = 0;
  for (const models::HostBatch& b : rows) trained += b.trained_tokens;
  comm::run_ranks(o.mesh.world(), [&](comm::Communicator& world) {
    Engine engine(c, o, world);
    initialise(engine, 3);
    const parallel::Interval mine = parallel::even_part(static_cast<int64_t>(rows.size()), engine.groups().coord().dp, o.mesh.dp);
    std::vector<models::HostBatch> batches(rows.begin() + mine.begin, rows.begin() + mine.end);
    while (static_cast<int>(batches.size()) < o.microbatches) append_masked_row(batches.emplace_back(), o.tokens, 0);
    for (int step = 1; step <= steps; ++step) {
      if (before_step)
        for (const models::StageParameters& p : engine.model().parameters()) before_step(p);
      const auto [loss, norm] = engine.train_step(batches, trained, 1e-2, step);
      if (world.rank() != 0) continue;
      out.losses.push_back(loss);
      out.norms.push_back(norm);
    }
    for (const models::StageParameters& p : engine.model().parameters())
      for (size_t i = 0; i < p.specs().size(); ++i) {
        const std::vector<float> values = models::host_values(p, p.weights(), i, engine.stream());
        const std::scoped_lock lock(mutex);
        const auto [at, first] = out.weights.emplace(fmt::format("{} tp {}", p.specs()[i].name, p.tp_rank()), values);
        EXPECT_TRUE(first || at->second == values) << at->first << " differs between replicas or ends";
      }
    engine.close();
  });
  return out;
}

TEST(Engine, ShardedOptimizerIsBitEqualToAWholeOne) {
  const std::vector<parallel::MeshShape> meshes{{1, 2, 1}, {1, 3, 1}, {2, 2, 1}, {1, 2, 4}, {2, 2, 2}};
  for (const bool tied : {false, true})
    for (const parallel::MeshShape& mesh : meshes)
      for (const char* schedule : {"1f1b", "zb-h1", "interleaved"}) {
        const bool interleaved = std::string(schedule) == "interleaved";
        if (interleaved && mesh.pp == 1) continue;
        SCOPED_TRACE(mesh.str() + " " + schedule + (tied ? " tied" : ""));
        const parallel::ModelConfig c = tiny("Qwen3ForCausalLM", tied);
        std::vector<models::HostBatch> rows;
        for (uint64_t r = 0; r < static_cast<uint64_t>(2 * mesh.dp); ++r) rows.push_back(make_batch(c, 1, 11, 20 + r));
        EngineOptions o{.mesh = mesh, .schedule = schedule, .virtual_stages = interleaved ? 2 : 1, .microbatches = 2, .tokens = 11};
        o.zero = 0;
        const Outcome whole = train(c, o, rows);
        o.zero = 1;
        EXPECT_TRUE(train(c, o, rows) == whole);
        EXPECT_GT(whole.losses.front(), whole.losses.back()) << "nothing was learnt";
        EXPECT_GT(whole.norms.front(), 0.5) << "nothing was clipped";
      }
}

TEST(Engine, NothingIsLeftOfAnEarlierStepsGradients) {
  // Every gradient is written or cleared before anything is added to it: what was there before does not count.
  const auto poison = [](const models::StageParameters& p) {
    const auto fill = [](const Tensor& t) { std::fill_n(t.ptr<float>(), t.numel(), std::numeric_limits<float>::quiet_NaN()); };
    for (size_t k = 0; k < p.gradient_slots(); ++k) {
      for (size_t i = 0; i < p.specs().size(); ++i) fill(p.part(p.gradient_slot(k), i));
      if (p.tied_head_gradient(k).data != nullptr) fill(p.tied_head_gradient(k));
    }
  };
  struct Case {
    parallel::MeshShape mesh;
    const char* schedule;
    int64_t tree_rows;
  };
  for (const bool tied : {false, true})
    for (const Case& k : {Case{{1, 1, 1}, "1f1b", 0}, Case{{2, 1, 1}, "zb-h1", 0}, Case{{2, 1, 1}, "interleaved", 0},
                          Case{{2, 2, 2}, "1f1b", 0}, Case{{1, 1, 4}, "gpipe", 0}, Case{{2, 2, 1}, "interleaved", 4}}) {
      SCOPED_TRACE(fmt::format("{} {} tied {} tree {}", k.mesh.str(), k.schedule, tied, k.tree_rows));
      const parallel::ModelConfig c = tiny("Qwen3ForCausalLM", tied);
      std::vector<models::HostBatch> rows;
      for (uint64_t r = 0; r < static_cast<uint64_t>(2 * k.mesh.dp); ++r) rows.push_back(make_batch(c, 1, 11, 20 + r));
      // The first micro-batch of every replica trains nothing.
      for (int d = 0; d < k.mesh.dp; ++d) {
        models::HostBatch& b = rows[static_cast<size_t>(2 * d)];
        b.trained_tokens = 0;
        std::fill(b.targets.begin(), b.targets.end(), -1);
      }
      const EngineOptions o{.mesh = k.mesh, .schedule = k.schedule, .virtual_stages = std::string(k.schedule) == "interleaved" ? 2 : 1,
                            .microbatches = 2, .tokens = 11, .tree_rows = k.tree_rows};
      const Outcome plain = train(c, o, rows);
      EXPECT_TRUE(train(c, o, rows, 3, poison) == plain);
      EXPECT_GT(plain.losses.front(), plain.losses.back()) << "nothing was learnt";
    }
}

TEST(Engine, DeterministicIsBitEqualOverLayouts) {
  struct Case {
    int pp, dp;
    const char* schedule;
    parallel::Recompute recompute;
    int zero;
  };
  using parallel::Recompute;
  const std::vector<Case> cases{{1, 1, "1f1b", Recompute::kNone, 1},      {2, 1, "1f1b", Recompute::kNone, 1},
                                {4, 1, "gpipe", Recompute::kFull, 1},     {2, 1, "zb-h1", Recompute::kSelective, 1},
                                {2, 1, "interleaved", Recompute::kCheap, 1}, {1, 2, "1f1b", Recompute::kNone, 1},
                                {1, 4, "1f1b", Recompute::kNone, 0},      {2, 2, "zb-h1", Recompute::kFull, 1},
                                {2, 4, "interleaved", Recompute::kNone, 1}, {1, 8, "gpipe", Recompute::kNone, 1}};
  for (const int tp : {1, 2, 4})  // four ranks cut inside the groups of query heads: kv heads are replicated
    for (const bool tied : {false, true})
      for (const size_t batch : {size_t{8}, size_t{5}}) {
        const parallel::ModelConfig c = tiny("Qwen3ForCausalLM", tied);
        std::vector<models::HostBatch> rows;
        for (size_t r = 0; r < batch; ++r) rows.push_back(make_batch(c, 1, 11, 40 + r));
        std::optional<Outcome> first;
        for (const Case& k : cases) {
          if (tp > 1 && k.pp * k.dp > 4) continue;
          SCOPED_TRACE(fmt::format("tp {} tied {} rows {}: pp {} dp {} {} recompute {}", tp, tied, batch, k.pp, k.dp, k.schedule,
                                   recompute_name(k.recompute)));
          const auto microbatches = static_cast<int>((batch + static_cast<size_t>(k.dp) - 1) / static_cast<size_t>(k.dp));
          EngineOptions o{.mesh = {.pp = k.pp, .dp = k.dp, .tp = tp}, .schedule = k.schedule,
                          .virtual_stages = std::string(k.schedule) == "interleaved" ? 2 : 1, .microbatches = microbatches,
                          .tokens = 11, .recompute = k.recompute, .zero = k.zero};
          o.tree_rows = static_cast<int64_t>(batch);
          const Outcome now = train(c, o, rows);
          if (!first) first = now;
          EXPECT_TRUE(now.losses == first->losses);
          EXPECT_TRUE(now.norms == first->norms);
          EXPECT_TRUE(now.weights == first->weights);
        }
        EXPECT_GT(first->losses.front(), first->losses.back()) << "nothing was learnt";
      }
}

TEST(Engine, ALossThatIsNotFiniteLeavesTheWeights) {
  const parallel::ModelConfig c = tiny("Qwen2ForCausalLM", false);
  std::vector<models::HostBatch> rows;
  for (uint64_t r = 0; r < 4; ++r) rows.push_back(make_batch(c, 1, 11, 60 + r));
  comm::run_ranks(4, [&](comm::Communicator& world) {
    EngineOptions o{.mesh = {.pp = 2, .dp = 2}, .microbatches = 2, .tokens = 11};
    Engine engine(c, o, world);
    initialise(engine, 3);
    const auto mine = static_cast<ptrdiff_t>(2 * engine.groups().coord().dp);
    const auto state = [&] {
      std::vector<float> all;
      for (const models::StageParameters& p : engine.model().parameters())
        for (const Tensor& t : {p.weights(), p.exp_avg(), p.exp_avg_sq()}) all.insert(all.end(), t.ptr<float>(), t.ptr<float>() + t.numel());
      return all;
    };
    const auto step = [&](int64_t n) { return engine.train_step({rows.begin() + mine, rows.begin() + mine + 2}, 40, 1e-2, n); };
    EXPECT_TRUE(std::isfinite(step(1).norm));
    // One infinite element of one gradient on one rank of one replica: every rank must skip.
    const std::vector<float> before = state();
    float* infinite = nullptr;
    float saved = 0;
    for (const models::StageParameters& p : engine.model().parameters())
      if (p.holds(parallel::ParamRole::kDown, 2) && engine.groups().coord().dp == 1)
        infinite = p.part(p.weights(), p.index(parallel::ParamRole::kDown, 2)).ptr<float>() + 5;
    if (infinite != nullptr) saved = std::exchange(*infinite, std::numeric_limits<float>::infinity());
    const auto [loss, norm] = step(2);
    if (infinite != nullptr) *infinite = saved;
    EXPECT_FALSE(std::isfinite(loss) && std::isfinite(norm));
    EXPECT_TRUE(state() == before);
    EXPECT_TRUE(std::isfinite(step(3).norm));
    EXPECT_FALSE(state() == before) << "training goes on";
    engine.close();
  });
}

TEST(Engine, RanksWithoutTokensTakePart) {
  // Three tokens over four tp ranks: one holds none between the blocks, and the sums are those of one rank.
  const parallel::ModelConfig c = tiny("Qwen2ForCausalLM", true);
  models::HostBatch batch;
  append_row(batch, {.ids = {1, 2, 3}, .targets = {2, 3, -1}, .segments = {3}, .trained_tokens = 2});
  double loss[2] = {}, norm[2] = {};
  for (const int tp : {1, 4})
    comm::run_ranks(tp, [&](comm::Communicator& world) {
      Engine engine(c, {.mesh = {.tp = tp}, .tokens = 3}, world);
      initialise(engine, 3);
      const auto [l, n] = engine.train_step({&batch, 1}, batch.trained_tokens, 0.0, 1);
      if (world.rank() == 0) {
        loss[tp == 1 ? 0 : 1] = l;
        norm[tp == 1 ? 0 : 1] = n;
      }
      engine.close();
    });
  EXPECT_GT(norm[0], 0.0);
  EXPECT_NEAR(loss[1], loss[0], 1e-6 * loss[0]);
  EXPECT_NEAR(norm[1], norm[0], 1e-5 * norm[0]);
}

TEST(Engine, PackedRowsDoNotLeak) {
  // The gradient of a packed row is the sum of its samples' gradients alone.
  const parallel::ModelConfig c = tiny("Qwen2ForCausalLM", false);
  auto world = comm::make_self();
  const models::HostBatch packed = make_batch(c, 1, 11, 9);
  std::vector<float> whole, sum;
  for (int part = -1; part < 2; ++part) {
    const int64_t begin = part == 1 ? 5 : 0, end = part == 0 ? 5 : 11;
    models::HostBatch b = packed;
    if (part >= 0) {
      data::Row row{.ids = {packed.ids.begin() + begin, packed.ids.begin() + end}, .targets = {packed.targets.begin() + begin, packed.targets.begin() + end},
                    .segments = {static_cast<int32_t>(end - begin)}};
      b = {};
      append_row(b, row);
    }
    Engine engine(c, {.mesh = {}, .tokens = end - begin}, *world);
    initialise(engine, 3);
    engine.forward_backward({&b, 1}, packed.trained_tokens);
    const auto& params = engine.model().parameters().front();
    const Tensor g = params.gradients();
    std::vector<float>& into = part < 0 ? whole : sum;
    into.resize(static_cast<size_t>(g.numel()), 0.0F);
    for (int64_t i = 0; i < g.numel(); ++i) into[static_cast<size_t>(i)] += g.ptr<float>()[i];
    engine.close();
  }
  double difference = 0, norm = 0;
  for (size_t i = 0; i < whole.size(); ++i) {
    difference += std::pow(static_cast<double>(whole[i]) - static_cast<double>(sum[i]), 2);
    norm += std::pow(static_cast<double>(whole[i]), 2);
  }
  EXPECT_GT(norm, 0.0);
  EXPECT_LT(std::sqrt(difference / norm), 2e-6);
}

TEST(Engine, OffloadChangesOnlyWhereThingsLie) {
  const parallel::ModelConfig c = tiny("Qwen2ForCausalLM", true);
  std::vector<models::HostBatch> rows;
  for (uint64_t r = 0; r < 6; ++r) rows.push_back(make_batch(c, 1, 11, 20 + r));
  for (const parallel::MeshShape& mesh : {parallel::MeshShape{1, 1, 1}, {1, 1, 2}, {2, 1, 1}, {1, 2, 1}})
    for (const char* schedule : {"gpipe", "1f1b", "zb-h1"}) {
      SCOPED_TRACE(mesh.str() + " " + schedule);
      EngineOptions o{.mesh = mesh, .schedule = schedule, .microbatches = 6 / mesh.dp, .tokens = 11,
                      .recompute = parallel::Recompute::kFull};
      const Outcome here = train(c, o, rows);
      const parallel::RankPlan::Bytes before = plan_for(c, o, 0).bytes();
      o.needs.offload_optimizer = o.needs.offload_activations = true;
      EXPECT_EQ(train(c, o, rows), here);
      comm::run_ranks(mesh.world(), [&](comm::Communicator& world) {
        Engine engine(c, o, world);
        const auto planned = plan_for(c, o, world.rank()).bytes(), allocated = engine.model().allocated();
        EXPECT_EQ(allocated.host, planned.host);
        EXPECT_EQ(allocated.optimizer, 0);
        EXPECT_EQ(allocated.activations, planned.activations);
        EXPECT_EQ(allocated.scratch, planned.scratch);
        if (world.rank() == 0) {
          EXPECT_EQ(planned.host, before.optimizer + before.activations - planned.activations);
        }
        engine.close();
      });
    }
}

}  // namespace
}  // namespace r1::train
