// What probe makes of hosts and timings; rendering; the topo command over files and hostfiles.
#include "launch/topology/probe.h"

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <algorithm>
#include <filesystem>
#include <pugixml.hpp>

#include "launch/topology/json.h"
#include "launch/topology/render.h"
#include "launch/topology/svg.h"
#include "launch/topology/cluster_topology.h"
#include "launch/topology/topo_command.h"
#include "runtime/core/error.h"
#include "tests/launch/topology/support.h"

namespace r1::launch {
namespace {

using namespace testing;

ProbedHost probed(const std::string& name, const HostTopology& topology) {
  return {.name = name, .topology = topology};
}

bool any_warning(const ProbeResult& result, const std::vector<std::string>& words) {
  return std::ranges::any_of(result.warnings, [&](const std::string& warning) {
    return std::ranges::all_of(
        words, [&](const auto& word) { return warning.find(word) != std::string::npos; });
  });
}

TEST(Probe, TheOddOneOutIsNamed) {
  const HostTopology usual = host_of("nccl/oci-h100-topology.xml");
  HostTopology odd = usual;
  odd.nics[4].active = false;
  const ProbeResult result = assemble(
      {probed("n1", usual), probed("n2", odd), probed("n3", usual), probed("n4", usual)}, {});
  EXPECT_TRUE(any_warning(result, {"n2 is unlike n1", "port down"})) << probe_text(result);
  EXPECT_FALSE(any_warning(result, {"n3 is unlike"}));
  const ProbeResult alike = assemble({probed("n1", usual), probed("n2", usual)}, {});
  EXPECT_TRUE(alike.warnings.empty());
  EXPECT_NE(probe_text(alike).find("all 2 hosts are alike"), std::string::npos);
}

TEST(Probe, PairsBelowEightyPercentAreNamed) {
  const HostTopology host = host_of("nccl/oci-h100-topology.xml");  // 180 Gbit/s = 22.5 GB/s
  const ProbeResult result = assemble({probed("n1", host), probed("n2", host), probed("n3", host)},
                                      {{0, 1, 22.0, 2.0}, {0, 2, 18.0, 2.0}, {1, 2, 17.9, 2.0}});
  ASSERT_EQ(result.measurements.size(), 3u);
  EXPECT_EQ(result.measurements[0].promise_gbytes_per_s, 22.5);
  EXPECT_FALSE(any_warning(result, {"n1 to n2"}));
  EXPECT_FALSE(any_warning(result, {"n1 to n3"})) << "80 % is the bar itself";
  EXPECT_TRUE(any_warning(result, {"network n2 to n3", "80 %", "promises"})) << probe_text(result);
}

TEST(Probe, WithoutAPromiseTheMedianJudges) {
  HostTopology host = host_of("one-h200-vm/h200-vm-hwloc.xml");
  host.warnings.clear();
  std::vector<ProbedHost> hosts;
  for (int i = 0; i < 5; ++i) {
    hosts.push_back(probed(fmt::format("n{}", i), host));
    hosts.back().measurements.push_back({.kind = "memory", .gbytes_per_s = i == 3 ? 50.0 : 100.0});
  }
  const ProbeResult result = assemble(hosts, {});
  EXPECT_EQ(result.warnings.size(), 1u) << probe_text(result);
  EXPECT_TRUE(any_warning(result, {"memory n3", "median"}));
}

TEST(Probe, SlurmAddressesBecomeAFabric) {
  const HostTopology host = host_of("one-h200-vm/h200-vm-hwloc.xml");
  std::vector<ProbedHost> hosts{probed("n1", host), probed("n2", host)};
  for (auto& h : hosts) {
    h.slurm_address = fmt::format("spine.leaf1.{}", h.name);
    h.slurm_pattern = "switch.switch.node";
  }
  EXPECT_EQ(assemble(hosts, {}).topology.fabric.share_leaf("n1", "n2"), true);
}

TEST(Probe, AHostsAnswerComesBack) {
  ProbedHost host = probed("n1", host_of("nccl/azure-ndv4-topo.xml"));
  host.measurements.push_back({.kind = "gpu-gpu",
                               .a = "GPU0",
                               .b = "GPU1",
                               .gbytes_per_s = 70,
                               .promise_gbytes_per_s = 80});
  const std::string text = to_json(host);
  EXPECT_EQ(to_json(probed_host_from_json(text, "t")), text);
  EXPECT_THROW((void)probed_host_from_json("{}", "t"), DataError);
  // The report's JSON is a map that topo and plan read again.
  const ProbeResult result = assemble({host}, {});
  EXPECT_EQ(topology_from_json(probe_json(result), "t").hosts.at(0).name, "n1");
}

TEST(Memory, CanBeTimed) { EXPECT_GT(memory_gbytes_per_s(), 0.1); }

TEST(Render, TheMatrixIsOneThatUsersKnow) {
  const HostTopology host = host_of("nvidia-smi/dgx-a100-8gpu-10nic.txt");
  const std::string text = matrix_text(host);
  EXPECT_NE(text.find("GPU1    NV12     X      NV12"), std::string::npos) << text;
  EXPECT_NE(text.find("NIC9: mlx5_9"), std::string::npos);
  // It reads back as what it shows.
  const HostTopology again = read_nvidia_smi(text, "again");
  EXPECT_EQ(matrix_text(again).substr(0, text.find("Legend")), text.substr(0, text.find("Legend")));
}

TEST(Render, TheTreeSaysWhatIsUnknown) {
  EXPECT_NE(tree_text(host_of("nccl/azure-ndv4-topo.xml"), "ndv4").find("NVLink: unknown"),
            std::string::npos);
  EXPECT_NE(tree_text(host_of("nvidia-smi/rtx4090-8gpu-pcie-only.txt"), "x").find("NVLink: none"),
            std::string::npos);
  const std::string lassen = tree_text(host_of("hwloc/coral-lassen.xml"), "lassen");
  EXPECT_NE(lassen.find("nearest NIC of GPU0: mlx5_0,mlx5_1  PHB"), std::string::npos) << lassen;
}

/// Well-formed, and every device has its box.
void check_svg(const Topology& topology, const std::vector<std::string>& words) {
  const std::string svg = to_svg(topology);
  pugi::xml_document document;
  ASSERT_TRUE(document.load_string(svg.c_str())) << svg.substr(0, 500);
  for (const auto& word : words)
    EXPECT_NE(svg.find(fmt::format(">{}", word)), std::string::npos) << word;
}

TEST(Svg, OneHostAndThirtyTwo) {
  for (const char* file :
       {"nccl/oci-h100-topology.xml", "nccl/azure-ndv4-topo.xml", "hwloc/coral-lassen.xml",
        "hwloc/nvidiaDGX2.xml", "nvidia-smi/leonardo-4xA100-nv4-4nic.txt"})
    check_svg(read_topology(data_file(file), file), {"GPU0", "GPU3"});
  Topology cluster = read_topology(data_file("nccl/azure-ndv4-topo.xml"), "ndv4");
  const auto host = cluster.hosts[0].host;
  cluster.hosts.clear();
  std::string conf;
  for (int leaf = 0; leaf < 4; ++leaf)
    conf += fmt::format("SwitchName=leaf{0} Nodes=n[{1}-{2}]\n", leaf, 8 * leaf, 8 * leaf + 7);
  cluster.fabric = read_slurm_topology(conf + "SwitchName=spine Switches=leaf[0-3]\n", "t");
  for (int i = 0; i < 32; ++i) cluster.hosts.push_back({fmt::format("n{}", i), host});
  check_svg(cluster, {"n0", "n31", "leaf0", "leaf3", "spine", "G7"});
  check_svg(read_topology(data_file("slurm/topology-oci-sim-tree.conf"), "oci"), {});
  check_svg(Topology{}, {});
}

/// What `r1run topo` prints, with its exit code.
std::pair<int, std::string> run(const std::string& words) {
  FILE* pipe = popen(fmt::format("{}/r1run {} 2>&1", R1RUN_BIN_DIR, words).c_str(), "r");
  std::string out;
  char buffer[4096];
  for (size_t n = 0; (n = fread(buffer, 1, sizeof(buffer), pipe)) > 0;) out.append(buffer, n);
  const int status = pclose(pipe);
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, out};
}

TEST(TopoCommand, FilesHostfilesAndThisMachine) {
  const std::string data = R1RUN_TEST_DATA "/topology/";
  auto [code, out] = run(fmt::format("topo {}nvidia-smi/leonardo-4xA100-nv4-4nic.txt", data));
  EXPECT_EQ(code, 0);
  EXPECT_NE(out.find("NVLink: GPU0,GPU1,GPU2,GPU3  NV4"), std::string::npos) << out;
  std::tie(code, out) = run("topo");
  EXPECT_EQ(code, 0) << out;
  EXPECT_NE(out.find("NUMA node"), std::string::npos) << out;
  std::tie(code, out) =
      run(fmt::format("topo --json - {}ib/ibnetdiscover-ndr-leafspine.out", data));
  EXPECT_EQ(code, 0);
  EXPECT_EQ(topology_from_json(out, "t").fabric.switches.size(), 40u);
  std::tie(code, out) = run(fmt::format("topo {}nccl/azure-ncv4-graph.xml", data));
  EXPECT_EQ(code, 65);
  EXPECT_NE(out.find("an NCCL graph file"), std::string::npos) << out;
  std::tie(code, out) = run("topo /nonexistent.xml");
  EXPECT_EQ(code, 64);
  std::tie(code, out) =
      run(fmt::format("topo --svg /proc/no/such.svg {}nccl/azure-ndv4-topo.xml", data));
  EXPECT_EQ(code, 73);
  std::tie(code, out) =
      run(fmt::format("topo "
                      "{0}one-h200-vm/h200-vm-hwloc.xml,{0}one-h200-vm/"
                      "h200-vm-nccl.xml,{0}one-h200-vm/h200-vm-topo-m.txt",
                      data));
  EXPECT_EQ(code, 0) << out;
  EXPECT_NE(out.find("eth0  10 Gbit/s"), std::string::npos) << out;
  EXPECT_EQ(out.find("disagree"), std::string::npos) << out;
  std::tie(code, out) =
      run(fmt::format("topo "
                      "{0}nvidia-smi/snellius-4xA100-nv4-nics-one-socket.txt,{0}nvidia-smi/"
                      "leonardo-4xA100-nv4-4nic.txt",
                      data));
  EXPECT_NE(out.find("sources disagree"), std::string::npos) << out;
  std::tie(code, out) = run("probe");
  EXPECT_EQ(code, 0) << out;
}

TEST(TopoCommand, SampleHostfilesNameTheirTopologies) {
  namespace fs = std::filesystem;
  int with_topology = 0;
  for (const auto& entry :
       fs::directory_iterator(fs::path(R1RUN_SOURCE_DIR) / "hostfiles" / "samples")) {
    if (entry.path().extension() != ".hosts") continue;
    const Topology topology = cluster_topology(read_hostfile(entry.path().string()));
    for (const auto& member : topology.hosts) with_topology += member.host ? 1 : 0;
    if (topology.fabric.source.empty()) continue;
    for (const auto& member : topology.hosts)
      EXPECT_FALSE(topology.fabric.leaves_of(member.name).empty())
          << entry.path() << " " << member.name;
  }
  EXPECT_GE(with_topology, 2 + 1 + 2 + 16);
  const Topology production = cluster_topology(
      read_hostfile(R1RUN_SOURCE_DIR "/hostfiles/samples/production-2-nodes.hosts"));
  const HostTopology& node = *production.hosts.at(0).host;
  ASSERT_EQ(node.gpus.size(), 4u);
  EXPECT_EQ(cell(node.gpu_gpu[0][3]), "NV4");
  EXPECT_EQ(node.gpu_gpu[0][3].gbytes_per_s, 80);
  EXPECT_EQ(node.nics.at(0).rate_mbit_per_s, 200000);
}

}  // namespace
}  // namespace r1::launch
