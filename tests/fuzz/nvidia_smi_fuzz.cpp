// nvidia-smi topo: a map that holds together, or a refusal.
#include "tests/fuzz/topology_fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  r1::fuzz::try_reader(bytes, size, r1::launch::read_nvidia_smi, r1::fuzz::check_host);
  return 0;
}

std::vector<std::string> r1::fuzz::seeds() {
  return data_files({"nvidia-smi/levante-4xA100-80GB-2xEPYC7763-topo-mp.txt",
                     "nvidia-smi/leonardo-4xA100-nv4-4nic.txt",
                     "nvidia-smi/rtx5090-2gpu-phb-tabs.txt", "one-h200-vm/h200-vm-topo-m.txt"});
}
