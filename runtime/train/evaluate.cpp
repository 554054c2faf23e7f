#include "runtime/train/evaluate.h"

#include <algorithm>
#include <cmath>
#include <exception>
#include <nlohmann/json.hpp>
#include <optional>

#include "runtime/core/human.h"
#include "runtime/train/host_scratch.h"
#include "runtime/train/memory.h"
#include "runtime/train/task.h"
#include "runtime/train/weights_io.h"

namespace r1::train {

namespace fs = std::filesystem;

double EvalResult::perplexity() const { return std::exp(loss); }

EvalResult evaluate_dataset(const RankContext& ctx, Engine& engine, const data::Dataset& dataset, const BatchLayout& layout) {
  EvalResult result{.rows = dataset.rows_per_epoch()};
  const int dp_rank = engine.groups().coord().dp;
  double sum = 0;
  for (int64_t row = 0; row < result.rows; row += layout.batch) {
    ctx.check_stop();
    std::vector<models::HostBatch> batches = make_batches(dataset, layout, row, dp_rank);
    // Rows past the end belong to the next pass: mask them.
    int64_t index = row + parallel::even_part(layout.batch, dp_rank, layout.dp).begin;
    int64_t trained = 0;
    for (models::HostBatch& b : batches) {
      for (int64_t i = 0; i < layout.micro_batch; ++i, ++index)
        if (index >= result.rows) std::fill_n(b.targets.begin() + i * layout.seq_len, layout.seq_len, -1);
      trained += std::count_if(b.targets.begin(), b.targets.end(), [](int32_t t) { return t >= 0; });
    }
    result.trained_tokens += reduce(engine.groups().dp(), trained, comm::ReduceOp::kSum);
    sum += engine.forward_only(batches);
  }
  result.loss = result.trained_tokens > 0 ? sum / static_cast<double>(result.trained_tokens) : 0.0;
  return result;
}

namespace {

/// One data set a file, tokenised once on each host and mapped by all of its ranks.
std::vector<data::Dataset> open_sets(const RankContext& ctx, const parallel::ModelConfig& model, const text::Tokenizer* tokenizer) {
  const JobConfig& cfg = ctx.config;
  std::optional<HostScratch> scratch;
  if (cfg.cache_dir.empty() && ctx.world.size() > 1) scratch.emplace(ctx.world);
  const fs::path cache = scratch ? scratch->path() : fs::path(cfg.cache_dir);
  std::vector<data::Dataset> sets;
  std::exception_ptr error;
  try {
    for (const std::string& file : cfg.data) {
      data::DataOptions o = data_options(ctx, {file}, cache, seq_len_of(cfg, model), model);
      o.shuffle = false;
      sets.push_back(data::Dataset::open(o, tokenizer));
    }
  } catch (...) {  // no rank is left at the barrier, and the directory goes away
    error = std::current_exception();
  }
  if (scratch) scratch->remove();
  if (error) std::rethrow_exception(error);
  return sets;
}

}  // namespace

ExitCode run_eval(const RankContext& ctx) {
  JobConfig& cfg = ctx.config;
  if (cfg.model.empty()) throw UsageError("eval needs --model DIR");
  if (cfg.data.empty()) throw UsageError("eval needs --data FILE");
  if (!cfg.task.empty()) return run_task(ctx);
  const parallel::MeshShape mesh = mesh_of(ctx, ranks_on_this_host(ctx.world));
  setup_threads(ctx);
  const ModelSource source = open_model_source(ctx, ".");
  std::optional<text::Tokenizer> tokenizer;  // rows of input_ids do without
  if (fs::exists(source.dir.path() / "tokenizer.json")) {
    tokenizer.emplace(text::Tokenizer::load(source.dir.path()));
    check_tokenizer(*tokenizer, source);
  }
  std::vector<data::Dataset> sets = open_sets(ctx, source.config, tokenizer ? &*tokenizer : nullptr);
  const BatchLayout rows{.batch = cfg.batch, .micro_batch = cfg.micro_batch, .seq_len = sets.front().seq_len(), .dp = mesh.dp};
  EngineOptions options = engine_options(ctx.world, cfg, source.config, mesh, rows, choose_device(ctx, {}), false);
  options.stop = ctx.stop;
  check_memory(ctx, source.config, options);
  Engine engine(source.config, options, ctx.world);
  load_weights(engine, source.dir, [&ctx] { ctx.check_stop(); });

  nlohmann::ordered_json out{{"model", source.dir.path().string()}, {"sources", nlohmann::ordered_json::array()}};
  double sum = 0;
  int64_t trained = 0;
  say(ctx, fmt::format("{:<40} {:>9} {:>14} {:>10} {:>12}", "file", "rows", "trained tokens", "loss", "perplexity"));
  const auto line = [&](const std::string& name, int64_t n, int64_t tokens, double loss) {
    say(ctx, fmt::format("{:<40} {:>9} {:>14} {:>10.5f} {:>12.4f}", name, human_count(n), human_count(tokens), loss, std::exp(loss)));
  };
  for (size_t i = 0; i < sets.size(); ++i) {
    const EvalResult r = evaluate_dataset(ctx, engine, sets[i], rows);
    line(cfg.data[i], r.rows, r.trained_tokens, r.loss);
    out["sources"].push_back({{"file", cfg.data[i]}, {"rows", r.rows}, {"trained_tokens", r.trained_tokens}, {"loss", r.loss},
                              {"perplexity", r.perplexity()}});
    sum += r.loss * static_cast<double>(r.trained_tokens);
    trained += r.trained_tokens;
  }
  const double loss = trained > 0 ? sum / static_cast<double>(trained) : 0.0;
  if (sets.size() > 1) line("all", 0, trained, loss);
  out["loss"] = loss;
  out["perplexity"] = std::exp(loss);
  out["trained_tokens"] = trained;
  if (ctx.first() && !cfg.json.empty()) write_json(cfg.json, out.dump(2));
  engine.close();
  return ExitCode::kOk;
}

}  // namespace r1::train
