// The words that --format allows are checked before the data library is asked: they must be its
// names.
#include <gtest/gtest.h>

#include <algorithm>

#include "runtime/core/option_table.h"
#include "runtime/data/dataset.h"

namespace r1::data {
namespace {

TEST(OptionWords, FormatsAreThoseOfTheLibrary) {
  int rows = 0;
  for (const auto& o : options::table()) {
    if (o.name != "format") continue;
    ++rows;
    EXPECT_TRUE(std::ranges::equal(o.choices, format_names()));
  }
  EXPECT_GE(rows, 1);
}

}  // namespace
}  // namespace r1::data
