// The real ibnetdiscover over a simulated fabric: what it finds reads as the same fabric as the
// file that was simulated.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <map>
#include <set>

#include "runtime/core/rng.h"
#include "tests/launch/topology/support.h"

namespace r1::launch {
namespace {

using namespace testing;
namespace fs = std::filesystem;

/// Cables between switches and adapters on switches, by GUID: what must not depend on the order in
/// the file.
struct Shape {
  std::map<std::pair<std::string, std::string>, int> cables;
  std::multiset<std::tuple<std::string, std::string, std::string>> adapters;
  std::map<std::string, int> levels;
  friend bool operator==(const Shape&, const Shape&) = default;
};

Shape shape_of(const Fabric& fabric) {
  Shape out;
  const auto guid = [&](int s) { return fabric.switches[static_cast<size_t>(s)].guid; };
  for (size_t s = 0; s < fabric.switches.size(); ++s) {
    out.levels[fabric.switches[s].guid] = fabric.switches[s].level;
    for (const auto& link : fabric.switches[s].up) {
      const auto a = guid(static_cast<int>(s)), b = guid(link.to);
      out.cables[{std::min(a, b), std::max(a, b)}] += link.cables;
    }
  }
  for (const FabricPort& port : fabric.ports)
    out.adapters.insert({port.host, port.device, guid(port.leaf)});
  return out;
}

/// The fabric of `text`, found again; nullopt when it cannot run here (why is in `reason`).
std::optional<Fabric> rediscovered(const std::string& text, std::string& reason) {
  const fs::path dir = fs::temp_directory_path() / fmt::format("r1run-ib-{}", getpid());
  fs::create_directories(dir);
  std::ofstream(dir / "in", std::ios::binary) << text;
  FILE* pipe = popen(fmt::format("{}/tests/launch/topology/ibsim.sh {} {} 2>&1", R1RUN_SOURCE_DIR,
                                 (dir / "in").string(), (dir / "out").string())
                         .c_str(),
                     "r");
  char buffer[4096];
  for (size_t n = 0; (n = fread(buffer, 1, sizeof(buffer), pipe)) > 0;) reason.append(buffer, n);
  const int status = pclose(pipe);
  std::ifstream in(dir / "out", std::ios::binary);
  const std::string found{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  fs::remove_all(dir);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 77) return std::nullopt;
  EXPECT_EQ(status, 0) << reason;
  return read_ibnetdiscover(found, "ibnetdiscover");
}

/// A fat tree with names as hosts have them; `seed` chooses sizes and cables a pair.
std::string fat_tree(uint64_t seed) {
  const Rng rng(seed, "fat tree");
  const int leaves = 2 + static_cast<int>(rng.below(0, 4)),
            spines = 1 + static_cast<int>(rng.below(1, 3)),
            hosts = 1 + static_cast<int>(rng.below(2, 6)),
            cables = 1 + static_cast<int>(rng.below(3, 2));
  const int leaf_ports = hosts + spines * cables;
  std::string out = "#\n# Topology file: generated\n#\n";
  const auto spine_id = [](int s) { return fmt::format("S-00000000000a{:04x}", s); };
  const auto leaf_id = [](int l) { return fmt::format("S-00000000000b{:04x}", l); };
  const auto host_id = [&](int l, int h) {
    return fmt::format("H-00000000000c{:04x}", 64 * l + h);
  };
  for (int l = 0; l < leaves; ++l) {
    out += fmt::format(
        "\nvendid=0x2c9\ndevid=0xd2f0\nswitchguid=0x{0}({0})\nSwitch\t{1} \"{2}\"\t\t# "
        "\"MF0;leaf-{3}:MQM/U1\" enhanced port 0 lid {4} lmc 0\n",
        leaf_id(l).substr(2), leaf_ports, leaf_id(l), l, 100 + l);
    for (int h = 0; h < hosts; ++h)
      out += fmt::format("[{}]\t\"{}\"[1]\t\t# \"node-{}-{} mlx5_0\" lid 1 4xHDR\n", h + 1,
                         host_id(l, h), l, h);
    for (int s = 0; s < spines; ++s)
      for (int c = 0; c < cables; ++c)
        out += fmt::format("[{}]\t\"{}\"[{}]\t\t# \"MF0;spine-{}:MQM/U1\" lid 2 4xHDR\n",
                           hosts + s * cables + c + 1, spine_id(s), l * cables + c + 1, s);
  }
  for (int s = 0; s < spines; ++s) {
    out += fmt::format(
        "\nvendid=0x2c9\ndevid=0xd2f0\nswitchguid=0x{0}({0})\nSwitch\t{1} \"{2}\"\t\t# "
        "\"MF0;spine-{3}:MQM/U1\" enhanced port 0 lid {4} lmc 0\n",
        spine_id(s).substr(2), leaves * cables, spine_id(s), s, 200 + s);
    for (int l = 0; l < leaves; ++l)
      for (int c = 0; c < cables; ++c)
        out += fmt::format("[{}]\t\"{}\"[{}]\t\t# \"MF0;leaf-{}:MQM/U1\" lid 2 4xHDR\n",
                           l * cables + c + 1, leaf_id(l), hosts + s * cables + c + 1, l);
  }
  for (int l = 0; l < leaves; ++l)
    for (int h = 0; h < hosts; ++h)
      out += fmt::format(
          "\nvendid=0x2c9\ndevid=0x101b\ncaguid=0x{0}\nCa\t1 \"{1}\"\t\t# \"node-{2}-{3} "
          "mlx5_0\"\n[1]({0})\t\"{4}\"[{5}]\t\t# lid 1 lmc 0 \"MF0;leaf-{2}:MQM/U1\" lid 2 4xHDR\n",
          host_id(l, h).substr(2), host_id(l, h), l, h, leaf_id(l), h + 1);
  return out;
}

TEST(IbnetdiscoverOracle, TheRealProgramFindsTheSameFabric) {
  std::string reason;
  const std::string real = data_file("ib/ibnetdiscover-ndr-leafspine.out");
  const auto found = rediscovered(real, reason);
  if (!found) GTEST_SKIP() << reason;
  // ibsim 0.10 knows no NDR and reports SDR: rates are left out of the comparison.
  EXPECT_TRUE(shape_of(read_ibnetdiscover(real, "file")) == shape_of(*found));
  EXPECT_EQ(found->switches.size(), 40u);
  for (uint64_t seed = 0; seed < 4; ++seed) {
    const std::string text = fat_tree(seed);
    const Fabric file = read_ibnetdiscover(text, "generated");
    EXPECT_TRUE(file.warnings.empty()) << file.warnings.front();
    const auto again = rediscovered(text, reason);
    ASSERT_TRUE(again) << reason;
    EXPECT_TRUE(shape_of(file) == shape_of(*again)) << "seed " << seed << "\n" << text;
  }
}

}  // namespace
}  // namespace r1::launch
