// What DataOptions may hold.
#pragma once

#include <cstdint>

#include "runtime/data/dataset.h"

namespace r1::data {

inline constexpr int64_t kMaxSeqLen = int64_t{1} << 24;  // tables of the packing: an entry a token

/// Throws UsageError naming the option, its value and what is allowed.
void check_options(const DataOptions& options);

}  // namespace r1::data
