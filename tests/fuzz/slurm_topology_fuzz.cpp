// Slurm's topology.conf: a fabric that holds together, or a refusal.
#include "tests/fuzz/topology_fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  r1::fuzz::try_reader(bytes, size, r1::launch::read_slurm_topology, r1::fuzz::check_fabric);
  return 0;
}

std::vector<std::string> r1::fuzz::seeds() {
  return data_files({"slurm/topology-block-32.conf", "slurm/topology-oci-sim-tree.conf",
                     "slurm/topology-tree-400.conf"});
}
