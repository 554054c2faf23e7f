// From the configuration to a generation engine: what generate and eval --task share.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "comm/routed/routed.h"
#include "runtime/serve/engine.h"
#include "runtime/serve/generation_config.h"
#include "runtime/tokenizer/tokenizer.h"
#include "runtime/train/setup.h"

namespace r1::train {

/// What the requests of a job need, over all of them.
struct RequestSizes {
  int64_t count = 0;           ///< requests of the replica that has most
  int64_t longest_prompt = 0;  ///< tokens
  int64_t longest = 0;         ///< prompt and completion; 0: up to the context
};

/// Sets attention_rows and workspace_bytes for a device: few enough query tokens a call that the attention kernel's
/// working memory stays within 256 MiB on a GPU and 64 MiB on a CPU. Pure.
void fit_attention(parallel::InferenceShape& shape, DeviceKind kind, const parallel::ModelSpec& spec);

/// A model ready to generate: groups, weights and cache of this rank.
class InferenceSession {
 public:
  /// Opens --model (config, tokenizer if it has one, generation_config.json). Collective over the world. Throws
  /// UsageError, DataError.
  explicit InferenceSession(const RankContext& ctx);
  ~InferenceSession();

  [[nodiscard]] const ModelSource& source() const { return source_; }
  [[nodiscard]] const parallel::MeshShape& mesh() const { return mesh_; }
  /// Null when the directory has no tokenizer.json: prompts are then ids.
  [[nodiscard]] const text::Tokenizer* tokenizer() const { return tokenizer_ ? &*tokenizer_ : nullptr; }
  [[nodiscard]] const serve::SamplingParams& sampling() const { return sampling_; }
  [[nodiscard]] const std::string& sampling_shown() const { return sampling_shown_; }
  [[nodiscard]] const std::vector<int32_t>& eos_ids() const { return eos_ids_; }

  /// Plans the cache for these requests, refuses what does not fit, loads the weights and makes the engine. Collective
  /// over the world. Throws UsageError (--context beyond the model), MemoryError naming wanted and available bytes and
  /// what would fit.
  void load(const RequestSizes& sizes, bool logprobs);
  [[nodiscard]] serve::Engine& engine() { return *engine_; }
  [[nodiscard]] parallel::ProcessGroups& groups() { return *groups_; }
  /// --max-new-tokens, or all that the context leaves for this prompt.
  [[nodiscard]] int64_t max_new_tokens(int64_t prompt) const;
  /// Collective end.
  void close();

 private:
  [[nodiscard]] parallel::InferenceShape plan_shape(const RequestSizes& sizes);

  const RankContext& ctx_;
  parallel::MeshShape mesh_;
  ModelSource source_;
  std::optional<text::Tokenizer> tokenizer_;
  serve::SamplingParams sampling_;
  std::string sampling_shown_;
  std::vector<int32_t> eos_ids_;
  std::unique_ptr<parallel::ModelSpec> spec_;
  Device device_;
  Stream stream_;
  bool has_stream_ = false;
  std::unique_ptr<comm::Router> router_;  // outlives the groups
  std::unique_ptr<parallel::ProcessGroups> groups_;
  parallel::InferencePlan plan_;
  std::vector<models::StageParameters> params_;
  std::unique_ptr<models::PagedModel> model_;
  std::unique_ptr<serve::Engine> engine_;
};

}  // namespace r1::train
