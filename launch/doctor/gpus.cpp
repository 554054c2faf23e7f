// GPUs as nvidia-smi tells of them: it comes with every driver, and its words are those that people
// search for.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <sstream>

#include "launch/doctor/host.h"

namespace r1::launch::doctor {
namespace {

constexpr double kLimit_s = 30;  // a GPU in trouble makes nvidia-smi slow
constexpr double kHottest_c = 85;
constexpr const char* kQueryFields =
    "index,name,uuid,pci.bus_id,driver_version,memory.total,memory.used,utilization.gpu,"
    "temperature.gpu,"
    "power.draw,clocks.sm,persistence_mode,ecc.errors.uncorrected.volatile.total";

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> out;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);)
    if (!trimmed(line).empty()) out.push_back(trimmed(line));
  return out;
}

class NvidiaSmi {
 public:
  explicit NvidiaSmi(const DoctorOptions& o) : program_(find_in_path("nvidia-smi", o.path)) {}
  [[nodiscard]] bool there() const { return program_.has_value(); }
  [[nodiscard]] Captured run(std::vector<std::string> words) const {
    words.insert(words.begin(), *program_);
    return capture(words, kLimit_s);
  }
  /// One line a GPU; empty when the driver does not know the field or does not answer.
  [[nodiscard]] std::vector<std::string> query(const std::string& fields) const {
    const Captured c = run({"--query-gpu=" + fields, "--format=csv,noheader,nounits"});
    return c.code == 0 ? lines_of(c.output) : std::vector<std::string>{};
  }

 private:
  std::optional<std::string> program_;
};

std::optional<double> number(const std::string& text) {
  double v = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), v);
  return error == std::errc{} && end == text.data() + text.size() ? std::optional(v) : std::nullopt;
}

/// "GPU 0, 3" of the GPUs whose value is bad; "" when none is. `known`: how many had a value.
template <typename Bad>
std::string gpus_where(const std::vector<std::string>& values, Bad bad, int* known) {
  std::vector<size_t> hit;
  *known = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    if (values[i].find("N/A") != std::string::npos ||
        values[i].find("Not Supported") != std::string::npos)
      continue;
    ++*known;
    if (bad(values[i])) hit.push_back(i);
  }
  return hit.empty() ? "" : fmt::format("GPU {}", fmt::join(hit, ", "));
}

/// A row about one field: ok, or `bad` with the GPUs named; unknown when no GPU has the field.
template <typename Bad>
void field_row(HostReport* r, const NvidiaSmi& smi, const std::string& name,
               const std::string& field, Bad bad, Verdict verdict, const std::string& what,
               const std::string& remedy) {
  const std::vector<std::string> values = smi.query(field);
  int known = 0;
  const std::string hit = gpus_where(values, bad, &known);
  if (known == 0) {
    add(r, name, Verdict::kUnknown, "the driver does not tell", "look with nvidia-smi -q");
  } else if (hit.empty()) {
    add(r, name, Verdict::kOk, fmt::format("{} GPU{}: none", known, known == 1 ? "" : "s"));
  } else {
    add(r, name, verdict, fmt::format("{}: {}", hit, what), remedy);
  }
}

void health(const NvidiaSmi& smi, HostReport* r) {
  const auto not_zero = [](const std::string& v) { return number(v).value_or(0) > 0; };
  const auto yes = [](const std::string& v) { return v == "Yes" || v == "1"; };
  field_row(r, smi, "GPU memory errors", "ecc.errors.uncorrected.volatile.total", not_zero,
            Verdict::kFailure, "uncorrected errors since the driver was loaded",
            "reset the GPU (nvidia-smi -r) or reboot; replace it if they come back");
  field_row(r, smi, "GPU memory to repair", "remapped_rows.pending", yes, Verdict::kWarning,
            "row remapping is pending",
            "reset the GPU (nvidia-smi -r) before the job: the faulty row is in use until then");
  field_row(r, smi, "GPU memory beyond repair", "remapped_rows.failure", yes, Verdict::kFailure,
            "row remapping failed", "replace the GPU");
  field_row(
      r, smi, "GPU temperature", "temperature.gpu",
      [](const std::string& v) { return number(v).value_or(0) >= kHottest_c; }, Verdict::kWarning,
      fmt::format("{:.0f} C or more", kHottest_c),
      "look at the cooling: hot GPUs slow down, and the whole job with them");
  field_row(
      r, smi, "GPU persistence mode", "persistence_mode",
      [](const std::string& v) { return v == "Disabled"; }, Verdict::kWarning, "disabled",
      "nvidia-smi -pm 1, or run nvidia-persistenced: otherwise each start initialises the GPU "
      "anew");
  field_row(
      r, smi, "GPU compute mode", "compute_mode",
      [](const std::string& v) { return v == "Prohibited"; }, Verdict::kFailure, "prohibited",
      "nvidia-smi -c 0");
}

