#include "launch/cluster_builder.h"

#include <fmt/format.h>

#include "launch/hostfile_text.h"
#include "runtime/core/error.h"
#include "runtime/core/text.h"

namespace r1::launch::hostfile {

void ClusterBuilder::add(Host host, std::optional<int> slots, const std::string& mention) {
  const std::string where = host.line > 0 ? at(cluster_.source, host.line)
                                          : fmt::format("{} {}", cluster_.source, mention);
  const std::string first = mentions_.try_emplace(host.name, mention).first->second;
  const auto [it, is_new] = index_.try_emplace(host.name, cluster_.hosts.size());
  if (is_new) {
    add_first(std::move(host), slots, where);
  } else {
    add_again(host, slots.has_value(), where, first, &cluster_.hosts[it->second]);
  }
}

void ClusterBuilder::add_first(Host host, std::optional<int> slots, const std::string& where) {
  if (index_.size() > kMaxHosts) throw UsageError("{}: more than {} hosts", where, kMaxHosts);
  const auto [spelled, fresh] = spelling_.try_emplace(lower(host.name), host.name);
  if (!fresh)
    throw UsageError(
        "{}: host \"{}\" differs from \"{}\" only in case: names of hosts do not depend on "
        "case, but "
        "mpirun would count them as two",
        where, host.name, spelled->second);
  host.slots = slots.value_or(host.max_slots.value_or(1));
  host.slots_given = slots.has_value() || host.max_slots.has_value();
  cluster_.hosts.push_back(std::move(host));
}

void ClusterBuilder::add_again(const Host& host, bool with_slots, const std::string& where,
                               const std::string& first, Host* known) {
  if (with_slots) {
    throw UsageError(
        "{}: host \"{}\" is named a second time (first in {}) with a slot count: give its "
        "slots once, "
        "or repeat its bare name once per slot",
        where, host.name, first);
  }
  if (!host.user.empty() && host.user != known->user)
    throw UsageError("{}: host \"{}\" has user \"{}\" here and \"{}\" in {}", where, host.name,
                     host.user, known->user, first);
  if (known->slots_given && !repeated_.contains(host.name))
    warn(where + ": host \"" + host.name +
         "\" has a slot count and is named again: each further mention adds one slot");
  repeated_.insert(host.name);
  ++known->slots;
  known->slots_given = true;
  for (const auto& [key, value] : host.annotations) known->annotations[key] = value;
}

Cluster ClusterBuilder::finish() {
  if (cluster_.hosts.empty())
    throw UsageError("{}: names no host; expected lines like \"node1 slots=4\"", cluster_.source);
  int64_t total = 0;
  std::vector<std::string> bare;
  for (Host& h : cluster_.hosts) {
    if (kind_ == NodefileKind::kPbs) h.slots_given = true;
    total += h.slots;
    if (h.max_slots && *h.max_slots < h.slots)
      throw UsageError("{}: host \"{}\" has max_slots {} below its {} slots",
                       at(cluster_.source, h.line), h.name, *h.max_slots, h.slots);
    if (!h.slots_given) bare.push_back(h.name);
    check_label(h);
  }
  if (total > 16'777'216)
    throw UsageError("{}: {} slots in all; allowed: at most 16777216", cluster_.source, total);
  if (!bare.empty())
    warn(fmt::format(
        "{}: {} given without a slot count ({}{}): counted as one slot, where mpirun "
        "alone would take all "
        "cores; write slots=N",
        cluster_.source, bare.size() == 1 ? "a host is" : fmt::format("{} hosts are", bare.size()),
        bare.front(), bare.size() > 1 ? ", …" : ""));
  return std::move(cluster_);
}

// Hosts whose first labels agree are one for mpirun, unless it is told to keep full names.
void ClusterBuilder::check_label(const Host& h) {
  if (is_address(h.name)) return;
  const auto [it, fresh] = labels_.try_emplace(lower(h.name.substr(0, h.name.find('.'))), h.name);
  if (!fresh && !cluster_.keep_fqdn) {
    cluster_.keep_fqdn = true;
    warn(
        fmt::format("{}: \"{}\" and \"{}\" share their first label, which mpirun would take "
                    "for one host; it is told "
                    "to keep full names",
                    at(cluster_.source, h.line), it->second, h.name));
  }
}

}  // namespace r1::launch::hostfile
