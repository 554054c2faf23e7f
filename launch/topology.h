// The topology map: what is known about hosts and the fabric between them. Plain values, the same
// from every source (live, hwloc XML, NCCL XML, nvidia-smi text, ibnetdiscover, Slurm's
// topology.conf). What a source does not say is absent (std::nullopt, an empty string or list),
// never guessed: `HostTopology::nvlink_known` tells "no NVLink" from "this source does not speak of
// NVLink".
//
// Bandwidths are GB/s (1e9 bytes) in one direction, as NCCL counts them: a PCI 4.0 x16 slot 24, an
// A100's NVLink 20, HDR 25. Indices point into the vectors of the same HostTopology (or Fabric).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "launch/cpu_set.h"

namespace r1::launch {

/// How far apart two devices are, nearest first: NCCL's words, and NODE of nvidia-smi (NCCL calls
/// that PHB).
enum class PathClass : uint8_t {
  kLoc,   ///< the same device
  kNvl,   ///< NVLink, directly or through NVSwitches
  kNvb,   ///< NVLink through another GPU
  kC2c,   ///< chip-to-chip link between GPU and CPU (Grace)
  kPix,   ///< at most one PCI bridge or switch
  kPxb,   ///< several PCI bridges, no host bridge
  kP2c,   ///< C2C to the CPU, then PCI (GPU to NIC on Grace)
  kPhb,   ///< through a host bridge (the CPU)
  kNode,  ///< between host bridges of one NUMA node
  kSys,   ///< between NUMA nodes or sockets
};
/// "LOC", "NVL", … "NODE", "SYS".
[[nodiscard]] std::string_view name(PathClass path);
/// The word NCCL uses: NODE is PHB to it.
[[nodiscard]] PathClass as_nccl(PathClass path);
/// Both say the same, NODE and PHB being one to NCCL.
[[nodiscard]] inline bool same_to_nccl(PathClass a, PathClass b) {
  return as_nccl(a) == as_nccl(b);
}

/// One way between two devices.
struct Path {
  std::optional<PathClass> path_class;  ///< nullopt: unknown
  int nvlinks = 0;  ///< links of a kNvl path (NV4 is 4); 0: not NVLink, or their number is unknown
  std::optional<double> gbytes_per_s;  ///< what the path promises; nullopt: unknown
  friend bool operator==(const Path&, const Path&) = default;
};
/// "X" (itself), "NV4", "PIX", …, "?" (unknown): a cell as users of nvidia-smi topo know it.
[[nodiscard]] std::string cell(const Path& path);

struct Package {
  int os_index = 0;
  CpuSet cpus;
  std::string model;  ///< "AMD EPYC 7763 64-Core Processor"; "" unknown
};

struct NumaNode {
  int os_index = 0;  ///< as in numactl; -1: the source knows of one node, not of its number
  std::optional<int> package;  ///< index into HostTopology::packages
  CpuSet cpus;                 ///< empty: unknown, or a node without CPUs
  std::optional<uint64_t> memory_bytes;
  /// Memory of a GPU shown as a NUMA node (POWER9, Grace): never to be used for CPU memory binding.
  bool device_memory = false;
};

struct Core {
  std::optional<int> package, numa;  ///< indices
  CpuSet cpus;                       ///< its hardware threads
};

/// Which way a PCI tree hangs together: roots are host bridges.
struct PciSwitch {
  enum class Kind : uint8_t {
    kHostBridge,  ///< a root: one PCI hierarchy of one NUMA node
    kSwitch,      ///< a bridge, or a whole switch with its ports fused
  };
  Kind kind = Kind::kSwitch;
  std::string busid;                   ///< "0000:c0:03.1"; "" for a host bridge without one
  std::optional<int> parent;           ///< nullopt: a root
  std::optional<int> numa;             ///< of a root
  std::optional<double> gbytes_per_s;  ///< of the link towards the parent
};

struct MigInstance {
  std::string uuid;     ///< "MIG-…"
  std::string profile;  ///< "1g.10gb"
  std::optional<uint64_t> memory_bytes;
};

struct Gpu {
  int index = 0;       ///< as nvidia-smi and NCCL number them on this host
  std::string name;    ///< "NVIDIA A100-SXM4-80GB"; "" unknown
  std::string uuid;    ///< "GPU-…"; "" unknown
  std::string busid;   ///< "0000:c1:00.0"; "" unknown
  std::string pci_id;  ///< vendor and device, "10de:20b2"; "" unknown
  std::optional<uint64_t> memory_bytes;
  std::optional<int> sm;    ///< compute capability x 10: 80 for an A100
  std::optional<int> numa;  ///< index into numa_nodes
  CpuSet cpu_affinity;  ///< CPUs near it, where the source says so (nvidia-smi); empty: use `numa`
  std::optional<int> pci_parent;           ///< index into pci; nullopt: unknown
  std::optional<double> pci_gbytes_per_s;  ///< its own slot
  std::optional<bool> gdr;                 ///< GPUDirect RDMA
  std::vector<MigInstance> mig;            ///< empty: none, or unknown
  std::optional<bool> mig_enabled;
  /// Set where NVSwitches form several groups without visible links between them (the base boards of a DGX-2): GPUs of
  /// different boards may be joined by trunk links that the source does not show.
  std::optional<int> nvswitch_board;
  std::optional<bool> ecc;
  std::vector<std::string> throttle_reasons;  ///< in force when it was read
  std::optional<uint32_t> numa_id_of_memory;  ///< GPU NUMA ID: where its memory is a NUMA node
};

enum class LinkLayer : uint8_t { kInfiniBand, kEthernet };

struct Nic {
  std::string name;  ///< "mlx5_0", "eth0"; "" unknown (a PCI device without a driver)
  std::string
      netdev;    ///< network interface of an RDMA device ("ib0", "enp65s0np0"); "" none or unknown
  int port = 1;  ///< of the device
  std::string busid;
  std::string pci_id;
  std::optional<double> rate_mbit_per_s;
  std::optional<LinkLayer> link_layer;
  bool rdma = false;           ///< an InfiniBand, RoCE or EFA device rather than a plain interface
  std::optional<bool> active;  ///< port state
  std::string guid;            ///< node GUID, 16 hex digits; "" unknown
  std::string port_guid;
  std::optional<int> numa;        ///< index into numa_nodes
  std::optional<int> pci_parent;  ///< index into pci
  std::optional<double> pci_gbytes_per_s;
  std::optional<bool> gdr;
};

/// NVLinks or a C2C link from a GPU.
struct NvLink {
  enum class Target : uint8_t { kGpu, kSwitch, kCpu };
  int gpu = 0;  ///< index into gpus
  Target target = Target::kGpu;
  int target_index = 0;  ///< into gpus, nvswitches or numa_nodes (-1: a CPU of unknown node)
  int count = 0;                       ///< 0: unknown
  bool c2c = false;                    ///< a chip-to-chip link (Grace) rather than NVLinks
  std::optional<double> gbytes_per_s;  ///< of all `count` together
};

struct NvSwitch {
  std::string busid;
  std::optional<int> pci_parent;
};

/// One host.
struct HostTopology {
  std::string hostname;              ///< "" unknown
  std::vector<std::string> sources;  ///< "live", "topo.xml (NCCL)", …
  std::string architecture;          ///< "x86_64"; "" unknown
  std::string cpu_vendor;            ///< "AuthenticAMD", "GenuineIntel", "IBM", "ARM"; "" unknown
  std::optional<int> cpu_family, cpu_model;
  std::vector<Package> packages;
  std::vector<NumaNode> numa_nodes;
  std::vector<Core> cores;
  std::optional<uint64_t> memory_bytes;
  std::vector<PciSwitch> pci;  ///< parents come before their children
  std::vector<Gpu> gpus;
  std::vector<Nic> nics;  ///< a port each
  std::vector<NvSwitch> nvswitches;
  std::vector<NvLink> nvlinks;
  bool nvlink_known =
      false;  ///< false: the sources are silent about NVLink, which does not mean "none"
  bool nics_known = false;  ///< false: the sources are silent about NICs
  /// GPU x GPU and GPU x NIC, row by GPU. Filled by every reader.
  std::vector<std::vector<Path>> gpu_gpu, gpu_nic;
  std::vector<std::vector<Path>> nic_nic;  ///< row and column by NIC
  /// Nearest NICs of each GPU, indices into nics: every NIC that is as near as the nearest, in file
  /// order. Empty: it has none nearer than SYS, or the paths are unknown.
  std::vector<std::vector<int>> near_nics;
  /// The NIC that NCCL would give each GPU's channel 0; nullopt: none, or unknown.
  std::vector<std::optional<int>> nccl_nic;
  std::vector<std::string>
      warnings;  ///< what the source says that cannot be, and what was made of it

