// A communicator that records each operation in the rank's flight recorder: what it waits for, with whom, since when.
#pragma once

#include <memory>

#include "comm/communicator.h"
#include "runtime/core/flight_recorder.h"

namespace r1::comm {

/// `inner` with every operation recorded, groups split from it too. The recorder must outlive it; one thread.
[[nodiscard]] std::unique_ptr<Communicator> make_recorded(std::unique_ptr<Communicator> inner, FlightRecorder& recorder);

}  // namespace r1::comm
