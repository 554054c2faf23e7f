// ibnetdiscover's output: a record a node (Switch, Ca, Rt), a line a cable end.
//
//     Switch  65 "S-2c5eab0300b87b40"    # "MF0;leaf-1:MQM9701/U1" enhanced port 0 lid 73 lmc 0
//     [1]     "H-e09d7303007a4bd8"[1](e09d7303007a4bd8)    # "node1 mlx5_0" lid 647 4xNDR
//     Ca      1 "H-e09d7303007a4bd8"     # "node1 mlx5_0"
//     [1](e09d7303007a4bd8)  "S-2c5eab0300b87b40"[1]       # lid 647 lmc 0 "MF0;leaf-1:MQM9701/U1"
//     lid 73 4xNDR
//
// Which host an adapter is in stands only in its description, which a host sets itself: "node1
// mlx5_0" or "node1 HCA-1". Factory names and an installer's default names are no identity.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <unordered_map>

#include "launch/hostfile.h"
#include "launch/topology/fabric.h"
#include "launch/topology/import.h"
#include "launch/topology/paths.h"
#include "launch/topology/text.h"
#include "launch/topology/xml.h"
#include "runtime/core/error.h"

namespace r1::launch {
namespace {

constexpr size_t kMostNodes = 200'000, kMostEnds = 1'000'000;

enum class NodeKind : uint8_t { kSwitch, kAdapter, kAggregation, kRouter };

struct Node {
  NodeKind kind = NodeKind::kSwitch;
  std::string id, description;
  int line = 0;
};

struct End {
  int node = 0, port = 0;
  std::string peer;
  int peer_port = 0;
  std::optional<double> gbytes_per_s;
  std::string guid;  // of the adapter's port
};

/// The text between the quotes that start at or after `from`; moves `from` behind them.
std::string_view quoted(std::string_view line, size_t& from) {
  const auto open = line.find('"', from);
  if (open == std::string_view::npos) return {};
  const auto close = line.find('"', open + 1);
  if (close == std::string_view::npos) return {};
  from = close + 1;
  return line.substr(open + 1, close - open - 1);
}

/// "[12]" at the start of the text; -1 otherwise.
int bracketed(std::string_view text) {
  if (!text.starts_with('[')) return -1;
  const auto close = text.find(']');
  if (close == std::string_view::npos) return -1;
  const auto value = integer(text.substr(1, close - 1));
  return value && *value >= 0 && *value < 4096 ? static_cast<int>(*value) : -1;
}

bool is_device_word(std::string_view word) {
  for (const char* prefix : {"HCA-", "mlx", "hfi1_", "qib", "ibp", "roce", "bnxt_re", "mthca",
                             "ipath", "irdma", "rdma", "ocrdma", "cxi"})
    if (word.starts_with(prefix)) return true;
  return word.starts_with("ib") && word.size() > 2 &&
         word.find_first_not_of("0123456789", 2) == std::string_view::npos;
}

bool is_host_name(std::string_view word) {
  try {
    check_host_name(word, "description");
    return true;
  } catch (const UsageError&) {
    return false;
  }
}

/// "MF0;A09-LEAF-04:MQM9701/U1" → "A09-LEAF-04"; elements of a director keep what tells them apart
/// ("…/L01").
std::string switch_name(std::string_view description) {
  auto text = trimmed(description);
  const auto semicolon = text.find(';');
  if (semicolon == std::string_view::npos) return std::string(text);
  text.remove_prefix(semicolon + 1);
  const auto colon = text.find(':');
  std::string out(text.substr(0, colon));
  if (colon == std::string_view::npos) return out;
  const auto parts = fields_of(text.substr(colon + 1), '/');
  for (size_t i = 1; i < parts.size(); ++i)
    if (i + 1 < parts.size() || !parts[i].starts_with('U')) (out += '/') += parts[i];
  return out;
}

class IbReader {
 public:
  IbReader(std::string_view text, const std::string& source) : text_(text), source_(source) {}

  Fabric read() {
    std::string_view rest = text_, line;
    while (next_line(rest, line)) {
      ++line_;
      if (line.starts_with('['))
        read_end(line);
      else if (const auto words = words_of(line.substr(0, 12));
               !words.empty() && (words[0] == "Switch" || words[0] == "Ca" || words[0] == "Rt"))
        read_node(words[0], line);
    }
    if (count(NodeKind::kSwitch) == 0)
      throw DataError(
          "{}: no fabric: {} adapters, no switch, {} link lines (cut off, or read from a port that "
          "is down?)",
          source_, count(NodeKind::kAdapter), ends_.size());
    if (ends_.empty())
      throw DataError("{}: no fabric: switches, but no link line (cut off?)", source_);
    build();
    return std::move(fabric_);
  }

