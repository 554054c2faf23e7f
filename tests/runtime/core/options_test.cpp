#include "runtime/core/options.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <set>

#include "runtime/core/error.h"
#include "runtime/core/option_table.h"

namespace r1 {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;
using Args = std::vector<std::string>;

JobConfig parse(std::string_view command, const Args& args) { return parse_options(command, args); }

template <class F>
std::string usage_error(F&& f) {
  try {
    (void)f();
  } catch (const UsageError& e) {
    EXPECT_EQ(e.code(), ExitCode::kUsage);
    return e.what();
  }
  ADD_FAILURE() << "no UsageError";
  return "";
}
std::string refused(std::string_view command, const Args& args) {
  return usage_error([&] { return parse(command, args); });
}

/// A file that is gone after the test.
class Ini {
 public:
  explicit Ini(std::string_view text) {
    static int count = 0;
    path_ = std::filesystem::temp_directory_path() /
            fmt::format("r1_options_{}_{}.ini", getpid(), count++);
    std::ofstream(path_, std::ios::binary) << text;
  }
  ~Ini() { std::filesystem::remove(path_); }
  Ini(const Ini&) = delete;
  Ini& operator=(const Ini&) = delete;
  [[nodiscard]] std::string str() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};
JobConfig parse_ini(std::string_view text, Args flags = {}, std::string_view command = "train") {
  const Ini ini(text);
  flags.insert(flags.begin(), {"--config", ini.str()});
  return parse(command, flags);
}
std::string refused_ini(std::string_view text, std::string_view command = "train") {
  return usage_error([&] { return parse_ini(text, {}, command); });
}

// ---- the command line as a whole

TEST(Command, TrainIsTheDefault) {
  const auto call = split_command(Args{"--pp", "2", "--tp", "4"});
  EXPECT_EQ(call.command, "train");
  EXPECT_THAT(call.args, ElementsAre("--pp", "2", "--tp", "4"));
  EXPECT_EQ(split_command(Args{}).command, "train");
  const auto cfg = parse(call.command, call.args);
  EXPECT_EQ(cfg.pp, 2);
  EXPECT_EQ(cfg.tp, 4);
  EXPECT_EQ(cfg.dp, 1);
}

TEST(Command, NamedHelpAndVersion) {
  const auto call = split_command(Args{"verify", "--model", "m"});
  EXPECT_EQ(call.command, "verify");
  EXPECT_THAT(call.args, ElementsAre("--model", "m"));
  for (const char* word : {"--help", "-h", "help"})
    EXPECT_TRUE(split_command(Args{word}).help) << word;
  EXPECT_TRUE(split_command(Args{"--version"}).version);
  const auto help = split_command(Args{"help", "verify"});
  EXPECT_EQ(help.command, "verify");
  EXPECT_TRUE(parse(help.command, help.args).help);
  // A subcommand's name as the value of an option is no subcommand.
  EXPECT_EQ(split_command(Args{"--model", "verify"}).command, "train");
}

TEST(Command, UnknownSubcommand) {
  EXPECT_THAT(usage_error([] { return split_command(Args{"trian"}); }),
              AllOf(HasSubstr("\"trian\""), HasSubstr("Did you mean train?"), HasSubstr("verify")));
  EXPECT_THAT(usage_error([] { return split_command(Args{"fly"}); }),
              Not(HasSubstr("Did you mean")));
  EXPECT_THAT(usage_error([] {
                return split_command(Args{"help", "verfiy"});
              }),
              HasSubstr("verify?"));
}

// ---- the table

TEST(OptionTable, EverySubcommandParsesItsDefaultsAndPrintsThem) {
  for (const auto& c : subcommands()) {
    SCOPED_TRACE(c.name);
    const auto cfg = parse(c.name, {});
    EXPECT_EQ(cfg.command, c.name);
    for (const auto& o : options::table()) EXPECT_FALSE(cfg.is_set(o.name)) << o.name;
    if (!c.positional.empty()) {
      EXPECT_THAT(options_help(c.name), HasSubstr(fmt::format("--{}", c.positional)));
    }
  }
}

TEST(OptionTable, RowsAreWhole) {
  std::set<std::pair<std::string_view, uint32_t>> seen;
  for (const auto& o : options::table()) {
    SCOPED_TRACE(o.name);
    EXPECT_FALSE(o.help.empty());
    EXPECT_NE(o.commands, 0u);
    EXPECT_EQ(o.name.find('_'), std::string_view::npos);
    EXPECT_EQ(o.metavar.empty(), std::holds_alternative<bool JobConfig::*>(o.field));
    for (size_t bit = 0; bit < subcommands().size(); ++bit) {
      if ((o.commands >> bit & 1u) != 0) {
        EXPECT_TRUE(seen.emplace(o.name, bit).second) << "two rows for one subcommand";
      }
    }
    EXPECT_EQ(o.commands >> subcommands().size(), 0u);
  }
}

TEST(OptionTable, HelpNamesEveryOptionWithItsDefaultAndChoices) {
  for (size_t bit = 0; bit < subcommands().size(); ++bit) {
    const auto help = options_help(subcommands()[bit].name);
    const auto markdown = options_markdown(subcommands()[bit].name);
    for (const auto& o : options::table()) {
      const bool in = (o.commands >> bit & 1u) != 0;
      if (!in) continue;
      if (o.planned) {
        EXPECT_THAT(help, Not(HasSubstr(fmt::format("  --{} ", o.name))));
        continue;
      }
      EXPECT_THAT(help, HasSubstr(fmt::format("  --{}", o.name)));
      EXPECT_THAT(markdown, HasSubstr(fmt::format("`--{}", o.name)));
      std::string flat;  // without the line breaks
      for (const char ch : help) {
        if (ch == '\n')
          flat += ' ';
        else if (ch != ' ' || flat.empty() || flat.back() != ' ')
          flat += ch;
      }
      for (const auto choice : o.choices) EXPECT_THAT(flat, HasSubstr(std::string(choice)));
      if (!o.fallback.empty() && o.metavar != "") {
        EXPECT_THAT(flat, HasSubstr(fmt::format("default: {}", o.fallback))) << o.name;
      }
    }
    for (size_t at = 0; at < help.size();) {
      const auto end = help.find('\n', at);
      EXPECT_LE(end - at, 100u) << help.substr(at, end - at);
      at = end + 1;
    }
  }
}

TEST(OptionTable, ProgramHelpNamesEverySubcommandThatIsThere) {
  for (const auto& c : subcommands()) {
    const auto line = fmt::format("  {:<10} {}\n", c.name, c.summary);
    EXPECT_EQ(program_help().find(line) != std::string::npos, !c.planned) << c.name;
  }
}

// The help names the codes of the enumeration and no others.
TEST(OptionTable, ProgramHelpNamesTheExitCodesThereAre) {
  const std::string help = program_help();
  const std::string codes = help.substr(help.find("Exit codes"));
  std::set<int> named;
  for (size_t i = 1; i + 1 < codes.size(); ++i) {
    if (std::isdigit(static_cast<unsigned char>(codes[i])) == 0 || codes[i - 1] != ' ') continue;
    named.insert(std::atoi(codes.c_str() + i));
  }
  EXPECT_EQ(named, (std::set<int>{0, 64, 65, 69, 70, 73, 75, 76}));
  EXPECT_EQ(static_cast<int>(ExitCode::kUnavailable), 69);
}

TEST(Options, OneFileForTopo) {
  EXPECT_THAT(refused("topo", {"a.xml", "b.xml"}),
              AllOf(HasSubstr("\"b.xml\" after \"a.xml\""), HasSubstr("takes one FILE"), HasSubstr("a.xml,b.xml")));
  EXPECT_EQ(parse("topo", {"a.xml,b.txt"}).input, "a.xml,b.txt");
}

TEST(OptionTable, WhatIsPlannedIsRefusedNotIgnored) {
  for (const auto& c : subcommands()) {
    if (!c.planned) continue;
    EXPECT_THAT(
        usage_error([&] { return split_command(Args{std::string(c.name)}); }),
        AllOf(HasSubstr(std::string(c.name)), HasSubstr("cannot do that yet"), HasSubstr("train")));
  }
  for (const auto& o : options::table()) {
    if (!o.planned) continue;
    SCOPED_TRACE(o.name);
    const std::string value(o.fallback.empty() ? "x" : o.fallback);
    for (size_t bit = 0; bit < subcommands().size(); ++bit) {
      if ((o.commands >> bit & 1u) == 0) continue;
      const auto command = subcommands()[bit].name;
      EXPECT_THAT(refused(command, {fmt::format("--{}={}", o.name, value)}),
                  AllOf(HasSubstr(fmt::format("--{}", o.name)), HasSubstr("yet")));
      EXPECT_THAT(refused_ini(fmt::format("{} = {}\n", o.name, value), command),
                  AllOf(HasSubstr(fmt::format(":1: --{}", o.name)), HasSubstr("yet")));
    }
  }
}

TEST(OptionTable, OtherNamesPointToRows) {
  for (const auto& [other, ours] : options::other_names()) {
    bool found = false;
    for (const auto& o : options::table()) {
      EXPECT_NE(o.name, other);
      found |= o.name == ours;
    }
    EXPECT_TRUE(found) << ours;
  }
}

TEST(OptionTable, TheOptionsOfTraining) {
  for (const char* name :
       {"model",      "data",           "format",      "output",  "pp",          "dp",
        "tp",         "steps",          "epochs",      "batch",   "micro-batch", "seq-len",
        "lr",         "warmup-steps",   "lr-schedule", "min-lr",  "beta1",       "beta2",
        "eps",        "weight-decay",   "no-decay",    "clip",    "seed",        "recompute",
        "schedule",   "virtual-stages", "save-every",  "resume",  "eval-data",   "eval-every",
        "no-shuffle", "no-pack",        "dtype",       "threads", "device",      "init",
        "config"}) {
    EXPECT_THAT(options_help("train"), HasSubstr(fmt::format("  --{}", name)));
  }
}

// ---- values

TEST(Options, EveryKindIsRead) {
  const auto cfg = parse("train", {"--model",
                                   "a b",
                                   "--data=x.jsonl:2",
                                   "--data",
                                   "y.jsonl",
                                   "--lr=3e-4",
                                   "--seed",
                                   "18446744073709551615",
                                   "--no-shuffle",
                                   "--no-pack=false",
                                   "--no-decay",
                                   "norm,embedding",
                                   "--seq-len",
                                   "auto",
                                   "--threads",
                                   "3",
                                   "--peer-timeout",
                                   "500ms",
                                   "--epochs",
                                   "0.5",
                                   "--init",
                                   "random:7",
                                   "--schedule",
                                   "gpipe",
                                   "-H",
                                   "a:2"});
  EXPECT_EQ(cfg.model, "a b");
  EXPECT_THAT(cfg.data, ElementsAre("x.jsonl:2", "y.jsonl"));
  EXPECT_EQ(cfg.lr, 3e-4);
  EXPECT_EQ(cfg.seed, std::numeric_limits<uint64_t>::max());
  EXPECT_TRUE(cfg.no_shuffle);
  EXPECT_FALSE(cfg.no_pack);
  EXPECT_TRUE(cfg.is_set("no-pack"));
  EXPECT_THAT(cfg.no_decay, ElementsAre("norm", "embedding"));
  EXPECT_EQ(cfg.seq_len, 0);
  EXPECT_EQ(cfg.threads, 3);
  EXPECT_EQ(cfg.peer_timeout, 0.5);
  EXPECT_EQ(cfg.epochs, 0.5);
  EXPECT_EQ(cfg.schedule, "gpipe");
  EXPECT_EQ(cfg.host, "a:2");
  EXPECT_FALSE(cfg.is_set("beta1"));
  EXPECT_EQ(cfg.beta1, 0.9);
  EXPECT_TRUE(parse("train", {"--no-decay", "none"}).no_decay.empty());
  EXPECT_THAT(parse("train", {}).no_decay, ElementsAre("norm", "bias"));
  EXPECT_EQ(parse("train", {"--peer-timeout", "1m"}).peer_timeout, 60);
  EXPECT_EQ(parse("train", {"--peer-timeout", "2"}).peer_timeout, 2);
  const auto gen = parse("generate", {"--prompt-ids", "1,2,3", "--top-k", "0"});
  EXPECT_THAT(gen.prompt_ids, ElementsAre(1, 2, 3));
  EXPECT_EQ(gen.top_k, 0);
  EXPECT_FALSE(gen.temperature.has_value());
  EXPECT_EQ(parse("topo", {"node.xml"}).input, "node.xml");
}

TEST(Options, ALaterFlagBeatsAnEarlierOne) {
  const JobConfig twice = parse("train", {"--lr", "1", "--pp", "2", "--lr", "2", "--pp", "2"});
  EXPECT_EQ(twice.lr, 2);
  // And says so, where the two differ.
  EXPECT_THAT(twice.warnings, ElementsAre("--lr 1 and --lr 2: given twice, the later one (2) counts"));
  EXPECT_THAT(parse("train", {"--data", "a", "--data", "b", "--no-shuffle", "--no-shuffle=false"}).warnings,
              ElementsAre(HasSubstr("--no-shuffle true and --no-shuffle false")));
}

TEST(Options, ValuesThatLookLikeOptions) {
  EXPECT_EQ(parse("generate", {"--prompt", "-1 + 1 ="}).prompt, "-1 + 1 =");
  EXPECT_EQ(parse("generate", {"--prompt=--model"}).prompt, "--model");
  EXPECT_EQ(parse("generate", {"--prompt", "a=b"}).prompt, "a=b");
}

TEST(Options, ImpossibleValuesAreRefusedWithWhatIsAllowed) {
  struct Case {
    Args args;
    std::vector<std::string> expected;
  };
  const Case cases[] = {
      {{"--pp", "0"}, {"--pp 0 (command line)", "too small", "from 1 to 4096"}},
      {{"--pp", "-2"}, {"--pp -2", "too small"}},
      {{"--pp", "2.5"}, {"--pp 2.5", "not a whole number"}},
      {{"--pp", "two"}, {"--pp two", "not a whole number"}},
      {{"--pp", "auto"}, {"--pp auto", "not a whole number"}},
      {{"--pp", "99999999999"}, {"too large"}},
      {{"--tp", "4x"}, {"--tp 4x"}},
      {{"--steps", "0"}, {"--steps 0", "too small", "of at least 1"}},
      {{"--steps", "1e3"}, {"not a whole number"}},
      {{"--seed", "-1"}, {"--seed -1", "a whole number of at least 0"}},
      {{"--lr", "fast"}, {"--lr fast", "not a number", "of at least 0"}},
      {{"--lr", "nan"}, {"--lr nan", "not finite"}},
      {{"--lr", "inf"}, {"--lr inf", "not finite"}},
      {{"--lr", "1e999"}, {"--lr 1e999"}},
      {{"--lr", "-1"}, {"--lr -1", "too small"}},
      {{"--beta1", "1"}, {"--beta1 1", "too large", "of at least 0 and below 1"}},
      {{"--eps", "0"}, {"--eps 0", "above 0"}},
      {{"--schedule", "1f1"},
       {"--schedule 1f1", "gpipe, 1f1b, interleaved, zb-h1", "Did you mean 1f1b?"}},
      {{"--schedule", "all"}, {"--schedule all", "not known"}},
      {{"--no-decay", "norm,biass"}, {"\"biass\" is not known", "norm, bias, embedding"}},
      {{"--no-decay", "norm,norm"}, {"norm twice"}},
      {{"--no-decay", "norm,"}, {"empty"}},
      {{"--init", "zeros"}, {"--init zeros", "random:SEED"}},
      {{"--init", "random:"}, {"random:SEED"}},
      {{"--peer-timeout", "2 parsecs"}, {"not a time", "500ms"}},
      {{"--peer-timeout", "0"}, {"too small"}},
      {{"--no-shuffle=maybe"}, {"--no-shuffle maybe", "true or false"}},
      {{"--model", ""}, {"--model", "empty"}},
      {{"--min-lr", "1", "--lr", "0.5"}, {"--min-lr 1", "--lr 0.5"}},
      {{"--virtual-stages", "2"},
       {"--virtual-stages 2", "interleaved", "--schedule 1f1b (default)"}},
      {{"--eval-every", "5"}, {"--eval-every 5", "--eval-data"}},
      {{"--init", "random:1"}, {"--model"}},
      {{"--steps", "5", "--epochs", "1"}, {"--steps 5", "--epochs 1", "one of them"}},
  };
  for (const auto& c : cases) {
    const auto text = refused("train", c.args);
    for (const auto& part : c.expected) EXPECT_THAT(text, HasSubstr(part));
  }
}

TEST(Options, UnknownOptionsAreRefusedWithTheNearest) {
  const auto near = [](const char* given, const char* meant) {
    EXPECT_THAT(refused("train", {given, "3"}),
                AllOf(HasSubstr(given), HasSubstr(fmt::format("Did you mean --{}?", meant))));
  };
  near("--step", "steps");
  near("--setps", "steps");
  near("--micro_batch", "micro-batch");
  near("--LR", "lr");
  near("--microbatch", "micro-batch");
  near("--learning-rate", "lr");
  near("--batch-size", "batch");
  near("--gradient_checkpointing", "recompute");
  near("-pp", "pp");
  near("-tp", "tp");
  near("--warmup", "warmup-steps");
  EXPECT_THAT(refused("train", {"--steps=3", "--sed=1"}),
              AllOf(HasSubstr("--sed:"), HasSubstr("--seed")));
  EXPECT_THAT(refused("train", {"--layouts", "1x1x1"}), HasSubstr("belongs to r1run verify"));
  EXPECT_THAT(refused("train", {"--xyzzy"}),
              AllOf(HasSubstr("--xyzzy"), Not(HasSubstr("Did you mean"))));
  EXPECT_THAT(refused("train", {"-z"}), HasSubstr("-z"));
  EXPECT_THAT(refused("train", {std::string(100000, 'x')}), HasSubstr("no argument"));
  EXPECT_THAT(refused("train", {"--" + std::string(100000, 'x')}), HasSubstr("no such option"));
}

TEST(Options, AbbreviationsAreNotGuessed) {
  EXPECT_THAT(refused("train", {"--micro", "2"}), HasSubstr("Did you mean --micro-batch?"));
}

TEST(Options, MissingValuesAndStrayArguments) {
  EXPECT_THAT(refused("train", {"--lr"}),
              AllOf(HasSubstr("--lr needs a value"), HasSubstr("a number")));
  EXPECT_THAT(refused("train", {"--lr", "--steps", "5"}),
              AllOf(HasSubstr("--lr needs a value"), HasSubstr("found --steps")));
  EXPECT_THAT(refused("train", {"--lr="}), HasSubstr("--lr"));
  EXPECT_THAT(refused("train", {"--data", "a", "b"}),
              AllOf(HasSubstr("\"b\""), HasSubstr("repeat it")));
  EXPECT_THAT(refused("train", {"--pp", "2", "generate"}), HasSubstr("r1run generate"));
  EXPECT_THAT(refused("train", {"out"}), HasSubstr("\"out\""));
  EXPECT_THAT(refused("train", {"--", "out"}), HasSubstr("\"out\""));
}

TEST(Options, HelpAsksForNothingElse) {
  EXPECT_TRUE(parse("train", {"--help"}).help);
  EXPECT_TRUE(parse("train", {"--pp", "0", "-h"}).help);
  EXPECT_FALSE(parse("train", {}).help);
}

TEST(Options, StepsOrEpochs) {
  EXPECT_EQ(parse("train", {}).epochs, 1);
  EXPECT_EQ(parse("train", {}).steps, 0);
  const auto cfg = parse("train", {"--steps", "5"});
  EXPECT_EQ(cfg.steps, 5);
  EXPECT_EQ(cfg.epochs, 0);
  // A flag beats the file between the two as well.
  EXPECT_EQ(parse_ini("epochs = 3\n", {"--steps", "5"}).epochs, 0);
  const auto other = parse_ini("steps = 3\n", {"--epochs", "5"});
  EXPECT_EQ(other.steps, 0);
  EXPECT_EQ(other.epochs, 5);
  EXPECT_THAT(refused_ini("epochs = 3\nsteps = 4\n"), HasSubstr("one of them"));
}

TEST(Options, InterleavedHasTwoVirtualStagesUnlessSaid) {
  const auto cfg = parse("train", {"--schedule", "interleaved"});
  EXPECT_EQ(cfg.virtual_stages, 2);
  EXPECT_EQ(cfg.origin("virtual-stages").kind, Origin::Kind::kDerived);
  EXPECT_EQ(parse("train", {"--schedule", "interleaved", "--virtual-stages", "3"}).virtual_stages,
            3);
}

// ---- files

TEST(OptionsFile, FlagsBeatTheFileWhichBeatsDefaults) {
  const auto cfg = parse_ini(
      "lr = 2e-5\nsteps=7\n# a comment\n\n  batch = 16   # rows\ndata = a\ndata = b\nno-shuffle = "
      "true\n",
      {"--lr", "3e-5", "--data", "c"});
  EXPECT_EQ(cfg.lr, 3e-5);
  EXPECT_EQ(cfg.steps, 7);
  EXPECT_EQ(cfg.batch, 16);
  EXPECT_TRUE(cfg.no_shuffle);
  EXPECT_THAT(cfg.data, ElementsAre("c"));
  EXPECT_EQ(cfg.origin("lr").str(), "command line");
  EXPECT_THAT(cfg.origin("batch").str(), testing::EndsWith(".ini:5"));
  EXPECT_EQ(cfg.origin("clip").str(), "default");
  EXPECT_THAT(parse_ini("data = a\ndata = b\n").data, ElementsAre("a", "b"));
  EXPECT_FALSE(parse_ini("no-shuffle = true\n", {"--no-shuffle=false"}).no_shuffle);
}

TEST(OptionsFile, ALaterFileBeatsAnEarlierOne) {
  const Ini one("lr = 1\nbatch = 4\ndata = a\ndata = b\n"), two("lr = 2\ndata = c\n");
  const auto cfg = parse("train", {"--config", one.str(), "--config", two.str()});
  EXPECT_EQ(cfg.lr, 2);
  EXPECT_EQ(cfg.batch, 4);
  EXPECT_THAT(cfg.data, ElementsAre("c"));
}

TEST(OptionsFile, AsEditorsOnOtherSystemsWriteIt) {
  EXPECT_EQ(parse_ini("\xef\xbb\xbflr = 2\r\nsteps = 3\r\n").steps, 3);
  EXPECT_EQ(parse_ini("steps = 3").steps, 3);  // no newline at the end
  EXPECT_EQ(parse_ini("").steps, 0);
}

TEST(OptionsFile, SectionsAndKeysOfOtherSubcommands) {
  const auto text =
      "pp = 2\ntemperature = 0.5\n[train]\nlr = 2\n[generate]\ntop-k = 3\n[verify]\npp = 4\n";
  const auto cfg = parse_ini(text);
  EXPECT_EQ(cfg.pp, 2);
  EXPECT_EQ(cfg.lr, 2);
  const auto gen = parse_ini(text, {}, "generate");
  EXPECT_EQ(gen.temperature, 0.5);
  EXPECT_EQ(gen.top_k, 3);
  EXPECT_EQ(parse_ini(text, {}, "verify").pp, 4);  // the section beats the rest
  EXPECT_EQ(parse_ini(text, {"--pp", "8"}, "verify").pp, 8);
  EXPECT_THAT(refused_ini("[train]\npp = 1\npp = 2\n"),
              HasSubstr(":3: pp was already given in line 2"));
  EXPECT_THAT(parse_ini("data = a\ndata = b\n[train]\ndata = c\n").data, ElementsAre("c"));
}

TEST(OptionsFile, ErrorsNameFileAndLine) {
  EXPECT_THAT(refused_ini("\nlearning_rate = 3\n"),
              AllOf(HasSubstr(".ini:2: learning_rate"), HasSubstr("Did you mean --lr?")));
  EXPECT_THAT(refused_ini("lr = 1\npp = zero\n"),
              AllOf(HasSubstr(".ini:2: pp = zero"), HasSubstr("from 1 to 4096")));
  EXPECT_THAT(refused_ini("lr = 1\nlr = 2\n"), AllOf(HasSubstr(".ini:2: lr"), HasSubstr("line 1")));
  EXPECT_THAT(refused_ini("lr\n"),
              AllOf(HasSubstr(".ini:1:"), HasSubstr("name = value"), HasSubstr("lr")));
  EXPECT_THAT(refused_ini("; old\n"), HasSubstr(".ini:1: expected"));
  EXPECT_THAT(refused_ini("= 3\n"), HasSubstr(".ini:1:"));
  EXPECT_THAT(refused_ini("lr =\n"), HasSubstr(".ini:1: lr"));
  EXPECT_THAT(refused_ini("[trian]\n"), AllOf(HasSubstr(".ini:1:"), HasSubstr("one of train, ")));
  EXPECT_THAT(refused_ini("[train\nlr = 1\n"), HasSubstr(".ini:1:"));
  EXPECT_THAT(refused_ini("[train]\ntemperature = 1\n"), HasSubstr(".ini:2: temperature"));
  EXPECT_THAT(refused_ini("config = x.ini\n"), HasSubstr("command line only"));
  EXPECT_THAT(refused_ini("model = a#b\n"), HasSubstr(".ini:1: # begins a comment"));
  EXPECT_THAT(refused_ini("model = \"a\n"),
              AllOf(HasSubstr(".ini:1:"), HasSubstr("closing quote")));
  EXPECT_THAT(refused_ini("model = \"a\\q\"\n"), HasSubstr("escape"));
  EXPECT_THAT(refused_ini("model = \"a\\x2\"\n"), HasSubstr("hexadecimal"));
  EXPECT_THAT(refused_ini("model = \"a\" b\n"), HasSubstr("after the closing quote"));
  EXPECT_THAT(refused_ini(std::string_view("model = a\0b\n", 12)), HasSubstr("not a text file"));
  EXPECT_THAT(refused("train", {"--config", "/nonexistent/job.ini"}),
              AllOf(HasSubstr("--config /nonexistent/job.ini"), HasSubstr("No such file")));
  EXPECT_THAT(refused("train", {"--config", "/tmp"}), HasSubstr("Is a directory"));
}

// ---- the resolved configuration

void expect_same(const JobConfig& a, const JobConfig& b) {
  for (const auto& o : options::table()) {
    if (o.name == "config") continue;
    std::visit([&](auto member) { EXPECT_EQ(a.*member, b.*member) << o.name; }, o.field);
  }
}

TEST(Resolved, RoundTripsForEverySubcommand) {
  for (const auto& c : subcommands()) {
    SCOPED_TRACE(c.name);
    const auto cfg = parse(c.name, {});
    expect_same(parse_ini(resolved_ini(cfg), {}, c.name), cfg);
  }
}

TEST(Resolved, RoundTripsAwkwardValues) {
  for (const std::string text : {"plain", "with blank", " outer blanks ", "hash#inside", "# first",
                                 "\"quoted\"", "back\\slash", "a\nb\tc\r", "é 漢字", "=", "a = b",
                                 "[train]", "\x01\x7f", "'", ";", "none", "\\x23"}) {
    SCOPED_TRACE(text);
    const auto cfg =
        parse("generate", {"--prompt=" + text, "--stop=" + text, "--stop=x", "--temperature=0.1"});
    ASSERT_EQ(cfg.prompt, text);
    const auto ini = resolved_ini(cfg);
    expect_same(parse_ini(ini, {}, "generate"), cfg);
    expect_same(parse("generate", given_flags(cfg)), cfg);
  }
}

TEST(Resolved, RoundTripsWhatWasGivenAndDerived) {
  auto cfg = parse_ini("steps = 7\n", {"--lr=3.3333333333333335e-05", "--no-decay", "none",
                                       "--peer-timeout", "1500ms", "--no-pack", "--schedule",
                                       "interleaved", "--data", "a", "--data", "b:0.5"});
  cfg.derive("batch", "12", "three rows a rank");
  const auto ini = resolved_ini(cfg);
  const auto back = parse_ini(ini);
  expect_same(back, cfg);
  EXPECT_THAT(ini, AllOf(HasSubstr("# command line"), HasSubstr(".ini:1"), HasSubstr("# default"),
                         HasSubstr("# derived: three rows a rank"),
                         HasSubstr("epochs is not given: derived: --steps")));
  EXPECT_THAT(given_flags(cfg), Not(testing::Contains("--batch=12")));
  // Only lines that are a key, a comment or empty.
  EXPECT_EQ(parse_ini(resolved_ini(back)).batch, 12);
}

TEST(Resolved, DerivedValuesAreCheckedToo) {
  auto cfg = parse("train", {});
  EXPECT_THROW(cfg.derive("batch", "none", "a reason"), UsageError);
  EXPECT_THROW(cfg.derive("nothing", "1", "a reason"), InternalError);
  EXPECT_THROW((void)cfg.is_set("nothing"), InternalError);
}

TEST(Nearest, EditDistance) {
  const Args words{"train", "eval", "micro-batch"};
  EXPECT_EQ(nearest("trian", words), "train");
  EXPECT_EQ(nearest("evl", words), "eval");
  EXPECT_EQ(nearest("micro", words), "micro-batch");
  EXPECT_EQ(nearest("sched", Args{"schedule-print", "schedule"}), "schedule");
  EXPECT_EQ(nearest("beta", Args{"beta-one", "beta-two"}), "");
  EXPECT_EQ(nearest("zzz", words), "");
  EXPECT_EQ(nearest("", words), "");
  EXPECT_EQ(nearest("a", Args{"b"}), "");  // replacing all of it is no hint
}

}  // namespace
}  // namespace r1
