#include "runtime/train/model_source.h"

#include "runtime/core/log.h"
#include "runtime/core/rng.h"
#include "runtime/data/default/default_job.h"
#include "runtime/train/weights_io.h"

namespace r1::train {

namespace fs = std::filesystem;

std::string ModelSource::fingerprint() const {
  const parallel::ModelConfig& c = config;
  const std::string text =
      fmt::format("{} h{} l{} q{} kv{} d{} f{} v{} tied{} eps{} theta{} llama3 {} {} {} {} {}", c.architecture_name(),
                  c.hidden, c.layers, c.heads, c.kv_heads, c.head_dim, c.ffn, c.vocab, c.tied_embeddings, c.rms_eps,
                  c.rope.theta, c.rope.llama3, c.rope.factor, c.rope.low_freq_factor, c.rope.high_freq_factor,
                  c.rope.original_max_positions);
  return fmt::format("{:016x}", hash_name(text));
}

ModelSource open_model_source(const RankContext& ctx, const fs::path& output) {
  const JobConfig& cfg = ctx.config;
  fs::path path = cfg.model;
  std::optional<uint64_t> seed;
  const bool built_in = cfg.model.empty();
  if (built_in) {
    path = output / "default-model";
    if (ctx.first()) data::write_default_model_files(path);
    ctx.world.barrier();
    seed = cfg.seed;
  }
  if (!cfg.init.empty()) seed = std::stoull(cfg.init.substr(std::string("random:").size()));
  ModelSource source{.dir = seed ? checkpoint::HfModelDir::open_config_only(path) : checkpoint::HfModelDir::open(path),
                     .config = {}, .init_seed = seed, .built_in = built_in};
  std::vector<std::string> unknown;
  source.config = parallel::parse_model_config(source.dir.config_json(), (path / "config.json").string(), &unknown);
  if (ctx.first())
    for (const std::string& key : unknown)
      log::warn("{}: key '{}' is not known to this version and has no effect", (path / "config.json").string(), key);
  if (!seed) check_model_dir(source.dir, source.config);
  return source;
}

void check_tokenizer(const text::Tokenizer& tokenizer, const ModelSource& source) {
  if (tokenizer.vocab_size() > source.config.vocab)
    throw DataError("{}: the tokenizer has ids up to {}, but the model's embedding has {} rows (vocab_size in config.json)",
                    (source.dir.path() / "tokenizer.json").string(), tokenizer.vocab_size() - 1, source.config.vocab);
}

}  // namespace r1::train
