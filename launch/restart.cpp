#include "launch/restart.h"

#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <filesystem>

#include "launch/process.h"

namespace r1::launch {
namespace {

namespace fs = std::filesystem;

constexpr double kLongestPause_s = 30;

void say(const std::string& text) { std::fprintf(stderr, "r1run: %s\n", text.c_str()); }

/// Resumed from a checkpoint by name: others may lie in --output that are not this job's past.
bool resumes_by_name(const JobConfig& config) {
  return !config.resume.empty() && config.resume != "auto";
}

/// Step of the newest checkpoint that the job may go on from; -1 none.
int64_t newest_own(const JobConfig& config, const std::string& output,
                   const std::set<int64_t>& before) {
  const std::set<int64_t> now = checkpoint_steps(output);
  for (auto step = now.rbegin(); step != now.rend(); ++step)
    if (!resumes_by_name(config) || !before.contains(*step)) return *step;
  return -1;
}

}  // namespace

RestartPolicy::Decision RestartPolicy::after(const JobOutcome& outcome, int64_t checkpoint) {
  Decision d;
  if (outcome.code == 0 || outcome.stop_requested || !outcome.fault) return d;
  // A launcher that started the ranks before and now cannot has met a host that is away, not a
  // mistake in the command.
  const bool start_failed = outcome.launcher_failed && restarts_ > 0;
  if (outcome.code != static_cast<int>(ExitCode::kTemporary) && !start_failed) {
    d.reason = fmt::format("not restarted: code {} would come again", outcome.code);
    return d;
  }
  if (checkpoint > checkpoint_) {
    checkpoint_ = checkpoint;
    without_progress_ = 0;
  }
  if (without_progress_ >= kRestartsWithoutProgress) {
    d.reason = fmt::format(
        "giving up: {} restarts without a new checkpoint ({})", without_progress_,
        checkpoint_ < 0 ? "there is none" : fmt::format("newest: step {}", checkpoint_));
    return d;
  }
  if (restarts_ >= most_) {
    d.reason = fmt::format("giving up: --max-restarts {} are used up", most_);
    return d;
  }
  d.restart = true;
  d.pause_s = std::min(kLongestPause_s, static_cast<double>(1 << without_progress_));
  ++restarts_;
  ++without_progress_;
  return d;
}

std::set<int64_t> checkpoint_steps(const std::string& output) {
  std::set<int64_t> steps;
  std::error_code failed;
  for (fs::directory_iterator it(output, failed), end; !failed && it != end; it.increment(failed)) {
    const std::string name = it->path().filename().string();
    constexpr std::string_view kPrefix = "step-";
    if (!name.starts_with(kPrefix)) continue;
    int64_t step = 0;
    const char* last = name.data() + name.size();
    const auto [stop, error] = std::from_chars(name.data() + kPrefix.size(), last, step);
    std::error_code ignored;
    if (error == std::errc{} && stop == last &&
        fs::exists(it->path() / "r1run" / "manifest.json", ignored))
      steps.insert(step);
  }
  return steps;
}

std::string free_output(const std::string& fallback) {
  std::string out = fallback;
  std::error_code ignored;
  for (int i = 2; fs::exists(out, ignored); ++i) out = fmt::format("{}-{}", fallback, i);
  return out;
}

std::vector<std::string> restart_words(const JobConfig& config, const std::string& output,
                                       const std::string& resume) {
  std::vector<std::string> words{config.command};
  for (std::string& flag : given_flags(config))
    if (!flag.starts_with("--output=") && !flag.starts_with("--resume=") &&
        !flag.starts_with("--max-restarts="))
      words.push_back(std::move(flag));
  words.push_back("--output=" + output);
  if (!resume.empty()) words.push_back("--resume=" + resume);
  return words;
}

Cluster without_hosts(const Cluster& cluster, const std::vector<std::string>& lost, int ranks) {
  Cluster left = cluster;
  std::erase_if(left.hosts, [&](const Host& h) {
    // Machines call themselves by their first label, a hostfile may use the whole name.
    return std::any_of(lost.begin(), lost.end(), [&](const std::string& name) {
      return h.name == name || h.name.substr(0, h.name.find('.')) == name;
    });
  });
  return left.total_slots() >= ranks ? left : cluster;
}

bool pause_unless_asked_to_end(double seconds) {
  const Fd signals = open_signalfd({SIGTERM, SIGINT, SIGHUP, SIGUSR1});
  for (const double until = monotonic_s() + seconds; monotonic_s() < until; usleep(50'000))
    if (read_signal(signals)) return false;
  return true;
}

int run_with_restarts(const Request& request, const Destination& destination,
                      const RunOnce& run_once, const Pause& wait) {
  const JobConfig& config = request.config;
  const std::string output = config.is_set("output") || !config.resume.empty()
                                 ? config.output
                                 : free_output(config.output);
  const std::set<int64_t> before = checkpoint_steps(output);
  int64_t newest = newest_own(config, output, before);
  RestartPolicy policy(config.max_restarts, newest);
  Request now = request;
  now.for_ranks = restart_words(config, output, config.resume);
  Destination where = destination;
  while (true) {
    const JobOutcome outcome = run_once(now, where);
    const int64_t on_disk = newest_own(config, output, before);
    newest = std::max(newest, on_disk);
    // Without a shared file system only the ranks can tell how far they came.
    if (outcome.cause) newest = std::max(newest, outcome.cause->checkpoint_step);
    const RestartPolicy::Decision d = policy.after(outcome, newest);
    if (!d.reason.empty()) say(d.reason);
    if (!d.restart) return outcome.code;
    if (!outcome.lost_hosts.empty()) {
      const Cluster left = without_hosts(where.cluster, outcome.lost_hosts, request.world());
      if (left.hosts.size() < where.cluster.hosts.size()) {
        say(fmt::format("going on without {}: the other hosts hold {} ranks",
                        fmt::join(outcome.lost_hosts, ", "), request.world()));
        where.cluster = left;
      }
    }
    std::string resume = "auto", from = "the beginning (no checkpoint yet)";
    if (newest >= 0) from = fmt::format("the checkpoint of step {}", newest);
    if (resumes_by_name(config)) {
      resume = on_disk < 0 ? config.resume : fmt::format("{}/step-{:06}", output, on_disk);
      from = resume;
    }
    say(fmt::format("restart {} of at most {} in {:.0f} s, from {}", policy.restarts(),
                    config.max_restarts, d.pause_s, from));
    if (!wait(d.pause_s)) {
      say("asked to end: not restarted");
      return outcome.code;
    }
    now.for_ranks = restart_words(config, output, resume);
  }
}

}  // namespace r1::launch
