#include "launch/shim.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <optional>

#include "launch/control.h"
#include "launch/placed_here.h"
#include "launch/placement.h"
#include "launch/process.h"
#include "runtime/core/options.h"
#include "runtime/core/rank_status.h"

namespace r1::launch {
namespace {

constexpr int kTickMs = 100;
/// After the death of mpirun or of the host's daemon the rank gets this long to end by itself.
constexpr double kOrphanGrace_s = 1.0;
/// A record must reach the launcher in one piece: Open MPI forwards output in pieces of 4,096
/// bytes.
constexpr size_t kRecordLimit = 4000;
/// Some steps of a layout with much communication.
constexpr size_t kFlightLines = 1000;

void write_all(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t n = write(fd, text.data(), text.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return;  // nobody reads any more
    text.remove_prefix(static_cast<size_t>(n));
  }
}

/// The parent of a rank should be the last thing the kernel kills for memory; the rank itself keeps
/// its score.
class OomShield {
 public:
  OomShield() {
    std::ifstream in("/proc/self/oom_score_adj");
    if (in >> before_) set(-500);  // needs privilege; without it the score stays
  }
  void restore_for(pid_t pid) const {
    write_score("/proc/" + std::to_string(pid) + "/oom_score_adj", before_);
  }

 private:
  static void write_score(const std::string& path, int score) {
    std::ofstream out(path);
    out << score;
  }
  static void set(int score) { write_score("/proc/self/oom_score_adj", score); }
  int before_ = 0;
};

class Shim {
 public:
  explicit Shim(const ShimOptions& options) : o_(options), host_(host_name()) {}

  int run() {
    // Mask first: a signal between here and the child's start must not end this process.
    signals_ = open_signalfd({SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2, SIGPIPE});
    launcher_ = getppid();
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != launcher_) return static_cast<int>(ExitCode::kTemporary);
    if (!o_.warning.empty() && o_.where.rank == 0)
      write_all(STDERR_FILENO, "r1run: warning: " + o_.warning + "\n");
    const OomShield shield;
    oom_before_ = oom_kill_count();
    std::vector<std::string> argv{o_.rank_program};
    argv.insert(argv.end(), o_.arguments.begin(), o_.arguments.end());
    SpawnOptions spawn_options;
    spawn_options.inherit_fd = status_.fd();
    spawn_options.death_signal = SIGKILL;
    // Launchers signal the process group of what they started. In a group of its own the rank gets
    // each signal once, from here. Without a launcher it stays in the terminal's foreground group,
    // so that it may read.
    spawn_options.own_group = is_rank(o_.where);
    spawn_options.set_environment.emplace_back(kRankStatusFdVariable, std::to_string(status_.fd()));
    if (o_.term_saves) spawn_options.set_environment.emplace_back(kTermSavesVariable, "1");
    // Eight ranks on two cores, 1 KiB all-reduce among four: 30 us with yielding, 31,000 us
    // without.
    if (getenv("OMPI_MCA_mpi_yield_when_idle") == nullptr)
      spawn_options.set_environment.emplace_back("OMPI_MCA_mpi_yield_when_idle", "1");
    if (const char* table = getenv(kPlacementVariable); table != nullptr && is_rank(o_.where)) {
      const PlacedHere here = take_place(table, host_, o_.where.local_rank);
      for (const auto& [name, value] : here.environment)
        if (getenv(name.c_str()) == nullptr)  // what the user has set stays
          spawn_options.set_environment.emplace_back(name, value);
      // The ranks of a host mostly share what is wrong with its map.
      if (!here.warnings.empty() && first_to("r1run-place."))
        for (const std::string& w : here.warnings)
          write_all(STDERR_FILENO, fmt::format("r1run: warning: rank {} on {}: {}\n", o_.where.rank, host_, w));
    }
    child_ = spawn(argv, spawn_options);
    shield.restore_for(child_);
    pidfd_ = open_pidfd(child_);
    if (o_.control_port > 0 && (o_.where.local_rank == 0 || o_.every_rank_reports))
      control_.emplace(o_.launcher_addresses, o_.control_port, o_.control_token, host_,
                       o_.peer_timeout_s);
    return watch();
  }