/// Reasons for low clocks that are faults: hardware and thermal slow-down, power brake. Idle and an
/// administrator's power limit are none. (Bits of nvmlClocksEventReasons, nvml.h.)
void clocks(const NvidiaSmi& smi, HostReport* r) {
  constexpr uint64_t kFaults = 0x8 | 0x20 | 0x40 | 0x80;
  std::vector<std::string> values = smi.query("clocks_event_reasons.active");
  if (values.empty()) values = smi.query("clocks_throttle_reasons.active");  // drivers before 535
  int known = 0;
  const auto faulty = [](const std::string& v) {
    uint64_t bits = 0;
    const char* from = v.data() + (v.starts_with("0x") ? 2 : 0);
    return std::from_chars(from, v.data() + v.size(), bits, 16).ec == std::errc{} &&
           (bits & kFaults) != 0;
  };
  const std::string hit = gpus_where(values, faulty, &known);
  if (known == 0)
    add(r, "GPU clocks", Verdict::kUnknown, "the driver does not tell why clocks are low",
        "look with nvidia-smi -q -d PERFORMANCE");
  else if (hit.empty())
    add(r, "GPU clocks", Verdict::kOk, "no slow-down by heat or power");
  else
    add(r, "GPU clocks", Verdict::kWarning, hit + ": slowed down by heat, power brake or hardware",
        "nvidia-smi -q -d PERFORMANCE says why; look at cooling and power supplies");
}

/// `nvidia-smi topo -p2p r`: "OK" or why not, a matrix.
void peer_access(const NvidiaSmi& smi, size_t gpus, HostReport* r) {
  if (gpus < 2) return;
  const Captured c = smi.run({"topo", "-p2p", "r"});
  int good = 0;
  std::vector<std::string> bad;
  for (const std::string& line : lines_of(c.output)) {
    std::istringstream words(line);
    std::string row, cell;
    if (!(words >> row) || !row.starts_with("GPU")) continue;
    std::vector<std::string> cells;
    while (words >> cell) cells.push_back(cell);
    if (cells.empty() || cells[0].starts_with("GPU")) continue;  // the heading
    for (size_t i = 0; i < cells.size(); ++i) {
      if (cells[i] == "OK") ++good;
      if (cells[i] != "OK" && cells[i] != "X")
        bad.push_back(fmt::format("{}-GPU{} {}", row, i, cells[i]));
    }
  }
  if (c.code != 0 || (good == 0 && bad.empty()))
    add(r, "GPU peer access", Verdict::kUnknown, "nvidia-smi topo -p2p r does not answer");
  else if (bad.empty())
    add(r, "GPU peer access", Verdict::kOk, fmt::format("between all {} GPUs", gpus));
  else
    add(r, "GPU peer access", Verdict::kWarning,
        fmt::format(
            "{} of {} pairs without: {}{}", bad.size(), bad.size() + static_cast<size_t>(good),
            fmt::join(
                std::vector<std::string>(
                    bad.begin(), bad.begin() + std::min<long>(4, static_cast<long>(bad.size()))),
                ", "),
            bad.size() > 4 ? ", …" : ""),
        "tensors between these GPUs go through host memory: expected for GPUs without NVLink on "
        "different sockets or consumer cards; otherwise "
        "look at IOMMU and ACS, and at containers that hide GPUs");
}

