#include "runtime/core/human.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace r1 {
namespace {

TEST(Human, Bytes) {
  EXPECT_EQ(human_bytes(0), "0 B");
  EXPECT_EQ(human_bytes(1023), "1023 B");
  EXPECT_EQ(human_bytes(1024), "1.00 KiB");
  EXPECT_EQ(human_bytes(1.5 * (1u << 30)), "1.50 GiB");
  EXPECT_EQ(human_bytes(-2048), "-2.00 KiB");
  EXPECT_EQ(human_bytes(1048575), "1.00 MiB");  // not "1024 KiB"
  EXPECT_EQ(human_bytes(140.0 * (1u << 30)), "140 GiB");
  EXPECT_EQ(human_bytes(std::numeric_limits<double>::quiet_NaN()), "?");
  EXPECT_EQ(human_bytes(std::ldexp(1.0, 70)), "1024 EiB");
}

TEST(Human, Duration) {
  EXPECT_EQ(human_duration(0), "0 s");
  EXPECT_EQ(human_duration(85e-6), "85.0 us");
  EXPECT_EQ(human_duration(0.0123), "12.3 ms");
  EXPECT_EQ(human_duration(0.9999), "1.00 s");
  EXPECT_EQ(human_duration(4.2), "4.20 s");
  EXPECT_EQ(human_duration(59.999), "1 min 00 s");
  EXPECT_EQ(human_duration(65), "1 min 05 s");
  EXPECT_EQ(human_duration(3599.7), "1 h 00 min");
  EXPECT_EQ(human_duration(2 * 3600 + 3 * 60), "2 h 03 min");
  EXPECT_EQ(human_duration(86399), "1 d 00 h");
  EXPECT_EQ(human_duration(3 * 86400 + 4 * 3600), "3 d 04 h");
  EXPECT_EQ(human_duration(-5), "-5.00 s");
  EXPECT_EQ(human_duration(std::numeric_limits<double>::infinity()), "?");
  EXPECT_EQ(human_duration(1e300), "?");
}

TEST(Human, Si) {
  EXPECT_EQ(human_si(0, "B/s"), "0 B/s");
  EXPECT_EQ(human_si(999, "tok/s"), "999 tok/s");
  EXPECT_EQ(human_si(12345, "tok/s"), "12.3 ktok/s");
  EXPECT_EQ(human_si(4.56e9, ""), "4.56 G");
  EXPECT_EQ(human_si(989.4e12, "FLOP/s"), "989 TFLOP/s");
  EXPECT_EQ(human_si(999999, ""), "1.00 M");
  EXPECT_EQ(human_si(0.5, ""), "0.500");
  EXPECT_EQ(human_si(0.0123, "s"), "12.3 ms");
  EXPECT_EQ(human_si(3e-6, "s"), "3.00 us");
  EXPECT_EQ(human_si(-1500, "B"), "-1.50 kB");
}

TEST(Human, Count) {
  EXPECT_EQ(human_count(0), "0");
  EXPECT_EQ(human_count(999), "999");
  EXPECT_EQ(human_count(1000), "1,000");
  EXPECT_EQ(human_count(-1234567), "-1,234,567");
  EXPECT_EQ(human_count(std::numeric_limits<int64_t>::min()), "-9,223,372,036,854,775,808");
}

}  // namespace
}  // namespace r1
