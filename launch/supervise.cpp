#include "launch/supervise.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <map>

#include "launch/control.h"
#include "launch/process.h"
#include "launch/shim.h"

namespace r1::launch {
namespace {

/// mpirun's exit code when the connection to a daemon broke. It does not say whose.
constexpr int kDaemonLost = 205;
/// A cause that arrives first may be an echo of one that is still on its way.
constexpr double kSettle_s = 0.3;
/// Open MPI ends a job 2.0 s (one host) or 4.0 s (three hosts) after the first failure; when it has
/// not by then, it is waiting for a host it has lost, and killing it ends the remote daemons too
/// (measured: all gone within 5 s).
constexpr double kEndAfterCause_s = 3.0, kEndAfterCauseHosts_s = 5.0, kEndAfterLoss_s = 1.5;

class Supervisor {
 public:
  Supervisor(const Command& command, const SuperviseOptions& options)
      : command_(command), o_(options) {}

  JobOutcome run() {
    signals_ = open_signalfd({SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2, SIGPIPE});
    int pipe_fds[2];
    if (pipe2(pipe_fds, O_CLOEXEC) != 0) throw InternalError("pipe: {}", std::strerror(errno));
    errors_ = Fd(pipe_fds[0]);
    Fd errors_in(pipe_fds[1]);
    fcntl(errors_.get(), F_SETFL, O_NONBLOCK);
    Fd null_in;
    SpawnOptions so;
    so.set_environment = command_.environment;
    std::string addresses;
    for (const std::string& a : contact_addresses()) addresses += (addresses.empty() ? "" : ",") + a;
    so.set_environment.emplace_back(kControlAddressVariable, addresses);
    so.set_environment.emplace_back(kControlPortVariable, std::to_string(control_.port()));
    so.set_environment.emplace_back(kControlTokenVariable, control_.token());
    so.stderr_fd = errors_in.get();
    // A group of its own keeps the terminal's Ctrl-C from ending mpirun before the ranks could
    // save. Such a group may not read the terminal.
    so.own_group = !(o_.forward_stdin && isatty(STDIN_FILENO));
    if (!o_.forward_stdin) {
      null_in = Fd(open("/dev/null", O_RDONLY | O_CLOEXEC));
      so.stdin_fd = null_in.get();
    }
    so.death_signal = SIGTERM;
    child_ = spawn(command_.argv, so);
    errors_in.reset();
    pidfd_ = open_pidfd(child_);
    int status = 0;
    while (!ended_) step(&status);
    drain();
    if (WIFEXITED(status) && WEXITSTATUS(status) == kDaemonLost) name_lost_hosts();
    show(filter_.finish());
    return outcome(status);
  }

 private:
  void step(int* status) {
    pollfd fds[3] = {
        {pidfd_.get(), POLLIN, 0}, {signals_.get(), POLLIN, 0}, {errors_.get(), POLLIN, 0}};
    if (poll(fds, 3, 100) < 0 && errno != EINTR)
      throw InternalError("poll: {}", std::strerror(errno));
    while (const auto sig = read_signal(signals_)) on_signal(sig->number);
    drain();
    control_.service();
    on_time();
    if ((fds[0].revents & POLLIN) != 0) {
      while (waitpid(child_, status, 0) < 0)
        if (errno != EINTR) throw InternalError("waitpid: {}", std::strerror(errno));
      ended_ = true;
    }
  }

  void drain() {
    std::array<char, 16384> buffer;
    while (errors_) {
      const ssize_t n = read(errors_.get(), buffer.data(), buffer.size());
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return;  // nothing now
      if (n == 0) {
        errors_.reset();
        return;
      }
      const size_t before = records_.size();
      show(filter_.feed({buffer.data(), static_cast<size_t>(n)}, &records_));
      if (before == 0 && !records_.empty()) first_record_at_ = monotonic_s();
    }
  }

  static void show(std::string_view text) {
    while (!text.empty()) {
      const ssize_t n = write(STDERR_FILENO, text.data(), text.size());
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return;
      text.remove_prefix(static_cast<size_t>(n));
    }
  }

