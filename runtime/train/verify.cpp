#include "runtime/train/verify.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "runtime/checkpoint/crc32c.h"
#include "runtime/core/human.h"
#include "runtime/train/setup.h"
#include "runtime/train/verify_reference.h"
#include "runtime/train/weights_io.h"

namespace r1::train {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

namespace {

// fp32 on both sides; the reference's own fp32 rounding is part of the difference. An independent fp32 implementation sees
// 1e-8, 2e-6 and 1.6e-6 on the same models, so these leave a factor of ten for another order of summation.
struct Tolerance {
  double loss, logits, gradient;
};
constexpr Tolerance kCpuFp32{1e-6, 2e-5, 2e-5};
// fp32 on a GPU sums in other orders and uses its own exponential.
constexpr Tolerance kGpuFp32{1e-5, 2e-4, 2e-4};
// bf16 storage of weights and activations: 8 bits of mantissa; an ideal emulation of bf16 sees 4 % in single gradients.
constexpr Tolerance kGpuBf16{5e-4, 2e-1, 1e-1};

double relative_l2(const std::vector<float>& got, const std::vector<float>& want) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double w = static_cast<double>(want[i]), d = static_cast<double>(got[i]) - w;
    difference += d * d;
    norm += w * w;
  }
  if (!std::isfinite(difference)) return INFINITY;
  return norm > 0 ? std::sqrt(difference / norm) : std::sqrt(difference);
}

/// What one schedule and recompute policy gave.
struct Result {
  double loss = 0, logits_error = 0;
  std::map<std::string, double> gradients;    ///< relative L2 by name, on rank 0
  std::map<std::string, uint32_t> checksums;  ///< of each gathered gradient, on rank 0
};

/// JSON numbers must be finite: an overflow or NaN becomes a number no tolerance accepts.
double finite(double x) { return std::isfinite(x) ? x : 1e300; }

/// One way to run the step.
struct Case {
  std::string schedule;
  int virtual_stages;
  parallel::Recompute recompute;
};

/// The schedules and recompute policies that the options ask for.
std::vector<Case> cases_of(const JobConfig& cfg, int pp, int64_t layers) {
  std::vector<Case> cases;
  const bool all = cfg.schedule.empty() || cfg.schedule == "all";
  for (const parallel::ScheduleKind& k : parallel::schedule_kinds()) {
    const std::string name(k.name);
    if (!all && cfg.schedule != name) continue;
    int v = 1;
    if (k.virtual_stages_allowed) {
      v = cfg.virtual_stages > 1 ? cfg.virtual_stages : 2;
      if (all && pp * v > layers) continue;  // not every model has the layers for it
    }
    for (const parallel::Recompute r : {parallel::Recompute::kNone, parallel::Recompute::kCheap,
                                        parallel::Recompute::kSelective, parallel::Recompute::kFull}) {
      if (!cfg.recompute.empty() && cfg.recompute != "all" && cfg.recompute != recompute_name(r)) continue;
      cases.push_back({name, v, r});
    }
  }
  return cases;
}

/// The largest of a set of errors, and whose it is; the first of equals.
struct Worst {
  std::string name;
  double error = 0;
  void take(const std::string& n, double e) {
    if (name.empty() || e > error) {
      name = n;
      error = e;
    }
  }
};

/// The judgement over all cases, one table line each.
class Verdict {
 public:
  Verdict(const Tolerance& allowed, double reference_loss) : allowed_(allowed), reference_loss_(reference_loss) {}
  [[nodiscard]] static std::string heading();
  /// Judges one case; returns its line.
  [[nodiscard]] std::string add(const Case& c, const Result& r);
  [[nodiscard]] std::string summary() const;
  [[nodiscard]] ordered_json json() const;
  [[nodiscard]] bool pass() const { return pass_; }

