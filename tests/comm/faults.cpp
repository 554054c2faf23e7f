#include "faults.h"

#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <vector>

namespace r1::comm::test {

int fault_main(int& argc, char**& argv, const std::string& fault, const std::string& operation,
               const MakeGroup& make) {
  using Clock = std::chrono::steady_clock;
  constexpr auto kLimit = std::chrono::milliseconds(300);

  MpiWorld mpi(&argc, &argv);
  bool armed = false;  // the start of a job on a loaded machine may take longer than the limit
  const StopCheck stop = [&](const Communicator& group, const char* what,
                             std::chrono::nanoseconds waited) {
    if (armed && waited > kLimit)
      throw CommError("{} on {}: no answer for 300 ms", what, group.name());
  };
  const auto mpi_group = mpi.world(stop);
  const auto own = make ? make(*mpi_group, stop) : nullptr;
  Communicator* world = own ? own.get() : mpi_group.get();
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

  // Every pair has talked: UCX 1.13 aborts where a peer dies while their connection is being made (assertion in
  // ucp_request_send_state_ff).
  if (fault == "killed") world->all_reduce(view(100000), ReduceOp::kSum, {});
  world->barrier();
  armed = true;
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
  std::printf("rank %d/%d after %s: %s | then: %s\n", rank, n, ms < 5000 ? "<5s" : "LONG",
              seen.c_str(), again.c_str());
  std::fflush(nullptr);
  mpi.abandon();
  // Ordinary destructors run from here, and none of them may block.
  return 0;
}

}  // namespace r1::comm::test