 private:
  std::string_view text_;
  const std::string& source_;
  int line_ = 0;
  int current_ = -1;  // the node whose links are being read
  std::vector<Node> nodes_;
  std::unordered_map<std::string, int> index_;
  std::vector<End> ends_;
  Fabric fabric_;

  [[nodiscard]] size_t count(NodeKind kind) const {
    return static_cast<size_t>(std::ranges::count(nodes_, kind, &Node::kind));
  }

  void read_node(std::string_view word, std::string_view line) {
    size_t at = 0;
    const std::string id(quoted(line, at));
    if (id.empty())
      throw DataError("{}:{}: a {} line without an id in quotes", source_, line_, word);
    if (nodes_.size() >= kMostNodes)
      throw DataError("{}:{}: more than {} nodes", source_, line_, kMostNodes);
    if (!index_.try_emplace(id, static_cast<int>(nodes_.size())).second)
      throw DataError("{}:{}: a second record of {}", source_, line_, shown(id));
    Node node{.id = id, .description = std::string(quoted(line, at)), .line = line_};
    node.kind = word == "Switch" ? NodeKind::kSwitch
                : word == "Rt"   ? NodeKind::kRouter
                                 : NodeKind::kAdapter;
    if (node.kind == NodeKind::kAdapter &&
        node.description.find("Aggregation Node") != std::string::npos)
      node.kind = NodeKind::kAggregation;  // of SHARP, inside a switch
    current_ = static_cast<int>(nodes_.size());
    nodes_.push_back(std::move(node));
  }

  void read_end(std::string_view line) {
    if (current_ < 0) throw DataError("{}:{}: a link before any node", source_, line_);
    if (ends_.size() >= kMostEnds)
      throw DataError("{}:{}: more than {} links", source_, line_, kMostEnds);
    End end{.node = current_, .port = bracketed(line)};
    size_t at = 0;
    end.peer = quoted(line, at);
    if (end.port < 0 || end.peer.empty())
      throw DataError("{}:{}: \"{}\": a link is [port] \"peer\"[port] # …", source_, line_,
                      shown(line));
    end.peer_port = bracketed(line.substr(at));
    if (end.peer_port < 0)
      throw DataError("{}:{}: \"{}\": the peer has no [port]", source_, line_, shown(line));
    // The adapter's port GUID stands behind its port number, on whichever side it is.
    const auto open = line.find('(');
    if (open != std::string_view::npos) {
      const auto close = line.find(')', open);
      if (close != std::string_view::npos && close - open <= 17)
        end.guid = line.substr(open + 1, close - open - 1);
    }
    for (const auto word : words_of(line.substr(std::min(line.find('#', at), line.size()))))
      if (const auto rate = infiniband_mbit_per_s(word)) end.gbytes_per_s = *rate / 8000;
    ends_.push_back(std::move(end));
  }

  void warn(const std::string& what) { fabric_.warnings.push_back(source_ + ": " + what); }

  void build() {
    fabric_.source = source_ + " (ibnetdiscover)";
    check_both_sides();
    std::vector<int> switch_of(nodes_.size(), -1);
    std::map<std::string, int> names;
    for (const Node& node : nodes_)
      if (node.kind == NodeKind::kSwitch) ++names[switch_name(node.description)];
    for (size_t n = 0; n < nodes_.size(); ++n) {
      if (nodes_[n].kind != NodeKind::kSwitch) continue;
      switch_of[n] = static_cast<int>(fabric_.switches.size());
      const std::string guid = nodes_[n].id.substr(nodes_[n].id.find('-') + 1);
      std::string shown_name = switch_name(nodes_[n].description);
      if (shown_name.empty())
        shown_name = guid;
      else if (names[shown_name] > 1)
        shown_name += " " + guid;  // a factory name
      fabric_.switches.push_back({.name = shown_name, .guid = guid});
    }
    std::map<std::pair<int, int>, SwitchLink> cables;
    std::set<std::pair<int, int>> adapter_ports;  // seen from either side
    for (const End& end : ends_) {
      const auto peer = index_.find(end.peer);
      if (peer == index_.end()) continue;
      const Node &here = nodes_[static_cast<size_t>(end.node)],
                 &there = nodes_[static_cast<size_t>(peer->second)];
      const int a = switch_of[static_cast<size_t>(end.node)],
                b = switch_of[static_cast<size_t>(peer->second)];
      if (a >= 0 && b >= 0 && a < b) add_cable(cables[{a, b}], a, b, end);
      if (here.kind == NodeKind::kAdapter && b >= 0 &&
          adapter_ports.insert({end.node, end.port}).second)
        add_port(here, b, end);
      if (there.kind == NodeKind::kAdapter && a >= 0 &&
          adapter_ports.insert({peer->second, end.peer_port}).second)
        add_port(there, a, end);
    }
    std::vector<SwitchLink> links;
    for (const auto& [pair, link] : cables) links.push_back(link);
    settle_default_names();
    describe_left_out();
    lay_out_fabric(fabric_, links, Directions::kByHops);
  }

