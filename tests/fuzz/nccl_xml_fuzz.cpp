// NCCL's topology XML: a map that holds together, or a refusal.
#include "tests/fuzz/topology_fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  r1::fuzz::try_reader(bytes, size, r1::launch::read_nccl_xml, r1::fuzz::check_host);
  return 0;
}

std::vector<std::string> r1::fuzz::seeds() {
  return data_files({"nccl/azure-ndv4-topo.xml", "nccl/azure-ncv4-topo.xml",
                     "nccl/azure-ndv2-topo.xml", "nccl/azure-ncv4-graph.xml",
                     "nccl/oci-h100-topology.xml", "one-h200-vm/h200-vm-nccl.xml"});
}
