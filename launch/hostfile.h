// Text → Cluster: Open MPI hostfiles and rankfiles, DeepSpeed hostfiles (the same grammar, a
// subset), PBS nodefiles, Slurm node lists, and host lists of the command line.
//
// Accepted is what Open MPI 4.1 accepts, with three differences: what it would misread silently is
// refused (stray words, malformed names, counts of zero), CRLF and a missing final newline are
// accepted with a warning, and annotations of r1run's own live in comments, so that a hostfile
// stays one that mpirun reads:
//
//     # r1run: topology=topologies/a100x4.xml rack=r1     (on a line of its own: for the hosts
//     below) nodea slots=4   # r1run: tier=production            (after a host: for that host)
//
// Every error is a UsageError that names file:line, what was found and what is allowed. Nothing
// here executes anything.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace r1::launch {

struct Host {
  std::string name;  ///< RFC 1123 name, IPv4 or IPv6 address
  int slots = 1;     ///< ranks it takes
  bool slots_given =
      false;  ///< false: one mention without a count, which mpirun reads as "all its cores"
  std::optional<int> max_slots;                    ///< upper limit with oversubscription
  std::string user;                                ///< of the ssh connection; empty: unchanged
  int port = 0;                                    ///< of the ssh connection; 0: unchanged
  int line = 0;                                    ///< of the first mention; 0: not from a file
  std::map<std::string, std::string> annotations;  ///< topology, fabric, tier, rack
  friend bool operator==(const Host&, const Host&) = default;
};

struct Cluster {
  std::vector<Host> hosts;  ///< each once, in order of first mention
  std::string source;       ///< "hosts.txt", "--host", "SLURM_JOB_NODELIST"
  bool keep_fqdn = false;   ///< two hosts share their first label: mpirun must not cut names
  std::vector<std::string> warnings;  ///< for people
  [[nodiscard]] int total_slots() const;
  /// Most slots on one host.
  [[nodiscard]] int widest() const;
};

/// Where a host is named, for messages: "hosts.txt:7"; the source alone ("--host") where it is no file.
[[nodiscard]] std::string place_of(const Cluster& cluster, const Host& host);

enum class NodefileKind {
  kHostfile,  ///< Open MPI's or DeepSpeed's
  kPbs,       ///< $PBS_NODEFILE: a host's count is how often it is named
};

/// Throws UsageError unless the text is a host name (RFC 1123: letters, digits and inner hyphens in
/// labels of at most 63 characters, 253 in all), an IPv4 or an IPv6 address. `where`
/// ("hosts.txt:7") leads the message.
void check_host_name(std::string_view name, std::string_view where);

/// Parses a hostfile's text; `source` names it in messages.
[[nodiscard]] Cluster parse_hostfile(std::string_view text, const std::string& source,
                                     NodefileKind kind = NodefileKind::kHostfile);
/// Reads and parses a hostfile. A missing file is an error, never "one host".
[[nodiscard]] Cluster read_hostfile(const std::string& path,
                                    NodefileKind kind = NodefileKind::kHostfile);
/// "a:2,b:2" or "a,b,b": -H, --host.
[[nodiscard]] Cluster parse_host_list(std::string_view text, const std::string& source);

/// What --host takes from the hosts of a hostfile, in its own order: a bare name all slots of the host, NAME:N (or NAME repeated) so many. Throws
/// UsageError for a host that the file does not have, or more slots than it gives.
[[nodiscard]] Cluster filtered(const Cluster& hostfile, std::string_view host_list);

/// The hostfile that is handed to mpirun: names, counts, users and ports, nothing else. Parses back
/// to the same hosts (annotations apart).
[[nodiscard]] std::string openmpi_hostfile(const Cluster& cluster);

/// Expands a Slurm node list ("n[01-03,7],login"), keeping order and duplicates as Slurm does. Text
/// after a bracket is accepted ("n[1-2]-ib"), which Slurm 22.05 does not do but its successors do.
[[nodiscard]] std::vector<std::string> expand_node_list(std::string_view text,
                                                        const std::string& source);
/// Expands "2(x10),5": SLURM_TASKS_PER_NODE, SLURM_JOB_CPUS_PER_NODE.
[[nodiscard]] std::vector<int> expand_counts(std::string_view text, const std::string& source);
/// Hosts of a Slurm allocation. `tasks_per_node` may be empty: one task a node.
[[nodiscard]] Cluster slurm_cluster(std::string_view node_list, std::string_view tasks_per_node);

/// One line of a rankfile: which cores of which host a rank gets.
struct RankfileEntry {
  int rank = 0;
  std::string host;
  struct Part {
    int socket = -1;  ///< -1: cores count over the whole host
    std::vector<std::pair<int, int>>
        cores;  ///< inclusive ranges of logical cores; empty: all of the socket
    friend bool operator==(const Part&, const Part&) = default;
  };
  std::vector<Part> parts;
  int line = 0;
};
/// Parses a rankfile. Every rank 0…n-1 must be named once. (Open MPI 4.1 says nothing about cores
/// that do not exist: the caller checks them.)
[[nodiscard]] std::vector<RankfileEntry> parse_rankfile(std::string_view text,
                                                        const std::string& source);
[[nodiscard]] std::vector<RankfileEntry> read_rankfile(const std::string& path);
/// Parses back to the same entries.
[[nodiscard]] std::string rankfile_text(const std::vector<RankfileEntry>& entries);
/// The hosts of a rankfile in order of first mention, a slot a rank.
[[nodiscard]] Cluster rankfile_cluster(const std::vector<RankfileEntry>& entries, const std::string& source);

}  // namespace r1::launch
