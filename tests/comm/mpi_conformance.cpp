// The conformance suite over MPI.
//   mpi_conformance            all cases
//   mpi_conformance CASE...    these
//   mpi_conformance --huge     one message beyond 2^31 bytes, two ranks
#include <cstdlib>
#include <string>
#include <vector>

#include "rank_main.h"

namespace {

using namespace r1;
using namespace r1::comm;

void huge_message(Communicator& c) {
  constexpr int64_t kBytes = (int64_t{1} << 31) + 4099;
  R1_CHECK(c.size() == 2, "--huge is for two ranks, not {}", c.size());
  const std::unique_ptr<char, decltype(&std::free)> memory(static_cast<char*>(std::malloc(kBytes)),
                                                           &std::free);
  R1_CHECK(memory != nullptr, "no memory for {} bytes", kBytes);
  const Tensor x{.data = memory.get(), .dtype = DType::kU8, .shape = {kBytes}, .device = {}};
  const auto value = [](int64_t i) { return static_cast<char>(i * 2654435761 >> 7); };
  if (c.rank() == 0) {
    for (int64_t i = 0; i < kBytes; ++i) memory.get()[i] = value(i);
    c.send(x, 1, {});
  } else {
    c.recv(x, 0, {});
    for (int64_t i = 0; i < kBytes; ++i)
      R1_CHECK(memory.get()[i] == value(i), "byte {} is {}", i, int{memory.get()[i]});
  }
}

}  // namespace

int main(int argc, char** argv) {
  return test::rank_main(argc, argv, [&](Communicator& world, const StopCheck&) -> size_t {
    const std::vector<std::string> names(argv + 1, argv + argc);
    if (names != std::vector<std::string>{"--huge"}) return test::run_conformance(world, names);
    huge_message(world);
    return 1;
  });
}
