// Times every operation of ops.h while it is on: what `--profile` prints.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/device/tensor.h"

namespace r1::kernels {

/// One operation over a profile.
struct OpProfile {
  std::string name;
  int64_t calls = 0;
  double seconds = 0;   ///< on the device's clock
  double flops = 0;     ///< of products and attention (causal: half of the square); 0 for the others
  double bytes = 0;     ///< operands read and written once
};

/// From now on every operation on devices of this kind is timed, by two events on its stream. One profile at a time.
void profile_begin(DeviceKind kind);
/// Ends the profile; waits for the device. Longest first.
[[nodiscard]] std::vector<OpProfile> profile_end();

}  // namespace r1::kernels