 private:
  int watch() {
    while (true) {
      pollfd fds[2] = {{pidfd_.get(), POLLIN, 0}, {signals_.get(), POLLIN, 0}};
      const int n = poll(fds, 2, kTickMs);
      if (n < 0 && errno != EINTR) throw InternalError("poll: {}", std::strerror(errno));
      while (const auto sig = read_signal(signals_)) on_signal(*sig);
      if (n > 0 && (fds[0].revents & POLLIN) != 0) return on_exit();
      on_tick();
    }
  }

  void on_signal(const ReceivedSignal& s) {
    if (s.number == SIGPIPE) return;  // nobody reads our standard error; the exit code still tells
    if (is_request_to_end(s.number) && !stop_requested_) {
      stop_requested_ = true;
      stop_requested_at_ = monotonic_s();
    }
    if (s.number == SIGTERM && o_.term_saves) {
      kill(child_, SIGUSR1);  // once or twice: Slurm may have told the rank itself
      return;
    }
    // Without a launcher the rank shares our group, and the terminal has told it already.
    if (!(s.from_terminal && !is_rank(o_.where))) kill(child_, s.number);
  }

  [[nodiscard]] static bool is_request_to_end(int sig) {
    return sig == SIGTERM || sig == SIGINT || sig == SIGHUP;
  }

  void on_tick() {
    const double now = monotonic_s();
    if (control_) {
      control_->service();
      // This host is cut off from the launcher. Its daemon may wait for hours for an
      // acknowledgement: end it, and with it, through the death signal, every parent on this host.
      // (Slurm's is not ours to end: there each parent ends its own rank.)
      const bool over = control_->asked_to_end() ||
                        (o_.every_rank_reports && control_->silence_s() > o_.peer_timeout_s);
      if (over && ended_at_ == 0) {
        ended_at_ = now;
        stop_requested_ = true;
        kill(child_, SIGINT);  // SIGTERM may mean "save"
      }
      if (ended_at_ > 0 && now - ended_at_ > kOrphanGrace_s) kill(child_, SIGKILL);
      if (!o_.every_rank_reports && control_->silence_s() > o_.peer_timeout_s && isolated_at_ == 0) {
        isolated_at_ = now;
        kill(launcher_, SIGTERM);
      }
      if (isolated_at_ > 0 && now - isolated_at_ > kOrphanGrace_s) kill(launcher_, SIGKILL);
    }
    if (getppid() != launcher_) {
      stop_requested_ = true;
      if (orphaned_at_ == 0) {
        orphaned_at_ = now;
        kill(child_, o_.term_saves ? SIGINT : SIGTERM);
      } else if (now - orphaned_at_ > kOrphanGrace_s) {
        kill(child_, SIGKILL);
      }
    }
    if (stop_requested_ && o_.end_grace_s > 0 && now - stop_requested_at_ > o_.end_grace_s)
      kill(child_, SIGKILL);
    if (!verdict_.empty()) return;
    // Counted in ticks, so that time in which this process was itself stopped does not count.
    stopped_ticks_ = process_state(child_) == 'T' ? stopped_ticks_ + 1 : 0;
    const double stopped_s = stopped_ticks_ * kTickMs * 1e-3;
    if (stopped_s >= o_.peer_timeout_s) {
      detected_s_ = stopped_s;
      condemn(fmt::format("alive but silent: stopped (SIGSTOP) for {:.1f} s", stopped_s),
              ExitCode::kTemporary);
      return;
    }
    const RankStatus s = status_.read();
    if (s.world_size > 0 && o_.where.world > 1 && s.world_size != o_.where.world)
      condemn(
          fmt::format(
              "the launcher started {} tasks but MPI sees a world of {}: the ranks did not find "
              "each other "
              "(another MPI than the one r1run was built with, or PMIx missing: `srun --mpi=pmix`)",
              o_.where.world, s.world_size),
          ExitCode::kUsage);
  }

