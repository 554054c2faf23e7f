// main() of the benchmarks that run under mpirun.
#pragma once

#include <unistd.h>

#include <cstdio>
#include <exception>

#include "comm/communicator.h"

namespace r1::bench {

/// Runs `run(mpi, argc, argv)`, which returns the exit code, with MPI up. An error of one rank is printed and ends the rank at
/// once with 1; mpirun then ends the others.
template <class Run>
int mpi_main(const char* name, int argc, char** argv, const Run& run) {
  comm::MpiWorld mpi(&argc, &argv);
  try {
    return run(mpi, argc, argv);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s: %s\n", name, e.what());
    mpi.abandon();
    std::fflush(nullptr);
    _exit(1);
  }
}

}  // namespace r1::bench
