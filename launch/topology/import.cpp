#include "launch/topology/import.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "launch/topology/json.h"
#include "launch/topology/text.h"
#include "runtime/core/error.h"

namespace r1::launch {

std::string_view name(SourceFormat format) {
  switch (format) {
    case SourceFormat::kNcclXml:
      return "NCCL topology XML";
    case SourceFormat::kHwlocXml:
      return "hwloc XML";
    case SourceFormat::kNvidiaSmi:
      return "nvidia-smi topo";
    case SourceFormat::kIbnetdiscover:
      return "ibnetdiscover";
    case SourceFormat::kSlurmTopology:
      return "Slurm topology.conf";
    case SourceFormat::kJson:
      return "r1run's own JSON";
  }
  return "?";
}

namespace {

/// The name of the first element, "" when the text is not XML.
std::string_view root_element(std::string_view text) {
  while (true) {
    text = trimmed(text);
    if (!text.starts_with('<')) return {};
    if (text.starts_with("<!--")) {
      const auto end = text.find("-->");
      if (end == std::string_view::npos) return {};
      text.remove_prefix(end + 3);
    } else if (text.starts_with("<?") || text.starts_with("<!")) {
      const auto end = text.find('>');
      if (end == std::string_view::npos) return {};
      text.remove_prefix(end + 1);
    } else {
      text.remove_prefix(1);
      return text.substr(0, text.find_first_of(" \t\r\n/>"));
    }
  }
}

}  // namespace

std::optional<SourceFormat> detect_format(std::string_view text) {
  if (text.starts_with("\xef\xbb\xbf")) text.remove_prefix(3);
  const std::string_view body = trimmed(text);
  if (body.starts_with('{')) return SourceFormat::kJson;
  if (body.starts_with('<')) {
    const auto root = root_element(body);
    if (root == "system" || root == "graphs") return SourceFormat::kNcclXml;
    if (root == "topology" || root == "root") return SourceFormat::kHwlocXml;
    return std::nullopt;
  }
  std::string_view rest = text.substr(0, size_t{1} << 20), line;
  while (next_line(rest, line)) {
    const auto words = words_of(line);
    if (words.empty()) continue;
    const std::string first = lower(words[0]);
    if (first.starts_with("switchname=") || first.starts_with("blockname=") ||
        first.starts_with("blocksizes="))
      return SourceFormat::kSlurmTopology;
    if (line.starts_with("vendid=") || line.starts_with("switchguid=") ||
        line.starts_with("caguid=") ||
        ((words[0] == "Switch" || words[0] == "Ca" || words[0] == "Rt") && words.size() > 2 &&
         words[2].starts_with('"')))
      return SourceFormat::kIbnetdiscover;
    for (const auto word : words)
      if (word.find("GPU0") != std::string_view::npos) return SourceFormat::kNvidiaSmi;
  }
  return std::nullopt;
}

Topology read_topology(std::string_view text, const std::string& source) {
  if (text.starts_with("\xef\xbb\xbf")) text.remove_prefix(3);
  if (trimmed(text).empty()) throw DataError("{}: empty: no topology in it", source);
  const auto format = detect_format(text);
  if (!format)
    throw DataError(
        "{}: not a topology in a known format: NCCL XML (NCCL_TOPO_DUMP_FILE), hwloc XML (lstopo "
        "file.xml), nvidia-smi topo "
        "-m, ibnetdiscover, Slurm's topology.conf, or r1run's JSON",
        source);
  Topology topology;
  const auto host = [&](HostTopology read) {
    const std::string hostname = read.hostname;
    topology.hosts.push_back({hostname, std::make_shared<const HostTopology>(std::move(read))});
  };
  switch (*format) {
    case SourceFormat::kNcclXml:
      host(read_nccl_xml(text, source));
      break;
    case SourceFormat::kHwlocXml:
      host(read_hwloc_xml(text, source));
      break;
    case SourceFormat::kNvidiaSmi:
      host(read_nvidia_smi(text, source));
      break;
    case SourceFormat::kIbnetdiscover:
      topology.fabric = read_ibnetdiscover(text, source);
      break;
    case SourceFormat::kSlurmTopology:
      topology.fabric = read_slurm_topology(text, source);
      break;
    case SourceFormat::kJson:
      topology = topology_from_json(text, source);
      break;
  }
  return topology;
}

Topology read_topology_file(const std::string& path) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error))
    throw UsageError("{}: a folder, not a topology file", path);
  std::ifstream in(path, std::ios::binary);
  if (!in) throw UsageError("{}: cannot be opened: {}", path, std::strerror(errno));
  std::string text;
  char buffer[65536];
  while (in.read(buffer, sizeof(buffer)) || in.gcount() > 0) {
    text.append(buffer, static_cast<size_t>(in.gcount()));
    if (text.size() > kMostBytes)
      throw DataError("{}: more than {} bytes: not a topology", path, kMostBytes);
  }
  return read_topology(text, path);
}

}  // namespace r1::launch
