// Slurm's topology.conf: SwitchName= lines (topology/tree) or BlockName= lines (topology/block).
//
//     SwitchName=leaf1 Nodes=node[1-16] LinkSpeed=100
//     SwitchName=spine Switches=leaf[1-4]
//     BlockName=b1 Nodes=node[01-04]
//     BlockSizes=4,8
//
// Keys are case-insensitive, a backslash at the end of a line continues it, # starts a comment.
// LinkSpeed has no unit that Slurm defines (it does not use it): not taken for a bandwidth.
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>

#include "launch/hostfile.h"
#include "launch/topology/fabric.h"
#include "launch/topology/import.h"
#include "launch/topology/text.h"
#include "launch/topology/xml.h"
#include "runtime/core/error.h"

namespace r1::launch {
namespace {

constexpr size_t kMostMembers = 400'000;  // nodes and switches named in one file

class SlurmReader {
 public:
  SlurmReader(std::string_view text, const std::string& source) : text_(text), source_(source) {}

  Fabric read() {
    std::string_view rest = text_, line;
    std::string whole;
    int number = 0;
    while (next_line(rest, line)) {
      ++number;
      if (whole.empty()) line_ = number;
      // A comment ends with its line, also where a continuation would follow.
      line = line.substr(0, line.find('#'));
      const auto last = line.find_last_not_of(" \t");
      const bool continues = last != std::string_view::npos && line[last] == '\\';
      whole += continues ? line.substr(0, last) : line;
      if (continues && !rest.empty()) continue;
      read_line(whole);
      whole.clear();
    }
    if (fabric_.switches.empty() && fabric_.blocks.empty())
      throw DataError("{}: neither SwitchName nor BlockName in it: not a topology.conf", source_);
    if (!fabric_.switches.empty() && !fabric_.blocks.empty())
      throw DataError(
          "{}: both SwitchName and BlockName: a file is for one of topology/tree and "
          "topology/block",
          source_);
    finish();
    return std::move(fabric_);
  }

 private:
  struct Children {
    int parent;
    std::vector<std::string> names;
    int line;
  };

  std::string_view text_;
  const std::string& source_;
  int line_ = 0;
  size_t members_ = 0;
  Fabric fabric_;
  std::map<std::string, int> index_;
  std::vector<Children> children_;

  template <class... Args>
  [[noreturn]] void refuse(fmt::format_string<Args...> text, Args&&... args) const {
    throw DataError("{}:{}: {}", source_, line_, fmt::format(text, std::forward<Args>(args)...));
  }

  void read_line(const std::string& line) {
    std::map<std::string, std::string> values;
    for (const auto word : words_of(line)) {
      const auto equals = word.find('=');
      if (equals == std::string_view::npos)
        refuse("\"{}\": a line is key=value pairs without blanks around =", shown(word));
      const std::string key = lower(word.substr(0, equals));
      std::string value(word.substr(equals + 1));
      if (value.size() >= 2 && value.front() == '"' && value.back() == '"')
        value = value.substr(1, value.size() - 2);
      static const std::set<std::string> kKeys = {"switchname", "switches",  "nodes",
                                                  "linkspeed",  "blockname", "blocksizes"};
      if (!kKeys.contains(key))
        refuse("key \"{}\"; allowed: SwitchName, Switches, Nodes, LinkSpeed, BlockName, BlockSizes",
               shown(word.substr(0, equals)));
      if (!values.emplace(key, value).second) refuse("\"{}\" twice on one line", shown(key));
    }
    if (values.empty()) return;
    if (values.contains("switchname"))
      read_switch(values);
    else if (values.contains("blockname"))
      read_block(values);
    else if (values.contains("blocksizes"))
      read_sizes(values["blocksizes"]);
    else
      refuse("neither SwitchName nor BlockName on this line");
  }

  std::vector<std::string> expand(const std::string& list) {
    std::vector<std::string> names;
    try {
      names = expand_node_list(list, fmt::format("{}:{}", source_, line_));
    } catch (const UsageError& e) {
      throw DataError("{}", e.what());
    }
    members_ += names.size();
    if (members_ > kMostMembers)
      refuse("more than {} nodes and switches in one file", kMostMembers);
    return names;
  }

