// The main function of the suite's programs that mpirun starts.
#pragma once

#include <functional>

#include "comm/communicator.h"

namespace r1::comm::test {

/// Runs `body` on a communicator over all MPI ranks, whose waits throw after `timeout`, then closes
/// it. A rank on which body throws says so, naming *stage, and leaves without waiting for anybody,
/// so that mpirun ends the others; rank 0 prints `body`'s count of cases when all passed.
int rank_main(int& argc, char**& argv,
              const std::function<size_t(Communicator& world, const StopCheck& stop)>& body);

/// All cases on c; the one that runs is named when it fails.
size_t run_conformance(Communicator& c);

}  // namespace r1::comm::test
