// One rank fails while the others are in an operation: the ranks' part of the fault tests.
#pragma once

#include <functional>
#include <string>

#include "comm/communicator.h"

namespace r1::comm::test {

/// The group under test, over the world; empty: the world itself.
using MakeGroup =
    std::function<std::unique_ptr<Communicator>(Communicator& world, const StopCheck& stop)>;

/// Rank 1 fails as `fault` says while the others call `operation`: "killed", "stuck" (stays away),
/// "left" (exits), "size" (sends another size than is expected). Each of the others must leave the
/// wait, by its StopCheck after 300 ms or earlier, print one line of what it saw, and leave the
/// process without blocking.
int fault_main(int& argc, char**& argv, const std::string& fault, const std::string& operation,
               const MakeGroup& make);

}  // namespace r1::comm::test
