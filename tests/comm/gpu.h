// GPUs for the suite's programs, which are started by hand or by CTest and may find none.
#pragma once

#include "runtime/device/tensor.h"

namespace r1::comm::test {

/// What CTest takes as "skipped".
inline constexpr int kSkipped = 77;

/// GPU `rank` modulo their number. With fewer than `needed` the process says why and exits with
/// kSkipped.
[[nodiscard]] Device gpu_of_rank(int rank, int needed = 1);

}  // namespace r1::comm::test
