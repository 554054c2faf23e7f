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

/// Whether sums must have the bits of the sum in rank order (the default), or may be formed in any order.
void set_ordered_sums(bool ordered);

/// t[i] = v, of a host tensor; rounded to its type.
void set_element(const Tensor& t, int64_t i, double v);

/// All cases, each for a group of any size.
[[nodiscard]] const std::vector<Case>& conformance_cases();

}  // namespace r1::comm::test
