// `r1run probe --hostfile F [--measure]`: one process a host, started by one mpirun (or srun),
// finds out what each host looks like; the hosts are compared, and with --measure links are timed
// against what the map promises.
//
// On every host the parent of the rank reads the live map and times memory and GPU links; the ranks
// gather the texts and time pairs of hosts over MPI; the parent of rank 0 prints what came
// together.
#pragma once

#include <string>
#include <vector>

#include "launch/detect.h"
#include "launch/launch_job.h"
#include "launch/topology.h"

namespace r1::launch {

/// One timing, of a device pair or of a host pair.
struct Measurement {
  std::string kind;  ///< "memory", "gpu-gpu", "gpu-host", "network"
  std::string a, b;  ///< "node1 GPU0", "node2"; b may be empty
  double gbytes_per_s = 0;
  double latency_us = 0;                       ///< 0: not timed
  std::optional<double> promise_gbytes_per_s;  ///< nullopt: the map promises nothing
};

/// What one host tells about itself.
struct ProbedHost {
  std::string name;
  std::string slurm_address, slurm_pattern;
  HostTopology topology;
  std::vector<Measurement> measurements;
};
[[nodiscard]] std::string to_json(const ProbedHost& host);
/// Throws DataError.
[[nodiscard]] ProbedHost probed_host_from_json(std::string_view text, const std::string& source);

struct ProbeResult {
  Topology topology;
  std::vector<Measurement> measurements;
  std::vector<std::string> warnings;
};

/// Timings that the ranks made: "rank rank gbytes_per_s latency_us" a line.
struct PairTiming {
  int a = 0, b = 0;
  double gbytes_per_s = 0, latency_us = 0;
};

/// Puts hosts and timings together: names the odd host out, promises of host pairs, pairs below
/// `kFairShare` of their promise (or of the median, where nothing is promised). Pure.
[[nodiscard]] ProbeResult assemble(std::vector<ProbedHost> hosts,
                                   const std::vector<PairTiming>& pairs);
inline constexpr double kFairShare = 0.8;

/// The report for people.
[[nodiscard]] std::string probe_text(const ProbeResult& result);
[[nodiscard]] std::string probe_json(const ProbeResult& result);

/// The launcher: starts one process a host and prints the report. Returns the exit code.
[[nodiscard]] int run_probe(const Request& request, const Destination& destination,
                            const Environment& env);
/// The parent of a rank of `probe`. Returns the exit code.
[[nodiscard]] int run_probe_parent(const Environment& env, const Whereabouts& where,
                                   const std::vector<std::string>& arguments);

/// Copies within main memory by all cores of this process, GB/s read plus written.
[[nodiscard]] double memory_gbytes_per_s();
/// Times copies between GPUs and between host and GPU through the driver's library, loaded when it
/// is there; adds nothing where it is not. `library`: libcuda.so.1.
void measure_gpu_links(const HostTopology& host, const std::string& library,
                       std::vector<Measurement>& out);

}  // namespace r1::launch
