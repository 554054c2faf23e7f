// The map as JSON: read again, it is the same, or it is refused.
#include "tests/fuzz/topology_fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  r1::fuzz::try_reader(bytes, size, r1::launch::topology_from_json,
                       [](const r1::launch::Topology& topology) {
                         for (const auto& member : topology.hosts)
                           if (member.host) r1::fuzz::check_host(*member.host);
                         r1::fuzz::check_fabric(topology.fabric);
                         (void)r1::launch::to_svg(topology);
                       });
  return 0;
}

std::vector<std::string> r1::fuzz::seeds() {
  std::vector<std::string> out;
  for (const char* file : {"nccl/azure-ndv2-topo.xml", "one-h200-vm/h200-vm-nccl.xml",
                           "slurm/topology-block-32.conf", "nvidia-smi/rtx5090-2gpu-phb-tabs.txt"})
    out.push_back(launch::to_json(launch::read_topology(data_file(file), file), -1));
  return out;
}
