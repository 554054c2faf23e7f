#include "runtime/train/verify.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <map>
#include <nlohmann/json.hpp>

#include "runtime/checkpoint/crc32c.h"
#include "runtime/core/human.h"
#include "runtime/core/rng.h"
#include "runtime/train/setup.h"
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

struct Reference {
  int64_t rows = 0, seq_len = 0;
  std::vector<int64_t> ids, labels, mask;  ///< [rows, seq_len]
  double loss = std::nan("");
  std::vector<float> logits;               ///< [rows, seq_len, vocab], may be empty
  std::map<std::string, std::vector<float>> gradients;
};

std::vector<int64_t> read_integers(const checkpoint::SafetensorsFile& f, const char* name) {
  const checkpoint::TensorEntry& e = f.at(name);
  if (e.dtype != DType::kI64 || e.shape.size() != 2)
    throw DataError("{}: '{}' is {} {}, expected I64 [rows, tokens]", f.path().string(), name, e.dtype_name,
                    checkpoint::shape_text(e.shape));
  std::vector<int64_t> v(e.elems());
  f.read_bytes(e, 0, v.data(), e.bytes());
  return v;
}

std::vector<float> read_floats(const checkpoint::SafetensorsFile& f, const checkpoint::TensorEntry& e) {
  std::vector<float> v(e.elems());
  if (e.dtype == DType::kF32) {
    f.read_bytes(e, 0, v.data(), e.bytes());
    return v;
  }
  if (!e.dtype || !checkpoint::convertible(*e.dtype, DType::kF32))
    throw DataError("{}: '{}' is {}, expected a floating type", f.path().string(), e.name, e.dtype_name);
  std::vector<char> raw(e.bytes());
  f.read_bytes(e, 0, raw.data(), raw.size());
  checkpoint::convert_elements(*e.dtype, raw.data(), DType::kF32, v.data(), v.size());
  return v;
}

/// Loss of the reference's own logits, in double: mean over positions whose next label is trained.
double loss_of_logits(const Reference& r, int64_t vocab) {
  double sum = 0;
  int64_t count = 0;
  for (int64_t i = 0; i < r.rows; ++i)
    for (int64_t t = 0; t + 1 < r.seq_len; ++t) {
      const int64_t label = r.labels[static_cast<size_t>(i * r.seq_len + t + 1)];
      if (label < 0) continue;
      const float* row = &r.logits[static_cast<size_t>((i * r.seq_len + t) * vocab)];
      const double top = *std::max_element(row, row + vocab);
      double z = 0;
      for (int64_t v = 0; v < vocab; ++v) z += std::exp(static_cast<double>(row[v]) - top);
      sum += top + std::log(z) - static_cast<double>(row[label]);
      ++count;
    }
  return count > 0 ? sum / static_cast<double>(count) : 0.0;
}

Reference read_reference(const fs::path& path, const parallel::ModelConfig& config) {
  const auto f = checkpoint::SafetensorsFile::open(path);
  Reference r;
  const checkpoint::TensorEntry& ids = f.at("input_ids");
  r.ids = read_integers(f, "input_ids");
  r.labels = read_integers(f, "labels");
  r.rows = ids.shape.at(0);
  r.seq_len = ids.shape.at(1);
  if (f.find("attention_mask") != nullptr) r.mask = read_integers(f, "attention_mask");
  else r.mask.assign(r.ids.size(), 1);
  if (r.labels.size() != r.ids.size() || r.mask.size() != r.ids.size())
    throw DataError("{}: input_ids, labels and attention_mask differ in shape", path.string());
  for (const int64_t id : r.ids)
    if (id < 0 || id >= config.vocab)
      throw DataError("{}: input_ids has {}, the model's vocabulary ends at {}", path.string(), id, config.vocab - 1);
  for (const int64_t label : r.labels)
    if (label >= config.vocab)
      throw DataError("{}: labels has {}, the model's vocabulary ends at {}", path.string(), label, config.vocab - 1);
  if (const auto* e = f.find("logits"); e != nullptr) {
    if (e->shape != std::vector<int64_t>{r.rows, r.seq_len, config.vocab})
      throw DataError("{}: logits has shape {}, expected [{}, {}, {}]", path.string(), checkpoint::shape_text(e->shape), r.rows,
                      r.seq_len, config.vocab);
    r.logits = read_floats(f, *e);
    r.loss = loss_of_logits(r, config.vocab);
  }
  const parallel::ModelSpec spec(config, 1, 1);
  for (const parallel::ParamSpec& p : spec.all_params()) {
    const auto* e = f.find("grad." + p.name);
    if (e == nullptr) continue;
    if (e->shape != p.shape)
      throw DataError("{}: grad.{} has shape {}, the parameter has {}", path.string(), p.name, checkpoint::shape_text(e->shape),
                      checkpoint::shape_text(p.shape));
    r.gradients[p.name] = read_floats(f, *e);
  }
  for (const checkpoint::TensorEntry& e : f.tensors())
    if (e.name.starts_with("grad.") && !r.gradients.contains(e.name.substr(5)))
      throw DataError("{}: '{}' is the gradient of no parameter of this model", path.string(), e.name);
  if (r.logits.empty() && r.gradients.empty())
    throw DataError("{}: holds neither logits nor grad.<parameter> tensors: nothing to compare with", path.string());
  return r;
}