 private:
  Tolerance allowed_;
  double reference_loss_;  ///< NaN: none
  double loss_ = 0, worst_loss_error_ = 0, worst_logits_ = 0;
  Worst worst_gradient_;
  ordered_json gradients_ = ordered_json::object();  ///< the largest error of each
  bool pass_ = true, bit_equal_ = true;
  std::map<std::string, std::map<std::string, uint32_t>> first_checksums_;  ///< by schedule
};

std::string Verdict::heading() {
  return fmt::format("{:<12} {:<10} {:>12} {:>11} {:>11} {:>11}  {}", "schedule", "recompute", "loss", "loss rel", "logits abs",
                     "grad rel L2", "worst gradient");
}

std::string Verdict::add(const Case& c, const Result& r) {
  const double expected = std::isnan(reference_loss_) ? r.loss : reference_loss_;
  const double loss_error = std::abs(r.loss - expected) / std::max(std::abs(expected), 1e-300);
  loss_ = r.loss;
  worst_loss_error_ = std::max(worst_loss_error_, finite(loss_error));
  worst_logits_ = std::max(worst_logits_, finite(r.logits_error));
  Worst here;
  for (const auto& [name, e] : r.gradients) {
    here.take(name, e);
    gradients_[name] = std::max(gradients_.contains(name) ? gradients_[name].get<double>() : 0.0, e);
  }
  worst_gradient_.take(here.name, here.error);
  const auto& [it, first] = first_checksums_.try_emplace(c.schedule, r.checksums);
  const bool same = first || it->second == r.checksums;
  bit_equal_ = bit_equal_ && same;
  const bool ok = finite(loss_error) <= allowed_.loss && r.logits_error <= allowed_.logits && here.error <= allowed_.gradient && same;
  pass_ = pass_ && ok;
  return fmt::format("{:<12} {:<10} {:>12.8f} {:>11.2e} {:>11.2e} {:>11.2e}  {}{}", c.schedule, recompute_name(c.recompute), r.loss,
                     loss_error, r.logits_error, here.error, here.name.empty() ? "-" : here.name,
                     ok ? "" : same ? "  FAIL" : "  FAIL: differs in bits from the first recompute policy");
}

std::string Verdict::summary() const {
  return fmt::format("{}: loss {:.1e} (allowed {:.0e}), logits {:.1e} ({:.0e}), gradients {:.1e} ({:.0e}); recompute policies {}",
                     pass_ ? "PASS" : "FAIL", worst_loss_error_, allowed_.loss, worst_logits_, allowed_.logits,
                     worst_gradient_.error, allowed_.gradient, bit_equal_ ? "bit-equal" : "NOT bit-equal");
}

ordered_json Verdict::json() const {
  return {{"loss", loss_},
          {"loss_ref", std::isnan(reference_loss_) ? loss_ : reference_loss_},
          {"loss_rel_err", worst_loss_error_},
          {"logits_max_abs_err", worst_logits_},
          {"worst_grad", {{"name", worst_gradient_.name}, {"rel_l2", worst_gradient_.error}}},
          {"grads", gradients_},
          {"recompute_bit_equal", bit_equal_},
          {"pass", pass_}};
}

/// This rank's micro-batches, and which row of the reference stands where.
struct LocalRows {
  std::vector<models::HostBatch> batches;
  std::vector<int64_t> row_of;  ///< [micro-batch, row]; -1 for filling
};

class Verifier {
 public:
  explicit Verifier(const RankContext& ctx) : ctx_(ctx), cfg_(ctx.config) {}
  ExitCode run();

 private:
  void open();
  Result run_one(const Case& c);
  [[nodiscard]] std::unique_ptr<Engine> make_engine(const Case& c, const BatchLayout& rows);
  [[nodiscard]] LocalRows local_rows(const BatchLayout& rows, int dp_rank) const;
  /// Compares the part of a micro-batch's logits that this rank holds; returns the largest difference.
  double compare_logits(const std::vector<float>& logits, int64_t first_token, int64_t tokens, const int64_t* row_of,
                        parallel::Interval vocab);
  /// Gathers each gradient and compares it on its stage's tp rank 0: {name: {crc, rel_l2}}. Collective over the stage.
  [[nodiscard]] ordered_json compare_gradients(Engine& engine);
  /// Brings every stage's verdicts to all ranks. Collective.
  void share_verdicts(const ordered_json& mine, Result* result);
  /// Brings the recorded logits and gradients of all ranks to rank 0. Collective.
  void collect_on_first(parallel::ProcessGroups& groups);

