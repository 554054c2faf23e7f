#include "launch/planned_cluster.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <set>

#include "parallel/spec/communicator_memory.h"
#include "runtime/core/comm_route.h"

namespace r1::launch {
namespace {

/// What a GPU rank takes beside the plan's tensors. One H200, CUDA 13.0, cuDNN 9, one rank without NCCL: 1.47 GiB (1.5B) and 1.61 GiB
/// (7B) over the plan, with graphs and without the same to 10 MiB (benchmarks/results/2026-11-25-h200-training.md); the GEMM
/// workspace is 64 MiB of it. The rest is the context, the libraries' code and what allocations are rounded up to.
constexpr int64_t kGpuBeside = int64_t{1610} << 20, kGemmWorkspace = int64_t{64} << 20, kGraphs = int64_t{10} << 20;
/// Code, libraries, MPI and data reading of a CPU rank, and of the host's own programs.
constexpr int64_t kCpuRankReserve = int64_t{96} << 20, kHostReserve = int64_t{2} << 30;
/// Context, libraries, staging buffers and data reading of a GPU rank in host memory: an estimate.
constexpr int64_t kGpuRankHostReserve = int64_t{2} << 30;
/// Least time of a kernel: launch on a GPU, a parallel loop on a CPU.
constexpr double kGpuKernel = 3e-6, kCpuKernel = 5e-6;

}  // namespace

double LinkKind::collective_bytes_per_s(int ranks) const {
  if (device_bytes_per_s > 0) return device_bytes_per_s * share;
  return pair_bytes_per_s * std::max(1, ranks - 1) * share;
}

int PlannedCluster::ranks_per_device(const parallel::MeshShape& mesh) const {
  const int devices = hosts * devices_per_host;
  return std::max(1, (mesh.world() + devices - 1) / devices);
}

int PlannedCluster::ranks_per_host(const parallel::MeshShape& mesh) const {
  return gpu() ? devices_per_host * ranks_per_device(mesh) : ranks_per_device(mesh);
}

RankSpot PlannedCluster::spot(const parallel::MeshShape& mesh, int r) const {
  const int here = ranks_per_host(mesh);
  return {.host = r / here, .gpu = gpu() ? r % here % devices_per_host : -1};
}

std::vector<parallel::MemoryItem> PlannedCluster::beside_plan(const parallel::MeshShape& mesh) const {
  if (!gpu()) return {{"code and libraries", "MPI, data reading", kCpuRankReserve, 1}};
  std::vector<parallel::MemoryItem> out{
      {"context", "CUDA context, library code, rounding", kGpuBeside - kGemmWorkspace - kGraphs, 1},
      {"workspace", "of cuBLAS", kGemmWorkspace, 1},
      {"graphs", "CUDA graphs of the layers", kGraphs, 1}};
  std::set<std::string> kinds, ipc;  // a rank is in one group of each
  bool messages = false;
  size_t ipc_bytes = 0;
  for (const PlannedGroup& g : planned_groups(mesh, false, comm, [&](int r) { return spot(mesh, r); })) {
    messages = messages || (g.kind == "pp" && g.route.messages == CommBackend::kNccl);
    if (g.route.messages == CommBackend::kIpc && ipc.insert(g.kind).second)
      ipc_bytes += ipc_group_bytes(static_cast<int>(g.ranks.size()), g.most_ranks_a_gpu == 1);
    if (g.kind != "replica" && (g.route.collectives == CommBackend::kNccl || g.route.messages == CommBackend::kNccl))
      kinds.insert(g.kind);
  }
  if (!ipc.empty())
    out.push_back({"ipc buffers", fmt::format("of {}", fmt::join(ipc, ", ")), static_cast<int64_t>(ipc_bytes), 1});
  if (messages)
    out.push_back({"NCCL messages", "to and from the neighbours of a stage",
                   parallel::kNcclMessageBytes * parallel::message_directions(mesh.pp), 1});
  if (!kinds.empty())
    out.push_back({"NCCL buffers", fmt::format("of {}, estimated", fmt::join(kinds, ", ")),
                   parallel::kNcclCommunicatorBytes * static_cast<int64_t>(kinds.size()), 1});
  if (kinds.contains("dp")) out.push_back({"exchange", "gradients on their way between replicas", parallel::kExchangeBytes, 1});
  return out;
}

int64_t PlannedCluster::capacity_bytes(const parallel::MeshShape& mesh) const {
  int64_t beside = 0;
  for (const parallel::MemoryItem& i : beside_plan(mesh)) beside += i.bytes;
  const int ranks = ranks_per_device(mesh);
  return (gpu() ? device.memory_bytes : host_memory_bytes - kHostReserve) - ranks * beside;
}

int PlannedCluster::most_ranks() const { return gpu() ? hosts * devices_per_host : hosts * numa; }

parallel::DeviceRates PlannedCluster::rates(const parallel::MeshShape& mesh, const parallel::NumericFormat& format) const {
  // Ranks on one device take turns; CPU ranks share the sockets of a host.
  const double share = (gpu() ? 1.0 : sockets) / ranks_per_device(mesh);
  const bool bf16 = format.weights == DType::kBF16;
  const double peak = (bf16 ? device.bf16_flops : device.fp32_flops) * share;
  return {.gemm = peak * device.gemm, .attention_forward = peak * device.attention_forward,
          .attention_backward = peak * device.attention_backward, .bytes_per_s = device.bytes_per_s * device.copy * share,
          .overhead = 1.05, .kernel_s = gpu() ? kGpuKernel : kCpuKernel,
          .host_bytes_per_s = gpu() ? host_link.pair() * share : 0, .host_link = host_link.title};
}

parallel::MeshLinks PlannedCluster::links(const parallel::MeshShape& mesh) const {
  const int here = ranks_per_host(mesh), sharing = gpu() ? ranks_per_device(mesh) : 1;
  const double nic = network.device_bytes_per_s * network.share;
  // `crossing` ranks of a host send to other hosts at once: over one NIC each at most, sharing them when there are more.
  const auto over_network = [&](int crossing) {
    return parallel::GroupLink{std::min(nic, nic * nics / std::max(1, crossing)), network.latency_s, network.title};
  };
  const auto within = [&](double bytes_per_s) {
    return parallel::GroupLink{bytes_per_s / sharing, peer.latency_s, peer.title};
  };
  parallel::MeshLinks out;
  const bool tp_inside = mesh.tp <= here && here % mesh.tp == 0;
  out.tp = tp_inside ? within(peer.collective_bytes_per_s(mesh.tp)) : over_network(here);
  const int stage = mesh.dp * mesh.tp;
  out.pp = mesh.world() <= here ? within(peer.pair()) : over_network(std::min(here, stage));
  const bool dp_inside = stage <= here && here % stage == 0;
  out.dp = dp_inside ? within(peer.collective_bytes_per_s(mesh.dp)) : over_network(std::min(here, mesh.tp));
  return out;
}

std::vector<parallel::MemoryDomain> PlannedCluster::domains(const parallel::MeshShape& mesh) const {
  // Ranks of a host take its devices in turn, as the ranks themselves do.
  const int here = ranks_per_host(mesh), devices = gpu() ? devices_per_host : 1;
  const int64_t capacity = capacity_bytes(mesh);
  std::vector<parallel::MemoryDomain> out;
  for (int r = 0; r < mesh.world(); ++r) {
    const auto at = static_cast<size_t>(r / here * devices + r % here % devices);
    while (out.size() <= at)
      out.push_back({.name = fmt::format("{} {}", gpu() ? device.name : "host", out.size()), .capacity_bytes = capacity, .ranks = {}});
    out[at].ranks.push_back(r);
  }
  return out;
}

std::vector<parallel::MemoryDomain> PlannedCluster::host_domains(const parallel::MeshShape& mesh) const {
  if (!gpu()) return {};  // their plan is in host memory as it is
  const int here = ranks_per_host(mesh);
  std::vector<parallel::MemoryDomain> out;
  for (int r = 0; r < mesh.world(); ++r) {
    if (r % here == 0)
      out.push_back({.name = fmt::format("host {}", out.size()), .capacity_bytes = host_memory_bytes - kHostReserve, .ranks = {}});
    out.back().ranks.push_back(r);
    out.back().capacity_bytes -= kGpuRankHostReserve;
  }
  for (parallel::MemoryDomain& h : out) h.capacity_bytes = std::max<int64_t>(0, h.capacity_bytes);
  return out;
}

}  // namespace r1::launch
