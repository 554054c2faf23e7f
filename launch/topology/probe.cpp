#include "launch/topology/probe.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "launch/process.h"
#include "launch/shim.h"
#include "launch/supervise.h"
#include "launch/temporary_directory.h"
#include "launch/topology/fabric.h"
#include "launch/topology/json.h"
#include "launch/topology/live.h"
#include "launch/topology/merge.h"
#include "launch/topology/cluster_topology.h"
#include "launch/topology/topo_command.h"
#include "parallel/mesh/mesh.h"
#include "runtime/core/error.h"

namespace r1::launch {
namespace {

using Json = nlohmann::ordered_json;

// How the parent of a rank and its rank exchange files, and the launcher asks for the raw result.
constexpr const char* kLocalVariable = "R1RUN_PROBE_LOCAL";
constexpr const char* kResultVariable = "R1RUN_PROBE_RESULT";
constexpr const char* kRawVariable = "R1RUN_PROBE_RAW";
constexpr std::string_view kBegin = "r1run-probe-result ";  // then one line of JSON

std::string content_of(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

Json write_measurement(const Measurement& m) {
  Json out = {{"kind", m.kind}, {"a", m.a}, {"b", m.b}, {"gbytes_per_s", m.gbytes_per_s}};
  if (m.latency_us > 0) out["latency_us"] = m.latency_us;
  if (m.promise_gbytes_per_s) out["promise_gbytes_per_s"] = *m.promise_gbytes_per_s;
  return out;
}

Measurement read_measurement(const Json& from) {
  Measurement m{.kind = from.at("kind").get<std::string>(),
                .a = from.at("a").get<std::string>(),
                .b = from.at("b").get<std::string>(),
                .gbytes_per_s = from.at("gbytes_per_s").get<double>(),
                .latency_us = from.value("latency_us", 0.0)};
  if (from.contains("promise_gbytes_per_s"))
    m.promise_gbytes_per_s = from["promise_gbytes_per_s"].get<double>();
  return m;
}

}  // namespace

std::string to_json(const ProbedHost& host) {
  Json out = {{"name", host.name}};
  if (!host.slurm_address.empty()) out["slurm_address"] = host.slurm_address;
  if (!host.slurm_pattern.empty()) out["slurm_pattern"] = host.slurm_pattern;
  out["topology"] = Json::parse(to_json(host.topology));
  out["measurements"] = Json::array();
  for (const Measurement& m : host.measurements)
    out["measurements"].push_back(write_measurement(m));
  return out.dump(-1, ' ', false, Json::error_handler_t::replace);
}

ProbedHost probed_host_from_json(std::string_view text, const std::string& source) {
  try {
    const Json json = Json::parse(text);
    ProbedHost out{.name = json.at("name").get<std::string>(),
                   .slurm_address = json.value("slurm_address", ""),
                   .slurm_pattern = json.value("slurm_pattern", ""),
                   .topology = host_from_json(json.at("topology").dump(), source)};
    for (const Json& m : json.at("measurements")) out.measurements.push_back(read_measurement(m));
    return out;
  } catch (const Json::exception& e) {
    throw DataError("{}: not what a host of probe says: {}", source, e.what());
  }
}

// ---- putting together

namespace {

/// The fastest port that NCCL or MPI would use, GB/s.
std::optional<double> fastest_nic(const HostTopology& host) {
  const auto usable = [](const Nic& nic) {
    return nic.active.value_or(true) && nic.rate_mbit_per_s;
  };
  const bool rdma =
      std::ranges::any_of(host.nics, [&](const Nic& n) { return n.rdma && usable(n); });
  std::optional<double> best;
  for (const Nic& nic : host.nics)
    if (usable(nic) && (nic.rdma || !rdma))
      best = std::max(best.value_or(0), *nic.rate_mbit_per_s / 8000);
  return best;
}

/// The map that most hosts share differs from the others': each of those is named with what is odd.
void name_the_odd(const std::vector<ProbedHost>& hosts, ProbeResult& result) {
  // A host agrees with another when nothing differs; the one with most agreements is the reference.
  std::vector<size_t> reference;  // one of each kind
  std::vector<int> kind(hosts.size(), -1);
  std::vector<int> count;
  for (size_t h = 0; h < hosts.size(); ++h) {
    for (size_t k = 0; k < reference.size() && kind[h] < 0; ++k)
      if (differences(hosts[reference[k]].topology, hosts[h].topology).empty())
        kind[h] = static_cast<int>(k);
    if (kind[h] < 0) {
      kind[h] = static_cast<int>(reference.size());
      reference.push_back(h);
      count.push_back(0);
    }
    ++count[static_cast<size_t>(kind[h])];
  }
  if (reference.size() < 2) return;
  const auto usual = static_cast<size_t>(std::ranges::max_element(count) - count.begin());
  if (std::ranges::count(count, count[usual]) > 1)
    result.warnings.push_back(
        fmt::format("hosts are of {} kinds, none in the majority; compared with {}", count.size(),
                    hosts[reference[usual]].name));
  for (size_t h = 0; h < hosts.size(); ++h) {
    if (kind[h] == static_cast<int>(usual)) continue;
    result.warnings.push_back(fmt::format(
        "{} is unlike {}: {}", hosts[h].name, hosts[reference[usual]].name,
        fmt::join(differences(hosts[reference[usual]].topology, hosts[h].topology), "; ")));
  }
}

double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

/// Below the promise, or, where nothing is promised, below the median of its kind.
void name_the_slow(ProbeResult& result) {
  std::map<std::string, std::vector<double>> by_kind;
  for (const Measurement& m : result.measurements)
    if (!m.promise_gbytes_per_s) by_kind[m.kind].push_back(m.gbytes_per_s);
  for (const Measurement& m : result.measurements) {
    const bool promised = m.promise_gbytes_per_s.has_value();
    if (!promised && by_kind[m.kind].size() < 3) continue;  // no median to speak of
    const double expected = promised ? *m.promise_gbytes_per_s : median(by_kind[m.kind]);
    if (expected <= 0 || m.gbytes_per_s >= kFairShare * expected) continue;
    result.warnings.push_back(
        fmt::format("{} {}{}{}: {:.2f} GB/s is {:.0f} % of {:.2f} GB/s, {}", m.kind, m.a,
                    m.b.empty() ? "" : " to ", m.b, m.gbytes_per_s, 100 * m.gbytes_per_s / expected,
                    expected, promised ? "what the map promises" : "the median of its kind"));
  }
}

}  // namespace

ProbeResult assemble(std::vector<ProbedHost> hosts, const std::vector<PairTiming>& pairs) {
  ProbeResult result;
  std::set<std::string> seen;
  std::vector<SlurmAddress> addresses;
  for (const ProbedHost& host : hosts) {
    if (!seen.insert(host.name).second) continue;  // several ranks on one host
    result.topology.hosts.push_back(
        {host.name, std::make_shared<const HostTopology>(host.topology)});
    addresses.push_back({host.name, host.slurm_address, host.slurm_pattern});
    for (Measurement m : host.measurements) {
      m.a = m.a.empty() ? host.name : fmt::format("{} {}", host.name, m.a);
      result.measurements.push_back(std::move(m));
    }
    for (const std::string& warning : host.topology.warnings)
      result.warnings.push_back(fmt::format("{}: {}", host.name, warning));
  }
  result.topology.fabric = fabric_of_slurm_addresses(addresses);
  for (const PairTiming& pair : pairs) {
    if (pair.a < 0 || pair.b < 0 || pair.a >= std::ssize(hosts) || pair.b >= std::ssize(hosts))
      continue;
    const ProbedHost &a = hosts[static_cast<size_t>(pair.a)],
                     &b = hosts[static_cast<size_t>(pair.b)];
    if (a.name == b.name) continue;
    const auto of_a = fastest_nic(a.topology), of_b = fastest_nic(b.topology);
    result.measurements.push_back(
        {.kind = "network",
         .a = a.name,
         .b = b.name,
         .gbytes_per_s = pair.gbytes_per_s,
         .latency_us = pair.latency_us,
         .promise_gbytes_per_s =
             of_a && of_b ? std::optional(std::min(*of_a, *of_b)) : std::nullopt});
  }
  std::vector<ProbedHost> once;
  seen.clear();
  for (ProbedHost& host : hosts)
    if (seen.insert(host.name).second) once.push_back(std::move(host));
  name_the_odd(once, result);
  name_the_slow(result);
  return result;
}

namespace {

std::string summary(const HostTopology& host) {
  std::map<std::string, int> gpus, nics;
  for (const Gpu& gpu : host.gpus) ++gpus[gpu.name.empty() ? "GPU" : gpu.name];
  for (const Nic& nic : host.nics)
    ++nics[nic.rate_mbit_per_s ? fmt::format("{} {:g} Gbit/s", nic.rdma ? "RDMA" : "Ethernet",
                                             *nic.rate_mbit_per_s / 1000)
                               : (nic.rdma ? "RDMA" : "Ethernet, rate unknown")];
  std::vector<std::string> parts{fmt::format("{} cores, {} NUMA node{}", host.cores.size(),
                                             host.numa_nodes.size(),
                                             host.numa_nodes.size() == 1 ? "" : "s")};
  if (host.memory_bytes)
    parts.push_back(fmt::format("{:.0f} GB", static_cast<double>(*host.memory_bytes) / 1e9));
  for (const auto& [what, count] : gpus) parts.push_back(fmt::format("{} x {}", count, what));
  if (gpus.empty()) parts.emplace_back("no GPU");
  for (const auto& [what, count] : nics) parts.push_back(fmt::format("{} x {}", count, what));
  return fmt::format("{}", fmt::join(parts, ", "));
}

}  // namespace

std::string probe_text(const ProbeResult& result) {
  std::string out;
  for (const auto& member : result.topology.hosts)
    out += fmt::format("{:20} {}\n", member.name, member.host ? summary(*member.host) : "unknown");
  if (!result.topology.fabric.source.empty()) {
    std::vector<std::string> names;
    for (const auto& member : result.topology.hosts) names.push_back(member.name);
    const auto leaves = result.topology.fabric.leaves_of(names);
    for (size_t h = 0; h < names.size(); ++h)
      if (!leaves[h].empty())
        out += fmt::format("{:20} on switch {}\n", names[h],
                           result.topology.fabric.switches[static_cast<size_t>(leaves[h][0])].name);
  }
  if (!result.measurements.empty())
    out += fmt::format("\n{:10} {:36} {:>10} {:>10} {:>10}\n", "kind", "pair", "GB/s", "promised",
                       "us");
  for (const Measurement& m : result.measurements)
    out +=
        fmt::format("{:10} {:36} {:10.2f} {:>10} {:>10}\n", m.kind,
                    m.b.empty() ? m.a : fmt::format("{} - {}", m.a, m.b), m.gbytes_per_s,
                    m.promise_gbytes_per_s ? fmt::format("{:.2f}", *m.promise_gbytes_per_s) : "-",
                    m.latency_us > 0 ? fmt::format("{:.1f}", m.latency_us) : "-");
  if (!result.warnings.empty()) out += '\n';
  for (const std::string& warning : result.warnings) out += fmt::format("warning: {}\n", warning);
  if (result.topology.hosts.size() > 1 && result.warnings.empty())
    out += fmt::format("\nall {} hosts are alike\n", result.topology.hosts.size());
  return out;
}

std::string probe_json(const ProbeResult& result) {
  Json out = Json::parse(to_json(result.topology));
  out["measurements"] = Json::array();
  for (const Measurement& m : result.measurements)
    out["measurements"].push_back(write_measurement(m));
  out["warnings"] = result.warnings;
  return out.dump(1, ' ', false, Json::error_handler_t::replace);
}

// ---- running

namespace {

ProbedHost look_around(const Environment& env, bool measure) {
  ProbedHost host{.name = env.get("SLURMD_NODENAME").value_or(host_name()),
                  .slurm_address = env.get("SLURM_TOPOLOGY_ADDR").value_or(""),
                  .slurm_pattern = env.get("SLURM_TOPOLOGY_ADDR_PATTERN").value_or(""),
                  .topology = live_topology()};
  if (measure) {
    host.measurements.push_back({.kind = "memory", .gbytes_per_s = memory_gbytes_per_s()});
    measure_gpu_links(host.topology, "libcuda.so.1", host.measurements);
  }
  return host;
}

void report(const ProbeResult& result, const JobConfig& config) {
  if (!config.json.empty()) write_output(config.json, probe_json(result));
  if (config.json != "-") write_output("-", probe_text(result));
}

/// {"hosts": [text, …], "pairs": [[a, b, GB/s, us], …]}, as rank 0 writes it.
ProbeResult result_of(std::string_view text) {
  std::vector<ProbedHost> hosts;
  std::vector<PairTiming> pairs;
  try {
    const Json json = Json::parse(text);
    for (const Json& host : json.at("hosts"))
      hosts.push_back(probed_host_from_json(host.get<std::string>(), "probe"));
    for (const Json& pair : json.at("pairs"))
      pairs.push_back({pair.at(0).get<int>(), pair.at(1).get<int>(), pair.at(2).get<double>(),
                       pair.at(3).get<double>()});
  } catch (const Json::exception& e) {
    throw DataError("the ranks' answer to probe cannot be read: {}", e.what());
  }
  return assemble(std::move(hosts), pairs);
}

/// Everything a piece of the program writes to standard output while this lives.
class CapturedOutput {
 public:
  CapturedOutput() {
    int ends[2];
    std::fflush(stdout);
    if (pipe(ends) != 0) throw InternalError("pipe: {}", std::strerror(errno));
    saved_ = Fd(dup(STDOUT_FILENO));
    dup2(ends[1], STDOUT_FILENO);
    close(ends[1]);
    read_ = Fd(ends[0]);
    reader_ = std::thread([this] {
      char buffer[65536];
      for (ssize_t n = 0;
           (n = ::read(read_.get(), buffer, sizeof(buffer))) > 0 || (n < 0 && errno == EINTR);)
        if (n > 0) text_.append(buffer, static_cast<size_t>(n));
    });
  }
  ~CapturedOutput() { restore(); }
  CapturedOutput(const CapturedOutput&) = delete;
  CapturedOutput& operator=(const CapturedOutput&) = delete;
  std::string take() {
    restore();
    return std::move(text_);
  }

