// Readers of topology descriptions made by other programs: text → the map of topology.h. Pure;
// every reader takes hostile bytes: sizes are limited, and the outcome is a value or a DataError
// that names the source and the place in it.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "launch/topology.h"

namespace r1::launch {

enum class SourceFormat : uint8_t {
  kNcclXml,        ///< NCCL_TOPO_FILE, NCCL_TOPO_DUMP_FILE
  kHwlocXml,       ///< lstopo file.xml: formats 1.x and 2.x
  kNvidiaSmi,      ///< nvidia-smi topo -m, -mp
  kIbnetdiscover,  ///< ibnetdiscover
  kSlurmTopology,  ///< Slurm's topology.conf: SwitchName or BlockName lines
  kJson,           ///< r1run topo --json, r1run probe --json
};
[[nodiscard]] std::string_view name(SourceFormat format);

/// Tells by content; nullopt: none of them.
[[nodiscard]] std::optional<SourceFormat> detect_format(std::string_view text);

/// Limits that no real file comes near.
inline constexpr size_t kMostBytes = size_t{64} << 20;
inline constexpr size_t kMostGpus = 256, kMostNics = 512, kMostNuma = 1024, kMostPci = 8192;

/// `source` names the text in messages and in HostTopology::sources. Throws DataError.
[[nodiscard]] HostTopology read_nccl_xml(std::string_view text, const std::string& source);
[[nodiscard]] HostTopology read_hwloc_xml(std::string_view text, const std::string& source);
[[nodiscard]] HostTopology read_nvidia_smi(std::string_view text, const std::string& source);
[[nodiscard]] Fabric read_ibnetdiscover(std::string_view text, const std::string& source);
[[nodiscard]] Fabric read_slurm_topology(std::string_view text, const std::string& source);

/// Any of them: a host description becomes a Topology of one host (named as the file names it, or
/// ""), a fabric one of no hosts. Throws DataError when the content is none of the formats.
[[nodiscard]] Topology read_topology(std::string_view text, const std::string& source);
/// The same from a file. Throws UsageError when it cannot be opened.
[[nodiscard]] Topology read_topology_file(const std::string& path);

}  // namespace r1::launch
