// A cluster that one does not have: what its devices and links are, and what a job may expect of them. Pure.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "launch/comm_groups.h"
#include "parallel/cost/fit.h"

namespace r1::launch {

/// A kind of link. Bandwidths in bytes per second, one direction.
struct LinkKind {
  std::string name, title;
  double device_bytes_per_s = 0;  ///< of one device to all others together; 0: a mesh of pairs
  double pair_bytes_per_s = 0;    ///< between two devices; 0: as device_bytes_per_s
  double share = 1;               ///< that collectives reach of it
  double latency_s = 0;
  bool network = false;           ///< between hosts
  /// What each of `ranks` devices reaches in a collective among them, and between two of them.
  [[nodiscard]] double collective_bytes_per_s(int ranks) const;
  [[nodiscard]] double pair() const { return (pair_bytes_per_s > 0 ? pair_bytes_per_s : device_bytes_per_s) * share; }
};

struct MigProfile {
  double compute_sevenths = 0, memory_eighths = 0;
  int64_t memory_bytes = 0;
};

/// A GPU, or one socket of CPU cores.
struct DeviceKind {
  std::string name, title;
  bool gpu = true;
  int sm = 0;                    ///< compute capability x 10; 0: a CPU
  int cores = 0, numa = 0;       ///< of a CPU
  int64_t memory_bytes = 0;      ///< GPU: what a job can allocate; CPU: of one socket
  double bytes_per_s = 0;        ///< peak memory bandwidth
  double bf16_flops = 0;         ///< dense peak; 0: the device has no bf16
  double fp32_flops = 0;
  double gemm = 0, attention_forward = 0, attention_backward = 0, copy = 0;  ///< shares of the peaks
  std::string basis;             ///< "measured", "published", "estimate"
  std::string peer, peer_many;   ///< link between devices of a host; peer_many: where there are more than four
  std::string network;           ///< usual link between hosts
  std::string host;              ///< link to the memory of its host; where none is named, the PCIe of its generation
  int most = 8;                  ///< devices in one host
  std::map<std::string, MigProfile> mig;
};

/// Equal hosts with equal devices.
class PlannedCluster final : public parallel::Machine {
 public:
  std::string text, title;
  int hosts = 1, devices_per_host = 1;  ///< devices: GPUs or MIG instances; CPU hosts count as one device
  DeviceKind device;                    ///< of a MIG instance: its share of the card
  std::string mig;                      ///< profile; empty: whole cards
  LinkKind peer, network, host_link;
  int nics = 1;                         ///< of a host
  int sockets = 1, cores = 0, numa = 1; ///< of a host
  int64_t host_memory_bytes = 0;
  bool host_assumed = false;            ///< devices were named alone: the host around them is a plausible one
  std::optional<double> usd_per_hour;   ///< of all hosts together
  std::string price_note;
  CommChoice comm = CommChoice::kAuto;  ///< --comm: which groups are NCCL's, whose buffers take memory

  [[nodiscard]] bool gpu() const { return device.gpu; }
  /// What one rank of a mesh takes beside the plan's tensors, by category: context, graphs, workspace and NCCL on a GPU; code and
  /// libraries on a CPU.
  [[nodiscard]] std::vector<parallel::MemoryItem> beside_plan(const parallel::MeshShape& mesh) const;
  /// Bytes that the plan's tensors of all ranks on a device may take.
  [[nodiscard]] int64_t capacity_bytes(const parallel::MeshShape& mesh) const;
  /// Where a rank is when ranks fill the hosts in order.
  [[nodiscard]] RankSpot spot(const parallel::MeshShape& mesh, int world_rank) const;
  [[nodiscard]] int ranks_per_device(const parallel::MeshShape& mesh) const;
  [[nodiscard]] int ranks_per_host(const parallel::MeshShape& mesh) const;

  [[nodiscard]] parallel::DeviceRates rates(const parallel::MeshShape& mesh, const parallel::NumericFormat& format) const override;
  /// Links of a mesh whose ranks fill the hosts in order.
  [[nodiscard]] parallel::MeshLinks links(const parallel::MeshShape& mesh) const override;
  [[nodiscard]] std::vector<parallel::MemoryDomain> domains(const parallel::MeshShape& mesh) const override;
  /// Host memory that GPU ranks may pin: what the system and the ranks' programs leave.
  [[nodiscard]] std::vector<parallel::MemoryDomain> host_domains(const parallel::MeshShape& mesh) const override;
  [[nodiscard]] int most_ranks() const override;
};

}  // namespace r1::launch
