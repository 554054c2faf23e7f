// What a job may differ in from the checkpoint it goes on from.
#include "runtime/train/resume_check.h"

#include <gtest/gtest.h>

#include "runtime/core/error.h"

namespace r1::train {
namespace {

std::map<std::string, std::string> fingerprints_of(const std::vector<std::string>& args, JobIdentity identity) {
  return job_fingerprints(parse_options("train", args), identity);
}

const std::vector<std::string> kArgs{"--steps", "10", "--lr", "1e-4"};
JobIdentity identity() {
  return {.model = "m", .tokenizer = "t", .sources = {data::SourceStats{.content = 1}}, .seq_len = 128, .total_steps = 10};
}

TEST(ResumeCheck, EachDifferenceIsNamedAndExcusedAlone) {
  const auto saved = fingerprints_of(kArgs, identity());
  const auto with = [&](std::vector<std::string> more) {
    std::vector<std::string> args = kArgs;
    args.insert(args.end(), more.begin(), more.end());
    return fingerprints_of(args, identity());
  };
  JobIdentity other_model = identity(), other_tokenizer = identity(), other_data = identity(), other_length = identity();
  other_model.model = "n";
  other_tokenizer.tokenizer = "u";
  other_data.sources[0].content = 2;
  other_length.seq_len = 256;
  const std::vector<std::pair<std::string, std::map<std::string, std::string>>> table{
      {"model", fingerprints_of(kArgs, other_model)},
      {"tokenizer", fingerprints_of(kArgs, other_tokenizer)},
      {"data", fingerprints_of(kArgs, other_data)},
      {"seq-len", fingerprints_of(kArgs, other_length)},
      {"batch", with({"--batch", "16"})},
      {"seed", with({"--seed", "2"})},
      {"no-pack", with({"--no-pack"})},
      {"no-shuffle", with({"--no-shuffle"})},
      {"train-on-prompt", with({"--train-on-prompt"})},
      {"think-history", with({"--think-history", "all"})},
      {"parse-special", with({"--parse-special"})},
      {"too-long", with({"--too-long", "drop"})},
      {"lr", with({"--lr", "2e-4"})},
      {"warmup-steps", with({"--warmup-steps", "2"})},
      {"beta1", with({"--beta1", "0.8"})},
      {"beta2", with({"--beta2", "0.9"})},
      {"eps", with({"--eps", "1e-6"})},
      {"weight-decay", with({"--weight-decay", "0.1"})},
      {"no-decay", with({"--no-decay", "norm"})},
      {"clip", with({"--clip", "0"})},
      {"state-dtype", with({"--state-dtype", "bf16"})},
  };
  for (const auto& [name, now] : table) {
    SCOPED_TRACE(name);
    try {
      check_resume("out/step-000005", saved, now, {});
      ADD_FAILURE() << "not refused";
    } catch (const UsageError& e) {
      const std::string text = e.what();
      EXPECT_NE(text.find("--resume-allow " + name + ";"), std::string::npos) << text;
      EXPECT_NE(text.find("out/step-000005"), std::string::npos) << text;
    }
    std::vector<std::string> others;
    for (const std::string& n : resume_names())
      if (n != name) others.push_back(n);
    EXPECT_THROW(check_resume("c", saved, now, others), UsageError) << "excused by another's name";
    const auto excused = check_resume("c", saved, now, {name});
    ASSERT_EQ(excused.size(), 1u);
    EXPECT_EQ(excused[0].name, name);
    // Every name that is told is one that the option takes.
    EXPECT_NO_THROW(parse_options("train", std::vector<std::string>{"--steps", "1", "--resume-allow", name}));
  }
}

TEST(ResumeCheck, LayoutScheduleAndMicroBatchAreFree) {
  const auto saved = fingerprints_of(kArgs, identity());
  std::vector<std::string> args = kArgs;
  for (const char* a : {"--pp", "2", "--tp", "4", "--dp", "2", "--schedule", "gpipe", "--micro-batch", "2", "--recompute", "full",
                        "--save-every", "3", "--output", "x", "--threads", "3"})
    args.emplace_back(a);
  EXPECT_TRUE(check_resume("c", saved, fingerprints_of(args, identity()), {}).empty());
}

TEST(ResumeCheck, TheNumberOfStepsCountsWhereTheRateDependsOnIt) {
  JobIdentity longer = identity();
  longer.total_steps = 20;
  EXPECT_TRUE(check_resume("c", fingerprints_of(kArgs, identity()), fingerprints_of(kArgs, longer), {}).empty());
  std::vector<std::string> cosine = kArgs;
  cosine.insert(cosine.end(), {"--lr-schedule", "cosine"});
  EXPECT_THROW(check_resume("c", fingerprints_of(cosine, identity()), fingerprints_of(cosine, longer), {}), UsageError);
}

TEST(ResumeCheck, SeveralDifferencesAreToldTogether) {
  const auto saved = fingerprints_of(kArgs, identity());
  std::vector<std::string> args = kArgs;
  args.insert(args.end(), {"--lr", "3e-4", "--batch", "64"});
  args.erase(args.begin() + 2, args.begin() + 4);
  try {
    check_resume("c", saved, fingerprints_of(args, identity()), {});
    ADD_FAILURE();
  } catch (const UsageError& e) {
    const std::string text = e.what();
    EXPECT_NE(text.find("--lr: 0.0001 in the checkpoint, 0.0003 now"), std::string::npos) << text;
    EXPECT_NE(text.find("--resume-allow batch,lr"), std::string::npos) << text;
  }
}

TEST(ResumeCheck, WhatAnOldCheckpointDoesNotKnowIsNotCompared) {
  EXPECT_TRUE(differences({{"model", "m"}}, {{"model", "m"}, {"lr", "1"}}).empty());
}

}  // namespace
}  // namespace r1::train
