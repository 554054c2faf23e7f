#include "runtime/train/inference.h"

#include <algorithm>
#include <fstream>
#include <sstream>

#include "runtime/core/human.h"
#include "runtime/core/log.h"
#include "runtime/device/cpu/cpu_backend.h"
#include "runtime/device/cuda/cuda_api.h"
#include "runtime/device/cuda_library.h"
#include "runtime/kernels/ops.h"
#include "runtime/kernels/sample.h"
#include "runtime/train/weights_io.h"

namespace r1::train {

namespace fs = std::filesystem;

namespace {

constexpr double kMemoryShare = 0.9;  // of what is free; the rest is for buffers of MPI, the allocator and others

std::string file_text(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream out;
  out << in.rdbuf();
  if (!in) throw DataError("{}: cannot be read", path.string());
  return out.str();
}

serve::SamplingWishes wishes_of(const JobConfig& cfg) {
  return {.temperature = cfg.temperature,
          .top_p = cfg.top_p,
          .min_p = cfg.min_p,
          .repetition_penalty = cfg.repetition_penalty,
          .top_k = cfg.top_k,
          .seed = cfg.seed};
}

/// Bytes this rank may take: its share of what is free on its device. Collective over the world.
int64_t memory_budget(const RankContext& ctx, const Device& device) {
  const size_t free = device.kind == DeviceKind::kCpu ? available_host_bytes() : cuda::api().device_info(device).free_bytes;
  return static_cast<int64_t>(kMemoryShare * static_cast<double>(free)) / ranks_on_this_device(ctx.world, device);
}

}  // namespace

void fit_attention(parallel::InferenceShape& shape, DeviceKind kind, const parallel::ModelSpec& spec) {
  const bool gpu = kind == DeviceKind::kCuda;
  int64_t heads = 0;
  for (int r = 0; r < spec.tp(); ++r) heads = std::max(heads, spec.local(r).q_heads.size());
  const int64_t dim = spec.config().head_dim;
  // The CPU's kernel takes its own: a partial result for each 128 positions of each head and query token.
  const auto bytes = [&](int64_t rows) {
    return gpu ? static_cast<int64_t>(kernels::decode_attention_workspace_bytes(kind, rows, heads, dim, shape.context))
               : rows * heads * ((shape.context + 127) / 128) * (dim + 2) * int64_t{sizeof(float)};
  };
  const int64_t most = int64_t{gpu ? 256 : 64} << 20;
  shape.attention_rows = std::clamp<int64_t>(most / std::max<int64_t>(1, bytes(1)), 1, shape.pass_tokens);
  shape.workspace_bytes = gpu ? bytes(shape.attention_rows) : 0;
}

InferenceSession::InferenceSession(const RankContext& ctx)
    : ctx_(ctx), mesh_(mesh_of(ctx, ranks_on_this_host(ctx.world))), source_(open_model_source(ctx, ".")) {
  const fs::path dir = source_.dir.path();
  if (fs::exists(dir / "tokenizer.json")) {
    tokenizer_ = text::Tokenizer::load(dir);
    check_tokenizer(*tokenizer_, source_);
  }
  serve::GenerationConfig file;
  if (fs::exists(dir / "generation_config.json"))
    file = serve::parse_generation_config(file_text(dir / "generation_config.json"),
                                          (dir / "generation_config.json").string());
  sampling_ = serve::resolve_sampling(file, wishes_of(ctx.config), &sampling_shown_);
  if (!sampling_.plain()) {
    constexpr const char* kGreedy = "--temperature 0 --repetition-penalty 1 works";
    if (source_.config.vocab > kernels::kMaxSampleVocab)
      throw UsageError("sampling needs a vocabulary of at most {} tokens, {} has {}; {}", kernels::kMaxSampleVocab, dir.string(),
                       source_.config.vocab, kGreedy);
    if (mesh_.tp > kernels::kMaxVocabParts)
      throw UsageError("--tp {}: sampling works on at most {}; {}", mesh_.tp, kernels::kMaxVocabParts, kGreedy);
  }
  for (const int64_t id : file.eos_ids.empty() ? source_.config.eos_ids : file.eos_ids)
    eos_ids_.push_back(static_cast<int32_t>(id));
}

InferenceSession::~InferenceSession() {
  engine_.reset();
  model_.reset();
  params_.clear();
  if (has_stream_) backend_of(device_.kind).destroy_stream(stream_);
}

parallel::InferenceShape InferenceSession::plan_shape(const RequestSizes& sizes) {
  const JobConfig& cfg = ctx_.config;
  const parallel::ModelConfig& model = source_.config;
  const bool gpu = device_.kind == DeviceKind::kCuda;
  if (cfg.context > model.max_positions)
    throw UsageError("--context {}: the model has max_position_embeddings {}", cfg.context, model.max_positions);
  const int64_t limit = cfg.context > 0 ? cfg.context : model.max_positions;
  if (sizes.longest_prompt >= limit)
    throw UsageError("a prompt has {} tokens, which leaves no room for an answer in a context of {} ({})",
                     sizes.longest_prompt, limit,
                     cfg.context > 0 ? "--context" : "max_position_embeddings of the model");
  const int64_t longest = sizes.longest > 0 ? std::min(sizes.longest, limit) : limit;

  parallel::InferenceShape shape;
  shape.dtype = numeric_format(cfg, device_).weights;
  shape.sequences = std::clamp<int64_t>(sizes.count, 1, cfg.max_batch > 0 ? cfg.max_batch : gpu ? 256 : 32);
  const int64_t chunk = cfg.prefill_chunk > 0 ? cfg.prefill_chunk : gpu ? 2048 : 256;
  // A pass of decoding tokens has one a sequence; on a GPU pieces of prompts share it.
  shape.pass_tokens = gpu ? std::max(chunk, shape.sequences) : std::max<int64_t>(std::min(chunk, longest), 32);
  shape.context = longest;
  shape.logit_rows = std::min<int64_t>(shape.sequences, gpu ? 256 : 32);
  fit_attention(shape, device_.kind, *spec_);

  const int64_t budget = memory_budget(ctx_, device_);
  const parallel::MeshCoord coord = parallel::coord_of(mesh_, ctx_.world.rank());
  const int64_t fixed = plan_inference(*spec_, mesh_, coord, shape).bytes().total();
  const int64_t block = parallel::kv_block_bytes(*spec_, mesh_, coord, shape);
  const int64_t own_fit = std::max<int64_t>(0, budget - fixed) / std::max<int64_t>(block, 1);
  const int64_t fit =
      std::min<int64_t>(-reduce(ctx_.world, -own_fit, comm::ReduceOp::kMax), INT32_MAX);  // the least of all ranks
  const int64_t most_fixed = reduce(ctx_.world, fixed, comm::ReduceOp::kMax),
                most_block = reduce(ctx_.world, block, comm::ReduceOp::kMax);
  const auto refuse = [&](const std::string& what, int64_t blocks) {
    const int64_t tokens = std::min(fit * shape.block_size, limit);
    const std::string advice = tokens <= sizes.longest_prompt ? std::string("; take more ranks")
                               : cfg.kv_blocks > 0            ? fmt::format("; --kv-blocks {} would fit", fit)
                                                              : fmt::format("; --context {} would fit", tokens);
    throw MemoryError(
        "{}: a rank needs {} for weights and working memory and {} for {} cache blocks of {} tokens, and may take {}{}",
        what, human_bytes(static_cast<double>(most_fixed)), human_bytes(static_cast<double>(blocks * most_block)),
        blocks, shape.block_size, human_bytes(static_cast<double>(budget)), advice);
  };
  if (cfg.kv_blocks > 0) {
    shape.blocks = cfg.kv_blocks;
    if (cfg.kv_blocks > fit) refuse(fmt::format("--kv-blocks {}", cfg.kv_blocks), cfg.kv_blocks);
  } else {
    shape.blocks = std::min(shape.sequences * shape.blocks_of(longest), fit);
  }
  if (shape.blocks < shape.blocks_of(longest)) {
    // Nobody asked for this length: the context is what the cache can hold.
    const bool own_choice = sizes.longest == 0 && cfg.context == 0;
    if (!own_choice || shape.blocks * shape.block_size <= sizes.longest_prompt) {
      if (cfg.kv_blocks > 0)
        throw UsageError(
            "--kv-blocks {} hold {} tokens, but one sequence takes up to {} (prompt and --max-new-tokens): --kv-blocks "
            "{} would do",
            cfg.kv_blocks, cfg.kv_blocks * shape.block_size, longest, shape.blocks_of(longest));
      refuse(fmt::format("a sequence of {} tokens does not fit", longest), shape.blocks_of(longest));
    }
    shape.context = shape.blocks * shape.block_size;
    if (ctx_.first())
      log::warn("the model allows {} tokens, the cache has room for {}: completions end there (--context, --kv-blocks)",
                limit, shape.context);
  }
  return shape;
}

void InferenceSession::load(const RequestSizes& sizes, bool logprobs) {
  const int threads = setup_threads(ctx_);
  device_ = choose_device(ctx_, {});
  spec_ = std::make_unique<parallel::ModelSpec>(source_.config, mesh_.tp, mesh_.pp);
  const parallel::InferenceShape shape = plan_shape(sizes);
  const bool gpu = device_.kind == DeviceKind::kCuda;
  stream_ = backend_of(device_.kind).create_stream(device_);
  has_stream_ = true;
  router_ = std::make_unique<comm::Router>(ctx_.world, parse_comm_choice(ctx_.config.comm), device_, ctx_.stop);
  groups_ = std::make_unique<parallel::ProcessGroups>(router_->world(), mesh_, false);
  plan_ = plan_inference(*spec_, mesh_, groups_->coord(), shape);
  const parallel::InferencePlan::Bytes bytes = plan_.bytes();
  if (ctx_.first())
    log::info(
        "{}, {} thread{} a rank; weights {}, cache of {} tokens {}, working memory {} on rank 0; up to {} sequences of "
        "up to {} tokens",
        mesh_.str(), threads, threads == 1 ? "" : "s", human_bytes(static_cast<double>(bytes.weights)),
        human_count(shape.blocks * shape.block_size), human_bytes(static_cast<double>(bytes.cache)),
        human_bytes(static_cast<double>(bytes.scratch)), shape.sequences, human_count(shape.context));

  ctx_.status.set_phase("loading weights");
  const parallel::NumericFormat format{.weights = shape.dtype};
  params_.reserve(plan_.chunks.size());
  for (const auto& chunk : plan_.chunks)
    params_.emplace_back(*spec_, chunk.stage, groups_->coord().tp, format, device_,
                         models::StageParameters::Holds{.training = false}, stream_);
  if (source_.init_seed) {
    for (const models::StageParameters& p : params_) models::initialise(p, source_.config, *source_.init_seed, stream_);
  } else {
    load_weights(params_, source_.dir, stream_, [this] { ctx_.check_stop(); });
  }
  model_ = std::make_unique<models::PagedModel>(*spec_, plan_, *groups_, params_, device_, stream_);
  engine_ = std::make_unique<serve::Engine>(
      *model_, *groups_,
      serve::EngineOptions{.limits = {.sequences = shape.sequences,
                                      .pass_tokens = shape.pass_tokens,
                                      .prefill_chunk = std::min(shape.pass_tokens, ctx_.config.prefill_chunk > 0
                                                                                       ? ctx_.config.prefill_chunk
                                                                                       : shape.pass_tokens),
                                      .block_size = shape.block_size,
                                      .blocks = shape.blocks,
                                      .depth = mesh_.pp,
                                      .exact = !gpu},
                           .eos_ids = eos_ids_,
                           .logprobs = logprobs});
}

int64_t InferenceSession::max_new_tokens(int64_t prompt) const {
  const int64_t room = plan_.shape.context - prompt;
  return ctx_.config.max_new_tokens > 0 ? std::min(ctx_.config.max_new_tokens, room) : room;
}

void InferenceSession::close() {
  if (groups_) groups_->close();
}

}  // namespace r1::train
