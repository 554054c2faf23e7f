// `r1run doctor`: is every host fit for a job? A table of checks, each ok, warning, failure or
// unknown with a remedy; over the hosts of a hostfile or an allocation through one mpirun or srun.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "launch/launch_job.h"

namespace r1::launch {

enum class Verdict : uint8_t { kOk, kUnknown, kWarning, kFailure };  // from best to worst
[[nodiscard]] std::string_view word_for(Verdict verdict);
/// 0 ok, 1 warning, 2 failure, 3 unknown: as monitoring plugins return them.
[[nodiscard]] int exit_code_for(Verdict verdict);

struct Check {
  std::string name;  ///< "driver", "shared memory"
  Verdict verdict = Verdict::kUnknown;
  std::string found;   ///< what is there
  std::string remedy;  ///< what to do; empty when ok
  friend bool operator==(const Check&, const Check&) = default;
};

/// What one host says about itself.
struct HostReport {
  std::string host;
  std::vector<Check> checks;
  /// Facts that have to agree between hosts: "r1run" → digest, "libmpi.so.40" → digest, "model" → …
  std::map<std::string, std::string> facts;
  std::vector<std::string> gpu_lines;  ///< --query: one line a GPU
  double clock_skew_s = 0;  ///< against the launcher's clock, filled in where the reports meet
  friend bool operator==(const HostReport&, const HostReport&) = default;
};
[[nodiscard]] std::string to_json_text(const HostReport& report);
/// nullopt when the text is no report.
[[nodiscard]] std::optional<HostReport> report_from_json(std::string_view text);

// -- the table of versions (versions.tsv)

/// "580.95.05" → {580, 95, 5}; empty when the text does not begin with a number.
[[nodiscard]] std::vector<int> version_of(std::string_view text);
/// <0, 0, >0; missing parts count as 0.
[[nodiscard]] int compare_versions(const std::vector<int>& a, const std::vector<int>& b);

struct VersionTable {
  struct Toolkit {
    std::vector<int> cuda, driver, driver_of_major, cudnn;
  };
  struct Refused {
    std::string what;
    std::vector<int> first, last;  ///< inclusive
    std::string why;
  };
  std::vector<Toolkit> toolkits;
  std::vector<Refused> refused;
};
/// Throws DataError naming the line.
[[nodiscard]] VersionTable parse_version_table(std::string_view text, const std::string& source);
/// The table that was built in.
[[nodiscard]] const VersionTable& version_table();
/// A driver against the toolkit a binary was built with (major.minor).
[[nodiscard]] Check check_driver(const VersionTable& table, std::string_view driver,
                                 std::string_view cuda);
/// cuDNN against the oldest that goes with the toolkit of a binary ("" unknown: with the oldest toolkit of the table).
[[nodiscard]] Check check_cudnn(const VersionTable& table, std::string_view version,
                                std::string_view cuda);
/// Whether a library's version is refused. A version without its minor part is unknown, not compared.
[[nodiscard]] Check check_library_version(const VersionTable& table, const std::string& what,
                                          std::string_view version);

// -- one host

struct DoctorOptions {
  std::string root;     ///< "" in earnest; a directory with proc/, sys/ and dev/ in tests
  std::string model;    ///< --model; may be empty
  std::string bin_dir;  ///< where r1run and r1run-rank lie
  std::optional<std::string> path;  ///< $PATH, for nvidia-smi and ldd
};
/// All checks of this host. Never throws for what it finds: what cannot be read is unknown.
[[nodiscard]] HostReport examine_host(const DoctorOptions& options);

// -- all hosts

/// Checks that need more than one host: differing facts, clocks. Hosts of `expected` without a
/// report get a failure.
void compare_hosts(std::vector<HostReport>* reports, const std::vector<std::string>& expected);
[[nodiscard]] Verdict worst(const std::vector<HostReport>& reports);
/// The report for people: what every host shares once, then each host's own.
[[nodiscard]] std::string doctor_text(const std::vector<HostReport>& reports);
[[nodiscard]] std::string doctor_json(const std::vector<HostReport>& reports);

/// The command. Returns the exit code. Throws UsageError.
[[nodiscard]] int run_doctor(const Request& request, const Destination& destination,
                             const Environment& env);
/// One task of the command, started by mpirun or srun on each host.
[[nodiscard]] int run_doctor_task(const JobConfig& config, const Environment& env);

}  // namespace r1::launch
