// Stochastic rounding of fp32 values to bf16: up with a probability equal to the distance, so that
// the expected value of a state that is updated by less than its own resolution still moves. The
// random bits are a pure function of (seed, step, element, state), never of a rank or a thread.
#pragma once

#include <bit>
#include <cstdint>

#include "runtime/core/dtype.h"
#include "runtime/core/rng.h"

namespace r1::kernels {

/// The random words of one element of one AdamW step: word 0 rounds p, 1 rounds m, 2 rounds v.
[[nodiscard]] constexpr std::array<uint32_t, 4> adamw_random(uint64_t seed, int64_t step,
                                                             int64_t element) {
  const auto e = static_cast<uint64_t>(element), s = static_cast<uint64_t>(step);
  return philox4x32({static_cast<uint32_t>(e), static_cast<uint32_t>(e >> 32),
                     static_cast<uint32_t>(s), static_cast<uint32_t>(s >> 32)},
                    seed);
}

/// bf16 bits of f, rounded up where the low 16 bits exceed those of `random`. NaN and infinity stay
/// what they are.
[[nodiscard]] inline uint16_t stochastic_bf16(float f, uint32_t random) {
  const uint32_t bits = std::bit_cast<uint32_t>(f);
  if ((bits & 0x7f800000U) == 0x7f800000U) return float_to_bf16(f);
  return static_cast<uint16_t>((bits + (random & 0xffffU)) >> 16);
}

}  // namespace r1::kernels
