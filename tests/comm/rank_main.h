// The main function of the suite's programs that mpirun starts.
#pragma once

#include <functional>
#include <span>
#include <string>

#include "comm/communicator.h"

namespace r1::comm::test {

/// Runs `body` on a communicator over all MPI ranks, whose waits throw after `timeout`, then closes
/// it. A rank on which body throws says so and leaves without waiting for anybody,
/// so that mpirun ends the others; rank 0 prints `body`'s count of cases when all passed.
int rank_main(int& argc, char**& argv,
              const std::function<size_t(Communicator& world, const StopCheck& stop)>& body);

/// The cases of these names, all when there are none, on c; how many. The one that fails is named.
size_t run_conformance(Communicator& c, std::span<const std::string> names = {});

}  // namespace r1::comm::test