  const RankContext& ctx_;
  const JobConfig& cfg_;
  std::optional<ModelSource> source_;
  Reference reference_;
  bool own_rows_ = false;
  parallel::MeshShape mesh_;
  Device device_;
  fs::path write_to_;    ///< R1RUN_VERIFY_WRITE: where the first run's results go
  bool record_ = false;  ///< this run's results go into own_
  Reference own_;
  std::map<std::string, int> stage_of_;  ///< pipeline rank that holds each parameter
};

std::unique_ptr<Engine> Verifier::make_engine(const Case& c, const BatchLayout& rows) {
  const parallel::ModelConfig& config = source_->config;
  EngineOptions options = engine_options(ctx_.world, cfg_, config, mesh_, rows, device_, true);
  options.stop = ctx_.stop;
  options.zero = 0;  // every replica needs all gradients to compare them
  options.schedule = c.schedule;
  options.virtual_stages = c.virtual_stages;
  options.recompute = c.recompute;
  auto engine = std::make_unique<Engine>(config, options, ctx_.world);
  if (source_->init_seed)
    for (const models::StageParameters& p : engine->model().parameters()) models::initialise(p, config, *source_->init_seed, engine->stream());
  else
    load_weights(*engine, source_->dir, [this] { ctx_.check_stop(); });
  return engine;
}

LocalRows Verifier::local_rows(const BatchLayout& rows, int dp_rank) const {
  const parallel::Interval mine = parallel::even_part(rows.batch, dp_rank, rows.dp);
  LocalRows out;
  out.batches.resize(static_cast<size_t>(rows.microbatches()));
  int64_t row = mine.begin;
  for (models::HostBatch& b : out.batches)
    for (int64_t i = 0; i < rows.micro_batch; ++i, ++row) {
      out.row_of.push_back(row < mine.end ? row : -1);
      if (row < mine.end) append_row(b, reference_row(reference_, row, cfg_.reference));
      else append_masked_row(b, rows.seq_len, 0);
    }
  return out;
}

Result Verifier::run_one(const Case& c) {
  const BatchLayout rows{.batch = reference_.rows, .micro_batch = cfg_.micro_batch, .seq_len = reference_.seq_len, .dp = mesh_.dp};
  const std::unique_ptr<Engine> engine = make_engine(c, rows);
  parallel::ProcessGroups& groups = engine->groups();
  const LocalRows local = local_rows(rows, groups.coord().dp);
  int64_t trained = 0;
  for (const models::HostBatch& b : local.batches) trained += b.trained_tokens;
  trained = reduce(groups.dp(), trained, comm::ReduceOp::kSum);

  record_ = !write_to_.empty() && own_.logits.empty();
  if (record_) {
    own_ = {.rows = reference_.rows, .seq_len = reference_.seq_len, .ids = reference_.ids, .labels = reference_.labels,
            .mask = reference_.mask, .logits = {}, .gradients = {}};
    own_.logits.assign(static_cast<size_t>(reference_.rows * reference_.seq_len * source_->config.vocab), 0.0F);
  }
  Result result;
  // Logits as they are made on the last stage: each tp rank compares its part of the vocabulary.
  const parallel::Interval vocab = engine->spec().local(groups.tp().rank()).vocab;
  engine->model().set_logits_sink([&](int microbatch, int64_t first, const Tensor& logits) {
    const double error = compare_logits(models::host_floats(logits, engine->stream()), first, logits.dim(0),
                                        &local.row_of[static_cast<size_t>(microbatch * rows.micro_batch)], vocab);
    result.logits_error = std::max(result.logits_error, error);
  });
  result.loss = engine->forward_backward(local.batches, trained);
  engine->model().set_logits_sink({});
  result.logits_error = reduce(ctx_.world, result.logits_error, comm::ReduceOp::kMax);

  share_verdicts(compare_gradients(*engine), &result);
  if (record_) collect_on_first(groups);
  engine->close();
  return result;
}

