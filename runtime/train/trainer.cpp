#include "runtime/train/trainer.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstring>
#include <cstdio>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <thread>

#include "runtime/checkpoint/checkpoint.h"
#include "runtime/core/human.h"
#include "runtime/core/log.h"
#include "runtime/data/default/default_job.h"
#include "runtime/device/cpu/thread_pool.h"
#include "runtime/device/cuda/cuda_api.h"
#include "runtime/device/cuda_library.h"
#include "runtime/tokenizer/byte_level.h"
#include "runtime/train/action_record.h"
#include "runtime/train/deterministic_cost.h"
#include "runtime/train/evaluate.h"
#include "runtime/train/line_log.h"
#include "runtime/train/memory.h"
#include "runtime/train/output_dir.h"
#include "runtime/train/resume_check.h"
#include "runtime/train/sample.h"
#include "runtime/train/save.h"
#include "runtime/train/setup.h"
#include "runtime/train/startup.h"
#include "runtime/train/step_health.h"
#include "runtime/train/step_profile.h"
#include "runtime/train/weights_io.h"

namespace r1::train {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

namespace {

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// What the built-in job trains with where the user gives nothing: chosen so that the loss halves in some minutes on two cores.
void derive_default_job(JobConfig& cfg) {
  const std::string why = "built-in job";
  const auto set = [&](const char* name, const char* value) {
    if (!cfg.is_set(name)) cfg.derive(name, value, why);
  };
  if (!cfg.is_set("epochs")) set("steps", "150");
  set("batch", "8");
  set("micro-batch", "2");
  set("lr", "3e-3");
  set("warmup-steps", "10");
  set("lr-schedule", "cosine");
  set("min-lr", "3e-4");
  if (cfg.seq_len == 0) cfg.derive("seq-len", std::to_string(data::kDefaultSeqLen), why);
}

/// The state of a job that checkpoints carry beside tensors.
struct Progress {
  int64_t step = 0;           ///< optimizer steps done
  int64_t position_rows = 0;  ///< rows consumed over all ranks
  int64_t skipped_steps = 0;
};

/// Checkpoints in a row that may fail to be written before the job ends.
constexpr int kMaxFailedSaves = 3;

void write_file(const fs::path& path, const std::string& text) {
  if (!(std::ofstream(path) << text).flush()) throw StorageError("{}: cannot be written: {}", path.string(), std::strerror(errno));
}

class Job {
 public:
  explicit Job(const RankContext& ctx) : ctx_(ctx), cfg_(ctx.config) {}
  ExitCode run();

 private:
  void begin(const char* phase);
  void open();
  [[nodiscard]] std::optional<fs::path> find_checkpoint();
  void resume(const fs::path& checkpoint);
  void check_space(const EngineOptions& options);
  void print_start(double gemm_rate, int64_t total_steps);
  void print_end(double first_loss, double last_loss, double seconds);
  void evaluate();
  [[nodiscard]] CheckpointMeta checkpoint_meta() const;
  void choose_save_mode(const EngineOptions& options);
  void begin_save();
  void save_now();
  void conclude_save(const SaveOutcome& outcome);
  void report_step(double loss, double norm, double lr, int64_t tokens, int64_t trained, double seconds, double segment);
  void after_first_step();
  void report_memory();
  void metrics_line(nlohmann::ordered_json line);
  ExitCode finish(const char* why);

