// The rows behind options.h. Only options.cpp and option_table.cpp include this.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "runtime/core/options.h"

namespace r1::options {

/// Bits for Option::commands, in the order of subcommands().
enum Command : uint32_t {
  kTrain = 1u << 0,
  kEval = 1u << 1,
  kGenerate = 1u << 2,
  kTokenize = 1u << 3,
  kVerify = 1u << 4,
  kPlan = 1u << 5,
  kTopo = 1u << 6,
  kProbe = 1u << 7,
  kDoctor = 1u << 8,
  kSbatch = 1u << 9,
  kMpijob = 1u << 10,
  kBench = 1u << 11,
  kEveryCommand = (1u << 12) - 1,
  // What describes a training job is understood wherever one is run, planned or submitted.
  kJob = kTrain | kPlan | kSbatch | kMpijob,
  kOnRanks = kTrain | kEval | kGenerate | kVerify | kBench,
};

enum class Group : uint8_t {
  kGeneral,
  kData,
  kLayout,
  kOptimisation,
  kOutput,
  kMachine,
  kLaunch,
  kPlanning,
  kVerification,
  kGeneration,
  kTokenize,
  kBatch,
};
/// In the order of the help.
inline constexpr std::pair<Group, std::string_view> kGroups[] = {
    {Group::kData, "Model and data"},
    {Group::kLayout, "Layout"},
    {Group::kOptimisation, "Optimisation"},
    {Group::kOutput, "Output, checkpoints and evaluation"},
    {Group::kPlanning, "Planning"},
    {Group::kVerification, "Verification"},
    {Group::kGeneration, "Generation"},
    {Group::kTokenize, "Text"},
    {Group::kMachine, "Machine and numerics"},
    {Group::kLaunch, "Launch and faults"},
    {Group::kBatch, "Batch system"},
    {Group::kGeneral, "General"},
};

using Field =
    std::variant<std::string JobConfig::*, std::vector<std::string> JobConfig::*, int JobConfig::*,
                 int64_t JobConfig::*, uint64_t JobConfig::*, double JobConfig::*,
                 bool JobConfig::*, std::optional<double> JobConfig::*,
                 std::optional<int64_t> JobConfig::*, std::vector<int64_t> JobConfig::*>;

/// Numbers: least <= x <= most; `open` leaves the bound itself out.
struct Range {
  double least = -std::numeric_limits<double>::infinity();
  double most = std::numeric_limits<double>::infinity();
  bool open_least = false, open_most = false;
};
enum class Form : uint8_t {
  kPlain,     ///< the field's type says it all; a vector of strings repeats the option
  kDuration,  ///< seconds in a double
  kCommas,    ///< a vector written with commas
};

/// One row: an option of one or more subcommands. A name may have several rows when subcommands
/// differ in what they allow.
struct Option {
  std::string_view name;
  Field field{};
  std::string_view fallback{};  ///< the default, as it would be typed; "" = not given
  std::string_view unset{};     ///< what not given means, for the help
  std::string_view bare{};      ///< what the option means without a value, where it may stand without: --name, --name value or --name=value
  Form form = Form::kPlain;
  Range range{};
  std::vector<std::string_view>
      choices{};  ///< text: all that is allowed; numbers: the one word that stands for 0
  /// Says what is allowed when the text is not; "" when it is.
  std::string (*check)(const std::string& text) = nullptr;
  std::string_view metavar{};
  std::string_view help{};
  Group group = Group::kGeneral;
  uint32_t commands = 0;
  /// Has its place and its default, but nothing acts on it: left out of the help, and refused when
  /// given.
  bool planned = false;
};

[[nodiscard]] const std::vector<Option>& table();

/// What other programs call an option, and its name here: for did-you-mean.
[[nodiscard]] std::span<const std::pair<std::string_view, std::string_view>> other_names();

}  // namespace r1::options
