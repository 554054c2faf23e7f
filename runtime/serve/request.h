// What is asked of the engine, and what comes back.
#pragma once

#include <cstdint>
#include <vector>

namespace r1::serve {

/// How the next token is chosen from its logits; applied in this order (as transformers does): repetition penalty,
/// temperature, top-k, top-p, min-p, draw.
struct SamplingParams {
  double temperature = 0;  ///< 0: the most likely token (greedy); the four below it then have no effect
  int64_t top_k = 0;       ///< among the k most likely tokens; 0: all
  double top_p = 1;        ///< among the most likely tokens that together reach this probability
  double min_p = 0;        ///< leave out tokens less likely than this times the most likely one
  double repetition_penalty =
      1;  ///< Keskar et al. 2019: logits of tokens seen (prompt and completion) divided by it (negative: times)
  uint64_t seed = 0;

  [[nodiscard]] bool greedy() const { return temperature == 0; }
  /// The largest logit decides as it is: no draw, no penalty.
  [[nodiscard]] bool plain() const { return greedy() && repetition_penalty == 1; }
};

struct Request {
  uint64_t number = 0;  ///< of the request in its job: random numbers are keyed by (seed, number, position, token)
  std::vector<int32_t> prompt;  ///< at least one token
  SamplingParams sampling;
  int64_t max_new_tokens = 0;  ///< at least 1
  bool ignore_eos = false;
};

enum class FinishReason : uint8_t {
  kNone,
  kStop,    ///< an end token (part of the ids), or the caller's word (a stop string)
  kLength,  ///< max_new_tokens, or the context is full
};

/// One token of a completion, as it becomes known.
struct TokenEvent {
  int64_t request = 0;  ///< what Engine::add returned
  int32_t token = 0;
  float logprob = 0;  ///< log of its probability at temperature 1 and without penalty; 0 unless asked for
  FinishReason finish = FinishReason::kNone;
};

}  // namespace r1::serve
