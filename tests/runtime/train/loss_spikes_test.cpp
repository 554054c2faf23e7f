#include "runtime/train/loss_spikes.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace r1::train {
namespace {

TEST(LossSpikes, ALossThatStandsOutIsSeen) {
  LossSpikes spikes(6);
  for (int i = 0; i < 40; ++i) EXPECT_FALSE(spikes.add(3.0 - 0.02 * i + 0.05 * (i % 3))) << i << ": a falling, noisy loss";
  const auto spike = spikes.add(6.0);
  ASSERT_TRUE(spike);
  EXPECT_NEAR(spike->mean, 2.65, 0.1);
  EXPECT_FALSE(spikes.add(2.3)) << "and the next one is ordinary again";
}

TEST(LossSpikes, NotBeforeThereIsAHistoryAndNotOnAPlateau) {
  LossSpikes early(6);
  EXPECT_FALSE(early.add(1.0));
  EXPECT_FALSE(early.add(100.0)) << "nothing to compare with";
  LossSpikes flat(6);
  for (int i = 0; i < 30; ++i) EXPECT_FALSE(flat.add(2.0));
  EXPECT_FALSE(flat.add(2.05));
  EXPECT_TRUE(flat.add(2.5));
}

TEST(LossSpikes, WhatIsNotFiniteAndZeroSigmas) {
  LossSpikes spikes(6), off(0);
  for (int i = 0; i < 30; ++i) {
    EXPECT_FALSE(spikes.add(std::nan("")));
    EXPECT_FALSE(off.add(1.0));
  }
  EXPECT_FALSE(spikes.add(std::numeric_limits<double>::infinity()));
  EXPECT_FALSE(spikes.add(50.0)) << "the history is empty";
  EXPECT_FALSE(off.add(1e9));
}

TEST(LossSpikes, OldStepsAreForgotten) {
  LossSpikes spikes(6, 20);
  for (int i = 0; i < 30; ++i) EXPECT_FALSE(spikes.add(1.0));
  EXPECT_TRUE(spikes.add(5.0));
  for (int i = 0; i < 25; ++i) static_cast<void>(spikes.add(5.0));
  EXPECT_FALSE(spikes.add(5.0)) << "a new level is no spike for ever";
}

}  // namespace
}  // namespace r1::train
