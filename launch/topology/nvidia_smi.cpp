// `nvidia-smi topo -m` and `-mp`: a matrix of GPUs and NICs, affinity columns, legends.
//
// Columns vary with the driver: NICs are `mlx5_0` (older) or `NIC0` with a legend (newer); CPU
// Affinity, NUMA Affinity and GPU NUMA ID follow. Separators are tabs or, where a terminal or a web
// page has been between, blanks. `-mp` leaves NVLink out, which shows only in its legend: NVLink is
// then unknown.
#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "launch/topology/import.h"
#include "launch/topology/paths.h"
#include "launch/topology/text.h"
#include "launch/topology/xml.h"
#include "runtime/core/error.h"

namespace r1::launch {
namespace {

bool is_gpu_name(std::string_view word) {
  return word.size() > 3 && word.starts_with("GPU") &&
         word.substr(3).find_first_not_of("0123456789") == std::string_view::npos;
}

class SmiReader {
 public:
  explicit SmiReader(const std::string& source) : source_(source) {}

  HostTopology read(const std::string& text) {
    std::string_view rest = text, line;
    while (next_line(rest, line)) {
      ++number_;
      if (devices_.empty()) {
        if (is_header(line))
          read_header(line);
        else if (line.find("NICs found in the topology, only displaying") != std::string_view::npos)
          warn(fmt::format("nvidia-smi left columns out: \"{}\"", shown(trimmed(line))));
        continue;
      }
      read_line(line);
    }
    if (devices_.empty())
      throw DataError("{}: no header line with GPU0 in it: not the output of nvidia-smi topo -m",
                      source_);
    finish();
    return std::move(host_);
  }

 private:
  struct Row {
    std::vector<std::string> cells;
    std::string cpu, numa, gpu_numa;
    int line = 0;
  };

  const std::string& source_;
  HostTopology host_;
  int number_ = 0;
  std::vector<std::string> devices_;  // of the columns: GPUs, then NICs
  size_t gpus_ = 0;
  std::vector<std::string> labels_;  // of the affinity columns
  std::map<std::string, Row, std::less<>> rows_;
  std::map<std::string, std::string, std::less<>> legend_;  // NIC0 → mlx5_0
  bool nvlink_legend_ = false;

  void warn(const std::string& what) {
    if (host_.warnings.size() < 100)
      host_.warnings.push_back(fmt::format("{}:{}: {}", source_, number_, what));
  }

  static bool is_header(std::string_view line) {
    const auto words = words_of(line);
    // A row starts with the name of its device too, but a cell follows.
    return !words.empty() && is_gpu_name(words[0]) && (words.size() == 1 || !is_cell(words[1]));
  }
  static bool is_cell(std::string_view word) {
    return word == "X" || word == "SYS" || word == "NODE" || word == "PHB" || word == "PXB" ||
           word == "PIX" || word == "SOC" || word == "C2C" ||
           (word.starts_with("NV") &&
            word.substr(2).find_first_not_of("0123456789") == std::string_view::npos);
  }

  void read_header(std::string_view line) {
    static constexpr std::string_view kLabels[] = {"CPU Affinity", "NUMA Affinity", "GPU NUMA ID"};
    size_t cut = line.size();
    for (const auto label : kLabels) {
      const auto at = line.find(label);
      if (at == std::string_view::npos) continue;
      labels_.emplace_back(label);
      cut = std::min(cut, at);
    }
    for (const auto word : words_of(line.substr(0, cut))) {
      if (devices_.size() >= kMostGpus + kMostNics)
        throw DataError("{}:{}: more than {} columns", source_, number_, kMostGpus + kMostNics);
      if (std::ranges::find(devices_, word) != devices_.end())
        throw DataError("{}:{}: the column \"{}\" comes twice", source_, number_, shown(word));
      if (is_gpu_name(word)) {
        if (gpus_ != devices_.size())
          throw DataError("{}:{}: the column \"{}\" comes after the NICs", source_, number_,
                          shown(word));
        ++gpus_;
      }
      devices_.emplace_back(word);
    }
    if (gpus_ > kMostGpus || devices_.size() - gpus_ > kMostNics)
      throw DataError("{}:{}: more than {} GPUs or {} NICs", source_, number_, kMostGpus,
                      kMostNics);
  }

