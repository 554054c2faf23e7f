#include "launch/placed_here.h"

#include <fmt/format.h>
#include <sched.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>

#include "launch/cpu_set.h"
#include "launch/placement.h"
#include "launch/topology/text.h"
#include "runtime/core/error.h"

namespace r1::launch {
namespace {

namespace fs = std::filesystem;

/// Binds this process to CPUs ("0-15,128-143"). Returns "" or why it is not bound.
std::string bind_to(const std::string& list, const std::string& root) {
  CpuSet wanted;
  try {
    wanted = CpuSet::from_list(list, kPlacementVariable);
  } catch (const DataError& e) {
    return e.what();
  }
  std::ifstream in(root + "/sys/devices/system/cpu/online");
  std::string online;
  try {
    if (std::getline(in, online) && !CpuSet::from_list(online, "online").contains(wanted))
      return fmt::format(
          "its topology gives it CPUs {}, the host has {}: describe the host anew (r1run probe "
          "--json)",
          list, online);
  } catch (const DataError&) {
    online.clear();  // the kernel's answer to the call will do
  }
  const int most = wanted.ranges().back().second + 1;
  cpu_set_t* set = CPU_ALLOC(most);
  const size_t size = CPU_ALLOC_SIZE(most);
  CPU_ZERO_S(size, set);
  for (const int cpu : wanted.members()) CPU_SET_S(static_cast<size_t>(cpu), size, set);
  const int rc = sched_setaffinity(0, size, set);
  const int error = errno;
  CPU_FREE(set);
  if (rc != 0)
    return fmt::format("CPUs {} are not this job's to use ({})", list, std::strerror(error));
  return "";
}

/// The first adapter of "=mlx5_0:1,mlx5_1:1" that is not an InfiniBand or RoCE device of this host.
std::string missing_adapter(std::string_view list, const std::string& root) {
  if (list.starts_with('=')) list.remove_prefix(1);
  for (const std::string_view entry : fields_of(list, ',')) {
    const std::string device(entry.substr(0, entry.find(':')));
    std::error_code ignored;
    if (entry.find(':') != std::string_view::npos &&
        !fs::exists(root + "/sys/class/infiniband/" + device, ignored))
      return device;
  }
  return "";
}

/// UUIDs of this host's GPUs as the driver lists them; empty: unknown.
std::set<std::string> gpu_uuids(const std::string& root) {
  std::set<std::string> out;
  std::error_code failed;
  for (fs::directory_iterator it(root + "/proc/driver/nvidia/gpus", failed), end;
       !failed && it != end; it.increment(failed)) {
    std::ifstream in(it->path() / "information");
    for (std::string line; std::getline(in, line);)
      if (line.starts_with("GPU UUID:"))
        if (const size_t at = line.find("GPU-"); at != std::string::npos)
          out.insert(line.substr(at));
  }
  return out;
}

std::string missing_gpu(std::string_view list, const std::string& root) {
  const std::set<std::string> here = gpu_uuids(root);
  if (here.empty()) return "";
  for (const std::string_view uuid : fields_of(list, ','))
    if (uuid.starts_with("GPU-") && !here.contains(std::string(uuid))) return std::string(uuid);
  return "";
}

}  // namespace

PlacedHere take_place(std::string_view table, std::string_view host, int local_rank,
                      const std::string& root) {
  PlacedHere out;
  constexpr std::string_view kAnew = "describe the host anew (r1run probe --json)";
  for (auto& [name, value] : placement_environment(table, host, local_rank)) {
    std::string missing;
    if (name == kCpusVariable) {
      if (const std::string why = bind_to(value, root); !why.empty())
        out.warnings.push_back("not bound: " + why);
    } else if (name == "NCCL_IB_HCA" || name == "UCX_NET_DEVICES") {
      missing = missing_adapter(value, root);
    } else if (name == "CUDA_VISIBLE_DEVICES") {
      missing = missing_gpu(value, root);
    }
    if (missing.empty()) {
      out.environment.emplace_back(std::move(name), std::move(value));
      continue;
    }
    out.warnings.push_back(fmt::format("{} is not set: its topology names {}, which is not here; {}", name,
                                       missing, kAnew));
  }
  return out;
}

}  // namespace r1::launch
