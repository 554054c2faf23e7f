// The conformance suite over MPI. Run by mpirun; exits 0 when every rank passed every case. A rank
// that fails says so and leaves, and mpirun ends the others.
//   mpi_conformance            all cases
//   mpi_conformance --huge     one message beyond 2^31 bytes and an all-reduce beyond one segment,
//   two ranks
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "conformance.h"

namespace {

using namespace r1;
using namespace r1::comm;

// Longer than any wait under a sanitizer on a loaded machine; a hang is a failure, not a stuck job.
constexpr auto kTimeout = std::chrono::seconds(100);

void huge_messages(Communicator& c) {
  constexpr int64_t kBytes = (int64_t{1} << 31) + 4099;
  R1_CHECK(c.size() == 2, "--huge is for two ranks, not {}", c.size());
  std::unique_ptr<char, decltype(&std::free)> memory(static_cast<char*>(std::malloc(kBytes)),
                                                     &std::free);
  R1_CHECK(memory != nullptr, "no memory for {} bytes", kBytes);
  const Tensor x{.data = memory.get(), .dtype = DType::kU8, .shape = {kBytes}, .device = {}};
  const auto value = [](int64_t i) { return static_cast<char>(i * 2654435761 >> 7); };
  if (c.rank() == 0) {
    for (int64_t i = 0; i < kBytes; ++i) memory.get()[i] = value(i);
    c.send(x, 1, {});
  } else {
    std::memset(memory.get(), 0, kBytes);
    c.recv(x, 0, {});
    for (int64_t i = 0; i < kBytes; ++i)
      R1_CHECK(memory.get()[i] == value(i), "byte {} is {}", i, int{memory.get()[i]});
  }
}

}  // namespace

int main(int argc, char** argv) {
  MpiWorld mpi(&argc, &argv);
  const auto world = mpi.world(
      [](const Communicator& group, const char* operation, std::chrono::nanoseconds waited) {
        if (waited > kTimeout)
          throw CommError("{} on {}: nothing for {} s", operation, group.name(), kTimeout.count());
      });
  const char* now = "start";
  try {
    size_t passed = 0;
    if (argc > 1 && std::strcmp(argv[1], "--huge") == 0) {
      huge_messages(*world);
      passed = 1;
    } else {
      for (const test::Case& c : test::conformance_cases()) {
        now = c.name;
        c.run(*world);
        ++passed;
      }
    }
    world->close();
    if (world->rank() == 0) std::printf("%zu cases passed on %d ranks\n", passed, world->size());
    return 0;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "rank %d of %d: %s: %s\n", world->rank(), world->size(), now, e.what());
  }
  mpi.abandon();
  std::fflush(nullptr);
  _exit(1);  // without MPI_Finalize and without waiting for anybody
}
