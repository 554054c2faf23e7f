// What the kernel and the machine are set to.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/resource.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "launch/doctor/host.h"
#include "runtime/core/human.h"
#include "runtime/core/text.h"

namespace r1::launch::doctor {
namespace {

namespace fs = std::filesystem;

uint32_t word_at(const std::string& bytes, size_t at) {
  uint32_t v = 0;
  for (size_t i = 0; i < 4; ++i)
    v |= static_cast<uint32_t>(static_cast<unsigned char>(bytes[at + i])) << (8 * i);
  return v;
}

/// Whether a PCI function redirects peer requests upwards: its Access Control Services capability
/// (extended capability 0x0d; control register at +6, bits 2 and 3: request and completion
/// redirect; PCI Express Base Specification 7.7.12). nullopt: not visible (needs root).
std::optional<bool> redirects_peers(const std::string& config) {
  if (config.size() < 4096) return std::nullopt;
  size_t at = 0x100;
  for (int i = 0; i < 64 && at >= 0x100 && at + 8 <= config.size(); ++i) {
    const uint32_t header = word_at(config, at);
    if (header == 0 || header == 0xffffffffu) break;
    if ((header & 0xffffu) == 0x0d) return ((word_at(config, at + 4) >> 16) & 0xcu) != 0;
    at = header >> 20;
  }
  return false;
}

void iommu(const DoctorOptions& o, HostReport* r) {
  if (gpus_on_pci(o).size() < 2 && rdma_devices(o).empty()) return;
  const bool on = !names_in(o, "/sys/class/iommu").empty();
  const std::string line = fmt::format(" {} ", trimmed(text_of(o, "/proc/cmdline").value_or("")));
  const bool pass_through = line.find(" iommu=pt ") != std::string::npos;
  if (!on || pass_through) {
    add(r, "IOMMU", Verdict::kOk, on ? "on, pass-through" : "off");
  } else {
    add(r, "IOMMU", Verdict::kWarning, "on, and it translates every access of a device",
        "boot with iommu=pt (or turn it off in the firmware): peer access and GPUDirect are slow "
        "or fail otherwise");
  }
  std::vector<std::string> redirecting;
  int seen = 0, hidden = 0;
  for (const std::string& device : names_in(o, "/sys/bus/pci/devices")) {
    const std::string base = "/sys/bus/pci/devices/" + device;
    if (!trimmed(text_of(o, base + "/class").value_or("")).starts_with("0x0604")) continue;
    const auto redirect = redirects_peers(text_of(o, base + "/config").value_or(""));
    hidden += !redirect;
    seen += redirect.has_value();
    if (redirect.value_or(false)) redirecting.push_back(device);
  }
  if (seen == 0)
    add(r, "PCI ACS", Verdict::kUnknown,
        hidden > 0 ? "the bridges' settings are visible to root only" : "no PCI bridges to see",
        hidden > 0 ? "run r1run doctor as root once, or look with lspci -vvv for ACSCtl" : "");
  else if (redirecting.empty())
    add(r, "PCI ACS", Verdict::kOk, fmt::format("{} bridges, none redirects peers", seen));
  else
    add(r, "PCI ACS", Verdict::kWarning,
        fmt::format("{} bridges send traffic between peers up to the root: {}{}",
                    redirecting.size(), redirecting.front(), redirecting.size() > 1 ? ", …" : ""),
        "turn ACS off in the firmware, or with setpci on these bridges: GPUs and NICs reach each "
        "other at a fraction of the speed otherwise");
}

void memory_limits(const DoctorOptions& o, HostReport* r) {
  rlimit limit{};
  if (getrlimit(RLIMIT_MEMLOCK, &limit) == 0) {
    const bool rdma = !rdma_devices(o).empty();
    const bool unlimited = limit.rlim_cur == RLIM_INFINITY;
    add(r, "locked memory", unlimited || !rdma ? Verdict::kOk : Verdict::kFailure,
        unlimited ? "unlimited"
                  : human_bytes(static_cast<double>(limit.rlim_cur)) +
                        (rdma ? "" : "; no RDMA device needs more"),
        unlimited || !rdma
            ? ""
            : "set memlock to unlimited in /etc/security/limits.conf (and LimitMEMLOCK=infinity "
              "for slurmd): InfiniBand cannot register memory otherwise");
  }
  struct statvfs shm {};
  const std::string path = o.root + "/dev/shm";
  if (statvfs(path.c_str(), &shm) != 0) {
    add(r, "shared memory", Verdict::kFailure, "/dev/shm is not there",
        "mount a tmpfs on /dev/shm: ranks of one host exchange data through it");
  } else {
    const uint64_t size = static_cast<uint64_t>(shm.f_blocks) * shm.f_frsize,
                   free = static_cast<uint64_t>(shm.f_bavail) * shm.f_frsize;
    constexpr uint64_t kLittle = 1u << 30;
    add(r, "shared memory", free < kLittle ? Verdict::kWarning : Verdict::kOk,
        fmt::format("{} free of {} in /dev/shm", human_bytes(static_cast<double>(free)),
                    human_bytes(static_cast<double>(size))),
        free >= kLittle ? ""
        : size < kLittle
            ? "give it 1 GiB at least (containers: --shm-size, or an emptyDir of medium Memory)"
            : "remove what dead processes left in /dev/shm");
  }
}

void pages_and_numa(const DoctorOptions& o, HostReport* r) {
  const auto thp = text_of(o, "/sys/kernel/mm/transparent_hugepage/enabled");
  if (!thp)
    add(r, "huge pages", Verdict::kUnknown, "the kernel does not tell");
  else if (thp->find("[never]") != std::string::npos)
    add(r, "huge pages", Verdict::kWarning, "transparent huge pages are off",
        "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled: large buffers cost many page "
        "faults otherwise");
  else
    add(r, "huge pages", Verdict::kOk, "transparent: " + trimmed(*thp));
  const std::vector<std::string> nodes = names_in(o, "/sys/devices/system/node");
  const auto count = std::count_if(nodes.begin(), nodes.end(), [](const std::string& n) {
    return n.starts_with("node") && n.size() > 4 && n[4] >= '0' && n[4] <= '9';
  });
  const auto balancing = text_of(o, "/proc/sys/kernel/numa_balancing");
  if (count <= 1)
    add(r, "NUMA balancing", Verdict::kOk, "one NUMA node");
  else if (!balancing)
    add(r, "NUMA balancing", Verdict::kUnknown, "the kernel does not tell");
  else if (trimmed(*balancing) != "0")
    add(r, "NUMA balancing", Verdict::kWarning, fmt::format("on, {} NUMA nodes", count),
        "sysctl -w kernel.numa_balancing=0: it unmaps pages of bound processes again and again");
  else
    add(r, "NUMA balancing", Verdict::kOk, "off");
}

/// One row for all ports: "4: ACTIVE", "100 Gb/sec (4X EDR)".
void ports(const DoctorOptions& o, HostReport* r) {
  const std::vector<std::string> devices = rdma_devices(o);
  if (devices.empty()) {
    add(r, "InfiniBand", Verdict::kOk, "none: hosts talk over Ethernet");
    return;
  }
  std::map<std::string, int> active;
  std::vector<std::string> down;
  double fastest = 0, slowest = 1e9;
  for (const std::string& device : devices)
    for (const std::string& port : names_in(o, "/sys/class/infiniband/" + device + "/ports")) {
      const std::string base = "/sys/class/infiniband/" + device + "/ports/" + port;
      const std::string state = trimmed(text_of(o, base + "/state").value_or("?")),
                        rate = trimmed(text_of(o, base + "/rate").value_or("?"));
      if (state.find("ACTIVE") == std::string::npos) {
        down.push_back(fmt::format(
            "{}/{} {}", device, port,
            state.substr(std::min(
                state.size(), state.find(' ') == std::string::npos ? 0 : state.find(' ') + 1))));
        continue;
      }
      ++active[rate];
      const double gbits = std::atof(rate.c_str());
      fastest = std::max(fastest, gbits);
      slowest = std::min(slowest, gbits);
    }
  std::string found;
  int total = 0;
  for (const auto& [rate, n] : active) {
    found += fmt::format("{}{} x {}", found.empty() ? "" : ", ", n, rate);
    total += n;
  }
  r->facts["InfiniBand"] = found;
  if (total == 0) {
    add(r, "InfiniBand", Verdict::kFailure,
        fmt::format("no active port: {}", fmt::join(down, ", ")),
        "look at cables and at the subnet manager (INIT: no subnet manager answers; DOWN: no cable "
        "or the switch's port is off)");
  } else if (!down.empty() || slowest < fastest) {
    add(r, "InfiniBand", Verdict::kWarning,
        found + (down.empty() ? "" : fmt::format("; not active: {}", fmt::join(down, ", "))),
        slowest < fastest
            ? "ports of different rates: a cable or a port trained at a lower speed (ibstat, then "
              "reseat or replace)"
            : "ports that are not active are not used; look at cables if they should be");
  } else {
    add(r, "InfiniBand", Verdict::kOk, found);
  }
}

}  // namespace

std::optional<std::string> text_of(const DoctorOptions& o, const std::string& path) {
  std::ifstream in(o.root + path, std::ios::binary);
  if (!in) return std::nullopt;
  std::string text(65536, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(in.gcount()));
  return text;
}

std::vector<std::string> names_in(const DoctorOptions& o, const std::string& path) {
  std::vector<std::string> out;
  std::error_code failed;
  for (fs::directory_iterator it(o.root + path, failed), end; !failed && it != end;
       it.increment(failed))
    out.push_back(it->path().filename().string());
  std::sort(out.begin(), out.end());
  return out;
}

std::string trimmed(std::string_view text) {
  return std::string(r1::trimmed(text));
}

void add(HostReport* r, std::string name, Verdict verdict, std::string found, std::string remedy) {
  r->checks.push_back({std::move(name), verdict, std::move(found), std::move(remedy)});
}

std::vector<std::string> gpus_on_pci(const DoctorOptions& o) {
  std::vector<std::string> out;
  for (const std::string& device : names_in(o, "/sys/bus/pci/devices")) {
    const std::string base = "/sys/bus/pci/devices/" + device;
    const std::string kind = trimmed(text_of(o, base + "/class").value_or(""));
    // 0x0300 VGA, 0x0302 3D controller
    if (trimmed(text_of(o, base + "/vendor").value_or("")) == "0x10de" &&
        (kind.starts_with("0x0302") || kind.starts_with("0x0300")))
      out.push_back(device);
  }
  return out;
}

std::vector<std::string> rdma_devices(const DoctorOptions& o) {
  return names_in(o, "/sys/class/infiniband");
}

void examine_system(const DoctorOptions& o, HostReport* r) {
  iommu(o, r);
  memory_limits(o, r);
  pages_and_numa(o, r);
  ports(o, r);
}

}  // namespace r1::launch::doctor