void gpudirect(const DoctorOptions& o, HostReport* r) {
  if (rdma_devices(o).empty()) return;
  std::string modules("\n");
  modules += text_of(o, "/proc/modules").value_or("");
  const std::string driver = text_of(o, "/proc/driver/nvidia/version").value_or("");
  const bool peermem = modules.find("\nnvidia_peermem ") != std::string::npos ||
                       modules.find("\nnv_peer_mem ") != std::string::npos;
  const bool open_modules = driver.find("Open Kernel Module") != std::string::npos;
  const std::vector<int> kernel = version_of(text_of(o, "/proc/sys/kernel/osrelease").value_or(""));
  if (peermem)
    add(r, "GPUDirect RDMA", Verdict::kOk, "through nvidia-peermem");
  else if (open_modules && compare_versions(kernel, {5, 12}) >= 0)
    add(r, "GPUDirect RDMA", Verdict::kOk, "through dma-buf (open kernel modules)");
  else if (driver.empty() || kernel.empty())
    add(r, "GPUDirect RDMA", Verdict::kUnknown, "the driver's version file cannot be read");
  else
    add(r, "GPUDirect RDMA", Verdict::kWarning, "neither nvidia-peermem nor dma-buf",
        "modprobe nvidia-peermem (needs the RDMA drivers first), or the open kernel modules with "
        "Linux 5.12 or newer: otherwise each "
        "message goes through host memory");
}

}  // namespace

void examine_gpus(const DoctorOptions& o, HostReport* r) {
  const std::vector<std::string> on_pci = gpus_on_pci(o);
  const NvidiaSmi smi(o);
  if (on_pci.empty() && !smi.there()) {
    add(r, "GPUs", Verdict::kOk, "none: CPU ranks only");
    return;
  }
  if (!smi.there()) {
    add(r, "GPUs", Verdict::kFailure,
        fmt::format("{} NVIDIA GPU{} on PCI ({}) but no nvidia-smi in $PATH", on_pci.size(),
                    on_pci.size() == 1 ? "" : "s", fmt::join(on_pci, ", ")),
        "install the NVIDIA driver, or put nvidia-smi into $PATH");
    return;
  }
  const std::vector<std::string> names = smi.query("name"), drivers = smi.query("driver_version");
  if (names.empty()) {
    add(r, "GPUs", Verdict::kFailure,
        fmt::format("nvidia-smi does not answer ({} GPUs on PCI)", on_pci.size()),
        "nvidia-smi itself says why; the kernel's log (dmesg | grep -i -e nvrm -e xid) says more. "
        "Often: driver and library of different "
        "versions after an update (reboot), or a GPU that fell off the bus");
    return;
  }
  std::map<std::string, int> kinds;
  for (const auto& n : names) ++kinds[n];
  std::string found;
  for (const auto& [name, n] : kinds)
    found += fmt::format("{}{} x {}", found.empty() ? "" : ", ", n, name);
  const bool lost = on_pci.size() > names.size();
  add(r, "GPUs",
      lost               ? Verdict::kFailure
      : kinds.size() > 1 ? Verdict::kWarning
                         : Verdict::kOk,
      lost ? fmt::format("{}; {} on PCI", found, on_pci.size()) : found,
      lost ? "GPUs that the driver does not drive: look into dmesg for Xid messages, and reset or "
             "reboot"
      : kinds.size() > 1 ? "different GPUs in one host: every step waits for the slowest"
                         : "");
  r->facts["GPUs"] = found;
#ifdef R1RUN_CUDA_TOOLKIT
  r->checks.push_back(
      check_driver(version_table(), drivers.empty() ? "" : drivers.front(), R1RUN_CUDA_TOOLKIT));
#else
  add(r, "driver", Verdict::kWarning,
      fmt::format("driver {}; this r1run is built without CUDA",
                  drivers.empty() ? "unknown" : drivers.front()),
      "build with -DR1RUN_CUDA=ON to use the GPUs");
#endif
  if (!drivers.empty()) r->facts["driver"] = drivers.front();
  health(smi, r);
  clocks(smi, r);
  peer_access(smi, names.size(), r);
  gpudirect(o, r);
  const Captured lines =
      smi.run({std::string("--query-gpu=") + kQueryFields, "--format=csv,noheader"});
  if (lines.code == 0) r->gpu_lines = lines_of(lines.output);
}

}  // namespace r1::launch::doctor