  /// GPUs that reach each other over NVLink, each GPU in one group; a GPU of its own where it has
  /// none.
  [[nodiscard]] std::vector<std::vector<int>> nvlink_domains() const;
  /// CPUs near a GPU: its NUMA node's, or its affinity where that is known; empty: unknown.
  [[nodiscard]] CpuSet cpus_near(int gpu) const;
};

/// A switch of the fabric.
struct FabricSwitch {
  std::string name;  ///< "IBLEAF-01", "leaf1"; the GUID where it has no other
  std::string guid;  ///< "" unknown
  int level = 0;     ///< 0: has hosts attached; else hops to the nearest that has
  /// Links to switches nearer to the core (or, between switches of one level, sideways), each
  /// neighbour once.
  struct Link {
    int to = 0;  ///< index into switches
    int cables = 1;
    std::optional<double> gbytes_per_s;  ///< of all cables together
  };
  std::vector<Link> up;
  double host_gbytes_per_s = 0;            ///< sum of the links to hosts; 0: unknown
  std::optional<double> oversubscription;  ///< bandwidth below ÷ bandwidth above; nullopt: unknown,
                                           ///< or no switch above
};

/// One adapter port (or, where a source names hosts only, one host) and the switch it hangs on.
struct FabricPort {
  std::string host;    ///< "" : the adapter does not say
  std::string device;  ///< "mlx5_0", "HCA-1"; "" unknown
  std::string guid;
  int leaf = 0;  ///< index into switches
  std::optional<double> gbytes_per_s;
};

struct Fabric {
  std::string source;  ///< "" : nothing is known about the fabric
  std::vector<FabricSwitch> switches;
  std::vector<FabricPort> ports;  ///< compute hosts only
  /// Blocks of Slurm's topology/block: names and hosts; empty otherwise.
  struct Block {
    std::string name;
    std::vector<std::string> hosts;
  };
  std::vector<Block> blocks;
  std::vector<int> block_sizes;
  std::vector<std::string> warnings;

  /// Leaf switches of a host, ascending, each once; empty: the fabric does not know it. Also found
  /// by the first label of a fully qualified name where that is unambiguous.
  [[nodiscard]] std::vector<int> leaves_of(std::string_view host) const;
  /// The same for many hosts at once: linear in ports and hosts.
  [[nodiscard]] std::vector<std::vector<int>> leaves_of(const std::vector<std::string>& many) const;
  /// Both hosts hang on a common leaf switch (or are in one block); nullopt: one of them is
  /// unknown.
  [[nodiscard]] std::optional<bool> share_leaf(std::string_view a, std::string_view b) const;
};

/// All of it. Hosts that look the same may share one HostTopology, so that a thousand hosts cost
/// little.
struct Topology {
  struct Member {
    std::string name;                          ///< as the hostfile names it
    std::shared_ptr<const HostTopology> host;  ///< null: unknown
    /// A description of this kind of host: how this one numbers its cores, GPUs and adapters is not
    /// known.
    bool kind_only = false;
  };
  std::vector<Member> hosts;
  Fabric fabric;
  [[nodiscard]] const HostTopology* find(std::string_view host) const;
};

}  // namespace r1::launch
