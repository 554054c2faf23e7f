// r1run doctor: machines described by files and by recorded answers of nvidia-smi, several hosts
// compared.
#include "launch/doctor/doctor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "launch/gather.h"
#include "launch/process.h"
#include "run_program.h"
#include "runtime/core/error.h"

namespace r1::launch::test {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

Verdict verdict(const HostReport& r, const std::string& name) {
  for (const Check& c : r.checks)
    if (c.name == name) return c.verdict;
  ADD_FAILURE() << "no check called " << name;
  return Verdict::kUnknown;
}

std::string found(const HostReport& r, const std::string& name) {
  for (const Check& c : r.checks)
    if (c.name == name) return c.found;
  return "(no such check)";
}

bool has(const HostReport& r, const std::string& name) {
  return std::any_of(r.checks.begin(), r.checks.end(),
                     [&](const Check& c) { return c.name == name; });
}

TEST(Versions, ReadAndCompared) {
  EXPECT_EQ(version_of("580.95.05"), (std::vector<int>{580, 95, 5}));
  EXPECT_EQ(version_of("6.1.0-13-amd64"), (std::vector<int>{6, 1, 0}));
  EXPECT_TRUE(version_of("unknown").empty());
  EXPECT_TRUE(version_of("").empty());
  EXPECT_TRUE(version_of("-3").empty());
  EXPECT_EQ(compare_versions({2, 28}, {2, 28, 0}), 0);
  EXPECT_LT(compare_versions({2, 9}, {2, 28}), 0);
  EXPECT_GT(compare_versions({9, 10}, {9, 9, 5}), 0);
}

TEST(Versions, DriverAgainstToolkit) {
  struct Case {
    const char *driver, *cuda;
    Verdict verdict;
  };
  const Case cases[] = {
      {"580.159.03", "13.0", Verdict::kOk},     {"570.124.06", "13.0", Verdict::kFailure},
      {"520.61.05", "11.8", Verdict::kOk},      {"515.48.07", "11.8", Verdict::kWarning},
      {"440.33.01", "11.8", Verdict::kFailure}, {"535.104.05", "12.8", Verdict::kWarning},
      {"575.51.03", "12.8.93", Verdict::kOk},   {"525.60.12", "12.0", Verdict::kFailure},
      {"", "12.8", Verdict::kUnknown},          {"600.1", "10.2", Verdict::kUnknown},
      {"600.1", "12.7", Verdict::kOk},  // between two rows: the older one's needs
  };
  for (const Case& c : cases) {
    const Check check = check_driver(version_table(), c.driver, c.cuda);
    EXPECT_EQ(check.verdict, c.verdict) << c.driver << " with " << c.cuda << ": " << check.remedy;
    EXPECT_EQ(check.remedy.empty(), c.verdict == Verdict::kOk);
  }
}

TEST(Versions, NcclThatCrashesIsRefused) {
  for (const char* bad : {"2.28.3", "2.28.5", "2.28.8"})
    EXPECT_EQ(check_library_version(version_table(), "NCCL", bad).verdict, Verdict::kFailure)
        << bad;
  for (const char* good : {"2.27.7", "2.28.2", "2.28.9", "2.29.1"})
    EXPECT_EQ(check_library_version(version_table(), "NCCL", good).verdict, Verdict::kOk) << good;
  EXPECT_EQ(check_library_version(version_table(), "NCCL", "").verdict, Verdict::kUnknown);
  EXPECT_EQ(check_library_version(version_table(), "cuDNN", "2.28.5").verdict, Verdict::kOk);
  // libnccl.so.2 says its major version alone: neither good nor refused.
  const Check major = check_library_version(version_table(), "NCCL", "2");
  EXPECT_EQ(major.verdict, Verdict::kUnknown);
  EXPECT_THAT(major.remedy, HasSubstr("2.28.3 to 2.28.8"));
  EXPECT_EQ(check_cudnn(version_table(), "8", "11.8").verdict, Verdict::kUnknown);
  EXPECT_EQ(check_cudnn(version_table(), "8.5.0", "11.8").verdict, Verdict::kFailure);
  EXPECT_EQ(check_cudnn(version_table(), "8.5.0", "").verdict, Verdict::kFailure);
  EXPECT_EQ(check_cudnn(version_table(), "8.6.0", "11.8").verdict, Verdict::kOk);
  EXPECT_EQ(check_cudnn(version_table(), "9.10.2", "12.9").verdict, Verdict::kOk);
}

TEST(Versions, TheTableNamesABadLine) {
  EXPECT_EQ(parse_version_table("# x\n\ntoolkit\t1.0\t2\t3\t-\n", "t").toolkits.size(), 1u);
  for (const char* bad : {"toolkit\t1.0\t2\t3\n", "tool\t1\t2\t3\t4\n", "toolkit\tx\t2\t3\t4\n"}) {
    try {
      (void)parse_version_table(std::string("#\n") + bad, "t.tsv");
      ADD_FAILURE() << bad;
    } catch (const DataError& e) {
      EXPECT_THAT(e.what(), HasSubstr("t.tsv:2"));
    }
  }
}

/// A machine made of files, with a stand-in for nvidia-smi.
class Machine : public ::testing::Test {
 protected:
  void SetUp() override {
    put("/proc/cmdline", "quiet\n");
    put("/proc/modules", "ext4 1 0 - Live 0x0\n");
    put("/proc/sys/kernel/numa_balancing", "0\n");
    put("/proc/sys/kernel/osrelease", "6.1.0-13-amd64\n");
    put("/sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n");
    fs::create_directories(root() + "/dev/shm");
    fs::create_directories(root() + "/sys/devices/system/node/node0");
    fs::create_directories(root() + "/sys/devices/system/node/node1");
    put("/bin/r1run", "program");
    put("/bin/r1run-rank", "program");
  }
  [[nodiscard]] std::string root() const { return dir_.path().string(); }
  void put(const std::string& path, const std::string& text) const {
    fs::create_directories(fs::path(root() + path).parent_path());
    std::ofstream(root() + path, std::ios::binary) << text;
  }
  void pci(const std::string& address, const std::string& vendor, const std::string& kind,
           const std::string& config = "") const {
    put("/sys/bus/pci/devices/" + address + "/vendor", vendor + "\n");
    put("/sys/bus/pci/devices/" + address + "/class", kind + "\n");
    put("/sys/bus/pci/devices/" + address + "/config", config);
  }
  void port(const std::string& device, const std::string& state, const std::string& rate) const {
    put("/sys/class/infiniband/" + device + "/ports/1/state", state + "\n");
    put("/sys/class/infiniband/" + device + "/ports/1/rate", rate + "\n");
  }
  /// nvidia-smi that answers --query-gpu=FIELD with `answers`, and fails for every other field, as
  /// the real one does.
  void nvidia_smi(const std::map<std::string, std::string>& answers,
                  const std::string& p2p = "") const {
    std::string script = "#!/bin/sh\ncase \"$1\" in\n";
    for (const auto& [field, answer] : answers)
      script += "--query-gpu=" + field + ") printf '" + answer + "' ;;\n";
    script +=
        "--query-gpu=index,*) printf '0, NVIDIA A100, GPU-1, 0000:01:00.0, 580.95\\n1, NVIDIA "
        "A100, GPU-2, 0000:02:00.0, 580.95\\n' ;;\n";
    script += "topo) printf '" + p2p +
              "' ;;\n*) echo 'Field is not a valid field to query.'; exit 2 ;;\nesac\n";
    put("/bin/nvidia-smi", script);
    fs::permissions(root() + "/bin/nvidia-smi", fs::perms::owner_all);
  }
  [[nodiscard]] HostReport examine(const std::string& model = "") const {
    return examine_host({.root = root(),
                         .model = model,
                         .bin_dir = root() + "/bin",
                         .path = root() + "/bin:/usr/bin:/bin"});
  }
  [[nodiscard]] static std::map<std::string, std::string> two_good_gpus() {
    return {{"name", "NVIDIA A100\\nNVIDIA A100\\n"},
            {"driver_version", "580.95.05\\n580.95.05\\n"},
            {"ecc.errors.uncorrected.volatile.total", "0\\n0\\n"},
            {"remapped_rows.pending", "No\\nNo\\n"},
            {"remapped_rows.failure", "No\\nNo\\n"},
            {"temperature.gpu", "41\\n43\\n"},
            {"persistence_mode", "Enabled\\nEnabled\\n"},
            {"compute_mode", "Default\\nDefault\\n"},
            {"clocks_event_reasons.active",
             "0x0000000000000001\\n0x0000000000000004\\n"}};  // idle, power cap: no faults
  }
  TemporaryDirectory dir_;
};

TEST_F(Machine, WithoutGpusAndInfiniBandIsFine) {
  const HostReport r = examine();
  for (const Check& c : r.checks) EXPECT_EQ(c.verdict, Verdict::kOk) << c.name << ": " << c.found;
  EXPECT_EQ(found(r, "GPUs"), "none: CPU ranks only");
}

// Libraries for GPUs that nobody here can use, of unknown or refused versions: said, and no reason to leave the host out.
TEST_F(Machine, LibrariesForGpusDoNotMatterWithoutOne) {
  put("/usr/lib64/libnccl.so.2", "x");  // its version is not in its name
  put("/usr/lib64/libcudnn.so.8.5.0", "x");
  fs::create_symlink("libcudnn.so.8.5.0", root() + "/usr/lib64/libcudnn.so.8");
  const HostReport r = examine();
  for (const char* name : {"NCCL", "cuDNN"}) {
    EXPECT_EQ(verdict(r, name), Verdict::kOk) << name;
    EXPECT_EQ(found(r, name), "not needed: no GPU");
    EXPECT_FALSE(r.facts.contains(name)) << "nothing that hosts could differ in";
  }
  EXPECT_EQ(exit_code_for(worst({r})), 0);
  pci("0000:01:00.0", "0x10de", "0x030200");
  EXPECT_EQ(verdict(examine(), "NCCL"), Verdict::kUnknown);
  EXPECT_EQ(verdict(examine(), "cuDNN"), Verdict::kFailure);
}

TEST_F(Machine, GoodGpus) {
  pci("0000:01:00.0", "0x10de", "0x030200");
  pci("0000:02:00.0", "0x10de", "0x030200");
  nvidia_smi(two_good_gpus(),
             " \\tGPU0\\tGPU1\\n GPU0\\tX\\tOK\\n GPU1\\tOK\\tX\\n\\nLegend:\\n  X = Self\\n");
  const HostReport r = examine();
  EXPECT_EQ(found(r, "GPUs"), "2 x NVIDIA A100");
  for (const char* name : {"GPUs", "GPU memory errors", "GPU memory to repair",
                           "GPU memory beyond repair", "GPU temperature", "GPU persistence mode",
                           "GPU compute mode", "GPU clocks", "GPU peer access", "IOMMU"})
    EXPECT_EQ(verdict(r, name), Verdict::kOk) << name;
  EXPECT_EQ(r.gpu_lines.size(), 2u);
  EXPECT_EQ(r.facts.at("driver"), "580.95.05");
}

TEST_F(Machine, EachFaultOfAGpuIsNamed) {
  pci("0000:01:00.0", "0x10de", "0x030200");
  pci("0000:02:00.0", "0x10de", "0x030200");
  struct Case {
    const char *field, *answer, *check;
    Verdict verdict;
  };
  const Case cases[] = {
      {"ecc.errors.uncorrected.volatile.total", "0\\n3\\n", "GPU memory errors", Verdict::kFailure},
      {"ecc.errors.uncorrected.volatile.total", "[N/A]\\n[N/A]\\n", "GPU memory errors",
       Verdict::kUnknown},
      {"remapped_rows.pending", "No\\nYes\\n", "GPU memory to repair", Verdict::kWarning},
      {"remapped_rows.failure", "No\\nYes\\n", "GPU memory beyond repair", Verdict::kFailure},
      {"temperature.gpu", "40\\n91\\n", "GPU temperature", Verdict::kWarning},
      {"persistence_mode", "Enabled\\nDisabled\\n", "GPU persistence mode", Verdict::kWarning},
      {"compute_mode", "Default\\nProhibited\\n", "GPU compute mode", Verdict::kFailure},
      {"clocks_event_reasons.active", "0x0\\n0x0000000000000040\\n", "GPU clocks",
       Verdict::kWarning},
  };
  for (const Case& c : cases) {
    auto answers = two_good_gpus();
    answers[c.field] = c.answer;
    nvidia_smi(answers);
    const HostReport r = examine();
    EXPECT_EQ(verdict(r, c.check), c.verdict) << c.check;
    if (c.verdict != Verdict::kUnknown) {
      EXPECT_THAT(found(r, c.check), HasSubstr("GPU 1:")) << c.check;
    }
  }
  // Drivers before 535 have another name for the reasons.
  auto old = two_good_gpus();
  old.erase("clocks_event_reasons.active");
  old["clocks_throttle_reasons.active"] = "0x8\\n0x0\\n";
  nvidia_smi(old);
  EXPECT_THAT(found(examine(), "GPU clocks"), HasSubstr("GPU 0:"));
  nvidia_smi(two_good_gpus(), " \\tGPU0\\tGPU1\\n GPU0\\tX\\tCNS\\n GPU1\\tCNS\\tX\\n");
  EXPECT_EQ(verdict(examine(), "GPU peer access"), Verdict::kWarning);
}

TEST_F(Machine, GpusThatTheDriverDoesNotDrive) {
  pci("0000:01:00.0", "0x10de", "0x030200");
  EXPECT_THAT(found(examine(), "GPUs"),
              HasSubstr("1 NVIDIA GPU on PCI (0000:01:00.0) but no nvidia-smi"));
  nvidia_smi({});
  EXPECT_THAT(found(examine(), "GPUs"), HasSubstr("does not answer"));
  pci("0000:02:00.0", "0x10de", "0x030200");
  pci("0000:03:00.0", "0x10de", "0x030200");
  nvidia_smi(two_good_gpus());
  EXPECT_EQ(verdict(examine(), "GPUs"), Verdict::kFailure);  // three on PCI, two driven
}

TEST_F(Machine, InfiniBandPorts) {
  port("mlx5_0", "4: ACTIVE", "200 Gb/sec (4X HDR)");
  port("mlx5_1", "4: ACTIVE", "200 Gb/sec (4X HDR)");
  EXPECT_EQ(found(examine(), "InfiniBand"), "2 x 200 Gb/sec (4X HDR)");
  EXPECT_EQ(verdict(examine(), "InfiniBand"), Verdict::kOk);
  port("mlx5_1", "4: ACTIVE", "100 Gb/sec (2X HDR)");
  EXPECT_EQ(verdict(examine(), "InfiniBand"), Verdict::kWarning);
  port("mlx5_1", "1: DOWN", "10 Gb/sec (4X SDR)");
  EXPECT_THAT(found(examine(), "InfiniBand"), HasSubstr("not active: mlx5_1/1 DOWN"));
  port("mlx5_0", "2: INIT", "200 Gb/sec (4X HDR)");
  EXPECT_EQ(verdict(examine(), "InfiniBand"), Verdict::kFailure);
}

TEST_F(Machine, GpuDirectNeedsAModuleOrDmaBuf) {
  pci("0000:01:00.0", "0x10de", "0x030200");
  nvidia_smi(two_good_gpus());
  EXPECT_FALSE(has(examine(), "GPUDirect RDMA"));  // no NIC that could
  port("mlx5_0", "4: ACTIVE", "200 Gb/sec (4X HDR)");
  put("/proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05\n");
  EXPECT_EQ(verdict(examine(), "GPUDirect RDMA"), Verdict::kWarning);
  put("/proc/modules", "nvidia_peermem 16384 0 - Live 0x0\n");
  EXPECT_EQ(verdict(examine(), "GPUDirect RDMA"), Verdict::kOk);
  put("/proc/modules", "");
  put("/proc/driver/nvidia/version",
      "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05\n");
  EXPECT_EQ(verdict(examine(), "GPUDirect RDMA"), Verdict::kOk);
  put("/proc/sys/kernel/osrelease", "5.4.0\n");
  EXPECT_EQ(verdict(examine(), "GPUDirect RDMA"), Verdict::kWarning);
}

TEST_F(Machine, IommuAndAcs) {
  port("mlx5_0", "4: ACTIVE", "200 Gb/sec (4X HDR)");
  EXPECT_EQ(verdict(examine(), "IOMMU"), Verdict::kOk);
  put("/sys/class/iommu/dmar0/x", "");
  EXPECT_EQ(verdict(examine(), "IOMMU"), Verdict::kWarning);
  put("/proc/cmdline", "quiet intel_iommu=on iommu=pt\n");
  EXPECT_EQ(verdict(examine(), "IOMMU"), Verdict::kOk);
  // A bridge's configuration space with one extended capability: ACS at 0x100, control register at
  // +6.
  std::string config(4096, '\0');
  config[0x100] = 0x0d;
  config[0x102] = 0x01;
  pci("0000:00:01.0", "0x8086", "0x060400", config);
  EXPECT_EQ(verdict(examine(), "PCI ACS"), Verdict::kOk);
  config[0x106] = 0x1d;
  pci("0000:00:01.0", "0x8086", "0x060400", config);
  EXPECT_EQ(verdict(examine(), "PCI ACS"), Verdict::kWarning);
  pci("0000:00:01.0", "0x8086", "0x060400", config.substr(0, 64));  // what others than root see
  EXPECT_EQ(verdict(examine(), "PCI ACS"), Verdict::kUnknown);
  // Capabilities that point at each other do not hang it.
  config[0x100] = 0x01;
  config[0x103] = 0x10;
  pci("0000:00:01.0", "0x8086", "0x060400", config);
  EXPECT_EQ(verdict(examine(), "PCI ACS"), Verdict::kOk);
}

TEST_F(Machine, KernelSettings) {
  put("/proc/sys/kernel/numa_balancing", "1\n");
  EXPECT_EQ(verdict(examine(), "NUMA balancing"), Verdict::kWarning);
  fs::remove_all(root() + "/sys/devices/system/node/node1");
  EXPECT_EQ(verdict(examine(), "NUMA balancing"), Verdict::kOk);
  put("/sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]\n");
  EXPECT_EQ(verdict(examine(), "huge pages"), Verdict::kWarning);
  fs::remove_all(root() + "/dev/shm");
  EXPECT_EQ(verdict(examine(), "shared memory"), Verdict::kFailure);
}

TEST_F(Machine, ProgramsAndLibraries) {
  fs::remove(root() + "/bin/r1run-rank");
  EXPECT_EQ(verdict(examine(), "r1run-rank"), Verdict::kFailure);
  pci("0000:01:00.0", "0x10de", "0x030200");
  put("/usr/lib64/libnccl.so.2.28.5", "x");
  fs::create_symlink("libnccl.so.2.28.5", root() + "/usr/lib64/libnccl.so.2");
  EXPECT_EQ(verdict(examine(), "NCCL"), Verdict::kFailure);
  put("/usr/lib64/libcudnn.so.8.5.0", "x");
  fs::create_symlink("libcudnn.so.8.5.0", root() + "/usr/lib64/libcudnn.so.8");
  EXPECT_EQ(verdict(examine(), "cuDNN"), Verdict::kFailure);
  put("/bin/ldd",
      "#!/bin/sh\nprintf '\\tlibmpi.so.40 => not found\\n\\tlibc.so.6 => /lib/libc.so.6 "
      "(0x1)\\n'\n");
  fs::permissions(root() + "/bin/ldd", fs::perms::owner_all);
  const HostReport r = examine();
  EXPECT_EQ(verdict(r, "r1run"), Verdict::kFailure);
  EXPECT_THAT(found(r, "r1run"), HasSubstr("missing libmpi.so.40"));
}

TEST_F(Machine, ModelDirectory) {
  EXPECT_EQ(verdict(examine(root() + "/nowhere"), "model"), Verdict::kFailure);
  put("/model/model.safetensors", "x");
  EXPECT_EQ(verdict(examine(root() + "/model"), "model"), Verdict::kFailure);  // no config.json
  put("/model/config.json", "{}");
  const HostReport small = examine(root() + "/model");
  EXPECT_EQ(verdict(small, "model"), Verdict::kOk);
  EXPECT_EQ(verdict(small, "disk"), Verdict::kUnknown);
  put("/model/model.safetensors", std::string(16u << 20, 'x'));
  const HostReport r = examine(root() + "/model");
  EXPECT_NE(verdict(r, "disk"), Verdict::kUnknown);
  EXPECT_NE(r.facts.at("model"), small.facts.at("model"));
}

HostReport report(const std::string& host, const std::map<std::string, std::string>& facts,
                  double skew = 0) {
  HostReport r;
  r.host = host;
  r.checks = {{"GPUs", Verdict::kOk, "4 x NVIDIA A100", ""}};
  r.facts = facts;
  r.clock_skew_s = skew;
  return r;
}

TEST(Hosts, TheOddOneOutIsNamed) {
  std::vector<HostReport> reports{report("a", {{"r1run", "1"}, {"libmpi.so.40", "7"}}),
                                  report("b", {{"r1run", "1"}, {"libmpi.so.40", "7"}}),
                                  report("c", {{"r1run", "2"}})};
  compare_hosts(&reports, {"a", "b", "c"});
  EXPECT_FALSE(has(reports[0], "same r1run"));
  EXPECT_EQ(verdict(reports[2], "same r1run"), Verdict::kFailure);
  EXPECT_EQ(found(reports[2], "same r1run"), "2 here, 1 on 2 of 3 hosts");
  EXPECT_EQ(verdict(reports[2], "same libmpi.so.40"), Verdict::kWarning);
  EXPECT_EQ(worst(reports), Verdict::kFailure);
}

TEST(Hosts, ClocksAndMissingHosts) {
  std::vector<HostReport> reports{report("a", {}), report("b.cluster", {}, -4.0),
                                  report("c", {}, 3600)};
  compare_hosts(&reports, {"a", "b", "c", "d"});
  ASSERT_EQ(reports.size(), 4u);
  EXPECT_EQ(verdict(reports[0], "clock"), Verdict::kOk);
  EXPECT_EQ(verdict(reports[1], "clock"), Verdict::kWarning);
  EXPECT_EQ(verdict(reports[2], "clock"), Verdict::kFailure);
  EXPECT_EQ(reports[3].host, "d");
  EXPECT_EQ(verdict(reports[3], "reachable"), Verdict::kFailure);
}

TEST(Hosts, TextJsonAndCode) {
  std::vector<HostReport> reports{report("a", {}), report("b", {})};
  reports[1].checks.push_back({"disk", Verdict::kWarning, "read 90 MB/s", "copy the model"});
  const std::string text = doctor_text(reports);
  EXPECT_THAT(text, HasSubstr("ok       GPUs  4 x NVIDIA A100  [all hosts]\n"));
  EXPECT_THAT(text, HasSubstr("warning  disk  read 90 MB/s  [b]\n"));
  EXPECT_THAT(text, HasSubstr("-> copy the model\n"));
  EXPECT_THAT(text, HasSubstr("2 hosts: 1 ok, 0 unknown, 1 warning, 0 failures\n"));
  const auto json = nlohmann::json::parse(doctor_json(reports));
  EXPECT_EQ(json["worst"], "warning");
  EXPECT_EQ(json["hosts"][1]["checks"][1]["verdict"], "warning");
  EXPECT_EQ(report_from_json(to_json_text(reports[1])), reports[1]);
  for (const char* bad :
       {"", "{}", "[]", "{\"host\": 3}", "{\"host\":\"a\",\"checks\":[{\"verdict\":\"fine\"}]}"})
    EXPECT_FALSE(report_from_json(bad).has_value()) << bad;
  EXPECT_EQ(exit_code_for(worst(reports)), 1);
  EXPECT_EQ(exit_code_for(Verdict::kOk), 0);
  EXPECT_EQ(exit_code_for(Verdict::kFailure), 2);
  EXPECT_EQ(exit_code_for(Verdict::kUnknown), 3);
}

TEST(Doctor, ThisMachineAndItsJson) {
  const std::string r1run = std::string(R1RUN_BIN_DIR) + "/r1run";
  const Result table = run({r1run, "doctor"});
  EXPECT_LT(table.code, 4) << table.output;
  EXPECT_EQ(count(table.output, "1 host: "), 1) << table.output;
  const Result json = run({r1run, "doctor", "--json", "-"});
  const auto parsed = nlohmann::json::parse(json.output, nullptr, false);
  ASSERT_TRUE(parsed.is_object()) << json.output;
  EXPECT_EQ(parsed["hosts"].size(), 1u);
  EXPECT_EQ(json.code, parsed["worst"] == "ok"        ? 0
                       : parsed["worst"] == "warning" ? 1
                       : parsed["worst"] == "failure" ? 2
                                                      : 3);
}

TEST(Gather, TextsOfAnySizeAndNoStrangers) {
  GatherServer server;
  std::map<std::string, std::string, std::less<>> variables;
  for (const auto& [name, value] : server.environment()) variables[name] = value;
  const Environment env(variables);
  ASSERT_TRUE(can_gather(env));
  const std::string large(3'000'000, 'x');
  const auto sender = [&](const Environment& e, const std::string& host, const std::string& text) {
    const pid_t child = fork();
    if (child == 0) _exit(send_gathered(e, host, text, 5) ? 0 : 1);
    return child;
  };
  const pid_t a = sender(env, "a", large), b = sender(env, "b", "");
  variables["R1RUN_GATHER_TOKEN"] = std::string(64, '0');
  const pid_t stranger = sender(Environment(variables), "mallory", "hello");
  for (const double until = monotonic_s() + 10; server.texts().size() < 2 && monotonic_s() < until;)
    server.service(50);
  for (int i = 0; i < 10; ++i) server.service(20);
  ASSERT_EQ(server.texts().size(), 2u);
  for (const auto& t : server.texts()) {
    EXPECT_EQ(t.text, t.host == "a" ? large : "");
    EXPECT_LT(std::abs(t.skew_s), 1);
  }
  for (const pid_t pid : {a, b, stranger}) {
    int status = 0;
    for (int i = 0; i < 100 && waitpid(pid, &status, WNOHANG) == 0; ++i) server.service(50);
    EXPECT_EQ(WEXITSTATUS(status), pid == stranger ? 1 : 0);
  }
  EXPECT_FALSE(can_gather(Environment()));
}

}  // namespace
}  // namespace r1::launch::test