  void read_line(std::string_view line) {
    const auto words = words_of(line);
    if (words.empty()) return;
    if (words[0] == "NV#") nvlink_legend_ = true;
    if (words.size() == 2 && words[0].ends_with(':') && words[0].starts_with("NIC"))
      legend_.emplace(words[0].substr(0, words[0].size() - 1), words[1]);
    if (words.size() < 2 || std::ranges::find(devices_, words[0]) == devices_.end()) return;
    if (words.size() <= devices_.size())
      throw DataError("{}:{}: the row of {} has {} cells, the header {} columns", source_, number_,
                      shown(words[0]), words.size() - 1, devices_.size());
    Row row{.line = number_};
    for (size_t i = 1; i <= devices_.size(); ++i) row.cells.emplace_back(words[i]);
    const char* after = words[devices_.size()].data() + words[devices_.size()].size();
    read_affinity(line.substr(static_cast<size_t>(after - line.data())), row);
    if (!rows_.emplace(words[0], std::move(row)).second)
      throw DataError("{}:{}: a second row of {}", source_, number_, shown(words[0]));
  }

  /// What follows the cells: with tabs a field may be empty; with blanks only words can be told
  /// apart.
  void read_affinity(std::string_view text, Row& row) const {
    std::vector<std::string> fields;
    if (text.find('\t') != std::string_view::npos) {
      for (const auto field : fields_of(text, '\t')) fields.emplace_back(trimmed(field));
      if (!fields.empty()) fields.erase(fields.begin());  // up to the first tab
      // Drivers put two tabs before the last column.
      while (fields.size() > labels_.size() && fields.size() > 2 && fields[2].empty())
        fields.erase(fields.begin() + 2);
    } else {
      for (const auto word : words_of(text)) fields.emplace_back(word);
    }
    for (size_t i = 0; i < fields.size() && i < labels_.size(); ++i) {
      if (fields[i] == "N/A") continue;
      (labels_[i] == "CPU Affinity"    ? row.cpu
       : labels_[i] == "NUMA Affinity" ? row.numa
                                       : row.gpu_numa) = fields[i];
    }
  }

  Path path_of(const std::string& word, int line) {
    static const std::map<std::string_view, PathClass> kWords = {
        {"X", PathClass::kLoc},   {"PIX", PathClass::kPix},   {"PXB", PathClass::kPxb},
        {"PHB", PathClass::kPhb}, {"NODE", PathClass::kNode}, {"SYS", PathClass::kSys},
        {"SOC", PathClass::kSys}, {"C2C", PathClass::kC2c}};
    if (const auto known = kWords.find(word); known != kWords.end())
      return {.path_class = known->second};
    if (word.starts_with("NV") || word.starts_with("BW")) {
      const auto links = integer(std::string_view(word).substr(2));
      if (links && *links > 0 && *links < 1024)
        return {.path_class = PathClass::kNvl, .nvlinks = static_cast<int>(*links)};
    }
    number_ = line;
    warn(fmt::format("\"{}\" is none of X, NV#, PIX, PXB, PHB, NODE, SYS: unknown", shown(word)));
    return {};
  }

