// What two batches must have in common for one attention launch to serve both. Inline: the CUDA library uses it too.
#pragma once

#include <algorithm>
#include <bit>
#include <compare>
#include <cstdint>
#include <span>

namespace r1::kernels {

/// The segments of a batch as kernels are made for them. Batches of one class enqueue the same work on the same tensors, so
/// a captured graph of one serves the other: lengths themselves are read on the device.
struct AttentionClass {
  bool equal = false;     ///< all segments have `longest` tokens and cover everything: no offsets are needed
  int64_t segments = 0;   ///< equal: exact; otherwise rounded up
  int64_t longest = 0;    ///< the same
  auto operator<=>(const AttentionClass&) const = default;
};

/// `host_cu` [segments + 1], starts of segments and their end; T tokens. Few classes for many packings: segments go up to
/// the next power of two, the longest to the next multiple of a quarter of one (of 128 at least). Pure.
[[nodiscard]] inline AttentionClass attention_class(std::span<const int32_t> host_cu, int64_t max_segment,
                                                    int64_t tokens) {
  const auto ceil_to_power = [](int64_t n) { return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(n))); };
  if (host_cu.size() >= 2 && host_cu.back() == tokens) {
    const int64_t length = host_cu[1] - host_cu[0];
    bool equal = length > 0;
    for (size_t i = 1; i < host_cu.size() && equal; ++i) equal = host_cu[i] - host_cu[i - 1] == length;
    if (equal) return {.equal = true, .segments = tokens / length, .longest = length};
  }
  const int64_t longest = std::max<int64_t>(1, max_segment);
  const int64_t quantum = std::max<int64_t>(128, ceil_to_power(longest) / 4);
  return {.equal = false,
          .segments = ceil_to_power(std::max<int64_t>(1, static_cast<int64_t>(host_cu.size()) - 1)),
          .longest = (longest + quantum - 1) / quantum * quantum};
}

}  // namespace r1::kernels