  const RankContext& ctx_;
  JobConfig& cfg_;
  fs::path output_;
  std::optional<ModelSource> source_;
  std::optional<text::Tokenizer> tokenizer_;
  std::optional<data::Dataset> data_;
  std::vector<std::pair<std::string, data::Dataset>> eval_;
  BatchLayout rows_;
  Device device_;
  std::optional<Engine> engine_;
  std::unique_ptr<checkpoint::OutputLock> lock_;  ///< rank 0
  SaveOptions saver_options_;
  std::unique_ptr<CheckpointSaver> saver_;
  std::map<std::string, std::string> fingerprints_;
  int failed_saves_ = 0;  ///< in a row
  double save_stall_ = 0; ///< seconds that the checkpoint under way has held the training
  Progress progress_;
  Startup startup_;
  std::string run_id_;
  int64_t total_steps_ = 0, last_saved_ = -1, allocations_ = 0;
  std::string recompute_;  ///< the policy, or one for each stage
  double gemm_rate_ = 0, seconds_per_step_ = 0;
  bool progress_line_ = false;
  std::optional<LineLog> metrics_;  // of the first rank
};

/// A phase of the time before the first step.
void Job::begin(const char* phase) {
  ctx_.status.set_phase(phase);
  startup_.begin(phase);
}

void Job::open() {
  begin("reading the configuration");
  const bool built_in_data = cfg_.data.empty();
  // A checkpoint may stand for --model, but nothing stands for the data that a model was given for.
  if (cfg_.model.empty() != built_in_data && (cfg_.resume.empty() || built_in_data))
    throw UsageError("{}: give both --model and --data, or neither (the built-in model and data)",
                     cfg_.model.empty() ? "--data is given, --model is not" : "--model is given, --data is not");
  if (built_in_data) derive_default_job(cfg_);
  const int local_ranks = ranks_on_this_host(ctx_.world);
  const parallel::MeshShape mesh = mesh_of(ctx_, local_ranks);
  setup_threads(ctx_);
  run_id_ = broadcast_text(ctx_.world, ctx_.first() ? checkpoint::make_run_id() : std::string());
  output_ = choose_output(ctx_, run_id_, lock_);
  cfg_.derive("output", output_.string(), "free name");
  if (built_in_data)
    say(ctx_, "r1run: neither --model nor --data is given: training the built-in default, a small R1-distill-shaped Qwen2 model\n"
              "r1run: from random weights on a bundled slice of GSM8K. `r1run train --help` lists the options.");

  begin("opening the model");
  source_.emplace(open_model_source(ctx_, output_));
  // Pre-tokenised data needs no tokenizer; anything else is refused below.
  const bool has_tokenizer = fs::exists(source_->dir.path() / "tokenizer.json");
  tokenizer_.emplace(has_tokenizer ? text::Tokenizer::load(source_->dir.path())
                                   : text::Tokenizer::from_json(text::byte_level_tokenizer_json(), "no tokenizer"));
  if (has_tokenizer) check_tokenizer(*tokenizer_, *source_);

  begin("reading the data");
  const int64_t seq_len = seq_len_of(cfg_, source_->config);
  const fs::path cache = cfg_.cache_dir.empty() ? output_ / "cache" : fs::path(cfg_.cache_dir);
  std::vector<std::string> files = cfg_.data;
  if (built_in_data) {
    const fs::path file = output_ / "gsm8k-slice.jsonl";
    if (ctx_.first()) data::write_default_data(file);
    ctx_.world.barrier();
    files = {file.string()};
  }
  data_.emplace(data::Dataset::open(data_options(ctx_, files, cache, seq_len, source_->config), *tokenizer_));
  if (!has_tokenizer)
    for (const data::SourceStats& source : data_->stats().sources)
      if (source.format != "input-ids")
        throw DataError("{}: has no tokenizer.json, which --data {} (format {}) needs; without one, rows must be input_ids and labels",
                        source_->dir.path().string(), source.path.string(), source.format);
  for (const std::string& file : cfg_.eval_data) {
    data::DataOptions o = data_options(ctx_, {file}, cache, seq_len, source_->config);
    o.shuffle = false;
    eval_.emplace_back(file, data::Dataset::open(o, *tokenizer_));
  }

  rows_ = {.batch = cfg_.batch, .micro_batch = cfg_.row_tree() ? 1 : cfg_.micro_batch, .seq_len = data_->seq_len(),
           .dp = mesh.dp};
  begin("opening the device");
  device_ = choose_device(ctx_, cache);
  EngineOptions options = engine_options(ctx_.world, cfg_, source_->config, mesh, rows_, device_, true);
  options.stop = ctx_.stop;
  if (cfg_.recompute == "auto") choose_recompute(ctx_, source_->config, &options);
  recompute_ = job_shape(cfg_, options).recompute_text();
  check_space(options);
  choose_save_mode(options);
  begin("building the model");
  engine_.emplace(source_->config, options, ctx_.world);
  const parallel::MeshCoord coord = engine_->groups().coord();
  ctx_.status.set_identity(ctx_.world.rank(), ctx_.world.size(), fmt::format("pp {} dp {} tp {}", coord.pp, coord.dp, coord.tp));
  if (ctx_.watch != nullptr) ctx_.watch->set_stage(coord.pp);
  total_steps_ = cfg_.steps > 0 ? cfg_.steps
                                : std::max<int64_t>(1, static_cast<int64_t>(std::ceil(
                                      cfg_.epochs * static_cast<double>(data_->rows_per_epoch()) / static_cast<double>(cfg_.batch))));

  saver_ = std::make_unique<CheckpointSaver>(*engine_, source_->dir, saver_options_);
  fingerprints_ = job_fingerprints(cfg_, {.model = source_->fingerprint(),
                                          .tokenizer = fmt::format("{:016x}", tokenizer_->fingerprint()),
                                          .sources = data_->stats().sources,
                                          .seq_len = data_->seq_len(), .total_steps = total_steps_});

  if (!cfg_.resume.empty()) {
    begin("looking for a checkpoint");
    if (const auto from = find_checkpoint()) {
      resume(*from);
      return;
    }
    say(ctx_, fmt::format("r1run: --resume auto: no checkpoint in {} yet, starting anew", output_.string()));
  }
  begin("loading weights");
  if (source_->init_seed) {
    for (const models::StageParameters& p : engine_->model().parameters())
      models::initialise(p, source_->config, *source_->init_seed, engine_->stream());
    if (source_->built_in) write_model_weights(*engine_, source_->dir.path());
  } else {
    load_weights(*engine_, source_->dir, [this] { ctx_.check_stop(); });
  }
}

/// Plans memory for the copy that checkpoints are written from, where it fits; refuses a job that does not fit.
void Job::choose_save_mode(const EngineOptions& options) {
  saver_options_ = {.root = output_, .snapshot = cfg_.save_every > 0 && cfg_.save_mode != "sync",
                    .retention = {.keep_last = static_cast<int>(cfg_.keep_last), .keep_every = cfg_.keep_every},
                    .tick = [this] { ctx_.status.tick(); }};
  if (saver_options_.snapshot && !snapshot_fits(ctx_, source_->config, options)) {
    if (cfg_.save_mode == "async")
      throw MemoryError("--save-mode async: the copy of the state that checkpoints are written from does not fit into the memory "
                        "of every host; --save-mode sync needs none");
    cfg_.derive("save-mode", "sync", "no memory for a copy of the state");
    saver_options_.snapshot = false;
  }
  check_memory(ctx_, source_->config, options);
}

/// Refuses a job whose first checkpoint would not fit the disk: better now than after the last step.
void Job::check_space(const EngineOptions& options) {
  const uint64_t need = checkpoint_bytes(source_->config, options.format);
  std::error_code failed;
  const fs::space_info space = fs::space(output_, failed);
  const bool tight = ctx_.first() && !failed && space.available < need;
  const bool refused = reduce(ctx_.world, int64_t{tight}, comm::ReduceOp::kMax) != 0;
  if (tight)
    throw StorageError("--output {}: a checkpoint takes {} and {} are free; make room or choose another --output", output_.string(),
                       human_bytes(static_cast<double>(need)), human_bytes(static_cast<double>(space.available)));
  if (refused) throw CommError("rank 0 found too little space for a checkpoint");
}

/// The checkpoint of --resume, as the first rank sees it. With auto, one whose content is damaged is passed over for the one
/// before it. Every checksum has been checked. Collective.
std::optional<fs::path> Job::find_checkpoint() {
  const bool automatic = cfg_.resume == "auto";
  const fs::path place = automatic ? output_ : fs::path(cfg_.resume);
  int64_t below = std::numeric_limits<int64_t>::max();  // on the first rank
  for (bool first_try = true;; first_try = false) {
    std::string chosen;
    if (ctx_.first()) {
      if (!automatic && fs::exists(place / "r1run" / "manifest.json")) chosen = place.string();
      else if (const auto newest = checkpoint::newest_checkpoint(place, below)) {
        chosen = newest->path.string();
        below = newest->step;
      }
    }
    chosen = broadcast_text(ctx_.world, chosen);
    if (chosen.empty() && automatic && first_try) return std::nullopt;
    if (chosen.empty())
      throw DataError("--resume {}: no {} there (a directory with r1run/manifest.json, or one that holds step-NNNNNN)", cfg_.resume,
                      automatic ? "undamaged checkpoint" : "checkpoint");
    int64_t damaged = 0;
    try {
      static_cast<void>(checkpoint::CheckpointReader::open(chosen).verify_part(ctx_.world.rank(), ctx_.world.size()));
    } catch (const DataError& e) {
      if (!automatic) throw;
      damaged = 1;
      log::warn("passing over a damaged checkpoint: {}", e.what());
    }
    if (reduce(ctx_.world, damaged, comm::ReduceOp::kMax) == 0) return chosen;
  }
}

void Job::resume(const fs::path& checkpoint) {
  begin("loading the checkpoint");
  const auto reader = checkpoint::CheckpointReader::open(checkpoint);
  const checkpoint::Manifest& m = reader.manifest();
  for (const Difference& d : check_resume(checkpoint.string(), m.fingerprints, fingerprints_, cfg_.resume_allow))
    if (ctx_.first()) log::warn("{}: {} was {} and is {} now (--resume-allow)", checkpoint.string(), d.name, d.saved, d.now);
  load_checkpoint_state(*engine_, reader, [this] { ctx_.check_stop(); });
  progress_ = {.step = m.step, .position_rows = m.data_position_rows,
               .skipped_steps = m.counters.contains("skipped_steps") ? m.counters.at("skipped_steps") : 0};
  last_saved_ = m.step;
  ctx_.status.set_checkpoint(m.step);
  say(ctx_, fmt::format("r1run: resumed {} (step {}, {} rows seen; written by pp {} x dp {} x tp {})", checkpoint.string(),
                        m.step, m.data_position_rows, m.mesh.pp, m.mesh.dp, m.mesh.tp));
}

void Job::print_start(double gemm_rate, int64_t total_steps) {
  if (!ctx_.first()) return;
  const parallel::ModelConfig& c = source_->config;
  const parallel::RankPlan::Bytes b = engine_->plan().bytes();
  const data::DatasetStats& d = data_->stats();
  fmt::print("\n{}\n", resolved_ini(cfg_));
  fmt::print("model      {} {} parameters, {} layers, hidden {}, heads {}/{}, ffn {}, vocabulary {}{}\n",
             c.architecture_name(), human_count(c.parameters()), c.layers, c.hidden, c.heads, c.kv_heads, c.ffn, c.vocab,
             c.tied_embeddings ? ", tied" : "");
  fmt::print("data       {} samples in {} rows of {} tokens, {:.1f} % full, {} trained tokens\n", d.samples, d.rows,
             data_->seq_len(), 100.0 * d.fill, human_count(d.trained_tokens));
  const parallel::MeshShape& mesh = engine_->groups().mesh();
  std::string layers;
  for (const parallel::StageSpec& s : engine_->spec().stages())
    layers += fmt::format("{}{}", layers.empty() ? "" : "|", s.layer_end - s.layer_begin);
  fmt::print("layout     {} ({} ranks), layers {}, schedule {}, {} micro-batches of {} rows a rank, recompute {}\n", mesh.str(),
             mesh.world(), layers, engine_->schedule().name, rows_.microbatches(), rows_.micro_batch,
             cfg_.recompute == "auto" ? recompute_ + " (auto)" : recompute_);
  const auto h = [](int64_t n) { return human_bytes(static_cast<double>(n)); };
  const int64_t snapshot = saver_options_.snapshot ? snapshot_bytes(engine_->plan()) : 0;
  fmt::print("memory     rank 0: {} (weights {}, gradients {}, optimizer {}, activations {}, scratch {}{}){}\n", h(b.total()),
             h(b.weights), h(b.gradients), h(b.optimizer), h(b.activations), h(b.scratch),
             b.messages > 0 ? ", messages " + h(b.messages) : std::string(),
             snapshot > 0 ? fmt::format(", and {} on the host for checkpoints", h(snapshot)) : std::string());
  fmt::print("machine    {}, {} together in {} GEMM, {} thread(s) a rank\n",
             device_.kind == DeviceKind::kCuda ? "GPU" : "CPU", human_si(gemm_rate, "FLOP/s"),
             dtype_name(engine_->plan().format.weights), cpu_threads());
  std::string groups;
  for (const comm::RoutedGroup& g : engine_->routes())
    groups += fmt::format("{}{} {}", groups.empty() ? "" : "; ", g.name, describe(g.route));
  if (!groups.empty()) fmt::print("comm       {}\n", groups);
  if (cfg_.row_tree())
    fmt::print("deterministic  {}\n",
               measure_deterministic_cost(*engine_, rows_.seq_len, cfg_.micro_batch).str(rows_.seq_len, cfg_.micro_batch));
  else if (cfg_.repeatable())
    fmt::print("deterministic  from run to run of this layout: {}\n",
               device_.kind == DeviceKind::kCuda ? "attention and embedding gradients summed in one order, products not chosen by timing (1 % of a step of a 1.5B on an H200)"
                                                 : "always so on the CPU, at no cost");
  fmt::print("steps      {} to {}, {} rows each\n\n", progress_.step + 1, total_steps, rows_.batch);
  if (cfg_.schedule_print) {
    const parallel::Schedule& schedule = engine_->schedule();
    fmt::print("{}\n", parallel::print(schedule));
    // A backward costs twice a forward, its halves one each.
    const parallel::Simulation simulation = parallel::simulate(schedule, {});
    write_file(output_ / "schedule.svg", parallel::gantt_svg(schedule, simulation));
    fmt::print("schedule   {}, {:.1f} % bubble with stages of equal cost\n\n", (output_ / "schedule.svg").string(),
               100 * simulation.bubble_fraction);
  }
  std::fflush(stdout);
  write_file(output_ / "config.ini", resolved_ini(cfg_));
}

void Job::metrics_line(nlohmann::ordered_json line) {
  if (metrics_) metrics_->append(line.dump());
}

void Job::report_step(double loss, double norm, double lr, int64_t tokens, int64_t trained, double seconds,
                      double segment) {
  if (!ctx_.first()) return;
  const double rate = static_cast<double>(tokens) / seconds;
  const double share = gemm_rate_ > 0 ? rate * source_->config.train_flops_per_token(segment) / gemm_rate_ : 0.0;
  seconds_per_step_ = seconds_per_step_ == 0 ? seconds : 0.9 * seconds_per_step_ + 0.1 * seconds;
  const double eta = seconds_per_step_ * static_cast<double>(total_steps_ - progress_.step);
  metrics_line({{"type", "step"}, {"step", progress_.step}, {"loss", loss}, {"grad_norm", norm}, {"lr", lr},
                {"tokens", tokens}, {"trained_tokens", trained}, {"rows_seen", progress_.position_rows},
                {"seconds", seconds}, {"tokens_per_second", rate}, {"gemm_share", share},
                {"peak_rss_bytes", peak_rss_bytes()}, {"skipped_steps", progress_.skipped_steps}});
  const std::string text = fmt::format("step {}/{}  loss {:.4f}  norm {:.3f}  lr {:.2e}  {} tok/s  {:.0f} % of GEMM  mem {}  ETA {}",
                                       progress_.step, total_steps_, loss, norm, lr, human_count(static_cast<int64_t>(rate)),
                                       100.0 * share, human_bytes(static_cast<double>(peak_rss_bytes())), human_duration(eta));
  if (ctx_.terminal) {
    fmt::print("\r\033[K{}", text);
    progress_line_ = true;
  } else {
    fmt::print("{}\n", text);
  }
  std::fflush(stdout);
}

/// What was tuned is kept for later runs, and from here on nothing should be allocated on a GPU.
void Job::after_first_step() {
  startup_.end();
  nlohmann::ordered_json phases;
  for (const auto& [name, seconds] : startup_.phases()) phases[name] = seconds;
  metrics_line({{"type", "first_step"}, {"seconds_since_exec", seconds_since_exec()}, {"phases", std::move(phases)}});
  say(ctx_, "start      first step " + startup_.str());
  if (device_.kind != DeviceKind::kCuda) return;
  cuda::api().save_tuning();
  allocations_ = cuda::api().allocation_count();
}

/// What every rank planned and used, at the end of the job: the plan is meant to be the truth.
void Job::report_memory() {
  const bool gpu = device_.kind == DeviceKind::kCuda;
  const std::vector<RankMemory> memory = gather_memory(ctx_, *engine_, gpu ? cuda::api().allocation_count() - allocations_ : 0);
  if (!ctx_.first()) return;
  for (size_t r = 0; r < memory.size(); ++r)
    if (memory[r].late_allocations > 0)
      log::warn("rank {}: {} device allocations after the first step: each stops the device for a while", r, memory[r].late_allocations);
  nlohmann::ordered_json ranks = nlohmann::ordered_json::array();
  for (const RankMemory& m : memory)
    ranks.push_back({{"planned_bytes", m.planned}, {"allocated_bytes", m.allocated}, {"peak_rss_bytes", m.peak_rss},
                     {"late_allocations", m.late_allocations}});
  metrics_line({{"type", "memory"}, {"ranks", std::move(ranks)}});
}

void Job::evaluate() {
  for (const auto& [file, set] : eval_) {
    ctx_.status.set_phase("evaluating " + file);
    const EvalResult r = evaluate_dataset(ctx_, *engine_, set, rows_);
    if (!ctx_.first()) continue;
    fmt::print("{}eval  step {}  {}  loss {:.4f}  perplexity {:.3f}  ({} trained tokens)\n", progress_line_ ? "\n" : "",
               progress_.step, file, r.loss, r.perplexity(), r.trained_tokens);
    progress_line_ = false;
    std::fflush(stdout);
    metrics_line({{"type", "eval"}, {"step", progress_.step}, {"file", file}, {"loss", r.loss},
                  {"perplexity", r.perplexity()}, {"trained_tokens", r.trained_tokens}});
  }
}

CheckpointMeta Job::checkpoint_meta() const {
  CheckpointMeta meta;
  meta.run_id = run_id_;
  meta.step = progress_.step;
  meta.data_position_rows = progress_.position_rows;
  meta.seed = cfg_.seed;
  meta.config_text = resolved_ini(cfg_);
  meta.fingerprints = fingerprints_;
  meta.counters = {{"skipped_steps", progress_.skipped_steps}};
  return meta;
}

/// What is to be told when a checkpoint is committed or has failed. Throws after too many failures in a row.
void Job::conclude_save(const SaveOutcome& o) {
  if (o.committed) {
    failed_saves_ = 0;
    last_saved_ = o.step;
    ctx_.status.set_checkpoint(o.step);
    if (!ctx_.first()) return;
    fmt::print("{}checkpoint {} ({:.1f} s, training held for {})\n", progress_line_ ? "\n" : "", o.path.string(), o.total_seconds,
               human_duration(save_stall_));
    progress_line_ = false;
    std::fflush(stdout);
    metrics_line({{"type", "checkpoint"}, {"step", o.step}, {"path", o.path.string()}, {"seconds", o.total_seconds},
                  {"copy_seconds", o.copy_seconds}, {"stall_seconds", save_stall_}});
    return;
  }
  ++failed_saves_;
  const std::string last = last_saved_ < 0 ? std::string("there is no earlier one")
                                           : fmt::format("the last good one, step {}, is untouched", last_saved_);
  if (ctx_.first()) metrics_line({{"type", "checkpoint_failed"}, {"step", o.step}, {"failures", failed_saves_}});
  if (failed_saves_ < kMaxFailedSaves) {
    if (!o.error.empty())
      log::warn("checkpoint of step {} could not be written (failure {} of {}), {}: {}", o.step, failed_saves_, kMaxFailedSaves,
                last, o.error);
    return;
  }
  if (!o.error.empty()) throw StorageError("{} checkpoints in a row could not be written, {}: {}", failed_saves_, last, o.error);
  throw CommError("another rank could not write {} checkpoints in a row", failed_saves_);
}

/// Starts a checkpoint of this step, after the one under way.
void Job::begin_save() {
  const auto start = Clock::now();
  if (saver_->busy()) {
    const bool of_this_step = saver_->step() == progress_.step;
    ctx_.status.set_phase(of_this_step ? "writing a checkpoint" : "waiting for the previous checkpoint to be written");
    conclude_save(saver_->finish());
    if (ctx_.first() && !of_this_step && seconds_since(start) > 0.5 * seconds_per_step_)
      log::warn("training waited {} for the previous checkpoint: writing one takes longer than --save-every {} steps",
                human_duration(seconds_since(start)), cfg_.save_every);
  }
  if (last_saved_ == progress_.step) return;
  ctx_.status.set_phase(saver_options_.snapshot ? "copying the state for a checkpoint" : "writing a checkpoint");
  saver_->begin(checkpoint_meta());
  save_stall_ = seconds_since(start);
}

/// Saves and waits for it; a failed write is tried again.
void Job::save_now() {
  while (true) {
    begin_save();
    if (!saver_->busy()) return;
    ctx_.status.set_phase("writing a checkpoint");
    conclude_save(saver_->finish());
    if (last_saved_ == progress_.step) return;
    std::this_thread::sleep_for(std::chrono::seconds(failed_saves_));
  }
}

ExitCode Job::finish(const char* why) {
  metrics_.reset();
  engine_->close();
  if (why == nullptr) return ExitCode::kOk;
  const std::string text = fmt::format("{}; step {} is saved: run the same command with --resume auto", why, progress_.step);
  say(ctx_, text);
  throw StoppedError("{}", text);
}

void Job::print_end(double first_loss, double last_loss, double seconds) {
  say(ctx_, fmt::format("\nloss {:.4f} at the start, {:.4f} at the end; {} in all", first_loss, last_loss,
                        human_duration(seconds)));
  if (source_->built_in) {
    ctx_.status.set_phase("sampling an answer");
    print_sample(ctx_, *engine_, *data_, *tokenizer_);
  }
  const std::string checkpoint = (output_ / checkpoint::step_directory(progress_.step)).string();
  say(ctx_, fmt::format("\nThe checkpoint is a Hugging Face directory: {}\n"
                        "Try next:\n"
                        "  r1run verify --model {} --layouts 1x1x1,2x1x4\n"
                        "  r1run train --model {} --data YOUR.jsonl --pp {} --dp {} --tp {}\n"
                        "Metrics of every step: {}",
                        checkpoint, checkpoint, checkpoint, cfg_.pp, cfg_.dp, cfg_.tp, (output_ / "metrics.jsonl").string()));
}

ExitCode Job::run() {
  open();
  begin("measuring the machine");
  gemm_rate_ = measure_gemm_rate(ctx_, device_, engine_->plan().format.weights);
  print_start(gemm_rate_, total_steps_);
  if (ctx_.first()) {
    metrics_.emplace(output_ / "metrics.jsonl");
    metrics_line({{"type", "start"}, {"version", R1RUN_VERSION}, {"run_id", run_id_}, {"step", progress_.step},
                  {"pp", cfg_.pp}, {"dp", cfg_.dp}, {"tp", cfg_.tp}, {"schedule", engine_->schedule().name},
                  {"recompute", recompute_}, {"rows", rows_.batch},
                  {"seq_len", rows_.seq_len}, {"parameters", source_->config.parameters()},
                  {"planned_bytes", engine_->plan().bytes().total()}, {"gemm_flops_per_second", gemm_rate_}});
  }
  const optim::LrSchedule lr_schedule{.kind = optim::parse_lr_schedule(cfg_.lr_schedule), .lr = cfg_.lr, .min_lr = cfg_.min_lr,
                                      .warmup_steps = cfg_.warmup_steps, .total_steps = total_steps_};
  const parallel::MeshCoord coord = engine_->groups().coord();
  StepHealth health(ctx_, *data_, [this](nlohmann::ordered_json line) { metrics_line(std::move(line)); });
  double first_loss = std::nan(""), last_loss = std::nan("");
  const int64_t begun_at = progress_.step;
  if (const int64_t needed = cfg_.profile + StepProfile::kWarmupSteps; cfg_.profile > 0 && total_steps_ - progress_.step < needed && ctx_.first())
    log::warn("--profile {} prints nothing: it takes {} steps, {} of them to warm up, and this job has {} to do", cfg_.profile, needed,
              StepProfile::kWarmupSteps, total_steps_ - progress_.step);
  StepProfile profile(ctx_, *engine_, cfg_.profile, gemm_rate_ / ctx_.world.size(),
                      [this](nlohmann::ordered_json line) { metrics_line(std::move(line)); });
  const auto job_start = Clock::now();
  startup_.begin("first step");
  FlightRecorder& flight = ctx_.status.flight();
  while (progress_.step < total_steps_) {
    const auto start = Clock::now();
    ctx_.status.set_step(progress_.step + 1);
    flight.begin_step(progress_.step + 1);
    ctx_.check_stop();
    const std::vector<models::HostBatch> batches = make_batches(*data_, rows_, progress_.position_rows, coord.dp);
    int64_t trained = 0, segment_squares = 0;
    for (const models::HostBatch& b : batches) {
      trained += b.trained_tokens;
      for (size_t i = 1; i < b.cu_seqlens.size(); ++i) {
        const int64_t n = b.cu_seqlens[i] - b.cu_seqlens[i - 1];
        segment_squares += n * n;
      }
    }
    trained = reduce(engine_->groups().dp(), trained, comm::ReduceOp::kSum);
    profile.before_step();
    const double lr = lr_schedule.at(progress_.step);
    const auto [loss, norm] = engine_->train_step(
        batches, trained, lr, progress_.step + 1,
        [&](const parallel::Action& a) {
          ctx_.status.set_phase(phase_of(a));
          record_action(flight, a);
        },
        [&](Engine::StepPart part) {
          ctx_.status.set_phase(part == Engine::StepPart::kUpdate ? "optimizer" : "waiting for the device");
          if (part == Engine::StepPart::kUpdate) flight.action(Operation::kOptimizer, -1, -1);
        });
    flight.end_action();
    ctx_.status.set_phase("end of the step");
    profile.after_step(seconds_since(start));
    ++progress_.step;
    progress_.position_rows += rows_.batch;
    if (health.observe({.step = progress_.step, .first_row = progress_.position_rows - rows_.batch, .rows = rows_.batch,
                        .loss = loss, .norm = norm})) {
      ++progress_.skipped_steps;
      if (health.skipped_in_a_row() > cfg_.max_skipped_steps && saver_->busy()) conclude_save(saver_->finish());
      health.check(last_saved_ < 0 ? std::string("no checkpoint was written")
                                   : fmt::format("the last good checkpoint is step {}", last_saved_));
    }
    if (progress_.step == begun_at + 1) after_first_step();
    if (std::isnan(first_loss)) first_loss = loss;
    last_loss = loss;
    const auto tokens = static_cast<int64_t>(batches.size()) * rows_.tokens() * rows_.dp;
    report_step(loss, norm, lr, tokens, trained, seconds_since(start),
                static_cast<double>(segment_squares) / static_cast<double>(std::max<int64_t>(1, tokens / rows_.dp)));
    if (cfg_.eval_every > 0 && progress_.step % cfg_.eval_every == 0 && progress_.step < total_steps_) evaluate();
    // A signal reaches ranks at different times: all leave after the same step.
    const CheckpointSaver::Vote vote = saver_->vote();
    int64_t flags[] = {ctx_.signals.save.load() != 0, vote.running, vote.failed};
    ctx_.world.all_reduce({.data = flags, .dtype = DType::kI64, .shape = {3}, .device = {}}, comm::ReduceOp::kMax, {});
    if (const auto outcome = saver_->advance({.running = flags[1], .failed = flags[2]})) conclude_save(*outcome);
    const bool leave = flags[0] != 0;
    if (leave) save_now();
    else if (cfg_.save_every > 0 && progress_.step % cfg_.save_every == 0) begin_save();
    if (leave && progress_.step < total_steps_) return finish("stopped by signal USR1");
  }
  if (!eval_.empty()) evaluate();
  save_now();
  report_memory();
  if (ctx_.first() && progress_line_) fmt::print("\n");
  print_end(first_loss, last_loss, seconds_since(job_start));
  return finish(nullptr);
}

}  // namespace

ExitCode run_train(const RankContext& ctx) { return Job(ctx).run(); }

}  // namespace r1::train