  void finish() {
    host_.sources = {source_ + " (nvidia-smi)"};
    for (const std::string& device : devices_) {
      const auto row = rows_.find(device);
      if (row == rows_.end())
        throw DataError("{}: the header names {}, but it has no row: cut off?", source_,
                        shown(device));
    }
    const size_t nics = devices_.size() - gpus_;
    host_.gpu_gpu.assign(gpus_, std::vector<Path>(gpus_));
    host_.gpu_nic.assign(gpus_, std::vector<Path>(nics));
    host_.nic_nic.assign(nics, std::vector<Path>(nics));
    for (size_t a = 0; a < devices_.size(); ++a) {
      const Row& row = rows_.find(devices_[a])->second;
      for (size_t b = 0; b < devices_.size(); ++b) {
        const bool other_way = a >= gpus_ && b < gpus_;
        const Path path = other_way ? Path{} : path_of(row.cells[b], row.line);
        if (a < gpus_ && b < gpus_)
          host_.gpu_gpu[a][b] = path;
        else if (a < gpus_)
          host_.gpu_nic[a][b - gpus_] = path;
        else if (b >= gpus_)
          host_.nic_nic[a - gpus_][b - gpus_] = path;
        if (a > b && row.cells[b] != rows_.find(devices_[b])->second.cells[a]) {
          number_ = row.line;
          warn(fmt::format("{} to {} is {}, but {} the other way", devices_[a], devices_[b],
                           shown(row.cells[b]), shown(rows_.find(devices_[b])->second.cells[a])));
        }
      }
    }
    const auto nvl = [](const std::vector<Path>& row) {
      return std::ranges::any_of(row,
                                 [](const Path& p) { return p.path_class == PathClass::kNvl; });
    };
    host_.nvlink_known = nvlink_legend_ || std::ranges::any_of(host_.gpu_gpu, nvl);
    host_.nics_known = true;
    add_gpus();
    add_nics();
    choose_nics(host_);
  }

  void add_gpus() {
    for (size_t g = 0; g < gpus_; ++g) {
      const Row& row = rows_.find(devices_[g])->second;
      Gpu gpu{.index = static_cast<int>(
                  integer(std::string_view(devices_[g]).substr(3)).value_or(0) & 0xfff)};
      number_ = row.line;
      const auto id = integer(row.gpu_numa);
      if (id && *id >= 0 && *id < CpuSet::kMost) gpu.numa_id_of_memory = static_cast<uint32_t>(*id);
      const auto numa = integer(row.numa);
      if (numa && *numa >= 0 && *numa < CpuSet::kMost) {
        gpu.cpu_affinity = affinity_of(row);
        gpu.numa = numa_index(static_cast<int>(*numa), gpu.cpu_affinity);
      } else if (!row.numa.empty()) {
        warn(
            fmt::format("NUMA Affinity of {} is \"{}\", several nodes: it was read where a job was "
                        "confined to some CPUs; "
                        "its affinity is not used",
                        devices_[g], shown(row.numa)));
      } else {
        gpu.cpu_affinity = affinity_of(row);
      }
      host_.gpus.push_back(std::move(gpu));
    }
  }

  CpuSet affinity_of(const Row& row) {
    if (row.cpu.empty()) return {};
    try {
      return CpuSet::from_list(row.cpu, "CPU Affinity");
    } catch (const DataError& e) {
      warn(fmt::format("{}: not used", e.what()));
      return {};
    }
  }

  int numa_index(int os_index, const CpuSet& cpus) {
    for (size_t n = 0; n < host_.numa_nodes.size(); ++n)
      if (host_.numa_nodes[n].os_index == os_index) {
        host_.numa_nodes[n].cpus.insert(cpus);
        return static_cast<int>(n);
      }
    host_.numa_nodes.push_back({.os_index = os_index, .cpus = cpus});
    return static_cast<int>(host_.numa_nodes.size()) - 1;
  }

  void add_nics() {
    for (size_t n = gpus_; n < devices_.size(); ++n) {
      const auto named = legend_.find(devices_[n]);
      // Every NIC that nvidia-smi lists is an RDMA device.
      host_.nics.push_back(
          {.name = named == legend_.end() ? devices_[n] : named->second, .rdma = true});
    }
  }
};

}  // namespace

HostTopology read_nvidia_smi(std::string_view text, const std::string& source) {
  if (text.size() > kMostBytes)
    throw DataError("{}: {} bytes; a topology takes at most {}", source, text.size(), kMostBytes);
  return SmiReader(source).read(without_escapes(text));
}

}  // namespace r1::launch