  /// Ends the rank for a reason found by this process.
  void condemn(std::string why, ExitCode code) {
    verdict_ = std::move(why);
    verdict_code_ = code;
    kill(child_, SIGKILL);
  }

  int on_exit() {
    int wait_status = 0;
    while (waitpid(child_, &wait_status, 0) < 0)
      if (errno != EINTR) throw InternalError("waitpid: {}", std::strerror(errno));
    const Ending ending = ending_of(wait_status, oom_kill_count() > oom_before_);
    const RankStatus s = status_.read();

    FaultRecord r;
    r.rank = o_.where.rank;
    r.host = host_;
    r.pid = child_;
    r.coordinates = s.coordinates;
    r.step = s.step;
    r.phase = s.phase;
    const FlightData flight = status_.flight(0);
    if (flight.operation) r.operation = describe(*flight.operation, flight);
    r.checkpoint_step = s.checkpoint_step;
    r.detected_s = detected_s_;
    r.time_s = wall_clock_s();
    r.code = ending.code;
    double wait_s = 0;
    if (!verdict_.empty()) {
      r.why = verdict_;
      r.code = static_cast<int>(verdict_code_);
    } else if (ending.by_signal) {
      r.why = ending.why;
      if (s.report == ReportKind::kPrimary) r.why = s.message + "; then " + ending.why;
    } else if (s.report == ReportKind::kPrimary) {
      // All ranks may meet the same cause at once: the first of the job speaks, the others give it
      // a moment.
      r.why = s.message;
      const bool host_of_rank_0 = o_.where.rank == o_.where.local_rank;
      wait_s = o_.where.rank == 0                ? 0
               : host_of_rank_0 || o_.supervised ? o_.report_wait_s
                                                 : o_.remote_report_wait_s;
    } else if (s.report == ReportKind::kSecondary) {
      r.kind = ReportKind::kSecondary;
      r.why = s.message;
      wait_s = o_.secondary_wait_s;
    } else if (s.report == ReportKind::kStopped || s.report == ReportKind::kFinished) {
      return ending.code;
    } else if (ending.code == 0 && s.world_rank < 0) {
      return 0;  // a subcommand that needs no ranks, or --help
    } else {
      r.why = ending.why.empty()
                  ? fmt::format("exited {} without finishing and without a word", ending.code)
                  : ending.why;
      if (ending.code == 0) r.code = static_cast<int>(ExitCode::kInternal);
      wait_s = o_.silent_exit_wait_s;
    }
    // Asked to end: by the user, or by the launcher because another rank was the cause. Either way
    // no news.
    if (stop_requested_) return r.code == 0 ? static_cast<int>(ExitCode::kTemporary) : r.code;
    if (r.kind == ReportKind::kPrimary && r.step >= 0) r.flight = keep_flight(r);
    speak(r, wait_s);
    return r.code;
  }

  /// What the rank did last, as a file in the output: its name, or nothing where it cannot be written.
  [[nodiscard]] std::string keep_flight(const FaultRecord& r) const {
    const FlightData flight = status_.flight();
    struct stat st {};
    if (flight.recent.empty() || o_.output.empty() || stat(o_.output.c_str(), &st) != 0) return {};
    std::string path = fmt::format("{}/flight-rank-{}.txt", o_.output, r.rank);
    std::ofstream out(path);
    out << describe(r) << "\n\nWhat it did last: record, start (monotonic clock), step, time taken, operation.\n"
        << flight_text(flight, kFlightLines);
    return out.flush() ? path : std::string();
  }

