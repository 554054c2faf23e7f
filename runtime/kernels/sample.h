// The scalar pieces of `sample` (ops.h) that its implementations share, so that they choose the same tokens.
//
// z = (logit - largest logit) / temperature is the log of a token's probability over the likeliest one's. Probabilities are
// added up in fixed point: such sums do not depend on their order, so neither does where top-p cuts.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>

#include "runtime/core/rng.h"

namespace r1::kernels {

/// Vocabularies of up to so many tokens: ids fit a key of sample_order, and a sum of masses 64 bits.
inline constexpr int kSampleIdBits = 20;
inline constexpr int64_t kMaxSampleVocab = (int64_t{1} << kSampleIdBits) - 1;

/// Tokens below this z have no mass (sample_mass), and no noise makes up for it (kLargestGumbel): the likeliest token scores
/// -log(33 log 2) = -3.13 at least.
inline constexpr double kLowestZ = -32;
/// The Gumbel value of a 32-bit uniform number is at most -log(2^-33) = 22.87.
inline constexpr double kLargestGumbel = 22.9;

/// Tokens by likelihood: greater is more likely; of equal logits the smaller id. No NaN.
inline constexpr int kSampleOrderBits = 32 + kSampleIdBits;
[[nodiscard]] constexpr uint64_t sample_order(float logit, int32_t id) {
  uint32_t bits = std::bit_cast<uint32_t>(logit);
  if (bits == 0x80000000U) bits = 0;  // -0 equals 0
  bits = (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
  return uint64_t{bits} << kSampleIdBits | static_cast<uint64_t>(kMaxSampleVocab - id);
}
[[nodiscard]] constexpr int32_t ordered_id(uint64_t order) {
  return static_cast<int32_t>(kMaxSampleVocab - static_cast<int64_t>(order & kMaxSampleVocab));
}
[[nodiscard]] constexpr float ordered_logit(uint64_t order) {
  const auto bits = static_cast<uint32_t>(order >> kSampleIdBits);
  return std::bit_cast<float>((bits & 0x80000000U) != 0 ? bits & 0x7fffffffU : ~bits);
}

/// The repetition penalty of Keskar et al. (2019), section 4.1, as transformers applies it.
[[nodiscard]] constexpr float penalised(float logit, double penalty) {
  const auto l = static_cast<double>(logit);
  return static_cast<float>(l > 0 ? l / penalty : l * penalty);
}

/// No smaller logit has a z of kLowestZ or more; the larger ones are to be checked.
[[nodiscard]] constexpr float lowest_logit(float largest, double temperature) {
  const double l = static_cast<double>(largest) + (kLowestZ - 1) * temperature;
  return l < -static_cast<double>(std::numeric_limits<float>::max()) ? -std::numeric_limits<float>::infinity()
                                                                      : static_cast<float>(l);
}

/// exp(z) in units of 2^-44.
[[nodiscard]] constexpr uint64_t sample_mass(double exp_z) { return static_cast<uint64_t>(exp_z * 0x1p44 + 0.5); }
/// The mass that the most likely tokens must reach for a share p < 1 of `total`: at least that of the likeliest one.
[[nodiscard]] constexpr uint64_t mass_to_reach(double p, uint64_t total) {
  const double mass = p * static_cast<double>(total);
  if (!(mass > 1)) return 1;
  if (mass >= static_cast<double>(total)) return total;
  const auto floor = static_cast<uint64_t>(mass);
  return static_cast<double>(floor) < mass ? floor + 1 : floor;
}

/// What a draw's random numbers are keyed by, `seed` mixed with the purpose.
[[nodiscard]] constexpr uint64_t draw_key(uint64_t seed) { return seed ^ hash_name("sample"); }
/// The random word of a token in the draw of one position of one request.
[[nodiscard]] constexpr uint32_t draw_word(uint64_t key, uint64_t request, int64_t position, int32_t token) {
  const auto id = static_cast<uint32_t>(token);
  const std::array<uint32_t, 4> words = philox4x32({id / 4, static_cast<uint32_t>(position), static_cast<uint32_t>(request),
                                                    static_cast<uint32_t>(request >> 32)},
                                                   key);
  // No array is indexed by a variable: a GPU would keep it in memory.
  const uint32_t even = id % 4 < 2 ? words[0] : words[2], odd = id % 4 < 2 ? words[1] : words[3];
  return id % 2 == 0 ? even : odd;
}
/// Uniform in (0, 1). With u, a token scores z - log(-log(u)): its log-probability and Gumbel noise.
[[nodiscard]] constexpr double draw_uniform(uint32_t word) { return (static_cast<double>(word) + 0.5) * 0x1p-32; }

}  // namespace r1::kernels