double Verifier::compare_logits(const std::vector<float>& logits, int64_t first_token, int64_t tokens, const int64_t* row_of,
                                parallel::Interval vocab) {
  const int64_t seq_len = reference_.seq_len;
  const auto v = static_cast<size_t>(source_->config.vocab);
  double largest = 0;
  for (int64_t c = 0; c < tokens; ++c) {
    const int64_t token = first_token + c;
    const int64_t r = row_of[token / seq_len];
    if (r < 0) continue;
    const auto at = static_cast<size_t>(r * seq_len + token % seq_len);
    if (reference_.mask[at] == 0) continue;
    for (int64_t i = vocab.begin; i < vocab.end; ++i) {
      const float got = logits[static_cast<size_t>(c * vocab.size() + i - vocab.begin)];
      const size_t place = at * v + static_cast<size_t>(i);
      if (record_) own_.logits[place] = got;
      if (reference_.logits.empty()) continue;
      const double error = std::abs(static_cast<double>(got) - static_cast<double>(reference_.logits[place]));
      largest = std::max(largest, std::isnan(error) ? INFINITY : error);
    }
  }
  return largest;
}

ordered_json Verifier::compare_gradients(Engine& engine) {
  parallel::ProcessGroups& groups = engine.groups();
  ordered_json verdicts = ordered_json::object();
  if (groups.coord().dp != 0) return verdicts;
  for (const models::StageParameters& params : engine.model().parameters())
    for (size_t i = 0; i < params.specs().size(); ++i) {
      const parallel::ParamSpec& p = params.specs()[i];
      if (p.tied_copy) continue;
      const std::vector<float> g = gather_parameter(engine, params, params.gradients(), i);
      if (groups.tp().rank() != 0) continue;
      ordered_json entry{{"crc", checkpoint::crc32c(g.data(), g.size() * sizeof(float))}};
      if (const auto it = reference_.gradients.find(p.name); it != reference_.gradients.end())
        entry["rel_l2"] = finite(relative_l2(g, it->second));
      verdicts[p.name] = entry;
      if (record_) own_.gradients[p.name] = g;
    }
  return verdicts;
}

void Verifier::share_verdicts(const ordered_json& mine, Result* result) {
  for (int stage = 0; stage < mesh_.pp; ++stage) {
    const int root = parallel::rank_of(mesh_, {.pp = stage, .dp = 0, .tp = 0});
    const auto part = ordered_json::parse(broadcast_text(ctx_.world, ctx_.world.rank() == root ? mine.dump() : "", root));
    for (const auto& [name, entry] : part.items()) {
      stage_of_[name] = stage;
      result->checksums[name] = entry["crc"].get<uint32_t>();
      if (entry.contains("rel_l2")) result->gradients[name] = entry["rel_l2"].get<double>();
    }
  }
}

void Verifier::collect_on_first(parallel::ProcessGroups& groups) {
  const auto tensor = [](std::vector<float>& v) {
    return Tensor{.data = v.data(), .dtype = DType::kF32, .shape = {static_cast<int64_t>(v.size())}};
  };
  // Each rank has filled its own rows and its part of the vocabulary; the rest is zero.
  ctx_.world.all_reduce(tensor(own_.logits), comm::ReduceOp::kSum, {});
  if (groups.coord().dp != 0 || groups.coord().tp != 0) return;
  comm::Communicator& pp = groups.pp();
  if (pp.rank() != 0) {
    for (auto& [name, g] : own_.gradients) pp.send(tensor(g), 0, {});
    return;
  }
  const parallel::ModelSpec spec(source_->config, 1, 1);
  std::map<std::string, int64_t> missing;  // in the order of the senders' maps: by name
  for (const parallel::ParamSpec& p : spec.all_params())
    if (!own_.gradients.contains(p.name)) missing[p.name] = p.shard.local_elems(0);
  for (int stage = 1; stage < pp.size(); ++stage) {
    std::map<std::string, int64_t> theirs;
    for (const auto& [name, n] : missing)
      if (stage_of_.at(name) == stage) theirs[name] = n;
    for (const auto& [name, n] : theirs) {
      std::vector<float> g(static_cast<size_t>(n));
      pp.recv(tensor(g), stage, {});
      own_.gradients[name] = std::move(g);
    }
  }
}