  static void add_cable(SwitchLink& link, int a, int b, const End& end) {
    if (link.a == link.b) {  // the first one
      link = {.a = a, .b = b, .gbytes_per_s = end.gbytes_per_s};
      return;
    }
    ++link.cables;
    link.gbytes_per_s = link.gbytes_per_s && end.gbytes_per_s
                            ? std::optional(*link.gbytes_per_s + *end.gbytes_per_s)
                            : std::nullopt;
  }

  std::set<std::string> default_names_, kept_defaults_, managers_;
  size_t unnamed_ = 0;

  void add_port(const Node& adapter, int leaf, const End& end) {
    FabricPort port{.guid = end.guid, .leaf = leaf, .gbytes_per_s = end.gbytes_per_s};
    const auto words = words_of(adapter.description);
    if (words.size() >= 2 && is_host_name(words[0]) && is_device_word(words[1])) {
      port.host = words[0];
      port.device = words[1];
    } else if (words.size() == 1 && is_host_name(words[0])) {
      port.host = words[0];
    }
    if (lower(port.host).find("ufm") != std::string::npos) {  // NVIDIA's fabric manager
      managers_.insert(port.host);
      port.host.clear();
    } else if (port.host.empty()) {
      ++unnamed_;
    }
    fabric_.ports.push_back(std::move(port));
  }

  /// An installer's default name is no identity, unless its adapters are those of one compute host:
  /// the same device names as a properly named host has.
  void settle_default_names() {
    static const std::set<std::string> kDefaults = {
        "localhost", "ubuntu", "debian", "centos",
        "rocky",     "rhel",   "linux",  "localhost.localdomain"};
    std::map<std::string, std::multiset<std::string>> devices;
    for (const FabricPort& port : fabric_.ports)
      if (!port.host.empty()) devices[port.host].insert(port.device);
    std::set<std::multiset<std::string>> usual;
    for (const auto& [host, set] : devices)
      if (!kDefaults.contains(lower(host))) usual.insert(set);
    for (const auto& [host, set] : devices) {
      if (!kDefaults.contains(lower(host))) continue;
      const bool one_host =
          usual.contains(set) && std::set(set.begin(), set.end()).size() == set.size();
      (one_host ? kept_defaults_ : default_names_).insert(host);
    }
    for (FabricPort& port : fabric_.ports)
      if (default_names_.contains(port.host)) port.host.clear();
  }

  void describe_left_out() {
    const auto join = [](const std::set<std::string>& names) {
      std::string out;
      for (const auto& n : names) out += (out.empty() ? "" : ", ") + n;
      return out;
    };
    if (unnamed_ > 0)
      warn(
          fmt::format("{} adapters carry no host name (a factory description): which hosts they "
                      "are in is unknown",
                      unnamed_));
    if (!default_names_.empty())
      warn(
          fmt::format("adapters that call themselves {} (an installer's name, not an identity) "
                      "belong to no host here",
                      join(default_names_)));
    if (!kept_defaults_.empty())
      warn(fmt::format("a host calls itself {} (an installer's name)", join(kept_defaults_)));
    if (!managers_.empty())
      warn(fmt::format("fabric managers, no compute hosts: {}", join(managers_)));
  }

  void check_both_sides() {
    std::set<std::tuple<int, int, int, int>> seen;
    size_t dangling = 0, one_sided = 0;
    for (const End& end : ends_) {
      const auto peer = index_.find(end.peer);
      if (peer == index_.end())
        ++dangling;
      else
        seen.insert({end.node, end.port, peer->second, end.peer_port});
    }
    for (const auto& [node, port, peer, peer_port] : seen)
      if (!seen.contains({peer, peer_port, node, port})) ++one_sided;
    if (dangling > 0)
      warn(fmt::format("{} links lead to nodes that the file does not have: cut off?", dangling));
    if (one_sided > 0) warn(fmt::format("{} links are reported by one end only", one_sided));
  }
};

}  // namespace

Fabric read_ibnetdiscover(std::string_view text, const std::string& source) {
  if (text.size() > kMostBytes)
    throw DataError("{}: {} bytes; a topology takes at most {}", source, text.size(), kMostBytes);
  return IbReader(text, source).read();
}

}  // namespace r1::launch
