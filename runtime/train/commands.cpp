#include "runtime/train/commands.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

#include "runtime/data/tokenize_command.h"
#include "runtime/train/data_progress.h"
#include "runtime/train/evaluate.h"
#include "runtime/train/generate.h"
#include "runtime/train/input_paths.h"
#include "runtime/train/probe.h"
#include "runtime/train/trainer.h"
#include "runtime/train/verify.h"

namespace r1::train {

namespace {

/// As training takes it where --seq-len is not given: 1024, or the model's limit where that is less.
int64_t default_seq_len(const std::string& model) {
  constexpr int64_t kDefault = 1024;
  const std::filesystem::path config = std::filesystem::path(model) / "config.json";
  std::ifstream in(config);
  if (!in) return kDefault;
  const auto json = nlohmann::json::parse(in, nullptr, false);
  if (!json.is_object() || !json.contains("max_position_embeddings")) return kDefault;
  const auto& limit = json["max_position_embeddings"];
  return limit.is_number_integer() && limit > 0 ? std::min(kDefault, limit.get<int64_t>()) : kDefault;
}

ExitCode run_tokenize(const RankContext& ctx) {
  const JobConfig& cfg = ctx.config;
  if (cfg.model.empty()) throw UsageError("tokenize needs --model DIR or --model tokenizer.json");
  data::TokenizeArgs args;
  args.model = cfg.model;
  args.add_special = cfg.add_special;
  args.generation_prompt = cfg.generation_prompt;
  args.parse_special = cfg.parse_special;
  args.skip_special = cfg.skip_special;
  args.json = !cfg.json.empty();
  args.train = cfg.train;
  args.stats = cfg.stats;
  args.color = isatty(STDOUT_FILENO) == 1;
  for (const std::string& file : cfg.data) args.data.sources.push_back(data::parse_data_source(file));
  if (cfg.stats && cfg.data.empty()) throw UsageError("tokenize --stats needs --data FILE");
  args.data.format = cfg.format;
  args.data.seq_len = cfg.seq_len > 0 ? cfg.seq_len : default_seq_len(cfg.model);
  args.data.pack = !cfg.no_pack;
  args.data.train_on_prompt = cfg.train_on_prompt;
  args.data.think_history = cfg.think_history;
  args.data.max_bad_rows = cfg.max_bad_rows;
  args.data.too_long = cfg.too_long;
  args.data.template_name = cfg.template_name;
  args.data.parse_special = cfg.parse_special;
  args.data.cache_dir = cfg.cache_dir;
  args.data.threads = cfg.threads > 0 ? cfg.threads : static_cast<int>(std::max<long>(1, sysconf(_SC_NPROCESSORS_ONLN)));
  args.data.progress = [&ctx, line = DataProgressLine()](const data::DataProgress& p) mutable {
    ctx.check_stop();
    if (const std::string text = line.next(p); !text.empty()) fmt::print(stderr, "{}\n", text);
  };
  if (cfg.json.empty() || cfg.json == "-") {
    data::run_tokenize(args, std::cin, std::cout);
    return ExitCode::kOk;
  }
  std::ofstream file(cfg.json);
  if (!file) throw StorageError("--json {}: cannot be written", cfg.json);  // before the work
  data::run_tokenize(args, std::cin, file);
  if (!file.flush()) throw StorageError("--json {}: cannot be written", cfg.json);
  return ExitCode::kOk;
}

}  // namespace

bool needs_ranks(const std::string& command) {
  for (const Subcommand& c : subcommands())
    if (c.name == command) return c.runs_ranks;
  return false;
}

ExitCode run_command(const RankContext& ctx) {
  const std::string& command = ctx.config.command;
  check_input_paths(ctx.config);
  if (command == "train") return run_train(ctx);
  if (command == "verify") return run_verify(ctx);
  if (command == "eval") return run_eval(ctx);
  if (command == "generate") return run_generate(ctx);
  if (command == "probe") {
    run_probe(ctx);
    return ExitCode::kOk;
  }
  if (command == "tokenize") return run_tokenize(ctx);
  throw UsageError("r1run {}: this program has no such command", command);
}

comm::StopCheck stop_check(const JobConfig& config, const SignalFlags& signals) {
  return [&config, &signals](const comm::Communicator& group, const char* operation, std::chrono::nanoseconds waited) {
    signals.check_stop();
    const double seconds = std::chrono::duration<double>(waited).count();
    // The control thread decides first, and names the rank; this is for jobs without one.
    if (config.stall_timeout > 0 && seconds > 3 * config.stall_timeout + 5)
      throw CommError("{} over {} has waited {:.0f} s (--stall-timeout {:.0f}s): another rank does not come", operation,
                      group.name(), seconds, config.stall_timeout);
  };
}

}  // namespace r1::train
