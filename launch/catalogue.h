// Machines that one does not have: the hardware catalogue (catalogue/hardware.json, built into the program), models by name
// (catalogue/models.json), and clusters described in a few characters ("4xA100-80", "2xproduction", "8xH100+NDR"). Pure.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "launch/planned_cluster.h"
#include "parallel/spec/model_config.h"

namespace r1::launch {

/// A host one can buy or rent.
struct ShapeKind {
  std::string name, title, provider, device, cpu, network;
  int count = 0;      ///< GPUs; 0: a host of CPUs
  int sockets = 1, cpu_cores = 0, numa = 0, nics = 1;
  int64_t memory_bytes = 0;
  std::optional<double> usd_per_hour;
  std::string price_source;  ///< where the price is from, and when; "" not sourced
};

class Catalogue {
 public:
  /// The one in the program.
  [[nodiscard]] static Catalogue built_in();
  /// Adds a file's entries, replacing those of the same name. Throws DataError naming the file and the key.
  void add(std::string_view json, const std::string& source);

  [[nodiscard]] const LinkKind& link(const std::string& name, const std::string& where) const;
  [[nodiscard]] const std::vector<DeviceKind>& devices() const { return devices_; }
  [[nodiscard]] const std::vector<DeviceKind>& cpus() const { return cpus_; }
  [[nodiscard]] const std::vector<ShapeKind>& shapes() const { return shapes_; }

  /// [HOSTS x] [COUNT x] NAME [/MIG] [+NETWORK]: "4xA100-80", "2x4xA100-80+NDR", "2xproduction", "A100-80/3g.40gb",
  /// "2xEPYC-7763". Throws UsageError that names what is known.
  [[nodiscard]] PlannedCluster cluster(const std::string& text) const;
  /// One cluster, several with commas, or a named comparison ("tiers", "upgrade", "mig").
  [[nodiscard]] std::vector<PlannedCluster> clusters(const std::string& text) const;

 private:
  /// Of a cluster's text that names nothing known.
  [[noreturn]] void refuse_name(const std::string& where, const std::string& given, const std::string& name) const;

  std::map<std::string, LinkKind> links_;
  std::vector<DeviceKind> devices_, cpus_;
  std::vector<ShapeKind> shapes_;
  std::map<std::string, std::string> aliases_;             ///< lower case -> name
  std::map<std::string, std::vector<std::string>> comparisons_;
};

/// config.json facts of a model named without a directory ("R1-Distill-Qwen-32B", "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B");
/// nullopt when the catalogue has none of that name. `names`: those there are, for messages.
[[nodiscard]] std::optional<parallel::ModelConfig> model_by_name(std::string_view name);
[[nodiscard]] std::vector<std::string> model_names();

}  // namespace r1::launch
