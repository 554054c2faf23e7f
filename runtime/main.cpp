// r1run-rank: one process per rank. Builds the context and runs one command; a failing rank leaves one record for its
// parent (or prints it itself) and goes at once with the code of its kind of error, without collective teardown.
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <optional>

#include "comm/recorded/recorded.h"
#include "comm/staged/staged.h"
#include "comm/watch/hub.h"
#include "runtime/core/host.h"
#include "runtime/core/log.h"
#include "runtime/train/commands.h"
#include "runtime/train/same_job.h"

namespace {

using namespace r1;

train::SignalFlags g_signals;  // handlers have no other way to reach it

bool g_term_saves = false;  // kTermSavesVariable; set before the handlers are

void on_signal(int signal) {
  if (signal == SIGUSR1 || (signal == SIGTERM && g_term_saves)) g_signals.save.store(1);
  else g_signals.stop.store(signal);
}

void install_handlers() {
  g_term_saves = std::getenv(kTermSavesVariable) != nullptr;
  struct sigaction action{};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;
  for (const int signal : {SIGUSR1, SIGTERM, SIGINT, SIGHUP}) sigaction(signal, &action, nullptr);
  signal(SIGPIPE, SIG_IGN);
  signal(SIGXFSZ, SIG_IGN);  // a file-size limit is then a failed write, reported as such
}

/// Last words: to the parent when there is one, else to standard error.
[[noreturn]] void leave(RankStatusWriter& status, ReportKind kind, ExitCode code, const std::string& message,
                        std::optional<comm::MpiWorld>& mpi) {
  if (!status.has_parent() && kind != ReportKind::kSecondary) fmt::print(stderr, "r1run: {}\n", message);
  status.report(kind, code, message);
  std::fflush(nullptr);
  if (mpi) mpi->abandon();
  _exit(static_cast<int>(code));
}

/// Starts the control thread. Collective over the world.
std::unique_ptr<comm::Watch> make_watch(const JobConfig& config, comm::Communicator& world, RankStatusWriter& status) {
  const comm::WatchOptions options{.rank = world.rank(), .size = world.size(), .host = host_name(),
                                   .peer_timeout_s = config.peer_timeout, .stall_timeout_s = config.stall_timeout,
                                   .stall_report = config.output.empty() ? "" : config.output + "/stall-report.txt"};
  const bool one_host = train::ranks_on_this_host(world) == world.size();
  comm::HubOffer offer;
  if (world.rank() == 0) offer = comm::make_hub(options, one_host);
  const std::string text = train::broadcast_text(world, offer.text);
  return std::make_unique<comm::Watch>(options, std::move(offer.hub), text, status, [&status](const comm::Leave& l) {
    if (!status.has_parent() && l.kind != ReportKind::kSecondary) fmt::print(stderr, "r1run: {}\n", l.why);
    status.report(l.kind, l.code, l.why);
    _exit(static_cast<int>(l.code));
  });
}

bool under_mpi() { return std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr || std::getenv("PMIX_RANK") != nullptr; }

}  // namespace

int main(int argc, char** argv) {
  install_handlers();  // before MPI: the default action of USR1 would kill
  std::optional<comm::MpiWorld> mpi;
  std::unique_ptr<RankStatusWriter> status;
  std::unique_ptr<comm::Watch> watch;
  try {
    status = RankStatusWriter::from_environment();
  } catch (const std::exception& e) {
    fmt::print(stderr, "r1run: {}\n", e.what());
    return static_cast<int>(ExitCode::kInternal);
  }
  try {
    log::setup("r1run", spdlog::level::info);
    const std::vector<std::string> args(argv + 1, argv + argc);
    const Invocation call = split_command(args);
    if (call.help || call.version) {
      fmt::print("{}", call.help ? program_help() : std::string("r1run " R1RUN_VERSION "\n"));
      status->report(ReportKind::kFinished, ExitCode::kOk, "");
      return 0;
    }
    // Commands of one process have nothing to save, and may be waiting for their standard input.
    if (!train::needs_ranks(call.command))
      for (const int signal : {SIGTERM, SIGINT, SIGHUP}) std::signal(signal, SIG_DFL);
    JobConfig config = parse_options(call.command, call.args);
    if (config.help) {
      fmt::print("{}", options_help(call.command));
      status->report(ReportKind::kFinished, ExitCode::kOk, "");
      return 0;
    }
    std::unique_ptr<comm::Communicator> world;
    if (under_mpi() && train::needs_ranks(call.command)) {
      mpi.emplace(&argc, &argv);
      // MPI_Finalize waits for ranks that wait for this one: whoever calls it too early (a library, in a handler of its own) is named.
      mpi->on_early_end([&] {
        leave(*status, ReportKind::kPrimary, ExitCode::kInternal, "MPI_Finalize was called before the job was over", mpi);
      });
      world = comm::make_recorded(comm::make_staged(mpi->world(train::stop_check(config, g_signals))), status->flight());
    } else {
      world = comm::make_self("world");
    }
    status->set_identity(world->rank(), world->size(), "");
    log::setup(world->rank() == 0 ? "r1run" : fmt::format("r1run: rank {}", world->rank()),
               world->rank() == 0 ? spdlog::level::info : spdlog::level::warn);
    // A launcher of ours has said them before it started the ranks.
    if (world->rank() == 0 && under_mpi() && std::getenv("R1RUN_SUPERVISED") == nullptr)
      for (const std::string& w : config.warnings) log::warn("{}", w);
    if (train::needs_ranks(call.command)) train::check_same_job(*world, train::job_facts(config));
    // Commands without a time-out for progress (probe) have their own.
    if (train::needs_ranks(call.command) && config.stall_timeout > 0) watch = make_watch(config, *world, *status);
    const train::RankContext ctx{config, *world, *status, g_signals, std::getenv("R1RUN_TERMINAL") != nullptr, watch.get(),
                                 train::stop_check(config, g_signals)};
    const ExitCode code = train::run_command(ctx);
    status->report(ReportKind::kFinished, code, "");
    watch.reset();
    world->close();
    world.reset();
    std::fflush(nullptr);
    return static_cast<int>(code);
  } catch (const StoppedError& e) {
    leave(*status, ReportKind::kStopped, e.code(), e.what(), mpi);
  } catch (const CommError& e) {
    leave(*status, ReportKind::kSecondary, e.code(), e.what(), mpi);
  } catch (const Error& e) {
    leave(*status, ReportKind::kPrimary, e.code(), e.what(), mpi);
  } catch (const std::bad_alloc&) {
    leave(*status, ReportKind::kPrimary, ExitCode::kNoMemory, "the host has no memory left", mpi);
  } catch (const std::exception& e) {
    leave(*status, ReportKind::kPrimary, ExitCode::kInternal, fmt::format("unexpected error: {}", e.what()), mpi);
  }
}