/// Rows for comparing layouts with each other: four rows of up to 64 tokens, uneven lengths.
Reference made_rows(const parallel::ModelConfig& config, uint64_t seed) {
  Reference r{.rows = 4, .seq_len = std::min<int64_t>(64, config.max_positions)};
  const Rng rng(seed, "verify rows");
  for (int64_t i = 0; i < r.rows; ++i) {
    const int64_t length = r.seq_len - i * (r.seq_len / 6);
    for (int64_t t = 0; t < r.seq_len; ++t) {
      const bool real = t < length;
      const auto id = static_cast<int64_t>(rng.below(static_cast<uint64_t>(i * r.seq_len + t), static_cast<uint64_t>(config.vocab)));
      r.ids.push_back(real ? id : 0);
      r.labels.push_back(real ? id : -100);
      r.mask.push_back(real ? 1 : 0);
    }
  }
  return r;
}

/// Row i of the reference as a data row: real tokens (a mask that is 1 at the front) in one segment, padding in another.
data::Row reference_row(const Reference& r, int64_t i, const fs::path& where) {
  data::Row row;
  int64_t length = 0;
  for (int64_t t = 0; t < r.seq_len; ++t) {
    const auto at = static_cast<size_t>(i * r.seq_len + t);
    if (r.mask[at] != 0 && length != t)
      throw DataError("{}: row {}: attention_mask must be ones at the front, then zeros", where.string(), i);
    length += r.mask[at] != 0 ? 1 : 0;
    row.ids.push_back(static_cast<int32_t>(r.ids[at]));
    const bool last = t + 1 == r.seq_len;
    const int64_t next = last ? -100 : r.labels[at + 1];
    row.targets.push_back(next >= 0 ? static_cast<int32_t>(next) : -1);
    row.trained_tokens += next >= 0 ? 1 : 0;
  }
  row.segments = {static_cast<int32_t>(length), static_cast<int32_t>(r.seq_len - length)};
  return row;
}

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

struct Result {
  double loss = 0, logits_error = 0;
  std::map<std::string, double> gradients;    ///< relative L2 by name, on rank 0
  std::map<std::string, uint32_t> checksums;  ///< of each gathered gradient, on rank 0
};

/// JSON numbers must be finite: an overflow or NaN becomes a number no tolerance accepts.
double finite(double x) { return std::isfinite(x) ? x : 1e300; }

class Verifier {
 public:
  explicit Verifier(const RankContext& ctx) : ctx_(ctx), cfg_(ctx.config) {}
  ExitCode run();

 private:
  Result run_one(const std::string& schedule, int virtual_stages, parallel::Recompute recompute);
  /// Brings the recorded logits and gradients of all ranks to rank 0. Collective.
  void collect_on_first(parallel::ProcessGroups& groups);
  void write_reference(const fs::path& path);

  const RankContext& ctx_;
  const JobConfig& cfg_;
  std::optional<ModelSource> source_;
  Reference reference_;
  bool own_rows_ = false;
  parallel::MeshShape mesh_;
  Device device_;
  fs::path write_to_;  ///< R1RUN_VERIFY_WRITE: where the first run's results go; recorded in the following
  std::vector<float> own_logits_;
  std::map<std::string, std::vector<float>> own_gradients_;
  std::map<std::string, int> stage_of_;  ///< pipeline rank that holds each parameter
};

