#include "runtime/train/completions.h"

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

#include "runtime/core/human.h"

namespace r1::train {

using Json = nlohmann::json;
using serve::FinishReason;

std::string_view finish_name(FinishReason reason) { return reason == FinishReason::kLength ? "length" : "stop"; }

namespace {

std::string to_text(const std::vector<Completion>& completions, int begin, int step) {
  Json all = Json::array();
  for (size_t i = static_cast<size_t>(begin); i < completions.size(); i += static_cast<size_t>(step)) {
    const Completion& c = completions[i];
    all.push_back({static_cast<int>(c.finish), c.ids, c.logprobs});
  }
  return all.dump();
}

void from_text(const std::string& text, std::vector<Completion>& completions, int begin, int step) {
  auto i = static_cast<size_t>(begin);
  for (const Json& j : Json::parse(text)) {
    completions.at(i) = {.ids = j[1].get<std::vector<int32_t>>(),
                         .logprobs = j[2].get<std::vector<float>>(),
                         .finish = static_cast<FinishReason>(j[0].get<int>())};
    i += static_cast<size_t>(step);
  }
}

/// The completions of other replicas, from their first ranks to rank 0. Collective over the world.
void gather_replicas(const RankContext& ctx, const parallel::MeshShape& mesh, std::vector<Completion>& completions) {
  comm::Communicator& world = ctx.world;
  for (int replica = 1; replica < mesh.dp; ++replica) {
    const int leader = parallel::rank_of(mesh, {.pp = 0, .dp = replica, .tp = 0});
    if (world.rank() == leader) {
      send_text(world, to_text(completions, replica, mesh.dp), 0);
    } else if (world.rank() == 0) {
      from_text(recv_text(world, leader), completions, replica, mesh.dp);
    }
  }
}

}  // namespace

RequestSizes sizes_of(const std::vector<Prompt>& prompts, int64_t samples, int64_t max_new_tokens, int dp) {
  RequestSizes s{.count = (static_cast<int64_t>(prompts.size()) * samples + dp - 1) / dp};
  for (const Prompt& p : prompts) s.longest_prompt = std::max(s.longest_prompt, static_cast<int64_t>(p.ids.size()));
  // No model has a longer context; the sum must not overflow.
  if (max_new_tokens > 0) s.longest = s.longest_prompt + std::min<int64_t>(max_new_tokens, INT32_MAX);
  return s;
}

std::vector<Completion> run_completions(const RankContext& ctx, InferenceSession& session, const CompletionJob& job,
                                        const CompletionObserver& observe) {
  serve::Engine& engine = session.engine();
  const parallel::MeshShape& mesh = session.mesh();
  const int replica = session.groups().coord().dp;
  std::vector<size_t> request_of;  // engine's index -> index in the job
  for (size_t i = static_cast<size_t>(replica); i < job.requests.size(); i += static_cast<size_t>(mesh.dp)) {
    static_cast<void>(engine.add(job.requests[i]));
    request_of.push_back(i);
  }
  std::vector<Completion> completions(job.requests.size());
  std::vector<std::unique_ptr<serve::CompletionText>> texts(
      job.requests.size());  // every rank looks for stop strings itself
  const auto on_token = [&](const serve::TokenEvent& e) {
    const size_t i = request_of[static_cast<size_t>(e.request)];
    Completion& c = completions[i];
    c.ids.push_back(e.token);
    c.logprobs.push_back(e.logprob);
    c.finish = e.finish;
    bool stopped = false;
    if (!job.stops.empty()) {
      if (!texts[i])
        texts[i] = std::make_unique<serve::CompletionText>(*session.tokenizer(), job.kind, false, job.stops);
      static_cast<void>(texts[i]->push(e.token));
      stopped = texts[i]->stopped();
      if (stopped) c.finish = FinishReason::kStop;
    }
    const bool last = c.finish != FinishReason::kNone;
    if (last) texts[i].reset();
    if (ctx.first() && observe) observe(i, e.token, last);
    return stopped;
  };
  int64_t pass = 0;
  engine.run(on_token, [&] {
    ctx.check_stop();
    ctx.status.set_step(pass++);
    ctx.status.set_phase("generating");
  });
  gather_replicas(ctx, mesh, completions);
  if (!ctx.first()) completions.clear();
  return completions;
}

serve::EngineStats job_stats(InferenceSession& session) {
  serve::EngineStats s = session.engine().stats();
  comm::Communicator& dp = session.groups().dp();
  s.prompt_tokens = reduce(dp, s.prompt_tokens, comm::ReduceOp::kSum);
  s.generated_tokens = reduce(dp, s.generated_tokens, comm::ReduceOp::kSum);
  s.passes = reduce(dp, s.passes, comm::ReduceOp::kSum);
  s.preemptions = reduce(dp, s.preemptions, comm::ReduceOp::kSum);
  s.prefill_seconds = reduce(dp, s.prefill_seconds, comm::ReduceOp::kMax);
  s.decode_seconds = reduce(dp, s.decode_seconds, comm::ReduceOp::kMax);
  return s;
}

std::string stats_line(const serve::EngineStats& s) {
  const auto rate = [](int64_t tokens, double seconds) {
    return human_si(seconds > 0 ? static_cast<double>(tokens) / seconds : 0.0, "tok/s");
  };
  std::string line = fmt::format("{} prompt tokens at {}, {} tokens generated at {}", human_count(s.prompt_tokens),
                                 rate(s.prompt_tokens, s.prefill_seconds), human_count(s.generated_tokens),
                                 rate(s.generated_tokens, s.decode_seconds));
  if (s.preemptions > 0)
    line += fmt::format("; {} sequences started over because the cache was full", human_count(s.preemptions));
  return line;
}

}  // namespace r1::train
