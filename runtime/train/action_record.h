// An action of the schedule, for whoever asks what a rank does.
#pragma once

#include <string>

#include "parallel/schedule/schedule.h"
#include "runtime/core/flight_recorder.h"

namespace r1::train {

/// "forward stage 0 micro-batch 3"
[[nodiscard]] std::string phase_of(const parallel::Action& a);
/// Into the flight recorder; transfers record themselves.
void record_action(FlightRecorder& flight, const parallel::Action& a);

}  // namespace r1::train