Result Verifier::run_one(const std::string& schedule, int virtual_stages, parallel::Recompute recompute) {
  const parallel::ModelConfig& config = source_->config;
  BatchLayout rows{.batch = reference_.rows, .micro_batch = cfg_.micro_batch, .seq_len = reference_.seq_len, .dp = mesh_.dp};
  EngineOptions options = engine_options(cfg_, config, mesh_, rows, device_, true);
  options.stop = ctx_.stop;
  options.zero = 0;  // every replica needs all gradients to compare them
  options.schedule = schedule;
  options.virtual_stages = virtual_stages;
  options.recompute = recompute;
  Engine engine(config, options, ctx_.world);
  parallel::ProcessGroups& groups = engine.groups();
  if (source_->init_seed)
    for (const models::StageParameters& p : engine.model().parameters()) models::initialise(p, config, *source_->init_seed, engine.stream());
  else
    load_weights(engine, source_->dir, [this] { ctx_.check_stop(); });

  const parallel::Interval mine = parallel::even_part(rows.batch, groups.coord().dp, rows.dp);
  std::vector<models::HostBatch> batches(static_cast<size_t>(rows.microbatches()));
  std::vector<int64_t> row_of;  // this rank's row at [micro-batch, row], -1 for filling
  int64_t row = mine.begin;
  for (models::HostBatch& b : batches)
    for (int64_t i = 0; i < rows.micro_batch; ++i, ++row) {
      row_of.push_back(row < mine.end ? row : -1);
      if (row < mine.end) append_row(b, reference_row(reference_, row, cfg_.reference));
      else append_masked_row(b, rows.seq_len, 0);
    }
  int64_t trained = 0;
  for (const models::HostBatch& b : batches) trained += b.trained_tokens;
  trained = reduce(groups.dp(), trained, comm::ReduceOp::kSum);

  // Logits as they are made on the last stage: each tp rank compares its part of the vocabulary.
  Result result;
  const parallel::Interval vocab = engine.spec().local(groups.tp().rank()).vocab;
  const int64_t v = config.vocab;
  const bool record = !write_to_.empty() && own_logits_.empty();
  if (record) own_logits_.assign(static_cast<size_t>(reference_.rows * reference_.seq_len * v), 0.0F);
  engine.model().set_logits_sink([&](int microbatch, int64_t first, const Tensor& logits) {
    const std::vector<float> local = models::host_floats(logits, engine.stream());
    for (int64_t c = 0; c < logits.dim(0); ++c) {
      const int64_t token = first + c;
      const int64_t r = row_of[static_cast<size_t>(microbatch * rows.micro_batch + token / rows.seq_len)];
      if (r < 0) continue;
      const auto at = static_cast<size_t>(r * rows.seq_len + token % rows.seq_len);
      if (reference_.mask[at] == 0) continue;
      for (int64_t i = vocab.begin; i < vocab.end; ++i) {
        const float got = local[static_cast<size_t>(c * vocab.size() + i - vocab.begin)];
        if (record) own_logits_[at * static_cast<size_t>(v) + static_cast<size_t>(i)] = got;
        if (reference_.logits.empty()) continue;
        const double error = std::abs(static_cast<double>(got) - static_cast<double>(reference_.logits[at * static_cast<size_t>(v) + static_cast<size_t>(i)]));
        result.logits_error = std::max(result.logits_error, std::isnan(error) ? INFINITY : error);
      }
    }
  });
  result.loss = engine.forward_backward(batches, trained);
  engine.model().set_logits_sink({});
  result.logits_error = reduce(ctx_.world, result.logits_error, comm::ReduceOp::kMax);

  // Gradients, gathered tensor by tensor and compared by each stage's tp rank 0; the verdicts travel to rank 0.
  ordered_json verdicts = ordered_json::object();
  if (groups.coord().dp == 0)
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
        if (record) own_gradients_[p.name] = g;
      }
  for (int stage = 0; stage < mesh_.pp; ++stage) {
    const int root = parallel::rank_of(mesh_, {.pp = stage, .dp = 0, .tp = 0});
    const auto part = ordered_json::parse(broadcast_text(ctx_.world, ctx_.world.rank() == root ? verdicts.dump() : "", root));
    for (const auto& [name, entry] : part.items()) {
      stage_of_[name] = stage;
      result.checksums[name] = entry["crc"].get<uint32_t>();
      if (entry.contains("rel_l2")) result.gradients[name] = entry["rel_l2"].get<double>();
    }
  }
  if (record) collect_on_first(groups);
  engine.close();
  return result;
}

