// The conformance suite on the backends that live in one process.
#include <gtest/gtest.h>

#include "comm/local/local.h"
#include "conformance.h"

namespace r1::comm::test {
namespace {

TEST(SelfConformance, AllCases) {
  for (const Case& c : conformance_cases()) {
    SCOPED_TRACE(c.name);
    const auto self = make_self();
    try {
      c.run(*self);
    } catch (const std::exception& e) {
      ADD_FAILURE() << e.what();
    }
    self->close();
  }
}

class LocalConformance : public testing::TestWithParam<std::tuple<int, size_t>> {};

TEST_P(LocalConformance, Case) {
  const auto [ranks, index] = GetParam();
  const Case& c = conformance_cases()[index];
  try {
    run_ranks(ranks, [&](Communicator& comm) {
      c.run(comm);
      comm.close();
    });
  } catch (const std::exception& e) {
    ADD_FAILURE() << e.what();
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, LocalConformance,
                         testing::Combine(testing::Values(1, 2, 3, 4, 8),
                                          testing::Range(size_t{0}, conformance_cases().size())),
                         [](const auto& p) {
                           return std::string(conformance_cases()[std::get<1>(p.param)].name) +
                                  "_" + std::to_string(std::get<0>(p.param));
                         });

}  // namespace
}  // namespace r1::comm::test
