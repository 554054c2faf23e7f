// What the targets of the topology readers share: seeds from the test data, and what must hold of
// any map.
#pragma once

#include <fstream>
#include <initializer_list>
#include <iterator>
#include <string>
#include <vector>

#include "launch/topology/import.h"
#include "launch/topology/json.h"
#include "launch/topology/render.h"
#include "launch/topology/svg.h"
#include "runtime/core/error.h"
#include "tests/fuzz/fuzz.h"

namespace r1::fuzz {

inline std::string data_file(const char* name) {
  std::ifstream in(std::string(R1RUN_TEST_DATA) + "/topology/" + name, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}
inline std::vector<std::string> data_files(std::initializer_list<const char*> names) {
  std::vector<std::string> out;
  for (const char* name : names) out.push_back(data_file(name));
  return out;
}

/// Matrices fit the devices, indices lead somewhere (topology_from_json checks every one), and it
/// can be drawn.
inline void check_host(const launch::HostTopology& host) {
  FUZZ_REQUIRE(host.gpu_gpu.size() == host.gpus.size());
  FUZZ_REQUIRE(host.gpu_nic.size() == host.gpus.size());
  FUZZ_REQUIRE(host.near_nics.size() == host.gpus.size());
  for (size_t g = 0; g < host.gpus.size(); ++g) {
    FUZZ_REQUIRE(host.gpu_gpu[g].size() == host.gpus.size());
    FUZZ_REQUIRE(host.gpu_nic[g].size() == host.nics.size());
  }
  const std::string text = launch::to_json(host);
  FUZZ_REQUIRE(launch::to_json(launch::host_from_json(text, "again")) == text);
  (void)launch::tree_text(host, "host");
  (void)launch::matrix_text(host);
}

inline void check_fabric(const launch::Fabric& fabric) {
  launch::Topology topology;
  topology.fabric = fabric;
  const std::string text = launch::to_json(topology);
  FUZZ_REQUIRE(launch::to_json(launch::topology_from_json(text, "again")) == text);
  if (fabric.ports.size() < 2000) (void)launch::to_svg(topology);
}

/// Runs a reader: a value that holds together, or a DataError.
template <class Read, class Check>
void try_reader(const uint8_t* bytes, size_t size, Read read, Check check) {
  try {
    check(read(std::string_view(reinterpret_cast<const char*>(bytes), size), "input"));
  } catch (const DataError&) {
  }
}

}  // namespace r1::fuzz
