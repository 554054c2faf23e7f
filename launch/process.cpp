#include "launch/process.h"

#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>

#include "runtime/core/error.h"

namespace r1::launch {
namespace {

std::vector<char*> c_argv(const std::vector<std::string>& argv) {
  std::vector<char*> out;
  out.reserve(argv.size() + 1);
  for (const auto& a : argv) out.push_back(const_cast<char*>(a.c_str()));
  out.push_back(nullptr);
  return out;
}

/// This process's environment with some variables set, as "NAME=value" strings.
std::vector<std::string> merged_environment(
    const std::vector<std::pair<std::string, std::string>>& set) {
  std::vector<std::string> out;
  for (char** e = environ; e != nullptr && *e != nullptr; ++e) {
    const std::string_view entry(*e);
    bool replaced = false;
    for (const auto& [name, value] : set)
      replaced = replaced || (entry.starts_with(name) && entry.size() > name.size() &&
                              entry[name.size()] == '=');
    if (!replaced) out.emplace_back(entry);
  }
  for (const auto& [name, value] : set) out.push_back(name + "=" + value);
  return out;
}

}  // namespace

std::string executable_dir() {
  char path[PATH_MAX];
  const ssize_t n = readlink("/proc/self/exe", path, sizeof(path));
  R1_CHECK(n > 0 && n < static_cast<ssize_t>(sizeof(path)), "cannot read /proc/self/exe: {}",
           std::strerror(errno));
  const std::string full(path, static_cast<size_t>(n));
  return full.substr(0, full.rfind('/'));
}

std::string sibling_program(const std::string& name) {
  const std::string path = executable_dir() + "/" + name;
  if (access(path.c_str(), X_OK) != 0)
    throw UsageError(
        "{}: {}. It belongs beside r1run in the same directory: the installation is incomplete",
        path, std::strerror(errno));
  return path;
}

std::optional<std::string> find_in_path(const std::string& name,
                                        const std::optional<std::string>& path) {
  if (name.find('/') != std::string::npos)
    return access(name.c_str(), X_OK) == 0 ? std::optional(name) : std::nullopt;
  std::istringstream dirs(path.value_or("/usr/local/bin:/usr/bin:/bin"));
  for (std::string dir; std::getline(dirs, dir, ':');) {
    const std::string full = (dir.empty() ? "." : dir) + "/" + name;
    struct stat st {};
    if (stat(full.c_str(), &st) == 0 && S_ISREG(st.st_mode) && access(full.c_str(), X_OK) == 0)
      return full;
  }
  return std::nullopt;
}

char process_state(pid_t pid) {
  std::ifstream in("/proc/" + std::to_string(pid) + "/stat");
  std::string text;
  if (!std::getline(in, text)) return '\0';
  const size_t close_paren = text.rfind(')');  // the name in parentheses may hold anything
  if (close_paren == std::string::npos || close_paren + 2 >= text.size()) return '\0';
  return text[close_paren + 2];
}

pid_t spawn(const std::vector<std::string>& argv, const SpawnOptions& options) {
  R1_CHECK(!argv.empty(), "empty command");
  // Everything that allocates happens before the fork.
  const std::vector<char*> args = c_argv(argv);
  const std::vector<std::string> environment = merged_environment(options.set_environment);
  const std::vector<char*> env = c_argv(environment);
  int report[2];
  if (pipe2(report, O_CLOEXEC) != 0) throw InternalError("pipe: {}", std::strerror(errno));
  const Fd report_read(report[0]);
  Fd report_write(report[1]);
  const pid_t parent = getpid();
  const pid_t child = fork();
  if (child < 0) throw InternalError("fork: {}", std::strerror(errno));
  if (child == 0) {
    if (options.own_group) setpgid(0, 0);
    if (options.death_signal != 0) {
      prctl(PR_SET_PDEATHSIG, options.death_signal);
      if (getppid() != parent)
        _exit(static_cast<int>(ExitCode::kTemporary));  // it died before the prctl
    }
    for (int sig = 1; sig < NSIG; ++sig) {
      struct sigaction action {};
      action.sa_handler = SIG_DFL;
      sigaction(sig, &action, nullptr);  // fails for KILL and STOP, harmlessly
    }
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, nullptr);
    if (options.inherit_fd >= 0) fcntl(options.inherit_fd, F_SETFD, 0);
    if (options.stdout_fd >= 0) dup2(options.stdout_fd, STDOUT_FILENO);
    if (options.stderr_fd >= 0) dup2(options.stderr_fd, STDERR_FILENO);
    if (options.stdin_fd >= 0) dup2(options.stdin_fd, STDIN_FILENO);
    execve(args[0], args.data(), env.data());
    const int error = errno;
    [[maybe_unused]] const ssize_t n = write(report_write.get(), &error, sizeof(error));
    _exit(static_cast<int>(ExitCode::kUsage));
  }
  if (options.own_group) setpgid(child, child);  // both sides, so that it holds whoever runs first
  report_write.reset();
  int error = 0;
  ssize_t n = 0;
  do {
    n = read(report_read.get(), &error, sizeof(error));
  } while (n < 0 && errno == EINTR);
  if (n == static_cast<ssize_t>(sizeof(error)))
    throw UsageError("cannot start {}: {}", argv[0], std::strerror(error));
  return child;
}