  void speak(const FaultRecord& r, double wait_s) {
    if (o_.supervised) {
      std::string json = to_json_line(r);
      FaultRecord shorter = r;
      while (json.size() > kRecordLimit) {
        shorter.why.resize(shorter.why.size() * 3 / 4);
        json = to_json_line(shorter);
      }
      write_all(STDERR_FILENO, std::string(1, kRecordMark) + json + "\n");
    }
    const double until = monotonic_s() + wait_s;
    for (double left = wait_s; left > 0; left = until - monotonic_s()) {
      pollfd fd{signals_.get(), POLLIN, 0};
      poll(&fd, 1, static_cast<int>(std::min(left * 1e3 + 1, double{kTickMs})));
      while (const auto sig = read_signal(signals_))
        if (is_request_to_end(sig->number)) return;
      if (getppid() != launcher_) return;
      if (someone_spoke()) return;
    }
    if (o_.supervised || !speak_for_host()) return;
    write_all(STDERR_FILENO, describe(r) + "\n");
  }

  [[nodiscard]] std::string claim_path() const {
    return o_.job_dir + "/r1run-fault." + o_.where.job;
  }
  [[nodiscard]] bool someone_spoke() const {
    struct stat st {};
    return !o_.job_dir.empty() && stat(claim_path().c_str(), &st) == 0;
  }
  /// The first to claim prints. The claim lies in the launcher's session directory, which goes with
  /// the job.
  [[nodiscard]] bool speak_for_host() const { return first_to("r1run-fault."); }
  [[nodiscard]] bool first_to(const std::string& what) const {
    if (o_.job_dir.empty()) return true;
    const std::string path = o_.job_dir + "/" + what + o_.where.job;
    const Fd fd(open(path.c_str(), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600));
    return static_cast<bool>(fd) || errno != EEXIST;
  }

  const ShimOptions& o_;
  const std::string host_;
  RankStatusReader status_;
  Fd signals_, pidfd_;
  std::optional<ControlClient> control_;
  pid_t child_ = -1, launcher_ = -1;
  long oom_before_ = 0;
  bool stop_requested_ = false;
  double ended_at_ = 0, isolated_at_ = 0, stop_requested_at_ = 0, orphaned_at_ = 0, detected_s_ = 0;
  int stopped_ticks_ = 0;
  std::string verdict_;
  ExitCode verdict_code_ = ExitCode::kTemporary;
};

}  // namespace

ShimOptions shim_options(const Environment& env, const Whereabouts& where,
                         std::vector<std::string> arguments) {
  ShimOptions o;
  o.rank_program = sibling_program("r1run-rank");
  o.arguments = std::move(arguments);
  o.where = where;
  o.supervised = env.has(kSupervisedVariable);
  if (o.supervised && is_rank(where)) {
    o.launcher_addresses =
        where.situation == Situation::kOpenMpiRank
            ? addresses_of(env.get("OMPI_MCA_orte_hnp_uri").value_or(""))
            : addresses_of("tcp://" + env.get(kControlAddressVariable).value_or("") + ":0");
    const auto port = env.number(kControlPortVariable);
    const auto token = env.get(kControlTokenVariable);
    if (port && *port > 0 && *port < 65536 && token) {
      o.control_port = static_cast<int>(*port);
      o.control_token = *token;
    }
  }
  if (where.situation == Situation::kOpenMpiRank) o.end_grace_s = 0.7;
  const bool slurm = where.situation == Situation::kPmixRank && where.job.starts_with("slurm.pmix.");
  o.every_rank_reports = slurm;
  if (where.world > 1 && !where.job.empty() && where.job.find('/') == std::string::npos)
    o.job_dir = env.get("PMIX_SERVER_TMPDIR").value_or("");
  try {
    const Invocation inv = split_command(o.arguments);
    const JobConfig config = parse_options(inv.command, inv.args);
    if (config.peer_timeout > 0) o.peer_timeout_s = config.peer_timeout;
    if (inv.command == "train") o.output = config.output;
    o.term_saves = slurm && inv.command == "train";
    if (config.max_restarts > 0 && is_rank(where) && !o.supervised)
      o.warning =
          "--max-restarts does nothing under mpirun or srun: start `r1run train` itself, which "
          "then "
          "starts them";
  } catch (const UsageError&) {
    // The rank program says what is wrong with the arguments; the default serves until then.
  }
  return o;
}

int run_shim(const ShimOptions& options) { return Shim(options).run(); }

}  // namespace r1::launch
