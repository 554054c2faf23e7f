#include "rank_main.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "conformance.h"

namespace r1::comm::test {
namespace {
// Longer than any wait under a sanitizer on a loaded machine; a hang is a failure, not a stuck job.
constexpr auto kTimeout = std::chrono::seconds(100);
}  // namespace

int rank_main(int& argc, char**& argv,
              const std::function<size_t(Communicator&, const StopCheck&)>& body) {
  MpiWorld mpi(&argc, &argv);
  const StopCheck stop = [](const Communicator& group, const char* operation,
                            std::chrono::nanoseconds waited) {
    if (waited > kTimeout)
      throw CommError("{} on {}: nothing for {} s", operation, group.name(), kTimeout.count());
  };
  const auto world = mpi.world(stop);
  try {
    const size_t passed = body(*world, stop);
    world->close();
    if (world->rank() == 0) std::printf("%zu cases passed on %d ranks\n", passed, world->size());
    return 0;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "rank %d of %d: %s\n", world->rank(), world->size(), e.what());
  }
  std::fflush(nullptr);
  _exit(1);  // without MPI_Finalize
}

size_t run_conformance(Communicator& c, std::span<const std::string> names) {
  size_t count = 0;
  for (const Case& test : conformance_cases()) {
    if (!names.empty() && std::find(names.begin(), names.end(), test.name) == names.end()) continue;
    try {
      test.run(c);
    } catch (const std::exception& e) {
      throw std::runtime_error(fmt::format("{}: {}", test.name, e.what()));
    }
    ++count;
  }
  if (count < names.size()) throw UsageError("{} of {} cases exist", count, names.size());
  return count;
}

}  // namespace r1::comm::test
