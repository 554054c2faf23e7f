// The choice of a token from its logits.
//
// Random numbers are counter-based: that of a token depends on (seed, request, position, token) alone. The draw is a
// Gumbel maximum (Gumbel 1954; Maddison et al. 2014): the token with the largest log-probability plus its own Gumbel
// noise. Where logits differ in their last bits (another layout, another batch on a GPU), another token results only
// when two of these sums are that close, which is about as likely as the difference is large (1e-6), whatever the
// vocabulary; an inverse distribution function would add up the differences of all tokens before the drawn one.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/serve/request.h"

namespace r1::serve {

/// What a draw is keyed by.
struct DrawKey {
  uint64_t seed = 0;
  uint64_t request = 0;
  int64_t position = 0;  ///< of the token drawn: tokens before it
};

/// -log(u) of a uniform u in (0, 1): the exponential variate of a token in a draw.
[[nodiscard]] double exponential_variate(const DrawKey& key, int32_t token);

/// Working memory of sample_token, kept between calls.
struct SampleScratch {
  struct Candidate {
    double z = 0;  ///< (logit - largest) / temperature
    int32_t id = 0;
  };
  std::vector<Candidate> candidates;
  std::vector<float> logits;
};

/// The next token from `logits` [vocab]. `seen`: ids for the repetition penalty, in any order, repeated or not. -1 when
/// the logits hold NaN or no finite value. Sums are fp64 in a fixed order.
[[nodiscard]] int32_t sample_token(std::span<const float> logits, const SamplingParams& params,
                                   std::span<const int32_t> seen, const DrawKey& key, SampleScratch& scratch);

}  // namespace r1::serve