Captured capture(const std::vector<std::string>& argv, double limit_s) {
  constexpr size_t kMost = 4u << 20;
  Captured out;
  int fds[2];
  if (pipe2(fds, O_CLOEXEC) != 0) throw InternalError("pipe: {}", std::strerror(errno));
  const Fd from(fds[0]);
  Fd into(fds[1]);
  const Fd null(open("/dev/null", O_RDWR | O_CLOEXEC));
  SpawnOptions options;
  options.stdin_fd = null.get();
  options.stderr_fd = null.get();
  options.stdout_fd = into.get();
  options.death_signal = SIGKILL;
  pid_t child = -1;
  try {
    child = spawn(argv, options);
  } catch (const UsageError&) {
    return out;
  }
  into.reset();
  bool late = false;
  const double until = monotonic_s() + limit_s;
  while (true) {
    pollfd p{from.get(), POLLIN, 0};
    const double left = until - monotonic_s();
    late = left <= 0;
    if (late) break;
    if (poll(&p, 1, static_cast<int>(left * 1e3) + 1) <= 0) continue;
    char buffer[4096];
    const ssize_t n = read(from.get(), buffer, sizeof(buffer));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    if (out.output.size() < kMost) out.output.append(buffer, static_cast<size_t>(n));
  }
  if (late) kill(child, SIGKILL);
  int status = 0;
  while (waitpid(child, &status, 0) < 0)
    if (errno != EINTR) throw InternalError("waitpid: {}", std::strerror(errno));
  if (!late) out.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return out;
}

void exec_program(const std::vector<std::string>& argv) {
  const std::vector<char*> args = c_argv(argv);
  execv(args[0], args.data());
  throw UsageError("cannot start {}: {}", argv[0], std::strerror(errno));
}

Fd open_pidfd(pid_t pid) {
  // glibc 2.36 has a wrapper; the number is the same on every architecture.
  Fd fd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  R1_CHECK(static_cast<bool>(fd), "pidfd_open({}): {}", pid, std::strerror(errno));
  return fd;
}

Fd open_signalfd(const std::vector<int>& signals) {
  sigset_t set;
  sigemptyset(&set);
  for (const int s : signals) sigaddset(&set, s);
  R1_CHECK(sigprocmask(SIG_BLOCK, &set, nullptr) == 0, "sigprocmask: {}", std::strerror(errno));
  Fd fd(signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  R1_CHECK(static_cast<bool>(fd), "signalfd: {}", std::strerror(errno));
  return fd;
}

std::optional<ReceivedSignal> read_signal(const Fd& fd) {
  signalfd_siginfo info{};
  if (read(fd.get(), &info, sizeof(info)) != static_cast<ssize_t>(sizeof(info)))
    return std::nullopt;
  return ReceivedSignal{.number = static_cast<int>(info.ssi_signo),
                        .from_terminal = info.ssi_code == SI_KERNEL};
}

long oom_kill_count() {
  std::ifstream groups("/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1),
                      path = line.substr(second + 1);
    std::string file;
    if (controllers.empty()) {
      file = "/sys/fs/cgroup" + path + "/memory.events";  // v2
    } else if (controllers.find("memory") != std::string::npos) {
      file = "/sys/fs/cgroup/memory" + path + "/memory.oom_control";  // v1
    } else {
      continue;
    }
    std::ifstream in(file);
    std::string key;
    long value = 0;
    while (in >> key >> value)
      if (key == "oom_kill") return value;
  }
  return 0;
}

}  // namespace r1::launch