void Verifier::collect_on_first(parallel::ProcessGroups& groups) {
  const auto tensor = [](std::vector<float>& v) {
    return Tensor{.data = v.data(), .dtype = DType::kF32, .shape = {static_cast<int64_t>(v.size())}};
  };
  // Each rank has filled its own rows and its part of the vocabulary; the rest is zero.
  ctx_.world.all_reduce(tensor(own_logits_), comm::ReduceOp::kSum, {});
  if (groups.coord().dp != 0 || groups.coord().tp != 0) return;
  comm::Communicator& pp = groups.pp();
  if (pp.rank() != 0) {
    for (auto& [name, g] : own_gradients_) pp.send(tensor(g), 0, {});
    return;
  }
  const parallel::ModelSpec spec(source_->config, 1, 1);
  std::map<std::string, int64_t> missing;  // in the order of the senders' maps: by name
  for (const parallel::ParamSpec& p : spec.all_params())
    if (!own_gradients_.contains(p.name)) missing[p.name] = p.shard.local_elems(0);
  for (int stage = 1; stage < pp.size(); ++stage) {
    std::map<std::string, int64_t> theirs;
    for (const auto& [name, n] : missing)
      if (stage_of_.at(name) == stage) theirs[name] = n;
    for (const auto& [name, n] : theirs) {
      std::vector<float> g(static_cast<size_t>(n));
      pp.recv(tensor(g), stage, {});
      own_gradients_[name] = std::move(g);
    }
  }
}

void Verifier::write_reference(const fs::path& path) {
  const parallel::ModelConfig& config = source_->config;
  std::vector<checkpoint::TensorDecl> decls{{"input_ids", DType::kI64, {reference_.rows, reference_.seq_len}},
                                            {"labels", DType::kI64, {reference_.rows, reference_.seq_len}},
                                            {"attention_mask", DType::kI64, {reference_.rows, reference_.seq_len}},
                                            {"logits", DType::kF32, {reference_.rows, reference_.seq_len, config.vocab}}};
  const parallel::ModelSpec spec(config, 1, 1);
  for (const parallel::ParamSpec& p : spec.all_params()) decls.push_back({"grad." + p.name, DType::kF32, p.shape});
  checkpoint::SafetensorsWriter w(path, decls);
  for (const auto* v : {&reference_.ids, &reference_.labels, &reference_.mask})
    w.write(v == &reference_.ids ? "input_ids" : v == &reference_.labels ? "labels" : "attention_mask", v->data(),
            v->size() * sizeof(int64_t));
  w.write("logits", own_logits_.data(), own_logits_.size() * sizeof(float));
  for (const parallel::ParamSpec& p : spec.all_params()) {
    const std::vector<float>& g = own_gradients_.at(p.name);
    w.write("grad." + p.name, g.data(), g.size() * sizeof(float));
  }
  static_cast<void>(w.finish());
}

