// Processes and descriptors: owners and the few system calls that the shim and the launcher share.
#pragma once

#include <sys/types.h>

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "runtime/core/fd.h"
#include "runtime/core/host.h"

namespace r1::launch {

/// Directory of the running executable. Throws InternalError.
[[nodiscard]] std::string executable_dir();
/// Path of a program that must lie beside the running executable. Throws UsageError when it is not
/// there or may not be executed.
[[nodiscard]] std::string sibling_program(const std::string& name);
/// Full path of a program in $PATH; nullopt when there is none.
[[nodiscard]] std::optional<std::string> find_in_path(const std::string& name,
                                                      const std::optional<std::string>& path);
/// State letter of a process from /proc ('R', 'S', 'T' stopped, 't' traced, 'Z' …); '\0' when it is
/// gone.
[[nodiscard]] char process_state(pid_t pid);

struct SpawnOptions {
  std::vector<std::pair<std::string, std::string>>
      set_environment;     ///< added to or replacing this process's
  int inherit_fd = -1;     ///< kept open in the child
  int stdout_fd = -1;      ///< becomes the child's standard output
  int stderr_fd = -1;      ///< becomes the child's standard error
  int stdin_fd = -1;       ///< becomes the child's standard input
  bool own_group = false;  ///< starts a process group of its own
  int death_signal = 0;    ///< sent to the child by the kernel when this process dies; 0 none
};
/// Starts a program with the signal mask empty and default handlers. Throws UsageError with the
/// system's reason when it cannot be executed.
[[nodiscard]] pid_t spawn(const std::vector<std::string>& argv, const SpawnOptions& options);

/// Output of a program that is expected to end soon.
struct Captured {
  int code = -1;       ///< exit code; 128 + signal; -1: it could not be started or took too long
  std::string output;  ///< standard output, at most 4 MiB
};
/// Runs a program with its standard error thrown away, for at most `limit_s` (then it is killed).
/// Never throws for what the program does.
[[nodiscard]] Captured capture(const std::vector<std::string>& argv, double limit_s);

/// Replaces this process. Returns only by throwing UsageError.
[[noreturn]] void exec_program(const std::vector<std::string>& argv);

/// pidfd of a child. Throws InternalError.
[[nodiscard]] Fd open_pidfd(pid_t pid);
/// Blocks the given signals in this process and returns a signalfd for them. Throws InternalError.
[[nodiscard]] Fd open_signalfd(const std::vector<int>& signals);
struct ReceivedSignal {
  int number = 0;
  bool from_terminal =
      false;  ///< Ctrl-C and the like: every process of the foreground group got it
};
/// The next pending signal on a signalfd; nullopt when there is none.
[[nodiscard]] std::optional<ReceivedSignal> read_signal(const Fd& fd);

/// Processes killed for memory in this process's control group so far; 0 when it cannot be read.
[[nodiscard]] long oom_kill_count();

}  // namespace r1::launch
