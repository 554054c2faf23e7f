#include "runtime/train/task.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "runtime/core/human.h"
#include "runtime/core/log.h"
#include "runtime/data/dataset.h"
#include "runtime/data/formats.h"
#include "runtime/data/input.h"
#include "runtime/train/completions.h"
#include "runtime/train/final_answer.h"

namespace r1::train {

namespace {

using Json = nlohmann::ordered_json;

struct Question {
  std::string text, expected;
};

/// `question` and the final answer of `answer` (behind ####, in \boxed{}, or all of it).
Question read_question(std::string_view row, const std::string& place) {
  const Json j = Json::parse(row, nullptr, false);
  if (!j.is_object()) throw DataError("{}: not a JSON object; expected question and answer in it", place);
  const auto text = [&](const char* key) {
    const auto it = j.find(key);
    if (it == j.end() || !it->is_string() || it->get_ref<const std::string&>().empty())
      throw DataError("{}: no text `{}` in it", place, key);
    return it->get<std::string>();
  };
  const std::string answer = text("answer");
  return {.text = text("question"), .expected = final_answer(answer).value_or(answer)};
}

std::vector<Question> read_questions(const std::vector<std::string>& files) {
  std::vector<Question> out;
  for (const std::string& name : files) {
    const auto path = data::parse_data_source(name).path;
    data::RecordReader reader(data::InputFile(path), data::RecordReader::Text::kNo);
    data::RecordBatch batch;
    while (reader.next(batch, size_t{1} << 20))
      for (const data::RecordBatch::Record& r : batch.records) {
        const std::string place = fmt::format("{}:{}", path.string(), r.line);
        if (r.too_large) throw DataError("{}: a row of more than {} bytes", place, data::kMaxRecordBytes);
        out.push_back(read_question(batch.text(r), place));
      }
  }
  if (out.empty()) throw DataError("--data holds no questions");
  return out;
}

/// What came of one question.
struct Outcome {
  std::vector<std::string> answers;  ///< "" where there was none
  int64_t right = 0, cut_off = 0;
};

Outcome judge(const Question& q, std::span<const Completion> completions, const text::Tokenizer& tokenizer,
              text::TemplateKind kind, bool thinking_open) {
  Outcome out;
  for (const Completion& c : completions) {
    serve::CompletionText text(tokenizer, kind, thinking_open, {});
    for (const int32_t id : c.ids) static_cast<void>(text.push(id));
    static_cast<void>(text.finish());
    // The answer proper counts; an answer that never came out of its thoughts is none.
    const std::string found = final_answer(text.answer()).value_or("");
    if (!found.empty() && canonical_answer(found) == canonical_answer(q.expected)) ++out.right;
    if (c.finish == serve::FinishReason::kLength) ++out.cut_off;
    out.answers.push_back(found);
  }
  return out;
}

/// 1, 2, 4, ... and n itself.
std::vector<int64_t> shown_ks(int64_t n) {
  std::vector<int64_t> ks;
  for (int64_t k = 1; k < n; k *= 2) ks.push_back(k);
  ks.push_back(n);
  return ks;
}

void report(const RankContext& ctx, const std::vector<Question>& questions, const std::vector<Outcome>& outcomes,
            const std::string& sampling) {
  const JobConfig& cfg = ctx.config;
  const auto count = static_cast<int64_t>(questions.size());
  Json out{
      {"model", cfg.model}, {"task", cfg.task}, {"questions", count}, {"samples", cfg.samples}, {"sampling", sampling}};
  int64_t right = 0, none = 0, cut_off = 0;
  for (const Outcome& o : outcomes) {
    right += o.right;
    cut_off += o.cut_off;
    none += std::count(o.answers.begin(), o.answers.end(), "");
  }
  say(ctx, fmt::format("{} questions, {} answer{} each ({}): {} right, {} without a final answer, {} cut off",
                       human_count(count), cfg.samples, cfg.samples == 1 ? "" : "s", sampling, human_count(right),
                       human_count(none), human_count(cut_off)));
  for (const int64_t k : shown_ks(cfg.samples)) {
    double sum = 0;
    for (const Outcome& o : outcomes) sum += pass_at_k(cfg.samples, o.right, k);
    const double mean = sum / static_cast<double>(count);
    say(ctx, fmt::format("pass@{:<4} {:.4f}", k, mean));
    out[fmt::format("pass@{}", k)] = mean;
  }
  out["right"] = right;
  out["without_answer"] = none;
  out["cut_off"] = cut_off;
  for (size_t i = 0; i < questions.size(); ++i)
    out["rows"].push_back({{"question", questions[i].text},
                           {"expected", questions[i].expected},
                           {"answers", outcomes[i].answers},
                           {"right", outcomes[i].right}});
  if (!cfg.json.empty()) write_json(cfg.json, out.dump(2, ' ', false, Json::error_handler_t::replace));
}

}  // namespace

ExitCode run_task(const RankContext& ctx) {
  JobConfig& cfg = ctx.config;
  ctx.status.set_phase("opening the model");
  InferenceSession session(ctx);
  if (session.tokenizer() == nullptr) throw UsageError("eval --task: there is no tokenizer.json in {}", cfg.model);
  if (cfg.samples > 1 && session.sampling().greedy())
    throw UsageError("--samples {}: greedy answers are all the same; give a --temperature above 0", cfg.samples);
  PromptReader reader(session.tokenizer(), cfg.model, cfg.template_name, cfg.parse_special);
  const text::TemplateKind kind = reader.kind();
  ctx.status.set_phase("reading the questions");
  std::vector<Question> questions;
  std::vector<Prompt> prompts;
  if (ctx.first()) {
    questions = read_questions(cfg.data);
    for (const Question& q : questions) {
      const text::Message user{.role = text::Role::kUser,
                               .content = cfg.prompt == "none" ? q.text : q.text + "\n" + cfg.prompt};
      prompts.push_back(reader.from_messages({&user, 1}, {}));
    }
  }
  prompts = broadcast_prompts(ctx.world, std::move(prompts));

  if (ctx.first()) log::info("sampling: {}", session.sampling_shown());
  session.load(sizes_of(prompts, cfg.samples, cfg.max_new_tokens, session.mesh().dp), false);
  CompletionJob job{.requests = {}, .stops = {}, .kind = kind};
  for (const Prompt& p : prompts)
    for (int64_t s = 0; s < cfg.samples; ++s)
      job.requests.push_back({.number = job.requests.size(),
                              .prompt = p.ids,
                              .sampling = session.sampling(),
                              .max_new_tokens = session.max_new_tokens(static_cast<int64_t>(p.ids.size()))});
  size_t over = 0;
  const std::vector<Completion> completions = run_completions(ctx, session, job, [&](size_t, int32_t, bool last) {
    over += last ? 1 : 0;
    if (last && ctx.terminal)
      fmt::print(stderr, "\r{} of {} answers{}", over, job.requests.size(), over == job.requests.size() ? "\n" : "");
  });
  const serve::EngineStats stats = job_stats(session);
  if (ctx.first()) {
    std::vector<Outcome> outcomes;
    const auto n = static_cast<size_t>(cfg.samples);
    for (size_t i = 0; i < questions.size(); ++i)
      outcomes.push_back(judge(questions[i], std::span(completions).subspan(i * n, n), *session.tokenizer(), kind,
                               prompts[i].thinking_open));
    report(ctx, questions, outcomes, session.sampling_shown());
    log::info("{}", stats_line(stats));
  }
  session.close();
  return ExitCode::kOk;
}

}  // namespace r1::train
