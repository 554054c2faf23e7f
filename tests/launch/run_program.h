// Runs a program with a time limit and gathers its output, for tests.
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace r1::launch::test {

struct Result {
  int code = -1;       ///< exit code, or 128 + signal
  std::string output;  ///< standard output and error together
  double seconds = 0;
  bool timed_out = false;
};

/// Counts occurrences of `part`.
inline int count(const std::string& text, const std::string& part) {
  int n = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++n;
  return n;
}

/// Environment in which Open MPI starts more ranks than cores, also as root.
inline std::vector<std::pair<std::string, std::string>> mpi_environment() {
  return {{"OMPI_ALLOW_RUN_AS_ROOT", "1"},
          {"OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"},
          {"OMPI_MCA_rmaps_base_oversubscribe", "1"}};
}

/// Runs argv (found in $PATH) to its end or `limit_s`; `when_running` is called every 20 ms with
/// the process id and the output so far.
inline Result run(const std::vector<std::string>& argv, double limit_s = 30,
                  const std::vector<std::pair<std::string, std::string>>& env = mpi_environment(),
                  const std::function<void(pid_t, const std::string&)>& when_running = {}) {
  using Clock = std::chrono::steady_clock;
  Result r;
  std::array<int, 2> fds{};
  if (pipe2(fds.data(), O_CLOEXEC) != 0) return r;
  const auto start = Clock::now();
  const pid_t child = fork();
  if (child == 0) {
    for (const auto& [name, value] : env) setenv(name.c_str(), value.c_str(), 1);
    const int null = open("/dev/null", O_RDONLY);
    dup2(null, 0);
    dup2(fds[1], 1);
    dup2(fds[1], 2);
    std::vector<char*> args;
    for (const auto& a : argv) args.push_back(const_cast<char*>(a.c_str()));
    args.push_back(nullptr);
    execvp(args[0], args.data());
    _exit(127);
  }
  close(fds[1]);
  const auto elapsed = [&] { return std::chrono::duration<double>(Clock::now() - start).count(); };
  int status = 0;
  bool ended = false, open_pipe = true;
  while (!ended) {
    pollfd p{fds[0], POLLIN, 0};
    poll(&p, open_pipe ? 1 : 0, 20);
    std::array<char, 4096> buffer;
    if (open_pipe && (p.revents & (POLLIN | POLLHUP)) != 0) {
      const ssize_t n = read(fds[0], buffer.data(), buffer.size());
      if (n > 0) r.output.append(buffer.data(), static_cast<size_t>(n));
      open_pipe = n > 0;
    }
    if (when_running) when_running(child, r.output);
    ended = waitpid(child, &status, WNOHANG) == child;
    if (!ended && elapsed() > limit_s) {
      r.timed_out = true;
      kill(child, SIGKILL);
      waitpid(child, &status, 0);
      ended = true;
    }
  }
  r.seconds = elapsed();
  fcntl(fds[0], F_SETFL, O_NONBLOCK);  // a descendant may still hold the other end
  std::array<char, 4096> buffer;
  for (ssize_t n = 0; open_pipe && (n = read(fds[0], buffer.data(), buffer.size())) > 0;)
    r.output.append(buffer.data(), static_cast<size_t>(n));
  close(fds[0]);
  r.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return r;
}

/// A directory that goes with the object.
class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string pattern = (std::filesystem::temp_directory_path() / "r1run-test-XXXXXX").string();
    path_ = mkdtemp(pattern.data()) == nullptr ? "" : pattern;
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

}  // namespace r1::launch::test