ExitCode Verifier::run() {
  if (cfg_.model.empty()) throw UsageError(
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

  struct Case {
    std::string schedule;
    int virtual_stages;
    parallel::Recompute recompute;
  };
  std::vector<Case> cases;
  for (const parallel::ScheduleKind& k : parallel::schedule_kinds()) {
    const std::string name(k.name);
    const bool all = cfg_.schedule.empty() || cfg_.schedule == "all";
    if (!all && cfg_.schedule != name) continue;
    int v = 1;
    if (k.virtual_stages_allowed) {
      v = cfg_.virtual_stages > 1 ? cfg_.virtual_stages : 2;
      if (all && mesh_.pp * v > source_->config.layers) continue;  // not every model has the layers for it
    }
    for (const parallel::Recompute r : {parallel::Recompute::kNone, parallel::Recompute::kCheap,
                                        parallel::Recompute::kSelective, parallel::Recompute::kFull}) {
      if (!cfg_.recompute.empty() && cfg_.recompute != "all" && cfg_.recompute != recompute_name(r)) continue;
      cases.push_back({name, v, r});
    }
  }

  const bool gpu = device_.kind == DeviceKind::kCuda;
  const Tolerance allowed = !gpu ? kCpuFp32 : numeric_format(cfg_, device_).weights == DType::kF32 ? kGpuFp32 : kGpuBf16;
  say(ctx_, fmt::format("{}  layout {}  {} rows of {} tokens{}", source_->dir.path().string(), mesh_.str(), reference_.rows,
                        reference_.seq_len, own_rows_ ? " (made from --seed)" : ""));
  say(ctx_, fmt::format("{:<12} {:<10} {:>12} {:>11} {:>11} {:>11}  {}", "schedule", "recompute", "loss", "loss rel", "logits abs",
                        "grad rel L2", "worst gradient"));
  ordered_json grads = ordered_json::object();
  double worst_loss_error = 0, worst_logits = 0, loss = 0;
  std::string worst_name;
  double worst_gradient = 0;
  bool pass = true, bit_equal = true, written = false;
  std::map<std::string, std::map<std::string, uint32_t>> first_checksums;  // by schedule
  for (const Case& c : cases) {
    ctx_.check_stop();
    const Result r = run_one(c.schedule, c.virtual_stages, c.recompute);
    if (!write_to_.empty() && !written) {
      written = true;
      if (ctx_.first()) write_reference(write_to_);
    }
    const double expected = std::isnan(reference_.loss) ? r.loss : reference_.loss;
    const double loss_error = std::abs(r.loss - expected) / std::max(std::abs(expected), 1e-300);
    loss = r.loss;
    worst_loss_error = std::max(worst_loss_error, finite(loss_error));
    worst_logits = std::max(worst_logits, finite(r.logits_error));
    std::string name;
    double gradient = 0;
    for (const auto& [n, e] : r.gradients) {
      if (name.empty() || e > gradient) {
        name = n;
        gradient = e;
      }
      grads[n] = std::max(grads.contains(n) ? grads[n].get<double>() : 0.0, e);
    }
    if (worst_name.empty() || gradient > worst_gradient) {
      worst_name = name;
      worst_gradient = gradient;
    }
    const auto& [it, first] = first_checksums.try_emplace(c.schedule, r.checksums);
    const bool same = first || it->second == r.checksums;
    bit_equal = bit_equal && same;
    const bool ok = finite(loss_error) <= allowed.loss && r.logits_error <= allowed.logits && gradient <= allowed.gradient && same;
    pass = pass && ok;
    say(ctx_, fmt::format("{:<12} {:<10} {:>12.8f} {:>11.2e} {:>11.2e} {:>11.2e}  {}{}", c.schedule, recompute_name(c.recompute),
                          r.loss, loss_error, r.logits_error, gradient, name.empty() ? "-" : name,
                          ok ? "" : same ? "  FAIL" : "  FAIL: differs in bits from the first recompute policy"));
  }
  say(ctx_, fmt::format("{}: loss {:.1e} (allowed {:.0e}), logits {:.1e} ({:.0e}), gradients {:.1e} ({:.0e}); recompute policies {}",
                        pass ? "PASS" : "FAIL", worst_loss_error, allowed.loss, worst_logits, allowed.logits, worst_gradient,
                        allowed.gradient, bit_equal ? "bit-equal" : "NOT bit-equal"));
  if (ctx_.first() && !cfg_.json.empty()) {
    const ordered_json out{{"loss", loss},
                           {"loss_ref", std::isnan(reference_.loss) ? loss : reference_.loss},
                           {"loss_rel_err", worst_loss_error},
                           {"logits_max_abs_err", worst_logits},
                           {"worst_grad", {{"name", worst_name}, {"rel_l2", worst_gradient}}},
                           {"grads", grads},
                           {"recompute_bit_equal", bit_equal},
                           {"pass", pass}};
    write_json(cfg_.json, out.dump(2));
  }
  return pass ? ExitCode::kOk : ExitCode::kBadInput;
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