  void read_switch(std::map<std::string, std::string>& values) {
    const std::string& switch_name = values["switchname"];
    if (switch_name.empty()) refuse("SwitchName without a name");
    if (!index_.try_emplace(switch_name, static_cast<int>(fabric_.switches.size())).second)
      refuse("switch {} is defined twice", shown(switch_name));
    const bool nodes = values.contains("nodes"), switches = values.contains("switches");
    if (nodes == switches)
      refuse("switch {} has {}; a leaf has Nodes, any other switch has Switches",
             shown(switch_name), nodes ? "both Nodes and Switches" : "neither Nodes nor Switches");
    const int self = static_cast<int>(fabric_.switches.size());
    fabric_.switches.push_back({.name = switch_name});
    if (nodes)
      for (std::string& host : expand(values["nodes"]))
        fabric_.ports.push_back({.host = std::move(host), .leaf = self});
    else
      children_.push_back({self, expand(values["switches"]), line_});
  }

  void read_block(std::map<std::string, std::string>& values) {
    if (!values.contains("nodes")) refuse("block {} without Nodes", shown(values["blockname"]));
    for (const auto& block : fabric_.blocks)
      if (block.name == values["blockname"]) refuse("block {} is defined twice", shown(block.name));
    if (fabric_.blocks.size() >= 20'000) refuse("more than 20000 blocks");
    fabric_.blocks.push_back({.name = values["blockname"], .hosts = expand(values["nodes"])});
  }

  void read_sizes(const std::string& list) {
    for (const auto field : fields_of(list, ',')) {
      const auto size = integer(field);
      if (!size || *size < 1 || *size > 1'000'000 || fabric_.block_sizes.size() > 64)
        refuse("BlockSizes \"{}\": whole numbers with commas between", shown(list));
      fabric_.block_sizes.push_back(static_cast<int>(*size));
    }
  }

  void finish() {
    fabric_.source = source_ + " (topology.conf)";
    std::vector<SwitchLink> links;
    std::vector<std::vector<int>> down(fabric_.switches.size());
    for (const Children& group : children_) {
      line_ = group.line;
      for (const std::string& child : group.names) {
        const auto found = index_.find(child);
        if (found == index_.end())
          refuse("switch {} has {} below it, which no line defines",
                 shown(fabric_.switches[static_cast<size_t>(group.parent)].name), shown(child));
        links.push_back({.a = found->second, .b = group.parent});
        down[static_cast<size_t>(group.parent)].push_back(found->second);
      }
    }
    check_acyclic(down);
    warn_of_repeats();
    lay_out_fabric(fabric_, links, Directions::kTold);
  }

  void check_acyclic(const std::vector<std::vector<int>>& down) const {
    // Takes away switches that nothing above is left of; what remains lies on a circle.
    std::vector<int> above(down.size(), 0), ready;
    for (const auto& children : down)
      for (const int child : children) ++above[static_cast<size_t>(child)];
    for (size_t s = 0; s < down.size(); ++s)
      if (above[s] == 0) ready.push_back(static_cast<int>(s));
    size_t gone = 0;
    while (!ready.empty()) {
      const int s = ready.back();
      ready.pop_back();
      ++gone;
      for (const int child : down[static_cast<size_t>(s)])
        if (--above[static_cast<size_t>(child)] == 0) ready.push_back(child);
    }
    if (gone == down.size()) return;
    const auto left = std::ranges::find_if(above, [](int n) { return n > 0; });
    throw DataError("{}: switches lie on a circle, one of them {}", source_,
                    shown(fabric_.switches[static_cast<size_t>(left - above.begin())].name));
  }

  void warn_of_repeats() {
    std::map<std::string_view, int> leaf_of;
    for (const FabricPort& port : fabric_.ports) {
      const auto [known, fresh] = leaf_of.try_emplace(port.host, port.leaf);
      if (!fresh && fabric_.warnings.size() < 100)
        fabric_.warnings.push_back(
            fmt::format("{}: node {} is on {} and on {}", source_, shown(port.host),
                        shown(fabric_.switches[static_cast<size_t>(known->second)].name),
                        shown(fabric_.switches[static_cast<size_t>(port.leaf)].name)));
    }
  }
};

}  // namespace

Fabric read_slurm_topology(std::string_view text, const std::string& source) {
  if (text.size() > kMostBytes)
    throw DataError("{}: {} bytes; a topology takes at most {}", source, text.size(), kMostBytes);
  return SlurmReader(text, source).read();
}

}  // namespace r1::launch
