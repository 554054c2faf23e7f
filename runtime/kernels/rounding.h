// Stochastic rounding of fp32 values to bf16: up with a probability equal to the distance, so that
// the expected value of a state that is updated by less than its own resolution still moves. The
// random bits are a pure function of (seed, step, element, state), never of a rank or a thread.
#pragma once

#include <bit>
#include <cstdint>

#include "runtime/core/dtype.h"
#include "runtime/core/rng.h"

namespace r1::kernels {

/// One draw of Philox rounds eight neighbouring elements of one state: 16 bits each.
inline constexpr int64_t kRoundedTogether = 8;
/// The states that a step of AdamW may round.
enum class RoundedState : uint32_t { kWeight = 0, kMean = 1, kSquare = 2 };

/// The random words of the elements [8 group, 8 group + 8) of a state in one AdamW step; 0 <= group < 2^60. Word j / 2 holds
/// the bits of element j: the low half those of an even j, the high half those of an odd one.
[[nodiscard]] constexpr std::array<uint32_t, 4> adamw_random(uint64_t seed, int64_t step, RoundedState state, int64_t group) {
  const auto g = static_cast<uint64_t>(group), s = static_cast<uint64_t>(step);
  return philox4x32({static_cast<uint32_t>(g), static_cast<uint32_t>(g >> 32) | static_cast<uint32_t>(state) << 30,
                     static_cast<uint32_t>(s), static_cast<uint32_t>(s >> 32)},
                    seed);
}
/// The 16 bits of element j of a group among the group's words.
[[nodiscard]] constexpr uint32_t rounding_bits(const std::array<uint32_t, 4>& words, int64_t j) {
  return (words[static_cast<size_t>(j / 2)] >> (j % 2 * 16)) & 0xffffU;
}

/// bf16 bits of f, rounded up where the low 16 bits exceed those of `random`. NaN and infinity stay
/// what they are.
[[nodiscard]] inline uint16_t stochastic_bf16(float f, uint32_t random) {
  const uint32_t bits = std::bit_cast<uint32_t>(f);
  if ((bits & 0x7f800000U) == 0x7f800000U) return float_to_bf16(f);
  return static_cast<uint16_t>((bits + (random & 0xffffU)) >> 16);
}

}  // namespace r1::kernels