void Verifier::open() {
  if (cfg_.model.empty())
    throw UsageError(
        "verify compares with something: --model DIR --reference FILE (another program's loss, logits and gradients), --model DIR "
        "--layouts 1x1x1,2x1x4 (layouts with each other), --model DIR (schedules and recompute policies with each other), or "
        "--checkpoint DIR (its bytes with their checksums)");
  mesh_ = mesh_of(ctx_, ranks_on_this_host(ctx_.world));
  setup_threads(ctx_);
  device_ = choose_device(ctx_, {});
  source_.emplace(open_model_source(ctx_, "."));
  if (const char* path = std::getenv("R1RUN_VERIFY_WRITE"); path != nullptr) write_to_ = path;
  own_rows_ = cfg_.reference.empty();
  reference_ = own_rows_ ? made_rows(source_->config, cfg_.seed) : read_reference(cfg_.reference, source_->config);
  if (reference_.seq_len > source_->config.max_positions)
    throw DataError("{}: rows of {} tokens, the model has max_position_embeddings {}", cfg_.reference, reference_.seq_len,
                    source_->config.max_positions);
}

ExitCode Verifier::run() {
  open();
  const bool gpu = device_.kind == DeviceKind::kCuda;
  const Tolerance allowed = !gpu ? kCpuFp32 : numeric_format(cfg_, device_).weights == DType::kF32 ? kGpuFp32 : kGpuBf16;
  Verdict verdict(allowed, reference_.loss);
  say(ctx_, fmt::format("{}  layout {}  {} rows of {} tokens{}", source_->dir.path().string(), mesh_.str(), reference_.rows,
                        reference_.seq_len, own_rows_ ? " (made from --seed)" : ""));
  say(ctx_, Verdict::heading());
  for (const Case& c : cases_of(cfg_, mesh_.pp, source_->config.layers)) {
    ctx_.check_stop();
    const Result r = run_one(c);
    if (record_ && ctx_.first()) write_reference(write_to_, source_->config, own_);
    say(ctx_, verdict.add(c, r));
  }
  say(ctx_, verdict.summary());
  if (ctx_.first() && !cfg_.json.empty()) write_json(cfg_.json, verdict.json().dump(2));
  return verdict.pass() ? ExitCode::kOk : ExitCode::kBadInput;
}

}  // namespace

ExitCode run_verify(const RankContext& ctx) {
  if (!ctx.config.checkpoint.empty()) return run_verify_checkpoint(ctx);
  return Verifier(ctx).run();
}

ExitCode run_verify_checkpoint(const RankContext& ctx) {
  const fs::path dir = ctx.config.checkpoint;
  const auto start = std::chrono::steady_clock::now();
  const auto reader = checkpoint::CheckpointReader::open(dir);
  const auto verified = reader.verify_part(ctx.world.rank(), ctx.world.size());
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const int64_t bytes = reduce(ctx.world, static_cast<int64_t>(verified.bytes), comm::ReduceOp::kSum);
  say(ctx, fmt::format("{}: step {}, all checksums agree: {} in {:.2f} s ({})", dir.string(), reader.manifest().step,
                       human_bytes(static_cast<double>(bytes)), seconds, human_si(static_cast<double>(bytes) / seconds, "B/s")));
  return ExitCode::kOk;
}

}  // namespace r1::train
