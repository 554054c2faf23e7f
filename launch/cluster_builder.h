// Hosts as they are named, one mention after the other, put together to a cluster.
#pragma once

#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "launch/hostfile.h"

namespace r1::launch::hostfile {

/// Puts hosts together: repeats, limits, names cut by mpirun.
class ClusterBuilder {
 public:
  ClusterBuilder(std::string source, NodefileKind kind) : kind_(kind) {
    cluster_.source = std::move(source);
  }

  /// One mention. `slots`: the count it gives, if it does; `mention`: where in the source ("line
  /// 7", "entry 2"). Throws UsageError.
  void add(Host host, std::optional<int> slots, const std::string& mention);
  /// The cluster, with its warnings. Throws UsageError.
  [[nodiscard]] Cluster finish();

  void warn(std::string text) { cluster_.warnings.push_back(std::move(text)); }
  std::vector<std::string>* warnings() { return &cluster_.warnings; }

 private:
  void add_first(Host host, std::optional<int> slots, const std::string& where);
  void add_again(const Host& host, bool with_slots, const std::string& where,
                 const std::string& first, Host* known);
  void check_label(const Host& h);

  NodefileKind kind_;
  Cluster cluster_;
  std::unordered_map<std::string, size_t> index_;
  std::unordered_map<std::string, std::string> spelling_;
  std::unordered_map<std::string, std::string> mentions_;  ///< the first of each host
  std::unordered_map<std::string, std::string> labels_;    ///< first label -> host
  std::set<std::string> repeated_;
};

}  // namespace r1::launch::hostfile
