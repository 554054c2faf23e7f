// The places that ranks can take, and how fast they reach each other. Internal to the placement.
#pragma once

#include <memory>
#include <vector>

#include "launch/placement.h"

namespace r1::launch::placement {

/// Slots of one kind of host: equal topologies with equal counts share one.
struct HostClass {
  const HostTopology* topology = nullptr;  ///< null: unknown
  bool kind_only = false;  ///< a description of the kind of host: nothing to bind to
  int slots = 0;
  std::vector<int> gpu;                    ///< of each slot; -1: none
  std::vector<int> numa;                   ///< of each slot; -1: unknown
  std::vector<int> package;                ///< of each slot; -1: unknown
  std::vector<CpuSet> cpus;                ///< of each slot
  std::vector<std::vector<int>> nics;      ///< nearest NICs of each slot, indices into topology->nics
  std::vector<bool> far_nic;               ///< the slot's NIC is across the host
  std::vector<double> network_bytes_per_s; ///< of each slot, its share of its NICs
  std::vector<double> pair_bytes_per_s;    ///< [slots, slots]
  std::vector<double> pair_latency_s;      ///< [slots, slots]
  std::vector<bool> pair_nvlink;           ///< [slots, slots]
  bool nvlink_mesh = false;                ///< NVLinks go from GPU to GPU: a group of n has n - 1 of them each
  [[nodiscard]] size_t at(int a, int b) const { return static_cast<size_t>(a) * static_cast<size_t>(slots) + static_cast<size_t>(b); }
};

struct Slot {
  int host = 0, local = 0;  ///< local: index among the host's slots
  int host_class = 0;
  int leaf = -1;            ///< switch that its NIC hangs on; -1: unknown
};

/// All slots of a cluster with their links.
class Slots {
 public:
  Slots(const Cluster& cluster, const Topology& topology);
  [[nodiscard]] const std::vector<Slot>& all() const { return slots_; }
  [[nodiscard]] const HostClass& class_of(int slot) const { return *classes_[static_cast<size_t>(slots_[static_cast<size_t>(slot)].host_class)]; }
  [[nodiscard]] const std::vector<int>& first_of_host() const { return first_; }  ///< first slot of each host, and the end
  [[nodiscard]] int leaf_of_host(int host) const { return slots_[static_cast<size_t>(first_[static_cast<size_t>(host)])].leaf; }

  /// Seconds for `operations` messages of `bytes` in all between two slots.
  [[nodiscard]] double message_s(int a, int b, double bytes, double operations) const;
  /// Seconds of collectives in a group: `bytes` that each member sends in all.
  [[nodiscard]] double group_s(const int* members, int count, double bytes, double operations) const;

 private:
  struct Link {
    double bytes_per_s, latency_s;
  };
  [[nodiscard]] Link link(int a, int b) const;

  std::vector<Slot> slots_;
  std::vector<int> first_;
  std::vector<std::shared_ptr<const HostClass>> classes_;
  std::vector<double> leaf_share_;  ///< of each leaf: what is left of a NIC's bandwidth towards other leaves
};

/// Cost of an assignment.
[[nodiscard]] PlacementCost cost_of(const Slots& slots, const parallel::MeshShape& mesh, const parallel::StepTraffic& traffic,
                                    const std::vector<int>& slot_of_rank);
/// The best assignment that the search finds.
[[nodiscard]] std::vector<int> search(const Slots& slots, const parallel::MeshShape& mesh, const parallel::StepTraffic& traffic,
                                      const PlacementOptions& options);
/// What is bad about an assignment.
[[nodiscard]] std::vector<std::string> warnings_of(const Slots& slots, const Cluster& cluster, const parallel::MeshShape& mesh,
                                                   const std::vector<int>& slot_of_rank);

}  // namespace r1::launch::placement
