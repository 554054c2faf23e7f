// Faults under MPI.
//   mpi_faults killed|stuck|left|size OPERATION
#include "faults.h"

int main(int argc, char** argv) {
  const std::string fault = argc > 1 ? argv[1] : "", operation = argc > 2 ? argv[2] : "";
  return r1::comm::test::fault_main(argc, argv, fault, operation, {});
}
