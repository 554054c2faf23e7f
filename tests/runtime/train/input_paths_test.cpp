// Inputs that are not there: the option, the path and what was expected, as a mistake in the command line.
#include "runtime/train/input_paths.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "runtime/core/error.h"
#include "tests/support/temp_dir.h"

namespace r1::train {
namespace {

using testing::HasSubstr;

std::string refused(const std::string& command, const std::vector<std::string>& args) {
  try {
    check_input_paths(parse_options(command, args));
  } catch (const UsageError& e) {
    return e.what();
  }
  return "accepted";
}

TEST(InputPaths, EachIsNamedWithItsOption) {
  const test::TempDir dir;
  const std::string there = (dir.path() / "there").string(), gone = (dir.path() / "gone").string();
  std::ofstream(there) << "x";
  struct Case {
    std::string command;
    std::vector<std::string> args;
    std::string option;
  };
  const Case cases[] = {
      {"generate", {"--model", gone}, "--model"},
      {"train", {"--model", there, "--data", gone}, "--data"},
      {"train", {"--model", there, "--data", there, "--data", gone + ":2"}, "--data"},
      {"train", {"--model", there, "--data", there, "--eval-data", gone}, "--eval-data"},
      {"train", {"--resume", gone}, "--resume"},
      {"verify", {"--model", there, "--reference", gone}, "--reference"},
      {"verify", {"--checkpoint", gone}, "--checkpoint"},
      {"tokenize", {"--model", gone}, "--model"},
  };
  for (const Case& c : cases) {
    const std::string said = refused(c.command, c.args);
    if (c.args.back().ends_with(":2")) {
      EXPECT_THAT(said, HasSubstr(c.option + " " + gone)) << c.command;
    } else {
      EXPECT_THAT(said, HasSubstr(c.option + " " + gone + ": No such file or directory; expected a")) << c.command;
    }
  }
  EXPECT_EQ(refused("train", {"--model", there, "--data", there + ":0.5", "--resume", "auto"}), "accepted");
  EXPECT_EQ(refused("train", {}), "accepted");
}

// A name that `plan` knows is no directory: what it is for, and what is needed instead.
TEST(InputPaths, NamesOfTheCatalogueAreForPlans) {
  EXPECT_THAT(refused("generate", {"--model", "R1-Distill-Qwen-7B"}), HasSubstr("are for `r1run plan`"));
}

}  // namespace
}  // namespace r1::train
