// Stand-in for r1run-rank: joins MPI, "trains" (all-reduce after all-reduce), and meets the fault
// asked for.
//   launch_test_rank train [--fault NAME] [--on RANK] [--steps N] [--pids DIR]
// Rank RANK (all ranks when -1) meets the fault at step 3. Each rank leaves its process id and
// the CPUs it may run on in DIR/<rank>.
#include <mpi.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <thread>

#include "runtime/core/rank_status.h"

namespace {

volatile sig_atomic_t g_save = 0, g_stop = 0;  // set by handlers only

extern "C" void on_usr1(int) { g_save = 1; }
extern "C" void on_term(int) { g_stop = 1; }

int leave(r1::RankStatusWriter& status, r1::ReportKind kind, r1::ExitCode code,
          const std::string& text) {
  status.report(kind, code, text);
  _exit(static_cast<int>(code));
}

}  // namespace

int main(int argc, char** argv) {
  signal(SIGUSR1, on_usr1);
  signal(SIGTERM, on_term);
  const auto status = r1::RankStatusWriter::from_environment();
  const auto text = [](const char* name) {
    const char* value = std::getenv(name);
    return std::string(value == nullptr ? "" : value);
  };
  const std::string fault = text("R1TEST_FAULT"), pids = text("R1TEST_PIDS");
  const int on = text("R1TEST_ON").empty() ? -2 : std::stoi(text("R1TEST_ON"));
  const int steps = text("R1TEST_STEPS").empty() ? 5 : std::stoi(text("R1TEST_STEPS"));
  if (fault == "usage")
    leave(*status, r1::ReportKind::kPrimary, r1::ExitCode::kUsage,
          "--tp 3: not a size\nallowed: 1, 2");
  const bool mpi = std::getenv("PMIX_RANK") != nullptr;  // a single rank needs none
  int rank = 0, size = 1;
  if (mpi) {
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
  }
  status->set_identity(rank, fault == "wrong-world" ? 1 : size,
                       "pp 0 dp 0 tp " + std::to_string(rank));
  if (!pids.empty()) {
    std::ofstream out(pids + "/" + std::to_string(rank));
    out << getpid();
    cpu_set_t mine;
    if (sched_getaffinity(0, sizeof(mine), &mine) == 0)
      for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
        if (CPU_ISSET(cpu, &mine)) out << ' ' << cpu;
    out << std::endl;
  }
  const bool mine = on == -1 || on == rank;
  std::thread reporter;
  for (int step = 0; step < steps; ++step) {
    status->set_step(step);
    status->set_phase("forward");
    if (step == 3 && mine) {
      if (fault == "kill") raise(SIGKILL);
      // Once only: the next start finds the file.
      if (fault == "kill-once" && std::ifstream(pids + "/killed").fail()) {
        std::ofstream(pids + "/killed") << std::endl;
        raise(SIGKILL);
      }
      if (fault == "segv") {
        signal(SIGSEGV, SIG_DFL);  // a sanitizer's handler would turn the signal into an exit
        raise(SIGSEGV);
      }
      if (fault == "stop") raise(SIGSTOP);
      if (fault == "silent-exit") _exit(7);
      if (fault == "silent-success") _exit(0);
      if (fault == "exit-137") _exit(137);
      if (fault == "bad-shard")
        leave(*status, r1::ReportKind::kPrimary, r1::ExitCode::kBadInput,
              "shard 3: CRC32C mismatch");
      if (fault == "kill-then-echo") raise(SIGKILL);
    }
    // The others notice the loss themselves 0.3 s later, before the launcher ends them.
    if (step == 3 && !mine && fault == "kill-then-echo") {
      usleep(300'000);
      leave(*status, r1::ReportKind::kSecondary, r1::ExitCode::kTemporary,
            "peer vanished in all-reduce");
    }
    status->set_phase("all-reduce 1 float");
    float in = 1, out = 0;
    if (mpi) MPI_Allreduce(&in, &out, 1, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
    if (steps > 100) usleep(10'000);
    int save = g_save, any = g_save;
    if (mpi) MPI_Allreduce(&save, &any, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
    if (any != 0) {
      std::printf("rank %d saved step %d\n", rank, step);
      std::fflush(stdout);
      // As in the real program nobody leaves before all have spoken: mpirun ends the others at the
      // first code that is not zero.
      if (mpi) MPI_Finalize();
      leave(*status, r1::ReportKind::kStopped, r1::ExitCode::kTemporary, "stopped by SIGUSR1");
    }
    if (g_stop != 0)
      leave(*status, r1::ReportKind::kStopped, r1::ExitCode::kTemporary, "stopped by SIGTERM");
    status->set_checkpoint(step);
  }
  if (rank == 0) std::printf("done after %d steps with %d ranks\n", steps, size);
  std::fflush(stdout);
  if (mpi) MPI_Finalize();
  status->report(r1::ReportKind::kFinished, r1::ExitCode::kOk, "");
  return 0;
}
