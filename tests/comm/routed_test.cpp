// Groups of a job over the backend of their choice: the routing itself, on threads and CPU tensors.
#include "comm/routed/routed.h"

#include <gtest/gtest.h>

#include <string>
#include <typeinfo>

#include "comm/local/local.h"
#include "conformance.h"

namespace r1::comm {
namespace {

TEST(Router, CpuGroupsStayOnTheHostCommunicatorByDefault) {
  run_ranks(4, [](Communicator& world) {
    Router router(world, CommChoice::kAuto, {}, {});
    const auto pair = router.world().split(world.rank() / 2, 0, "tp");
    R1_CHECK(router.groups().size() == 1 && describe(router.groups()[0].route) == "mpi",
             "{} groups", router.groups().size());
    R1_CHECK(pair->size() == 2 && pair->name() == router.groups()[0].name, "{}", pair->name());
    const auto alone = router.world().split(world.rank(), 0, "alone");
    R1_CHECK(router.groups().size() == 1, "a group of one is listed");
    // Whatever carries the world: a GPU's tensors must not be staged to be copied.
    const auto self = make_self();
    const Communicator &one = *alone, &other = *self;
    R1_CHECK(typeid(one) == typeid(other) && one.name() == fmt::format("alone[{}]", world.rank()), "{}", one.name());
    alone->close();
    pair->close();
  });
}

// The whole suite through a routed group, whose splits are routed again.
TEST(Router, IpcGroupsPassTheSuite) {
  run_ranks(3, [](Communicator& world) {
    Router router(world, CommChoice::kIpc, {}, {});
    const auto all = router.world().split(0, world.rank(), "dp");
    R1_CHECK(describe(router.groups()[0].route) == "ipc", "{}", describe(router.groups()[0].route));
    for (const test::Case& c : test::conformance_cases()) {
      try {
        c.run(*all);
      } catch (const std::exception& e) {
        throw std::runtime_error(std::string(c.name) + ": " + e.what());
      }
    }
    all->close();
  });
}

TEST(Router, RefusesNcclOnCpus) {
  run_ranks(2, [](Communicator& world) {
    Router router(world, CommChoice::kNccl, {}, {});
    try {
      (void)router.world().split(0, 0, "tp");
      R1_CHECK(false, "accepted");
    } catch (const UsageError& e) {
      R1_CHECK(std::string(e.what()).find("tp[0,1] is on CPUs") != std::string::npos, "{}",
               e.what());
    }
  });
}

}  // namespace
}  // namespace r1::comm
