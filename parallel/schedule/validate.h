// Schedules that cannot be: found, and shown with the grid and the spot marked.
#pragma once

#include <vector>

#include "parallel/schedule/paper_run.h"

namespace r1::parallel {

/// Shape and index ranges: what everything else relies on. Throws InternalError.
void check_ranges(const Schedule& s);
/// Throws InternalError: a deadlock, and what each rank waits for.
[[noreturn]] void fail_stuck(const Schedule& s, const std::vector<Stuck>& stuck);

}  // namespace r1::parallel
