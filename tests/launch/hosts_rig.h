// Three hosts on one machine, and a Slurm on two of them: hosts_rig.sh and slurm_rig.sh as objects.
#pragma once

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "launch/process.h"
#include "tests/launch/run_program.h"

namespace r1::launch::test {

/// Hosts rig1, rig2, rig3 (10.77.0.1 … 3): network, host-name, IPC and mount namespaces; the file
/// system is shared, as a cluster's home directories are.
class HostsRig {
 public:
  /// Brings the hosts up. Returns "" or why this machine cannot have them.
  [[nodiscard]] std::string start() {
    if (geteuid() != 0) return "network namespaces need root";
    for (const char* tool : {"ip", "unshare", "nsenter", "mpirun"})
      if (!find_in_path(tool, std::getenv("PATH"))) return fmt::format("no {} in $PATH", tool);
    std::filesystem::permissions(path(), std::filesystem::perms(0755));
    up_ = true;
    const Result r = act("up");
    return r.code == 0 ? "" : "no network namespaces here: " + r.output;
  }
  /// A Slurm on rig1 and rig2. Returns "" or why there is none.
  [[nodiscard]] std::string start_slurm() {
    for (const char* tool : {"slurmctld", "slurmd", "munged", "sbatch"})
      if (!find_in_path(tool, fmt::format("{}:/usr/sbin:/sbin", std::getenv("PATH"))))
        return fmt::format("no {} in $PATH (Debian: slurm-wlm, munge)", tool);
    slurm_ = true;
    const Result r = run({"sh", script("slurm_rig.sh"), "up", path().string()}, 60);
    return r.code == 0 ? "" : "Slurm does not start here: " + r.output;
  }
  HostsRig() = default;
  ~HostsRig() {
    if (slurm_) (void)run({"sh", script("slurm_rig.sh"), "down", path().string()});
    if (up_) (void)act("down");
  }
  HostsRig(const HostsRig&) = delete;
  HostsRig& operator=(const HostsRig&) = delete;

  [[nodiscard]] const std::filesystem::path& path() const { return dir_.path(); }
  /// Takes the link of a host down, on the other side of its cable, and up again.
  [[nodiscard]] Result cut(int host) const { return act("cut", host); }
  [[nodiscard]] Result join(int host) const { return act("join", host); }

  /// Processes on any of the hosts, told by their network namespace; without those that hold the
  /// hosts up.
  [[nodiscard]] std::vector<pid_t> processes() const {
    std::vector<std::string> spaces, holders;
    std::error_code failed;
    const auto space = [&](const std::string& pid) {
      return std::filesystem::read_symlink("/proc/" + pid + "/ns/net", failed).string();
    };
    for (int host = 1; host <= 3; ++host) {
      std::ifstream(path() / fmt::format("pid.{}", host)) >> holders.emplace_back();
      spaces.push_back(space(holders.back()));
    }
    std::vector<pid_t> out;
    for (std::filesystem::directory_iterator it("/proc", failed), end; !failed && it != end; it.increment(failed)) {
      const std::string pid = it->path().filename().string();
      if (pid.find_first_not_of("0123456789") != std::string::npos) continue;
      std::error_code gone;
      const std::string mine = std::filesystem::read_symlink("/proc/" + pid + "/ns/net", gone).string();
      if (gone || mine.empty() || std::find(spaces.begin(), spaces.end(), mine) == spaces.end()) continue;
      if (std::find(holders.begin(), holders.end(), pid) == holders.end() && process_state(std::stoi(pid)) != 'Z')
        out.push_back(std::stoi(pid));
    }
    return out;
  }

  /// The command, run on a host, in the rig's directory.
  [[nodiscard]] std::vector<std::string> on(int host,
                                            const std::vector<std::string>& command) const {
    std::string pid;
    std::ifstream(path() / fmt::format("pid.{}", host)) >> pid;
    std::vector<std::string> argv{"nsenter", "-t", pid,  "-n",
                                  "-u",      "-i", "-m", "-w" + path().string()};
    argv.insert(argv.end(), command.begin(), command.end());
    return argv;
  }
  /// Environment in which mpirun reaches the other hosts and srun and sbatch the Slurm.
  [[nodiscard]] std::vector<std::pair<std::string, std::string>> environment() const {
    auto env = mpi_environment();
    env.insert(env.end(), {{"OMPI_MCA_plm_rsh_agent", (path() / "agent.sh").string()},
                           {"OMPI_MCA_btl_tcp_if_include", "eth0"},
                           {"OMPI_MCA_oob_tcp_if_include", "eth0"},
                           {"SLURM_CONF", (path() / "slurm" / "slurm.conf").string()}});
    return env;
  }

 private:
  [[nodiscard]] static std::string script(const std::string& name) {
    return std::string(R1RUN_SOURCE_DIR) + "/tests/launch/" + name;
  }
  [[nodiscard]] Result act(const std::string& action, int host = 0) const {
    return run({"sh", script("hosts_rig.sh"), action, path().string(), std::to_string(host)});
  }
  TemporaryDirectory dir_;
  bool up_ = false, slurm_ = false;
};

/// Processes whose command line holds `text`, on this machine (namespaces of hosts included).
inline std::vector<pid_t> processes_with(const std::string& text) {
  std::vector<pid_t> out;
  std::error_code ignored;
  for (const auto& e : std::filesystem::directory_iterator("/proc", ignored)) {
    const std::string name = e.path().filename().string();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    std::ifstream in(e.path() / "cmdline", std::ios::binary);
    const std::string line{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
    const pid_t pid = std::stoi(name);
    if (pid != getpid() && line.find(text) != std::string::npos && process_state(pid) != 'Z')
      out.push_back(pid);
  }
  return out;
}

}  // namespace r1::launch::test
