// What every Communicator must do, as a list of cases that all ranks of a group run together. A
// case throws on the rank that saw something wrong.
#pragma once

#include <vector>

#include "comm/communicator.h"

namespace r1::comm::test {

struct Case {
  const char* name;
  void (*run)(Communicator& c);
};

/// All cases, each for a group of any size.
[[nodiscard]] const std::vector<Case>& conformance_cases();

}  // namespace r1::comm::test
