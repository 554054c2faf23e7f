// Faults under MPI: rank 1 fails in the named way while the others are in a collective. Each of
// those must leave the wait by its StopCheck, say so in one line, and leave the process without
// blocking in MPI.
//   mpi_faults killed|stuck|left|size COLLECTIVE
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "comm/communicator.h"

int main(int argc, char** argv) {
  using namespace r1;
  using namespace r1::comm;
  using Clock = std::chrono::steady_clock;
  const std::string fault = argc > 1 ? argv[1] : "", operation = argc > 2 ? argv[2] : "";
  constexpr auto kLimit = std::chrono::milliseconds(300);

  MpiWorld mpi(&argc, &argv);
  int checks = 0;
  const auto world =
      mpi.world([&](const Communicator& group, const char* what, std::chrono::nanoseconds waited) {
        ++checks;
        if (waited > kLimit) throw CommError("{} on {}: no answer for 300 ms", what, group.name());
      });
  const int rank = world->rank(), n = world->size();
  std::vector<float> x(100000, 1.0f);
  const auto view = [&](int64_t elems) {
    return Tensor{.data = x.data(), .dtype = DType::kF32, .shape = {elems}, .device = {}};
  };
  const auto run = [&] {
    if (operation == "all_reduce") world->all_reduce(view(100000), ReduceOp::kSum, {});
    if (operation == "small_all_reduce") world->all_reduce(view(1), ReduceOp::kSum, {});
    if (operation == "barrier") world->barrier();
    if (operation == "broadcast") world->broadcast(view(100000), 1, {});
    if (operation == "send") world->send(view(100000), 1, {});
    if (operation == "recv") world->recv(view(5), 1, {});
    if (operation == "split") (void)world->split(0, 0, "late");
    if (operation == "close") world->close();
  };

  world->barrier();
  if (rank == 1) {
    if (fault == "killed") raise(SIGKILL);
    if (fault == "left") {
      mpi.abandon();
      _exit(0);
    }
    if (fault == "stuck") sleep(1);
    if (fault == "size") world->send(view(3), 0, {});  // rank 0 expects 5 elements
    mpi.abandon();
    std::fflush(nullptr);
    _exit(0);
  }
  const auto begin = Clock::now();
  std::string seen = "nothing";
  std::string again = "nothing";
  try {
    run();
  } catch (const CommError& e) {
    seen = e.what();
  }
  const auto ms =
      std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - begin).count();
  try {
    world->barrier();  // must refuse at once: memory of the failed call may be gone
  } catch (const CommError& e) {
    again = e.what();
  }
  std::printf("rank %d/%d after %s: %s | then: %s\n", rank, n, ms < 2000 ? "<2s" : "LONG",
              seen.c_str(), again.c_str());
  if (checks == 0 && fault != "size")
    std::printf("rank %d: the StopCheck was never called\n", rank);
  std::fflush(nullptr);
  mpi.abandon();
  // Ordinary destructors run from here, and none of them may block.
  return 0;
}
