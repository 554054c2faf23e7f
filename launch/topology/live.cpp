#include "launch/topology/live.h"

#include <hwloc.h>
#include <unistd.h>

#include <memory>

#include "launch/process.h"
#include "launch/topology/import.h"
#include "launch/topology/paths.h"
#include "runtime/core/error.h"

namespace r1::launch {
namespace {

struct DestroyTopology {
  void operator()(hwloc_topology_t t) const { hwloc_topology_destroy(t); }
};

/// hwloc's own reading as XML, so that the live map and an imported one go through one reader.
HostTopology read_hwloc(bool& this_machine) {
  hwloc_topology_t raw = nullptr;
  if (hwloc_topology_init(&raw) != 0) throw InternalError("hwloc_topology_init failed");
  const std::unique_ptr<std::remove_pointer_t<hwloc_topology_t>, DestroyTopology> topology(raw);
  hwloc_topology_set_io_types_filter(raw, HWLOC_TYPE_FILTER_KEEP_IMPORTANT);
  if (hwloc_topology_load(raw) != 0) throw InternalError("hwloc_topology_load failed");
  this_machine = hwloc_topology_is_thissystem(raw) != 0;
  char* text = nullptr;
  int length = 0;
  if (hwloc_topology_export_xmlbuffer(raw, &text, &length, 0) != 0)
    throw InternalError("hwloc cannot write its topology");
  std::string xml(text, static_cast<size_t>(length));
  hwloc_free_xmlbuffer(raw, text);
  while (xml.ends_with('\0')) xml.pop_back();
  HostTopology host = read_hwloc_xml(xml, "this machine");
  host.sources = {"live: hwloc"};
  return host;
}

}  // namespace

HostTopology live_topology(const LiveSources& sources) {
  bool this_machine = true;
  HostTopology host = sources.hwloc ? read_hwloc(this_machine) : HostTopology{};
  if (host.hostname.empty()) host.hostname = host_name();
  // hwloc was told to read another machine (HWLOC_XMLFILE, HWLOC_FSROOT): what is here is not part
  // of that one.
  if (this_machine) {
    add_sysfs_nics(host, sources.sysfs);
    if (!sources.nvml.empty()) add_nvml(host, sources.nvml);
  }
  resolve_paths(host);
  return host;
}

}  // namespace r1::launch