 private:
  void restore() {
    if (!saved_) return;
    std::fflush(stdout);
    dup2(saved_.get(), STDOUT_FILENO);
    saved_.reset();
    reader_.join();
  }
  Fd saved_, read_;
  std::thread reader_;
  std::string text_;
};

std::string program_in_path(const std::string& name, const Environment& env) {
  const auto path = find_in_path(name, env.get("PATH"));
  if (!path)
    throw UnavailableError(
        "probe starts one process a host, but there is no {} in $PATH: install Open MPI (Debian: "
        "openmpi-bin)",
        name);
  return *path;
}

}  // namespace

namespace {

/// What hosts are, against what the files that the hostfile names say they are.
void compare_with_files(const Cluster& cluster, ProbeResult& result) {
  const Topology files = cluster_topology(cluster);
  for (size_t h = 0; h < files.hosts.size() && h < result.topology.hosts.size(); ++h) {
    const auto& found = result.topology.hosts[h];  // ranks are in the order of the hostfile
    if (!files.hosts[h].host || !found.host) continue;
    for (const std::string& what : disagreements(*found.host, *files.hosts[h].host))
      result.warnings.push_back(fmt::format("{}: {}", found.name, what));
  }
  if (result.topology.fabric.source.empty()) result.topology.fabric = files.fabric;
}

}  // namespace

int run_probe(const Request& request, const Destination& destination, const Environment& env) {
  const bool measure = request.config.measure;
  if (destination.kind == Destination::Kind::kThisMachine) {
    report(assemble({look_around(env, measure)}, {}), request.config);
    return 0;
  }
  Cluster cluster = destination.cluster;
  for (Host& host : cluster.hosts) {
    host.slots = 1;
    host.slots_given = true;
    host.max_slots.reset();
  }
  const int hosts = static_cast<int>(cluster.hosts.size());
  RankProgram program{.path = executable_dir() + "/r1run", .arguments = {"probe"}, .ranks = hosts};
  if (measure) program.arguments.emplace_back("--measure");
  setenv(kRawVariable, "1", 1);
  const parallel::MeshShape mesh{.pp = 1, .dp = hosts, .tp = 1};
  constexpr double kPeerTimeout_s = 10;
  const Command command =
      destination.kind == Destination::Kind::kSrun
          ? slurm_srun(program_in_path("srun", env), program, cluster, mesh,
                       srun_variables(env.names()))
          : cluster_mpirun(program_in_path("mpirun", env), program, cluster, mesh,
                           keepalive_for(kPeerTimeout_s), geteuid() == 0,
                           exported_variables(Environment::of_process().names()));
  for (const auto& warning : cluster.warnings)
    std::fprintf(stderr, "r1run: warning: %s\n", warning.c_str());
  if (request.config.dry_run) {
    std::printf("%s\n", shell_line(command.argv).c_str());
    return 0;
  }
  SuperviseOptions options;
  options.hosts = hosts;
  options.peer_timeout_s = kPeerTimeout_s;
  CapturedOutput output;
  const int code = supervise(command, options).code;
  const std::string text = output.take();
  unsetenv(kRawVariable);
  const auto begin = text.find(kBegin);
  if (code != 0) return code;
  if (begin == std::string::npos)
    throw DataError("the ranks of probe ended without an answer; they printed: \"{}\"",
                    text.substr(0, 400));
  const auto start = begin + kBegin.size();
  ProbeResult result =
      result_of(std::string_view(text).substr(start, text.find('\n', start) - start));
  compare_with_files(destination.cluster, result);
  report(result, request.config);
  return 0;
}

int run_probe_parent(const Environment& env, const Whereabouts& where,
                     const std::vector<std::string>& arguments) {
  const JobConfig config = parse_options("probe", std::span(arguments).subspan(1));
  if (config.help) {
    std::printf("%s", options_help("probe").c_str());
    return 0;
  }
  const TemporaryDirectory scratch("probe");
  const std::string local = scratch.file("host.json"), answer = scratch.file("result.json");
  write_output(local, to_json(look_around(env, config.measure)));
  setenv(kLocalVariable, local.c_str(), 1);
  setenv(kResultVariable, answer.c_str(), 1);
  const int code = run_shim(shim_options(Environment::of_process(), where, arguments));
  const std::string text = content_of(answer);  // of rank 0 only
  if (code != 0 || text.empty()) return code;
  if (env.has(kRawVariable))
    write_output("-", fmt::format("{}{}", kBegin, text));
  else
    report(result_of(text), config);
  return 0;
}

}  // namespace r1::launch
