// Running requests over all replicas of a job and bringing the completions to rank 0.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "runtime/serve/completion_text.h"
#include "runtime/train/inference.h"
#include "runtime/train/prompts.h"

namespace r1::train {

struct Completion {
  std::vector<int32_t> ids;
  std::vector<float> logprobs;  ///< as many, where they were asked for
  serve::FinishReason finish = serve::FinishReason::kNone;
};

/// "stop" or "length".
[[nodiscard]] std::string_view finish_name(serve::FinishReason reason);

struct CompletionJob {
  std::vector<serve::Request> requests;  ///< of all replicas, numbered; request i is the business of replica i % dp
  std::vector<std::string> stops;        ///< stop strings; they need the session's tokenizer
  text::TemplateKind kind = text::TemplateKind::kR1Distill;
};
/// What rank 0 sees while replica 0 works: request, token (as it is appended), and whether the completion is over.
using CompletionObserver = std::function<void(size_t request, int32_t token, bool last)>;

/// What `samples` completions of each prompt need; max_new_tokens 0: up to the context.
[[nodiscard]] RequestSizes sizes_of(const std::vector<Prompt>& prompts, int64_t samples, int64_t max_new_tokens, int dp);

/// Runs all requests; every rank calls it with the same job. The completions, in the order of the requests, on rank 0
/// (empty elsewhere). Collective over the world.
[[nodiscard]] std::vector<Completion> run_completions(const RankContext& ctx, InferenceSession& session,
                                                      const CompletionJob& job, const CompletionObserver& observe);

/// Sums of the replicas' counts, and the longest of their times. Collective over the world.
[[nodiscard]] serve::EngineStats job_stats(InferenceSession& session);
/// "1,234 prompt tokens at 5.6 ktok/s, 789 tokens at 123 tok/s".
[[nodiscard]] std::string stats_line(const serve::EngineStats& stats);

}  // namespace r1::train
