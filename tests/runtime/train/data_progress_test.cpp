#include "runtime/train/data_progress.h"

#include <gtest/gtest.h>

namespace r1::train {
namespace {

TEST(DataProgressLine, SpeaksAtAPaceForPeople) {
  using std::chrono::milliseconds;
  DataProgressLine line;
  const auto start = DataProgressLine::Clock::now();
  data::DataProgress p{.path = "a.jsonl", .bytes_done = 25, .bytes_total = 100, .samples = 10, .tokens = 2000, .bad_rows = 1};
  std::vector<std::string> shown;
  for (int i = 0; i < 40; ++i)  // ten seconds of reports
    if (auto text = line.next(p, start + milliseconds(250 * i)); !text.empty()) shown.push_back(std::move(text));
  ASSERT_EQ(shown.size(), 2u) << "after 2 s and after 7 s";
  EXPECT_EQ(shown[0].find("data       a.jsonl: 25 % of 100"), 0u) << shown[0];
  EXPECT_NE(shown[0].find("10 samples"), std::string::npos) << shown[0];
  EXPECT_NE(shown[0].find("1 bad row"), std::string::npos) << shown[0];
  EXPECT_NE(shown[0].find("to go"), std::string::npos) << shown[0];
  // Another file starts anew; who only waits says so, and seldom.
  p.path = "b.jsonl";
  p.waiting = true;
  EXPECT_EQ(line.next(p, start), "");
  EXPECT_NE(line.next(p, start + milliseconds(2500)).find("another process"), std::string::npos);
  EXPECT_EQ(line.next(p, start + milliseconds(20000)), "");
}

}  // namespace
}  // namespace r1::train
