// The options of every subcommand: one table, read from flags and from an INI file (--config) by
// Boost.Program_options, checked here, printed as help and as the resolved configuration. The front
// door and every rank parse with this code.
//
// To add an option: one field of JobConfig and one row of the table in options.cpp. The flag, the
// INI key and the row have one name; the field is that name in snake_case (`template_name` for
// --template, a keyword of C++).
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace r1 {

struct Subcommand {
  std::string_view name;
  std::string_view summary;  ///< one line, for `r1run --help`
  std::string_view
      positional;           ///< option that takes bare arguments ("input"); empty: none are taken
  bool runs_ranks = false;  ///< true: needs ranks; false: one process of its own, on a login node
  bool planned = false;     ///< has its place and options but is not there yet: not in the help,
                            ///< refused when asked for
};
[[nodiscard]] std::span<const Subcommand> subcommands();

/// What the first words of a command line ask for.
struct Invocation {
  std::string command;            ///< a name of subcommands(); "train" when none is given
  std::vector<std::string> args;  ///< what parse_options takes
  bool help = false;              ///< program_help() is wanted (`r1run --help`, `r1run help`)
  bool version = false;           ///< `r1run --version`
};
/// `args`: argv without the program's name. Throws UsageError for an unknown subcommand, with the
/// nearest one.
[[nodiscard]] Invocation split_command(std::span<const std::string> args);

/// Where a value came from.
struct Origin {
  enum class Kind : uint8_t { kDefault, kDerived, kFile, kCommandLine } kind = Kind::kDefault;
  std::string where;  ///< kFile: "job.ini:12"; kDerived: the reason
  /// "default", "command line", "job.ini:12", "derived: <reason>".
  [[nodiscard]] std::string str() const;
};

/// One field per option. Units and meaning: the rows in options.cpp, or `r1run <command> --help`.
/// Numbers that may be "auto" or not given are 0 then; std::optional where 0 is a value.
struct JobConfig {
  // model and data
  std::string model, init;
  std::vector<std::string> data, eval_data;
  std::string format;
  int64_t seq_len = 0;
  bool no_shuffle = false, no_pack = false;
  bool train_on_prompt = false, parse_special = false;
  std::string think_history, template_name, too_long, cache_dir;
  int64_t max_bad_rows = 0;
  // layout
  int pp = 1, dp = 1, tp = 1;
  std::string schedule;
  int virtual_stages = 1;
  int64_t micro_batch = 1;
  std::string recompute;
  int zero = 1;  ///< 1: optimizer state cut over dp
  std::string comm;
  bool schedule_print = false;
  // optimisation
  int64_t steps = 0;  ///< 0: as many as `epochs` take
  double epochs = 0;  ///< 0: `steps` says how long
  int64_t batch = 0;  ///< rows per step over all ranks
  double lr = 0, min_lr = 0;
  int64_t warmup_steps = 0;
  std::string lr_schedule;
  double beta1 = 0, beta2 = 0, eps = 0, weight_decay = 0;
  std::vector<std::string> no_decay;  ///< of "norm", "bias", "embedding"
  double clip = 0;                    ///< 0: off
  int64_t max_skipped_steps = 0;
  double spike_sigmas = 0;  ///< 0: off
  // output
  std::string output, resume, save_mode;
  std::vector<std::string> resume_allow;
  int64_t save_every = 0, keep_last = 0, keep_every = 0, eval_every = 0;
  // machine and numerics
  std::string dtype, state_dtype, device;
  int threads = 0;
  uint64_t seed = 0;
  std::string deterministic;  ///< off, run, layouts
  int64_t profile = 0;
  bool no_graphs = false;
  std::vector<std::string> offload;  ///< of "optimizer", "activations"
  // launching
  std::string hostfile, host, topology, rankfile;
  bool dry_run = false;
  double peer_timeout = 0, stall_timeout = 0;  ///< seconds
  int max_restarts = 0;
  // batch systems
  std::string job_name, time_limit, partition, account, qos, write, image, kube_namespace;
  std::vector<std::string> sbatch_option, setup, volume;
  int nodes = 0, gpus_per_node = 0;  ///< 0: auto
  double save_before = 0;            ///< seconds
  bool submit = false;
  bool query = false;  ///< doctor: one line a GPU
  // planning
  std::string cluster, catalogue, html;
  double price = 0;  ///< USD an hour; 0: the catalogue's
  // verification
  std::string reference, checkpoint;
  std::vector<std::string> layouts;
  // generation
  std::string prompt, chat;
  std::vector<int64_t> prompt_ids;
  std::optional<double> temperature, top_p, min_p, repetition_penalty;
  std::optional<int64_t> top_k;
  int64_t max_new_tokens = 0;
  std::vector<std::string> stop;
  bool ignore_eos = false;
  int64_t max_batch = 0, context = 0, kv_blocks = 0, prefill_chunk = 0;
  std::string task;
  int64_t samples = 0;
  // tokenize
  bool add_special = false, skip_special = false, generation_prompt = false, train = false, stats = false;
  // everywhere
  std::string json, input, svg;
  bool measure = false;
  std::vector<std::string> config;
  bool help =
      false;  ///< --help was given: nothing else has been checked; print options_help(command)

  std::string command;  ///< the subcommand these options belong to

  /// Where option `name` ("micro-batch") got its value.
  [[nodiscard]] Origin origin(std::string_view name) const;
  /// True when the user gave it, by flag or in a file.
  [[nodiscard]] bool is_set(std::string_view name) const;
  /// --deterministic in any scope, and in the scope of layouts: a micro-batch is one row, rows are summed in a tree.
  [[nodiscard]] bool repeatable() const { return deterministic != "off" && !deterministic.empty(); }
  [[nodiscard]] bool row_tree() const { return deterministic == "layouts"; }
  /// The value of option `name` as text that set() takes.
  [[nodiscard]] std::string value(std::string_view name) const;
  /// Sets an option from text, checked as on the command line. For values the program decides:
  /// "derived: <reason>".
  void derive(std::string_view name, const std::string& text, const std::string& reason);
  /// Sets an option as if it had been given on the command line, in place of what was given: a job with one thing changed.
  void give(std::string_view name, const std::string& text);

  std::map<std::string, Origin, std::less<>> origins;  ///< without an entry: default
  std::vector<std::string> warnings;                   ///< of reading them, for people
};

/// Reads the options of one subcommand: defaults, then the files of --config in order, then flags;
/// checks each value and the combinations that can be known without a model. Throws UsageError
/// naming the option, the value, where it was given, what is allowed and, for a mistyped word, the
/// nearest one.
/// In a file: `name = value` a line, `#` begins a comment. Keys below a section ([train]) are for
/// that subcommand and beat those above; keys of other subcommands are skipped, so one file can
/// serve train, plan and generate. A value with `#`, quotes or outer blanks is written "in quotes"
/// with the escapes \\ \" \n \r \t \xHH. Relative paths are relative to the working directory.
[[nodiscard]] JobConfig parse_options(std::string_view command, std::span<const std::string> args);

/// The options of `command` that there are, in the order of the help, --help left out.
[[nodiscard]] std::vector<std::string> option_names(std::string_view command);

/// The resolved configuration as INI text with a note where each value came from; parse_options
/// reads it back.
[[nodiscard]] std::string resolved_ini(const JobConfig& cfg);
/// The options the user gave (by flag or file, --config left out) as flags: `r1run <command>
/// <these>` is the same job.
[[nodiscard]] std::vector<std::string> given_flags(const JobConfig& cfg);

/// The same for the options that `command` has too: what `r1run sbatch` hands to `r1run train`.
[[nodiscard]] std::vector<std::string> given_flags(const JobConfig& cfg, std::string_view command);

/// Text of `r1run --help`.
[[nodiscard]] std::string program_help();
/// Text of `r1run <command> --help`.
[[nodiscard]] std::string options_help(std::string_view command);
/// The options of a subcommand as rows of a Markdown table (option, default, meaning), for the
/// documentation.
[[nodiscard]] std::string options_markdown(std::string_view command);

/// The candidate nearest to `word` by edit distance (insert, delete, replace, swap), or "" when
/// none is near enough to be what was meant.
[[nodiscard]] std::string nearest(std::string_view word, std::span<const std::string> candidates);

}  // namespace r1