  void on_signal(int sig) {
    if (sig == SIGPIPE) return;
    if (ended_) {  // there is nobody left to tell
      stop_requests_ += sig != SIGUSR1 && sig != SIGUSR2;
      return;
    }
    if (sig == SIGUSR1 || sig == SIGUSR2) {
      save_requested_ = save_requested_ || sig == SIGUSR1;
      kill(child_, sig);
      return;
    }
    ++stop_requests_;
    if (stop_requests_ == 1) stop_at_ = monotonic_s();
    if (stop_requests_ == 1 && o_.saves_on_request) {
      show(
          fmt::format("r1run: {} received: saving at the next step boundary, then stopping (once "
                      "more to stop now)\n",
                      sig == SIGINT ? "Ctrl-C" : "request to end"));
      kill(child_, SIGUSR1);  // mpirun forwards USR1 to the ranks; TERM it cannot forward
    } else {
      end_job(SIGTERM);
    }
  }

  void end_job(int sig) {
    if (killed_at_ == 0) killed_at_ = monotonic_s();
    if (o_.tells_ranks_to_end) control_.end_all();
    kill(child_, sig);
  }

  void on_time() {
    const double now = monotonic_s();
    if (first_record_at_ > 0 && now - first_record_at_ > kSettle_s) announce();
    const double limit = o_.hosts > 1 ? kEndAfterCauseHosts_s : kEndAfterCause_s;
    if (first_record_at_ > 0 && root_cause(records_)->kind == ReportKind::kPrimary &&
        now - first_record_at_ > limit)
      kill(child_, SIGKILL);
    look_for_lost_hosts(now);
    if (stop_requests_ > 0 && killed_at_ == 0 && now - stop_at_ > o_.save_grace_s) end_job(SIGTERM);
    // A launcher that has lost a host would wait for it.
    if (killed_at_ > 0 && now - killed_at_ > (lost_hosts_.empty() ? limit : kEndAfterLoss_s))
      kill(child_, SIGKILL);
  }

  /// A host whose parents of ranks have fallen silent while others speak is cut off or dead.
  void look_for_lost_hosts(double now) {
    if (o_.hosts < 2 || control_.last_heard().size() < 2 || !records_.empty() || stop_requests_ > 0)
      return;
    double newest = 0;
    for (const auto& [host, at] : control_.last_heard()) newest = std::max(newest, at);
    std::vector<std::string> lost;
    double silent_s = 0;
    for (const auto& [host, at] : control_.last_heard()) {
      // Measured against the host heard last, so that a pause of this process accuses nobody.
      if (newest - at < o_.peer_timeout_s * 0.9 && now - at < o_.peer_timeout_s) continue;
      if (now - newest > o_.peer_timeout_s) continue;  // all silent: the fault is on this side
      lost.push_back(host);
      silent_s = std::max(silent_s, now - at);
    }
    if (lost.empty()) return;
    record_loss(lost, silent_s);
    // mpirun would wait for the lost host's daemon; killing it ends the daemons that can still be
    // reached. srun ends its step when it is asked to; killed, it would leave the step running.
    if (o_.tells_ranks_to_end)
      end_job(SIGTERM);
    else
      kill(child_, SIGKILL);
  }

  /// mpirun noticed a loss before this process did (something it sent was refused): the host is the one that neither speaks nor
  /// closes its connection, as parents that were ended do.
  void name_lost_hosts() {
    const double until = monotonic_s() + o_.peer_timeout_s + 1;
    while (records_.empty() && stop_requests_ == 0 && monotonic_s() < until && !control_.connected().empty()) {
      poll(nullptr, 0, 100);
      while (const auto sig = read_signal(signals_)) on_signal(sig->number);
      drain();
      control_.service();
      double silent_s = 0;
      std::vector<std::string> lost;
      for (const std::string& host : control_.connected())
        if (const double s = monotonic_s() - control_.last_heard().at(host); s > o_.peer_timeout_s * 0.9) {
          lost.push_back(host);
          silent_s = std::max(silent_s, s);
        }
      if (!lost.empty() && lost.size() < control_.last_heard().size()) record_loss(lost, silent_s);
    }
  }

  void record_loss(const std::vector<std::string>& hosts, double silent_s) {
    FaultRecord r;
    r.code = static_cast<int>(ExitCode::kTemporary);
    r.host = fmt::format("{}", fmt::join(hosts, ", "));
    r.why = fmt::format("host{} unreachable for {:.1f} s: cut off or down", hosts.size() == 1 ? "" : "s", silent_s);
    r.detected_s = silent_s;
    lost_hosts_ = hosts;
    records_.push_back(r);
    first_record_at_ = monotonic_s();
    announce();
  }

