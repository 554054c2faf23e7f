#include "runtime/train/generate.h"

#include <algorithm>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

#include "runtime/core/log.h"
#include "runtime/train/completions.h"

namespace r1::train {

namespace {

using Json = nlohmann::ordered_json;

/// Where rows of --json go; nothing when the option is not given.
class JsonOutput {
 public:
  explicit JsonOutput(const std::string& name) : name_(name) {
    if (name.empty() || name == "-") return;
    file_.open(name, std::ios::binary | std::ios::trunc);
    if (!file_.is_open())
      throw StorageError("--json {}: cannot be written ({})", name, std::generic_category().message(errno));
  }
  void write(const Json& row) {
    if (name_.empty()) return;
    std::ostream& out = name_ == "-" ? std::cout : file_;
    out << row.dump(-1, ' ', false, Json::error_handler_t::replace) << '\n' << std::flush;
    if (!out) throw StorageError("--json {}: cannot be written ({})", name_, std::generic_category().message(errno));
  }

 private:
  std::string name_;
  std::ofstream file_;
};

/// Shows completions on rank 0: one alone as it comes, several in their order, each when it is complete.
class Printer {
 public:
  Printer(const RankContext& ctx, const InferenceSession& session, const CompletionJob& job,
          std::vector<Prompt> prompts)
      : ctx_(ctx),
        session_(session),
        job_(job),
        prompts_(std::move(prompts)),
        json_(ctx.config.json),
        quiet_(ctx.config.json == "-"),
        alone_(job.requests.size() == 1),
        tokens_(job.requests.size()),
        done_(job.requests.size(), false) {}

  void observe(size_t i, int32_t token, bool last) {
    if (quiet_) return;
    if (alone_) {
      stream(i, token, last);
      return;
    }
    tokens_[i].push_back(token);
    done_[i] = last;
    for (; next_ < done_.size() && done_[next_]; ++next_) print_whole(next_);
  }

  /// What observe() did not show (other replicas' completions), and the rows of --json.
  void finish(const std::vector<Completion>& completions) {
    for (size_t i = 0; i < completions.size(); ++i) {
      if (!quiet_ && !alone_ && !done_[i]) {
        tokens_[i] = completions[i].ids;
        done_[i] = true;
      }
      json_.write(row(i, completions[i]));
    }
    if (!quiet_ && !alone_)
      for (; next_ < done_.size(); ++next_) print_whole(next_);
  }

 private:
  [[nodiscard]] std::unique_ptr<serve::CompletionText> text_of(size_t i) const {
    if (session_.tokenizer() == nullptr) return nullptr;
    return std::make_unique<serve::CompletionText>(*session_.tokenizer(), job_.kind, prompts_[i].thinking_open,
                                                   job_.stops);
  }

  /// Reasoning is dimmed on a terminal, and stands in <think> marks elsewhere.
  void show(const serve::CompletionText::Delta& d) {
    if (!d.reasoning.empty()) {
      if (!thinking_) fmt::print("{}", ctx_.terminal ? "\x1b[2m" : "<think>\n");
      thinking_ = true;
      fmt::print("{}", d.reasoning);
    }
    if (!d.answer.empty()) {
      end_thought();
      fmt::print("{}", d.answer);
    }
    std::fflush(stdout);
  }
  void end_thought() {
    if (thinking_) fmt::print("{}", ctx_.terminal ? "\x1b[0m\n\n" : "\n</think>\n\n");
    thinking_ = false;
  }

  void stream(size_t i, int32_t token, bool last) {
    if (!streaming_ && session_.tokenizer() != nullptr) streaming_ = text_of(i);
    if (!streaming_) {
      fmt::print("{}{}", shown_any_ ? " " : "", token);
      shown_any_ = true;
      std::fflush(stdout);
      if (last) fmt::print("\n");
      return;
    }
    show(streaming_->push(token));
    if (!last) return;
    show(streaming_->finish());
    end_thought();
    fmt::print("\n");
    std::fflush(stdout);
  }

  void print_whole(size_t i) {
    fmt::print("{}[{}]\n", i > 0 ? "\n" : "", i + 1);
    if (const auto text = text_of(i)) {
      for (const int32_t token : tokens_[i]) show(text->push(token));
      show(text->finish());
      end_thought();
      fmt::print("\n");
    } else {
      fmt::print("{}\n", fmt::join(tokens_[i], " "));
    }
    std::fflush(stdout);
    tokens_[i] = {};
  }

  [[nodiscard]] Json row(size_t i, const Completion& c) const {
    Json j{{"prompt_ids", prompts_[i].ids},          {"ids", c.ids},          {"text", nullptr}, {"reasoning", nullptr},
           {"finish_reason", finish_name(c.finish)}, {"logprobs", c.logprobs}};
    if (const auto text = text_of(i)) {
      for (const int32_t token : c.ids) static_cast<void>(text->push(token));
      static_cast<void>(text->finish());
      j["text"] = text->answer();
      if (text->reasoning()) j["reasoning"] = *text->reasoning();
      for (const text::ToolCall& call : text->tool_calls())
        j["tool_calls"].push_back({{"name", call.name}, {"arguments", call.arguments}});
    }
    return j;
  }

  const RankContext& ctx_;
  const InferenceSession& session_;
  const CompletionJob& job_;
  std::vector<Prompt> prompts_;
  JsonOutput json_;
  bool quiet_, alone_;
  std::vector<std::vector<int32_t>> tokens_;
  std::vector<bool> done_;
  size_t next_ = 0;
  bool thinking_ = false, shown_any_ = false;
  std::unique_ptr<serve::CompletionText> streaming_;
};

}  // namespace

ExitCode run_generate(const RankContext& ctx) {
  JobConfig& cfg = ctx.config;
  if (cfg.model.empty()) throw UsageError("generate needs --model DIR");
  ctx.status.set_phase("opening the model");
  InferenceSession session(ctx);
  if (!cfg.stop.empty() && session.tokenizer() == nullptr)
    throw UsageError("--stop: there is no tokenizer.json in {}, so completions have no text", cfg.model);
  PromptReader reader(session.tokenizer(), cfg.model, cfg.template_name, cfg.parse_special);
  ctx.status.set_phase("reading the prompts");
  std::vector<Prompt> prompts;
  if (ctx.first()) prompts = read_prompts(cfg, reader, std::cin);
  prompts = broadcast_prompts(ctx.world, std::move(prompts));

  if (ctx.first()) log::info("sampling: {}", session.sampling_shown());
  session.load(sizes_of(prompts, 1, cfg.max_new_tokens, session.mesh().dp), !cfg.json.empty());
  CompletionJob job{.requests = {}, .stops = cfg.stop, .kind = reader.kind_or_default()};
  for (size_t i = 0; i < prompts.size(); ++i)
    job.requests.push_back({.number = i,
                            .prompt = prompts[i].ids,
                            .sampling = session.sampling(),
                            .max_new_tokens = session.max_new_tokens(static_cast<int64_t>(prompts[i].ids.size())),
                            .ignore_eos = cfg.ignore_eos});
  std::optional<Printer> printer;
  if (ctx.first()) printer.emplace(ctx, session, job, std::move(prompts));
  const std::vector<Completion> completions =
      run_completions(ctx, session, job, [&](size_t i, int32_t token, bool last) { printer->observe(i, token, last); });
  if (printer) printer->finish(completions);
  const serve::EngineStats stats = job_stats(session);
  if (ctx.first()) log::info("{}", stats_line(stats));
  session.close();
  return ExitCode::kOk;
}

}  // namespace r1::train
