// A rank is killed inside a collective on GPUs; the others must leave within bounded time and say
// why.
//   gpu_faults nccl|ipc|ipc-copies OPERATION [SECONDS]
// Rank 1 dies while the others' calls are enqueued: their streams never end by themselves. Each
// prints what it saw.
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "comm/ipc/ipc.h"
#include "comm/nccl/nccl.h"
#include "gpu.h"
#include "rank_main.h"
#include "runtime/device/cuda/cuda_api.h"
#include "runtime/device/cuda_library.h"
#include "runtime/device/device.h"

int main(int argc, char** argv) {
  using namespace r1;
  using namespace r1::comm;
  using Clock = std::chrono::steady_clock;
  const std::string kind = argc > 1 ? argv[1] : "ipc",
                    operation = argc > 2 ? argv[2] : "all_reduce";
  const int seconds = argc > 3 ? std::atoi(argv[3]) : 2;
  MpiWorld mpi(&argc, &argv);
  bool armed = false;
  const StopCheck stop = [&](const Communicator& group, const char* what,
                             std::chrono::nanoseconds waited) {
    if (armed && waited > std::chrono::seconds(seconds))
      throw CommError("{} on {}: no answer for {} s", what, group.name(), seconds);
  };
  const auto world = mpi.world(stop);
  const Device device = test::gpu_of_rank(world->rank(), kind == "nccl" ? world->size() : 1);
  const std::shared_ptr<IpcMemory> memory = make_cuda_memory(device);
  std::shared_ptr<NcclHub> nccl;
  std::unique_ptr<Communicator> group;
  if (kind == "nccl") {
    nccl = make_nccl_hub(memory, stop);
    group = make_nccl(world->split(0, world->rank(), "nccl"), nccl);
  } else {
    group = make_ipc(world->split(0, world->rank(), "ipc"), make_ipc_hub(memory, stop),
                     {.kernels = kind == "ipc"});
  }
  auto& api = cuda::api();
  api.set_wait_hook([&](std::chrono::nanoseconds waited) {
    if (nccl)
      check_nccl(*nccl, *group, "wait for the GPU", waited);
    else
      stop(*group, "wait for the GPU", waited);
  });
  DeviceBackend& backend = backend_of(device.kind);
  const Stream s = backend.create_stream(device);
  const Buffer memory_a(device, size_t{64} << 20), memory_b(device, size_t{64} << 20);
  const auto view = [&](const Buffer& b, int64_t n) {
    return Tensor{.data = b.data(), .dtype = DType::kF32, .shape = {n}, .device = device};
  };
  const int64_t n = operation.starts_with("small") ? 1000 : int64_t{16} << 20;
  const auto run = [&] {
    const std::vector<int64_t> counts(static_cast<size_t>(group->size()), n / group->size());
    if (operation.ends_with("all_reduce")) group->all_reduce(view(memory_a, n), ReduceOp::kSum, s);
    if (operation == "all_gather")
      group->all_gather(view(memory_a, counts[0]), view(memory_b, counts[0] * group->size()),
                        counts, s);
    if (operation == "recv") group->recv(view(memory_a, n), 1, s);
    backend.synchronize(s);
  };
  if (operation != "recv") run();  // the group works
  group->barrier();
  armed = true;
  if (group->rank() == 1) {
    raise(SIGKILL);
  }
  const auto begin = Clock::now();
  std::string seen = "nothing", again = "nothing";
  try {
    run();
    backend.synchronize(s);
  } catch (const Error& e) {
    seen = e.what();
  }
  const double took = std::chrono::duration<double>(Clock::now() - begin).count();
  try {
    if (nccl) group->barrier();
  } catch (const Error& e) {
    again = e.what();
  }
  std::printf("rank %d/%d left after %.1f s (%s): %s | then: %s\n", group->rank(), group->size(),
              took, seen != "nothing" && took < seconds + 5 ? "bounded" : "NOT BOUNDED",
              seen.c_str(), again.c_str());
  std::fflush(nullptr);
  mpi.abandon();
  _exit(seen == "nothing" ? 1 : 0);
}