  /// Prints the cause, once. A secondary cause waits for the end: the primary may still come.
  void announce() {
    if (announced_) return;
    const auto cause = root_cause(records_);
    if (!cause || (cause->kind != ReportKind::kPrimary && !ended_)) return;
    announced_ = cause;
    show(describe(*cause) + "\n");
    if (o_.tells_ranks_to_end) control_.end_all();
  }

  JobOutcome outcome(int status) {
    announce();
    JobOutcome out;
    out.stop_requested = stop_requests_ > 0 || save_requested_;
    out.lost_hosts = lost_hosts_;
    out.cause = announced_;
    if (announced_) {
      if (records_.size() > 1)
        show(fmt::format(
            "r1run: {} more rank{} reported a failure because of it or of the same cause\n",
            records_.size() - 1, records_.size() == 2 ? "" : "s"));
      out.code = announced_->code;
      out.fault = true;
      return out;
    }
    out.code = code_without_record(status, stop_requests_ > 0, o_.start_failure);
    // A code that the launcher passed on unchanged is a rank's own, said by a rank that had nothing
    // to report: it saved and stopped because somebody asked it to.
    const bool passed_on = WIFEXITED(status) && WEXITSTATUS(status) == out.code;
    out.fault = out.code != 0 && stop_requests_ == 0 && !passed_on;
    out.launcher_failed = out.fault;
    if (out.fault)
      show(fmt::format("r1run: FATAL why=\"{} ended with {} and no rank left a word\" code={}\n",
                       command_.argv[0],
                       WIFSIGNALED(status) ? fmt::format("signal {}", WTERMSIG(status))
                                           : fmt::format("exit code {}", WEXITSTATUS(status)),
                       out.code));
    return out;
  }

  const Command& command_;
  const SuperviseOptions& o_;
  Fd signals_, errors_, pidfd_;
  pid_t child_ = -1;
  bool ended_ = false;
  RecordFilter filter_;
  std::vector<FaultRecord> records_;
  ControlServer control_;
  std::optional<FaultRecord> announced_;
  double first_record_at_ = 0, stop_at_ = 0, killed_at_ = 0;
  std::vector<std::string> lost_hosts_;
  int stop_requests_ = 0;
  bool save_requested_ = false;
};

}  // namespace

std::string RecordFilter::feed(std::string_view bytes, std::vector<FaultRecord>* records) {
  std::string text;
  for (const char c : bytes) {
    if (in_record_) {
      if (c != '\n') {
        partial_ += c;
        continue;
      }
      if (auto record = from_json_line(partial_)) {
        records->push_back(std::move(*record));
      } else {
        text += partial_ + "\n";  // not ours: show it rather than lose it
      }
      partial_.clear();
      in_record_ = false;
    } else if (c == kRecordMark) {
      in_record_ = true;
    } else {
      text += c;
    }
  }
  return text;
}

std::string RecordFilter::finish() {
  in_record_ = false;
  return std::exchange(partial_, {});
}

std::optional<FaultRecord> root_cause(const std::vector<FaultRecord>& records) {
  const FaultRecord* cause = nullptr;
  for (const auto& r : records) {
    if (r.kind != ReportKind::kPrimary) continue;
    // A cause that ranks share (a missing file) is told by the lowest of them, whichever was first.
    if (cause == nullptr || (r.why == cause->why && r.rank >= 0 && r.rank < cause->rank))
      cause = &r;
  }
  if (cause != nullptr) return *cause;
  if (records.empty()) return std::nullopt;
  return records.front();
}

int code_without_record(int wait_status, bool stop_requested, ExitCode own_failures) {
  if (WIFEXITED(wait_status) && WEXITSTATUS(wait_status) == 0) return 0;
  if (stop_requested) return static_cast<int>(ExitCode::kTemporary);
  if (WIFSIGNALED(wait_status)) return static_cast<int>(ExitCode::kTemporary);
  const int code = WEXITSTATUS(wait_status);
  if (code >= 64 && code < 126) return code;  // a rank's own code, passed on
  // 205: kDaemonLost; 128 + n: something was killed. Anything else, 1 above all: the launcher
  // refused or could not start the ranks (host names, slots, ssh), which the same command will meet
  // again.
  return static_cast<int>(code >= 126 ? ExitCode::kTemporary : own_failures);
}

JobOutcome supervise(const Command& command, const SuperviseOptions& options) {
  return Supervisor(command, options).run();
}

}  // namespace r1::launch
